//! Folders for tests.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

/// A folder that nobody else may write to, whatever the umask is.
pub(crate) fn folder() -> TempDir {
    let mut builder = tempfile::Builder::new();
    let own = builder.permissions(Permissions::from_mode(0o700));
    own.tempdir().unwrap()
}

//! The directory that the sockets are in.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};
use thiserror::Error;

/// Everybody may reach a socket whose name they know, and nobody but the owner sees or makes names.
const MODE: u32 = 0o711;

/// Why sockets cannot be made in a directory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// It cannot be made or looked at.
    #[error("{step} {}: {source}", path.display())]
    System {
        /// What was tried.
        step: &'static str,
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Something else has the name.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Names can be made in it by somebody else, who could put a socket of his own in the place of a client's.
    #[error("{} can be written by others (owner {uid}, mode {mode:04o})", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        uid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// This process may make no names in it.
    #[error("{} may not be written by user {uid}", path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// This process's user.
        uid: u32,
    },
}

impl DirectoryError {
    /// What can be done about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::System { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
                let parent = path.parent().unwrap_or(Path::new("/"));
                format!("Run: mkdir -p {}", parent.display())
            }
            Self::System { .. } | Self::NotWritable { .. } => {
                "Give this user the directory, or name another one in the policy: directory = \"…\""
                    .to_owned()
            }
            Self::NotADirectory { .. } => {
                "Name another directory in the policy: directory = \"…\"".to_owned()
            }
            Self::Foreign { path, .. } => format!(
                "Run: chmod 0711 {path} && chown {uid} {path}, or name another directory in the policy: directory = \"…\"",
                path = path.display(),
                uid = geteuid(),
            ),
        }
    }
}

/// Makes the directory, with mode 0711, if there is none, or sees to it that nobody else can make names in the one that is there.
///
/// # Errors
/// [`DirectoryError`].
pub(crate) fn prepare(directory: &Path) -> Result<(), DirectoryError> {
    let failed = |step| {
        move |source| DirectoryError::System {
            step,
            path: directory.to_owned(),
            source,
        }
    };
    match DirBuilder::new().mode(MODE).create(directory) {
        // The umask had a part in it.
        Ok(()) => std::fs::set_permissions(directory, Permissions::from_mode(MODE))
            .map_err(failed("setting the mode of"))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("making the directory")(error)),
    }
    let foreign = |uid, mode| DirectoryError::Foreign {
        path: directory.to_owned(),
        uid,
        mode,
    };
    let me = geteuid();
    let trusted = |uid: u32| uid == me.as_raw() || uid == 0;
    // Somebody else's symbolic link would lead to a directory of his choice.
    let name = std::fs::symlink_metadata(directory).map_err(failed("looking at"))?;
    if name.is_symlink() && !trusted(name.uid()) {
        return Err(foreign(name.uid(), name.mode() & 0o7777));
    }
    let found = std::fs::metadata(directory).map_err(failed("looking at"))?;
    if !found.is_dir() {
        return Err(DirectoryError::NotADirectory {
            path: directory.to_owned(),
        });
    }
    let (uid, mode) = (found.uid(), found.mode() & 0o7777);
    // Whoever can write it, or owns it and so can make it writable, could take a client's name.
    if !trusted(uid) || mode & 0o022 != 0 {
        return Err(foreign(uid, mode));
    }
    if access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        return Err(DirectoryError::NotWritable {
            path: directory.to_owned(),
            uid: me.as_raw(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_directory_is_made_and_a_lax_one_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("13");
        prepare(&directory).unwrap();
        assert_eq!(mode(&directory), MODE);
        prepare(&directory).unwrap();
        for lax in [0o777, 0o1777, 0o720] {
            std::fs::set_permissions(&directory, Permissions::from_mode(lax)).unwrap();
            let error = prepare(&directory).unwrap_err();
            assert!(matches!(error, DirectoryError::Foreign { .. }), "{error}");
            assert!(error.remedy().contains("chmod"), "{}", error.remedy());
            assert_eq!(mode(&directory), lax, "it may be in use for something else");
        }
    }

    #[test]
    fn what_is_no_directory_or_has_no_place_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            prepare(&file),
            Err(DirectoryError::NotADirectory { .. })
        ));
        let error = prepare(&folder.path().join("a/b")).unwrap_err();
        assert_eq!(
            error.remedy(),
            format!("Run: mkdir -p {}", folder.path().join("a").display())
        );
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        if !geteuid().is_root() {
            // Only root can give a directory away; nobody else can own one that this user could not have made.
            let error = prepare(Path::new("/")).unwrap_err();
            assert!(
                matches!(error, DirectoryError::NotWritable { .. }),
                "{error}"
            );
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("theirs");
        std::fs::create_dir(&directory).unwrap();
        std::os::unix::fs::chown(&directory, Some(1234), None).unwrap();
        let error = prepare(&directory).unwrap_err();
        assert!(
            matches!(error, DirectoryError::Foreign { uid: 1234, .. }),
            "{error}"
        );
        assert!(error.remedy().contains("chown 0 "), "{}", error.remedy());

        let mine = folder.path().join("mine");
        std::fs::create_dir(&mine).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&mine, &link).unwrap();
        prepare(&link).unwrap();
        std::os::unix::fs::lchown(&link, Some(1234), None).unwrap();
        let error = prepare(&link).unwrap_err();
        assert!(
            matches!(error, DirectoryError::Foreign { uid: 1234, .. }),
            "{error}"
        );
    }
}

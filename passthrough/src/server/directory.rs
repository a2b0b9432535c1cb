//! The directory that the sockets are in.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};
use thiserror::Error;

use crate::trust::{self, Foreign};

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
    /// Something on the way to it can be changed by somebody else, who could put a directory of his own in its place, and this process is root's.
    #[error("the way to {} is not root's alone: {foreign}", path.display())]
    ForeignWay {
        /// The directory.
        path: PathBuf,
        /// What may be changed.
        foreign: Foreign,
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
            Self::ForeignWay { foreign, .. } => format!(
                "Run: {}, or name another directory in the policy: directory = \"…\"",
                foreign.remedy()
            ),
            Self::Foreign { path, .. } => format!(
                "Run: chmod 0711 {path} && chown {uid} {path}, or name another directory in the policy: directory = \"…\"",
                path = path.display(),
                uid = geteuid(),
            ),
        }
    }
}

/// Makes the directory, with mode 0711, if there is none, or sees to it that nobody else can make names in the one that is there. For root, nobody else may have a say in where its name leads, either.
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
    // Where it is to be made first; where it is then, or was, behind links perhaps, below.
    let parent = directory.parent().filter(|parent| *parent != Path::new(""));
    check_way(directory, parent.unwrap_or(Path::new(".")), false)?;
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
    check_way(directory, directory, true)?;
    if access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        return Err(DirectoryError::NotWritable {
            path: directory.to_owned(),
            uid: me.as_raw(),
        });
    }
    Ok(())
}

/// Refuses a way that others have a say in, where this process is root's.
fn check_way(directory: &Path, way: &Path, end: bool) -> Result<(), DirectoryError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let found = trust::look(way, end).map_err(|source| DirectoryError::System {
        step: "looking at",
        path: way.to_owned(),
        source,
    })?;
    match found {
        None => Ok(()),
        Some(foreign) => Err(DirectoryError::ForeignWay {
            path: directory.to_owned(),
            foreign,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a directory that nobody else may write to, whatever the umask is.
    fn make(path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o755).create(path)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_directory_is_made_and_a_lax_one_is_refused_and_left_as_it_is() {
        let folder = crate::scratch::folder();
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
        let folder = crate::scratch::folder();
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
    fn root_takes_no_directory_that_others_could_put_another_in_the_place_of() {
        let folder = crate::scratch::folder();
        let way = folder.path().canonicalize().unwrap().join("way");
        make(&way).unwrap();
        let directory = way.join("13");
        let link = folder.path().join("link");
        for lax in [0o777, 0o775, 0o757] {
            std::fs::set_permissions(&way, Permissions::from_mode(lax)).unwrap();
            // New, there already, and behind a link that is nobody else's.
            for is_there in [false, true] {
                if !geteuid().is_root() {
                    prepare(&directory).unwrap();
                    continue;
                }
                let error = prepare(&directory).unwrap_err();
                // Whoever is quick could have had the mode of something else changed.
                assert_eq!(directory.exists(), is_there);
                let DirectoryError::ForeignWay { path, foreign } = &error else {
                    panic!("{error}");
                };
                assert_eq!((path, &foreign.path, foreign.mode), (&directory, &way, lax));
                let remedy = error.remedy();
                assert!(
                    remedy.contains(&format!("chmod go-w {}", way.display())),
                    "{remedy}"
                );
                let _ = make(&directory);
                let _ = std::os::unix::fs::symlink(&directory, &link);
                let error = prepare(&link).unwrap_err();
                assert!(
                    matches!(error, DirectoryError::ForeignWay { .. }),
                    "{error}"
                );
            }
            let _ = std::fs::remove_dir(&directory);
        }
        for good in [0o1777, 0o755, 0o700] {
            std::fs::set_permissions(&way, Permissions::from_mode(good)).unwrap();
            prepare(&directory).unwrap();
        }
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
        let folder = crate::scratch::folder();
        let directory = folder.path().join("theirs");
        make(&directory).unwrap();
        std::os::unix::fs::chown(&directory, Some(1234), None).unwrap();
        let error = prepare(&directory).unwrap_err();
        assert!(
            matches!(error, DirectoryError::Foreign { uid: 1234, .. }),
            "{error}"
        );
        assert!(error.remedy().contains("chown 0 "), "{}", error.remedy());

        let mine = folder.path().join("mine");
        make(&mine).unwrap();
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

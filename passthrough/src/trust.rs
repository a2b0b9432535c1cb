//! Whether a name in the file system leads where nobody but root and this process's user decides.
//!
//! It is not enough that a file is its owner's alone: whoever may write to a directory on the way to it can put another one in its place.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use nix::unistd::geteuid;

/// Others may write.
const OTHERS_WRITE: u32 = 0o022;
/// In such a directory, others can neither remove nor rename what is not theirs.
const STICKY: u32 = 0o1000;
/// Symbolic links that are followed for one name, as the kernel does.
const LINKS: usize = 40;

/// Something on the way that a name leads, or at its end, which somebody else than root and this process's user may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// What may be changed.
    pub path: PathBuf,
    /// Who owns it.
    pub uid: u32,
    /// Its permissions.
    pub mode: u32,
    /// A symbolic link: only its owner matters.
    pub link: bool,
}

impl Foreign {
    fn of(path: &Path, found: &Metadata) -> Foreign {
        Foreign {
            path: path.to_owned(),
            uid: found.uid(),
            mode: found.mode() & 0o7777,
            link: found.is_symlink(),
        }
    }

    /// What makes it this user's alone.
    #[must_use]
    pub fn remedy(&self) -> String {
        let (path, me) = (self.path.display(), geteuid());
        match (is_trusted(self.uid), self.link) {
            (_, true) => format!("chown -h {me} {path}"),
            (true, _) => format!("chmod go-w {path}"),
            (false, _) => format!("chown {me} {path} && chmod go-w {path}"),
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Foreign {
            path, uid, mode, ..
        } = self;
        let path = path.display();
        if self.link {
            write!(f, "{path} is a symbolic link of user {uid}")
        } else {
            write!(
                f,
                "{path} can be written by others (owner {uid}, mode {mode:04o})"
            )
        }
    }
}

fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Whether others may change this. A directory `on the way` may be one that everybody can write if it is sticky, as /tmp is: each name in it is its owner's.
fn is_foreign(found: &Metadata, on_the_way: bool) -> bool {
    let mode = found.mode();
    let shared = on_the_way && found.is_dir() && mode & STICKY != 0;
    // What may be done to a link says nothing, and to write to a socket is to connect to it.
    let open = !found.is_symlink() && !found.file_type().is_socket();
    !is_trusted(found.uid()) || open && mode & OTHERS_WRITE != 0 && !shared
}

/// What is open, if others may change it.
pub(crate) fn look_at(path: &Path, open: &File) -> io::Result<Option<Foreign>> {
    let found = open.metadata()?;
    // Nobody else has the other end of a pipe that was handed to this process.
    let foreign = found.is_file() && is_foreign(&found, false);
    Ok(foreign.then(|| Foreign::of(path, &found)))
}

/// The first thing that others may change on the way to a directory or file, symbolic links followed, or at its end; where there is nothing at its end, on the way to that. `end`: what is there
/// is no directory on the way to anything else.
///
/// # Errors
/// What the system says where a name cannot be looked at.
pub(crate) fn look(path: &Path, end: bool) -> io::Result<Option<Foreign>> {
    walk(path, end, false)
}

/// As [`look`] at what will be opened, or made if it is not there: nobody else may make it first, either.
///
/// # Errors
/// As [`look`].
pub(crate) fn look_before_making(path: &Path) -> io::Result<Option<Foreign>> {
    walk(path, true, true)
}

fn walk(path: &Path, end: bool, made: bool) -> io::Result<Option<Foreign>> {
    let mut left = names(&std::path::absolute(path)?);
    // No links, and looked at.
    let mut at = PathBuf::from("/");
    let mut links = 0;
    let mut found = std::fs::symlink_metadata(&at)?;
    loop {
        let last = left.is_empty();
        if is_foreign(&found, !(last && end)) {
            return Ok(Some(Foreign::of(&at, &found)));
        }
        let Some(name) = left.pop_front() else {
            return Ok(None);
        };
        if name == ".." {
            at.pop();
            found = std::fs::symlink_metadata(&at)?;
            continue;
        }
        let next = at.join(name);
        let its = match std::fs::symlink_metadata(&next) {
            Ok(its) => its,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let theirs = made && is_foreign(&found, false);
                return Ok(theirs.then(|| Foreign::of(&at, &found)));
            }
            Err(error) => return Err(error),
        };
        if !its.is_symlink() {
            (at, found) = (next, its);
            continue;
        }
        if is_foreign(&its, true) {
            return Ok(Some(Foreign::of(&next, &its)));
        }
        if is_descriptor(&at) {
            // A name for what this process has open.
            return Ok(None);
        }
        links += 1;
        if links > LINKS {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let target = at.join(std::fs::read_link(&next)?);
        let mut way = names(&target);
        way.append(&mut left);
        left = way;
        at = PathBuf::from("/");
        found = std::fs::symlink_metadata(&at)?;
    }
}

/// The names that a path from the root is made of, with `..` where it goes back.
fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

/// Whether a directory without links on the way has this process's descriptors as names, or those of another process of a user that is trusted.
fn is_descriptor(directory: &Path) -> bool {
    directory.starts_with("/proc") && directory.ends_with("fd")
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::*;

    fn set(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// As the system's, with a mode that does not depend on the umask.
    fn create_dir(path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)?;
        set(path, 0o755);
        Ok(())
    }

    /// As the system's, with a mode that does not depend on the umask.
    fn write(path: &Path, text: &str) -> io::Result<()> {
        std::fs::write(path, text)?;
        set(path, 0o644);
        Ok(())
    }

    /// A folder of this user's alone, by the name that it has without links.
    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = crate::scratch::folder();
        let path = folder.path().canonicalize().unwrap();
        (folder, path)
    }

    fn found(path: &Path) -> Option<PathBuf> {
        look(path, true).unwrap().map(|foreign| foreign.path)
    }

    #[test]
    fn what_is_this_users_alone_is_trusted_also_below_a_sticky_directory() {
        let (_folder, path) = folder();
        let (open, file) = (path.join("open"), path.join("open/file"));
        create_dir(&open).unwrap();
        write(&file, "").unwrap();
        for mode in [0o400, 0o600, 0o644, 0o755, 0o444] {
            set(&file, mode);
            for of_directory in [0o700, 0o711, 0o755, 0o1777, 0o1770] {
                set(&open, of_directory);
                assert_eq!(found(&file), None, "{mode:o} in {of_directory:o}");
            }
        }
        // The system's own.
        assert_eq!(found(Path::new("/proc/self/status")), None);
        assert_eq!(found(Path::new("/proc/sys/../..")), None);
        assert!(found(Path::new("/tmp")).is_some(), "names are made in it");
        assert_eq!(look(Path::new("/tmp"), false).unwrap(), None);
    }

    #[test]
    fn whoever_may_write_the_file_or_a_directory_on_the_way_is_found() {
        let (_folder, path) = folder();
        let (upper, lower) = (path.join("upper"), path.join("upper/lower"));
        create_dir(&upper).unwrap();
        create_dir(&lower).unwrap();
        let file = lower.join("file");
        write(&file, "").unwrap();
        for mode in [0o622, 0o620, 0o602, 0o666] {
            set(&file, mode);
            let foreign = look(&file, true).unwrap().unwrap();
            assert_eq!(foreign.path, file);
            assert_eq!(foreign.mode, mode);
            assert_eq!(foreign.remedy(), format!("chmod go-w {}", file.display()));
            assert!(foreign.to_string().contains(&format!("mode 0{mode:o}")));
            let open = File::open(&file).unwrap();
            assert_eq!(look_at(&file, &open).unwrap(), Some(foreign));
        }
        set(&file, 0o644);
        assert_eq!(look_at(&file, &File::open(&file).unwrap()).unwrap(), None);
        for directory in [&upper, &lower] {
            for mode in [0o777, 0o770, 0o707, 0o2775] {
                set(directory, mode);
                assert_eq!(found(&file).as_ref(), Some(directory), "{mode:o}");
                // Nothing need be there.
                let other = directory.join("a/b");
                assert_eq!(found(&other).as_ref(), Some(directory), "{mode:o}");
            }
            set(directory, 0o755);
        }
        // At the end, a sticky directory is one that others make names in.
        set(&lower, 0o1777);
        assert_eq!(found(&lower).as_ref(), Some(&lower));
        assert_eq!(look(&lower, false).unwrap(), None);
        assert_eq!(found(&path.join("none/at/all")), None);
    }

    #[test]
    fn nobody_else_may_make_first_what_is_to_be_made() {
        let (_folder, path) = folder();
        let made = |path: &Path| look_before_making(path).unwrap().map(|one| one.path);
        let (file, link) = (path.join("file"), path.join("link"));
        symlink(&file, &link).unwrap();
        for mode in [0o1777, 0o777] {
            set(&path, mode);
            for name in [&file, &link, &file.join("below")] {
                assert_eq!(made(name).as_ref(), Some(&path), "{mode:o}");
            }
        }
        // What is there keeps its name in a sticky directory.
        set(&path, 0o1777);
        write(&file, "").unwrap();
        assert_eq!((made(&file), made(&link)), (None, None));
        set(&file, 0o666);
        assert_eq!(made(&link).as_ref(), Some(&file));
        set(&path, 0o755);
        assert_eq!(made(&path.join("other")), None);
    }

    #[test]
    fn who_may_connect_to_a_socket_cannot_change_it() {
        let (_folder, path) = folder();
        let socket = path.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        set(&socket, 0o777);
        assert_eq!(found(&socket), None);
        set(&path, 0o777);
        assert_eq!(found(&socket), Some(path));
    }

    #[test]
    fn links_are_followed_and_there_and_back_is_where_it_leads() {
        let (_folder, path) = folder();
        let (open, own) = (path.join("open"), path.join("own"));
        create_dir(&open).unwrap();
        create_dir(&own).unwrap();
        write(&open.join("file"), "").unwrap();
        write(&own.join("file"), "").unwrap();
        symlink("../open", own.join("relative")).unwrap();
        symlink(open.join("file"), own.join("absolute")).unwrap();
        symlink("relative/../own/absolute", own.join("around")).unwrap();
        symlink("round", own.join("round")).unwrap();
        let names = ["relative/file", "absolute", "around"];
        for name in names {
            assert_eq!(found(&own.join(name)), None, "{name}");
        }
        set(&open, 0o777);
        for name in names {
            assert_eq!(found(&own.join(name)).as_ref(), Some(&open), "{name}");
        }
        assert_eq!(found(&own.join("file")), None);
        // Where it goes through it and comes back, what is in the end is elsewhere, but not for sure.
        assert_eq!(found(&open.join("../own/file")).as_ref(), Some(&open));
        let error = look(&own.join("round"), true).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn what_is_open_already_is_not_looked_for() {
        use std::os::fd::AsRawFd;
        let (reader, _writer) = std::io::pipe().unwrap();
        let name = format!("/dev/fd/{}", reader.as_raw_fd());
        assert_eq!(found(Path::new(&name)), None);
        let open = File::open(&name).unwrap();
        assert_eq!(look_at(Path::new(&name), &open).unwrap(), None);
    }

    #[test]
    fn what_others_own_is_found() {
        if !geteuid().is_root() {
            // Nobody else can give a file away.
            return;
        }
        let (_folder, path) = folder();
        let (theirs, file) = (path.join("theirs"), path.join("theirs/file"));
        create_dir(&theirs).unwrap();
        write(&file, "").unwrap();
        let link = path.join("link");
        symlink(&file, &link).unwrap();
        assert_eq!(found(&link), None);
        chown(&file, Some(1234), None).unwrap();
        let foreign = look(&file, true).unwrap().unwrap();
        assert_eq!((&foreign.path, foreign.uid), (&file, 1234));
        let (start, end) = ("chown 0 ", format!(" && chmod go-w {}", file.display()));
        let remedy = foreign.remedy();
        assert!(
            remedy.starts_with(start) && remedy.ends_with(&end),
            "{remedy}"
        );
        chown(&file, Some(0), None).unwrap();
        // Whoever owns a directory can make it writable, sticky or not.
        for mode in [0o755, 0o1777] {
            set(&theirs, mode);
            chown(&theirs, Some(1234), None).unwrap();
            assert_eq!(found(&file).as_ref(), Some(&theirs));
            chown(&theirs, Some(0), None).unwrap();
        }
        lchown(&link, Some(1234), None).unwrap();
        let foreign = look(&link, true).unwrap().unwrap();
        assert!(foreign.link);
        assert_eq!(foreign.path, link);
        assert!(foreign.to_string().contains("symbolic link of user 1234"));
        assert!(foreign.remedy().starts_with("chown -h 0 "));
    }
}

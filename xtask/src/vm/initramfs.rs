//! The guest's first file system: a cpio archive with busybox, the init script, the command, and the files it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cpio::newc::{self, ModeFileType};

/// What stands at one path of the guest.
enum Node {
    Directory { mode: u32 },
    HostFile { source: PathBuf, mode: u32 },
    Bytes { content: Vec<u8>, mode: u32 },
    Symlink { target: String },
    Console,
}

/// A file system in the making, path by path; a later entry of the same path replaces the earlier one.
#[derive(Default)]
pub(crate) struct Initramfs {
    nodes: BTreeMap<String, Node>,
}

/// The directories where the dynamic linker looks without being told.
const LIBRARY_DIRECTORIES: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n";
const GROUP: &str = "root:x:0:\nuser:x:1000:\n";

impl Initramfs {
    /// busybox with a link for each of its applets, `/init`, and the accounts `root` and `user` (1000).
    pub(crate) fn base(busybox: &Path) -> Result<Self> {
        let mut files = Self::default();
        for directory in [
            "proc", "sys", "dev", "run", "tmp", "sbin", "usr/bin", "usr/sbin", "mnt",
        ] {
            files.insert(directory, Node::Directory { mode: 0o755 });
        }
        files.insert("root", Node::Directory { mode: 0o700 });
        files.insert("dev/console", Node::Console);
        files.host_file(busybox, "bin/busybox")?;
        let list = Command::new(busybox)
            .arg("--list")
            .output()
            .context("cannot run busybox --list")?;
        for applet in String::from_utf8_lossy(&list.stdout).lines() {
            // The kernel's own name for the init program is /init; busybox's init would not be ours.
            if !matches!(applet, "busybox" | "init" | "linuxrc") {
                files.insert(
                    &format!("bin/{applet}"),
                    Node::Symlink {
                        target: "/bin/busybox".to_owned(),
                    },
                );
            }
        }
        files.bytes("init", include_bytes!("init.sh"), 0o755);
        files.bytes("etc/passwd", PASSWD.as_bytes(), 0o644);
        files.bytes("etc/group", GROUP.as_bytes(), 0o644);
        Ok(files)
    }

    /// Puts `content` at `path`.
    pub(crate) fn bytes(&mut self, path: &str, content: &[u8], mode: u32) {
        self.insert(
            path,
            Node::Bytes {
                content: content.to_vec(),
                mode,
            },
        );
    }

    /// Copies a file of the host to `path`, with its permission bits; a dynamic ELF program brings its libraries.
    pub(crate) fn host_file(&mut self, source: &Path, path: &str) -> Result<()> {
        let mode = fs::metadata(source)
            .with_context(|| format!("cannot copy {}", source.display()))?
            .permissions()
            .mode();
        self.insert(
            path,
            Node::HostFile {
                source: source.to_owned(),
                mode: mode & 0o7777,
            },
        );
        for library in libraries(source)? {
            let place = library
                .to_str()
                .context("a library's path is not UTF-8")?
                .to_owned();
            let standard = library
                .parent()
                .and_then(Path::to_str)
                .is_some_and(|d| LIBRARY_DIRECTORIES.contains(&d));
            if !standard && let Some(name) = library.file_name().and_then(|n| n.to_str()) {
                self.insert(
                    &format!("usr/lib/{name}"),
                    Node::Symlink {
                        target: place.clone(),
                    },
                );
            }
            self.insert(
                &place,
                Node::HostFile {
                    source: library,
                    mode: 0o755,
                },
            );
        }
        Ok(())
    }

    fn insert(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/').to_owned();
        for (end, _) in path.match_indices('/') {
            self.nodes
                .entry(path[..end].to_owned())
                .or_insert(Node::Directory { mode: 0o755 });
        }
        self.nodes.insert(path, node);
    }

    /// Writes the archive in the "new ASCII" cpio format, the one that the kernel unpacks.
    pub(crate) fn write(&self, mut out: impl Write) -> Result<()> {
        // Sorted order puts each directory before what stands in it.
        for (inode, (path, node)) in (1u32..).zip(&self.nodes) {
            let entry = newc::Builder::new(path).ino(inode).nlink(1);
            let read;
            let (entry, content): (_, &[u8]) = match node {
                Node::Directory { mode } => (
                    entry
                        .mode(*mode)
                        .set_mode_file_type(ModeFileType::Directory),
                    &[],
                ),
                Node::Bytes { content, mode } => (
                    entry.mode(*mode).set_mode_file_type(ModeFileType::Regular),
                    content.as_slice(),
                ),
                Node::HostFile { source, mode } => {
                    read = fs::read(source)
                        .with_context(|| format!("cannot copy {}", source.display()))?;
                    (
                        entry.mode(*mode).set_mode_file_type(ModeFileType::Regular),
                        read.as_slice(),
                    )
                }
                Node::Symlink { target } => (
                    entry.mode(0o777).set_mode_file_type(ModeFileType::Symlink),
                    target.as_bytes(),
                ),
                Node::Console => {
                    let entry = entry.mode(0o600).set_mode_file_type(ModeFileType::Char);
                    (entry.rdev_major(5).rdev_minor(1), &[])
                }
            };
            let length = u32::try_from(content.len())
                .with_context(|| format!("/{path} is larger than 4 GiB"))?;
            let mut writer = entry.write(&mut out, length);
            writer.write_all(content)?;
            writer.finish()?;
        }
        newc::trailer(&mut out)?;
        out.flush()?;
        Ok(())
    }
}

/// The shared libraries and the program interpreter that a program needs, as `ldd` finds them; none for a static program or a
/// file that is no ELF.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut magic = [0; 4];
    let is_elf = match fs::File::open(program)
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut magic))
    {
        Ok(()) => magic == *b"\x7fELF",
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot copy {}", program.display()));
        }
    };
    if !is_elf {
        return Ok(BTreeSet::new());
    }
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // "not a dynamic executable" also comes for an object file or a kernel module: nothing to bring along.
        return Ok(BTreeSet::new());
    }
    parse_ldd(&text).with_context(|| format!("the libraries of {}", program.display()))
}

fn parse_ldd(text: &str) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let place = line
            .split_once("=>")
            .map_or(line, |(_, place)| place)
            .trim();
        if place.starts_with("not found") {
            bail!("missing library: {}", line.trim());
        }
        if place.starts_with('/') {
            // "/path/libc.so.6 (0x00007f...)"
            found.insert(PathBuf::from(
                place.rsplit_once(" (").map_or(place, |(path, _)| path),
            ));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_libraries_and_the_interpreter() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f01)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n";
        let found: Vec<_> = parse_ldd(text).unwrap().into_iter().collect();
        assert_eq!(
            found,
            [
                Path::new("/lib/x86_64-linux-gnu/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(parse_ldd("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_missing_library_is_an_error() {
        assert!(
            parse_ldd("\tlibnope.so.1 => not found\n")
                .unwrap_err()
                .to_string()
                .contains("libnope")
        );
    }

    #[test]
    fn the_archive_holds_parents_before_children() {
        let mut files = Initramfs::default();
        files.bytes("/a/b/c", b"content", 0o640);
        let mut archive = Vec::new();
        files.write(&mut archive).unwrap();
        let mut rest = archive.as_slice();
        let mut seen = Vec::new();
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            seen.push((reader.entry().name().to_owned(), reader.entry().mode()));
            rest = reader.finish().unwrap();
        }
        assert_eq!(
            seen,
            [
                ("a".to_owned(), 0o040_755),
                ("a/b".to_owned(), 0o040_755),
                ("a/b/c".to_owned(), 0o100_640)
            ]
        );
    }
}

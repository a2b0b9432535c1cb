//! What a machine has in its first file system besides busybox: the command, modules, programs and files.

use std::ffi::OsStr;
use std::fs::File;
use std::io::BufWriter;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::initramfs::Initramfs;
use super::kernel::KernelFiles;
use super::program::{self, Target};

/// What goes into the guest; looked for, built and read only when a machine starts.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    files: Vec<GuestFile>,
}

#[derive(Clone, Debug)]
enum GuestFile {
    Copy {
        source: PathBuf,
        place: Option<String>,
    },
    HostProgram {
        name: String,
    },
    Built(Target),
    Bytes {
        place: String,
        content: Vec<u8>,
        mode: u32,
    },
}

impl Contents {
    pub(super) fn copy(&mut self, source: PathBuf, place: Option<String>) {
        self.files.push(GuestFile::Copy { source, place });
    }

    pub(super) fn bytes(&mut self, place: String, content: Vec<u8>, mode: u32) {
        self.files.push(GuestFile::Bytes {
            place,
            content,
            mode,
        });
    }

    pub(super) fn host_program(&mut self, name: String) {
        self.files.push(GuestFile::HostProgram { name });
    }

    pub(super) fn build(&mut self, package: &str, kind: &'static str, name: &str) {
        self.files.push(GuestFile::Built(Target {
            package: package.to_owned(),
            kind,
            name: name.to_owned(),
        }));
    }

    /// Writes the archive; without a command (a script and the marker that ends its output) the guest runs a shell.
    pub(super) fn write(
        &self,
        path: &Path,
        kernel: &KernelFiles,
        command: Option<(&[u8], &str)>,
    ) -> Result<()> {
        let busybox = program::find("busybox").context("no busybox")?;
        let mut files = Initramfs::base(&busybox)?;
        if !kernel.modules.is_empty() {
            let mut list = String::new();
            for module in &kernel.modules {
                files.host_file(&kernel.module_root.join(module), module)?;
                list += &format!("/{module}\n");
            }
            files.bytes("etc/vm/modules", list.as_bytes(), 0o644);
            if let Some((base, _)) = kernel.modules[0].split_once("/kernel/") {
                files.host_file(
                    &kernel.module_root.join(base).join("modules.dep"),
                    &format!("{base}/modules.dep"),
                )?;
            }
        }
        for file in &self.files {
            match file {
                GuestFile::Copy { source, place } => {
                    let place = place.clone().map_or_else(|| default_place(source), Ok)?;
                    files.host_file(source, &place)?;
                }
                GuestFile::Built(target) => {
                    files.host_file(
                        &program::build(target)?,
                        &format!("usr/local/bin/{}", target.name),
                    )?;
                }
                GuestFile::HostProgram { name } => {
                    let found = program::find(name)
                        .with_context(|| format!("{name} is not installed on the host"))?;
                    files.host_file(&found, &format!("usr/local/bin/{name}"))?;
                }
                GuestFile::Bytes {
                    place,
                    content,
                    mode,
                } => files.bytes(place, content, *mode),
            }
        }
        if let Some((script, marker)) = command {
            files.bytes("etc/vm/command", script, 0o600);
            files.bytes("etc/vm/marker", marker.as_bytes(), 0o600);
        }
        files.write(BufWriter::new(File::create(path)?))
    }
}

/// Where `Machine::copy` puts a file.
fn default_place(source: &Path) -> Result<String> {
    let name = source
        .file_name()
        .and_then(OsStr::to_str)
        .with_context(|| format!("no file name: {}", source.display()))?;
    let metadata = source
        .metadata()
        .with_context(|| format!("cannot copy {}", source.display()))?;
    ensure!(metadata.is_file(), "not a file: {}", source.display());
    let executable = metadata.permissions().mode() & 0o111 != 0;
    Ok(if executable {
        format!("usr/local/bin/{name}")
    } else {
        format!("root/{name}")
    })
}

/// A shell script that becomes the command, each word exactly as given.
pub(super) fn script<S: AsRef<OsStr>>(command: impl IntoIterator<Item = S>) -> Vec<u8> {
    let mut script = b"exec".to_vec();
    for word in command {
        script.extend_from_slice(b" '");
        for &byte in word.as_ref().as_bytes() {
            if byte == b'\'' {
                script.extend_from_slice(b"'\\''");
            } else {
                script.push(byte);
            }
        }
        script.push(b'\'');
    }
    script.push(b'\n');
    script
}

/// What ends the command's output: 32 random characters, so that no output can hold them by accident.
pub(super) fn marker() -> Result<String> {
    use std::fmt::Write;
    let mut random = [0; 16];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut random)?;
    let mut text = String::new();
    for byte in random {
        write!(text, "{byte:02x}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn words_survive_the_shell() {
        let words = [
            "printf",
            "%s|",
            "a b",
            "",
            "it's",
            "$HOME `x` \\ \"",
            "line\nbreak",
            "\u{fc}",
        ];
        let output = Command::new("sh")
            .arg("-c")
            .arg(OsStr::from_bytes(&script(words)))
            .output()
            .unwrap();
        let expected: String = words[2..].iter().map(|word| format!("{word}|")).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }

    #[test]
    fn every_marker_is_another() {
        assert_ne!(marker().unwrap(), marker().unwrap());
        assert_eq!(marker().unwrap().len(), 32);
    }
}

//! A file that somebody else appends to, empties, or puts another one in the place of.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes that a record can have. A line that is longer is none.
const LONGEST: usize = 1 << 20;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 16;

/// A piece of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A line, without its line feed.
    Line(Vec<u8>),
    /// The last line, which has no line feed.
    Unfinished(Vec<u8>),
    /// A line that is longer than any record.
    TooLong,
    /// Another file has the name now. What follows is read from its beginning.
    Replaced,
    /// The file is shorter than what was read of it. What follows is read from its beginning.
    Truncated,
}

/// Reads a file in pieces.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    file: File,
    /// Bytes read.
    position: u64,
    /// What was read and not yet given out.
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were given out.
    given: usize,
    /// Bytes of `buffer` that hold no line feed.
    searched: usize,
    /// A line is being left out.
    skipping: bool,
    /// What is told before anything else is read.
    news: Option<Piece>,
}

impl Tail {
    /// Opens the file.
    ///
    /// # Errors
    /// It is not there, may not be read, or is none.
    pub(super) fn open(path: &Path) -> io::Result<Tail> {
        Ok(Tail {
            path: path.to_owned(),
            file: open(path)?,
            position: 0,
            buffer: Vec::new(),
            given: 0,
            searched: 0,
            skipping: false,
            news: None,
        })
    }

    /// The next piece; `None` at the end of what is there now.
    ///
    /// # Errors
    /// What reading answered.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if let Some(news) = self.news.take() {
                return Ok(Some(news));
            }
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') {
                let end = self.searched + at;
                let line = self.buffer.get(self.given..end).unwrap_or_default();
                let line = line.to_vec();
                self.given = end + 1;
                self.searched = self.given;
                if std::mem::take(&mut self.skipping) {
                    continue;
                }
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(Piece::Line(line)));
            }
            self.buffer.drain(..self.given);
            self.given = 0;
            self.searched = self.buffer.len();
            if self.buffer.len() > LONGEST {
                self.forget();
                if !std::mem::replace(&mut self.skipping, true) {
                    return Ok(Some(Piece::TooLong));
                }
            }
            if self.read()? == 0 {
                return Ok(None);
            }
        }
    }

    /// What is left at the end: a line without its line feed.
    pub(super) fn rest(&mut self) -> Option<Piece> {
        let rest = self.buffer.split_off(self.given);
        self.forget();
        let skipped = std::mem::take(&mut self.skipping);
        (!rest.is_empty() && !skipped).then_some(Piece::Unfinished(rest))
    }

    /// Looks whether something happened to the file at whose end we are. Whether something did; [`next`](Self::next) then says what.
    ///
    /// A file that was emptied and has already more in it than before looks like one that was appended to. Its lines are then not in sequence.
    ///
    /// # Errors
    /// The file may no longer be read.
    pub(super) fn look_again(&mut self) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        let replaced = match std::fs::metadata(&self.path) {
            Ok(named) => (named.dev(), named.ino()) != (ours.dev(), ours.ino()),
            // It has been moved away, and the next one is not there yet.
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if replaced {
            // Whoever writes may have added to the old one since we saw its end.
            if self.read()? > 0 {
                return Ok(true);
            }
            let file = match open(&self.path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            };
            self.begin(Piece::Replaced);
            self.file = file;
            return Ok(true);
        }
        if ours.len() < self.position {
            self.file.rewind()?;
            self.begin(Piece::Truncated);
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads from the beginning after this.
    fn begin(&mut self, news: Piece) {
        self.forget();
        self.skipping = false;
        self.position = 0;
        self.news = Some(news);
    }

    fn forget(&mut self) {
        self.buffer.clear();
        (self.given, self.searched) = (0, 0);
    }

    fn read(&mut self) -> io::Result<usize> {
        let mut chunk = [0; CHUNK];
        let bytes = loop {
            match self.file.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.position += bytes as u64;
        self.buffer
            .extend_from_slice(chunk.get(..bytes).unwrap_or(&chunk));
        Ok(bytes)
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Not blocking: opening a pipe would wait for whoever writes to it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file",
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn append(path: &Path, bytes: &[u8]) {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(bytes).unwrap();
    }

    fn line(text: &str) -> Option<Piece> {
        Some(Piece::Line(text.as_bytes().to_vec()))
    }

    fn start() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        append(&path, b"");
        (folder, path)
    }

    #[test]
    fn lines_come_whole_however_they_are_written() {
        let (_folder, path) = start();
        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(tail.next().unwrap(), None);
        append(&path, b"one\ntw");
        assert_eq!(tail.next().unwrap(), line("one"));
        assert_eq!(tail.next().unwrap(), None);
        assert!(!tail.look_again().unwrap());
        append(&path, b"o\n\nthree\nfour");
        assert_eq!(tail.next().unwrap(), line("two"));
        assert_eq!(tail.next().unwrap(), line("three"));
        assert_eq!(tail.next().unwrap(), None);
        assert_eq!(tail.rest(), Some(Piece::Unfinished(b"four".to_vec())));
        assert_eq!(tail.rest(), None);
    }

    #[test]
    fn a_file_that_is_moved_away_is_read_to_its_end_and_then_the_new_one() {
        let (folder, path) = start();
        let mut tail = Tail::open(&path).unwrap();
        append(&path, b"one\n");
        assert_eq!(tail.next().unwrap(), line("one"));
        let old = folder.path().join("audit.jsonl.1");
        std::fs::rename(&path, &old).unwrap();
        assert_eq!(tail.next().unwrap(), None);
        assert!(!tail.look_again().unwrap(), "nothing is there to go to");
        append(&old, b"two\n");
        append(&path, b"three\n");
        assert!(tail.look_again().unwrap());
        assert_eq!(tail.next().unwrap(), line("two"));
        assert_eq!(tail.next().unwrap(), None);
        assert!(tail.look_again().unwrap());
        assert_eq!(tail.next().unwrap(), Some(Piece::Replaced));
        assert_eq!(tail.next().unwrap(), line("three"));
        assert_eq!(tail.next().unwrap(), None);
        assert!(!tail.look_again().unwrap());
    }

    #[test]
    fn a_file_that_is_emptied_is_read_from_its_beginning() {
        let (_folder, path) = start();
        let mut tail = Tail::open(&path).unwrap();
        append(&path, b"one\nhalf a li");
        assert_eq!(tail.next().unwrap(), line("one"));
        assert_eq!(tail.next().unwrap(), None);
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        append(&path, b"two\n");
        assert!(tail.look_again().unwrap());
        assert_eq!(tail.next().unwrap(), Some(Piece::Truncated));
        assert_eq!(tail.next().unwrap(), line("two"));
        assert_eq!(tail.next().unwrap(), None);
        assert!(!tail.look_again().unwrap());
    }

    #[test]
    fn a_line_without_end_takes_no_memory_without_end() {
        let (_folder, path) = start();
        let mut tail = Tail::open(&path).unwrap();
        for _ in 0..5 {
            append(&path, &vec![b'x'; LONGEST]);
        }
        append(&path, b"\nshort\n");
        assert_eq!(tail.next().unwrap(), Some(Piece::TooLong));
        assert!(tail.buffer.capacity() < 4 * LONGEST);
        assert_eq!(tail.next().unwrap(), line("short"));
        assert_eq!(tail.next().unwrap(), None);
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Tail::open(folder.path()).is_err());
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Tail::open(&pipe).is_err());
    }
}

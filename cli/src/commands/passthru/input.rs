//! Data for the controller.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Kind};

/// Where data comes from, and what it is filled up with.
pub(crate) struct Input<'a> {
    /// A file; standard input without one.
    pub(crate) file: Option<&'a Path>,
    /// What a short source is filled up with; without it, one is refused.
    pub(crate) prefill: Option<u8>,
}

impl Input<'_> {
    /// Reads `length` bytes. What the source holds beyond is left there.
    pub(crate) fn read(&self, length: usize) -> Result<Vec<u8>, Error> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let name = match self.file {
            Some(path) => path.display().to_string(),
            None => "standard input".to_owned(),
        };
        let source: Box<dyn Read> = match self.file {
            Some(path) => Box::new(
                File::open(path)
                    .map_err(|error| Error::file(format!("cannot open {name}"), &error))?,
            ),
            None => Box::new(io::stdin().lock()),
        };
        let mut data = Vec::new();
        source
            .take(length as u64)
            .read_to_end(&mut data)
            .map_err(|error| Error::file(format!("cannot read {name}"), &error))?;
        match self.prefill {
            _ if data.len() == length => {}
            Some(byte) => data.resize(length, byte),
            None => {
                return Err(Error::new(
                    Kind::File,
                    format!("{name} holds {} bytes, and the command moves {length}", data.len()),
                )
                .remedy("Use a file that is long enough, or --prefill=NUM to fill the rest with that byte. Nothing was sent"));
            }
        }
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_short_file_is_filled_up_only_where_it_is_said_with_what() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 10]).unwrap();
        let input = |prefill| Input {
            file: Some(file.path()),
            prefill,
        };
        assert_eq!(input(None).read(10).unwrap(), [7; 10]);
        assert_eq!(input(None).read(4).unwrap(), [7; 4]);
        assert_eq!(input(None).read(11).unwrap_err().kind(), Kind::File);
        let filled = input(Some(9)).read(12).unwrap();
        assert_eq!(filled, [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 9, 9]);
        let missing = Input {
            file: Some(Path::new("/nowhere/data")),
            prefill: None,
        };
        assert_eq!(missing.read(1).unwrap_err().kind(), Kind::File);
        assert!(
            missing.read(0).unwrap().is_empty(),
            "not opened for nothing"
        );
    }
}

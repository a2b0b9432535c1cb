//! Standard output: data and nothing else, in the format that was asked for.

use std::io::{self, BufWriter, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::error::{Error, Kind};

/// Runs `write` on a buffered standard output and flushes it.
///
/// # Errors
/// [`Kind::File`] when standard output takes no more; a reader that closed its pipe is no error.
pub fn to_stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Error> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    match write(&mut stdout).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            // What is still buffered would only fail again when dropped.
            let _ = stdout.into_parts();
            Err(Error::new(
                Kind::File,
                format!("cannot write to standard output: {error}"),
            ))
        }
        _ => Ok(()),
    }
}

/// Writes `value` as indented JSON and a line feed.
///
/// # Errors
/// As [`to_stdout`].
pub fn print_json(value: &impl Serialize) -> Result<(), Error> {
    to_stdout(|out| {
        serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
        writeln!(out)
    })
}

/// Writes `text` as it is.
///
/// # Errors
/// As [`to_stdout`].
pub fn print_text(text: &str) -> Result<(), Error> {
    to_stdout(|out| out.write_all(text.as_bytes()))
}

/// A table without frames, as wide as its cells: it stays the same in a pipe.
#[must_use]
pub fn table<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(comfy_table::ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_without_trailing_blanks() {
        let text = table(
            ["A", "Long"],
            [
                ["first".to_owned(), "1".to_owned()],
                ["x".to_owned(), String::new()],
            ],
        );
        assert_eq!(text, "A      Long\nfirst  1\nx\n");
    }
}

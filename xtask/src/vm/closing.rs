//! Taking a stream apart that ends with a marker but may go on after it.

use std::io::{self, Read, Write};

/// Copies from `source` to `sink` until `marker` comes (it and what follows are not copied). Says whether it came before the
/// stream's end. A sink that fails is not written to any more, and reading goes on, so that the other side is never held up.
pub(super) fn copy_until(mut source: impl Read, marker: &[u8], mut sink: impl Write) -> bool {
    let mut held = Vec::new();
    let mut chunk = [0; 1 << 16];
    let mut open = true;
    let mut write = |bytes: &[u8]| {
        if open && !bytes.is_empty() {
            open = sink.write_all(bytes).and_then(|()| sink.flush()).is_ok();
        }
    };
    loop {
        let length = match source.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        held.extend_from_slice(&chunk[..length]);
        if let Some(at) = held
            .windows(marker.len())
            .position(|window| window == marker)
        {
            write(&held[..at]);
            return true;
        }
        // Only what could be the marker's beginning waits for the next chunk: a prompt without a newline must show at once.
        let keep = (1..marker.len().min(held.len() + 1))
            .rev()
            .find(|&n| held.ends_with(&marker[..n]))
            .unwrap_or(0);
        let done = held.len() - keep;
        write(&held[..done]);
        held.drain(..done);
    }
    write(&held);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of a fixed size.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(buffer.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    #[test]
    fn every_split_of_every_tail_gives_the_same() {
        for text in ["", "a", "ab", "aba", "abab", "ababc", "xyz\n"] {
            for size in 1..12 {
                let whole = format!("{text}abcdabcdEND");
                let mut out = Vec::new();
                assert!(copy_until(
                    Pieces(whole.as_bytes(), size),
                    b"abcd",
                    &mut out
                ));
                assert_eq!(String::from_utf8_lossy(&out), text, "pieces of {size}");
            }
        }
    }

    #[test]
    fn a_stream_without_the_marker_is_copied_whole() {
        for size in 1..6 {
            let mut out = Vec::new();
            assert!(!copy_until(Pieces(b"hello abc", size), b"abcd", &mut out));
            assert_eq!(out, b"hello abc");
        }
    }

    #[test]
    fn a_broken_sink_does_not_stop_the_reading() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(copy_until(Pieces(b"some text abcd", 3), b"abcd", Broken));
    }
}

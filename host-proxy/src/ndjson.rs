//! Lines out of a stream of chunks, with a bound on the line.

/// Longest line in bytes. A log record of the enclave is far shorter (64 KiB of text at most, up to sixfold
/// in JSON escapes); the bound keeps a peer that never sends a newline from filling memory.
pub(crate) const LINE_MAX: usize = 1 << 20;

/// A line longer than [`LINE_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line longer than {LINE_MAX} bytes")]
pub(crate) struct LineTooLong;

/// Holds the line that is not complete yet.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    rest: Vec<u8>,
}

impl LineBuffer {
    /// Takes a chunk and calls `line` for every line that it completes, without the newline; empty ones,
    /// which keep a connection alive, are left out.
    pub(crate) fn push(&mut self, chunk: &[u8], mut line: impl FnMut(&[u8])) -> Result<(), LineTooLong> {
        let mut chunk = chunk;
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = chunk.split_at(end);
            if self.rest.len() + head.len() > LINE_MAX {
                return Err(LineTooLong);
            }
            if self.rest.is_empty() {
                if !head.is_empty() {
                    line(head);
                }
            } else {
                self.rest.extend_from_slice(head);
                line(&self.rest);
                self.rest = Vec::new();
            }
            chunk = &tail[1..];
        }
        if self.rest.len() + chunk.len() > LINE_MAX {
            return Err(LineTooLong);
        }
        self.rest.extend_from_slice(chunk);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&str]) -> Vec<String> {
        let mut buffer = LineBuffer::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            buffer
                .push(chunk.as_bytes(), |line| lines.push(String::from_utf8(line.to_vec()).unwrap()))
                .unwrap();
        }
        lines
    }

    #[test]
    fn lines_come_out_whole_however_they_were_cut() {
        assert_eq!(lines(&["a\nb", "b\n\n", "c", "c", "\nd"]), ["a", "bb", "cc"]);
        assert_eq!(lines(&["a\nbb\ncc\n"]), ["a", "bb", "cc"]);
    }

    #[test]
    fn a_line_without_an_end_is_an_error_at_its_bound() {
        let mut buffer = LineBuffer::default();
        let half = vec![b'x'; LINE_MAX / 2];
        buffer.push(&half, |_| ()).unwrap();
        buffer.push(&half, |_| ()).unwrap();
        assert_eq!(buffer.push(b"x", |_| ()), Err(LineTooLong));
        assert_eq!(buffer.push(b"x\n", |_| ()), Err(LineTooLong));
    }
}

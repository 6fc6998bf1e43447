//! Cuts a stream of bytes into records: lines, and pieces of lines that are too long. Pure.

/// Longest record, in bytes; a longer line goes on in the next record.
pub const LINE_MAX: usize = 16 << 10;

/// What takes the records.
pub trait Sink {
    /// Whether the record that begins now is wanted. One that is not is never stored, only measured.
    fn wants_more(&mut self) -> bool;
    /// A record, without its newline. `partial`: its line goes on in the next one.
    fn record(&mut self, bytes: &[u8], partial: bool);
    /// A record of so many bytes that was not wanted when it began.
    fn skipped(&mut self, bytes: usize);
}

/// The record that has begun: what is kept of it, or how much of it was passed over.
#[derive(Debug, Default)]
pub struct Splitter {
    begun: Vec<u8>,
    skipped: usize,
}

impl Splitter {
    /// Takes bytes and gives on every record that is complete or full.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut impl Sink) {
        while !bytes.is_empty() {
            let room = LINE_MAX - self.begun.len() - self.skipped;
            // A newline right behind a full record belongs to it.
            let newline = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            let (part, rest, ended) = match newline {
                Some(at) => (&bytes[..at], &bytes[at + 1..], Some(false)),
                None if bytes.len() > room => (&bytes[..room], &bytes[room..], Some(true)),
                None => (bytes, &[][..], None),
            };
            bytes = rest;
            match ended {
                None => self.begin(part, sink),
                Some(partial) => self.complete(part, partial, sink),
            }
        }
    }

    /// Gives on what has begun as a part of its line.
    pub fn flush(&mut self, sink: &mut impl Sink) {
        if !self.begun.is_empty() {
            self.complete(&[], true, sink);
        }
    }

    /// The stream has ended: what is left is a line without its newline.
    pub fn end(&mut self, sink: &mut impl Sink) {
        if !self.begun.is_empty() || self.skipped > 0 {
            self.complete(&[], false, sink);
        }
    }

    /// Whether bytes wait for the end of their record.
    pub fn has_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    fn begin(&mut self, part: &[u8], sink: &mut impl Sink) {
        let stored = match (self.begun.is_empty(), self.skipped) {
            (false, _) => true,
            (true, 0) => sink.wants_more(),
            (true, _) => false,
        };
        if stored {
            self.begun.extend_from_slice(part);
        } else {
            self.skipped += part.len();
        }
    }

    fn complete(&mut self, part: &[u8], partial: bool, sink: &mut impl Sink) {
        match (self.begun.is_empty(), self.skipped) {
            (false, _) => {
                self.begun.extend_from_slice(part);
                sink.record(&self.begun, partial);
                // Given back: most streams are idle, and few of their lines are cut by a read.
                self.begun = Vec::new();
            }
            (true, 0) if sink.wants_more() => sink.record(part, partial),
            (true, skipped) => {
                self.skipped = 0;
                sink.skipped(skipped + part.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes every record, or as the pattern says.
    #[derive(Default)]
    struct Records {
        wanted: Vec<bool>,
        asked: usize,
        kept: Vec<(Vec<u8>, bool)>,
        skipped: Vec<usize>,
    }

    impl Sink for Records {
        fn wants_more(&mut self) -> bool {
            self.asked += 1;
            self.wanted.is_empty() || self.wanted[self.asked % self.wanted.len()]
        }

        fn record(&mut self, bytes: &[u8], partial: bool) {
            self.kept.push((bytes.to_vec(), partial));
        }

        fn skipped(&mut self, bytes: usize) {
            self.skipped.push(bytes);
        }
    }

    fn split<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, wanted: &[bool]) -> Records {
        let mut splitter = Splitter::default();
        let mut records = Records { wanted: wanted.to_vec(), ..Records::default() };
        for chunk in chunks {
            splitter.push(chunk, &mut records);
        }
        splitter.end(&mut records);
        records
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300),
            1 => (LINE_MAX - 2..2 * LINE_MAX + 2).prop_map(|length| vec![b'x'; length]),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    #[test]
    fn lines_are_split_at_newlines_wherever_the_reads_end() {
        let records = split([&b"one\ntw"[..], b"o\n", b"\nlast"], &[]);
        let texts: Vec<&[u8]> = records.kept.iter().map(|(line, _)| line.as_slice()).collect();
        assert_eq!(texts, [&b"one"[..], b"two", b"", b"last"]);
    }

    #[test]
    fn a_carriage_return_stays() {
        assert_eq!(split([&b"dos\r\n"[..]], &[]).kept, [(b"dos\r".to_vec(), false)]);
    }

    #[test]
    fn a_line_too_long_is_cut_and_marked_partial() {
        let long = vec![b'x'; LINE_MAX * 2 + 5];
        let records = split([&long[..], b"\n"], &[]);
        let shape: Vec<(usize, bool)> =
            records.kept.iter().map(|(line, partial)| (line.len(), *partial)).collect();
        assert_eq!(shape, [(LINE_MAX, true), (LINE_MAX, true), (5, false)]);
        let exact = vec![b'x'; LINE_MAX];
        assert_eq!(split([&exact[..], b"\n"], &[]).kept, [(exact.clone(), false)]);
    }

    #[test]
    fn a_prompt_that_is_flushed_goes_on_in_the_next_record() {
        let (mut splitter, mut records) = (Splitter::default(), Records::default());
        splitter.push(b"name? ", &mut records);
        splitter.flush(&mut records);
        splitter.flush(&mut records);
        splitter.push(b"\n", &mut records);
        assert_eq!(records.kept, [(b"name? ".to_vec(), true), (b"".to_vec(), false)]);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_however_the_stream_is_cut(bytes in bytes(), size in 1usize..40_000) {
            let mut joined = Vec::new();
            for (line, partial) in split(bytes.chunks(size), &[]).kept {
                prop_assert!(line.len() <= LINE_MAX);
                joined.extend_from_slice(&line);
                if !partial {
                    joined.push(b'\n');
                }
            }
            let mut expected = bytes.clone();
            if expected.last().is_some_and(|last| *last != b'\n') {
                expected.push(b'\n');
            }
            prop_assert_eq!(joined, expected);
        }

        #[test]
        fn what_is_skipped_is_counted_as_the_records_it_would_have_been(
            bytes in bytes(),
            size in 1usize..40_000,
            wanted in prop::collection::vec(any::<bool>(), 1..20),
        ) {
            let all = split([&bytes[..]], &[]).kept;
            let some = split(bytes.chunks(size), &wanted);
            prop_assert_eq!(some.kept.len() + some.skipped.len(), all.len());
            let length: usize = all.iter().map(|(line, _)| line.len()).sum();
            let kept: usize = some.kept.iter().map(|(line, _)| line.len()).sum();
            prop_assert_eq!(kept + some.skipped.iter().sum::<usize>(), length);
            // What is kept are whole records of the others' order.
            let mut rest = all.iter();
            prop_assert!(some.kept.iter().all(|record| rest.any(|whole| whole == record)));
        }
    }
}

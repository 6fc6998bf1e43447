//! The rings of one reader: one per source, bounded in bytes, under one sequence.
//!
//! A record stays until it is acknowledged or until its own source needs the room. Every line has its
//! sequence number, also one that its source's rate did not let in, so what a reader misses is exactly what
//! was lost.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use enclave_protocol::{
    control::{FileBytes, LogRecord, LogStream},
    timestamp::Timestamp,
};
use tokio::sync::watch;

/// Bytes one source may keep, its records' overhead included. 256 KiB hold a few thousand lines: minutes of
/// an ordinary service's output, and 100 plugins at their worst cost 25 MiB.
pub const SOURCE_BYTES_MAX: usize = 256 << 10;
/// What a record costs beside its text: the struct, its map node and its strings' headers.
pub(super) const RECORD_OVERHEAD: usize = 160;
/// The source name of the supervisor's own records.
pub const SUPERVISOR: &str = "supervisor";

/// The records of all sources that go to one reader. Shared; every method is short and never waits for
/// anything but its own lock.
#[derive(Debug)]
pub struct Rings {
    inner: Mutex<Inner>,
    newest: watch::Sender<u64>,
    source_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Inner {
    records: BTreeMap<u64, LogRecord>,
    sources: BTreeMap<String, Source>,
    last_seq: u64,
    acknowledged: u64,
    /// Lines that were never let in, since the last record. The next one's number counts them: so the newest
    /// number always is a record's, which a reader can see and acknowledge.
    untold: u64,
    /// Streams that may still bring records and end before the reader does.
    streams: usize,
    /// No stream will be opened any more.
    last_call: bool,
    /// The reader is gone for good: records are only counted.
    retired: bool,
}

#[derive(Debug, Default)]
struct Source {
    seqs: VecDeque<u64>,
    bytes: usize,
    totals: Totals,
}

/// What a source has produced since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of text.
    pub bytes: u64,
    /// Records.
    pub records: u64,
    /// Records that are lost: pushed out before they were acknowledged, or never let in.
    pub dropped: u64,
    /// Those of them that were never let in.
    pub rate_limited: u64,
}

/// Records that are not let in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub records: u64,
    /// Bytes of their text.
    pub bytes: u64,
}

impl Lost {
    /// One more, of so many bytes.
    pub fn add(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes as u64;
    }
}

/// One line, or a part of one.
#[derive(Debug)]
pub struct Line<'a> {
    /// The plugin's name, or [`SUPERVISOR`].
    pub source: &'a str,
    /// Which stream.
    pub stream: LogStream,
    /// Its bytes, without the newline.
    pub bytes: &'a [u8],
    /// Goes on in the next record.
    pub partial: bool,
    /// When it was read.
    pub time: Timestamp,
}

impl Rings {
    /// Empty rings of [`SOURCE_BYTES_MAX`] each.
    pub fn new() -> Self {
        Self::bounded(SOURCE_BYTES_MAX)
    }

    /// Empty rings of `source_bytes_max` bytes each.
    pub fn bounded(source_bytes_max: usize) -> Self {
        Self { inner: Mutex::default(), newest: watch::Sender::new(0), source_bytes_max }
    }

    /// Gives what is kept to `other`, which has kept nothing yet, or to nobody, and begins the sequence
    /// again: the reader has read nothing yet.
    pub(super) fn hand_over(&self, other: Option<&Self>) {
        let mut inner = self.lock();
        let mut moved = std::mem::take(&mut *inner);
        if let Some(other) = other {
            let newest = moved.last_seq;
            *other.lock() = moved;
            other.newest.send_replace(newest);
        } else {
            for source in moved.sources.values_mut() {
                (source.bytes, source.seqs) = (0, VecDeque::new());
            }
            inner.sources = moved.sources;
        }
        drop(inner);
        self.newest.send_replace(0);
    }

    /// Keeps a line; its source's oldest records make room.
    pub fn push(&self, line: &Line<'_>) {
        let mut inner = self.lock();
        if inner.retired {
            let mut lost = Lost::default();
            lost.add(line.bytes.len());
            return inner.lose(line.source, lost);
        }
        let (text, base64) = match std::str::from_utf8(line.bytes) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(FileBytes(line.bytes.to_vec()))),
        };
        inner.last_seq += 1 + std::mem::take(&mut inner.untold);
        let seq = inner.last_seq;
        let record = LogRecord {
            seq,
            time: line.time,
            plugin: line.source.to_owned(),
            stream: line.stream,
            text,
            base64,
            partial: line.partial,
            dropped: 0,
        };
        inner.insert(record, self.source_bytes_max);
        drop(inner);
        self.newest.send_replace(seq);
    }

    /// Counts lines of a source that its rate did not let in. The next record, whoever's, tells of them.
    pub fn lose(&self, source: &str, lost: Lost) {
        if lost.records == 0 {
            return;
        }
        let mut inner = self.lock();
        inner.untold += lost.records;
        inner.lose(source, lost);
        source_of(&mut inner.sources, source).totals.rate_limited += lost.records;
    }

    /// Records after `after`, at least one if there is any, until their text exceeds `bytes_max`.
    pub fn read(&self, after: u64, bytes_max: usize) -> Vec<LogRecord> {
        let inner = self.lock();
        // Acknowledged records were not lost: whoever asks for them again gets no gap reported.
        let mut previous = after.max(inner.acknowledged);
        let mut bytes = 0;
        let mut records = Vec::new();
        // Whatever number a reader names: nothing follows the highest one.
        for (seq, record) in inner.records.range((Bound::Excluded(previous), Bound::Unbounded)) {
            if bytes > bytes_max {
                break;
            }
            bytes += cost(record);
            records.push(LogRecord { dropped: seq - previous - 1, ..record.clone() });
            previous = *seq;
        }
        records
    }

    /// Forgets every record up to `seq`.
    pub fn acknowledge(&self, seq: u64) {
        let mut inner = self.lock();
        let seq = seq.min(inner.last_seq);
        if seq <= inner.acknowledged {
            return;
        }
        inner.acknowledged = seq;
        let kept = inner.records.split_off(&(seq + 1));
        let gone = std::mem::replace(&mut inner.records, kept);
        for record in gone.values() {
            if let Some(source) = inner.sources.get_mut(&record.plugin) {
                source.bytes -= cost(record);
                source.seqs.pop_front();
            }
        }
    }

    /// Counts a stream that ends before the reader does, until the answer is dropped.
    pub fn open_stream(self: &Arc<Self>) -> OpenStream {
        self.lock().streams += 1;
        OpenStream(Arc::clone(self))
    }

    /// No stream will be opened any more: once those that are open have ended, the reader has all there is.
    pub fn last_call(&self) {
        if !std::mem::replace(&mut self.lock().last_call, true) {
            self.wake();
        }
    }

    /// Whether everything that a reader is to wait for is there.
    pub fn is_complete(&self) -> bool {
        let inner = self.lock();
        inner.last_call && inner.streams == 0
    }

    /// Counts every record that is left as lost, as from now on every one that comes: the reader is gone.
    /// Answers how many were left.
    pub fn retire(&self) -> u64 {
        let mut inner = self.lock();
        inner.retired = true;
        let left = std::mem::take(&mut inner.records);
        for record in left.values() {
            if let Some(source) = inner.sources.get_mut(&record.plugin) {
                source.bytes -= cost(record);
                source.seqs.pop_front();
                source.totals.dropped += 1;
            }
        }
        left.len() as u64
    }

    /// Sequence number of the newest record.
    pub fn last_seq(&self) -> u64 {
        self.lock().last_seq
    }

    /// Everything up to here is acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.lock().acknowledged
    }

    /// Changes whenever a record is pushed, and when there may be no more to wait for.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Totals by source.
    pub fn totals(&self) -> BTreeMap<String, Totals> {
        self.lock().sources.iter().map(|(name, source)| (name.clone(), source.totals)).collect()
    }

    /// Has readers look again.
    fn wake(&self) {
        self.newest.send_modify(|_| {});
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every critical section leaves the rings whole, so a panic elsewhere does not spoil them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Rings {
    fn default() -> Self {
        Self::new()
    }
}

/// A stream that may bring records.
#[derive(Debug)]
pub struct OpenStream(Arc<Rings>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.lock().streams -= 1;
        self.0.wake();
    }
}

impl Inner {
    /// Counts records that are not kept.
    fn lose(&mut self, source: &str, lost: Lost) {
        let totals = &mut source_of(&mut self.sources, source).totals;
        totals.bytes += lost.bytes;
        totals.records += lost.records;
        totals.dropped += lost.records;
    }

    fn insert(&mut self, record: LogRecord, source_bytes_max: usize) {
        let (seq, size) = (record.seq, cost(&record));
        let source = source_of(&mut self.sources, &record.plugin);
        source.totals.records += 1;
        source.totals.bytes += (size - RECORD_OVERHEAD) as u64;
        source.bytes += size;
        source.seqs.push_back(seq);
        self.records.insert(seq, record);
        while source.bytes > source_bytes_max {
            let Some(oldest) = source.seqs.pop_front() else { break };
            if let Some(record) = self.records.remove(&oldest) {
                source.bytes -= cost(&record);
                source.totals.dropped += 1;
            }
        }
    }
}

fn source_of<'a>(sources: &'a mut BTreeMap<String, Source>, name: &str) -> &'a mut Source {
    if !sources.contains_key(name) {
        sources.insert(name.to_owned(), Source::default());
    }
    sources.get_mut(name).expect("invariant: it is there or was just put there")
}

fn cost(record: &LogRecord) -> usize {
    let text = record.text.as_ref().map_or(0, String::len);
    text + record.base64.as_ref().map_or(0, |bytes| bytes.0.len()) + RECORD_OVERHEAD
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line<'a>(source: &'a str, bytes: &'a [u8]) -> Line<'a> {
        Line { source, stream: LogStream::Stdout, bytes, partial: false, time: Timestamp(0) }
    }

    fn seqs(records: &[LogRecord]) -> Vec<(u64, u64)> {
        records.iter().map(|r| (r.seq, r.dropped)).collect()
    }

    #[test]
    fn a_noisy_source_pushes_out_its_own_lines_and_the_gap_is_counted_exactly() {
        let rings = Rings::bounded(3 * (RECORD_OVERHEAD + 10));
        rings.push(&line("quiet", b"first"));
        for _ in 0..5 {
            rings.push(&line("noisy", &[b'x'; 10]));
        }
        let records = rings.read(0, usize::MAX);
        assert_eq!(seqs(&records), [(1, 0), (4, 2), (5, 0), (6, 0)]);
        assert_eq!(rings.totals()["noisy"], Totals { bytes: 50, records: 5, dropped: 2, rate_limited: 0 });
        assert_eq!(rings.totals()["quiet"].dropped, 0);
    }

    #[test]
    fn acknowledged_records_are_forgotten_and_are_no_gap() {
        let rings = Rings::new();
        for _ in 0..4 {
            rings.push(&line("a", b"x"));
        }
        rings.acknowledge(2);
        rings.acknowledge(1);
        assert_eq!(seqs(&rings.read(0, usize::MAX)), [(3, 0), (4, 0)]);
        rings.acknowledge(99);
        assert_eq!(rings.acknowledged(), 4);
        rings.push(&line("a", b"x"));
        assert_eq!(seqs(&rings.read(0, usize::MAX)), [(5, 0)]);
        assert_eq!(rings.read(u64::MAX, usize::MAX), [], "the highest number has no next");
    }

    #[test]
    fn what_the_reader_left_and_what_comes_after_it_is_counted() {
        let rings = Rings::new();
        for _ in 0..3 {
            rings.push(&line("a", b"x"));
        }
        rings.lose("a", Lost { records: 2, bytes: 2 });
        rings.acknowledge(1);
        assert_eq!(rings.retire(), 2);
        rings.push(&line("b", b"late"));
        assert_eq!(rings.read(0, usize::MAX), []);
        assert_eq!(rings.totals()["a"], Totals { bytes: 5, records: 5, dropped: 4, rate_limited: 2 });
        assert_eq!(rings.totals()["b"], Totals { bytes: 4, records: 1, dropped: 1, rate_limited: 0 });
        assert_eq!(rings.retire(), 0);
    }

    #[test]
    fn a_reader_has_everything_once_every_stream_has_ended_and_none_will_be_opened() {
        let rings = Arc::new(Rings::new());
        let (one, other) = (rings.open_stream(), rings.open_stream());
        let mut changed = rings.subscribe();
        drop(one);
        assert!(!rings.is_complete());
        rings.last_call();
        assert!(!rings.is_complete());
        changed.borrow_and_update();
        drop(other);
        assert!(rings.is_complete() && changed.has_changed().unwrap());
        let idle = Rings::new();
        assert!(!idle.is_complete());
        idle.last_call();
        assert!(idle.is_complete());
    }

    #[test]
    fn bytes_that_are_no_utf8_survive() {
        let rings = Rings::new();
        rings.push(&line("a", b"\xff\x00ok"));
        let record = &rings.read(0, usize::MAX)[0];
        assert_eq!((record.text.as_ref(), record.base64.clone().unwrap().0), (None, b"\xff\x00ok".to_vec()));
    }

    #[test]
    fn what_is_not_let_in_is_told_by_the_next_record_whoevers_it_is() {
        let rings = Rings::new();
        rings.push(&line("noisy", b"first"));
        rings.lose("noisy", Lost { records: 7, bytes: 70 });
        assert_eq!(rings.last_seq(), 1, "the newest number is a record's that can be acknowledged");
        rings.push(&line("quiet", b"second"));
        assert_eq!(seqs(&rings.read(0, usize::MAX)), [(1, 0), (9, 7)]);
        let noisy = Totals { bytes: 75, records: 8, dropped: 7, rate_limited: 7 };
        assert_eq!(rings.totals()["noisy"], noisy);
    }

    proptest! {
        #[test]
        fn whatever_is_not_read_is_reported_as_dropped(
            steps in prop::collection::vec((0u8..3, 0usize..300, prop::bool::weighted(0.2)), 1..200),
            ack_every in 1usize..20,
        ) {
            let rings = Rings::bounded(2000);
            let (mut after, mut seen, mut dropped) = (0, 0, 0);
            for (step, (source, length, limited)) in steps.iter().enumerate() {
                let source = ["a", "b", "c"][usize::from(*source)];
                if *limited {
                    rings.lose(source, Lost { records: 1, bytes: *length as u64 });
                } else {
                    rings.push(&line(source, &vec![b'x'; *length]));
                }
                if step % ack_every == 0 {
                    for record in rings.read(after, 500) {
                        seen += 1;
                        dropped += record.dropped;
                        after = record.seq;
                    }
                    rings.acknowledge(after);
                }
            }
            for record in rings.read(after, usize::MAX) {
                seen += 1;
                dropped += record.dropped;
                after = record.seq;
            }
            let last_dropped = rings.last_seq() - after + rings.lock().untold;
            prop_assert_eq!(seen + dropped + last_dropped, steps.len() as u64);
            let counted: u64 = rings.totals().values().map(|t| t.dropped).sum();
            prop_assert_eq!(counted, dropped + last_dropped);
            let limited: u64 = rings.totals().values().map(|t| t.rate_limited).sum();
            prop_assert_eq!(limited, steps.iter().filter(|(.., limited)| *limited).count() as u64);
            for source in rings.lock().sources.values() {
                prop_assert!(source.bytes <= 2000);
            }
        }
    }
}

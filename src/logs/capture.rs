//! Reads a plugin's output until its end. It is drained always, also when nobody keeps the lines: a full pipe
//! would stop the plugin.

use std::{
    cell::RefCell,
    io::ErrorKind,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use enclave_protocol::{control::LogStream, timestamp::Timestamp};
use tokio::{
    net::unix::pipe,
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    rate::{BYTES_PER_SECOND, Rate},
    ring::{Line, Lost, RECORD_OVERHEAD, Rings},
    splitter::{Sink, Splitter},
};
use crate::clock;

/// Bytes read at once: a pipe holds 64 KiB, and one wake-up should empty a good part of it.
const CHUNK: usize = 16 << 10;
/// Streams of earlier runs that may stay open, held by processes that outlived them.
const STREAMS_MAX: usize = 16;
/// How long a line may be on its way before what is there of it is kept as a part: prompts and progress are
/// seen, and a power-off finds little that is not kept.
const LINE_AGE_MAX: Duration = Duration::from_secs(1);

thread_local! {
    static CHUNK_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// The output streams of one plugin, of all its runs.
#[derive(Debug)]
pub struct Capture {
    output: Option<Arc<Output>>,
    ends: Ends,
    streams: JoinSet<()>,
}

/// When a source's output ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Before the reader of its records: that one waits for the last of them.
    BeforeReader,
    /// With the reader or after it: a reader that waited would wait for itself.
    WithReader,
}

/// Where a plugin's records go.
#[derive(Debug)]
struct Output {
    rings: Arc<Rings>,
    source: String,
    rate: Mutex<Rate>,
}

impl Capture {
    /// Captures for `source`. Without rings everything is read and forgotten.
    pub fn new(rings: Option<Arc<Rings>>, source: &str, ends: Ends) -> Self {
        let rate = Mutex::new(Rate::new(Instant::now()));
        let output = rings.map(|rings| Arc::new(Output { rings, source: source.to_owned(), rate }));
        Self { output, ends, streams: JoinSet::new() }
    }

    /// Reads `pipe` until its end.
    pub fn add(&mut self, pipe: OwnedFd, stream: LogStream) -> std::io::Result<()> {
        let receiver = pipe::Receiver::from_owned_fd(pipe)?;
        while self.streams.try_join_next().is_some() {}
        if self.streams.len() >= STREAMS_MAX {
            self.streams.abort_all();
        }
        let records = self.output.clone().map(|output| Records::new(output, stream));
        let open = self.output.as_ref().filter(|_| self.ends == Ends::BeforeReader);
        let open = open.map(|output| output.rings.open_stream());
        self.streams.spawn(async move {
            read(receiver, records).await;
            drop(open);
        });
        Ok(())
    }

    /// Waits until every stream has ended.
    pub async fn ended(&mut self) {
        while self.streams.join_next().await.is_some() {}
    }
}

async fn read(pipe: pipe::Receiver, mut records: Option<Records>) {
    loop {
        // The buffer belongs to the thread: an idle stream holds none. `readable` first, then one read.
        let readable = match records.as_ref().and_then(Records::due) {
            None => pipe.readable().await,
            Some(due) => match timeout_at(due, pipe.readable()).await {
                Ok(readable) => readable,
                Err(_elapsed) => Ok(()),
            },
        };
        if readable.is_err() {
            break;
        }
        let got = CHUNK_BUFFER.with_borrow_mut(|buffer| {
            let got = pipe.try_read(buffer);
            if let (Ok(count), Some(records)) = (&got, &mut records) {
                records.take(&buffer[..*count], Instant::now(), clock::wall());
            }
            got
        });
        match got {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if let Some(records) = &mut records {
                    records.take(&[], Instant::now(), clock::wall());
                }
            }
            Err(_) => break,
        }
        // Fair to the other tasks of this thread, however fast the plugin writes.
        tokio::task::yield_now().await;
    }
    if let Some(records) = records {
        records.end(Instant::now(), clock::wall());
    }
}

/// The records of one stream.
#[derive(Debug)]
struct Records {
    output: Arc<Output>,
    stream: LogStream,
    splitter: Splitter,
    /// When the record that has begun did so.
    begun: Option<Instant>,
}

impl Records {
    fn new(output: Arc<Output>, stream: LogStream) -> Self {
        Self { output, stream, splitter: Splitter::default(), begun: None }
    }

    /// When time alone asks for a [`Self::take`].
    fn due(&self) -> Option<Instant> {
        let old = self.begun.map(|begun| begun + LINE_AGE_MAX);
        [old, self.output.rate().over_at()].into_iter().flatten().min()
    }

    /// Takes what was read, nothing maybe, and does what is due.
    fn take(&mut self, bytes: &[u8], now: Instant, wall: Timestamp) {
        let untold = self.output.rate().settle(now);
        self.output.tell(untold);
        let ended = self.admit(now, wall, |splitter, admission| splitter.push(bytes, admission));
        if ended || !self.splitter.has_begun() {
            self.begun = None;
        }
        if self.begun.is_some_and(|begun| begun + LINE_AGE_MAX <= now) {
            self.begun = None;
            self.admit(now, wall, |splitter, admission| splitter.flush(admission));
        }
        if self.splitter.has_begun() {
            self.begun.get_or_insert(now);
        }
    }

    /// Keeps what is left.
    fn end(mut self, now: Instant, wall: Timestamp) {
        self.admit(now, wall, |splitter, admission| splitter.end(admission));
        let untold = self.output.rate().tell();
        self.output.tell(untold);
    }

    /// Lets the splitter work; whether a record ended.
    fn admit(
        &mut self,
        now: Instant,
        wall: Timestamp,
        work: impl FnOnce(&mut Splitter, &mut Admission<'_>),
    ) -> bool {
        let output = &self.output;
        let (rate, lost) = (output.rate(), Lost::default());
        let mut admission = Admission { output, stream: self.stream, rate, now, wall, lost, ended: false };
        work(&mut self.splitter, &mut admission);
        let Admission { mut rate, lost, ended, .. } = admission;
        let first = lost.records > 0 && rate.suppress(lost.records);
        drop(rate);
        output.rings.lose(&output.source, lost);
        if first {
            let (plugin, limit) = (&output.source, BYTES_PER_SECOND);
            tracing::warn!(plugin, limit, "more output than the limit in bytes per second; dropping records");
        }
        ended
    }
}

impl Output {
    fn rate(&self) -> MutexGuard<'_, Rate> {
        // Its numbers are whole after every step, so a panic elsewhere does not spoil them.
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how much was dropped. It is the record behind the gap, if the plugin itself has none.
    fn tell(&self, untold: Option<u64>) {
        if let Some(dropped) = untold {
            tracing::warn!(plugin = self.source, dropped, "dropped records above the limit of its output");
        }
    }
}

/// Lets records pass at the plugin's rate.
struct Admission<'a> {
    output: &'a Output,
    stream: LogStream,
    rate: MutexGuard<'a, Rate>,
    now: Instant,
    wall: Timestamp,
    lost: Lost,
    ended: bool,
}

impl Sink for Admission<'_> {
    fn wants_more(&mut self) -> bool {
        self.rate.is_open(self.now)
    }

    fn record(&mut self, bytes: &[u8], partial: bool) {
        self.ended = true;
        if self.rate.admit(self.now, bytes.len() + RECORD_OVERHEAD) {
            let Self { output, stream, wall: time, .. } = self;
            output.rings.push(&Line { source: &output.source, stream: *stream, bytes, partial, time: *time });
        } else {
            self.lost.add(bytes.len());
        }
    }

    fn skipped(&mut self, bytes: usize) {
        self.ended = true;
        self.lost.add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{PipeWriter, Write as _},
        thread,
    };

    use enclave_protocol::control::LogRecord;
    use tokio::time::sleep;

    use super::{
        super::{rate::BURST, ring::SOURCE_BYTES_MAX, splitter::LINE_MAX},
        *,
    };

    struct Plugin {
        rings: Arc<Rings>,
        capture: Capture,
    }

    impl Plugin {
        fn new(keep: bool) -> Self {
            let rings = Arc::new(Rings::new());
            let kept = keep.then(|| Arc::clone(&rings));
            Self { capture: Capture::new(kept, "p", Ends::BeforeReader), rings }
        }

        fn open(&mut self, stream: LogStream) -> PipeWriter {
            let (reader, writer) = std::io::pipe().unwrap();
            self.capture.add(reader.into(), stream).unwrap();
            writer
        }

        /// Waits until something is kept behind `after`.
        async fn records(&self, after: u64) -> Vec<LogRecord> {
            self.rings.subscribe().wait_for(|newest| *newest > after).await.unwrap();
            self.rings.read(after, usize::MAX)
        }
    }

    fn texts(records: &[LogRecord]) -> Vec<(&str, bool)> {
        records.iter().map(|record| (record.text.as_deref().unwrap(), record.partial)).collect()
    }

    #[tokio::test]
    async fn output_is_drained_to_its_end_also_when_nothing_is_kept() {
        for keep in [true, false] {
            let mut plugin = Plugin::new(keep);
            let mut writer = plugin.open(LogStream::Stderr);
            let text = vec![b'a'; 300_000];
            let write = thread::spawn(move || {
                writer.write_all(b"first\n").unwrap();
                writer.write_all(&text).unwrap();
            });
            plugin.capture.ended().await;
            write.join().unwrap();
            let total = plugin.rings.totals().get("p").map_or(0, |totals| totals.bytes);
            assert_eq!(total, if keep { 300_005 } else { 0 });
        }
    }

    #[tokio::test]
    async fn a_reader_waits_for_the_last_record_of_what_ends_before_it() {
        let mut plugin = Plugin::new(true);
        plugin.rings.last_call();
        let mut changed = plugin.rings.subscribe();
        let mut writer = plugin.open(LogStream::Stdout);
        writer.write_all(b"last\n").unwrap();
        assert!(!plugin.rings.is_complete());
        drop(writer);
        while !plugin.rings.is_complete() {
            changed.changed().await.unwrap();
        }
        assert_eq!(texts(&plugin.rings.read(0, usize::MAX)), [("last", false)]);

        let kept = Some(Arc::clone(&plugin.rings));
        plugin.capture = Capture::new(kept, "telemetry", Ends::WithReader);
        let _writer = plugin.open(LogStream::Stdout);
        assert!(plugin.rings.is_complete(), "a reader's own output does not hold it up");
    }

    #[tokio::test]
    async fn a_stream_that_is_closed_leaves_the_other_one_open() {
        let mut plugin = Plugin::new(true);
        let (stdout, mut stderr) = (plugin.open(LogStream::Stdout), plugin.open(LogStream::Stderr));
        drop(stdout);
        stderr.write_all(b"\xff\x00dos\r\n").unwrap();
        let record = plugin.records(0).await.remove(0);
        assert_eq!((record.stream, record.base64.unwrap().0), (LogStream::Stderr, b"\xff\x00dos\r".to_vec()));
        drop(stderr);
        plugin.capture.ended().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_prompt_is_seen_though_its_line_has_no_end() {
        let mut plugin = Plugin::new(true);
        let mut writer = plugin.open(LogStream::Stdout);
        writer.write_all(b"done\nname? ").unwrap();
        assert_eq!(texts(&plugin.records(0).await), [("done", false)]);
        let asked = Instant::now();
        assert_eq!(texts(&plugin.records(1).await), [("name? ", true)]);
        assert_eq!(asked.elapsed().as_millis() / 100, LINE_AGE_MAX.as_millis() / 100);
        // Its line goes on, and what is left at the end is kept.
        writer.write_all(b"Ada\nbye").unwrap();
        assert_eq!(texts(&plugin.records(2).await), [("Ada", false)]);
        drop(writer);
        assert_eq!(texts(&plugin.records(3).await), [("bye", false)]);
    }

    /// Long lines until the rate has kept two of them out; how many.
    async fn flood(plugin: &Plugin, writer: &mut PipeWriter) -> u64 {
        let mut line = vec![b'x'; LINE_MAX];
        line[LINE_MAX - 1] = b'\n';
        for written in 1.. {
            writer.write_all(&line).unwrap();
            while plugin.rings.totals().get("p").is_none_or(|totals| totals.records < written) {
                tokio::task::yield_now().await;
            }
            if plugin.rings.totals()["p"].rate_limited == 2 {
                return written;
            }
        }
        unreachable!("a u64 does not run out");
    }

    #[tokio::test(start_paused = true)]
    async fn above_the_rate_records_are_dropped_and_every_one_is_counted() {
        let mut plugin = Plugin::new(true);
        let mut writer = plugin.open(LogStream::Stdout);
        let written = flood(&plugin, &mut writer).await;
        let burst = 4 * BYTES_PER_SECOND / (LINE_MAX - 1 + RECORD_OVERHEAD) as u64;
        assert_eq!(written, burst + 2);
        let last = plugin.rings.last_seq();
        sleep(Duration::from_secs(1)).await;
        writer.write_all(b"let in again\n").unwrap();
        let records = plugin.records(last).await;
        assert_eq!((texts(&records), records[0].dropped), (vec![("let in again", false)], 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_suppression_that_nothing_follows_is_told_in_time() {
        let mut plugin = Plugin::new(true);
        let output = Arc::clone(plugin.capture.output.as_ref().unwrap());
        let mut writer = plugin.open(LogStream::Stdout);
        flood(&plugin, &mut writer).await;
        assert!(output.rate().over_at().is_some());
        // The stream wakes up by itself.
        sleep(BURST + Duration::from_millis(10)).await;
        assert_eq!(output.rate().over_at(), None);
        // And when the output ends before.
        let mut writer = plugin.open(LogStream::Stderr);
        writer.write_all(&vec![b'\n'; 60_000]).unwrap();
        drop(writer);
        plugin.capture.streams.join_next().await;
        assert!(plugin.rings.totals()["p"].rate_limited > 2);
        assert_eq!(output.rate().tell(), None);
    }

    #[tokio::test]
    async fn a_flood_is_read_to_its_end_counted_exactly_and_held_in_bounded_memory() {
        // Many bytes in few records, short lines, and nothing but newlines.
        let long = vec![0; 1 << 20];
        for (line, bytes) in [(&long[..], 64 << 20), (b"short\n", 3 << 20), (b"\n", 1 << 20)] {
            let mut plugin = Plugin::new(true);
            let mut writer = plugin.open(LogStream::Stdout);
            let block = line.repeat((1 << 20) / line.len());
            let blocks = bytes / block.len();
            let write = thread::spawn(move || (0..blocks).for_each(|_| writer.write_all(&block).unwrap()));
            plugin.capture.ended().await;
            write.join().unwrap();

            let lines = blocks * ((1 << 20) / line.len());
            let (records, text) = match line.len() {
                1..=LINE_MAX => (lines, lines * (line.len() - 1)),
                length => (lines * length / LINE_MAX, lines * length),
            };
            let totals = plugin.rings.totals()["p"];
            assert_eq!((totals.records, totals.bytes), (records as u64, text as u64));
            assert!(totals.rate_limited > 0 && totals.rate_limited < totals.dropped, "{totals:?}");
            let kept = plugin.rings.read(0, usize::MAX);
            assert_eq!(kept.len() as u64 + totals.dropped, totals.records);
            let bytes: usize = kept.iter().filter_map(|record| record.text.as_ref()).map(String::len).sum();
            assert!(bytes + kept.len() * RECORD_OVERHEAD <= SOURCE_BYTES_MAX);
        }
    }
}

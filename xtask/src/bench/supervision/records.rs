//! What the children write: who started, and when.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    os::unix::net::UnixStream,
    sync::mpsc::{Receiver, sync_channel},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::{
    failure::{Failure, While as _},
    stopwatch::Stopwatch,
};

/// The name in the record that a peer's start begins with.
pub(super) const BEGIN: &str = "begin";
/// Records on their way from the reader of a stream: every child starts twice before anybody looks.
const QUEUE_MAX: usize = 4096;
/// Between two looks at a file.
const PACE: Duration = Duration::from_micros(500);

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of the children's records.
pub(super) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let part = |part: i64| u64::try_from(part).expect("invariant: the monotonic clock counts from the boot");
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// One start of one child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// The child's number, or [`BEGIN`].
    pub(super) name: String,
    /// As [`now`] counts.
    pub(super) nanos: u64,
}

impl Record {
    fn parse(line: &str) -> Option<Self> {
        let (name, nanos) = line.split_once(' ')?;
        Some(Self { name: name.to_owned(), nanos: nanos.parse().ok()? })
    }

    /// A line of `GET /v1/logs`; none for the supervisor's own lines.
    fn parse_log(line: &str) -> Option<Self> {
        let record: Value = serde_json::from_str(line).ok()?;
        Self::parse(record.get("text")?.as_str()?)
    }
}

/// The records of one contender's children, in the order they arrive.
#[derive(Debug)]
pub(super) enum Records {
    /// A peer's children append to a file.
    File(Tail),
    /// Our supervisor reads its children's output and sends it on.
    Stream(Receiver<Record>),
    /// Nobody reads them.
    Closed,
}

impl Records {
    /// Records that are appended to a file.
    pub(super) fn file(file: File) -> Self {
        Self::File(Tail { file: BufReader::new(file), line: String::new() })
    }

    /// Records in the body of `GET /v1/logs`.
    pub(super) fn stream(body: BufReader<UnixStream>) -> Self {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        // It ends with the connection, which ends with the supervisor.
        std::thread::spawn(move || {
            let lines = body.lines().map_while(Result::ok);
            for record in lines.filter_map(|line| Record::parse_log(&line)) {
                if sender.send(record).is_err() {
                    return;
                }
            }
        });
        Self::Stream(receiver)
    }

    /// The next record for which `is_wanted`; those before it are passed over.
    pub(super) fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        mut is_wanted: impl FnMut(&Record) -> bool,
    ) -> Result<Record, Failure> {
        let watch = Stopwatch::start();
        loop {
            let left = limit.saturating_sub(watch.elapsed());
            let next = match self {
                Self::File(tail) => tail.next()?,
                Self::Stream(receiver) => receiver.recv_timeout(left).ok(),
                Self::Closed => return Err(Failure::new(format!("nobody reads: {what}"))),
            };
            match next {
                Some(record) if is_wanted(&record) => return Ok(record),
                Some(_) => {}
                None if left.is_zero() => {
                    return Err(Failure::new(format!("not within {} s: {what}", limit.as_secs())));
                }
                None => std::thread::park_timeout(PACE),
            }
        }
    }
}

/// The end of a file that grows.
#[derive(Debug)]
pub(super) struct Tail {
    file: BufReader<File>,
    line: String,
}

impl Tail {
    fn next(&mut self) -> Result<Option<Record>, Failure> {
        loop {
            // At the file's end for now, what there is of a line stays for the next look.
            self.file.read_line(&mut self.line).while_doing("the children's file")?;
            if !self.line.ends_with('\n') {
                return Ok(None);
            }
            let record = Record::parse(self.line.trim_end());
            self.line.clear();
            if record.is_some() {
                return Ok(record);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_record_is_read_from_a_line_and_from_the_log() {
        let record = Record { name: "7".to_owned(), nanos: 12 };
        assert_eq!(Record::parse("7 12"), Some(record.clone()));
        assert_eq!(Record::parse_log(r#"{"seq":1,"plugin":"p7","text":"7 12"}"#), Some(record));
        assert_eq!(Record::parse_log(r#"{"seq":2,"plugin":"supervisor","text":"{\"a\": 1}"}"#), None);
        assert_eq!(Record::parse("7"), None);
    }

    #[test]
    fn a_file_is_followed_and_half_a_line_waits_for_its_other_half() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut records = Records::file(file.reopen().unwrap());
        write!(file.as_file(), "begin 1\n1 2\n2 ").unwrap();
        let found = records.wait("one", Duration::ZERO, |record| record.name == "1").unwrap();
        assert_eq!(found.nanos, 2);
        assert!(records.wait("two", Duration::ZERO, |_| true).is_err());
        writeln!(file.as_file(), "34").unwrap();
        assert_eq!(records.wait("two", Duration::ZERO, |_| true).unwrap().nanos, 34);
    }
}

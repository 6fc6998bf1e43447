//! The supervisor's own `tracing` records: JSON lines on standard error, and in the rings of its route.
//!
//! Standard error may be a console that stalls, and PID 1 must not wait for it: lines go through a bounded
//! queue to a thread of their own; what the queue does not take is counted, and the rings have it anyway.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use clap::ValueEnum;
use tracing_subscriber::fmt::MakeWriter;

use super::outlets::Outlets;

/// Lines that may wait for standard error.
const QUEUE_MAX: usize = 256;

/// How long the end of the process waits for standard error.
const FLUSH_MAX: Duration = Duration::from_millis(500);

/// How standard error shows records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What goes to the thread.
enum Item {
    Line(Vec<u8>),
    /// Everything before it is written.
    Flush(SyncSender<()>),
}

/// The installed subscriber.
pub struct Own {
    queue: SyncSender<Item>,
    /// Records that standard error did not take.
    pub lost: Arc<AtomicU64>,
}

impl Own {
    /// Waits, within a bound, until standard error has what the queue took.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            // Not written in time: standard error stalls, and the end does not wait for it.
            written.recv_timeout(FLUSH_MAX).ok();
        }
    }
}

/// Installs the subscriber of this process. Records go to standard error and, with `outlets`, to
/// their reader too.
pub fn install(format: Format, outlets: Option<Arc<Outlets>>) -> io::Result<Own> {
    let lost = Arc::new(AtomicU64::new(0));
    let (queue, items) = sync_channel(QUEUE_MAX);
    std::thread::Builder::new().name("stderr".to_owned()).spawn(move || {
        for item in items {
            // Nothing can be said about a standard error that is gone, or to a waiter that is.
            match item {
                Item::Line(line) => io::stderr().write_all(&line).ok(),
                Item::Flush(done) => done.try_send(()).ok(),
            };
        }
    })?;
    let tee = Tee { queue: queue.clone(), outlets, lost: Arc::clone(&lost) };
    let builder = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(tee);
    let installed = match format {
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false).with_span_list(false);
            tracing::subscriber::set_global_default(builder.with_target(false).finish())
        }
        Format::Text => {
            tracing::subscriber::set_global_default(builder.with_ansi(false).with_target(false).finish())
        }
    };
    installed.map_err(io::Error::other)?;
    Ok(Own { queue, lost })
}

struct Tee {
    queue: SyncSender<Item>,
    outlets: Option<Arc<Outlets>>,
    lost: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for Tee {
    type Writer = Record<'a>;

    fn make_writer(&'a self) -> Record<'a> {
        Record { tee: self, bytes: Vec::new() }
    }
}

/// One record while it is written.
pub struct Record<'a> {
    tee: &'a Tee,
    bytes: Vec<u8>,
}

impl Write for Record<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if let Some(outlets) = &self.tee.outlets {
            outlets.push_own(bytes.strip_suffix(b"\n").unwrap_or(&bytes));
        }
        if self.tee.queue.try_send(Item::Line(bytes)).is_err() {
            self.tee.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

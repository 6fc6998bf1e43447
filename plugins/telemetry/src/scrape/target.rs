//! One target's life: a scrape each interval, and the end of every series that is gone.
//!
//! The series of the last good page are known by number alone; their labels are in that page, kept
//! compressed. It is read again when some of them have to end, which costs time only when a series is gone.

use std::{
    future::Future,
    io::{Read as _, Write as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    batch::Encoded,
    exposition::Dialect,
    fetch::{self, FetchError, Fetcher, Page},
    fingerprint::Numbers,
    mapper::{Mapper, Mode, Outcome, Settings},
    origin::{Origin, TargetLabels},
    plan::{Planned, Shared},
};
use crate::{clock, identity::Identity, sender::chain};

/// Between the newest point of a series and its end, and between two scrapes: the resolution of Prometheus.
const MILLISECOND: u64 = 1_000_000;
/// A correction of the clock by less than this keeps the times of a series in order; after a larger one the
/// target follows the clock.
const CORRECTION_MAX: u64 = 10_000_000_000;
/// The series that a target has of its own.
const UP: &str = "up";
const DURATION: &str = "scrape_duration_seconds";
const SCRAPED: &str = "scrape_samples_scraped";
const KEPT: &str = "scrape_samples_post_metric_relabeling";
const ADDED: &str = "scrape_series_added";

/// Where the requests of the target with this number go.
pub(crate) type Sink = Arc<dyn Fn(u64, Encoded) + Send + Sync>;

/// One target while it is scraped.
pub(super) struct Target {
    number: u64,
    labels: TargetLabels,
    shared: Arc<Shared>,
    interval: Duration,
    fetcher: Fetcher,
    mapper: Arc<Mutex<Mapper>>,
    identity: watch::Receiver<Option<Identity>>,
    sink: Sink,
    origin: Option<Origin>,
    alive: Numbers,
    page: Option<Kept>,
    /// Time of the newest scrape, and of the newest point.
    last: u64,
    newest: u64,
    is_failing: bool,
    repeats: bool,
}

/// The page that has the labels of the series which are alive.
struct Kept {
    compressed: Vec<u8>,
    dialect: Dialect,
}

impl Target {
    pub(super) fn new(
        number: u64,
        planned: Planned,
        mapper: Arc<Mutex<Mapper>>,
        identity: watch::Receiver<Option<Identity>>,
        sink: Sink,
    ) -> Self {
        let Planned { labels, shared, interval, fetcher } = planned;
        Self {
            number,
            labels,
            shared,
            interval,
            fetcher,
            mapper,
            identity,
            sink,
            origin: None,
            alive: Numbers::default(),
            page: None,
            last: 0,
            newest: 0,
            is_failing: false,
            repeats: false,
        }
    }

    /// Scrapes until `stop`, then ends every series.
    pub(super) async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let known = async {
            // An error means that the pump is gone, and `stop` is about to be told.
            if self.identity.wait_for(Option::is_some).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = &mut stop => return,
            () = known => {}
        }
        let mut next = Instant::now() + self.offset();
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = sleep_until(next) => {}
            }
            let begun = Instant::now();
            let fetched = tokio::select! {
                () = &mut stop => break,
                fetched = self.fetcher.fetch() => fetched,
            };
            self.take(fetched, begun);
            next += self.interval;
            // A scrape that took longer than its interval leaves out those it ran over.
            if next < Instant::now() {
                next = Instant::now() + self.interval;
            }
        }
        self.end();
    }

    /// The first scrape's delay: targets of one interval are spread over it, always alike.
    fn offset(&self) -> Duration {
        let name = self.labels.job.bytes().chain([0]).chain(self.labels.target.bytes());
        let hash = name.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let nanos = u64::try_from(self.interval.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos((hash ^ hash >> 32) % nanos.max(1))
    }

    /// Makes points of a page, or the end of all series of its failure.
    fn take(&mut self, fetched: Result<Page, FetchError>, begun: Instant) {
        let Some(identity) = self.identity.borrow().clone() else { return };
        let mut origin = match self.origin.take() {
            Some(origin) if *origin.identity() == identity => origin,
            _ => Origin::new(identity, self.labels.clone(), self.shared.honor_labels),
        };
        let time = self.time();
        let mapper = Arc::clone(&self.mapper);
        // It is cleared before it is used: a panic elsewhere cannot leave it half changed.
        let mut mapper = mapper.lock().unwrap_or_else(PoisonError::into_inner);
        let result = fetched.and_then(|page| {
            mapper.begin();
            let text = fetch::text(&page.body)?;
            let outcome =
                mapper.page(text, page.dialect, &mut origin, settings(&self.shared), Mode::Points, time)?;
            Ok((page, outcome))
        });
        match result {
            Ok((page, outcome)) => self.succeeded(&mut mapper, &mut origin, &page, outcome, begun, time),
            Err(error) => self.failed(&mut mapper, &mut origin, &error, begun, time),
        }
        for request in mapper.finish(&origin) {
            (self.sink)(self.number, request);
        }
        self.origin = Some(origin);
    }

    fn succeeded(
        &mut self,
        mapper: &mut Mapper,
        origin: &mut Origin,
        page: &Page,
        outcome: Outcome,
        begun: Instant,
        time: u64,
    ) {
        let added = outcome.series.iter().filter(|number| !self.alive.contains(number)).count();
        let is_same = added == 0 && outcome.series.len() == self.alive.len();
        if !is_same {
            self.end_series(mapper, origin, &outcome.series, time.saturating_sub(MILLISECOND));
            self.page = Kept::new(page);
            self.alive = outcome.series;
        }
        self.newest = outcome.newest.max(time);
        let values = [
            (UP, 1.0),
            (DURATION, begun.elapsed().as_secs_f64()),
            (SCRAPED, outcome.scraped as f64),
            (KEPT, outcome.kept as f64),
            (ADDED, added as f64),
        ];
        mapper.report(origin, &values, false, time);
        let (job, target) = (&self.labels.job, &self.labels.target);
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(job, target, "the target answers again");
        }
        let repeats = outcome.repeated + outcome.invalid > 0;
        if repeats && !self.repeats {
            let (repeated, invalid) = (outcome.repeated, outcome.invalid);
            tracing::warn!(job, target, repeated, invalid, "samples of the page were left out");
        }
        self.repeats = repeats;
    }

    fn failed(
        &mut self,
        mapper: &mut Mapper,
        origin: &mut Origin,
        error: &FetchError,
        begun: Instant,
        time: u64,
    ) {
        mapper.begin();
        self.end_series(mapper, origin, &Numbers::default(), time);
        self.alive.clear();
        self.page = None;
        self.newest = time;
        let values =
            [(UP, 0.0), (DURATION, begun.elapsed().as_secs_f64()), (SCRAPED, 0.0), (KEPT, 0.0), (ADDED, 0.0)];
        mapper.report(origin, &values, false, time);
        if !std::mem::replace(&mut self.is_failing, true) {
            let (job, target) = (&self.labels.job, &self.labels.target);
            tracing::warn!(job, target, error = chain(error), "a scrape failed");
        }
    }

    /// Ends the series that are alive and not in `still`.
    fn end_series(&mut self, mapper: &mut Mapper, origin: &mut Origin, still: &Numbers, time: u64) {
        let Some(page) = &self.page else { return };
        if self.alive.iter().all(|number| still.contains(number)) {
            return;
        }
        // A point that the page itself put into the future comes before its series' end.
        let time =
            if self.newest < time + CORRECTION_MAX { time.max(self.newest + MILLISECOND) } else { time };
        let read = page.text().and_then(|text| {
            let read =
                mapper.page(&text, page.dialect, origin, settings(&self.shared), Mode::Ends(still), time);
            read.ok()
        });
        if read.is_none() {
            tracing::error!(target = self.labels.target, "the last good page cannot be read again");
        }
    }

    /// The end of everything.
    fn end(&mut self) {
        let Some(mut origin) = self.origin.take() else { return };
        let time = self.time();
        let mapper = Arc::clone(&self.mapper);
        let mut mapper = mapper.lock().unwrap_or_else(PoisonError::into_inner);
        mapper.begin();
        self.end_series(&mut mapper, &mut origin, &Numbers::default(), time);
        let values = [UP, DURATION, SCRAPED, KEPT, ADDED].map(|name| (name, 0.0));
        mapper.report(&mut origin, &values, true, time);
        for request in mapper.finish(&origin) {
            (self.sink)(self.number, request);
        }
    }

    /// The time of a scrape: now, and later than the last one, as long as the clock goes back by little.
    fn time(&mut self) -> u64 {
        let now = clock::now().0;
        let earliest = self.last.saturating_add(2 * MILLISECOND);
        let time = if now < earliest && earliest - now < CORRECTION_MAX { earliest } else { now };
        if time < self.last {
            self.newest = 0;
            tracing::warn!(
                target = self.labels.target,
                "the clock was set back: points may be refused for a while"
            );
        }
        self.last = time;
        time
    }
}

impl Kept {
    fn new(page: &Page) -> Option<Self> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&page.body).ok()?;
        let mut compressed = gzip.finish().ok()?;
        compressed.shrink_to_fit();
        Some(Self { compressed, dialect: page.dialect })
    }

    /// The page was bounded when it came.
    fn text(&self) -> Option<String> {
        let mut text = String::new();
        GzDecoder::new(self.compressed.as_slice()).read_to_string(&mut text).ok()?;
        Some(text)
    }
}

fn settings(shared: &Shared) -> Settings<'_> {
    Settings { limits: shared.limits, honor_timestamps: shared.honor_timestamps, rules: &shared.rules }
}

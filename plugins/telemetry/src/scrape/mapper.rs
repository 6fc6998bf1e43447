//! From a page to OTLP: one pass over its lines, points written as they are read.
//!
//! Names stay as they are. A counter is a monotonic sum, a gauge and everything without a type a gauge, an
//! info and a state set sums that are not monotonic, a histogram and a summary what they are; a gauge
//! histogram, for which OTLP has nothing, is its lines as gauges. `target_info` is the resource.

use std::borrow::Cow;

use enclave_protocol::scrape::Limits;

use super::{
    batch::{Batches, Encoded, put_metric_head},
    exposition::{Dialect, Entry, Kind, Label, ParseError, Parser, Sample, parse_value},
    family::{Families, Role, ucum},
    fingerprint::{Fingerprint, Numbers},
    groups::{Groups, Point, put_exemplar},
    labels::{self, Scope},
    origin::{HISTOGRAM_ATTRIBUTE, NUMBER_ATTRIBUTE, Origin},
    relabel::{self, Compiled},
    wire::{fixed, message, number, put_double, put_fixed, put_head},
};
use crate::identity::{self, Forgery};

/// The data of a `Metric`.
const GAUGE: u8 = 5;
const SUM: u8 = 7;
const HISTOGRAM: u8 = 9;
const SUMMARY: u8 = 11;
/// Cumulative, as field 2 of a sum or histogram; monotonic, as field 3 of a sum.
const CUMULATIVE: [u8; 2] = [number(2), 2];
const CUMULATIVE_MONOTONIC: [u8; 4] = [number(2), 2, number(3), 1];
/// Bytes of a field of eight bytes.
const FIXED_LEN: usize = 9;
/// The metric that describes its target.
const TARGET_INFO: &str = "target_info";
const NAME: &str = "__name__";

/// Why a page fails its scrape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PageError {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error("more than {0} samples")]
    Samples(usize),
    #[error("a sample of {name} has more than {max} labels")]
    Labels { name: String, max: usize },
    #[error("a label's {what} in a sample of {name} is longer than {max} bytes")]
    Length { what: &'static str, name: String, max: usize },
}

/// How a target's pages are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings<'s> {
    pub(super) limits: Limits,
    pub(super) honor_timestamps: bool,
    pub(super) rules: &'s [Compiled],
}

/// What is made of a page.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mode<'m> {
    /// Its points.
    Points,
    /// The end of each of its series that is not among these.
    Ends(&'m Numbers),
}

/// What was in a page.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The series, by number.
    pub(super) series: Numbers,
    /// Samples in the page.
    pub(crate) scraped: u64,
    /// Samples after relabelling.
    pub(crate) kept: u64,
    /// Samples that repeated another one of the page.
    pub(crate) repeated: u64,
    /// Histograms and summaries that are not valid.
    pub(crate) invalid: u64,
    /// The newest time of a point, in nanoseconds.
    pub(crate) newest: u64,
}

/// Buffers, kept from one page to the next and shared by all targets.
#[derive(Debug)]
pub(crate) struct Mapper {
    fingerprint: Fingerprint,
    pub(super) batches: Batches,
    /// Data points of the open metric, each as field 1 of its data.
    points: Vec<u8>,
    items: u64,
    labels: Vec<u8>,
    head: Vec<u8>,
    scratch: Vec<u8>,
    exemplar: Vec<u8>,
    groups: Groups,
}

impl Mapper {
    pub(crate) fn new() -> Self {
        Self {
            fingerprint: Fingerprint::new(),
            batches: Batches::default(),
            points: Vec::new(),
            items: 0,
            labels: Vec::new(),
            head: Vec::new(),
            scratch: Vec::new(),
            exemplar: Vec::new(),
            groups: Groups::default(),
        }
    }

    /// Begins a set of requests.
    pub(super) fn begin(&mut self) {
        self.batches.clear();
        self.points.clear();
        self.groups.clear();
        self.items = 0;
    }

    /// Reads one page at `time` (nanoseconds); its points are in the requests. After an error they hold a
    /// part of it, and the caller begins again.
    pub(super) fn page(
        &mut self,
        text: &str,
        dialect: Dialect,
        origin: &mut Origin,
        settings: Settings<'_>,
        mode: Mode<'_>,
        time: u64,
    ) -> Result<Outcome, PageError> {
        let mut run = Run::new(self, origin, settings, mode, time);
        run.is_open_metrics = dialect == Dialect::OpenMetrics;
        let mut parser = Parser::new(text, dialect);
        while let Some(entry) = parser.next()? {
            match entry {
                Entry::Help { family, text } => run.describe(family).help = text,
                Entry::Type { family, kind } => run.describe(family).kind = kind,
                Entry::Unit { family, unit } => run.describe(family).unit = unit,
                Entry::Sample(sample) => run.sample(&mut parser, sample)?,
            }
        }
        run.close();
        Ok(run.outcome)
    }

    /// Appends gauges of the target itself.
    pub(super) fn report(&mut self, origin: &mut Origin, values: &[(&str, f64)], ends: bool, time: u64) {
        let none = Numbers::default();
        let mode = if ends { Mode::Ends(&none) } else { Mode::Points };
        let settings = Settings { limits: Limits::DEFAULT, honor_timestamps: false, rules: &[] };
        let mut run = Run::new(self, origin, settings, mode, time);
        run.is_report = true;
        for (name, value) in values {
            let sample =
                Sample { name: Cow::Owned((*name).to_owned()), value: *value, time: None, exemplar: None };
            run.describe(sample.name.clone()).kind = Kind::Gauge;
            run.place(&sample, &[], &[], false);
        }
        run.close();
    }

    /// Closes the requests and takes them.
    pub(super) fn finish(&mut self, origin: &Origin) -> Vec<Encoded> {
        self.batches.seal(origin.resource());
        self.points.shrink_to(4 << 20);
        self.batches.shrink();
        self.batches.take()
    }
}

/// One page while it is read.
struct Run<'r, 'a> {
    mapper: &'r mut Mapper,
    origin: &'r mut Origin,
    settings: Settings<'r>,
    mode: Mode<'r>,
    time: u64,
    is_open_metrics: bool,
    /// The points are the target's own.
    is_report: bool,
    families: Families<'a>,
    /// The name of the last line's sample.
    line: Cow<'a, str>,
    /// The open metric: its name, the number of that, and its family.
    name: Cow<'a, str>,
    name_number: u64,
    family: usize,
    role: Role,
    is_open: bool,
    scope: Scope,
    /// The label set of a counter's newest point, and where its start time stands in `points`.
    newest: Option<(u64, usize)>,
    /// The same for a `_created` line that came before its counter.
    created: Option<(u64, u64)>,
    /// Points with a time of their own.
    timed: Numbers,
    outcome: Outcome,
}

impl<'r, 'a> Run<'r, 'a> {
    fn new(
        mapper: &'r mut Mapper,
        origin: &'r mut Origin,
        settings: Settings<'r>,
        mode: Mode<'r>,
        time: u64,
    ) -> Self {
        let scope = Scope::ours();
        mapper.batches.set_scope(&scope.name, &scope.version);
        Self {
            mapper,
            origin,
            settings,
            mode,
            time,
            is_open_metrics: false,
            is_report: false,
            families: Families::default(),
            line: Cow::Borrowed(""),
            name: Cow::Borrowed(""),
            name_number: 0,
            family: 0,
            role: Role::Value,
            is_open: false,
            scope,
            newest: None,
            created: None,
            timed: Numbers::default(),
            outcome: Outcome::default(),
        }
    }

    fn describe(&mut self, name: Cow<'a, str>) -> &mut super::family::Family<'a> {
        self.close();
        self.families.describe(name)
    }

    fn sample(&mut self, parser: &mut Parser<'a>, mut sample: Sample<'a>) -> Result<(), PageError> {
        self.outcome.scraped += 1;
        let rules = self.settings.rules;
        if rules.is_empty() {
            let count = parser.labels().len() + 3 + self.origin.own().len();
            self.check(&sample.name, parser.labels(), count)?;
            self.place(&sample, parser.labels(), parser.exemplar_labels(), false);
            return Ok(());
        }
        let mut labels = std::mem::take(parser.labels_mut());
        labels::join_target(&mut labels, self.origin);
        labels.push(Label { name: Cow::Borrowed(NAME), value: sample.name });
        if relabel::apply(rules, &mut labels)
            && let Some(at) = labels.iter().position(|label| label.name == NAME)
        {
            sample.name = labels.swap_remove(at).value;
            labels.retain(|label| !label.name.starts_with("__"));
            self.check(&sample.name, &labels, labels.len() + 1)?;
            self.place(&sample, &labels, parser.exemplar_labels(), true);
        }
        *parser.labels_mut() = labels;
        Ok(())
    }

    /// The limits, which fail the whole scrape.
    fn check(&mut self, name: &str, labels: &[Label<'_>], count: usize) -> Result<(), PageError> {
        let limits = self.settings.limits;
        self.outcome.kept += 1;
        if self.outcome.kept > limits.samples as u64 {
            return Err(PageError::Samples(limits.samples));
        }
        let shown = || name.chars().take(128).collect::<String>();
        if count > limits.labels {
            return Err(PageError::Labels { name: shown(), max: limits.labels });
        }
        if name.len() > limits.value_bytes || labels.iter().any(|l| l.value.len() > limits.value_bytes) {
            return Err(PageError::Length { what: "value", name: shown(), max: limits.value_bytes });
        }
        if labels.iter().any(|label| label.name.len() > limits.name_bytes) {
            return Err(PageError::Length { what: "name", name: shown(), max: limits.name_bytes });
        }
        Ok(())
    }

    /// Puts a sample where it belongs.
    fn place(&mut self, sample: &Sample<'a>, labels: &[Label<'_>], exemplar: &[Label<'_>], relabelled: bool) {
        if !self.is_open || self.line != sample.name {
            let (family, role) = self.families.resolve(&sample.name);
            self.enter(family, role, &sample.name);
        }
        let kind = self.families.get(self.family).kind;
        if sample.name == TARGET_INFO && kind != Kind::Histogram && kind != Kind::Summary {
            labels::put_resource(self.mapper.batches.resource(), labels, self.origin, relabelled);
            return;
        }
        match self.role {
            Role::Value => self.value(sample, labels, exemplar, kind, relabelled),
            Role::Created if kind == Kind::Counter => self.counter_created(sample, labels, relabelled),
            Role::Created if kind == Kind::GaugeHistogram => {}
            Role::Bucket | Role::Quantile | Role::Count | Role::Sum | Role::Created => {
                self.part(sample, labels, exemplar, kind, relabelled);
            }
        }
    }

    /// Goes on to the metric of a sample. Points wait in `points` while the metric stays the same.
    #[expect(clippy::ptr_arg, reason = "the metric keeps the name")]
    fn enter(&mut self, family: usize, role: Role, name: &Cow<'a, str>) {
        let kind = self.families.get(family).kind;
        let grouped = matches!(kind, Kind::Histogram | Kind::Summary);
        // A counter's `_created` lines stand between its points.
        let is_created = kind == Kind::Counter && (role == Role::Created || self.name == *name);
        if !(self.is_open && family == self.family && (grouped || is_created)) {
            self.close();
        }
        self.is_open = true;
        (self.family, self.role) = (family, role);
        self.line.clone_from(name);
        if grouped || role != Role::Created {
            let shown = if grouped { &self.families.get(family).name } else { name };
            self.name_number = self.mapper.fingerprint.word(kind as u64, shown);
            self.name = shown.clone();
        }
    }

    /// Encodes the labels; returns the set's number. Another scope closes the metric.
    fn labels(&mut self, labels: &[Label<'_>], skip: &str, key: u8, relabelled: bool) -> u64 {
        let (fingerprint, out) = (self.mapper.fingerprint, &mut self.mapper.labels);
        let found = labels::encode(out, labels, skip, key, relabelled, self.origin, fingerprint);
        if let Some(scope) = found.scope.filter(|scope| *scope != self.scope) {
            self.change_scope(scope);
        } else if !found.has_scope && !self.scope.is_ours {
            self.change_scope(Scope::ours());
        }
        found.number
    }

    fn change_scope(&mut self, scope: Scope) {
        let (is_open, family) = (self.is_open, self.family);
        self.close();
        (self.is_open, self.family) = (is_open, family);
        self.mapper.batches.set_scope(&scope.name, &scope.version);
        self.scope = scope;
    }

    /// Whether the series with this number gets a point.
    fn claim(&mut self, number: u64, time: Option<i64>) -> bool {
        if let Mode::Ends(alive) = self.mode {
            return !alive.contains(&number) && self.outcome.series.insert(number);
        }
        let is_new = self.outcome.series.insert(number);
        // One series may have several points of different times.
        let is_new = match time.filter(|_| self.settings.honor_timestamps) {
            #[expect(clippy::cast_sign_loss, reason = "a number to be mixed")]
            Some(time) => self.timed.insert(self.mapper.fingerprint.mix(number, time as u64)),
            None => is_new,
        };
        self.outcome.repeated += u64::from(!is_new);
        is_new
    }

    /// A point's time in nanoseconds.
    fn time_of(&mut self, time: Option<i64>) -> u64 {
        let exposed = time.filter(|_| self.settings.honor_timestamps && !self.ends());
        let time = exposed.and_then(nanoseconds).unwrap_or(self.time);
        self.outcome.newest = self.outcome.newest.max(time);
        time
    }

    fn ends(&self) -> bool {
        matches!(self.mode, Mode::Ends(_))
    }

    /// A point of a gauge or a sum.
    fn value(
        &mut self,
        sample: &Sample<'_>,
        labels: &[Label<'_>],
        exemplar: &[Label<'_>],
        kind: Kind,
        relabelled: bool,
    ) {
        let set = self.labels(labels, "", NUMBER_ATTRIBUTE, relabelled);
        let fingerprint = self.mapper.fingerprint;
        if !self.claim(fingerprint.mix(set, self.name_number), sample.time) {
            return;
        }
        let time = self.time_of(sample.time);
        let ends = self.ends();
        // Room for the start time, which a line further down may tell.
        let starts = self.is_open_metrics && kind == Kind::Counter && !ends;
        let mapper = &mut *self.mapper;
        mapper.exemplar.clear();
        if let Some(numbers) = sample.exemplar.filter(|_| !ends && kind == Kind::Counter) {
            let at = numbers.time.and_then(nanoseconds).unwrap_or(time);
            put_exemplar(&mut mapper.exemplar, message(5), exemplar, numbers.value, at, &mut mapper.scratch);
        }
        let start = if starts { FIXED_LEN } else { 0 };
        let value = if ends { 2 } else { FIXED_LEN };
        let length = start + FIXED_LEN + mapper.labels.len() + value + mapper.exemplar.len();
        let out = &mut mapper.points;
        put_head(out, message(1), length);
        if starts {
            let before = self.created.take().filter(|(number, _)| *number == set).map_or(0, |(_, at)| at);
            self.newest = Some((set, out.len() + 1));
            put_fixed(out, fixed(2), before);
        }
        put_fixed(out, fixed(3), time);
        out.extend_from_slice(&mapper.labels);
        if ends {
            out.extend([number(8), 1]);
        } else {
            put_double(out, fixed(4), sample.value);
        }
        out.extend_from_slice(&mapper.exemplar);
        mapper.items += 1;
        self.close_if_full();
    }

    /// A counter's start, which stands before or behind its point.
    fn counter_created(&mut self, sample: &Sample<'_>, labels: &[Label<'_>], relabelled: bool) {
        let Some(created) = seconds(sample.value) else { return };
        let set = self.labels(labels, "", NUMBER_ATTRIBUTE, relabelled);
        match self.newest.take().filter(|(number, _)| *number == set) {
            Some((_, at)) if self.mapper.points.len() >= at + 8 => {
                self.mapper.points[at..at + 8].copy_from_slice(&created.to_le_bytes());
            }
            _ => self.created = Some((set, created)),
        }
    }

    /// A line of a histogram or a summary.
    fn part(
        &mut self,
        sample: &Sample<'_>,
        labels: &[Label<'_>],
        exemplar: &[Label<'_>],
        kind: Kind,
        relabelled: bool,
    ) {
        // Readers make these labels of the point itself.
        let (skip, key) = if kind == Kind::Histogram {
            ("le", HISTOGRAM_ATTRIBUTE)
        } else {
            ("quantile", NUMBER_ATTRIBUTE)
        };
        let bound = labels.iter().find(|label| label.name == skip).and_then(|l| parse_value(&l.value));
        let set = self.labels(labels, skip, key, relabelled);
        let time = sample.exemplar.and_then(|e| e.time).and_then(nanoseconds).unwrap_or(self.time);
        let mapper = &mut *self.mapper;
        let group = mapper.groups.at(set, &mapper.labels);
        group.time = group.time.or(sample.time);
        match self.role {
            Role::Bucket | Role::Quantile => match bound {
                Some(bound) => group.push(bound, sample.value),
                None => group.spoil(),
            },
            // The first of two lines counts.
            Role::Count => group.count = group.count.or(Some(sample.value)),
            Role::Sum => group.sum = group.sum.or(Some(sample.value)),
            Role::Created => group.created = group.created.or_else(|| seconds(sample.value)),
            Role::Value => {}
        }
        if let Some(numbers) = sample.exemplar.filter(|_| kind == Kind::Histogram) {
            put_exemplar(group.exemplars(), message(8), exemplar, numbers.value, time, &mut mapper.scratch);
        }
    }

    fn close_if_full(&mut self) {
        if self.mapper.batches.is_full(self.mapper.points.len(), self.mapper.items) {
            self.close_metric();
            self.mapper.batches.seal(self.origin.resource());
        }
    }

    /// Ends the open metric.
    fn close(&mut self) {
        if !self.mapper.groups.is_empty() {
            self.close_groups();
        }
        self.close_metric();
        self.created = None;
        self.is_open = false;
    }

    fn close_groups(&mut self) {
        let kind = self.families.get(self.family).kind;
        for index in 0..self.mapper.groups.len() {
            if !self.mapper.groups.finish(index, kind) {
                self.outcome.invalid += 1;
                continue;
            }
            let fingerprint = self.mapper.fingerprint;
            let group = self.mapper.groups.get(index);
            let number = fingerprint.mix(group.number, self.name_number);
            let number = group.bounds().fold(number, |number, bound| fingerprint.mix(number, bound));
            let (time, created) = (group.time, group.created);
            if !self.claim(number, time) {
                continue;
            }
            let time = self.time_of(time);
            let start = created.filter(|start| *start <= time).unwrap_or_default();
            let point = Point { start, time, ends: self.ends() };
            let mapper = &mut *self.mapper;
            mapper.groups.encode(index, kind, point, &mut mapper.points, &mut mapper.scratch);
            mapper.items += 1;
            self.close_if_full();
        }
        self.mapper.groups.clear();
    }

    /// Writes the metric of the points that wait.
    fn close_metric(&mut self) {
        self.newest = None;
        let mapper = &mut *self.mapper;
        if mapper.items == 0 {
            return;
        }
        let family = self.families.get(self.family);
        let (data, tail): (u8, &[u8]) = match family.kind {
            Kind::Counter => (SUM, &CUMULATIVE_MONOTONIC),
            Kind::Info | Kind::StateSet => (SUM, &CUMULATIVE),
            Kind::Histogram => (HISTOGRAM, &CUMULATIVE),
            Kind::Summary => (SUMMARY, &[]),
            Kind::Gauge | Kind::GaugeHistogram | Kind::Unknown => (GAUGE, &[]),
        };
        let name = self.name.as_ref();
        let unit = ucum(family.unit);
        // The target's own series have names that no page may have.
        let forgery = identity::forgery(name, unit).filter(|_| !self.is_report);
        let moved = forgery.map(|_| identity::exported(name, |_| false));
        let name = moved.as_deref().unwrap_or(name);
        let unit = if forgery == Some(Forgery::Unit) { "" } else { unit };
        put_metric_head(&mut mapper.head, name, &family.help, unit, family.kind.word());
        let (head, points, items) = (&mapper.head, &mapper.points, std::mem::take(&mut mapper.items));
        mapper.batches.metric(head, data, points, tail, items);
        mapper.points.clear();
    }
}

/// Milliseconds as nanoseconds; none before 1970.
fn nanoseconds(milliseconds: i64) -> Option<u64> {
    u64::try_from(milliseconds).ok()?.checked_mul(1_000_000)
}

/// A `_created` value as nanoseconds.
fn seconds(value: f64) -> Option<u64> {
    if !(value > 0.0 && value < 1e10) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was looked at")]
    let milliseconds = (value * 1000.0).round() as u64;
    milliseconds.checked_mul(1_000_000)
}

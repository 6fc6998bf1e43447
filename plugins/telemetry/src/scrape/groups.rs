//! Histograms and summaries: the lines of one label set, put together.

use std::collections::HashMap;

use super::{
    exposition::Kind,
    wire::{field_len, fixed, message, number, put_double, put_fixed, put_head, put_packed},
};

/// Buckets and quantiles of one point; lines beyond it are left out, and with them the point.
const PARTS_MAX: usize = 4096;

/// The lines of one label set.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// The label set's number, without `le` or `quantile`.
    pub(super) number: u64,
    labels: std::ops::Range<usize>,
    /// Bound and count, or quantile and value.
    parts: Vec<(f64, f64)>,
    pub(super) count: Option<f64>,
    pub(super) sum: Option<f64>,
    /// Nanoseconds.
    pub(super) created: Option<u64>,
    /// Milliseconds, from the first line that has a time.
    pub(super) time: Option<i64>,
    exemplars: Vec<u8>,
    broken: bool,
}

/// The groups of the family that is being read. Their memory is used again.
#[derive(Debug, Default)]
pub(super) struct Groups {
    all: Vec<Group>,
    used: usize,
    index: HashMap<u64, usize>,
    last: usize,
    labels: Vec<u8>,
}

/// A group as a point.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) start: u64,
    pub(super) time: u64,
    /// The series ends.
    pub(super) ends: bool,
}

impl Groups {
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.index.clear();
        self.labels.clear();
    }

    /// The group with this number; `labels` are its attributes, for a new one.
    pub(super) fn at(&mut self, number: u64, labels: &[u8]) -> &mut Group {
        if self.last < self.used && self.all[self.last].number == number {
            return &mut self.all[self.last];
        }
        self.last = match self.index.get(&number) {
            Some(index) => *index,
            None => self.add(number, labels),
        };
        &mut self.all[self.last]
    }

    fn add(&mut self, number: u64, labels: &[u8]) -> usize {
        if self.used == self.all.len() {
            self.all.push(Group::default());
        }
        let start = self.labels.len();
        self.labels.extend_from_slice(labels);
        let group = &mut self.all[self.used];
        let (mut parts, mut exemplars) =
            (std::mem::take(&mut group.parts), std::mem::take(&mut group.exemplars));
        parts.clear();
        exemplars.clear();
        *group = Group { number, labels: start..self.labels.len(), parts, exemplars, ..Group::default() };
        self.index.insert(number, self.used);
        self.used += 1;
        self.used - 1
    }

    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// Makes the group's parts complete: false when it is no valid histogram or summary.
    pub(super) fn finish(&mut self, index: usize, kind: Kind) -> bool {
        let group = &mut self.all[index];
        let Some(count) = group.count.filter(|count| *count >= 0.0) else { return false };
        if group.broken || group.parts.iter().any(|(bound, _)| bound.is_nan()) {
            return false;
        }
        if !group.parts.is_sorted_by(|a, b| a.0 < b.0) {
            group.parts.sort_by(|a, b| a.0.total_cmp(&b.0));
            // The first of two lines with one bound is the one that Prometheus keeps.
            group.parts.dedup_by(|later, first| later.0.total_cmp(&first.0).is_eq());
        }
        if kind == Kind::Summary {
            return true;
        }
        if group.parts.last().is_some_and(|(bound, _)| *bound == f64::INFINITY) {
            let (_, all) = group.parts.pop().unwrap_or_default();
            if all > count {
                return false;
            }
        }
        let last = group.parts.last().map_or(0.0, |(_, count)| *count);
        group.parts.is_sorted_by(|a, b| a.1 <= b.1)
            && group.parts.first().is_none_or(|(_, count)| *count >= 0.0)
            && last <= count
    }

    pub(super) fn get(&self, index: usize) -> &Group {
        &self.all[index]
    }

    /// Appends the group's data point, as field 1 of its metric's data.
    pub(super) fn encode(
        &self,
        index: usize,
        kind: Kind,
        point: Point,
        out: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
    ) {
        let group = &self.all[index];
        scratch.clear();
        if point.start > 0 {
            put_fixed(scratch, fixed(2), point.start);
        }
        put_fixed(scratch, fixed(3), point.time);
        let count = if point.ends { 0 } else { whole(group.count.unwrap_or_default()) };
        put_fixed(scratch, fixed(4), count);
        if kind == Kind::Summary {
            group.summary(point.ends, scratch);
        } else {
            group.histogram(point.ends, scratch);
        }
        let labels = &self.labels[group.labels.clone()];
        put_head(out, message(1), labels.len() + scratch.len());
        out.extend_from_slice(labels);
        out.extend_from_slice(scratch);
    }
}

impl Group {
    pub(super) fn push(&mut self, bound: f64, value: f64) {
        if self.parts.len() < PARTS_MAX {
            self.parts.push((bound, value));
        } else {
            self.broken = true;
        }
    }

    /// A line that has no bound or quantile.
    pub(super) fn spoil(&mut self) {
        self.broken = true;
    }

    pub(super) fn exemplars(&mut self) -> &mut Vec<u8> {
        &mut self.exemplars
    }

    /// The bounds or quantiles, for the series' number: other ones are other series to Prometheus.
    pub(super) fn bounds(&self) -> impl Iterator<Item = u64> {
        self.parts.iter().map(|(bound, _)| bound.to_bits())
    }

    fn histogram(&self, ends: bool, out: &mut Vec<u8>) {
        if !ends && let Some(sum) = self.sum {
            put_double(out, fixed(5), sum);
        }
        let mut before = 0;
        let total = if ends { 0 } else { whole(self.count.unwrap_or_default()) };
        let counts: Vec<u64> = self
            .parts
            .iter()
            .map(|(_, count)| if ends { 0 } else { whole(*count) })
            .chain([total])
            .map(|count| count.saturating_sub(std::mem::replace(&mut before, count)))
            .collect();
        put_packed(out, message(6), counts.into_iter());
        put_packed(out, message(7), self.parts.iter().map(|(bound, _)| bound.to_bits()));
        if ends {
            out.extend([number(10), 1]);
        } else {
            out.extend_from_slice(&self.exemplars);
        }
    }

    fn summary(&self, ends: bool, out: &mut Vec<u8>) {
        if !ends {
            put_double(out, fixed(5), self.sum.unwrap_or_default());
        }
        for (quantile, value) in &self.parts {
            put_head(out, message(6), 18);
            put_double(out, fixed(1), *quantile);
            put_double(out, fixed(2), if ends { 0.0 } else { *value });
        }
        if ends {
            out.extend([number(8), 1]);
        }
    }
}

/// A count as a whole number.
fn whole(count: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast of a float saturates"
    )]
    let whole = count as u64;
    whole
}

/// An exemplar as field `key` of its point.
pub(super) fn put_exemplar(
    out: &mut Vec<u8>,
    key: u8,
    labels: &[super::exposition::Label<'_>],
    value: f64,
    time: u64,
    scratch: &mut Vec<u8>,
) {
    scratch.clear();
    put_fixed(scratch, fixed(2), time);
    put_double(scratch, fixed(3), value);
    for label in labels {
        match (label.name.as_ref(), unhex(&label.value)) {
            ("span_id", Some(id)) if id.len() == 8 => super::wire::put_bytes(scratch, message(4), &id),
            ("trace_id", Some(id)) if id.len() == 16 => super::wire::put_bytes(scratch, message(5), &id),
            _ => super::wire::put_attribute(scratch, message(7), &label.name, &label.value),
        }
    }
    out.reserve(field_len(scratch.len()));
    super::wire::put_bytes(out, key, scratch);
}

/// The bytes of an id in hexadecimal.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.bytes().take(33).map(|b| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits.filter(|digits| digits.len() <= 32 && digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

//! Counters on their way to PID 1: cut into messages by `net`, put together again by PID 1, and carried over
//! from one `net` to the next so that a counter never goes back.

use std::collections::{BTreeMap, BTreeSet};

use enclave_protocol::metrics::{Family, Kind, Labels, Point};

use super::link::Message;

/// Most points in one message. A point with the longest name, plugin and label is about 450 bytes of JSON:
/// they stay below [`super::link::MESSAGE_MAX`].
const POINTS_PER_MESSAGE: usize = 100;
/// Most points PID 1 takes from one report. What is above is dropped: `net` may be in a plugin's hands.
const POINTS_MAX: usize = 100_000;

/// Cuts families into messages; there is always one, and the last says so.
pub(crate) fn cut(id: u64, families: Vec<Family>) -> Vec<Message> {
    let mut parts: Vec<Vec<Family>> = vec![Vec::new()];
    let mut room = POINTS_PER_MESSAGE;
    for family in families {
        let mut points = family.points.into_iter().peekable();
        loop {
            let points_now: Vec<_> = points.by_ref().take(room).collect();
            room -= points_now.len();
            let piece = Family {
                name: family.name.clone(),
                help: family.help.clone(),
                kind: family.kind,
                unit: family.unit.clone(),
                points: points_now,
            };
            if let Some(part) = parts.last_mut() {
                part.push(piece);
            }
            if points.peek().is_none() {
                break;
            }
            parts.push(Vec::new());
            room = POINTS_PER_MESSAGE;
        }
    }
    let last = parts.len() - 1;
    let message = |(index, families)| Message::Report { id, families, last: index == last };
    parts.into_iter().enumerate().map(message).collect()
}

/// Puts the parts of one report together.
#[derive(Debug)]
pub struct Gather {
    id: u64,
    families: Vec<Family>,
    points: usize,
}

impl Gather {
    /// Waits for the report that was asked for with `id`.
    pub fn new(id: u64) -> Self {
        Self { id, families: Vec::new(), points: 0 }
    }

    /// Takes one `Report` message; answers the whole with the last one. Parts of another report are left out.
    pub fn push(&mut self, id: u64, families: Vec<Family>, last: bool) -> Option<Vec<Family>> {
        if id != self.id {
            return None;
        }
        for mut family in families {
            family.points.truncate(POINTS_MAX - self.points);
            self.points += family.points.len();
            if let Some(known) = self.families.last_mut().filter(|known| known.name == family.name) {
                known.points.append(&mut family.points);
            } else if self.families.len() < POINTS_MAX {
                // Empty families without end would be another way to fill PID 1.
                self.families.push(family);
            }
        }
        last.then(|| std::mem::take(&mut self.families))
    }
}

type Key = (String, Labels);

/// Makes the counters of several `net` processes, one after the other, into counters of one.
#[derive(Debug, Default)]
pub struct Totals {
    /// What the processes before this one counted.
    before: BTreeMap<Key, f64>,
    /// The last report of this one.
    now: Vec<Family>,
}

impl Totals {
    /// Takes a report.
    pub fn update(&mut self, report: Vec<Family>) {
        self.now = report;
    }

    /// The process has ended: its counters are kept, its gauges are not.
    pub fn restarted(&mut self) {
        for family in std::mem::take(&mut self.now) {
            if family.kind == Kind::Counter {
                for point in family.points {
                    let key = (family.name.clone(), point.labels);
                    if self.before.len() < POINTS_MAX || self.before.contains_key(&key) {
                        *self.before.entry(key).or_default() += point.value;
                    }
                }
            }
        }
    }

    /// The families of all processes together; empty until the first report of the present one.
    pub fn families(&self) -> Vec<Family> {
        let mut families = self.now.clone();
        for family in families.iter_mut().filter(|family| family.kind == Kind::Counter) {
            for point in &mut family.points {
                let key = (family.name.clone(), std::mem::take(&mut point.labels));
                point.value += self.before.get(&key).copied().unwrap_or(0.0);
                point.labels = key.1;
            }
            // A refusal that only an earlier process saw is no less true.
            let first = (family.name.clone(), Labels::default());
            let earlier = self.before.range(first..).take_while(|((name, _), _)| *name == family.name);
            let known: BTreeSet<_> = family.points.iter().map(|point| &point.labels).collect();
            let mut missing: Vec<Point> = earlier
                .filter(|((_, labels), _)| !known.contains(labels))
                .map(|((_, labels), value)| Point { labels: labels.clone(), value: *value })
                .collect();
            family.points.append(&mut missing);
        }
        families
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(name: &str, points: &[(&str, f64)]) -> Family {
        let points = points.iter().map(|(reason, value)| Point::labelled([("reason", reason)], *value));
        Family::counter(name, "help", points.collect())
    }

    fn gather(messages: Vec<Message>) -> Vec<Option<Vec<Family>>> {
        let mut gather = Gather::new(7);
        let push = |message| {
            let Message::Report { id, families, last } = message else { panic!("{message:?}") };
            gather.push(id, families, last)
        };
        messages.into_iter().map(push).collect()
    }

    #[test]
    fn a_report_of_any_size_fits_the_link_in_parts_and_comes_out_whole() {
        let labels = [("plugin", "p".repeat(63)), ("destination", format!("{}:65535", "d".repeat(253)))];
        let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
        for sizes in
            [vec![], vec![0], vec![1, 99, 0, 100], vec![250, 1], vec![100], vec![0, 101, 100, 300, 2]]
        {
            let family = |(index, size): (usize, &usize)| {
                let points = (0..*size).map(|value| Point::labelled(labels, value as f64)).collect();
                Family::counter(&format!("enclave_egress_received_bytes_total_{index}"), "help", points)
            };
            let families: Vec<_> = sizes.iter().enumerate().map(family).collect();
            let messages = cut(7, families.clone());
            for message in &messages {
                assert!(serde_json::to_vec(message).unwrap().len() <= super::super::link::MESSAGE_MAX);
            }
            let mut gathered = gather(messages);
            assert_eq!(gathered.pop().unwrap().unwrap(), families, "{sizes:?}");
            assert!(gathered.iter().all(Option::is_none));
        }
    }

    #[test]
    fn a_report_that_nobody_asked_for_or_that_is_endless_takes_no_memory() {
        let mut gather = Gather::new(7);
        assert_eq!(gather.push(6, vec![counter("a", &[("x", 1.0)])], true), None);
        let big = Family::counter("a", "help", vec![Point::bare(1.0); POINTS_MAX - 1]);
        assert_eq!(gather.push(7, vec![big.clone(), big], false), None);
        let whole = gather.push(7, vec![], true).unwrap();
        assert_eq!(whole.iter().map(|family| family.points.len()).sum::<usize>(), POINTS_MAX);
    }

    #[test]
    fn a_counter_never_goes_back_when_net_is_restarted() {
        let gauge = Family::gauge("active", "help", vec![Point::bare(4.0)]);
        let mut totals = Totals::default();
        totals.update(vec![counter("refused", &[("x", 2.0), ("y", 1.0)]), gauge.clone()]);
        totals.restarted();
        assert_eq!(totals.families(), vec![]);
        totals.update(vec![counter("refused", &[("x", 3.0)]), gauge.clone()]);
        assert_eq!(totals.families(), vec![counter("refused", &[("x", 5.0), ("y", 1.0)]), gauge]);
        totals.restarted();
        totals.update(vec![counter("refused", &[])]);
        assert_eq!(totals.families(), vec![counter("refused", &[("x", 5.0), ("y", 1.0)])]);
    }
}

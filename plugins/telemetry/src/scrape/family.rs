//! Which family a sample belongs to, and what it is there.

use std::{borrow::Cow, collections::HashMap};

use super::exposition::Kind;

/// Endings that a sample's name has beyond its family's.
const SUFFIXES: [&str; 8] = ["_total", "_bucket", "_count", "_sum", "_created", "_info", "_gcount", "_gsum"];
/// Units as OpenMetrics writes them, and in UCUM.
const UNITS: [(&str, &str); 24] = [
    ("seconds", "s"),
    ("bytes", "By"),
    ("ratio", "1"),
    ("percent", "%"),
    ("celsius", "Cel"),
    ("meters", "m"),
    ("metres", "m"),
    ("grams", "g"),
    ("volts", "V"),
    ("amperes", "A"),
    ("joules", "J"),
    ("watts", "W"),
    ("hertz", "Hz"),
    ("milliseconds", "ms"),
    ("microseconds", "us"),
    ("nanoseconds", "ns"),
    ("minutes", "min"),
    ("hours", "h"),
    ("days", "d"),
    ("kibibytes", "KiBy"),
    ("mebibytes", "MiBy"),
    ("gibibytes", "GiBy"),
    ("kilobytes", "KBy"),
    ("megabytes", "MBy"),
];

/// What a page says of a family.
#[derive(Debug, Clone, Default)]
pub(super) struct Family<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) kind: Kind,
    pub(super) help: Cow<'a, str>,
    pub(super) unit: &'a str,
}

/// What a sample is in its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A point of its own.
    Value,
    /// Part of a histogram.
    Bucket,
    /// Part of a summary.
    Quantile,
    /// Part of either.
    Count,
    Sum,
    /// When it began to count.
    Created,
}

/// The families of one page.
#[derive(Debug, Default)]
pub(super) struct Families<'a> {
    all: Vec<Family<'a>>,
    by_name: HashMap<Cow<'a, str>, usize>,
    current: Option<usize>,
}

impl<'a> Families<'a> {
    /// The family of a metadata line; it is the current one from here on.
    pub(super) fn describe(&mut self, name: Cow<'a, str>) -> &mut Family<'a> {
        if self.current.is_some_and(|index| self.all[index].name == name) {
            return &mut self.all[self.current.unwrap_or_default()];
        }
        let index = match self.by_name.get(&name) {
            Some(index) => *index,
            None => self.add(name),
        };
        self.current = Some(index);
        &mut self.all[index]
    }

    pub(super) fn get(&self, index: usize) -> &Family<'a> {
        &self.all[index]
    }

    /// The family of a sample, and its role there. Without a family that fits, the sample is one of its own.
    #[expect(clippy::ptr_arg, reason = "a new family keeps the name")]
    pub(super) fn resolve(&mut self, name: &Cow<'a, str>) -> (usize, Role) {
        if let Some(index) = self.current
            && let Some(role) = role(&self.all[index], name)
        {
            return (index, role);
        }
        let found = self.find(name);
        let (index, role) = found.unwrap_or_else(|| (self.add(name.clone()), Role::Value));
        self.current = Some(index);
        (index, role)
    }

    fn find(&self, name: &str) -> Option<(usize, Role)> {
        let stripped = SUFFIXES.iter().filter_map(|suffix| name.strip_suffix(suffix));
        std::iter::once(name).chain(stripped).find_map(|family| {
            let index = *self.by_name.get(family)?;
            Some((index, role(&self.all[index], name)?))
        })
    }

    fn add(&mut self, name: Cow<'a, str>) -> usize {
        self.all.push(Family { name: name.clone(), ..Family::default() });
        self.by_name.insert(name, self.all.len() - 1);
        self.all.len() - 1
    }
}

fn role(family: &Family<'_>, name: &str) -> Option<Role> {
    let rest = name.strip_prefix(family.name.as_ref())?;
    match (family.kind, rest) {
        (Kind::Counter, "" | "_total")
        | (Kind::Info, "" | "_info")
        | (Kind::Gauge | Kind::StateSet | Kind::Unknown, "")
        | (Kind::GaugeHistogram, "_bucket" | "_count" | "_sum" | "_gcount" | "_gsum") => Some(Role::Value),
        (Kind::Histogram, "_bucket") => Some(Role::Bucket),
        (Kind::Summary, "") => Some(Role::Quantile),
        (Kind::Histogram | Kind::Summary, "_count") => Some(Role::Count),
        (Kind::Histogram | Kind::Summary, "_sum") => Some(Role::Sum),
        (Kind::Histogram | Kind::Summary | Kind::Counter | Kind::GaugeHistogram, "_created") => {
            Some(Role::Created)
        }
        _ => None,
    }
}

/// A unit in UCUM; an unknown one stays as it is.
pub(super) fn ucum(unit: &str) -> &str {
    UNITS.iter().find(|(word, _)| *word == unit).map_or(unit, |(_, ucum)| ucum)
}

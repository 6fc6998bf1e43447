//! The labels that every point of a target carries, and what becomes of a page's labels beside them.

use std::collections::{BTreeMap, HashMap};

use super::{
    exposition::Label,
    wire::{message, put_attribute, put_bytes, put_text},
};
use crate::identity::{self, Identity, exported};

/// Most label names whose fate is remembered; a page with more of them is looked at again and again.
const KNOWN_MAX: usize = 4096;
/// Attributes are field 7 of a number's point and a summary's, field 9 of a histogram's.
pub(super) const NUMBER_ATTRIBUTE: u8 = message(7);
pub(super) const HISTOGRAM_ATTRIBUTE: u8 = message(9);
/// Labels of OpenTelemetry's own Prometheus exporters, which are the scope and no labels.
const SCOPE_NAME: &str = "otel_scope_name";
const SCOPE_VERSION: &str = "otel_scope_version";
/// What a target is called among the labels that rules see.
pub(super) const JOB: &str = "job";
pub(super) const INSTANCE: &str = "instance";
/// The names of the same on points.
pub(super) const SCRAPE_JOB: &str = "scrape_job";
pub(super) const SCRAPE_TARGET: &str = "scrape_target";

/// A target as its points name it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct TargetLabels {
    /// `scrape_job`.
    pub(super) job: String,
    /// `scrape_target`.
    pub(super) target: String,
    /// The plugin behind the port.
    pub(super) plugin: Option<String>,
    /// The configuration's own labels.
    pub(super) labels: BTreeMap<String, String>,
    /// Added where no label of that name is.
    pub(super) external: BTreeMap<String, String>,
    /// Attributes of the resource.
    pub(super) resource: Vec<(&'static str, String)>,
}

/// What becomes of a page's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    /// It gets this name, since the runtime alone sets its own.
    Reserved(String),
    /// It gets this name, since the target has a label of its own.
    Move(String),
    /// It takes the place of the label with this index in `Origin::own`.
    Override(usize),
    ScopeName,
    ScopeVersion,
}

/// The labels of a target, ready to be copied.
#[derive(Debug)]
pub(super) struct Origin {
    identity: Identity,
    pub(super) target: TargetLabels,
    honor_labels: bool,
    /// Name and value of the labels that a page's may collide with.
    own: Vec<(String, String)>,
    /// Identity and plugin.
    fixed_number: Vec<u8>,
    fixed_histogram: Vec<u8>,
    /// Job, target and all of `own` behind them.
    all_number: Vec<u8>,
    all_histogram: Vec<u8>,
    resource: Vec<u8>,
    fates: HashMap<Box<str>, usize>,
    known: Vec<(Box<str>, Fate)>,
    /// By place in the sample: the label that stood there last.
    memo: Vec<usize>,
}

impl Origin {
    pub(super) fn new(identity: Identity, target: TargetLabels, honor_labels: bool) -> Self {
        let external = target.external.iter().filter(|(name, _)| !target.labels.contains_key(*name));
        let own: Vec<(String, String)> = target
            .labels
            .iter()
            .chain(external)
            .filter(|(name, value)| !value.is_empty() && *name != JOB && *name != INSTANCE)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let encode = |key: u8, origin: bool, own: &[(String, String)]| {
            let mut out = Vec::new();
            for (name, value) in identity.labels() {
                put_attribute(&mut out, key, name, value);
            }
            if let Some(plugin) = &target.plugin {
                put_attribute(&mut out, key, "plugin", plugin);
            }
            if origin {
                put_attribute(&mut out, key, SCRAPE_JOB, &target.job);
                put_attribute(&mut out, key, SCRAPE_TARGET, &target.target);
            }
            for (name, value) in own {
                put_attribute(&mut out, key, name, value);
            }
            out
        };
        let resource = resource(&identity, &target);
        Self {
            fixed_number: encode(NUMBER_ATTRIBUTE, false, &[]),
            fixed_histogram: encode(HISTOGRAM_ATTRIBUTE, false, &[]),
            all_number: encode(NUMBER_ATTRIBUTE, true, &own),
            all_histogram: encode(HISTOGRAM_ATTRIBUTE, true, &own),
            identity,
            target,
            honor_labels,
            own,
            resource,
            fates: HashMap::new(),
            known: Vec::new(),
            memo: Vec::new(),
        }
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The attributes of the resource, each as field 1 of it.
    pub(super) fn resource(&self) -> &[u8] {
        &self.resource
    }

    /// The labels of every point, encoded.
    pub(super) fn all(&self, key: u8) -> &[u8] {
        if key == HISTOGRAM_ATTRIBUTE { &self.all_histogram } else { &self.all_number }
    }

    /// Those that no page and no rule takes the place of.
    pub(super) fn fixed(&self, key: u8) -> &[u8] {
        if key == HISTOGRAM_ATTRIBUTE { &self.fixed_histogram } else { &self.fixed_number }
    }

    /// Those that one may take the place of.
    pub(super) fn own(&self) -> &[(String, String)] {
        &self.own
    }

    /// What becomes of the label `name` at `place` of its sample.
    pub(super) fn fate(&mut self, place: usize, name: &str) -> &Fate {
        if let Some(index) = self.memo.get(place).copied()
            && self.known.get(index).is_some_and(|(known, _)| **known == *name)
        {
            return &self.known[index].1;
        }
        let index = match self.fates.get(name) {
            Some(index) => *index,
            None => self.learn(name),
        };
        if self.memo.len() <= place {
            self.memo.resize(place + 1, index);
        }
        self.memo[place] = index;
        &self.known[index].1
    }

    fn learn(&mut self, name: &str) -> usize {
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
            self.fates.clear();
            self.memo.clear();
        }
        let index = self.known.len();
        self.known.push((name.into(), self.decide(name)));
        self.fates.insert(name.into(), index);
        index
    }

    fn decide(&self, name: &str) -> Fate {
        if name == SCOPE_NAME {
            return Fate::ScopeName;
        }
        if name == SCOPE_VERSION {
            return Fate::ScopeVersion;
        }
        if self.reserves(name) {
            return Fate::Reserved(exported(name, |_| false));
        }
        match self.own.iter().position(|(own, _)| own == name) {
            Some(index) if self.honor_labels || self.is_external(name) => Fate::Override(index),
            Some(_) => Fate::Move(exported(name, |_| false)),
            None => Fate::Keep,
        }
    }

    fn is_external(&self, name: &str) -> bool {
        !self.target.labels.contains_key(name)
    }

    /// Whether the runtime alone sets this attribute of the resource.
    pub(super) fn reserves_on_resource(&self, name: &str) -> bool {
        self.identity.reserves_on_resource(name) || identity::names_origin(name)
    }

    /// Whether the runtime alone sets this label.
    fn reserves(&self, name: &str) -> bool {
        self.identity.reserves(name) || identity::names_origin(name)
    }
}

/// Identity, service and where the page was asked for.
fn resource(identity: &Identity, target: &TargetLabels) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in identity.labels().chain(identity.service()) {
        put_attribute(&mut out, message(1), name, value);
    }
    for (name, value) in &target.resource {
        put_attribute(&mut out, message(1), name, value);
    }
    out
}

/// An `InstrumentationScope` as field 1 of `ScopeMetrics`.
pub(super) fn scope(out: &mut Vec<u8>, name: &str, version: &str) {
    let mut inner = Vec::new();
    put_text(&mut inner, message(1), name);
    put_text(&mut inner, message(2), version);
    put_bytes(out, message(1), &inner);
}

/// `exported_…`, again while a label of the sample has that name.
pub(super) fn moved(name: &str, labels: &[Label<'_>]) -> String {
    let mut name = name.to_owned();
    while labels.iter().any(|label| label.name == name) {
        name = exported(&name, |_| false);
    }
    name
}

//! A sample's labels as attributes, beside those of its target.

use std::borrow::Cow;

use super::{
    exposition::Label,
    fingerprint::Fingerprint,
    origin::{Fate, INSTANCE, JOB, Origin, SCRAPE_JOB, SCRAPE_TARGET, moved},
    relabel::set,
    wire::{message, put_attribute},
};
use crate::identity::exported;

/// An instrumentation scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) name: String,
    pub(super) version: String,
    /// The page did not name one.
    pub(super) is_ours: bool,
}

impl Scope {
    /// The plugin's own scope: constant, since exporters make labels of it.
    pub(super) fn ours() -> Self {
        Self {
            name: crate::pipeline::SCOPE.to_owned(),
            version: crate::pipeline::SCOPE_VERSION.to_owned(),
            is_ours: true,
        }
    }
}

/// What encoding found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The label set's number.
    pub(super) number: u64,
    /// The page names a scope.
    pub(super) has_scope: bool,
    pub(super) scope: Option<Scope>,
}

/// Writes the target's labels and those of the sample into `out`, without the label `skip` and empty ones.
pub(super) fn encode(
    out: &mut Vec<u8>,
    labels: &[Label<'_>],
    skip: &str,
    key: u8,
    relabelled: bool,
    origin: &mut Origin,
    fingerprint: Fingerprint,
) -> Found {
    out.clear();
    let mut found = Found::default();
    if relabelled {
        out.extend_from_slice(origin.fixed(key));
        put_origin(out, labels, key, origin);
    } else {
        out.extend_from_slice(origin.all(key));
    }
    let mut overridden: Vec<usize> = Vec::new();
    for (place, label) in labels.iter().enumerate() {
        let (name, value) = (label.name.as_ref(), label.value.as_ref());
        if value.is_empty() || name == skip && !skip.is_empty() {
            continue;
        }
        found.number = found.number.wrapping_add(fingerprint.label(name, value));
        if relabelled && (name == JOB || name == INSTANCE) {
            continue;
        }
        match origin.fate(place, name) {
            Fate::Keep => put_attribute(out, key, name, value),
            // Behind the rules a label of the target is one of the sample's.
            Fate::Override(_) | Fate::Move(_) if relabelled => put_attribute(out, key, name, value),
            Fate::Move(to) | Fate::Reserved(to) => put_attribute(out, key, &moved(to, labels), value),
            Fate::Override(index) => overridden.push(*index),
            Fate::ScopeName => value.clone_into(&mut scope(&mut found).name),
            Fate::ScopeVersion => value.clone_into(&mut scope(&mut found).version),
        }
    }
    if !overridden.is_empty() {
        put_overridden(out, labels, skip, key, origin, &overridden);
    }
    found
}

fn scope(found: &mut Found) -> &mut Scope {
    found.has_scope = true;
    found.scope.get_or_insert(Scope { name: String::new(), version: String::new(), is_ours: false })
}

/// The job and the target as rules left them.
fn put_origin(out: &mut Vec<u8>, labels: &[Label<'_>], key: u8, origin: &Origin) {
    let value = |name: &str, own: &str| {
        let label = labels.iter().find(|label| label.name == name && !label.value.is_empty());
        label.map_or_else(|| own.to_owned(), |label| label.value.clone().into_owned())
    };
    put_attribute(out, key, SCRAPE_JOB, &value(JOB, &origin.target.job));
    put_attribute(out, key, SCRAPE_TARGET, &value(INSTANCE, &origin.target.target));
}

/// The same again where labels of the page take the place of the target's (`honor_labels`).
fn put_overridden(
    out: &mut Vec<u8>,
    labels: &[Label<'_>],
    skip: &str,
    key: u8,
    origin: &mut Origin,
    overridden: &[usize],
) {
    out.clear();
    out.extend_from_slice(origin.fixed(key));
    put_attribute(out, key, SCRAPE_JOB, &origin.target.job);
    put_attribute(out, key, SCRAPE_TARGET, &origin.target.target);
    for (index, (name, value)) in origin.own().iter().enumerate() {
        if !overridden.contains(&index) {
            put_attribute(out, key, name, value);
        }
    }
    for (place, label) in labels.iter().enumerate() {
        let (name, value) = (label.name.as_ref(), label.value.as_ref());
        if value.is_empty() || name == skip && !skip.is_empty() {
            continue;
        }
        match origin.fate(place, name) {
            Fate::Keep | Fate::Override(_) => put_attribute(out, key, name, value),
            Fate::Move(to) | Fate::Reserved(to) => put_attribute(out, key, &moved(to, labels), value),
            Fate::ScopeName | Fate::ScopeVersion => {}
        }
    }
}

/// Makes the sample's and the target's labels one set, as rules see it.
pub(super) fn join_target(labels: &mut Vec<Label<'_>>, origin: &mut Origin) {
    for place in 0..labels.len() {
        if let Fate::Move(to) | Fate::Reserved(to) = origin.fate(place, &labels[place].name) {
            let name = moved(to, labels);
            labels[place].name = Cow::Owned(name);
        }
    }
    let absent = |labels: &[Label<'_>], name: &str| labels.iter().all(|label| label.name != name);
    for (name, value) in [(JOB, &origin.target.job), (INSTANCE, &origin.target.target)] {
        set(labels, name, value.clone());
    }
    for (name, value) in origin.own() {
        if absent(labels, name) {
            set(labels, name, value.clone());
        }
    }
}

/// The labels of `target_info` as attributes of the resource.
pub(super) fn put_resource(out: &mut Vec<u8>, labels: &[Label<'_>], origin: &Origin, relabelled: bool) {
    // The last one of a page counts.
    out.clear();
    for label in labels {
        let (name, value) = (label.name.as_ref(), label.value.as_ref());
        let is_target = relabelled && (name == JOB || name == INSTANCE);
        if value.is_empty() || is_target {
            continue;
        }
        // The deployment is the service.
        if origin.reserves_on_resource(name) || ["service_name", "service.name"].contains(&name) {
            put_attribute(out, message(1), &exported(name, |_| false), value);
        } else {
            put_attribute(out, message(1), name, value);
        }
    }
}

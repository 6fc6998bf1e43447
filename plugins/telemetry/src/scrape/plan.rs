//! From a checked configuration to the targets that are scraped.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use enclave_protocol::scrape::{Address, Config, Job, Limits, Scheme};

use super::{
    exposition::Label,
    fetch::Fetcher,
    origin::{INSTANCE, JOB, TargetLabels},
    relabel::{self, Compiled},
};

/// Which plugin is behind a port. None when nobody said so, outside of an enclave: then every port may be
/// asked.
pub(crate) type Ports = Option<BTreeMap<u16, String>>;

/// What all targets of a job share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) rules: Vec<Compiled>,
    pub(super) limits: Limits,
    pub(super) honor_labels: bool,
    pub(super) honor_timestamps: bool,
}

/// One target, ready to be asked.
pub(super) struct Planned {
    pub(super) labels: TargetLabels,
    pub(super) shared: Arc<Shared>,
    pub(super) interval: Duration,
    pub(super) fetcher: Fetcher,
}

/// Reads `web=8080,web=8443`, as the supervisor writes it; words of another form are left out.
pub(crate) fn ports(text: &str) -> BTreeMap<u16, String> {
    let word = |word: &str| {
        let (plugin, port) = word.trim().rsplit_once('=')?;
        Some((port.parse().ok()?, plugin.to_owned()))
    };
    text.split(',').filter_map(word).collect()
}

/// Whether a target can be there at all.
pub(crate) fn reach(ports: &Ports, address: &Address) -> Result<(), String> {
    match ports {
        Some(ports) if address.is_loopback() && !ports.contains_key(&address.port) => {
            Err(format!("no other plugin declares the port {}", address.port))
        }
        _ => Ok(()),
    }
}

/// All targets; an error of one, which only its labels could show, leaves that one out.
pub(super) fn plan(config: &Config, ports: &Ports, hosts: &Path) -> (Vec<Planned>, Vec<String>) {
    let (mut planned, mut errors) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for job in &config.jobs {
        if let Err(error) = plan_job(job, config, ports, hosts, &mut seen, &mut planned) {
            errors.push(format!("job {}: {error}", job.name));
        }
    }
    (planned, errors)
}

fn plan_job(
    job: &Job,
    config: &Config,
    ports: &Ports,
    hosts: &Path,
    seen: &mut BTreeSet<String>,
    planned: &mut Vec<Planned>,
) -> Result<(), String> {
    let target_rules = Compiled::all(&job.relabel)?;
    let shared = Arc::new(Shared {
        rules: Compiled::all(&job.metric_relabel)?,
        limits: job.limits,
        honor_labels: job.honor_labels,
        honor_timestamps: job.honor_timestamps,
    });
    for group in &job.groups {
        for target in &group.targets {
            let mut labels = discovered(job, target, &group.labels);
            if !relabel::apply(&target_rules, &mut labels) {
                continue;
            }
            let scheme = match relabel::get(&labels, "__scheme__") {
                "http" => Scheme::Http,
                "https" => Scheme::Https,
                other => return Err(format!("{target}: the scheme {other:?} is not supported")),
            };
            let address = Address::parse(relabel::get(&labels, "__address__"), scheme.port())?;
            reach(ports, &address).map_err(|error| format!("{target}: {error}"))?;
            let path = path(&labels, job);
            let named = name(&labels, &address, scheme, config, ports);
            let key = format!("{} {} {:?}", named.job, named.target, named.labels);
            if !seen.insert(key) {
                return Err(format!("{target}: another target has the same labels"));
            }
            let fetcher = Fetcher::new(address, scheme, path, job, hosts.to_owned());
            let fetcher = fetcher.map_err(|error| crate::sender::chain(&error))?;
            let (shared, interval) = (Arc::clone(&shared), job.interval);
            planned.push(Planned { labels: named, shared, interval, fetcher });
        }
    }
    Ok(())
}

/// The labels that rules for targets see.
fn discovered<'l>(job: &'l Job, target: &'l str, labels: &'l BTreeMap<String, String>) -> Vec<Label<'l>> {
    let label = |name: Cow<'l, str>, value: Cow<'l, str>| Label { name, value };
    let mut all = vec![
        label("__address__".into(), target.into()),
        label("__scheme__".into(), job.scheme.word().into()),
        label("__metrics_path__".into(), job.path.as_str().into()),
        label(JOB.into(), job.name.as_str().into()),
    ];
    for (name, values) in &job.params {
        if let Some(first) = values.first() {
            all.push(label(format!("__param_{name}").into(), first.as_str().into()));
        }
    }
    for (name, value) in labels {
        relabel::set(&mut all, name, value.clone());
    }
    all
}

/// The request's path with its query; rules may have changed the first value of a parameter.
fn path(labels: &[Label<'_>], job: &Job) -> String {
    let mut path = relabel::get(labels, "__metrics_path__").to_owned();
    let mut params: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, values) in &job.params {
        params.insert(name, values.iter().skip(1).map(String::as_str).collect());
    }
    for label in labels {
        if let Some(name) = label.name.strip_prefix("__param_") {
            params.entry(name).or_default().insert(0, &label.value);
        }
    }
    let mut separator = if path.contains('?') { '&' } else { '?' };
    for (name, values) in params {
        for value in values {
            // A String takes every write.
            write!(path, "{separator}{}={}", escaped(name), escaped(value)).ok();
            separator = '&';
        }
    }
    path
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").ok();
        }
    }
    out
}

/// The labels of the target's points.
fn name(
    labels: &[Label<'_>],
    address: &Address,
    scheme: Scheme,
    config: &Config,
    ports: &Ports,
) -> TargetLabels {
    let shown = address.to_string();
    let instance = relabel::get(labels, INSTANCE);
    let plugin = ports.as_ref().filter(|_| address.is_loopback()).and_then(|ports| ports.get(&address.port));
    let own = labels.iter().filter(|label| {
        !label.name.starts_with("__")
            && label.name != JOB
            && label.name != INSTANCE
            && !label.value.is_empty()
    });
    TargetLabels {
        job: relabel::get(labels, JOB).to_owned(),
        target: if instance.is_empty() { shown } else { instance.to_owned() },
        plugin: plugin.cloned(),
        labels: own
            .map(|label| (label.name.clone().into_owned(), label.value.clone().into_owned()))
            .collect(),
        external: config.external_labels.clone(),
        resource: vec![
            ("server.address", address.host.clone()),
            ("server.port", address.port.to_string()),
            ("url.scheme", scheme.word().to_owned()),
        ],
    }
}

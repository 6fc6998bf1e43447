//! The digest of a manifest: what a policy pins and PCR 16 measures.
//!
//! SHA-384 over the RFC 8785 canonical JSON of the checked model, so that comments, key order, YAML style and
//! defaults that are written out make no difference.
//!
//! Inside: the deployment's name and namespace (every metric carries them), where log records go, per plugin
//! in start order everything that decides what runs, with what, and what it may reach; destinations sorted,
//! those of all plugins among each plugin's own.
//!
//! Files enter as the manifest names them: those of a `ConfigMap` by name, key and the SHA-384 of their
//! bytes, those of a `Secret` by name and key alone, since the hash of a short secret gives it away. A file
//! that no volume and no host name refers to never reaches a plugin and does not enter. Without files
//! (`digest FILE` without a config directory) the digest covers the manifest alone, and so differs from the
//! one with files for a manifest that names any. A host name from a file enters as its place in the file,
//! whose bytes are inside.
//!
//! Outside: host-side fields (replicas, huge pages, CPU count, pull secrets, service account, ingress,
//! certificate details), requests, and the vendor's display fields. `hostPort` is outside too: an ingress
//! stream names plugin and `containerPort`, so the host decides the number in any case. That a port can be
//! reached from the host at all is inside, as `exposed`.

mod canonical;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest as _, Sha384};

use self::canonical::Json;
use crate::control::{FileBytes, Files, LogRoute};
use crate::manifest::{
    Handler, HostLogs, Item, Limits, Manifest, Plugin, Probe, Reference, Restart, Security, Source, Volume,
};

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 48;

/// Changes whenever the canonical form does, so that digests of different forms never compare equal.
const FORM: &str = "enclave-manifest/1";

/// The digest of a manifest and its files.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; DIGEST_BYTES]);

/// A text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is {} lower-case hexadecimal digits", 2 * DIGEST_BYTES)]
pub struct DigestError;

impl Digest {
    /// The bytes, as a PCR is extended with.
    pub fn as_bytes(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl std::str::FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(DigestError),
        };
        let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
            [high, low] => Ok(digit(*high)? << 4 | digit(*low)?),
            _ => Err(DigestError),
        });
        let bytes: Vec<u8> = pairs.take(DIGEST_BYTES + 1).collect::<Result<_, _>>()?;
        bytes.try_into().map(Self).map_err(|_| DigestError)
    }
}

/// The digest of a manifest with its files; give none for the manifest alone.
pub fn digest(manifest: &Manifest, files: &Files) -> Digest {
    Digest(Sha384::digest(canonical_json(manifest, files).as_bytes()).into())
}

/// The text that is hashed, for people who compare two digests.
pub fn canonical_json(manifest: &Manifest, files: &Files) -> String {
    Json::object([
        ("form", Json::text(FORM)),
        ("name", Json::text(&manifest.name)),
        ("namespace", Json::text(&manifest.namespace)),
        ("logs", logs(manifest)),
        ("plugins", Json::List(manifest.plugins.iter().map(|one| plugin(one, manifest.host_logs)).collect())),
        ("files", named_files(manifest, files)),
    ])
    .canonical()
}

fn logs(manifest: &Manifest) -> Json {
    let host = ("host", Json::text(manifest.host_logs.word()));
    let supervisor = own_route(manifest.supervisor_logs, manifest.host_logs.of_supervisor());
    Json::object([host].into_iter().chain(supervisor.map(|route| ("supervisor", route))))
}

/// Only where it is not what `spec.logs.host` says: a manifest from before the field was there keeps its
/// digest, and so does one that writes the default out.
fn own_route(route: LogRoute, of_host: LogRoute) -> Option<Json> {
    (route != of_host).then(|| Json::text(route.word()))
}

fn plugin(plugin: &Plugin, host_logs: HostLogs) -> Json {
    let env = |(name, value): &(String, String)| Json::texts([name.as_str(), value]);
    let words = |words: &Option<Vec<String>>| {
        Json::option(words.as_ref(), |words| Json::texts(words.iter().map(String::as_str)))
    };
    let optional = |text: &Option<String>| Json::option(text.as_deref(), Json::text);
    // Only where it is set: a manifest from before the field was there keeps its digest.
    let notify_ready = plugin.notify_ready.then_some(("notifyReady", Json::Bool(true)));
    let logs = own_route(plugin.logs, host_logs.of_plugins()).map(|route| ("logs", route));
    let fields = [
        ("access", Json::texts(plugin.access.iter().map(|access| access.word()))),
        ("args", words(&plugin.args)),
        ("command", words(&plugin.command)),
        ("dependsOn", depends_on(plugin)),
        ("egress", egress(plugin)),
        ("env", Json::List(plugin.env.iter().map(env).collect())),
        ("graceMillis", millis(plugin.grace)),
        ("image", optional(&plugin.image)),
        ("kind", Json::text(kind(plugin))),
        ("limits", limits(&plugin.limits)),
        ("livenessProbe", Json::option(plugin.probes.liveness.as_ref(), probe)),
        ("name", Json::text(&plugin.name)),
        ("ports", ports(plugin)),
        ("preStop", Json::option(plugin.pre_stop.as_ref(), handler)),
        ("readinessProbe", Json::option(plugin.probes.readiness.as_ref(), probe)),
        ("restart", restart(&plugin.restart)),
        ("security", security(&plugin.security)),
        ("startupProbe", Json::option(plugin.probes.startup.as_ref(), probe)),
        ("volumes", volumes(plugin)),
        ("workingDir", optional(&plugin.working_dir)),
    ];
    Json::object(fields.into_iter().chain(notify_ready).chain(logs))
}

fn kind(plugin: &Plugin) -> &'static str {
    use crate::manifest::PluginKind;
    match plugin.kind {
        PluginKind::Telemetry => "telemetry",
        PluginKind::Service => "service",
        PluginKind::User => "user",
    }
}

fn depends_on(plugin: &Plugin) -> Json {
    let sorted: BTreeSet<&str> = plugin.depends_on.iter().map(String::as_str).collect();
    Json::texts(sorted)
}

/// Sorted: the order of rules means nothing.
fn egress(plugin: &Plugin) -> Json {
    let rule = |target: Json, port: u16, tls: bool, redirects: bool| {
        Json::object([
            ("host", target),
            ("port", Json::Number(port.into())),
            ("redirects", Json::Bool(redirects)),
            ("tls", Json::Bool(tls)),
        ])
    };
    let resolved = plugin.egress.iter().map(|egress| {
        let target = egress.source.as_ref().map_or_else(|| Json::text(&egress.fqdn), reference);
        rule(target, egress.port, egress.tls, egress.redirects)
    });
    let unresolved = plugin
        .unresolved
        .iter()
        .map(|open| rule(reference(&open.source), open.port, open.tls, open.redirects));
    let mut rules: Vec<Json> = resolved.chain(unresolved).collect();
    rules.sort_by_cached_key(Json::canonical);
    Json::List(rules)
}

fn reference(reference: &Reference) -> Json {
    Json::object([
        ("configMap", Json::text(&reference.config_map)),
        ("key", Json::text(&reference.key)),
        ("ref", Json::texts(reference.steps.iter().map(String::as_str))),
        ("type", Json::text(reference.format.word())),
    ])
}

/// Sorted by port: the order means nothing.
fn ports(plugin: &Plugin) -> Json {
    let sorted: BTreeMap<u16, bool> =
        plugin.ports.iter().map(|port| (port.container_port, port.host_port.is_some())).collect();
    let port = |(port, exposed): (u16, bool)| {
        Json::object([("containerPort", Json::Number(port.into())), ("exposed", Json::Bool(exposed))])
    };
    Json::List(sorted.into_iter().map(port).collect())
}

fn volumes(plugin: &Plugin) -> Json {
    let item = |item: &Item| Json::texts([item.key.as_str(), &item.path]);
    let volume = |volume: &Volume| {
        let (kind, name) = match &volume.source {
            Source::ConfigMap(name) => ("configMap", name),
            Source::Secret(name) => ("secret", name),
        };
        let items = Json::option(volume.items.as_ref(), |items| Json::List(items.iter().map(item).collect()));
        Json::object([
            ("containerPath", Json::text(&volume.container_path)),
            ("items", items),
            ("readOnly", Json::Bool(volume.read_only)),
            (kind, Json::text(name)),
        ])
    };
    Json::List(plugin.volumes.iter().map(volume).collect())
}

fn restart(restart: &Restart) -> Json {
    Json::object([
        ("factorThousandths", Json::Number(restart.factor_thousandths.into())),
        ("initialDelayMillis", millis(restart.delay_initial)),
        ("jitterThousandths", Json::Number(restart.jitter_thousandths.into())),
        ("maxDelayMillis", millis(restart.delay_max)),
        ("maxRestarts", Json::option(restart.restarts_max, |max| Json::Number(max.into()))),
        ("policy", Json::text(restart.policy.word())),
        ("resetAfterMillis", millis(restart.reset_after)),
    ])
}

fn probe(probe: &Probe) -> Json {
    let number = |number: u32| Json::Number(number.into());
    Json::object([
        ("failureThreshold", number(probe.failure_threshold)),
        ("handler", handler(&probe.handler)),
        ("initialDelaySeconds", number(probe.initial_delay_seconds)),
        ("periodSeconds", number(probe.period_seconds)),
        ("successThreshold", number(probe.success_threshold)),
        ("terminationGracePeriodSeconds", Json::option(probe.termination_grace_seconds, number)),
        ("timeoutSeconds", number(probe.timeout_seconds)),
    ])
}

fn handler(handler: &Handler) -> Json {
    match handler {
        Handler::Exec(command) => Json::object([("exec", Json::texts(command.iter().map(String::as_str)))]),
        Handler::TcpSocket(port) => Json::object([("tcpSocket", Json::Number((*port).into()))]),
        Handler::HttpGet(get) => {
            let header = |(name, value): &(String, String)| Json::texts([name.as_str(), value]);
            let fields = Json::object([
                ("headers", Json::List(get.headers.iter().map(header).collect())),
                ("https", Json::Bool(get.https)),
                ("path", Json::text(&get.path)),
                ("port", Json::Number(get.port.into())),
            ]);
            Json::object([("httpGet", fields)])
        }
    }
}

fn limits(limits: &Limits) -> Json {
    Json::object([
        ("cpuMillis", Json::option(limits.cpu_millis, Json::Number)),
        ("memoryBytes", Json::option(limits.memory_bytes, Json::Number)),
        ("pids", Json::option(limits.pids, |pids| Json::Number(pids.into()))),
    ])
}

fn security(security: &Security) -> Json {
    let id = |id: Option<u32>| Json::option(id, |id| Json::Number(id.into()));
    Json::object([
        ("capabilitiesAdd", Json::texts(security.capabilities_add.iter().map(String::as_str))),
        ("capabilitiesDrop", Json::texts(security.capabilities_drop.iter().map(String::as_str))),
        ("group", id(security.group)),
        ("readOnlyRoot", Json::Bool(security.read_only_root)),
        ("user", id(security.user)),
    ])
}

/// Every period of the model is below a week.
fn millis(period: Duration) -> Json {
    Json::Number(u64::try_from(period.as_millis()).unwrap_or(u64::MAX))
}

type Named<'f> = BTreeMap<&'f str, BTreeMap<&'f str, &'f FileBytes>>;

/// The files that volumes and host names refer to.
fn named_files(manifest: &Manifest, files: &Files) -> Json {
    let (mut config_maps, mut secrets) = (Named::new(), Named::new());
    for plugin in &manifest.plugins {
        for volume in &plugin.volumes {
            let (into, name) = match &volume.source {
                Source::ConfigMap(name) => (&mut config_maps, name),
                Source::Secret(name) => (&mut secrets, name),
            };
            let keys = volume.keys(files);
            if volume.source.keys(files).is_some() {
                into.entry(name).or_default().extend(keys);
            }
        }
        for source in plugin.egress.iter().filter_map(|egress| egress.source.as_ref()) {
            let file = files.config_maps.get(&source.config_map).and_then(|keys| keys.get(&source.key));
            if let Some(bytes) = file {
                config_maps.entry(&source.config_map).or_default().insert(&source.key, bytes);
            }
        }
    }
    let hashes = |keys: BTreeMap<&str, &FileBytes>| {
        let hash =
            |(key, bytes): (&str, &FileBytes)| (key.to_owned(), Json::Text(hex(&Sha384::digest(&bytes.0))));
        Json::Object(keys.into_iter().map(hash).collect())
    };
    let object = |named: Named<'_>, keys: &dyn Fn(BTreeMap<&str, &FileBytes>) -> Json| {
        Json::Object(named.into_iter().map(|(name, all)| (name.to_owned(), keys(all))).collect())
    };
    Json::object([
        ("configMaps", object(config_maps, &hashes)),
        ("secrets", object(secrets, &|keys| Json::texts(keys.into_keys()))),
    ])
}

/// Lower-case hexadecimal, as digests, registers and tokens are written.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("invariant: a String takes every write");
        text
    })
}

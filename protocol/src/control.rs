//! The control API's types: JSON over HTTP/1.1 on port [`CONTROL_PORT`]. See the contract for the calls.
//!
//! Every type here is a wire type: renaming a field is a format change.

mod pod;

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use self::pod::Pod;
use crate::{telemetry::TelemetryStatus, timestamp::Timestamp};

/// vsock port on which the enclave answers the control API. Above 65535, so that it never meets a TCP port.
pub const CONTROL_PORT: u32 = 100_000;
/// vsock port on which the enclave accepts ingress streams.
pub const INGRESS_PORT: u32 = 100_001;
/// vsock port on which the host accepts egress streams unless it tells another one with the manifest.
pub const EGRESS_PORT: u32 = 100_002;

/// Longest manifest text, in bytes: etcd, where these manifests come from, refuses larger objects anyway.
pub const MANIFEST_BYTES_MAX: usize = 1 << 20;
/// All synced files together, decoded, in bytes.
pub const FILES_BYTES_MAX: usize = 8 << 20;
/// How many synced files one manifest may bring.
pub const FILES_MAX: usize = 1000;
/// Longest body of `PUT /v1/manifest`: the text may double as JSON escapes, base64 grows by a third.
pub const MANIFEST_BODY_MAX: usize = 2 * MANIFEST_BYTES_MAX + FILES_BYTES_MAX / 3 * 4 + (256 << 10);
/// Longest body of every other request, in bytes.
pub const BODY_MAX: usize = 16 << 10;
/// Longest time from the first byte of a request to its last.
pub const REQUEST_SECONDS_MAX: u64 = 30;
/// Bytes of the session token before it is written as hexadecimal.
pub const TOKEN_BYTES: usize = 32;

/// Type of the condition and of the problem (503) by which a supervisor whose boot failed says so. It takes
/// no manifest, and powers off.
pub const BOOT_FAILED: &str = "BootFailed";

/// The body of `PUT /v1/manifest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManifestRequest {
    /// The manifest's YAML text.
    pub manifest: String,
    /// The files its volumes and references name.
    #[serde(default)]
    pub files: Files,
    /// For a `signed` policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The vsock port on which the host takes egress streams.
    pub egress_port: u32,
    /// Unique per enclave; becomes `service.instance.id`, of which readers make the `instance` label.
    pub instance_id: String,
    /// The pod that the host says it is. Older hosts say nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

/// One group of synced files: name → key → bytes.
pub type FileTree = BTreeMap<String, BTreeMap<String, FileBytes>>;

/// Files delivered beside the manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Files {
    /// `ConfigMap` name → key → bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_maps: FileTree,
    /// `Secret` name → key → bytes. Their bytes are never hashed or logged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: FileTree,
}

/// A file's bytes; base64 on the wire. `Debug` shows the length alone, since it may be a secret.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct FileBytes(
    /// The decoded bytes.
    pub Vec<u8>,
);

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for FileBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for FileBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text.as_bytes()).map(FileBytes).map_err(de::Error::custom)
    }
}

/// The 200 answer to `PUT /v1/manifest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestAccepted {
    /// Lower-case hexadecimal SHA-384.
    pub digest: String,
    /// Random per boot of the supervisor.
    pub boot_id: String,
    /// Bearer token for every later call, hexadecimal.
    pub token: String,
    /// What the enclave derived from the manifest; the host compares it with its own reading.
    pub plan: Plan,
    /// What is accepted but not in force, and other remarks.
    pub conditions: Vec<Condition>,
}

/// What the manifest comes down to. Both sides derive it on their own and compare.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Plugin names in start order.
    pub plugins: Vec<String>,
    /// Allowed egress, sorted.
    pub egress: Vec<EgressRule>,
    /// Declared ingress, sorted.
    pub ingress: Vec<IngressRule>,
}

/// One allowed destination of one plugin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressRule {
    /// The plugin that may use it.
    pub plugin: String,
    /// Normalised: lower case, no trailing dot.
    pub fqdn: String,
    /// TCP port.
    pub port: u16,
    /// Whether the stream must open with a TLS `ClientHello` whose SNI is `fqdn`.
    pub tls: bool,
}

/// One declared port: host TCP `host_port` leads to `container_port` of `plugin`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IngressRule {
    /// TCP port on which host-proxy listens.
    pub host_port: u16,
    /// The plugin that serves it.
    pub plugin: String,
    /// The plugin's TCP port.
    pub container_port: u16,
}

/// A remark about the running configuration, as Kubernetes conditions are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// One word: `NotImplemented`, `ManifestDrift`, `PolicyOpen`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// For people.
    pub message: String,
}

/// An RFC 9457 problem document: the body of every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable word a program may branch on: `ManifestInvalid`, `PolicyRefused`, `Unauthorized`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for people, in a few words.
    pub title: String,
    /// The HTTP status again.
    pub status: u16,
    /// This occurrence.
    pub detail: String,
    /// Every mistake found in a manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Diagnostic>,
}

/// One mistake in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Diagnostic {
    /// 1-based line in the YAML text.
    pub line: usize,
    /// 1-based column, in characters.
    pub column: usize,
    /// YAML path such as `spec.userPlugins[0].ports[1].hostPort`; empty for the whole document.
    pub path: String,
    /// What is wrong and, where it helps, what would be right.
    pub message: String,
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = if self.path.is_empty() { "(document)" } else { &self.path };
        write!(f, "{}:{}: {}: {}", self.line, self.column, path, self.message)
    }
}

/// The answer to `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Random per boot of the supervisor.
    pub boot_id: String,
    /// Digest of the accepted manifest.
    pub digest: Option<String>,
    /// `metadata.name` of the accepted manifest.
    pub deployment: Option<String>,
    /// What the deployment as a whole does.
    pub phase: Phase,
    /// Every user plugin is ready and none is in a crash loop.
    pub ready: bool,
    /// Remarks.
    pub conditions: Vec<Condition>,
    /// Sequence number of the newest event in this status; what `statusSeq` acknowledges.
    pub seq: u64,
    /// Sequence number of the newest log record.
    pub log_seq: u64,
    /// Registers of the Nitro Secure Module by name (`PCR0`, …), in lower-case hexadecimal: what the image is
    /// and, from the accepted manifest on, `PCR16`. Empty where there is no such module.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measurements: BTreeMap<String, String>,
    /// In start order.
    pub plugins: Vec<PluginStatus>,
    /// What the telemetry plugin last said of its exports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<TelemetryStatus>,
}

impl Status {
    /// Why the enclave will never take a manifest, if its boot failed.
    pub fn boot_failure(&self) -> Option<&str> {
        let failure = self.conditions.iter().find(|condition| condition.kind == BOOT_FAILED);
        failure.filter(|_| self.phase == Phase::Failed).map(|condition| condition.message.as_str())
    }
}

/// The life of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing accepted yet.
    AwaitingManifest,
    /// Plugins run or are being started.
    Running,
    /// A drain, or the end of the workload: plugins are being stopped in order.
    Stopping,
    /// Every user plugin ended and succeeded, or a drain ended in order.
    Completed,
    /// A user plugin failed for good, or the boot did: see [`BOOT_FAILED`].
    Failed,
}

impl Phase {
    /// The word for people, which is the one on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::AwaitingManifest => "AwaitingManifest",
            Self::Running => "Running",
            Self::Stopping => "Stopping",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
        }
    }
}

/// One plugin in [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginStatus {
    /// The plugin's name.
    pub name: String,
    /// What it does now.
    pub phase: PluginPhase,
    /// One word why: `CrashLoopBackOff`, `Error`, `OOMKilled`, `StartError`, `Completed`, …
    pub reason: Option<String>,
    /// Whether it counts as ready.
    pub ready: bool,
    /// Restarts since the manifest was accepted.
    pub restarts: u32,
    /// Process id as the supervisor sees it.
    pub pid: Option<u32>,
    /// How the last run ended.
    pub last_exit: Option<LastExit>,
    /// When the next start is due.
    pub next_restart: Option<Timestamp>,
    /// Since when the plugin is in this phase.
    pub since: Timestamp,
    /// More about the reason, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Runs in which the out-of-memory killer struck.
    #[serde(default)]
    pub oom_kills: u64,
    /// What the present run's probes say, in the order of [`ProbeKind`]; only those that the manifest has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeStatus>,
}

/// What one probe of a plugin's present run has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeStatus {
    /// Which.
    pub kind: ProbeKind,
    /// Whether it counts as passing, thresholds considered; none before it has counted either way.
    pub passing: Option<bool>,
    /// Failures in a row up to now.
    pub failures: u32,
    /// What the last failure was, for people; it stays until a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The ways in which a plugin is asked, or tells, how it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeKind {
    /// `startupProbe`.
    Startup,
    /// `livenessProbe`.
    Liveness,
    /// `readinessProbe`.
    Readiness,
    /// `READY=1` on the plugin's notification socket.
    Notify,
}

impl ProbeKind {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Notify => "notify",
        }
    }
}

/// What one plugin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PluginPhase {
    /// Waits for plugins that start earlier.
    Waiting,
    /// Its process is being made.
    Starting,
    /// Its process runs.
    Running,
    /// It ended and will be started again.
    BackingOff,
    /// It was told to stop.
    Stopping,
    /// It ended with success and stays down.
    Completed,
    /// It ended without success and stays down.
    Failed,
    /// It was stopped by a drain.
    Stopped,
}

impl PluginPhase {
    /// The word for people, which is the one on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::BackingOff => "BackingOff",
            Self::Stopping => "Stopping",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
            Self::Stopped => "Stopped",
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastExit {
    /// Exit code, when it ended by itself.
    pub code: Option<i32>,
    /// Signal number, when a signal ended it.
    pub signal: Option<i32>,
    /// Whether the kernel's out-of-memory killer ended it.
    pub oom: bool,
    /// Why it could not be started at all, with the errno's name.
    pub error: Option<String>,
    /// When.
    pub time: Timestamp,
}

/// One line of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Starts at 1; no gaps unless the ring overflowed.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// The plugin it is about; none for the deployment.
    pub plugin: Option<String>,
    /// What happened, as one word: `Started`, `Exited`, `BackOff`, `NetRestarted`, …
    pub reason: String,
    /// The same for people.
    pub message: String,
}

/// Where the log records of a source go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogRoute {
    /// To host-proxy, which writes them to its standard output.
    #[default]
    Host,
    /// To the telemetry plugin, which sends them to its collector: the host gets none of them.
    Otlp,
    /// Nowhere: they are read and forgotten.
    None,
}

impl LogRoute {
    /// Every route.
    pub const ALL: [Self; 3] = [Self::Host, Self::Otlp, Self::None];

    /// The word in the manifest.
    pub fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Otlp => "otlp",
            Self::None => "none",
        }
    }
}

/// Where a log record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// A plugin's standard output.
    Stdout,
    /// A plugin's standard error.
    Stderr,
    /// The supervisor's own record; `text` is its JSON line.
    Supervisor,
}

/// One line of `GET /v1/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogRecord {
    /// One sequence for all sources, starting at 1.
    pub seq: u64,
    /// When the line was read from the plugin.
    pub time: Timestamp,
    /// The plugin's name; `supervisor` for the supervisor's own records.
    pub plugin: String,
    /// Which stream.
    pub stream: LogStream,
    /// The line, when it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The line's bytes, when it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<FileBytes>,
    /// The line goes on in the next record of this plugin and stream: it is longer than a record may be, or
    /// its end was not written for a while.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// How many records directly before this one are lost: pushed out of their ring, or above their plugin's
    /// rate.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes the field by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The header of the answer to `GET /v1/logs` that names the boot: sequence numbers are its own, and an
/// acknowledgement names it.
pub const BOOT_ID_HEADER: &str = "enclave-boot-id";

/// The body of `POST /v1/ack`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AckRequest {
    /// Must be the running boot's, else 409.
    pub boot_id: String,
    /// Log records up to here are shipped and may be forgotten.
    pub log_seq: u64,
    /// The status with this `seq` is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_seq: Option<u64>,
}

/// The body of `PUT /v1/clock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClockRequest {
    /// The host's wall clock: nanoseconds since 1970, read right before the request is sent.
    pub unix_nanos: u64,
}

/// The body of `POST /v1/drain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainRequest {
    /// Upper bound of the whole drain.
    pub grace_seconds: u32,
}

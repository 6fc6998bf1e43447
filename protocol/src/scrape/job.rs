//! One job of `scrape_configs`.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Address, Context, INTERVAL, INTERVAL_MAX, INTERVAL_MIN, JOBS_MAX, Limits, Rule, TARGETS_MAX, TIMEOUT,
    check_labels, refuse, rule, units,
};
use crate::manifest::{
    cursor::{Cursor, Mapping},
    node::Value,
    scalar::quoted,
};

/// Longest name of a job: a label's value.
const JOB_NAME_BYTES_MAX: usize = 253;
/// Most groups in one job.
const GROUPS_MAX: usize = 64;
/// Most values of one query parameter.
const VALUES_MAX: usize = 64;

/// How a page is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Where a target without a port listens.
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The value of the `Authorization` header. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// User and password.
    Basic(String, String),
    /// Type (`Bearer`) and credentials.
    Token(String, String),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth(..)")
    }
}

/// How the target's certificate is judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of authorities in the plugin's file system, instead of the public ones.
    pub ca_file: Option<String>,
    /// The certificate's name, when it is not the target's.
    pub server_name: Option<String>,
}

/// Targets that share labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// As written, checked.
    pub targets: Vec<String>,
    /// On every sample of these targets.
    pub labels: BTreeMap<String, String>,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Unique in the file.
    pub name: String,
    /// Between two scrapes of a target.
    pub interval: Duration,
    /// No longer than the interval.
    pub timeout: Duration,
    /// How.
    pub scheme: Scheme,
    /// Begins with `/`.
    pub path: String,
    /// The query's parameters.
    pub params: BTreeMap<String, Vec<String>>,
    /// Whether a page's label wins over the target's of the same name.
    pub honor_labels: bool,
    /// Whether a page's timestamps are kept.
    pub honor_timestamps: bool,
    /// Whether gzip is asked for.
    pub compression: bool,
    /// Credentials.
    pub auth: Option<Auth>,
    /// TLS.
    pub tls: Tls,
    /// Bounds.
    pub limits: Limits,
    /// Targets.
    pub groups: Vec<Group>,
    /// `relabel_configs`, on targets.
    pub relabel: Vec<Rule>,
    /// `metric_relabel_configs`, on samples.
    pub metric_relabel: Vec<Rule>,
}

/// What `global` sets for every job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inherited {
    interval: Duration,
    timeout: Duration,
    limits: Limits,
}

impl Default for Inherited {
    fn default() -> Self {
        Self { interval: INTERVAL, timeout: TIMEOUT, limits: Limits::DEFAULT }
    }
}

impl Inherited {
    /// The fields that stand in `global` as well as in a job.
    pub(super) fn read(&mut self, fields: &mut Mapping<'_>) {
        let before = *self;
        if let Some(interval) = fields.field("scrape_interval").and_then(|c| check_period(&c)) {
            self.interval = interval;
        }
        let timeout = fields.field("scrape_timeout");
        match timeout.as_ref().and_then(check_period) {
            Some(own) if own > self.interval => {
                let message = format!("longer than the scrape_interval of {:?}", self.interval);
                if let Some(cursor) = &timeout {
                    cursor.error(message);
                }
            }
            Some(own) => self.timeout = own,
            // As Prometheus does.
            None => self.timeout = before.timeout.min(self.interval),
        }
        self.limits.read(fields);
    }
}

impl Limits {
    fn read(&mut self, fields: &mut Mapping<'_>) {
        if let Some(field) = fields.field("body_size_limit")
            && let Some(bytes) = field.scalar_text("a size").and_then(|text| field.checked(units::size(text)))
        {
            self.body = bounded(&field, bytes, Self::DEFAULT.body, Self::MAX.body);
        }
        let mut count = |name: &'static str, value: &mut usize, default: usize, max: usize| {
            if let Some(field) = fields.field(name)
                && let Some(number) = field.integer(0..=u64::from(u32::MAX))
            {
                *value = bounded(&field, number, default, max);
            }
        };
        let (default, max) = (Self::DEFAULT, Self::MAX);
        count("sample_limit", &mut self.samples, default.samples, max.samples);
        count("label_limit", &mut self.labels, default.labels, max.labels);
        count("label_name_length_limit", &mut self.name_bytes, default.name_bytes, max.name_bytes);
        count("label_value_length_limit", &mut self.value_bytes, default.value_bytes, max.value_bytes);
    }
}

/// A limit; 0 is the default.
fn bounded(field: &Cursor<'_>, number: u64, default: usize, max: usize) -> usize {
    match usize::try_from(number) {
        Ok(0) => default,
        Ok(number) if number <= max => number,
        _ => {
            field.error(format!("{number} is more than the plugin allows: at most {max}"));
            default
        }
    }
}

fn check_period(cursor: &Cursor<'_>) -> Option<Duration> {
    let period = cursor.checked(units::duration(cursor.scalar_text("a duration")?))?;
    if (INTERVAL_MIN..=INTERVAL_MAX).contains(&period) {
        return Some(period);
    }
    cursor.error(format!("expected a duration from {INTERVAL_MIN:?} to {INTERVAL_MAX:?}, found {period:?}"));
    None
}

pub(super) fn check_all(list: &Cursor<'_>, inherited: &Inherited, context: &Context<'_>) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut targets = 0;
    for item in list.items(JOBS_MAX) {
        let Some(job) = check(&item, *inherited, context) else { continue };
        if let Some(first) = names.insert(job.name.clone(), item.path.clone())
            && !job.name.is_empty()
        {
            item.error(format!("the job_name {} is already used at {first}", quoted(&job.name)));
        }
        targets += job.groups.iter().map(|group| group.targets.len()).sum::<usize>();
        jobs.push(job);
    }
    if targets > TARGETS_MAX {
        list.error(format!("{targets} targets are too many: the limit is {TARGETS_MAX}"));
    }
    jobs
}

fn check(cursor: &Cursor<'_>, mut inherited: Inherited, context: &Context<'_>) -> Option<Job> {
    let mut fields = cursor.mapping()?;
    let name = fields.required("job_name").and_then(|c| check_name(&c));
    inherited.read(&mut fields);
    let flag = |field: Option<Cursor<'_>>, default| field.and_then(|c| c.boolean()).unwrap_or(default);
    let schemes = [Scheme::Http, Scheme::Https].map(|scheme| (scheme.word(), scheme));
    let scheme = fields.field("scheme").and_then(|c| c.word(&schemes)).unwrap_or(Scheme::Http);
    let path = fields.field("metrics_path").and_then(|c| check_path(&c));
    let params = fields.field("params").map(|map| check_params(&map)).unwrap_or_default();
    let honor_labels = flag(fields.field("honor_labels"), false);
    let honor_timestamps = flag(fields.field("honor_timestamps"), true);
    let compression = flag(fields.field("enable_compression"), true);
    if let Some(follow) = fields.field("follow_redirects")
        && follow.boolean() == Some(true)
    {
        follow.error("redirects are not followed: write the final address");
    }
    let auth = check_auth(&mut fields);
    let tls = fields.field("tls_config").and_then(|c| check_tls(&c, scheme)).unwrap_or_default();
    let groups = fields.field("static_configs");
    let groups = groups.map(|list| check_groups(&list, scheme, context)).unwrap_or_default();
    let mut rules = |name| fields.field(name).map(|c| rule::check_all(&c, context)).unwrap_or_default();
    let (relabel, metric_relabel) = (rules("relabel_configs"), rules("metric_relabel_configs"));
    refuse_the_rest(cursor, &mut fields);
    fields.finish();
    let Inherited { interval, timeout, limits } = inherited;
    Some(Job {
        name: name.unwrap_or_default(),
        interval,
        timeout,
        scheme,
        path: path.unwrap_or_else(|| "/metrics".to_owned()),
        params,
        honor_labels,
        honor_timestamps,
        compression,
        auth,
        tls,
        limits,
        groups,
        relabel,
        metric_relabel,
    })
}

fn check_name(cursor: &Cursor<'_>) -> Option<String> {
    let name = cursor.scalar_text("a name")?;
    if name.is_empty() || name.len() > JOB_NAME_BYTES_MAX {
        cursor.error(format!("a job's name has 1 to {JOB_NAME_BYTES_MAX} bytes"));
        return None;
    }
    Some(name.to_owned())
}

fn check_path(cursor: &Cursor<'_>) -> Option<String> {
    let path = cursor.string()?;
    if path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()) && !path.contains('#') {
        return Some(path.to_owned());
    }
    cursor.error(format!("{} is not a valid path: it begins with / and has no blanks", quoted(path)));
    None
}

fn check_params(map: &Cursor<'_>) -> BTreeMap<String, Vec<String>> {
    let values = |list: &Cursor<'_>| -> Vec<String> {
        list.items(VALUES_MAX).iter().filter_map(|c| c.scalar_text("a value").map(str::to_owned)).collect()
    };
    map.entries().into_iter().map(|(name, _, list)| (name.to_owned(), values(&list))).collect()
}

fn check_groups(list: &Cursor<'_>, scheme: Scheme, context: &Context<'_>) -> Vec<Group> {
    let mut groups = Vec::new();
    for item in list.items(GROUPS_MAX) {
        let Some(mut fields) = item.mapping() else { continue };
        let mut targets = Vec::new();
        if let Some(list) = fields.required("targets") {
            for target in list.items(TARGETS_MAX) {
                let Some(text) = target.string_of("host:port") else { continue };
                let Some(address) = target.checked(Address::parse(text, scheme.port())) else { continue };
                if let Some(Err(message)) = context.reach.map(|reach| reach(&address)) {
                    target.error(message);
                }
                targets.push(text.to_owned());
            }
        }
        let labels = fields.field("labels").map(|map| check_labels(&map)).unwrap_or_default();
        fields.finish();
        groups.push(Group { targets, labels });
    }
    groups
}

fn check_auth(fields: &mut Mapping<'_>) -> Option<Auth> {
    let basic = fields.field("basic_auth");
    let token = fields.field("authorization");
    if let (Some(_), Some(token)) = (&basic, &token) {
        token.error("a job has either basic_auth or authorization");
    }
    if let Some(basic) = basic {
        let mut fields = basic.mapping()?;
        let user = fields.field("username").and_then(|c| secret(&c)).unwrap_or_default();
        let password = fields.field("password").and_then(|c| secret(&c)).unwrap_or_default();
        refuse_files(&mut fields, &["username_file", "password_file"]);
        fields.finish();
        return Some(Auth::Basic(user, password));
    }
    let mut fields = token?.mapping()?;
    let kind = fields.field("type").and_then(|c| secret(&c)).unwrap_or_else(|| "Bearer".to_owned());
    let credentials = fields.required("credentials").and_then(|c| secret(&c));
    refuse_files(&mut fields, &["credentials_file"]);
    fields.finish();
    Some(Auth::Token(kind, credentials?))
}

/// A text that goes into a header and never into a message.
fn secret(cursor: &Cursor<'_>) -> Option<String> {
    let Value::Scalar(scalar) = &cursor.node.value else {
        cursor.error("expected a string");
        return None;
    };
    if scalar.text.chars().any(char::is_control) {
        cursor.error("control characters cannot stand in a header");
        return None;
    }
    Some(scalar.text.clone())
}

fn refuse_files(fields: &mut Mapping<'_>, names: &[&'static str]) {
    for name in names {
        if let Some(cursor) = fields.field(name) {
            cursor.error(format!(
                "{name} is not supported: write the value here and mount this file from a Secret"
            ));
        }
    }
}

fn check_tls(cursor: &Cursor<'_>, scheme: Scheme) -> Option<Tls> {
    let mut fields = cursor.mapping()?;
    if scheme == Scheme::Http {
        cursor.error("tls_config without scheme: https has no effect");
    }
    let ca_file = fields.field("ca_file").and_then(|c| c.string().map(str::to_owned));
    let server_name = fields.field("server_name").and_then(|c| c.string().map(str::to_owned));
    if let Some(skip) = fields.field("insecure_skip_verify")
        && skip.boolean() == Some(true)
    {
        skip.error("certificates are always verified: name the authority in ca_file");
    }
    for name in [
        "ca",
        "ca_ref",
        "cert",
        "cert_file",
        "cert_ref",
        "key",
        "key_file",
        "key_ref",
        "min_version",
        "max_version",
    ] {
        if let Some(cursor) = fields.field(name) {
            cursor.error(format!("{name} is not supported: tls_config has ca_file and server_name"));
        }
    }
    fields.finish();
    Some(Tls { ca_file, server_name })
}

/// What Prometheus has and the plugin has not.
fn refuse_the_rest(cursor: &Cursor<'_>, fields: &mut Mapping<'_>) {
    const PROTOBUF: &str = "native histograms and protobuf are not read";
    const AUTH: &str = "use basic_auth or authorization";
    const CERTAIN: &str = "OpenMetrics and text are read, told apart by Content-Type";
    refuse(
        fields,
        &[
            ("proxy_url", "targets are in the enclave or allowed by an outbound connection"),
            ("proxy_from_environment", "there is no proxy"),
            ("proxy_connect_header", "there is no proxy"),
            ("no_proxy", "there is no proxy"),
            ("oauth2", AUTH),
            ("sigv4", AUTH),
            ("http_headers", AUTH),
            ("bearer_token", "use authorization"),
            ("bearer_token_file", "use authorization"),
            ("enable_http2", "pages are asked for by HTTP/1.1"),
            ("scrape_protocols", CERTAIN),
            ("fallback_scrape_protocol", CERTAIN),
            ("scrape_native_histograms", PROTOBUF),
            ("scrape_classic_histograms", PROTOBUF),
            ("always_scrape_classic_histograms", PROTOBUF),
            ("convert_classic_histograms_to_nhcb", PROTOBUF),
            ("native_histogram_bucket_limit", PROTOBUF),
            ("native_histogram_min_bucket_factor", PROTOBUF),
            ("target_limit", "the number of targets is bounded for the whole file"),
            ("keep_dropped_targets", "dropped targets are not kept"),
            ("track_timestamps_staleness", "every series ends with a marker"),
            ("scrape_failure_log_file", "failures are log records"),
            ("metric_name_validation_scheme", "all names are accepted"),
            ("metric_name_escaping_scheme", "names are never escaped"),
        ],
    );
    let Value::Mapping(entries) = &cursor.node.value else { return };
    for entry in entries.iter().filter(|entry| entry.key.ends_with("_sd_configs")) {
        let field = fields.named(&entry.key);
        field.error_at(entry.position, "service discovery is not supported: write static_configs");
    }
}

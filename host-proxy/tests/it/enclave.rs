//! A fake enclave: the control API and an ingress echo behind the hybrid socket, with knobs for its failures.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use enclave_protocol::{
    control::{
        AckRequest, BOOT_FAILED, CONTROL_PORT, ClockRequest, Condition, Diagnostic, DrainRequest, Event,
        INGRESS_PORT, LastExit, LogRecord, LogStream, ManifestAccepted, ManifestRequest, Phase, PluginPhase,
        PluginStatus, Problem, Status,
    },
    digest::digest,
    manifest::{self, Context},
    metrics::{self, Family, Point, Sample},
    stream::{FIXED_LEN, Header, Reply, ReplyStatus},
    timestamp::Timestamp,
    transport::{Host, Stream},
};
use http_body_util::{BodyExt, Either, Full, channel::Channel};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// Everything that a test looks at or turns.
#[derive(Debug, Clone)]
pub(crate) struct Inside {
    pub(crate) boot_id: String,
    pub(crate) token: Option<String>,
    pub(crate) request: Option<ManifestRequest>,
    pub(crate) status: Status,
    pub(crate) logs: Vec<LogRecord>,
    pub(crate) acks: Vec<AckRequest>,
    pub(crate) drains: Vec<DrainRequest>,
    pub(crate) puts: usize,
    /// What a PUT answers instead of 200.
    pub(crate) refuse: Option<Problem>,
    /// Makes the answered plan differ.
    pub(crate) lie: bool,
    /// Log streams end after so many records.
    pub(crate) cut_logs_after: Option<usize>,
    pub(crate) log_requests: Vec<u64>,
    /// When the clock was told, by the runtime's time, and what.
    pub(crate) clocks: Vec<(Instant, u64)>,
    /// What `PUT /v1/clock` answers instead of 200.
    pub(crate) refuse_clock: Option<Problem>,
    /// Logged when the final status is first acknowledged.
    pub(crate) late_log: Option<String>,
}

impl Inside {
    fn log(&mut self, text: &str) {
        let seq = self.status.log_seq + 1;
        self.status.log_seq = seq;
        self.logs.push(LogRecord {
            seq,
            time: Timestamp(seq),
            plugin: "app".into(),
            stream: LogStream::Stdout,
            text: Some(text.into()),
            base64: None,
            partial: false,
            dropped: 0,
        });
    }

    /// The end is acknowledged: a real enclave powers off now.
    fn is_over(&self) -> bool {
        let ended = matches!(self.status.phase, Phase::Completed | Phase::Failed);
        ended
            && self
                .acks
                .iter()
                .any(|ack| ack.log_seq >= self.status.log_seq && ack.status_seq >= Some(self.status.seq))
    }
}

/// A running fake; dropping it closes everything.
pub(crate) struct Enclave {
    pub(crate) path: PathBuf,
    pub(crate) inside: watch::Sender<Inside>,
    task: JoinSet<()>,
}

impl Enclave {
    pub(crate) fn start(dir: &Path, boot_id: &str) -> Self {
        let path = dir.join("v.sock");
        let listener = Host::Unix(path.clone()).listen(0).unwrap();
        let status = Status {
            boot_id: boot_id.into(),
            digest: None,
            deployment: None,
            phase: Phase::AwaitingManifest,
            ready: false,
            conditions: vec![],
            seq: 0,
            log_seq: 0,
            plugins: vec![],
            measurements: BTreeMap::new(),
            telemetry: None,
        };
        let inside = watch::Sender::new(Inside {
            boot_id: boot_id.into(),
            token: None,
            request: None,
            status,
            logs: vec![],
            acks: vec![],
            drains: vec![],
            puts: 0,
            refuse: None,
            lie: false,
            cut_logs_after: None,
            log_requests: vec![],
            clocks: vec![],
            refuse_clock: Some(refusal(409, "ClockNotManaged", vec![])),
            late_log: None,
        });
        let mut task = JoinSet::new();
        let served = inside.clone();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            let mut news = served.subscribe();
            loop {
                let incoming = tokio::select! {
                    incoming = listener.accept() => incoming.unwrap(),
                    _ = news.wait_for(Inside::is_over) => break,
                };
                let inside = served.clone();
                connections.spawn(async move {
                    let known = |port| port == CONTROL_PORT || port == INGRESS_PORT;
                    match incoming.handshake(known).await {
                        Ok((stream, CONTROL_PORT)) => control(stream, inside).await,
                        Ok((stream, _)) => ingress(stream).await,
                        Err(error) => panic!("{error}"),
                    }
                });
            }
        });
        Self { path, inside, task }
    }

    /// Powers it off: when this returns nothing listens any more.
    pub(crate) async fn power_off(mut self) {
        self.task.shutdown().await;
    }

    /// Waits until this holds. Where time is paused and nothing else goes on, a day is over at once: a proxy
    /// that has ended is a failure there, and no hang.
    pub(crate) async fn until(&self, holds: impl FnMut(&Inside) -> bool) -> Inside {
        let mut inside = self.inside.subscribe();
        let found = timeout(Duration::from_hours(24), inside.wait_for(holds)).await;
        found.expect("what is waited for comes").unwrap().clone()
    }

    pub(crate) fn log(&self, text: &str) {
        self.inside.send_modify(|inside| inside.log(text));
    }

    pub(crate) fn set_plugin(&self, phase: PluginPhase, ready: bool, exit: Option<LastExit>) {
        self.change_plugin(|plugin| {
            plugin.phase = phase;
            plugin.ready = ready;
            plugin.last_exit = exit;
        });
    }

    /// The deployment is as ready as its one plugin.
    pub(crate) fn change_plugin(&self, change: impl FnOnce(&mut PluginStatus)) {
        self.inside.send_modify(|inside| {
            let plugin = &mut inside.status.plugins[0];
            change(plugin);
            inside.status.ready = plugin.ready;
            inside.status.seq += 1;
        });
    }

    /// Something else in the status is new.
    pub(crate) fn change_status(&self, change: impl FnOnce(&mut Status)) {
        self.inside.send_modify(|inside| {
            change(&mut inside.status);
            inside.status.seq += 1;
        });
    }

    /// The boot has failed; `told` also in the status, and not in the answer to a manifest alone.
    pub(crate) fn fail_boot(&self, reason: &str, told: bool) {
        self.inside.send_modify(|inside| {
            let problem = refusal(503, BOOT_FAILED, vec![]);
            inside.refuse = Some(Problem { detail: reason.to_owned(), ..problem });
            if told {
                inside.status.phase = Phase::Failed;
                inside.status.seq += 1;
                inside.status.conditions =
                    vec![Condition { kind: BOOT_FAILED.to_owned(), message: reason.to_owned() }];
            }
        });
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.inside.send_modify(|inside| {
            inside.status.phase = phase;
            inside.status.seq += 1;
        });
    }
}

async fn control(stream: Stream, inside: watch::Sender<Inside>) {
    let streams = Arc::new(Mutex::new(JoinSet::new()));
    let service = service_fn(move |request| {
        let (inside, streams) = (inside.clone(), Arc::clone(&streams));
        async move { Ok::<_, Infallible>(answer(request, inside, &streams).await) }
    });
    // The proxy closes its connections as it likes.
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

async fn answer(
    request: Request<Incoming>,
    inside: watch::Sender<Inside>,
    streams: &Mutex<JoinSet<()>>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let bearer = head.headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    let token = inside.borrow().token.clone();
    let path = head.uri.path();
    if path != "/v1/status" && token.is_some() && bearer != token.map(|token| format!("Bearer {token}")) {
        return problem(401, "Unauthorized");
    }
    let after = || {
        let query = head.uri.query().unwrap_or_default();
        let value = query.split('&').find_map(|pair| pair.strip_prefix("after=")).unwrap();
        (value.parse::<u64>().unwrap(), query.contains("follow=true"))
    };
    match (head.method, path) {
        (Method::PUT, "/v1/manifest") => put(&inside, &body),
        (Method::GET, "/v1/status") => json(&inside.borrow().status),
        (Method::GET, "/v1/metrics") => json(&sample()),
        (Method::POST, "/v1/ack") => {
            let ack: AckRequest = serde_json::from_slice(&body).unwrap();
            inside.send_modify(|inside| {
                if ack.status_seq.is_some()
                    && let Some(late) = inside.late_log.take()
                {
                    inside.log(&late);
                }
                inside.acks.push(ack);
            });
            json(&())
        }
        (Method::POST, "/v1/drain") => {
            let drain: DrainRequest = serde_json::from_slice(&body).unwrap();
            inside.send_modify(|inside| {
                inside.drains.push(drain);
                inside.status.phase = Phase::Stopping;
                inside.status.seq += 1;
            });
            json(&())
        }
        (Method::PUT, "/v1/clock") => {
            let clock: ClockRequest = serde_json::from_slice(&body).unwrap();
            inside.send_modify(|inside| inside.clocks.push((Instant::now(), clock.unix_nanos)));
            inside.borrow().refuse_clock.as_ref().map_or_else(|| json(&()), problem_of)
        }
        (Method::GET, "/v1/logs") => {
            let (after, follow) = after();
            inside.send_modify(|inside| inside.log_requests.push(after));
            let (sender, body) = Channel::new(1);
            streams.lock().unwrap().spawn(logs(sender, inside, after, follow));
            Response::new(Either::Right(body))
        }
        (Method::GET, "/v1/events") => {
            let (after, _) = after();
            let (sender, body) = Channel::new(1);
            streams.lock().unwrap().spawn(events(sender, inside, after));
            Response::new(Either::Right(body))
        }
        (method, path) => panic!("{method} {path}"),
    }
}

fn put(inside: &watch::Sender<Inside>, body: &[u8]) -> Response<Body> {
    let request: ManifestRequest = serde_json::from_slice(body).unwrap();
    let context =
        Context { files: Some(&request.files), baked: None, reserved_host_ports: &[], ..Context::default() };
    let manifest = manifest::parse(&request.manifest, &context).unwrap();
    let digest = digest(&manifest, &request.files).to_string();
    let mut answer = None;
    inside.send_modify(|inside| {
        inside.puts += 1;
        if let Some(refusal) = &inside.refuse {
            answer = Some(problem_of(refusal));
            return;
        }
        let mut plan = manifest.plan();
        if inside.lie {
            plan.egress.clear();
        }
        let token = format!("token-of-{}", inside.boot_id);
        inside.token = Some(token.clone());
        inside.request = Some(request.clone());
        let status = &mut inside.status;
        status.digest = Some(digest.clone());
        status.deployment = Some(manifest.name.clone());
        status.phase = Phase::Running;
        status.ready = true;
        status.seq += 1;
        status.plugins = vec![PluginStatus {
            name: "app".into(),
            phase: PluginPhase::Running,
            reason: None,
            ready: true,
            restarts: 0,
            pid: Some(2),
            last_exit: None,
            next_restart: None,
            since: Timestamp(0),
            message: None,
            oom_kills: 0,
            probes: Vec::new(),
        }];
        let accepted = ManifestAccepted {
            digest: digest.clone(),
            boot_id: inside.boot_id.clone(),
            token,
            plan,
            conditions: manifest.conditions(),
        };
        answer = Some(json(&accepted));
    });
    answer.unwrap()
}

async fn logs(
    mut sender: http_body_util::channel::Sender<Bytes>,
    inside: watch::Sender<Inside>,
    after: u64,
    follow: bool,
) {
    let mut news = inside.subscribe();
    let (mut after, mut sent) = (after, 0);
    loop {
        let (records, cut) = {
            let inside = news.borrow_and_update();
            let records: Vec<LogRecord> = inside.logs.iter().filter(|r| r.seq > after).cloned().collect();
            (records, inside.cut_logs_after)
        };
        for record in records {
            if cut == Some(sent) {
                return;
            }
            let mut line = serde_json::to_vec(&record).unwrap();
            line.push(b'\n');
            if sender.send_data(Bytes::from(line)).await.is_err() {
                return;
            }
            (after, sent) = (record.seq, sent + 1);
        }
        if !follow || news.changed().await.is_err() {
            return;
        }
    }
}

async fn events(
    mut sender: http_body_util::channel::Sender<Bytes>,
    inside: watch::Sender<Inside>,
    after: u64,
) {
    let mut news = inside.subscribe();
    let mut after = after;
    loop {
        let seq = news.borrow_and_update().status.seq;
        for seq in after + 1..=seq {
            let (plugin, reason, message) = (Some("app".into()), "Started".into(), "as pid 2".into());
            let event = Event { seq, time: Timestamp(0), plugin, reason, message };
            let mut line = serde_json::to_string(&event).unwrap();
            line.push('\n');
            if sender.send_data(Bytes::from(line)).await.is_err() {
                return;
            }
        }
        after = after.max(seq);
        if news.changed().await.is_err() {
            return;
        }
    }
}

/// Answers as the enclave does, then echoes; a plugin named `none` is not known.
async fn ingress(mut stream: Stream) {
    let mut fixed = [0; FIXED_LEN];
    stream.read_exact(&mut fixed).await.unwrap();
    let (header, len) = Header::decode_fixed(&fixed).unwrap();
    let mut name = vec![0; len];
    stream.read_exact(&mut name).await.unwrap();
    let header = header.with_name(&name).unwrap();
    if header.port != 8001 {
        stream.write_all(&Reply::refused(ReplyStatus::NotAllowed).encode()).await.unwrap();
        return;
    }
    stream.write_all(&Reply::CONNECTED.encode()).await.unwrap();
    let mut request = Vec::new();
    stream.read_to_end(&mut request).await.unwrap();
    stream.write_all(format!("{}: ", header.name).as_bytes()).await.unwrap();
    stream.write_all(&request).await.unwrap();
    stream.shutdown().await.unwrap();
}

fn sample() -> Sample {
    Sample {
        time: Timestamp(1_000_000_000),
        started: Timestamp(0),
        interval_millis: 1000,
        labels: [(metrics::LABEL_DEPLOYMENT.to_owned(), "hello".to_owned())].into(),
        resource: [(metrics::ATTRIBUTE_INSTANCE.to_owned(), "pod-1".to_owned())].into(),
        families: vec![
            Family::gauge(metrics::CPU_USAGE, "CPU.", vec![Point::bare(0.5)]),
            Family::gauge(metrics::MEMORY_USAGE, "Memory.", vec![Point::bare(0.25)]),
            Family::gauge(metrics::MEMORY_AVAILABLE, "Raw.", vec![Point::bare(750.0)]),
            Family::gauge(metrics::MEMORY_TOTAL, "Raw.", vec![Point::bare(1000.0)]),
            metrics::catalogue::enclave::MEMORY_USAGE.bare(600.0),
        ],
    }
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    Response::new(Either::Left(Full::new(serde_json::to_vec(value).unwrap().into())))
}

pub(crate) fn refusal(status: u16, kind: &str, errors: Vec<Diagnostic>) -> Problem {
    Problem { kind: kind.into(), title: kind.into(), status, detail: "because".into(), errors }
}

fn problem(status: u16, kind: &str) -> Response<Body> {
    problem_of(&refusal(status, kind, vec![]))
}

fn problem_of(problem: &Problem) -> Response<Body> {
    let mut response = json(problem);
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap();
    response
}

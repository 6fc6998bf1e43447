//! One request to one answer.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use enclave_protocol::control::{
    AckRequest, BODY_MAX, BOOT_FAILED, BOOT_ID_HEADER, ClockRequest, DrainRequest, MANIFEST_BODY_MAX,
    ManifestRequest, Phase, Problem, REQUEST_SECONDS_MAX, Status,
};
use enclave_protocol::{
    metrics::Sample,
    telemetry::{REPORT_BYTES_MAX, TelemetryReport, TelemetryStatus},
};
use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Semaphore, SemaphorePermit, oneshot},
    time::timeout,
};

use super::{
    board::{Acceptance, Authority, Board, Command},
    body::Reply,
    server::Shared,
};
use crate::{clock, logs::ring::Rings};

/// Who is on the other end of the socket. The socket tells; nothing in the request does.
#[derive(Debug, Clone)]
pub enum Caller {
    /// The untrusted host.
    Host,
    /// A plugin, or the supervisor's own command line, with what it may read.
    Inside(Grants),
}

/// What a plugin may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grants {
    /// `GET /v1/metrics`.
    pub metrics: bool,
    /// `GET /v1/status` and `GET /v1/events`.
    pub status: bool,
    /// `GET /v1/logs`.
    pub logs: LogGrant,
    /// `PUT /v1/telemetry`: the telemetry plugin's, whatever it may read.
    pub telemetry: bool,
}

/// Whose log records a plugin may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogGrant {
    /// Nobody's.
    None,
    /// Those that go to the host. It acknowledges none: they wait for the host.
    Host,
    /// Those that leave by OTLP, which it acknowledges.
    Export,
}

type Answer = Result<Response<Reply>, Box<Problem>>;

/// Answers a request.
pub async fn route(request: Request<Incoming>, shared: &Shared, caller: &Caller) -> Response<Reply> {
    match dispatch(request, shared, caller).await {
        Ok(response) => response,
        Err(problem) => {
            match problem.status {
                401 => shared.board.refusals.unauthorized.fetch_add(1, Ordering::Relaxed),
                400 | 408 | 413 => shared.board.refusals.malformed.fetch_add(1, Ordering::Relaxed),
                _ => 0,
            };
            let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = json(&problem);
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
            response
        }
    }
}

async fn dispatch(request: Request<Incoming>, shared: &Shared, caller: &Caller) -> Answer {
    let board = &shared.board;
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    permit(&method, &path, caller, board, &request)?;
    let query = Query::parse(request.uri().query().unwrap_or(""))?;
    match (&method, path.as_str()) {
        (&Method::GET, "/v1/status") => {
            let status = board.status.borrow().clone();
            if let (Caller::Host, Err(failure)) = (caller, &shared.judge) {
                failure.told.notify_one();
            }
            Ok(json(&current(&status, board)))
        }
        (&Method::GET, "/v1/metrics") => Ok(metrics(&request, board)),
        (&Method::GET, "/v1/events") => {
            Ok(ndjson(Reply::events(board, query.after, query.follow.unwrap_or(true))))
        }
        (&Method::GET, "/v1/logs") => Ok(logs(board, caller, query.after, query.follow.unwrap_or(false))),
        (&Method::POST, "/v1/ack") => acknowledge(&read(request, BODY_MAX, shared).await?.0, board, caller),
        (&Method::POST, "/v1/drain") => drain(read(request, BODY_MAX, shared).await?.0, board).await,
        (&Method::PUT, "/v1/manifest") => manifest(request, shared).await,
        (&Method::PUT, "/v1/clock") => set_clock(request, shared).await,
        (&Method::PUT, "/v1/telemetry") => telemetry(request, shared).await,
        _ => Err(unknown(&path)),
    }
}

/// The methods each path has.
const PATHS: [(&str, Method); 9] = [
    ("/v1/status", Method::GET),
    ("/v1/metrics", Method::GET),
    ("/v1/events", Method::GET),
    ("/v1/logs", Method::GET),
    ("/v1/ack", Method::POST),
    ("/v1/drain", Method::POST),
    ("/v1/manifest", Method::PUT),
    ("/v1/clock", Method::PUT),
    ("/v1/telemetry", Method::PUT),
];

/// Whether this caller may ask for this at all.
fn permit(
    method: &Method,
    path: &str,
    caller: &Caller,
    board: &Board,
    request: &Request<Incoming>,
) -> Result<(), Box<Problem>> {
    let Some((_, wanted)) = PATHS.iter().find(|(known, _)| *known == path) else { return Err(unknown(path)) };
    if wanted != method {
        let detail = format!("{path} takes {wanted}");
        return Err(problem(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", &detail));
    }
    match caller {
        Caller::Inside(grants) => {
            let granted = match path {
                "/v1/metrics" => grants.metrics,
                "/v1/status" | "/v1/events" => grants.status,
                "/v1/telemetry" => grants.telemetry,
                "/v1/logs" => grants.logs != LogGrant::None,
                "/v1/ack" => grants.logs == LogGrant::Export,
                _ => false,
            };
            let detail = "this socket has no grant for it: see supervisorAccess in the manifest";
            if granted { Ok(()) } else { Err(problem(StatusCode::FORBIDDEN, "NotGranted", detail)) }
        }
        Caller::Host if path == "/v1/status" => Ok(()),
        Caller::Host if path == "/v1/telemetry" => {
            let detail = "the telemetry plugin alone reports its exports";
            Err(problem(StatusCode::FORBIDDEN, "NotGranted", detail))
        }
        Caller::Host => {
            let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            let bearer = header.map(|value| value.strip_prefix("Bearer ").unwrap_or(""));
            match board.authority(bearer) {
                Authority::Holder => Ok(()),
                Authority::Unclaimed if path == "/v1/manifest" => Ok(()),
                Authority::Unclaimed | Authority::Stranger => {
                    let detail =
                        "this call needs the token that the first accepted manifest was answered with";
                    Err(problem(StatusCode::UNAUTHORIZED, "Unauthorized", detail))
                }
            }
        }
    }
}

/// The query parameters of the feeds.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    after: u64,
    follow: Option<bool>,
}

impl Query {
    fn parse(text: &str) -> Result<Self, Box<Problem>> {
        let mut query = Self { after: 0, follow: None };
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let bad = |wanted: &str| {
                let detail = format!("query parameter {name:?} {wanted}");
                problem(StatusCode::BAD_REQUEST, "BadQuery", &detail)
            };
            match name {
                "after" => query.after = value.parse().map_err(|_| bad("wants a sequence number"))?,
                "follow" => query.follow = Some(value.parse().map_err(|_| bad("wants true or false"))?),
                _ => return Err(bad("is not known")),
            }
        }
        Ok(query)
    }
}

fn metrics(request: &Request<Incoming>, board: &Board) -> Response<Reply> {
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    let sample = board.sample.borrow().clone();
    if accept.contains("application/json") {
        return sample_json(request, sample.as_deref());
    }
    let text = sample.map_or_else(String::new, |sample| sample.to_prometheus());
    let mut response = Response::new(Reply::whole(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A sample with its entity tag. The telemetry plugin asks each second, and a sample of many plugins is half
/// a megabyte.
fn sample_json(request: &Request<Incoming>, sample: Option<&Sample>) -> Response<Reply> {
    // The labels come with the manifest, without a new reading.
    let tag = sample.map(|sample| format!("\"{}-{}\"", sample.time.0, sample.labels.len()));
    let tag = tag.and_then(|tag| HeaderValue::from_str(&tag).ok());
    let mut response = if tag.is_some() && request.headers().get(IF_NONE_MATCH) == tag.as_ref() {
        let mut response = empty();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        json(&sample)
    };
    if let Some(tag) = tag {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// A status with what changes without a new one: log records, and the telemetry plugin's report.
fn current(status: &Status, board: &Board) -> Status {
    let telemetry = board.telemetry.borrow().clone();
    let found = telemetry.as_ref().map(|telemetry| telemetry.conditions(clock::wall())).unwrap_or_default();
    let conditions = status.conditions.iter().cloned().chain(found).collect();
    Status { log_seq: board.logs.host.last_seq(), conditions, telemetry, ..status.clone() }
}

/// Keeps the telemetry plugin's report of its exports.
async fn telemetry(request: Request<Incoming>, shared: &Shared) -> Answer {
    let (report, _room) = read::<TelemetryReport>(request, REPORT_BYTES_MAX, shared).await?;
    let time = clock::wall();
    shared.board.telemetry.send_replace(Some(TelemetryStatus { time, report: report.cleaned(time) }));
    Ok(empty())
}

/// The records that a caller reads.
fn rings<'b>(board: &'b Board, caller: &Caller) -> &'b Arc<Rings> {
    match caller {
        Caller::Inside(Grants { logs: LogGrant::Export, .. }) => &board.logs.export,
        Caller::Host | Caller::Inside(Grants { logs: LogGrant::None | LogGrant::Host, .. }) => {
            &board.logs.host
        }
    }
}

fn logs(board: &Board, caller: &Caller, after: u64, follow: bool) -> Response<Reply> {
    let mut response = ndjson(Reply::logs(rings(board, caller), after, follow));
    // A boot id is hexadecimal.
    if let Ok(boot_id) = HeaderValue::from_str(&board.status.borrow().boot_id) {
        response.headers_mut().insert(BOOT_ID_HEADER, boot_id);
    }
    response
}

fn acknowledge(ack: &AckRequest, board: &Board, caller: &Caller) -> Answer {
    let status = board.status.borrow().clone();
    if ack.boot_id != status.boot_id {
        let detail = format!("this is boot {}, the acknowledgement is for another", status.boot_id);
        return Err(problem(StatusCode::CONFLICT, "BootIdMismatch", &detail));
    }
    rings(board, caller).acknowledge(ack.log_seq);
    // A plugin's word is no word of the host's.
    if let Caller::Host = caller {
        board.acknowledged.send_modify(|acknowledged| acknowledged.take(ack));
    }
    Ok(empty())
}

async fn set_clock(request: Request<Incoming>, shared: &Shared) -> Answer {
    let Some(clock) = &shared.clock else {
        let detail =
            "this supervisor does not take the host's time: the clock is its hypervisor's or its machine's";
        return Err(problem(StatusCode::CONFLICT, "ClockNotManaged", detail));
    };
    let (request, _room) = read::<ClockRequest>(request, BODY_MAX, shared).await?;
    // A holder cannot have panicked with the clock half set: there is one system call.
    let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
    match clock.take(Duration::from_nanos(request.unix_nanos)) {
        Ok(_) => Ok(empty()),
        Err(refusal) => Err(problem(StatusCode::CONFLICT, "ClockRefused", &refusal.to_string())),
    }
}

async fn drain(request: DrainRequest, board: &Board) -> Answer {
    if board.status.borrow().phase == Phase::AwaitingManifest {
        return Err(problem(StatusCode::CONFLICT, "NoManifest", "nothing runs yet"));
    }
    if board.commands.send(Command::Drain(request)).await.is_err() {
        return Err(stopping());
    }
    let mut response = empty();
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

async fn manifest(request: Request<Incoming>, shared: &Shared) -> Answer {
    let judge = shared.judge.as_ref().map_err(|failure| {
        failure.told.notify_one();
        problem(StatusCode::SERVICE_UNAVAILABLE, BOOT_FAILED, &failure.reason)
    })?;
    let (request, room) = read::<ManifestRequest>(request, MANIFEST_BODY_MAX, shared).await?;
    let candidate = judge.examine(request)?;
    drop(room);
    let (answer, answered) = oneshot::channel();
    let command = Command::Accept(Box::new(candidate), answer);
    if shared.board.commands.send(command).await.is_err() {
        return Err(stopping());
    }
    match answered.await {
        Ok(Acceptance::Accepted(accepted)) => Ok(json(&*accepted)),
        Ok(Acceptance::Conflict { digest }) => {
            let detail = format!("the manifest with digest {digest} runs; an enclave takes one");
            Err(problem(StatusCode::CONFLICT, "ManifestConflict", &detail))
        }
        Ok(Acceptance::Failed(reason)) => {
            Err(problem(StatusCode::INTERNAL_SERVER_ERROR, "PreparationFailed", &reason))
        }
        Ok(Acceptance::NotMeasured(reason)) => {
            Err(problem(StatusCode::INTERNAL_SERVER_ERROR, "MeasurementFailed", &reason))
        }
        Err(_) => Err(stopping()),
    }
}

/// Reads a JSON body of at most `max` bytes within the request's time. The room it takes is the caller's for
/// as long as what was read is held.
async fn read<T: DeserializeOwned>(
    request: Request<Incoming>,
    max: usize,
    shared: &Shared,
) -> Result<(T, Option<SemaphorePermit<'_>>), Box<Problem>> {
    let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
    let collected = timeout(limit, collect(request.into_body(), max, &shared.body_room));
    let (bytes, room) = collected.await.unwrap_or_else(|_| {
        let detail = format!("the body did not arrive within {REQUEST_SECONDS_MAX} s");
        Err(problem(StatusCode::REQUEST_TIMEOUT, "BodyTooSlow", &detail))
    })?;
    let parsed = serde_json::from_slice(&bytes).map_err(|error| {
        let detail = format!("the body is not what this call takes: {error}");
        problem(StatusCode::BAD_REQUEST, "BadBody", &detail)
    })?;
    Ok((parsed, room))
}

/// Reads a body, taking room for each part as it comes.
async fn collect(
    mut body: Incoming,
    max: usize,
    all: &Semaphore,
) -> Result<(Vec<u8>, Option<SemaphorePermit<'_>>), Box<Problem>> {
    let mut bytes = Vec::new();
    let mut room: Option<SemaphorePermit<'_>> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let detail = format!("the body cannot be read: {error}");
            problem(StatusCode::BAD_REQUEST, "BadBody", &detail)
        })?;
        // Trailers have nothing that is wanted here.
        let Ok(part) = frame.into_data() else { continue };
        if part.len() > max - bytes.len() {
            let detail = format!("the body is longer than {max} bytes");
            return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "BodyTooLarge", &detail));
        }
        let wanted = u32::try_from(part.len()).unwrap_or(u32::MAX);
        let Ok(more) = all.try_acquire_many(wanted) else {
            let detail = "other requests hold all the room there is for bodies; try again";
            return Err(problem(StatusCode::SERVICE_UNAVAILABLE, "Busy", detail));
        };
        match &mut room {
            Some(room) => room.merge(more),
            None => room = Some(more),
        }
        bytes.extend_from_slice(&part);
    }
    Ok((bytes, room))
}

/// A problem document.
pub fn problem(status: StatusCode, kind: &str, detail: &str) -> Box<Problem> {
    Box::new(Problem {
        kind: kind.to_owned(),
        title: status.canonical_reason().unwrap_or("").to_owned(),
        status: status.as_u16(),
        detail: detail.to_owned(),
        errors: Vec::new(),
    })
}

fn unknown(path: &str) -> Box<Problem> {
    // What came in is not given back whole: it may be long.
    let shown: String = path.chars().take(80).collect();
    problem(StatusCode::NOT_FOUND, "NotFound", &format!("there is no {shown:?}"))
}

fn stopping() -> Box<Problem> {
    problem(StatusCode::SERVICE_UNAVAILABLE, "Stopping", "the supervisor is stopping")
}

fn json<T: Serialize>(value: &T) -> Response<Reply> {
    // These types hold nothing that JSON cannot say.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Reply::whole(bytes));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn ndjson(feed: Reply) -> Response<Reply> {
    let mut response = Response::new(feed);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

fn empty() -> Response<Reply> {
    let mut response = Response::new(Reply::whole(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_its_parameters_and_nothing_else() {
        assert_eq!(Query::parse("").unwrap(), Query { after: 0, follow: None });
        assert_eq!(Query::parse("after=7&follow=true").unwrap(), Query { after: 7, follow: Some(true) });
        for bad in ["after=", "after=-1", "follow=yes", "x=1"] {
            assert_eq!(Query::parse(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}

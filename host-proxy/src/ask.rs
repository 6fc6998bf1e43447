//! The commands `status`, `logs` and `drain`: what they ask the running proxy, and what they print.

use std::{
    io::{IsTerminal, Stdout, Write},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use crate::{
    cli::{DrainArgs, LogsArgs, Output, StatusArgs},
    exit::Exit,
    ndjson::LineBuffer,
    report::Report,
};

/// How long the running proxy may take to begin its answer; it may wait for the enclave meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Characters in a line of a terminal that does not tell.
const WIDTH: usize = 120;
/// Longest report.
const REPORT_BYTES_MAX: usize = 8 << 20;

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// No running proxy.
    #[error("no proxy answers at {path}: {source}")]
    Connect {
        /// The admin socket.
        path: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// It does not answer in time.
    #[error("the proxy did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    /// It answers something else.
    #[error("the proxy's answer cannot be used: {0}")]
    Answer(String),
    /// The output cannot be written.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// An answer, and the task that drives its connection.
struct Asked {
    response: Response<Incoming>,
    _driver: JoinSet<()>,
}

/// `status`.
pub(crate) async fn status(args: &StatusArgs, out: &mut Stdout) -> Result<Exit, AskError> {
    let asked = ask(&args.admin.admin, Method::GET, "/status").await?;
    let body = Limited::new(asked.response.into_body(), REPORT_BYTES_MAX).collect();
    let body = timeout(ANSWER_TIMEOUT, body).await.map_err(|_| AskError::Timeout)?;
    let body = body.map_err(|error| AskError::Answer(error.to_string()))?.to_bytes();
    let report: Report =
        serde_json::from_slice(&body).map_err(|error| AskError::Answer(error.to_string()))?;
    match args.output {
        Output::Table => {
            let width = out.is_terminal().then(width);
            out.write_all(report.table(width, args.events).as_bytes())?;
        }
        Output::Json => {
            let text =
                serde_json::to_string_pretty(&report).map_err(|error| AskError::Answer(error.to_string()))?;
            writeln!(out, "{text}")?;
        }
    }
    Ok(Exit::Ok)
}

/// Characters in a line of the terminal. COLUMNS wins: it is how a person asks for another width.
fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let real = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    columns.or_else(real).filter(|width| *width > 0).unwrap_or(WIDTH)
}

/// `logs`.
pub(crate) async fn logs(args: &LogsArgs, out: &mut impl Write) -> Result<Exit, AskError> {
    let path = format!("/logs?follow={}", args.follow);
    let mut asked = ask(&args.admin.admin, Method::GET, &path).await?;
    while let Some(chunk) = next_chunk(&mut asked).await? {
        out.write_all(&chunk)?;
        out.flush()?;
    }
    Ok(Exit::Ok)
}

/// `drain`: shows what changes, and ends as the proxy ends.
pub(crate) async fn drain(args: &DrainArgs, out: &mut impl Write) -> Result<Exit, AskError> {
    let path = match args.grace {
        Some(grace) => format!("/drain?grace={grace}"),
        None => "/drain".to_owned(),
    };
    let mut asked = ask(&args.admin.admin, Method::POST, &path).await?;
    let mut lines = LineBuffer::default();
    let (mut said, mut end) = (String::new(), None);
    while let Some(chunk) = next_chunk(&mut asked).await? {
        let mut reports: Vec<Report> = Vec::new();
        lines
            .push(&chunk, |line| reports.extend(serde_json::from_slice::<Report>(line)))
            .map_err(|error| AskError::Answer(error.to_string()))?;
        for report in reports {
            let progress = report.progress();
            if progress != said {
                writeln!(out, "{progress}")?;
                out.flush()?;
                said = progress;
            }
            end = report.end.or(end);
        }
    }
    let end = end.ok_or_else(|| AskError::Answer("it ended before the drain did".to_owned()))?;
    writeln!(out, "{}", end.reason)?;
    Ok([Exit::Ok, Exit::WorkloadFailed, Exit::Invalid]
        .into_iter()
        .find(|exit| exit.code() == end.exit_code)
        .unwrap_or(Exit::Unreachable))
}

async fn next_chunk(asked: &mut Asked) -> Result<Option<Bytes>, AskError> {
    loop {
        return match asked.response.body_mut().frame().await {
            None => Ok(None),
            Some(Err(error)) => Err(AskError::Answer(error.to_string())),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Ok(Some(data)),
                Err(_trailers) => continue,
            },
        };
    }
}

async fn ask(socket: &Path, method: Method, path: &str) -> Result<Asked, AskError> {
    let answer = |error: &dyn std::error::Error| AskError::Answer(error.to_string());
    let asked = timeout(ANSWER_TIMEOUT, async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| AskError::Connect { path: socket.display().to_string(), source })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| answer(&error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Its error reaches whoever reads the answer.
            connection.await.ok();
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "proxy")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| answer(&error))?;
        let response = sender.send_request(request).await.map_err(|error| answer(&error))?;
        if !response.status().is_success() {
            return Err(AskError::Answer(response.status().to_string()));
        }
        Ok(Asked { response, _driver: driver })
    });
    asked.await.map_err(|_| AskError::Timeout)?
}

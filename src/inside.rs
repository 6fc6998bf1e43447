//! `enclave-supervisor status`: asks the running supervisor over its socket.

use std::{fmt::Write as _, io, path::Path, time::Duration};

use bytes::Bytes;
use enclave_protocol::control::{PluginStatus, Status};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest answer, in bytes.
const STATUS_BYTES_MAX: usize = 1 << 20;

/// The status of the supervisor behind `socket`, as a table for people.
pub fn status(socket: &Path) -> io::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async { timeout(ANSWER_MAX, ask(socket)).await });
    asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(|status| table(&status))
}

async fn ask(socket: &Path) -> io::Result<Status> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::get("/v1/status").header("host", "supervisor").body(Empty::<Bytes>::new());
    let request = request.map_err(io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let body = Limited::new(response.into_body(), STATUS_BYTES_MAX).collect().await;
        let bytes = body.map_err(io::Error::other)?.to_bytes();
        Ok(serde_json::from_slice(&bytes)?)
    };
    // The connection moves only while it is polled; it ends with the answer.
    tokio::pin!(connection);
    tokio::select! {
        answer = answer => answer,
        ended = &mut connection => {
            ended.map_err(io::Error::other)?;
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

fn table(status: &Status) -> String {
    let deployment = status.deployment.as_deref().unwrap_or("no manifest yet");
    let ready = if status.ready { "ready" } else { "not ready" };
    let mut text = format!("{deployment}: {:?}, {ready}\n", status.phase);
    if status.plugins.is_empty() {
        return text;
    }
    let width = status.plugins.iter().map(|plugin| plugin.name.len()).max().unwrap_or(0).max(4);
    // A String takes every write.
    writeln!(text, "{:width$}  {:10}  {:5}  {:8}  REASON", "NAME", "PHASE", "READY", "RESTARTS").ok();
    for plugin in &status.plugins {
        let PluginStatus { name, phase, ready, restarts, reason, .. } = plugin;
        let (phase, ready) = (format!("{phase:?}"), if *ready { "yes" } else { "no" });
        let reason = reason.as_deref().unwrap_or("");
        let line = format!("{name:width$}  {phase:10}  {ready:5}  {restarts:<8}  {reason}");
        writeln!(text, "{}", line.trim_end()).ok();
    }
    text
}

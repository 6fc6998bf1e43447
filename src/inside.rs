//! `enclave-supervisor status`: asks the running supervisor over its socket.

use std::{fmt::Write as _, io, path::Path, time::Duration};

use bytes::Bytes;
use enclave_protocol::{control::Status, glance, timestamp::Timestamp};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

use crate::clock;

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest answer, in bytes.
const STATUS_BYTES_MAX: usize = 1 << 20;

/// The status of the supervisor behind `socket`, as a table for people.
pub fn status(socket: &Path) -> io::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async { timeout(ANSWER_MAX, ask(socket)).await });
    asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(|status| table(&status, clock::wall()))
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

fn table(status: &Status, now: Timestamp) -> String {
    let deployment = status.deployment.as_deref().map_or_else(|| "no manifest yet".to_owned(), glance::clean);
    let ready = if status.ready { "ready" } else { "not ready" };
    let mut text = format!("{deployment}: {}, {ready}\n", status.phase.word());
    if !status.plugins.is_empty() {
        text.push('\n');
        text.push_str(&glance::table(status, now, None));
    }
    for condition in &status.conditions {
        let (kind, message) = (glance::clean(&condition.kind), glance::clean(&condition.message));
        // A String takes every write.
        writeln!(text, "\n! {kind}: {message}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use enclave_protocol::control::{Condition, Phase};
    use expect_test::expect;

    use super::*;
    use crate::status::awaiting;

    #[test]
    fn a_supervisor_without_a_manifest_says_so_and_remarks_are_shown() {
        let mut status = awaiting("boot");
        expect![["no manifest yet: AwaitingManifest, not ready\n"]].assert_eq(&table(&status, Timestamp(0)));
        status.phase = Phase::Failed;
        status.conditions =
            vec![Condition { kind: "BootFailed".into(), message: "no\u{7} /plugins\n".into() }];
        expect![[r#"
            no manifest yet: Failed, not ready

            ! BootFailed: no\u{7} /plugins\n
        "#]]
        .assert_eq(&table(&status, Timestamp(0)));
    }
}

//! Requests into hello through the ingress port, bounded in number and time.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::observed::Record;
use crate::failure::{Failure, While as _};

/// How long one request may take, its connection included. hello's own work takes a fraction of it.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How long hello works on one request, in milliseconds.
const WORK_MILLIS: u32 = 200;
/// Pause after a failed request: a service that refuses everything is not to be flooded.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Sends one request to a loopback port on a connection of its own; fails unless it is answered with 2xx.
pub(crate) async fn request(port: u16, method: Method, path: &str) -> Result<String, Failure> {
    let what = format!("{method} http://127.0.0.1:{port}{path}");
    let answer = timeout(REQUEST_TIME_MAX, exchange(port, method, path)).await;
    answer.while_doing(&what)?.while_doing(&what)
}

async fn exchange(port: u16, method: Method, path: &str) -> Result<String, Failure> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.while_doing("connect")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.while_doing("handshake")?;
    // Dropped at the end of this function, which closes the connection.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "*/*")
        .body(Empty::<Bytes>::new())
        .while_doing("request")?;
    let response = sender.send_request(request).await.while_doing("request")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| Failure::new(format!("answer: {error}")))?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() {
        Ok(text)
    } else {
        Err(Failure::new(format!("answered {status}: {}", text.trim())))
    }
}

/// Keeps every core busy through `connections` parallel streams of requests, until it is dropped or `limit`
/// is over.
pub(crate) async fn keep_busy(port: u16, connections: usize, limit: Duration, record: Record) {
    let end = Instant::now() + limit;
    let path = format!("/work?ms={WORK_MILLIS}&threads=1");
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        let (record, path) = (record.clone(), path.clone());
        workers.spawn(async move {
            while Instant::now() < end {
                if request(port, Method::GET, &path).await.is_ok() {
                    record.write(|observed| observed.requests += 1);
                } else {
                    record.write(|observed| observed.request_errors += 1);
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        });
    }
    while workers.join_next().await.is_some() {}
}

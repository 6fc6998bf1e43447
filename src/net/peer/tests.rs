use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use super::{
    super::{
        limits::Limits,
        tests::{Bench, CALLER, assert_reset},
    },
    *,
};

/// A port of plugin `db` and the way to it from `web`.
async fn db(bench: &Bench) -> (TcpListener, SocketAddr) {
    let served = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = served.local_addr().unwrap().port();
    let at = bench.peer("web", "db", port).await;
    bench.sockets("db").await;
    (served, at)
}

#[tokio::test]
async fn a_plugin_reaches_anothers_port_and_half_closes_are_kept() {
    let mut bench = Bench::start(Limits::default()).await;
    let (served, at) = db(&bench).await;
    let mut web = TcpStream::connect(at).await.unwrap();
    let (mut db, caller) = served.accept().await.unwrap();
    assert_eq!(caller.ip(), CALLER);
    db.write_all(b"hello").await.unwrap();
    let mut greeting = [0; 5];
    web.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello");
    web.write_all(b"query").await.unwrap();
    web.shutdown().await.unwrap();
    let mut text = String::new();
    db.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "query");
    db.write_all(b"rows").await.unwrap();
    drop(db);
    text.clear();
    web.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "rows");
    let port = served.local_addr().unwrap().port().to_string();
    bench.until("enclave_peer_connections_active", &[], 0.0).await;
    let labels = [("plugin", "db"), ("port", port.as_str())];
    bench.until("enclave_peer_connections_total", &labels, 1.0).await;
    bench.until("enclave_peer_sent_bytes_total", &labels, 5.0).await;
    bench.until("enclave_peer_received_bytes_total", &labels, 9.0).await;
    bench.until("enclave_peer_broken_total", &labels, 0.0).await;
}

#[tokio::test]
async fn a_port_that_nobody_serves_and_a_plugin_without_sockets_are_a_reset_and_counted() {
    let mut bench = Bench::start(Limits::default()).await;
    let (served, at) = db(&bench).await;
    drop(served);
    assert_reset(&mut TcpStream::connect(at).await.unwrap()).await;
    let refused = "enclave_peer_refused_total";
    bench.until(refused, &[("reason", "connect_failed"), ("plugin", "db")], 1.0).await;

    let at = bench.peer("web", "cache", 1).await;
    let mut web = TcpStream::connect(at).await.unwrap();
    assert_eq!(bench.asked_for_sockets().await, "cache");
    bench.no_sockets("cache").await;
    assert_reset(&mut web).await;
    bench.until(refused, &[("reason", "no_socket"), ("plugin", "cache")], 1.0).await;
}

#[tokio::test]
async fn a_plugin_at_its_limit_does_not_keep_another_from_the_same_port() {
    let mut bench = Bench::start(Limits { streams_per_plugin: 1, ..Limits::default() }).await;
    let (served, at) = db(&bench).await;
    let port = served.local_addr().unwrap().port();
    let modest = bench.peer("batch", "db", port).await;
    let first = TcpStream::connect(at).await.unwrap();
    let accepted = served.accept().await.unwrap();
    assert_reset(&mut TcpStream::connect(at).await.unwrap()).await;
    bench.until("enclave_peer_refused_total", &[("reason", "stream_limit")], 1.0).await;
    let _modest = (TcpStream::connect(modest).await.unwrap(), served.accept().await.unwrap());
    drop((first, accepted));
    bench.until("enclave_peer_connections_active", &[], 1.0).await;
    let _second = TcpStream::connect(at).await.unwrap();
    served.accept().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_still_stream_is_a_reset_for_both_ends_after_the_idle_limit() {
    let mut bench = Bench::start(Limits { idle_seconds: 7, ..Limits::default() }).await;
    let (served, at) = db(&bench).await;
    let mut web = TcpStream::connect(at).await.unwrap();
    let (mut db, _) = served.accept().await.unwrap();
    let start = Instant::now();
    assert_reset(&mut web).await;
    assert_reset(&mut db).await;
    assert_eq!(start.elapsed().as_secs(), 7);
    bench.until("enclave_peer_broken_total", &[], 1.0).await;
}

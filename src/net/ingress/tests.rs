use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    time::Instant,
};

use super::{
    super::{
        limits::Limits,
        link::Message,
        sockets::SOCKET_TIMEOUT,
        tests::{Bench, assert_reset},
    },
    *,
};

fn header(kind: Kind, name: &str, port: u16) -> Vec<u8> {
    Header { kind, port, trace_id: 7, name: name.into() }.encode().unwrap()
}

async fn reply(host: &mut UnixStream) -> Reply {
    let mut bytes = [0; 4];
    host.read_exact(&mut bytes).await.unwrap();
    Reply::decode(bytes).unwrap()
}

#[tokio::test]
async fn a_stream_reaches_its_port_and_keeps_its_half_close() {
    let mut bench = Bench::start(Limits::default()).await;
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    bench.ingress("web", web.local_addr().unwrap()).await;
    let mut host = bench.ingress_stream().await;
    // The header in two pieces, the second with the first bytes of the client.
    let bytes = [header(Kind::Ingress, "web", 80), b"ping".to_vec()].concat();
    host.write_all(&bytes[..5]).await.unwrap();
    tokio::task::yield_now().await;
    host.write_all(&bytes[5..]).await.unwrap();
    let (mut app, _) = web.accept().await.unwrap();
    assert_eq!(reply(&mut host).await, Reply::CONNECTED);
    host.shutdown().await.unwrap();
    let mut text = String::new();
    app.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "ping");
    app.write_all(b"pong!").await.unwrap();
    drop(app);
    text.clear();
    host.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "pong!");
    bench.until("enclave_ingress_connections_active", &[], 0.0).await;
    bench.until("enclave_ingress_connections_total", &[("plugin", "web"), ("port", "80")], 1.0).await;
    bench.until("enclave_ingress_sent_bytes_total", &[], 4.0).await;
    bench.until("enclave_ingress_received_bytes_total", &[], 5.0).await;
    bench.until("enclave_ingress_broken_total", &[], 0.0).await;
}

#[tokio::test]
async fn only_declared_ports_are_reached_and_garbage_is_counted() {
    let mut bench = Bench::start(Limits::default()).await;
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web_port = web.local_addr().unwrap().port();
    bench.ingress("web", web.local_addr().unwrap()).await;
    let mut bad_name = header(Kind::Ingress, "web", 80);
    bad_name[FIXED_LEN] = b'/';
    for (bytes, status) in [
        (header(Kind::Ingress, "web", web_port), ReplyStatus::NotAllowed),
        (header(Kind::Ingress, "other", 80), ReplyStatus::NotAllowed),
        (header(Kind::Egress, "web", 80), ReplyStatus::Malformed),
        (b"GET / HTTP/1.1\r\n\r\n"[..FIXED_LEN].to_vec(), ReplyStatus::Malformed),
        (bad_name, ReplyStatus::Malformed),
    ] {
        let mut host = bench.ingress_stream().await;
        host.write_all(&bytes).await.unwrap();
        assert_eq!(reply(&mut host).await, Reply::refused(status), "{bytes:?}");
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    }
    assert_eq!(bench.refused("ingress", "not_allowed").await.to_string(), "2");
    assert_eq!(bench.refused("ingress", "malformed").await.to_string(), "3");
    let waiting = timeout(Duration::ZERO, web.accept()).await;
    assert!(waiting.is_err(), "a refused stream reached the plugin");
}

#[tokio::test(start_paused = true)]
async fn a_header_that_stalls_is_closed_in_time() {
    let mut bench = Bench::start(Limits::default()).await;
    for sent in [0, 5, FIXED_LEN + 1] {
        let mut host = bench.ingress_stream().await;
        host.write_all(&header(Kind::Ingress, "web", 80)[..sent]).await.unwrap();
        let start = Instant::now();
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(start.elapsed().as_secs(), HEADER_TIMEOUT.as_secs());
    }
    assert_eq!(bench.refused("ingress", "header_timeout").await.to_string(), "3");
}

#[tokio::test]
async fn a_plugin_that_does_not_listen_is_told_with_its_errno() {
    let mut bench = Bench::start(Limits::default()).await;
    // A port that nobody is handed out.
    let gone = SocketAddr::from(([127, 0, 0, 1], 1));
    bench.ingress("web", gone).await;
    let mut host = bench.ingress_stream().await;
    host.write_all(&header(Kind::Ingress, "web", 80)).await.unwrap();
    let refused = Reply { status: ReplyStatus::ConnectFailed, errno: 111 };
    assert_eq!(reply(&mut host).await, refused);
    bench
        .until("enclave_ingress_refused_total", &[("reason", "connect_failed"), ("plugin", "web")], 1.0)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_is_a_reset_for_the_plugin() {
    let mut bench = Bench::start(Limits { idle_seconds: 7, ..Limits::default() }).await;
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    bench.ingress("web", web.local_addr().unwrap()).await;
    let mut host = bench.ingress_stream().await;
    host.write_all(&header(Kind::Ingress, "web", 80)).await.unwrap();
    let (mut app, _) = web.accept().await.unwrap();
    assert_eq!(reply(&mut host).await, Reply::CONNECTED);
    let start = Instant::now();
    assert_reset(&mut app).await;
    assert_eq!(start.elapsed().as_secs(), 7);
    bench.until("enclave_ingress_broken_total", &[("plugin", "web")], 1.0).await;
}

#[tokio::test]
async fn streams_over_the_limits_are_refused() {
    let mut bench = Bench::start(Limits { streams: 2, streams_per_plugin: 1, ..Limits::default() }).await;
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    bench.ingress("web", web.local_addr().unwrap()).await;
    let mut first = bench.ingress_stream().await;
    first.write_all(&header(Kind::Ingress, "web", 80)).await.unwrap();
    assert_eq!(reply(&mut first).await, Reply::CONNECTED);
    let mut second = bench.ingress_stream().await;
    second.write_all(&header(Kind::Ingress, "web", 80)).await.unwrap();
    assert_eq!(reply(&mut second).await, Reply::refused(ReplyStatus::Overloaded));
    assert_eq!(second.read(&mut [0]).await.unwrap(), 0);

    let _silent = bench.ingress_stream().await;
    let mut fourth = bench.ingress_stream().await;
    assert_eq!(fourth.read(&mut [0]).await.unwrap(), 0, "over the limit of all streams");
    assert_eq!(bench.refused("ingress", "stream_limit").await.to_string(), "2");
}

#[tokio::test(start_paused = true)]
async fn without_a_socket_the_host_is_told_that_net_is_overloaded() {
    let mut bench = Bench::start(Limits::default()).await;
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rule = IngressRule { host_port: 8080, plugin: "web".into(), container_port: 80 };
    let ingress = Message::Ingress { rule, target: web.local_addr().unwrap() };
    bench.link.send(&ingress, &[]).await.unwrap();
    let mut host = bench.ingress_stream().await;
    host.write_all(&header(Kind::Ingress, "web", 80)).await.unwrap();
    assert_eq!(bench.asked_for_sockets().await, "web");
    bench.no_sockets("web").await;
    assert_eq!(reply(&mut host).await, Reply::refused(ReplyStatus::Overloaded));
    // PID 1 says nothing now.
    let mut host = bench.ingress_stream().await;
    let start = Instant::now();
    host.write_all(&header(Kind::Ingress, "web", 80)).await.unwrap();
    assert_eq!(reply(&mut host).await, Reply::refused(ReplyStatus::Overloaded));
    assert_eq!(start.elapsed(), SOCKET_TIMEOUT);
    let labels = [("reason", "no_socket"), ("plugin", "web")];
    bench.until("enclave_ingress_refused_total", &labels, 2.0).await;
    // The late answer serves the next.
    bench.sockets("web").await;
    let mut host = bench.ingress_stream().await;
    host.write_all(&header(Kind::Ingress, "web", 80)).await.unwrap();
    assert_eq!(reply(&mut host).await, Reply::CONNECTED);
}

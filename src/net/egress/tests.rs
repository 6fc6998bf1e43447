use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use super::{
    super::{
        client_hello::tests::client_hello,
        limits::Limits,
        tests::{Bench, assert_reset},
    },
    *,
};

#[tokio::test]
async fn a_plain_stream_is_dialled_at_once_and_keeps_its_half_close() {
    let mut bench = Bench::start(Limits::default()).await;
    let mut app = TcpStream::connect(bench.egress("app", false).await).await.unwrap();
    // The app has said nothing yet: a server that speaks first must be heard.
    let (header, mut host) = bench.host_accepts().await;
    assert_eq!((header.kind, header.name.as_str(), header.port), (Kind::Egress, "a.example", 443));
    assert_ne!(header.trace_id, 0);
    host.write_all(&Reply::CONNECTED.encode()).await.unwrap();
    host.write_all(b"220 hello").await.unwrap();
    let mut greeting = [0; 9];
    app.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 hello");
    assert!((bench.value("enclave_egress_connections_active", &[("plugin", "app")]).await - 1.0).abs() < 0.1);

    app.write_all(b"quit").await.unwrap();
    app.shutdown().await.unwrap();
    let mut text = String::new();
    host.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "quit");
    host.write_all(b"bye").await.unwrap();
    drop(host);
    text.clear();
    app.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "bye");

    bench.until("enclave_egress_connections_active", &[], 0.0).await;
    bench.until("enclave_egress_connections_total", &[("destination", "a.example:443")], 1.0).await;
    bench.until("enclave_egress_sent_bytes_total", &[], 4.0).await;
    bench.until("enclave_egress_received_bytes_total", &[], 12.0).await;
    bench.until("enclave_egress_broken_total", &[], 0.0).await;
}

#[tokio::test]
async fn each_refusal_of_the_host_resets_the_app_and_is_counted_by_its_reason() {
    let mut bench = Bench::start(Limits::default()).await;
    let address = bench.egress("app", false).await;
    for status in ReplyStatus::ALL {
        if status == ReplyStatus::Connected {
            continue;
        }
        let mut app = TcpStream::connect(address).await.unwrap();
        let (_header, mut host) = bench.host_accepts().await;
        app.write_all(b"not for the host").await.unwrap();
        host.write_all(&Reply::refused(status).encode()).await.unwrap();
        assert_reset(&mut app).await;
        let mut rest = Vec::new();
        host.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"", "bytes of the app reached the host");
        bench
            .until("enclave_egress_refused_total", &[("reason", status.word()), ("plugin", "app")], 1.0)
            .await;
    }
    bench.until("enclave_egress_connections_total", &[], 0.0).await;
}

#[tokio::test]
async fn a_host_that_is_gone_or_babbles_resets_the_app() {
    let mut bench = Bench::start(Limits::default()).await;
    let address = bench.egress("app", false).await;
    for answer in [&b""[..], b"\0", b"\xff\0\0\0", b"\0\x01\0\0"] {
        let mut app = TcpStream::connect(address).await.unwrap();
        let (_header, mut host) = bench.host_accepts().await;
        host.write_all(answer).await.unwrap();
        drop(host);
        assert_reset(&mut app).await;
    }
    bench.until("enclave_egress_refused_total", &[("reason", "host_silent")], 4.0).await;
    bench.host = None;
    let mut app = TcpStream::connect(address).await.unwrap();
    assert_reset(&mut app).await;
    bench.until("enclave_egress_refused_total", &[("reason", "host_unreachable")], 1.0).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_never_replies_is_given_up() {
    let bench = Bench::start(Limits::default()).await;
    let mut app = TcpStream::connect(bench.egress("app", false).await).await.unwrap();
    let (_header, _host) = bench.host_accepts().await;
    let start = Instant::now();
    assert_reset(&mut app).await;
    assert_eq!(start.elapsed().as_secs(), REPLY_TIMEOUT.as_secs());
}

#[tokio::test]
async fn tls_with_the_right_name_goes_through_unchanged_in_one_piece_or_in_many() {
    let mut bench = Bench::start(Limits::default()).await;
    let address = bench.egress("app", true).await;
    for (records_of, segments_of) in [(4096, 4096), (100, 7), (4096, 1)] {
        let hello = client_hello("A.example", records_of);
        let mut app = TcpStream::connect(address).await.unwrap();
        app.set_nodelay(true).unwrap();
        for segment in hello.chunks(segments_of) {
            app.write_all(segment).await.unwrap();
            // Lets the other side read what there is, so that it does see the pieces.
            tokio::task::yield_now().await;
        }
        let mut host = bench.host_connects().await;
        let mut received = vec![0; hello.len()];
        host.read_exact(&mut received).await.unwrap();
        assert_eq!(received, hello);
        host.write_all(b"server hello").await.unwrap();
        let mut answer = [0; 12];
        app.read_exact(&mut answer).await.unwrap();
        app.write_all(b"finished").await.unwrap();
        let mut rest = [0; 8];
        host.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"finished");
    }
    let sent = (client_hello("a.example", 4096).len() * 2 + client_hello("a.example", 100).len() + 24) as f64;
    bench.until("enclave_egress_sent_bytes_total", &[], sent).await;
}

#[tokio::test]
async fn what_is_not_tls_to_the_destination_is_reset_and_the_host_never_hears_of_it() {
    let mut bench = Bench::start(Limits::default()).await;
    let address = bench.egress("app", true).await;
    let hello = client_hello("a.example", 4096);
    let cases = [
        b"GET /secret HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec(),
        client_hello("b.example", 4096),
        client_hello("a.example.", 4096),
        client_hello("xa.example", 50),
        hello[..hello.len() - 1].to_vec(),
        Vec::new(),
    ];
    for first_bytes in &cases {
        let mut app = TcpStream::connect(address).await.unwrap();
        app.write_all(first_bytes).await.unwrap();
        app.shutdown().await.unwrap();
        assert_reset(&mut app).await;
        bench.host_saw_nothing().await;
    }
    assert_eq!(bench.refused("egress", "tls_refused").await.to_string(), cases.len().to_string());
}

#[tokio::test(start_paused = true)]
async fn an_app_that_never_finishes_its_client_hello_is_reset_in_time() {
    let mut bench = Bench::start(Limits::default()).await;
    let mut app = TcpStream::connect(bench.egress("app", true).await).await.unwrap();
    app.write_all(&client_hello("a.example", 4096)[..40]).await.unwrap();
    let start = Instant::now();
    assert_reset(&mut app).await;
    assert_eq!(start.elapsed().as_secs(), HELLO_TIMEOUT.as_secs());
    bench.host_saw_nothing().await;
    assert_eq!(bench.refused("egress", "tls_refused").await.to_string(), "1");
}

#[tokio::test]
async fn one_plugin_at_its_limit_is_reset_and_another_is_not() {
    let mut bench = Bench::start(Limits { streams_per_plugin: 1, ..Limits::default() }).await;
    let (greedy, modest) = (bench.egress("greedy", false).await, bench.egress("modest", false).await);
    let first = TcpStream::connect(greedy).await.unwrap();
    let host = bench.host_connects().await;
    let mut second = TcpStream::connect(greedy).await.unwrap();
    assert_reset(&mut second).await;
    bench.host_saw_nothing().await;
    assert_eq!(bench.refused("egress", "stream_limit").await.to_string(), "1");
    let _modest = TcpStream::connect(modest).await.unwrap();
    let _modest_host = bench.host_connects().await;

    drop((first, host));
    bench.until("enclave_egress_connections_active", &[("plugin", "greedy")], 0.0).await;
    let _third = TcpStream::connect(greedy).await.unwrap();
    bench.host_connects().await;
}

#[tokio::test(start_paused = true)]
async fn a_still_stream_is_reset_after_the_idle_limit_and_counted_as_broken() {
    let mut bench = Bench::start(Limits { idle_seconds: 7, ..Limits::default() }).await;
    let mut app = TcpStream::connect(bench.egress("app", false).await).await.unwrap();
    let _host = bench.host_connects().await;
    let start = Instant::now();
    assert_reset(&mut app).await;
    assert_eq!(start.elapsed().as_secs(), 7);
    bench.until("enclave_egress_broken_total", &[], 1.0).await;
}

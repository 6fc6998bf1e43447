use std::sync::{Arc, Mutex};

use expect_test::{Expect, expect};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{super::sockets::tests::made, *};

const LIMIT: Duration = Duration::from_secs(2);

fn socket() -> OwnedFd {
    made(1).remove(0)
}

fn http(path: &str, headers: &[(&str, &str)]) -> Question {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Question::Http { path: path.to_owned(), headers }
}

/// What a plugin does with its only connection.
enum Plugin {
    /// Reads the request, writes this and closes.
    Answers(Vec<u8>),
    /// Writes this again and again.
    Repeats(&'static [u8]),
    /// Writes this and keeps the connection open.
    Holds(&'static [u8]),
    /// Writes one byte of this in a while.
    Drips(&'static [u8]),
}

/// Answers the outcome and what the plugin was asked.
async fn asked(plugin: Plugin, question: &Question) -> (Outcome, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let request = Arc::new(Mutex::new(String::new()));
    let seen = Arc::clone(&request);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap_or(0) > 0 {}
        *seen.lock().unwrap() = String::from_utf8(head).unwrap().replace(&port.to_string(), "PORT");
        // The other side may have closed by then.
        match plugin {
            Plugin::Answers(bytes) => stream.write_all(&bytes).await.unwrap_or_default(),
            Plugin::Repeats(bytes) => while stream.write_all(bytes).await.is_ok() {},
            Plugin::Holds(bytes) => {
                stream.write_all(bytes).await.unwrap();
                stream.read(&mut [0]).await.unwrap_or_default();
            }
            Plugin::Drips(bytes) => {
                for byte in bytes {
                    if stream.write_all(&[*byte]).await.is_err() {
                        return;
                    }
                    sleep(LIMIT / 4).await;
                }
            }
        }
    });
    let outcome = ask(socket(), port, question, LIMIT).await;
    serving.shutdown().await;
    let request = request.lock().unwrap().clone();
    (outcome, request)
}

async fn check(answer: &[u8], expected: &Expect) {
    let (outcome, _) = asked(Plugin::Answers(answer.to_vec()), &http("/", &[])).await;
    expected.assert_eq(&format!("{outcome:?}"));
}

#[tokio::test]
async fn the_request_says_who_asks_and_a_given_header_replaces_ours() {
    let answer = || Plugin::Answers(b"HTTP/1.1 200 OK\r\n\r\n".to_vec());
    let (outcome, request) = asked(answer(), &http("/healthz?full=1", &[])).await;
    assert_eq!(outcome, Outcome::Success);
    expect![[r#"
        GET /healthz?full=1 HTTP/1.1
        host: 127.0.0.1:PORT
        user-agent: enclave-supervisor/0.1.0
        accept: */*
        connection: close

    "#]]
    .assert_eq(&request.replace('\r', ""));
    let headers = [("Host", "app.example"), ("X-A", "1"), ("x-a", "2"), ("User-Agent", "me")];
    let (outcome, request) = asked(answer(), &http("/", &headers)).await;
    assert_eq!(outcome, Outcome::Success);
    expect![[r#"
        GET / HTTP/1.1
        host: app.example
        x-a: 1
        x-a: 2
        user-agent: me
        accept: */*
        connection: close

    "#]]
    .assert_eq(&request.replace('\r', ""));
}

#[tokio::test]
async fn two_hundred_to_three_hundred_ninety_nine_is_success_and_redirects_are_not_followed() {
    for status in [200, 204, 299, 302, 399] {
        let answer = format!("HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:1/\r\n\r\n");
        check(answer.as_bytes(), &expect!["Success"]).await;
    }
    check(b"HTTP/1.0 200 OK\r\n\r\nbody", &expect!["Success"]).await;
    check(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", &expect!["Success"]).await;
    check(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        &expect![[r#"Failure { message: "answered with status 101" }"#]],
    )
    .await;
    check(
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        &expect![[r#"Failure { message: "answered with status 400" }"#]],
    )
    .await;
    check(
        b"HTTP/1.1 503 \x1b[31mGone\r\n\r\n",
        &expect![[r#"Failure { message: "no valid answer: invalid HTTP status-code parsed" }"#]],
    )
    .await;
    check(b"HTTP/1.1 999 X\r\n\r\n", &expect![[r#"Failure { message: "answered with status 999" }"#]]).await;
}

#[tokio::test]
async fn what_is_no_answer_is_a_failure_that_says_why() {
    check(
        b"",
        &expect![[r#"Failure { message: "no valid answer: connection closed before message completed" }"#]],
    )
    .await;
    check(
        b"220 smtp.example ESMTP\r\n",
        &expect![[r#"Failure { message: "no valid answer: invalid HTTP version parsed" }"#]],
    )
    .await;
    check(
        b"HTTP/1.1 200",
        &expect![[r#"Failure { message: "no valid answer: connection closed before message completed" }"#]],
    )
    .await;
    check(
        b"HTTP/1.1 20\r\n\r\n",
        &expect![[r#"Failure { message: "no valid answer: invalid HTTP status-code parsed" }"#]],
    )
    .await;
    check(
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        &expect![[r#"Failure { message: "no valid answer: invalid HTTP header parsed" }"#]],
    )
    .await;
    check(&[0xff; 100], &expect![[r#"Failure { message: "no valid answer: invalid HTTP version parsed" }"#]])
        .await;
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(2 * HEAD_MAX));
    check(
        long.as_bytes(),
        &expect![[r#"Failure { message: "no valid answer: message head is too large" }"#]],
    )
    .await;
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(200));
    check(
        many.as_bytes(),
        &expect![[r#"Failure { message: "no valid answer: message head is too large" }"#]],
    )
    .await;
}

#[tokio::test]
async fn a_request_that_cannot_be_made_is_a_failure() {
    for question in [http("no path", &[]), http("/", &[("a b", "c")]), http("/", &[("a", "b\nc")])] {
        let (outcome, request) = asked(Plugin::Holds(b""), &question).await;
        let Outcome::Failure { message } = outcome else { panic!("{outcome:?}") };
        assert!(message.starts_with("no request can be made"), "{message}");
        assert_eq!(request, "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_hangs_or_never_finishes_is_given_up_at_the_limit() {
    for plugin in
        [Plugin::Holds(b""), Plugin::Holds(b"HTTP/1.1 200 OK\r\n"), Plugin::Drips(b"HTTP/1.1 200 OK\r\n\r\n")]
    {
        let start = Instant::now();
        let (outcome, _) = asked(plugin, &http("/", &[])).await;
        assert_eq!(outcome, Outcome::failure("no answer within 2s"));
        assert_eq!(start.elapsed(), LIMIT);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_without_end_does_not_hold_up_the_answer() {
    for plugin in [
        Plugin::Holds(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc"),
        Plugin::Holds(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        Plugin::Holds(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense"),
        Plugin::Repeats(b"HTTP/1.1 200 OK\r\n\r\n"),
    ] {
        let start = Instant::now();
        let (outcome, _) = asked(plugin, &http("/", &[])).await;
        assert_eq!(outcome, Outcome::Success);
        assert!(start.elapsed() <= BODY_TIMEOUT, "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn informational_answers_without_end_are_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        while stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {}
    });
    let limit = Duration::from_millis(50);
    let outcome = ask(socket(), port, &http("/", &[]), limit).await;
    assert_eq!(outcome, Outcome::failure("no answer within 50ms"));
}

#[tokio::test]
async fn a_short_body_is_taken_so_that_the_plugin_sees_an_end_and_no_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let plugin = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut head).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n").await.unwrap();
        stream.write_all(&[b'x'; 4000]).await.unwrap();
        stream.read(&mut [0]).await.unwrap()
    };
    let question = http("/", &[]);
    let (outcome, read) = tokio::join!(ask(socket(), port, &question, LIMIT), plugin);
    assert_eq!((outcome, read), (Outcome::Success, 0));
}

#[tokio::test]
async fn tcp_asks_for_a_connection_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(ask(socket(), port, &Question::Tcp, LIMIT).await, Outcome::Success);
    drop(listener);
    for question in [Question::Tcp, http("/", &[])] {
        let outcome = ask(socket(), port, &question, LIMIT).await;
        assert_eq!(outcome, Outcome::failure("does not accept: Connection refused (os error 111)"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_give_an_outcome_of_one_bounded_line(
        start in prop::sample::select(vec!["", "HTTP/1.1 ", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 503 X\r\na:"]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let answer = [start.as_bytes(), &rest].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (outcome, _) = runtime.block_on(asked(Plugin::Answers(answer), &http("/", &[])));
        match outcome {
            Outcome::Success => {}
            Outcome::Failure { message } => {
                prop_assert!(message.len() <= LINE_MAX && !message.contains(char::is_control), "{}", message);
            }
            Outcome::Unknown { message } => prop_assert!(false, "{}", message),
        }
    }
}

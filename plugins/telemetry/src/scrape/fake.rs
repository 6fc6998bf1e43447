//! An app with a Prometheus page, for tests: raw bytes on a socket, well-behaved or not.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What an app does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Sends these bytes and goes on.
    Whole(Vec<u8>),
    /// Sends the head and then one byte again and again, each when the other side has room and time has
    /// passed.
    Trickle,
    /// Sends a body without an end.
    Endless,
    /// Sends nothing.
    Silence,
}

/// A server on loopback.
pub(crate) struct App {
    port: u16,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

struct State {
    answer: Answer,
    requests: Vec<String>,
    connections: usize,
}

impl App {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { answer: Answer::Silence, requests: Vec::new(), connections: 0 };
        let state = Arc::new(Mutex::new(state));
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                shared.lock().unwrap().connections += 1;
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { port, state, _tasks: tasks }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    /// The newest request's head.
    pub(crate) fn last_request(&self) -> String {
        self.state.lock().unwrap().requests.last().cloned().unwrap_or_default()
    }

    pub(crate) fn requests(&self) -> usize {
        self.state.lock().unwrap().requests.len()
    }

    /// Shows a page of text.
    pub(crate) fn show(&self, page: &str) {
        self.answer(200, "Content-Type: text/plain; version=0.0.4\r\n", page.as_bytes());
    }

    pub(crate) fn answer(&self, status: u16, headers: &str, body: &[u8]) {
        let length = body.len();
        let mut bytes =
            format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n").into_bytes();
        bytes.extend_from_slice(body);
        self.set(Answer::Whole(bytes));
    }

    pub(crate) fn set(&self, answer: Answer) {
        self.state.lock().unwrap().answer = answer;
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut read = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let Ok(length @ 1..) = stream.read(&mut buffer).await else { return };
        read.extend_from_slice(&buffer[..length]);
        if !read.ends_with(b"\r\n\r\n") {
            continue;
        }
        let answer = {
            let mut state = state.lock().unwrap();
            state.requests.push(String::from_utf8_lossy(&read).into_owned());
            read.clear();
            state.answer.clone()
        };
        if play(&mut stream, answer).await.is_err() {
            return;
        }
    }
}

async fn play(stream: &mut TcpStream, answer: Answer) -> std::io::Result<()> {
    match answer {
        Answer::Whole(bytes) => stream.write_all(&bytes).await,
        Answer::Silence => std::future::pending().await,
        Answer::Trickle => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await?;
            let mut pace = tokio::time::interval(std::time::Duration::from_millis(10));
            loop {
                pace.tick().await;
                stream.write_all(b"#").await?;
            }
        }
        Answer::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            let line = b"a_metric 1\n".repeat(1000);
            loop {
                stream.write_all(&line).await?;
            }
        }
    }
}

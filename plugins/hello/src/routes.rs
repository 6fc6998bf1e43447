//! One function per path. A request that is wrong gets a 400 that names what is wrong.

use std::{
    fmt::Write as _,
    io::Read as _,
    path::Path,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Response, StatusCode, Uri};
use tokio::{
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::Instant,
};

use crate::{egress, knobs, metrics::Metrics, query::Query};

/// Longest burn.
const WORK_MS_MAX: u32 = 10 * 60 * 1000;
/// Most threads burning at the same time, over all requests.
const WORK_THREADS_MAX: u32 = 64;
/// Most lines of one request.
const LOG_LINES_MAX: u32 = 1_000_000;
/// Longest line.
const LOG_BYTES_MAX: u32 = 1 << 20;
/// Longest file that is shown.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a request comes back with.
pub(crate) type Answer = Response<Full<Bytes>>;

/// How the process is to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// As usual.
    Serve,
    /// End with this exit code.
    Exit(u8),
    /// Answer nothing any more and ignore SIGTERM.
    Hang,
}

/// What all requests share.
pub(crate) struct App {
    /// Changed by `/exit` and `/hang`; the server acts on it.
    pub(crate) fate: watch::Sender<Fate>,
    ready: AtomicBool,
    started: Instant,
    metrics: Arc<Metrics>,
    held: Arc<knobs::Held>,
    burners: Semaphore,
}

impl App {
    /// A fresh process.
    pub(crate) fn new() -> Self {
        Self {
            fate: watch::Sender::new(Fate::Serve),
            ready: AtomicBool::new(true),
            started: Instant::now(),
            metrics: Arc::default(),
            held: Arc::default(),
            burners: Semaphore::new(WORK_THREADS_MAX as usize),
        }
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, method: &Method, uri: &Uri) -> Answer {
        let query = match Query::parse(uri.query().unwrap_or_default()) {
            Ok(query) => query,
            Err(error) => return text(StatusCode::BAD_REQUEST, error),
        };
        let (path, answer) = match (method.as_str(), uri.path()) {
            ("GET", "/") => ("/", Ok(self.greeting())),
            ("GET", "/work") => ("/work", self.work(&query).await),
            ("GET", "/alloc") => ("/alloc", self.alloc(&query).await),
            ("DELETE", "/alloc") => ("/alloc", Ok(self.free())),
            ("POST", "/exit") => ("/exit", self.exit(&query)),
            ("POST", "/abort") => process::abort(),
            ("POST", "/hang") => {
                ("/hang", Ok(self.become_fate(Fate::Hang, "hanging from now on\n".to_owned())))
            }
            ("GET", "/ready") => ("/ready", Ok(self.show_ready())),
            ("POST", "/ready") => ("/ready", self.become_ready(&query)),
            ("GET", "/log") => ("/log", log(&query).await),
            ("GET", "/metrics") => ("/metrics", Ok(self.show_metrics())),
            ("GET", "/egress") => ("/egress", fetch(&query).await),
            ("GET", "/env") => ("/env", Ok(environment())),
            ("GET", "/files") => ("/files", file(&query)),
            ("GET", "/vsock") => ("/vsock", Ok(vsock())),
            _ => ("other", Ok(text(StatusCode::NOT_FOUND, format!("no {method} {}\n", uri.path())))),
        };
        self.metrics.request(path);
        answer.unwrap_or_else(|error| text(StatusCode::BAD_REQUEST, format!("{error}\n")))
    }

    fn greeting(&self) -> Answer {
        let uptime = self.started.elapsed().as_secs_f64();
        ok(format!("hello from pid {}, up {uptime:.1} s\n", process::id()))
    }

    async fn work(&self, query: &Query) -> Result<Answer, String> {
        let time = Duration::from_millis(query.number("ms", 100, 0..=WORK_MS_MAX)?.into());
        let threads = query.number("threads", 1, 1..=WORK_THREADS_MAX)?;
        let Ok(_permit) = self.burners.try_acquire_many(threads) else {
            let busy = format!("more than {WORK_THREADS_MAX} threads would burn at the same time\n");
            return Ok(text(StatusCode::SERVICE_UNAVAILABLE, busy));
        };
        knobs::burn(threads, time).await;
        self.metrics.burnt(time * threads);
        Ok(ok(format!("burnt {threads} x {time:?}\n")))
    }

    async fn alloc(&self, query: &Query) -> Result<Answer, String> {
        let mib = query.number("mib", 1, 1..=knobs::HELD_MIB_MAX)?;
        let held = Arc::clone(&self.held);
        // Touching gigabytes takes seconds; other requests go on.
        let total = spawn_blocking(move || held.hold(mib)).await.map_err(|error| error.to_string())?;
        Ok(match total {
            Ok(bytes) => ok(format!("{bytes} bytes held\n")),
            Err(full) => text(StatusCode::INSUFFICIENT_STORAGE, format!("{full}\n")),
        })
    }

    fn free(&self) -> Answer {
        self.held.free();
        ok("0 bytes held\n".to_owned())
    }

    fn exit(&self, query: &Query) -> Result<Answer, String> {
        let code = query.number("code", 0, 0..=255)?;
        let code = u8::try_from(code).map_err(|error| error.to_string())?;
        Ok(self.become_fate(Fate::Exit(code), format!("exiting with {code}\n")))
    }

    fn become_fate(&self, fate: Fate, said: String) -> Answer {
        self.fate.send_replace(fate);
        text(StatusCode::ACCEPTED, said)
    }

    fn show_ready(&self) -> Answer {
        if self.ready.load(Ordering::Relaxed) {
            ok("ready\n".to_owned())
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned())
        }
    }

    fn become_ready(&self, query: &Query) -> Result<Answer, String> {
        let ready = query.number("is", 1, 0..=1)? == 1;
        self.ready.store(ready, Ordering::Relaxed);
        Ok(ok(format!("{} from now on\n", if ready { "ready" } else { "not ready" })))
    }

    fn show_metrics(&self) -> Answer {
        ok(self.metrics.to_prometheus(self.held.bytes(), self.started.elapsed()))
    }
}

async fn log(query: &Query) -> Result<Answer, String> {
    let lines = query.number("lines", 1, 0..=LOG_LINES_MAX)?;
    let bytes = query.number("bytes", 80, 0..=LOG_BYTES_MAX)?;
    // A full pipe blocks the writer, not the server.
    let written =
        spawn_blocking(move || knobs::write_lines(std::io::stdout().lock(), lines, bytes as usize)).await;
    written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    Ok(ok(format!("{lines} lines written\n")))
}

async fn fetch(query: &Query) -> Result<Answer, String> {
    Ok(match egress::get(query.text("url")?, Path::new("/etc/hosts")).await {
        Ok(fetched) => {
            let mut answer = Response::new(Full::new(fetched.body));
            answer.headers_mut().insert("x-egress-status", fetched.status.into());
            answer
        }
        Err(error) => text(StatusCode::BAD_GATEWAY, format!("{error}\n")),
    })
}

fn environment() -> Answer {
    let mut out = String::new();
    for (key, value) in std::env::vars_os() {
        // Writing to a String cannot fail.
        writeln!(out, "{}={}", key.to_string_lossy(), value.to_string_lossy()).ok();
    }
    ok(out)
}

/// Asks for what a plugin must not have: a socket that leads out of the enclave.
fn vsock() -> Answer {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    match socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) {
        Ok(_) => ok("a vsock socket\n".to_owned()),
        Err(errno) => text(StatusCode::FORBIDDEN, format!("{errno}\n")),
    }
}

fn file(query: &Query) -> Result<Answer, String> {
    let path = query.text("path")?;
    let mut bytes = Vec::new();
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) => return Ok(text(StatusCode::NOT_FOUND, format!("{path}: {error}\n"))),
    };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(format!("{path} is not a regular file"));
    }
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("{path}: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{path} is longer than {FILE_BYTES_MAX} bytes"));
    }
    Ok(Response::new(Full::new(bytes.into())))
}

fn ok(body: String) -> Answer {
    text(StatusCode::OK, body)
}

fn text(status: StatusCode, body: String) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn ask(app: &App, method: Method, uri: &str) -> (u16, String) {
        let answer = app.answer(&method, &uri.parse().unwrap()).await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn requests_work_and_are_counted() {
        let app = App::new();
        assert!(ask(&app, Method::GET, "/").await.1.starts_with("hello from pid "));
        assert_eq!(ask(&app, Method::GET, "/work?ms=10&threads=2").await.0, 200);
        assert_eq!(ask(&app, Method::GET, "/alloc?mib=3").await, (200, "3145728 bytes held\n".to_owned()));
        let metrics = ask(&app, Method::GET, "/metrics").await.1;
        for line in [
            "hello_requests_total{path=\"/\"} 1\n",
            "hello_burn_seconds_total 0.02\n",
            "hello_memory_held_bytes 3145728\n",
        ] {
            assert!(metrics.contains(line), "{metrics}");
        }
        assert_eq!(ask(&app, Method::DELETE, "/alloc").await.0, 200);
        assert!(ask(&app, Method::GET, "/metrics").await.1.contains("hello_memory_held_bytes 0\n"));
        assert!(ask(&app, Method::GET, "/env").await.1.contains("PATH="));
    }

    #[tokio::test]
    async fn it_is_ready_until_it_is_told_otherwise() {
        let app = App::new();
        assert_eq!(ask(&app, Method::GET, "/ready").await.0, 200);
        assert_eq!(ask(&app, Method::POST, "/ready?is=0").await.0, 200);
        assert_eq!(ask(&app, Method::GET, "/ready").await, (503, "not ready\n".to_owned()));
        assert_eq!(ask(&app, Method::POST, "/ready?is=1").await.0, 200);
        assert_eq!(ask(&app, Method::GET, "/ready").await.0, 200);
    }

    #[tokio::test]
    async fn bad_parameters_are_named() {
        let app = App::new();
        for (uri, named) in [
            ("/work?ms=999999999", "ms"),
            ("/work?threads=0", "threads"),
            ("/alloc?mib=many", "mib"),
            ("/log?bytes=9999999", "bytes"),
            ("/egress", "url"),
            ("/files", "path"),
            ("/files?path=/", "not a regular file"),
            ("/?a=%zz", "escape"),
        ] {
            let (status, body) = ask(&app, Method::GET, uri).await;
            assert!(status == 400 && body.contains(named), "{uri}: {status} {body}");
        }
        assert_eq!(ask(&app, Method::POST, "/exit?code=256").await.0, 400);
        assert_eq!(ask(&app, Method::GET, "/exit").await.0, 404);
        assert_eq!(*app.fate.borrow(), Fate::Serve);
    }

    #[tokio::test]
    async fn a_file_is_shown_up_to_its_bound() {
        let (app, dir) = (App::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("file");
        let uri = format!("/files?path={}", path.display());
        assert_eq!(ask(&app, Method::GET, &uri).await.0, 404);
        std::fs::write(&path, "inside").unwrap();
        assert_eq!(ask(&app, Method::GET, &uri).await, (200, "inside".to_owned()));
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(ask(&app, Method::GET, &uri).await.0, 200);
        std::fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert_eq!(ask(&app, Method::GET, &uri).await.0, 400);
    }
}

//! Accepts connections until it is told to stop, then finishes the requests that are running.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use crate::routes::{App, Fate};

/// Open connections; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 256;
/// How long running requests may take to end. Kubernetes' usual grace is 30 seconds.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// Serves until `stop`, or until a request asks for the end. Returns the exit code.
pub(crate) async fn run(listener: TcpListener, stop: impl Future<Output = ()>) -> u8 {
    let app = Arc::new(App::new());
    let mut fate = app.fate.subscribe();
    let draining = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    let code = loop {
        tokio::select! {
            // The order is fixed, so that a request for the end wins over the next connection.
            biased;
            Ok(()) = fate.changed() => {
                match *fate.borrow_and_update() {
                    Fate::Serve | Fate::Hang => {}
                    Fate::Exit(code) => break code,
                }
            }
            () = &mut stop, if *app.fate.borrow() != Fate::Hang => break 0,
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                // An error is the client's, who left before it was accepted.
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream, Arc::clone(&app), draining.subscribe()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    };
    drop(listener);
    draining.send_replace(true);
    // What does not end in time is dropped with the set.
    timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await.ok();
    code
}

async fn serve(stream: TcpStream, app: Arc<App>, mut draining: watch::Receiver<bool>) {
    let service = service_fn(|request: Request<Incoming>| {
        let app = Arc::clone(&app);
        async move {
            if *app.fate.borrow() == Fate::Hang {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(app.answer(request.method(), request.uri()).await)
        }
    });
    let connection =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // A client that breaks off is its own affair.
    tokio::select! {
        ended = connection.as_mut() => ended.ok(),
        _ = draining.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await.ok()
        }
    };
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::oneshot,
    };

    use super::*;

    async fn start() -> (SocketAddr, oneshot::Sender<()>, JoinSet<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(run(listener, async { stopped.await.unwrap() }));
        (address, stop, tasks)
    }

    async fn open(address: SocketAddr, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes()).await.unwrap();
        stream
    }

    async fn read(mut stream: TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_running_request_is_finished_before_the_end() {
        let (address, stop, mut tasks) = start().await;
        let stream = open(address, "GET /work?ms=100").await;
        // Counted when it is accepted: a second connection is served only after the first one's task began.
        let mut second = open(address, "GET /").await;
        second.read_u8().await.unwrap();
        stop.send(()).unwrap();
        assert!(read(stream).await.ends_with("burnt 1 x 100ms\n"));
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), 0);
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn exit_answers_and_ends_with_its_code() {
        let (address, _stop, mut tasks) = start().await;
        let answer = read(open(address, "POST /exit?code=7").await).await;
        assert!(answer.starts_with("HTTP/1.1 202") && answer.ends_with("exiting with 7\n"), "{answer}");
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), 7);
    }

    #[tokio::test]
    async fn after_hang_nothing_is_answered_and_stop_is_ignored() {
        let (address, stop, mut tasks) = start().await;
        open(address, "POST /hang").await.read_u8().await.unwrap();
        let mut silent = open(address, "GET /").await;
        stop.send(()).unwrap();
        let wait = Duration::from_millis(50);
        assert!(timeout(wait, silent.read_u8()).await.is_err());
        assert!(timeout(wait, tasks.join_next()).await.is_err());
    }
}

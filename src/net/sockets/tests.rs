use std::{
    collections::BTreeSet,
    future::poll_fn,
    os::fd::AsRawFd,
    pin::{Pin, pin},
    task::Poll,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt::set_socket_linger};
use tokio::time::Instant;

use super::*;

/// What PID 1 would make.
pub(in super::super) fn made(count: usize) -> Vec<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = |_| rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    (0..count).map(make).collect()
}

async fn poll_once<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    let mut future = future;
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The questions that are due, as text.
async fn questions(pools: &Pools) -> Vec<String> {
    let mut asked = Vec::new();
    while let Some(message) = poll_once(pin!(pools.wanted())).await {
        let Message::SocketsWanted { plugin, count } = message else { panic!("{message:?}") };
        asked.push(format!("{plugin} {count}"));
    }
    asked
}

#[tokio::test]
async fn an_unused_pool_asks_for_nothing_and_the_first_connection_fills_it() {
    let pools = Pools::default();
    assert_eq!(questions(&pools).await, [""; 0]);
    let mut first = pin!(pools.take("a"));
    assert!(poll_once(first.as_mut()).await.is_none());
    assert_eq!(questions(&pools).await, ["a 16"], "one waits already and the bound is the message's");
    pools.fill("a", made(16));
    first.await.unwrap();
    assert_eq!(questions(&pools).await, [""; 0]);
}

#[tokio::test]
async fn a_pool_is_filled_up_again_when_it_is_half_empty_and_asked_for_once() {
    let pools = Pools::default();
    pools.fill("a", made(KEPT));
    let mut taken = Vec::new();
    for _ in 0..KEPT - LOW {
        taken.push(pools.take("a").await.unwrap());
    }
    assert_eq!(questions(&pools).await, [""; 0]);
    taken.push(pools.take("a").await.unwrap());
    assert_eq!(questions(&pools).await, ["a 9"]);
    taken.push(pools.take("a").await.unwrap());
    assert_eq!(questions(&pools).await, [""; 0], "the last question is not answered yet");
    pools.fill("a", made(2));
    assert_eq!(questions(&pools).await, [""; 0]);
    for _ in 0..LOW {
        taken.push(pools.take("a").await.unwrap());
    }
    assert_eq!(questions(&pools).await, ["a 16"], "as many as are missing when the question goes out");
    let distinct: BTreeSet<_> = taken.iter().map(AsRawFd::as_raw_fd).collect();
    assert_eq!(distinct.len(), taken.len(), "a socket was given out twice");
}

#[tokio::test]
async fn each_plugin_has_its_own_sockets() {
    let pools = Pools::default();
    pools.fill("a", made(1));
    let mut other = pin!(pools.take("b"));
    assert!(poll_once(other.as_mut()).await.is_none());
    pools.take("a").await.unwrap();
    assert_eq!(questions(&pools).await, ["a 16", "b 16"]);
}

#[tokio::test]
async fn those_who_wait_get_their_socket_in_order_over_as_many_messages_as_it_takes() {
    let pools = Pools::default();
    let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(pools.take("a"))).collect();
    for take in &mut waiting {
        assert!(poll_once(take.as_mut()).await.is_none());
    }
    assert_eq!(questions(&pools).await, ["a 16"]);
    pools.fill("a", made(16));
    for (index, take) in waiting.iter_mut().enumerate() {
        assert_eq!(poll_once(take.as_mut()).await.is_some(), index < 16, "{index}");
    }
    assert_eq!(questions(&pools).await, ["a 16"]);
    pools.fill("a", made(16));
    for take in waiting.drain(16..) {
        take.await.unwrap();
    }
    assert_eq!(questions(&pools).await, [""; 0], "12 are kept");
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_pid_1s_refusal_or_in_time_or_at_once_when_too_many_wait() {
    let pools = Pools::default();
    let mut waiting = pin!(pools.take("a"));
    assert!(poll_once(waiting.as_mut()).await.is_none());
    questions(&pools).await;
    pools.fill("a", Vec::new());
    assert_eq!(waiting.await.unwrap_err(), NoSocket::NotMade);
    assert_eq!(questions(&pools).await, [""; 0], "nobody waits: no question after a refusal");

    let start = Instant::now();
    assert_eq!(pools.take("a").await.unwrap_err(), NoSocket::Late);
    assert_eq!(start.elapsed(), SOCKET_TIMEOUT);
    assert_eq!(questions(&pools).await, ["a 16"]);

    let mut all: Vec<_> = (0..WAITING_MAX).map(|_| Box::pin(pools.take("a"))).collect();
    for take in &mut all {
        assert!(poll_once(take.as_mut()).await.is_none());
    }
    assert_eq!(pools.take("a").await.unwrap_err(), NoSocket::Queue);
    // One that gives up makes room, and its socket goes to the next.
    drop(all.remove(0));
    let mut last = pin!(pools.take("a"));
    assert!(poll_once(last.as_mut()).await.is_none());
    pools.fill("a", made(1));
    assert!(poll_once(all[0].as_mut()).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_port_that_would_be_its_own_peer_does_not_count_as_connected() {
    // Bound but not listening: the kernel may pick the same port as the source, and connect would succeed.
    let [plain, trap] = <[OwnedFd; 2]>::try_from(made(2)).unwrap();
    rustix::net::bind(&plain, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = StdTcpStream::from(plain.try_clone().unwrap()).local_addr().unwrap();
    let itself = TcpSocket::from_std_stream(plain.into()).connect(address).await.unwrap();
    assert_eq!(itself.local_addr().unwrap(), itself.peer_addr().unwrap(), "the trap exists");
    rustix::net::sockopt::set_socket_reuseaddr(&trap, true).unwrap();
    set_socket_linger(&itself, Some(Duration::ZERO)).unwrap();
    drop(itself);
    rustix::net::bind(&trap, &address).unwrap();
    assert_eq!(connect(trap, address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

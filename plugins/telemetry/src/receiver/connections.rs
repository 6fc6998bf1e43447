//! Who may hold what of the receiver. Each plugin connects from a loopback address of its own, which `net`
//! gives it: nothing that comes from one address takes the room of another, or of a probe.
//!
//! A new connection is always taken. At a limit the oldest one that waits for a request goes: of the same
//! source, or of the source that has the most. Half-sent requests are such connections, so they displace only
//! each other.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, Id},
};

/// Open connections of one source: three signals of five processes. SDKs keep one for each.
pub(super) const CONNECTIONS_OF_ONE_MAX: usize = 16;
/// Open connections of all. With the longest head in each, they hold four megabytes.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Bodies of one source that are read at the same time.
const BODIES_OF_ONE_MAX: usize = 2;
/// Bodies of all sources, four megabytes each; three sources are needed to take them all.
const BODIES_MAX: usize = 6;

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// In the order in which they came.
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    source: IpAddr,
    is_busy: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Connections {
    /// Makes room for a connection from `source`; says whether there is any.
    pub(super) fn make_room(&mut self, source: IpAddr) -> bool {
        if self.count(source) >= CONNECTIONS_OF_ONE_MAX {
            return self.close_oldest(source);
        }
        if self.open.len() < CONNECTIONS_MAX {
            return true;
        }
        let largest = self.open.iter().map(|open| open.source).max_by_key(|source| self.count(*source));
        largest.is_some_and(|largest| self.close_oldest(largest))
    }

    /// Enters a connection whose task has been started.
    pub(super) fn enter(&mut self, source: IpAddr, is_busy: Arc<AtomicBool>, task: AbortHandle) {
        self.open.push(Open { source, is_busy, task });
    }

    /// Forgets a connection whose task has ended.
    pub(super) fn ended(&mut self, task: Id) {
        self.open.retain(|open| open.task.id() != task);
    }

    fn count(&self, source: IpAddr) -> usize {
        self.open.iter().filter(|open| open.source == source).count()
    }

    /// Closes the oldest connection of `source` on which no body is read. Fewer bodies than connections are
    /// allowed, so there is one.
    fn close_oldest(&mut self, source: IpAddr) -> bool {
        let idle = |open: &Open| open.source == source && !open.is_busy.load(Ordering::Relaxed);
        let Some(index) = self.open.iter().position(idle) else { return false };
        self.open.remove(index).task.abort();
        true
    }
}

/// The bodies that are being read.
#[derive(Debug)]
pub(super) struct Bodies {
    all: Arc<Semaphore>,
    of_one: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// The right to read one body.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    bodies: &'a Bodies,
    is_busy: &'a AtomicBool,
    own: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Bodies {
    pub(super) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(BODIES_MAX)), of_one: Mutex::default() }
    }

    /// Waits for a slot. The connection is busy while it has one.
    pub(super) async fn slot<'a>(&'a self, source: IpAddr, is_busy: &'a AtomicBool) -> Slot<'a> {
        let own = Arc::clone(
            self.sources().entry(source).or_insert_with(|| Arc::new(Semaphore::new(BODIES_OF_ONE_MAX))),
        );
        let own = own.acquire_owned().await.expect("invariant: nothing closes the semaphore");
        let all = Arc::clone(&self.all).acquire_owned().await;
        let all = all.expect("invariant: nothing closes the semaphore");
        is_busy.store(true, Ordering::Relaxed);
        Slot { bodies: self, is_busy, own: Some(own), _all: all }
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.of_one.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.is_busy.store(false, Ordering::Relaxed);
        drop(self.own.take());
        // Entries of sources that neither read nor wait, those that gave up waiting included.
        self.bodies.sources().retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::task::JoinSet;

    use super::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 65, 0, 1));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 65, 0, 2));

    struct Rig {
        connections: Connections,
        tasks: JoinSet<()>,
    }

    impl Rig {
        fn new() -> Self {
            Self { connections: Connections::default(), tasks: JoinSet::new() }
        }

        fn connect(&mut self, source: IpAddr, is_busy: bool) -> Option<Id> {
            self.connections.make_room(source).then(|| {
                let task = self.tasks.spawn(std::future::pending());
                let id = task.id();
                self.connections.enter(source, Arc::new(AtomicBool::new(is_busy)), task);
                id
            })
        }
    }

    #[tokio::test]
    async fn a_source_at_its_limit_loses_its_oldest_connection_that_waits() {
        let mut rig = Rig::new();
        rig.connect(A, true).unwrap();
        let oldest = rig.connect(A, false).unwrap();
        let other = rig.connect(B, false).unwrap();
        for _ in 0..CONNECTIONS_OF_ONE_MAX - 1 {
            rig.connect(A, false).unwrap();
        }
        let (ended, error) = rig
            .tasks
            .join_next_with_id()
            .await
            .unwrap()
            .map_or_else(|error| (error.id(), error.is_cancelled()), |(id, ())| (id, false));
        assert_eq!((ended, error), (oldest, true));
        assert_eq!(rig.connections.count(A), CONNECTIONS_OF_ONE_MAX);
        rig.connections.ended(other);
        assert_eq!(rig.connections.count(B), 0);
    }

    #[tokio::test]
    async fn when_all_are_taken_the_largest_source_makes_room() {
        let mut rig = Rig::new();
        let sources = |n: usize| IpAddr::V4(Ipv4Addr::new(127, 65, 1, u8::try_from(n).unwrap()));
        for n in 0..CONNECTIONS_MAX / CONNECTIONS_OF_ONE_MAX {
            for _ in 0..CONNECTIONS_OF_ONE_MAX {
                rig.connect(sources(n), false).unwrap();
            }
        }
        for n in 0..CONNECTIONS_MAX {
            rig.connect(IpAddr::V4(Ipv4Addr::new(127, 65, 2, u8::try_from(n).unwrap())), false).unwrap();
            assert_eq!(rig.connections.open.len(), CONNECTIONS_MAX);
        }
    }

    #[tokio::test]
    async fn one_source_cannot_take_all_the_bodies_and_its_traces_go_with_it() {
        let (bodies, busy) = (Bodies::new(), AtomicBool::new(false));
        let first = bodies.slot(A, &busy).await;
        let second = bodies.slot(A, &busy).await;
        {
            let third = bodies.slot(A, &busy);
            tokio::pin!(third);
            assert!(futures_ready(third.as_mut()).await.is_none());
        }
        let other = bodies.slot(B, &busy).await;
        assert!(busy.load(Ordering::Relaxed));
        drop((first, second, other));
        assert!(bodies.sources().is_empty() && !busy.load(Ordering::Relaxed));
    }

    async fn futures_ready<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = &mut future => Some(output),
            () = std::future::ready(()) => None,
        }
    }
}

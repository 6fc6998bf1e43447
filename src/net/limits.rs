//! How much `net` does at once, and the slots that keep count of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use enclave_protocol::relay;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most streams of one direction. A stream has two descriptors, and an enclave's hard limit is 4,096 of them
/// unless it was raised (research, nitro-runtimes §5.20): out and in use 3,072 and leave room for listeners.
/// Streams between plugins need namespaces, so a supervisor that is root and has raised it.
pub const STREAMS_MAX: usize = 768;
/// Most streams of one plugin in one direction: one plugin cannot take them all.
pub const STREAMS_PER_PLUGIN_MAX: usize = 384;

/// The bounds of one `net`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Most streams of one direction at once.
    pub streams: usize,
    /// Most streams of one plugin in one direction at once.
    pub streams_per_plugin: usize,
    /// How long a stream may be still.
    pub idle_seconds: u64,
    /// The same, once one direction has ended.
    pub linger_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let relay = relay::Limits::default();
        Self {
            streams: STREAMS_MAX,
            streams_per_plugin: STREAMS_PER_PLUGIN_MAX,
            idle_seconds: relay.idle.as_secs(),
            linger_seconds: relay.linger.as_secs(),
        }
    }
}

impl Limits {
    /// What the relay is given.
    pub(crate) fn relay(&self) -> relay::Limits {
        relay::Limits {
            idle: Duration::from_secs(self.idle_seconds),
            linger: Duration::from_secs(self.linger_seconds),
        }
    }
}

/// The slots of one direction.
#[derive(Debug)]
pub(crate) struct Slots {
    all: Arc<Semaphore>,
    per_plugin_max: usize,
    per_plugin: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

impl Slots {
    pub(crate) fn new(limits: &Limits) -> Self {
        let all = Semaphore::new(limits.streams.min(Semaphore::MAX_PERMITS));
        Self {
            all: Arc::new(all),
            per_plugin_max: limits.streams_per_plugin.min(Semaphore::MAX_PERMITS),
            per_plugin: Mutex::default(),
        }
    }

    /// One of all slots, until the permit is dropped.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.all).try_acquire_owned().ok()
    }

    /// One of a plugin's slots. Called with names of the manifest only: they bound the map.
    pub(crate) fn take_of(&self, plugin: &str) -> Option<OwnedSemaphorePermit> {
        let mut plugins = self.per_plugin.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = match plugins.get(plugin) {
            Some(slots) => slots,
            None => plugins
                .entry(plugin.to_owned())
                .or_insert_with(|| Arc::new(Semaphore::new(self.per_plugin_max))),
        };
        Arc::clone(slots).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_plugin_at_its_limit_leaves_slots_to_the_others() {
        let slots = Slots::new(&Limits { streams: 3, streams_per_plugin: 2, ..Limits::default() });
        let first = slots.take_of("a").unwrap();
        let _second = slots.take_of("a").unwrap();
        assert!(slots.take_of("a").is_none());
        assert!(slots.take_of("b").is_some());
        drop(first);
        assert!(slots.take_of("a").is_some());
        let held: Vec<_> = (0..3).map(|_| slots.take().unwrap()).collect();
        assert!(slots.take().is_none());
        drop(held);
        assert!(slots.take().is_some());
    }
}

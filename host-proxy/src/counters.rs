//! What the proxy counts, and how it reads as metric families. Labels come from the manifest and from fixed
//! words, never from a peer's bytes: their number is bounded.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use enclave_protocol::{
    metrics::{
        Family, Point,
        catalogue::{Entry, host},
    },
    relay::Moved,
};

/// All counters of one process.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Streams from the enclave to the world.
    pub(crate) egress: Arc<Gate>,
    /// Streams from the world to the enclave.
    pub(crate) ingress: Arc<Gate>,
    /// Log records written to stdout.
    pub(crate) log_records: AtomicU64,
    /// Bytes of them.
    pub(crate) log_bytes: AtomicU64,
    /// Records that the enclave says it had to drop.
    pub(crate) log_dropped: AtomicU64,
    /// Sequence numbers that neither arrived nor were said to be dropped.
    pub(crate) log_skipped: AtomicU64,
    /// Records that arrived twice and were written once.
    pub(crate) log_duplicates: AtomicU64,
    /// Lines that are no log record.
    pub(crate) log_malformed: AtomicU64,
    /// Writes to stdout that failed.
    pub(crate) log_sink_errors: AtomicU64,
    /// Log streams that were opened.
    pub(crate) log_streams: AtomicU64,
    /// Manifests that were accepted: one per boot of the enclave.
    pub(crate) manifests_accepted: AtomicU64,
    /// Status calls that had no answer.
    pub(crate) status_failures: AtomicU64,
    /// Connection tasks that panicked.
    pub(crate) panics: AtomicU64,
    /// Times that accepting paused for want of descriptors or memory.
    pub(crate) accept_pauses: AtomicU64,
    /// Connections of somebody who is not our enclave.
    pub(crate) foreign_peers: AtomicU64,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Streams of one direction.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    opened: AtomicU64,
    /// Bytes of streams that have ended.
    ended: Moved,
    active: Mutex<BTreeMap<u64, Arc<Moved>>>,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

/// One stream in the count; leaves it when dropped.
#[derive(Debug)]
pub(crate) struct Passage {
    gate: Arc<Gate>,
    number: u64,
    /// The stream's own bytes: `forward` away from the enclave on egress, towards it on ingress.
    pub(crate) moved: Arc<Moved>,
}

impl Gate {
    /// A stream is connected.
    pub(crate) fn enter(self: &Arc<Self>) -> Passage {
        let number = self.opened.fetch_add(1, Relaxed);
        let moved = Arc::new(Moved::default());
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.insert(number, Arc::clone(&moved));
        Passage { gate: Arc::clone(self), number, moved }
    }

    /// A stream is refused for this reason.
    pub(crate) fn refuse(&self, reason: &'static str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(reason).or_insert(0) += 1;
    }

    /// How often this reason refused a stream.
    #[cfg(test)]
    pub(crate) fn refusals(&self, reason: &str) -> u64 {
        self.refused.lock().unwrap().get(reason).copied().unwrap_or(0)
    }

    fn families(&self, way: &str) -> Vec<Family> {
        let (active, forward, backward) = {
            let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            let sum = |of: fn(&Moved) -> &AtomicU64| {
                active.values().map(|moved| of(moved).load(Relaxed)).sum::<u64>()
                    + of(&self.ended).load(Relaxed)
            };
            (active.len(), sum(|moved| &moved.forward), sum(|moved| &moved.backward))
        };
        // Forward is away from whoever opened the stream: the enclave on egress, the world on ingress.
        let (towards_world, towards_enclave) =
            if way == "egress" { (forward, backward) } else { (backward, forward) };
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let refusals = refused.iter().map(|(reason, n)| Point::labelled([("reason", reason)], *n as f64));
        let [connections, now, bytes, refused] = if way == "egress" {
            [&host::EGRESS_CONNECTIONS, &host::EGRESS_ACTIVE, &host::EGRESS_BYTES, &host::EGRESS_REFUSED]
        } else {
            [&host::INGRESS_CONNECTIONS, &host::INGRESS_ACTIVE, &host::INGRESS_BYTES, &host::INGRESS_REFUSED]
        };
        let moved = [("world", towards_world), ("enclave", towards_enclave)];
        vec![
            connections.bare(self.opened.load(Relaxed) as f64),
            now.bare(active as f64),
            bytes.family(moved.map(|(to, bytes)| Point::labelled([("to", to)], bytes as f64)).to_vec()),
            refused.family(refusals.collect()),
        ]
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut active = self.gate.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.remove(&self.number);
        self.gate.ended.forward.fetch_add(self.moved.forward.load(Relaxed), Relaxed);
        self.gate.ended.backward.fetch_add(self.moved.backward.load(Relaxed), Relaxed);
    }
}

impl Counters {
    /// Everything as families; `dials` is the number of control connections.
    pub(crate) fn families(&self, dials: u64) -> Vec<Family> {
        let one = |entry: &Entry, counter: &AtomicU64| entry.bare(counter.load(Relaxed) as f64);
        let mut families = self.egress.families("egress");
        families.extend(self.ingress.families("ingress"));
        families.extend([
            one(&host::LOG_RECORDS, &self.log_records),
            one(&host::LOG_BYTES, &self.log_bytes),
            one(&host::LOG_DROPPED, &self.log_dropped),
            one(&host::LOG_SKIPPED, &self.log_skipped),
            one(&host::LOG_DUPLICATES, &self.log_duplicates),
            one(&host::LOG_MALFORMED, &self.log_malformed),
            one(&host::LOG_SINK_ERRORS, &self.log_sink_errors),
            one(&host::LOG_STREAMS, &self.log_streams),
            one(&host::MANIFESTS_ACCEPTED, &self.manifests_accepted),
            one(&host::STATUS_FAILURES, &self.status_failures),
            one(&host::PANICS, &self.panics),
            one(&host::ACCEPT_PAUSES, &self.accept_pauses),
            one(&host::FOREIGN_PEERS, &self.foreign_peers),
            host::CONTROL_CONNECTIONS.bare(dials as f64),
        ]);
        families
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_while_a_stream_runs_and_once_when_it_has_ended() {
        let gate = Arc::new(Gate::default());
        let text = |gate: &Gate| format!("{:?}", gate.families("egress"));
        let passage = gate.enter();
        passage.moved.forward.fetch_add(5, Relaxed);
        let running = text(&gate);
        drop(passage);
        let ended = text(&gate);
        assert!(running.contains("5.0") && ended.contains("5.0") && running != ended);
        gate.refuse("not_allowed");
        assert!(text(&gate).contains("not_allowed"));
    }
}

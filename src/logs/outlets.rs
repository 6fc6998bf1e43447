//! The ways on which records leave: rings for the host, and rings for the telemetry plugin, which sends them
//! by OTLP.
//!
//! Every source goes one of the two ways, or none, so that neither reader can be given the other's records,
//! and each has a sequence without holes of its own. Until a manifest says more, the supervisor's own records
//! wait in the host's rings, which the host cannot read before.
//!
//! ```text
//! plugin: host ───┐                          ┌─▶ host rings   ─▶ GET /v1/logs of the host, and of grants
//! plugin: otlp ───┼─ route of each source ───┤
//! supervisor, net ┘                          └─▶ export rings ─▶ GET /v1/logs of the telemetry plugin
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use enclave_protocol::control::{LogRoute, LogStream};

use super::ring::{Line, Rings, SUPERVISOR, Totals};
use crate::clock;

/// See the module.
#[derive(Debug, Default)]
pub struct Outlets {
    /// What the host reads.
    pub host: Arc<Rings>,
    /// What the telemetry plugin reads.
    pub export: Arc<Rings>,
    /// Where the supervisor's own records go. Held while one is put there.
    own: Mutex<LogRoute>,
}

impl Outlets {
    /// The rings of a route; none for records that nobody gets.
    pub fn rings(&self, route: LogRoute) -> Option<&Arc<Rings>> {
        match route {
            LogRoute::Host => Some(&self.host),
            LogRoute::Otlp => Some(&self.export),
            LogRoute::None => None,
        }
    }

    /// Keeps a record of the supervisor's own, without its newline.
    pub fn push_own(&self, bytes: &[u8]) {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rings) = self.rings(*own) {
            let (source, stream) = (SUPERVISOR, LogStream::Supervisor);
            rings.push(&Line { source, stream, bytes, partial: false, time: clock::wall() });
        }
    }

    /// Takes the manifest's word on the supervisor's records, those of the boot included. It comes once, and
    /// before the host could read any.
    pub fn route_own(&self, route: LogRoute) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        *own = route;
        match route {
            LogRoute::Host => {}
            LogRoute::Otlp => self.host.hand_over(Some(&self.export)),
            LogRoute::None => self.host.hand_over(None),
        }
    }

    /// Totals by source, over all ways.
    pub fn totals(&self) -> BTreeMap<String, Totals> {
        let mut totals = self.host.totals();
        totals.extend(self.export.totals());
        totals
    }
}

#[cfg(test)]
mod tests {
    use enclave_protocol::control::LogRecord;

    use super::*;

    fn texts(rings: &Rings) -> Vec<(u64, u64, String)> {
        let text = |record: LogRecord| (record.seq, record.dropped, record.text.unwrap());
        rings.read(0, usize::MAX).into_iter().map(text).collect()
    }

    #[test]
    fn the_records_of_the_boot_go_where_the_manifest_sends_the_supervisors() {
        for (route, host, export) in [
            (LogRoute::Host, &[1, 2][..], &[][..]),
            (LogRoute::Otlp, &[], &[1, 2]),
            (LogRoute::None, &[], &[]),
        ] {
            let outlets = Outlets::default();
            outlets.push_own(b"boot");
            outlets.route_own(route);
            outlets.push_own(b"later");
            let seqs = |rings: &Rings| texts(rings).iter().map(|(seq, ..)| *seq).collect::<Vec<_>>();
            assert_eq!((seqs(&outlets.host).as_slice(), seqs(&outlets.export).as_slice()), (host, export));
            let newest = |rings: &Rings| *rings.subscribe().borrow();
            assert_eq!(newest(&outlets.host), host.len() as u64);
            assert_eq!(newest(&outlets.export), export.len() as u64);
            let known = if route == LogRoute::None { 1 } else { 2 };
            assert_eq!(outlets.totals()[SUPERVISOR].records, known, "a counter never goes back");
        }
    }

    #[test]
    fn a_plugins_first_record_has_no_gap_before_it_when_the_supervisors_went_elsewhere() {
        let outlets = Outlets::default();
        outlets.push_own(b"boot");
        outlets.route_own(LogRoute::Otlp);
        let line =
            Line { source: "a", stream: LogStream::Stdout, bytes: b"x", partial: false, time: clock::wall() };
        outlets.rings(LogRoute::Host).unwrap().push(&line);
        assert_eq!(texts(&outlets.host), [(1, 0, "x".to_owned())]);
        assert_eq!(texts(&outlets.export), [(1, 0, "boot".to_owned())]);
        assert!(outlets.rings(LogRoute::None).is_none());
    }
}

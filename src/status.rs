//! The status that readers see, made from the engine's snapshot.

use std::collections::BTreeMap;

use enclave_protocol::control::{Phase, Status};

/// The status before a manifest is accepted.
pub fn awaiting(boot_id: &str) -> Status {
    Status {
        boot_id: boot_id.to_owned(),
        digest: None,
        deployment: None,
        phase: Phase::AwaitingManifest,
        ready: false,
        conditions: Vec::new(),
        seq: 0,
        log_seq: 0,
        plugins: Vec::new(),
        measurements: BTreeMap::new(),
        telemetry: None,
    }
}

//! The wall clock, read here alone.

use std::time::{SystemTime, UNIX_EPOCH};

use enclave_protocol::timestamp::Timestamp;

/// Now. A clock before 1970 reads as 1970.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

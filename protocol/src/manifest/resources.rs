//! Limits of a plugin.

use super::cursor::{Cursor, Mapping};
use super::quantity;

/// The kernel's `PID_MAX_LIMIT` on 64-bit machines.
const PIDS_MAX: u32 = 4_194_304;

/// What a plugin may use at most; unlimited where there is no number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPUs in thousandths.
    pub cpu_millis: Option<u64>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// Reads `resources`. `requests` are for a scheduler, which an enclave does not have: checked, then
/// forgotten.
pub(super) fn check(cursor: &Cursor<'_>) -> Limits {
    let Some(mut fields) = cursor.mapping() else { return Limits::default() };
    let limits = fields.field("limits").and_then(|c| check_limits(&c));
    let requests = fields.field("requests").and_then(|c| check_limits(&c));
    fields.finish();
    let limits = limits.unwrap_or_default();
    let above =
        |request: Option<u64>, limit: Option<u64>| matches!((request, limit), (Some(r), Some(l)) if r > l);
    if let Some(requests) = requests
        && (above(requests.cpu_millis, limits.cpu_millis)
            || above(requests.memory_bytes, limits.memory_bytes))
    {
        cursor.error("a request is larger than its limit");
    }
    limits
}

fn check_limits(cursor: &Cursor<'_>) -> Option<Limits> {
    let mut fields = cursor.mapping()?;
    let limits = Limits {
        cpu_millis: positive(&mut fields, "cpu", quantity::check_millis),
        memory_bytes: positive(&mut fields, "memory", quantity::check_whole),
        pids: fields.field("pids").and_then(|c| c.integer(1..=PIDS_MAX)),
    };
    fields.finish();
    Some(limits)
}

fn positive(
    fields: &mut Mapping<'_>,
    name: &'static str,
    check: fn(&Cursor<'_>) -> Option<u64>,
) -> Option<u64> {
    let cursor = fields.field(name)?;
    let value = check(&cursor)?;
    if value == 0 {
        cursor.error("must be more than 0");
    }
    Some(value)
}

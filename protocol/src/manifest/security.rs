//! What a plugin may do inside.

use std::collections::BTreeSet;

use super::cursor::Cursor;
use super::nearest::nearest;
use super::scalar::quoted;

/// Largest user or group id Kubernetes takes.
const ID_MAX: u32 = i32::MAX.unsigned_abs();

/// The kernel's capabilities, without `CAP_` (capability.h of Linux 6.x).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A plugin's `securityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// User id; the image's user without it.
    pub user: Option<u32>,
    /// Group id; the image's group without it.
    pub group: Option<u32>,
    /// Whether the root file system cannot be written.
    pub read_only_root: bool,
    /// Capabilities beyond the usual ones, without `CAP_`; `ALL` stands for every one.
    pub capabilities_add: BTreeSet<String>,
    /// Capabilities taken away.
    pub capabilities_drop: BTreeSet<String>,
}

pub(super) fn check(cursor: &Cursor<'_>) -> Security {
    let Some(mut fields) = cursor.mapping() else { return Security::default() };
    let user = fields.field("runAsUser").and_then(|c| c.integer(0..=ID_MAX));
    let group = fields.field("runAsGroup").and_then(|c| c.integer(0..=ID_MAX));
    let read_only_root = fields.field("readOnlyRootFilesystem").and_then(|c| c.boolean()).unwrap_or(false);
    let capabilities = fields.field("capabilities");
    fields.finish();
    let (capabilities_add, capabilities_drop) =
        capabilities.and_then(|c| check_capabilities(&c)).unwrap_or_default();
    Security { user, group, read_only_root, capabilities_add, capabilities_drop }
}

fn check_capabilities(cursor: &Cursor<'_>) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
    let mut fields = cursor.mapping()?;
    let add = fields.field("add").map(|list| check_list(&list)).unwrap_or_default();
    let drop = fields.field("drop").map(|list| check_list(&list)).unwrap_or_default();
    fields.finish();
    Some((add, drop))
}

fn check_list(list: &Cursor<'_>) -> BTreeSet<String> {
    let capability = |cursor: &Cursor<'_>| {
        let text = cursor.string()?;
        let name = text.strip_prefix("CAP_").unwrap_or(text);
        if name == "ALL" || CAPABILITIES.contains(&name) {
            return Some(name.to_owned());
        }
        let hint = nearest(name, CAPABILITIES).map(|near| format!("; did you mean {near}?"));
        cursor.error(format!("unknown capability {}{}", quoted(text), hint.unwrap_or_default()));
        None
    };
    list.items(2 * CAPABILITIES.len()).iter().filter_map(capability).collect()
}

//! What one check of a manifest knows beside the tree: the context, and what plugins share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::Context;
use super::cursor::Cursor;

/// host-proxy's own listeners: metrics and health.
pub const RESERVED_HOST_PORTS: [u16; 2] = [59090, 59091];
/// File-sourced host names in one manifest; each reads a file once.
const REFERENCES_MAX: usize = 32;

/// Shared by the checkers of one manifest.
pub(super) struct Scope<'a> {
    pub(super) context: &'a Context<'a>,
    host_ports: RefCell<BTreeMap<u16, String>>,
    names: RefCell<BTreeMap<String, String>>,
    references: Cell<usize>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(context: &'a Context<'a>) -> Self {
        Self { context, host_ports: RefCell::default(), names: RefCell::default(), references: Cell::new(0) }
    }

    /// Host ports are unique in the pod.
    pub(super) fn claim_host_port(&self, cursor: &Cursor<'_>, port: u16) {
        if RESERVED_HOST_PORTS.contains(&port) || self.context.reserved_host_ports.contains(&port) {
            cursor.error(format!("hostPort {port} is one of host-proxy's own listeners"));
        } else if let Some(first) = self.host_ports.borrow_mut().insert(port, cursor.path.clone()) {
            cursor.error(format!("hostPort {port} is already used at {first}"));
        }
    }

    /// Plugin names are unique over `spec.plugins` and `spec.userPlugins`. Answers where the name stands
    /// already.
    pub(super) fn claim_name(&self, name: &str, path: &str) -> Option<String> {
        let mut names = self.names.borrow_mut();
        let first = names.get(name).cloned();
        names.entry(name.to_owned()).or_insert_with(|| path.to_owned());
        first
    }

    /// Counts a file-sourced host name. Whether it may be read.
    pub(super) fn claim_reference(&self, cursor: &Cursor<'_>) -> bool {
        self.references.set(self.references.get() + 1);
        let within = self.references.get() <= REFERENCES_MAX;
        if !within {
            cursor.error(format!("more than {REFERENCES_MAX} host names are read from files"));
        }
        within
    }
}

//! From metrics to compressed OTLP requests, each within what collectors take.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};

use super::{
    origin::scope,
    wire::{field_len, message, put_bytes, put_head},
};

/// A request is closed when it has grown to this many bytes before compression: gRPC gateways and the
/// receivers behind them stop at 4 MiB by default.
const REQUEST_BYTES_MAX: usize = 2 << 20;
/// The same in data points.
const REQUEST_POINTS_MAX: u64 = 10_000;

/// One compressed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// The gzip body.
    pub(crate) body: Vec<u8>,
    /// Its data points.
    pub(crate) items: u64,
}

/// Requests while they grow. The buffers are kept from one page to the next.
#[derive(Debug, Default)]
pub(super) struct Batches {
    /// Finished `ScopeMetrics` of the request, when there is more than one scope.
    scopes: Vec<u8>,
    /// The scope of `metrics`, as field 1 of `ScopeMetrics`.
    scope: Vec<u8>,
    /// `Metric`s, each as field 2 of `ScopeMetrics`.
    metrics: Vec<u8>,
    /// Attributes beside the target's own.
    resource: Vec<u8>,
    items: u64,
    done: Vec<Encoded>,
}

impl Batches {
    pub(super) fn clear(&mut self) {
        self.scopes.clear();
        self.scope.clear();
        self.metrics.clear();
        self.resource.clear();
        self.done.clear();
        self.items = 0;
    }

    /// Gives back memory that an unusually long page took.
    pub(super) fn shrink(&mut self) {
        self.metrics.shrink_to(REQUEST_BYTES_MAX);
        self.scopes.shrink_to(REQUEST_BYTES_MAX);
    }

    /// From here on metrics belong to another scope.
    pub(super) fn set_scope(&mut self, name: &str, version: &str) {
        self.close_scope();
        scope(&mut self.scope, name, version);
    }

    /// An attribute of the resource, encoded as field 1 of it.
    pub(super) fn resource(&mut self) -> &mut Vec<u8> {
        &mut self.resource
    }

    /// Appends one `Metric` from its head (name, unit, …) and its data message (key, head and points, tail).
    pub(super) fn metric(&mut self, head: &[u8], data: u8, points: &[u8], tail: &[u8], items: u64) {
        let inner = points.len() + tail.len();
        put_head(&mut self.metrics, message(2), head.len() + field_len(inner));
        self.metrics.extend_from_slice(head);
        put_head(&mut self.metrics, message(data), inner);
        self.metrics.extend_from_slice(points);
        self.metrics.extend_from_slice(tail);
        self.items += items;
    }

    /// Whether the request should be closed, given what waits outside.
    pub(super) fn is_full(&self, bytes: usize, items: u64) -> bool {
        self.scopes.len() + self.metrics.len() + bytes >= REQUEST_BYTES_MAX
            || self.items + items >= REQUEST_POINTS_MAX
    }

    /// Closes the request.
    pub(super) fn seal(&mut self, resource: &[u8]) {
        let scope = self.scope.clone();
        self.close_scope();
        self.scope = scope;
        if self.items == 0 {
            return;
        }
        let mut head = Vec::with_capacity(64 + resource.len() + self.resource.len());
        let attributes = resource.len() + self.resource.len();
        put_head(&mut head, message(1), field_len(attributes) + self.scopes.len());
        put_head(&mut head, message(1), attributes);
        head.extend_from_slice(resource);
        head.extend_from_slice(&self.resource);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        let body =
            gzip.write_all(&head).and_then(|()| gzip.write_all(&self.scopes)).and_then(|()| gzip.finish());
        let body = body.expect("invariant: writing into a Vec cannot fail");
        self.scopes.clear();
        self.done.push(Encoded { body, items: std::mem::take(&mut self.items) });
    }

    /// The closed requests.
    pub(super) fn take(&mut self) -> Vec<Encoded> {
        std::mem::take(&mut self.done)
    }

    fn close_scope(&mut self) {
        if !self.metrics.is_empty() {
            put_head(&mut self.scopes, message(2), self.scope.len() + self.metrics.len());
            self.scopes.extend_from_slice(&self.scope);
            self.scopes.extend_from_slice(&self.metrics);
            self.metrics.clear();
        }
        self.scope.clear();
    }
}

/// A part of `KeyValue`s of `Metric.metadata` with the original type.
pub(super) fn put_type(out: &mut Vec<u8>, word: &str) {
    super::wire::put_attribute(out, message(12), "prometheus.type", word);
}

/// The head of a `Metric`.
pub(super) fn put_metric_head(out: &mut Vec<u8>, name: &str, help: &str, unit: &str, word: &str) {
    out.clear();
    put_bytes(out, message(1), name.as_bytes());
    super::wire::put_text(out, message(2), help);
    super::wire::put_text(out, message(3), unit);
    put_type(out, word);
}

//! The identity on an app's data: on every resource, and on every data point. Reserved names that the app
//! uses itself move to `exported_…`. One pass; everything that is added is taken from a bounded room first.

use std::collections::HashSet;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{Metric, metric::Data},
    resource::v1::Resource,
};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, message},
};

use crate::{
    identity::{self, Forgery, Identity},
    intake::{ATTRIBUTES_MAX, BODY_BYTES_MAX, IntakeError},
    otlp::Export,
    wire::{Fields, Value},
};

/// The label for an app's own `service.instance.id`. It keeps the series of two processes of one plugin
/// apart, since `instance` is the enclave's.
const EXPORTED_INSTANCE: &str = "exported_instance";
/// Key and length of an inner message: both of one byte to five.
const FRAME_BYTES: usize = 10;

/// Bytes that may still be added to a request.
struct Room(usize);

impl Room {
    fn beside(bytes: usize) -> Result<Self, IntakeError> {
        BODY_BYTES_MAX.checked_sub(bytes).map(Self).ok_or(IntakeError::TooLarge)
    }

    fn take(&mut self, bytes: usize) -> Result<(), IntakeError> {
        self.0 = self.0.checked_sub(bytes).ok_or(IntakeError::TooLarge)?;
        Ok(())
    }
}

/// Puts the identity on metrics: the resources and the points of every type. A metric that a reader could
/// take for one of ours gets another name. Resources, scopes and metrics without points are dropped.
pub(crate) fn metrics(export: &mut Export, identity: &Identity) -> Result<(), IntakeError> {
    for group in &mut export.resource_metrics {
        for scope in &mut group.scope_metrics {
            scope.metrics.retain(|metric| !is_empty(metric));
        }
        group.scope_metrics.retain(|scope| !scope.metrics.is_empty());
    }
    export.resource_metrics.retain(|group| !group.scope_metrics.is_empty());
    let mut room = Room::beside(export.encoded_len())?;
    let labels: Vec<KeyValue> = identity.labels().map(|(key, value)| text(key, value)).collect();
    for group in &mut export.resource_metrics {
        let instance = on_resource(group.resource.get_or_insert_default(), identity, &mut room)?;
        for metric in group.scope_metrics.iter_mut().flat_map(|scope| &mut scope.metrics) {
            rename(metric, &mut room)?;
            on_points(metric, identity, &labels, instance.as_ref(), &mut room)?;
        }
    }
    // The lengths of the messages around have grown too.
    if export.encoded_len() > BODY_BYTES_MAX { Err(IntakeError::TooLarge) } else { Ok(()) }
}

/// Puts the identity on the resources of logs or traces, and leaves the rest of the bytes as they are.
/// Resources and scopes without items are dropped.
pub(crate) fn groups(request: &[u8], identity: &Identity) -> Result<Vec<u8>, IntakeError> {
    let mut room = Room::beside(request.len())?;
    let mut out = Vec::with_capacity(request.len());
    let mut fields = Fields(request);
    while let Some((number, value)) = fields.next()? {
        if let (1, Value::Bytes(group)) = (number, value) {
            regroup(group, identity, &mut room, &mut out)?;
        }
    }
    if out.len() > BODY_BYTES_MAX { Err(IntakeError::TooLarge) } else { Ok(out) }
}

/// `ResourceLogs` and `ResourceSpans` have the same form: resource, scopes, schema; and their scopes have
/// their items in field 2.
fn regroup(group: &[u8], identity: &Identity, room: &mut Room, out: &mut Vec<u8>) -> Result<(), IntakeError> {
    let (mut resource, mut scopes, mut schema) = (Resource::default(), Vec::new(), None);
    let mut fields = Fields(group);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(bytes)) => resource.merge(bytes).map_err(|_| IntakeError::Malformed)?,
            (2, Value::Bytes(scope)) if has_items(scope)? => scopes.push(scope),
            (3, Value::Bytes(url)) => schema = Some(url),
            _ => {}
        }
    }
    if scopes.is_empty() {
        return Ok(());
    }
    on_resource(&mut resource, identity, room)?;
    let parts = scopes.into_iter().map(|scope| (2, scope)).chain(schema.map(|url| (3, url)));
    let parts: Vec<(u32, &[u8])> = parts.collect();
    let length = message::encoded_len(1, &resource)
        + parts.iter().map(|(_, part)| 1 + encoded_len_varint(part.len() as u64) + part.len()).sum::<usize>();
    encode_key(1, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
    message::encode(1, &resource, out);
    for (number, part) in parts {
        encode_key(number, WireType::LengthDelimited, out);
        encode_varint(part.len() as u64, out);
        out.extend_from_slice(part);
    }
    Ok(())
}

fn has_items(scope: &[u8]) -> Result<bool, IntakeError> {
    let mut fields = Fields(scope);
    while let Some((number, _)) = fields.next()? {
        if number == 2 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts the identity on a resource; returns the label for the app's own instance id, if it has one.
fn on_resource(
    resource: &mut Resource,
    identity: &Identity,
    room: &mut Room,
) -> Result<Option<KeyValue>, IntakeError> {
    let attributes = &mut resource.attributes;
    // An app's own service.name stays: it alone keeps two apps' series of one name apart. Where it is the
    // deployment's, job and instance are those of our series; the names never are, since ours are moved.
    let is_named = attributes.iter().any(|attribute| attribute.key == identity::SERVICE_NAME);
    let service = identity.service().filter(|(key, _)| !(is_named && *key == identity::SERVICE_NAME));
    let added: Vec<_> = identity.labels().chain(service).map(|(key, value)| text(key, value)).collect();
    let instance = attributes.iter().find(|attribute| attribute.key == identity::SERVICE_INSTANCE);
    let instance = instance.map(|own| KeyValue { key: EXPORTED_INSTANCE.to_owned(), ..own.clone() });
    let reserved = |key: &str| identity.reserves_on_resource(key) || identity::names_origin(key);
    let has_moved = relabel(attributes, &added, reserved, room)?;
    if has_moved {
        // They name attributes by keys that are no longer there.
        resource.entity_refs.clear();
    }
    Ok(instance)
}

/// Gives a metric another name if a reader could take it for one of ours.
fn rename(metric: &mut Metric, room: &mut Room) -> Result<(), IntakeError> {
    let Some(forgery) = identity::forgery(&metric.name, &metric.unit) else { return Ok(()) };
    let name = identity::exported(&metric.name, |_| false);
    room.take(name.len() - metric.name.len())?;
    metric.name = name;
    if forgery == Forgery::Unit {
        metric.unit.clear();
    }
    Ok(())
}

fn on_points(
    metric: &mut Metric,
    identity: &Identity,
    labels: &[KeyValue],
    instance: Option<&KeyValue>,
    room: &mut Room,
) -> Result<(), IntakeError> {
    // Readers make these of the point itself.
    let made = match metric.data {
        Some(Data::Histogram(_) | Data::ExponentialHistogram(_)) => "le",
        Some(Data::Summary(_)) => "quantile",
        None | Some(Data::Gauge(_) | Data::Sum(_)) => "",
    };
    let reserved = |key: &str| {
        identity.reserves(key) || identity::names_origin(key) || (!made.is_empty() && key == made)
    };
    for attributes in attributes_mut(metric) {
        relabel(attributes, labels, reserved, room)?;
        if let Some(instance) = instance
            && !attributes.iter().any(|attribute| attribute.key == instance.key)
        {
            room.take(message::encoded_len(1, instance))?;
            attributes.push(instance.clone());
        }
    }
    Ok(())
}

/// Moves reserved names away and adds attributes; returns whether a name was moved.
fn relabel(
    attributes: &mut Vec<KeyValue>,
    added: &[KeyValue],
    reserved: impl Fn(&str) -> bool,
    room: &mut Room,
) -> Result<bool, IntakeError> {
    if attributes.len() > ATTRIBUTES_MAX {
        return Err(IntakeError::Attributes);
    }
    let mut keys = HashSet::with_capacity(attributes.len());
    if !attributes.iter().all(|attribute| keys.insert(attribute.key.as_str())) {
        return Err(IntakeError::Duplicate);
    }
    let mut moves: Vec<(usize, String)> = Vec::new();
    for (index, attribute) in attributes.iter().enumerate().filter(|(_, a)| reserved(&a.key)) {
        // Every step of the search is a key that is there: all of them together are linear in the request.
        let key = identity::exported(&attribute.key, |key| {
            keys.contains(key) || moves.iter().any(|(_, moved)| moved == key)
        });
        room.take(key.len() - attribute.key.len() + FRAME_BYTES)?;
        moves.push((index, key));
    }
    let has_moved = !moves.is_empty();
    for (index, key) in moves {
        attributes[index].key = key;
    }
    room.take(added.iter().map(|attribute| message::encoded_len(1, attribute)).sum())?;
    attributes.extend_from_slice(added);
    Ok(has_moved)
}

/// A text attribute.
pub(crate) fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn is_empty(metric: &Metric) -> bool {
    match &metric.data {
        None => true,
        Some(Data::Gauge(gauge)) => gauge.data_points.is_empty(),
        Some(Data::Sum(sum)) => sum.data_points.is_empty(),
        Some(Data::Histogram(histogram)) => histogram.data_points.is_empty(),
        Some(Data::ExponentialHistogram(histogram)) => histogram.data_points.is_empty(),
        Some(Data::Summary(summary)) => summary.data_points.is_empty(),
    }
}

/// The attributes of every point.
fn attributes_mut(metric: &mut Metric) -> Vec<&mut Vec<KeyValue>> {
    match &mut metric.data {
        None => Vec::new(),
        Some(Data::Gauge(gauge)) => gauge.data_points.iter_mut().map(|p| &mut p.attributes).collect(),
        Some(Data::Sum(sum)) => sum.data_points.iter_mut().map(|p| &mut p.attributes).collect(),
        Some(Data::Histogram(histogram)) => {
            histogram.data_points.iter_mut().map(|p| &mut p.attributes).collect()
        }
        Some(Data::ExponentialHistogram(histogram)) => {
            histogram.data_points.iter_mut().map(|p| &mut p.attributes).collect()
        }
        Some(Data::Summary(summary)) => summary.data_points.iter_mut().map(|p| &mut p.attributes).collect(),
    }
}

#[cfg(test)]
mod tests;

//! The OpenTelemetry SDK: the supervisor's families become observable instruments, opentelemetry-otlp encodes
//! them.
//!
//! A manual reader collects when a sample has arrived, on the caller's task: no exporter thread, no reactor
//! to miss, no export that can hang. The exporter's HTTP client only keeps the encoded body; the network is
//! the sender's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use enclave_protocol::metrics::{Family, Kind};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    metrics::{Meter, MeterProvider as _},
};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{MetricExporter, Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    metrics::{
        InstrumentKind, ManualReader, Pipeline as SdkPipeline, SdkMeterProvider, Temporality,
        data::ResourceMetrics, exporter::PushMetricExporter as _, reader::MetricReader,
    },
};
use prost::Message as _;

use crate::{
    identity::{self, Identity},
    otlp::Export,
};

/// Constant, and with no version of ours in it: exporters make labels of both, a change would begin new
/// series.
pub(crate) const SCOPE: &str = "enclave-telemetry";
pub(crate) const SCOPE_VERSION: &str = "1";
/// The SDK keeps this many label sets per instrument and folds the rest into one without labels.
pub(crate) const SERIES_MAX: usize = 2000;
/// Never dialled: the client below keeps the body. The exporter wants some URL.
const NOWHERE: &str = "http://localhost/v1/metrics";

/// The SDK for one identity. Another identity needs another pipeline, since a resource cannot change.
pub(crate) struct Pipeline {
    identity: Identity,
    provider: SdkMeterProvider,
    meter: Meter,
    reader: SharedReader,
    exporter: MetricExporter,
    body: Capture,
    observed: Arc<Mutex<Vec<Family>>>,
    instruments: BTreeSet<(String, Kind, String)>,
}

/// Why nothing could be encoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PipelineError {
    /// The exporter refuses its configuration, for example an `OTEL_EXPORTER_OTLP_…` variable.
    #[error("building the OTLP exporter")]
    Build(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Collecting or encoding failed.
    #[error("encoding the metrics")]
    Sdk(#[from] OTelSdkError),
    /// The exporter's body does not decode.
    #[error("the encoded metrics do not decode")]
    Decode(#[from] prost::DecodeError),
}

impl Pipeline {
    /// A provider whose resource names this identity, and has these attributes beside it.
    pub(crate) fn new(identity: Identity, beside: &BTreeMap<String, String>) -> Result<Self, PipelineError> {
        let body = Capture::default();
        let exporter = MetricExporter::builder()
            .with_temporality(Temporality::Cumulative)
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(NOWHERE)
            .with_http_client(body.clone())
            .build()?;
        let attributes = identity.labels().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let service = identity.service().map(|(key, value)| (key.to_owned(), value.to_owned()));
        // The identity comes last: of two attributes with one name the SDK keeps the later one.
        let beside = beside.iter().map(|(key, value)| (key.clone(), value.clone()));
        let resource = Resource::builder_empty()
            .with_attributes(
                beside.chain(attributes).chain(service).map(|(key, value)| KeyValue::new(key, value)),
            )
            .build();
        let reader =
            SharedReader(Arc::new(ManualReader::builder().with_temporality(Temporality::Cumulative).build()));
        let provider =
            SdkMeterProvider::builder().with_resource(resource).with_reader(reader.clone()).build();
        let scope = InstrumentationScope::builder(SCOPE).with_version(SCOPE_VERSION).build();
        let meter = provider.meter_with_scope(scope);
        let (observed, instruments) = (Arc::default(), BTreeSet::new());
        Ok(Self { identity, provider, meter, reader, exporter, body, observed, instruments })
    }

    /// Whose metrics these are.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Collects `families` and gives back the export that the exporter made of them, and how many points
    /// there were too many of. Families not named again are not in it: nothing stale is ever observed.
    pub(crate) async fn export(&mut self, mut families: Vec<Family>) -> Result<(Export, u64), PipelineError> {
        let mut surplus = 0;
        for family in &mut families {
            surplus += family.points.len().saturating_sub(SERIES_MAX);
            family.points.truncate(SERIES_MAX);
            self.register(family);
        }
        *self.observed.lock().unwrap_or_else(PoisonError::into_inner) = families;
        let mut collected = ResourceMetrics::default();
        self.reader.collect(&mut collected)?;
        self.exporter.export(&collected).await?;
        Ok((Export::decode(self.body.take())?, surplus as u64))
    }

    /// Makes the instrument of a family that is seen for the first time.
    fn register(&mut self, family: &Family) {
        let (name, help, unit) = (family.name.clone(), family.help.clone(), family.unit.clone());
        let kind = family.kind;
        if !self.instruments.insert((name.clone(), kind, unit.clone())) {
            return;
        }
        let (observed, identity, wanted) = (Arc::clone(&self.observed), self.identity.clone(), name.clone());
        let observe = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
            let families = observed.lock().unwrap_or_else(PoisonError::into_inner);
            for family in families.iter().filter(|f| f.name == wanted && f.kind == kind) {
                for point in &family.points {
                    observer.observe(point.value, &attributes(&identity, point));
                }
            }
        };
        // The handle is not kept: the callback lives in the provider.
        let meter = &self.meter;
        match kind {
            Kind::Counter => {
                let counter = meter.f64_observable_counter(name);
                counter.with_description(help).with_unit(unit).with_callback(observe).build();
            }
            Kind::Gauge => {
                let gauge = meter.f64_observable_gauge(name);
                gauge.with_description(help).with_unit(unit).with_callback(observe).build();
            }
            Kind::UpDownCounter => {
                let sum = meter.f64_observable_up_down_counter(name);
                sum.with_description(help).with_unit(unit).with_callback(observe).build();
            }
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // Nothing is lost by an error here: every export has left already.
        self.provider.shutdown().ok();
    }
}

/// A point's attributes: the identity, and its own labels where they are not the identity's.
fn attributes(identity: &Identity, point: &enclave_protocol::metrics::Point) -> Vec<KeyValue> {
    let ours = identity.labels().map(|(key, value)| KeyValue::new(key.to_owned(), value.to_owned()));
    let own = point.labels.iter().map(|(key, value)| {
        let key = if identity.reserves(key) {
            identity::exported(key, |moved| point.labels.contains_key(moved))
        } else {
            key.to_owned()
        };
        KeyValue::new(key, value.to_owned())
    });
    ours.chain(own).collect()
}

/// The exporter's HTTP client: answers 200 at once and keeps the body.
#[derive(Debug, Clone, Default)]
struct Capture(Arc<Mutex<Bytes>>);

impl Capture {
    fn take(&self) -> Bytes {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl HttpClient for Capture {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = request.into_body();
        Ok(Response::new(Bytes::new()))
    }
}

/// The reader belongs to the provider; we need it as well.
#[derive(Debug, Clone)]
struct SharedReader(Arc<ManualReader>);

impl MetricReader for SharedReader {
    fn register_pipeline(&self, pipeline: Weak<SdkPipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

#[cfg(test)]
mod tests {
    use enclave_protocol::{
        metrics::{CPU_USAGE, Point},
        timestamp::Timestamp,
    };

    use super::*;
    use crate::{fake::sample, otlp};

    async fn exported(families: Vec<Family>) -> (Export, u64) {
        Pipeline::new(Identity::of(&sample(1)).unwrap(), &BTreeMap::new())
            .unwrap()
            .export(families)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn an_export_reads_like_this() {
        let mut families = sample(1).families;
        families[1].points.push(Point::labelled([("instance", "spoof"), ("plugin", "b")], 9.0));
        let (mut export, _) = exported(families).await;
        otlp::stamp(&mut export, Timestamp(7), |_| Timestamp(5));
        expect_test::expect![[r#"
            resource namespace=default,ned_name=hello,oblv_deployment_name=hello,service.instance.id=i-1,service.name=hello,service.namespace=default
            scope enclave-telemetry@1
            nitro_enclave_cpu_usage gauge unit=""
              {namespace=default,ned_name=hello,oblv_deployment_name=hello} Some(AsDouble(0.5)) 0..7 flags=0
            enclave_plugin_restarts_total sum(temporality=2,monotonic=true) unit=""
              {exported_instance=spoof,namespace=default,ned_name=hello,oblv_deployment_name=hello,plugin=b} Some(AsDouble(9.0)) 5..7 flags=0
              {namespace=default,ned_name=hello,oblv_deployment_name=hello,plugin=a} Some(AsDouble(2.0)) 5..7 flags=0
        "#]]
        .assert_eq(&otlp::show(&export));
    }

    #[tokio::test]
    async fn a_family_without_points_is_not_there() {
        let (export, _) = exported(vec![Family::gauge(CPU_USAGE, "no delta yet", vec![])]).await;
        assert_eq!(otlp::count(&export), 0);
        assert!(!otlp::show(&export).contains(CPU_USAGE));
    }

    #[tokio::test]
    async fn a_family_that_is_gone_is_not_observed_again() {
        let mut pipeline = Pipeline::new(Identity::of(&sample(1)).unwrap(), &BTreeMap::new()).unwrap();
        let (first, _) = pipeline.export(sample(1).families).await.unwrap();
        assert!(otlp::show(&first).contains(CPU_USAGE));
        let (second, _) = pipeline.export(vec![]).await.unwrap();
        assert_eq!(otlp::count(&second), 0);
    }

    #[tokio::test]
    async fn more_series_than_the_sdk_keeps_are_cut_and_counted_with_every_label_in_place() {
        let points = (0..SERIES_MAX + 5).map(|n| Point::labelled([("n", n.to_string().as_str())], 1.0));
        let (export, surplus) = exported(vec![Family::gauge("many", "", points.collect())]).await;
        assert_eq!((otlp::count(&export), surplus), (SERIES_MAX as u64, 5));
        assert!(!otlp::show(&export).contains("overflow"));
    }
}

//! What both sides of the vsock share: the manifest and its digest, the control API's types, the stream
//! header, the metric families and the transport. It knows no process and no clock.

pub mod bundle;
pub mod control;
pub mod digest;
pub mod exporter;
pub mod glance;
pub mod image;
pub mod manifest;
pub mod metrics;
pub mod policy;
#[cfg(feature = "transport")]
pub mod relay;
pub mod scrape;
pub mod signature;
pub mod stream;
pub mod telemetry;
pub mod timestamp;
#[cfg(feature = "transport")]
pub mod transport;

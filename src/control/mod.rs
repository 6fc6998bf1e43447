//! The control API: what the host asks and tells, and the read-only part that plugins see by grant.
//!
//! Requests are parsed and bounded here; decisions about plugins are the driver's. It knows no process.

pub mod accept;
pub mod board;
pub mod body;
pub mod events;
pub mod routes;
pub mod server;

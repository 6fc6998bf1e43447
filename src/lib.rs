//! Being built.

pub mod net;

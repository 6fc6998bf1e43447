//! Being built.

pub mod engine;

//! Readings of /proc and what becomes of them: one [`enclave_protocol::metrics::Sample`].

pub mod families;
pub mod process;
pub mod system;

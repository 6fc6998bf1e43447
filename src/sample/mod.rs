//! Readings of /proc and of control groups, and what becomes of them: one
//! [`enclave_protocol::metrics::Sample`].

pub mod families;
pub mod plugin;
pub mod process;
pub mod system;

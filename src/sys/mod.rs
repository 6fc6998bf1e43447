//! The only syscalls and the only `unsafe` of the supervisor. It knows no plugin, policy or manifest.

#![expect(unsafe_code, reason = "syscalls without a safe wrapper; one block per call")]

pub mod entropy;
pub mod limits;
pub mod loopback;
pub mod machine;
pub mod mount;
pub mod nsm;
pub mod reaper;
pub mod shim;
pub mod spawn;
pub mod time;

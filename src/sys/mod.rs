//! The only syscalls and the only `unsafe` of the supervisor. It knows no plugin, policy or manifest.

#![expect(unsafe_code, reason = "syscalls without a safe wrapper; one block per call")]

pub mod capability;
pub mod cgroup;
mod clone;
pub mod confine;
pub mod descriptors;
pub mod entropy;
pub mod held;
pub mod init;
pub mod limits;
pub mod loopback;
pub mod machine;
pub mod mount;
pub mod netns;
pub mod nsm;
pub mod reaper;
pub mod recipe;
pub mod seccomp;
pub mod spawn;
pub mod surroundings;
pub mod time;

//! The in-enclave supervisor: receives a manifest over vsock and runs its plugins.
//!
//! See ARCHITECTURE.md for the map. Decisions are made in [`engine`], which is pure; [`driver`] owns it and
//! acts; syscalls live in [`sys`].

pub mod boot;
pub mod catalog;
pub mod check;
pub mod clock;
pub mod control;
pub mod deployment;
pub mod driver;
pub mod engine;
pub mod identity;
pub mod inside;
pub mod launch;
pub mod logs;
pub mod net;
pub mod options;
pub mod rootfs;
pub mod run;
pub mod sample;
pub mod status;
pub mod sys;

//! The proxy against a fake enclave on the hybrid transport: no VM, no network beyond loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod clock;
mod enclave;
mod end;
mod logs;
mod pages;
mod scene;
mod sync;
mod ways;

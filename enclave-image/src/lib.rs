//! Builds, inspects and boots enclave image files (EIF).
//!
//! ```text
//! manifest ──protocol──▶ checked ─┐
//! images ──image──▶ trees ────────┼─ramdisk─▶ two cpio archives ──eif──▶ X.eif + measurements
//! kernel ──kernel──▶ modules ─────┘
//! ```
//! Container images come from anywhere: they are read into a tree in memory and never unpacked on this
//! machine. The same inputs give the same bytes. It must not know how the supervisor runs what it packs.

mod archive;
pub mod boot;
pub mod build;
pub mod clock;
pub mod compression;
pub mod console;
pub mod cpio;
mod directory;
mod docker;
pub mod eif;
pub mod failure;
pub mod heartbeat;
pub mod image;
pub mod inspect;
pub mod kernel;
pub mod layer;
pub mod limits;
pub mod listing;
pub mod machine;
pub mod measure;
pub mod module;
mod oci;
pub mod options;
pub mod policy;
pub mod process;
pub mod program;
pub mod ramdisk;
pub mod report;
pub mod section;
pub mod signature;
pub mod signing;
pub mod spool;
pub mod tarball;
pub mod tree;
pub mod wrap;
mod zstd;

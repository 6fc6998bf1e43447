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
pub mod build;
pub mod compression;
pub mod cpio;
mod directory;
mod docker;
pub mod eif;
pub mod failure;
pub mod image;
pub mod kernel;
pub mod layer;
pub mod limits;
pub mod module;
mod oci;
pub mod options;
pub mod policy;
pub mod program;
pub mod ramdisk;
pub mod signing;
pub mod spool;
pub mod tarball;
pub mod tree;
pub mod wrap;

//! How much of an image is read before it is refused: a mistake or an attack costs bounded time and disk.

/// The bounds of one build.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Files, directories and links over all plugins.
    pub entries: usize,
    /// Bytes of all contents, decompressed.
    pub bytes: u64,
    /// Bytes of one layer, decompressed.
    pub layer_bytes: u64,
    /// Layers of one image: Docker itself allows 127.
    pub layers: usize,
}

impl Default for Limits {
    /// Room for the largest images that still make sense in an enclave, whose memory is four times the image.
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 32 << 30, layer_bytes: 32 << 30, layers: 256 }
    }
}

/// Longest JSON document of an image, in bytes. Real ones have a few KiB.
pub const JSON_BYTES_MAX: u64 = 4 << 20;
/// Largest file in a ramdisk: a newc header has 32 bits for the size.
pub const FILE_BYTES_MAX: u64 = u32::MAX as u64;
/// Longest extended header of a tar member, in bytes: a path, a link and a few attributes.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Members of the archive around the layers: a handful per layer.
pub const MEMBERS_MAX: usize = 10_000;

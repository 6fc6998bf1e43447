//! How much of an image is read before it is refused: a mistake or an attack costs bounded time and disk.

/// The bounds of one build.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Files, directories and links of one image.
    pub entries: usize,
    /// Bytes of all contents, decompressed.
    pub bytes: u64,
    /// Bytes of one layer, decompressed.
    pub layer_bytes: u64,
    /// Bytes of all paths of one image and of what its symlinks lead to: these are held in memory.
    pub paths_bytes: usize,
    /// Layers of one image: Docker itself allows 127.
    pub layers: usize,
}

impl Default for Limits {
    /// Room for the largest images that still make sense in an enclave, whose memory is four times the image.
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            bytes: 32 << 30,
            layer_bytes: 32 << 30,
            paths_bytes: 256 << 20,
            layers: 256,
        }
    }
}

/// Longest JSON document of an image, in bytes. Real ones have a few KiB.
pub const JSON_BYTES_MAX: u64 = 4 << 20;
/// Largest file in a ramdisk: a newc header has 32 bits for the size.
pub const FILE_BYTES_MAX: u64 = u32::MAX as u64;
/// Longest extended header of a tar member, in bytes: a path, a link and a few attributes.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Paths that whiteouts may look at over one image: each looks at all that is beneath it, again and again if
/// an archive is made to waste time.
pub const WHITEOUT_PATHS_MAX: usize = 50_000_000;
/// Remarks about one image; more say nothing new.
pub const REMARKS_MAX: usize = 100;
/// Members of the archive around the layers: a handful per layer.
pub const MEMBERS_MAX: usize = 10_000;

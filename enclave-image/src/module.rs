//! Kernel modules of a distribution's kernel: which ones an enclave needs, what they need, in which order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufReader, Read as _},
    path::Path,
};

use flate2::read::MultiGzDecoder;

use crate::failure::{Failure, Outcome};

/// Largest module, decompressed, in bytes. Those needed here have below a MiB.
const MODULE_BYTES_MAX: u64 = 64 << 20;

/// What an enclave needs, each with its reason. What a kernel has built in is left out; one that is neither
/// built in nor there is an error unless it is marked as optional.
const NEEDED: [(&str, bool); 10] = [
    // The way to the host.
    ("vsock", true),
    ("vmw_vsock_virtio_transport_common", true),
    ("vmw_vsock_virtio_transport", true),
    // The Nitro Secure Module: attestation, PCRs, random numbers. Since Linux 6.8.
    ("nsm", false),
    // Root file systems of plugins that may be written to without changing the image's.
    ("overlay", true),
    // The hypervisor's clock; its processor's alone.
    ("ptp_kvm", false),
    // Connections to any address are led to the supervisor's own listener: REDIRECT in the nat table.
    ("nf_conntrack", false),
    ("iptable_nat", false),
    ("xt_REDIRECT", false),
    ("xt_tcpudp", false),
];

/// A module as it goes into the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Where it is in the image, without a slash in front.
    pub path: String,
    /// Its bytes, decompressed.
    pub bytes: Vec<u8>,
}

impl Module {
    /// Reads a module, decompressed by its name's ending.
    pub fn read(file: &Path, path: &str) -> Outcome<Self> {
        let bad = |error: &dyn std::fmt::Display| Failure::input(file, error);
        let source = BufReader::new(File::open(file).map_err(|error| bad(&error))?);
        let mut bytes = Vec::new();
        let (path, read) = if let Some(path) = path.strip_suffix(".xz") {
            let mut out = Limited { bytes: &mut bytes };
            let mut source = source.take(MODULE_BYTES_MAX);
            (path, lzma_rs::xz_decompress(&mut source, &mut out).map_err(|error| bad(&error)))
        } else if let Some(path) = path.strip_suffix(".gz") {
            let read = MultiGzDecoder::new(source).take(MODULE_BYTES_MAX + 1).read_to_end(&mut bytes);
            (path, read.map(drop).map_err(|error| bad(&error)))
        } else if Path::new(path).extension().is_some_and(|end| end == "ko") {
            (
                path,
                source
                    .take(MODULE_BYTES_MAX + 1)
                    .read_to_end(&mut bytes)
                    .map(drop)
                    .map_err(|error| bad(&error)),
            )
        } else {
            return Err(bad(&"a module is .ko, .ko.xz or .ko.gz"));
        };
        read?;
        if bytes.len() as u64 > MODULE_BYTES_MAX {
            return Err(bad(&format!("more than {MODULE_BYTES_MAX} bytes")));
        }
        Ok(Self { path: path.to_owned(), bytes })
    }
}

/// Takes up to [`MODULE_BYTES_MAX`] bytes.
struct Limited<'a> {
    bytes: &'a mut Vec<u8>,
}

impl std::io::Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > MODULE_BYTES_MAX {
            return Err(std::io::Error::other(format!("more than {MODULE_BYTES_MAX} bytes")));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What an enclave needs of the modules of kernel `version` beneath `root`, in the order of loading.
pub fn resolve(root: &Path, version: &str) -> Outcome<Vec<Module>> {
    let base = format!("lib/modules/{version}");
    let dir = root.join(&base);
    let text = |name: &str| {
        fs::read_to_string(dir.join(name)).map_err(|error| Failure::input(dir.join(name), error))
    };
    let order = order(&text("modules.dep")?, &text("modules.builtin")?);
    let order = order.map_err(|cause| Failure::input(dir.join("modules.dep"), cause))?;
    order.iter().map(|path| Module::read(&dir.join(path), &format!("{base}/{path}"))).collect()
}

/// Paths as `modules.dep` has them; each after what it needs.
fn order(dependencies: &str, builtin: &str) -> Result<Vec<String>, String> {
    let mut table: BTreeMap<String, (&str, Vec<&str>)> = BTreeMap::new();
    for line in dependencies.lines() {
        let (path, needs) = line.split_once(':').ok_or_else(|| format!("no module in {line:?}"))?;
        if path.split('/').any(|part| part == "..") || path.starts_with('/') {
            return Err(format!("{path:?} lies outside"));
        }
        table.insert(name(path), (path, needs.split_whitespace().collect()));
    }
    let builtin: BTreeSet<String> = builtin.lines().map(name).collect();
    let mut order: Vec<String> = Vec::new();
    for (wanted, is_required) in NEEDED {
        let Some((path, needs)) = table.get(wanted) else {
            if is_required && !builtin.contains(wanted) {
                return Err(format!("the kernel has no module {wanted}, and it is not built in"));
            }
            continue;
        };
        // depmod names what is needed first last, the whole chain of it.
        for path in needs.iter().rev().chain([path]) {
            if !table.contains_key(&name(path)) {
                return Err(format!("{wanted} needs {path:?}, which is not listed"));
            }
            if !order.iter().any(|known| known == path) {
                order.push((*path).to_owned());
            }
        }
    }
    Ok(order)
}

/// A module's name: its file's, with underscores.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILTIN: &str = "kernel/fs/overlayfs/overlay.ko\n";

    #[test]
    fn each_module_comes_after_what_it_needs_and_built_in_ones_are_left_out() {
        let dependencies = "k/vmw_vsock_virtio_transport.ko.xz: k/vmw_vsock_virtio_transport_common.ko.xz k/vsock.ko.xz\n\
            k/vmw_vsock_virtio_transport_common.ko.xz: k/vsock.ko.xz\nk/vsock.ko.xz:\n\
            k/iptable_nat.ko: k/nf-nat.ko k/nf_conntrack.ko k/libcrc32c.ko\n\
            k/nf-nat.ko: k/nf_conntrack.ko k/libcrc32c.ko\nk/nf_conntrack.ko: k/libcrc32c.ko\nk/libcrc32c.ko:\n";
        expect_test::expect![[r#"
            k/vsock.ko.xz
            k/vmw_vsock_virtio_transport_common.ko.xz
            k/vmw_vsock_virtio_transport.ko.xz
            k/libcrc32c.ko
            k/nf_conntrack.ko
            k/nf-nat.ko
            k/iptable_nat.ko"#]]
        .assert_eq(&order(dependencies, BUILTIN).unwrap().join("\n"));
    }

    #[test]
    fn a_module_that_is_needed_and_nowhere_is_named() {
        assert!(order("", BUILTIN).unwrap_err().contains("no module vsock"));
        assert!(order("k/vsock.ko: k/gone.ko\n", BUILTIN).unwrap_err().contains("k/gone.ko"));
        assert!(order("../vsock.ko:\n", BUILTIN).unwrap_err().contains("outside"));
    }
}

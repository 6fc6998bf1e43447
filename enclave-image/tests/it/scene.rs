//! What the tests build with: layers, archives, a kernel and programs that are none, and the program itself.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use enclave_image::{
    layer::Stack,
    limits::Limits,
    spool::Spool,
    tree::{Entry, Node, Tree, shown},
};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// A layer in the making.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// Adds a member whose path and link are taken as they are, however wrong.
    pub(crate) fn raw(mut self, path: &str, kind: EntryType, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.raw(path, EntryType::Regular, "", content.as_bytes())
    }

    /// A file with attributes.
    pub(crate) fn owned(mut self, path: &str, mode: u32, uid: u64, gid: u64, mtime: u64) -> Self {
        let mut header = Header::new_gnu();
        header.set_path(path).unwrap();
        header.set_size(0);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(mtime);
        header.set_cksum();
        self.0.append(&header, &b""[..]).unwrap();
        self
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.raw(path, EntryType::Directory, "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(path, EntryType::Symlink, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(path, EntryType::Link, target, b"")
    }

    /// A file with extended headers, each a key and its value.
    pub(crate) fn extended(mut self, path: &str, pairs: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(pairs.iter().copied()).unwrap();
        self.file(path, "")
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// The tree that layers make, a line per path, or the mistake. Remarks are lines with a `!`.
pub(crate) fn stacked(layers: Vec<Layer>, limits: &Limits) -> String {
    let mut spool = Spool::new(limits.bytes).unwrap();
    let mut stack = Stack::new(&mut spool, limits);
    for layer in layers {
        if let Err(error) = stack.apply(layer.bytes().as_slice()) {
            return format!("error: {error}");
        }
    }
    let remarks: Vec<String> = stack.remarks.iter().map(|remark| format!("! {remark}\n")).collect();
    format!("{}{}", listing(&stack.tree), remarks.concat())
}

/// A line per path of a tree.
pub(crate) fn listing(tree: &Tree) -> String {
    let mut inodes = Vec::new();
    let mut line = |path: &[u8], entry: &Entry| {
        let what = match &entry.node {
            Node::Directory => "directory".to_owned(),
            Node::File(content) => {
                let known = inodes.iter().position(|id| *id == content.id());
                let inode = known.unwrap_or_else(|| {
                    inodes.push(content.id());
                    inodes.len() - 1
                });
                format!("file {inode} {:?}", String::from_utf8(content.bytes(1 << 20).unwrap()).unwrap())
            }
            Node::Symlink(target) => format!("-> {}", shown(target)),
            Node::Device { major, minor } => format!("device {major}:{minor}"),
            Node::Fifo => "fifo".to_owned(),
        };
        let meta = entry.meta;
        format!("{:04o} {}:{} {} {} {what}\n", meta.mode, meta.uid, meta.gid, meta.mtime, shown(path))
    };
    tree.iter().skip(1).map(|(path, entry)| line(path, entry)).collect::<Vec<_>>().concat()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// The image config of layers, with these fields of `config` and another first digest if wanted.
fn image_config(layers: &[Vec<u8>], config: &str, digest: Option<&str>) -> String {
    let mut digests: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    if let Some(digest) = digest {
        digests[0] = format!("sha256:{digest}");
    }
    let config: serde_json::Value = serde_json::from_str(config).unwrap();
    serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "1970-01-02T00:00:00.5Z", "config": config,
        "rootfs": { "type": "layers", "diff_ids": digests },
    })
    .to_string()
}

/// What `docker save` writes.
pub(crate) fn docker_archive(path: &Path, layers: Vec<Layer>, config: &str, digest: Option<&str>) {
    let layers: Vec<Vec<u8>> = layers.into_iter().map(Layer::bytes).collect();
    let names: Vec<String> = (0..layers.len()).map(|index| format!("{index}/layer.tar")).collect();
    let manifest = serde_json::json!([{ "Config": "c.json", "RepoTags": ["r/app:1"], "Layers": names }]);
    let mut archive = Layer::new().file("c.json", &image_config(&layers, config, digest));
    for (name, layer) in names.iter().zip(&layers) {
        archive = archive.raw(name, EntryType::Regular, "", layer);
    }
    fs::write(path, archive.file("manifest.json", &manifest.to_string()).bytes()).unwrap();
}

/// An OCI layout with compressed layers. `spoil` may change a blob before it is written.
pub(crate) fn oci_archive(
    path: &Path,
    layers: Vec<Layer>,
    config: &str,
    spoil: &dyn Fn(usize, &mut Vec<u8>),
) {
    let plain: Vec<Vec<u8>> = layers.into_iter().map(Layer::bytes).collect();
    let config = image_config(&plain, config, None).into_bytes();
    let describe = |kind: &str, blob: &[u8]| {
        let media = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({ "mediaType": media, "digest": format!("sha256:{}", sha256(blob)), "size": blob.len() })
    };
    let mut blobs: Vec<Vec<u8>> = plain.iter().map(|layer| gzip(layer)).collect();
    let layers: Vec<_> = blobs.iter().map(|blob| describe("layer.v1.tar+gzip", blob)).collect();
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": describe("config.v1+json", &config), "layers": layers });
    let manifest = manifest.to_string().into_bytes();
    let index =
        serde_json::json!({ "schemaVersion": 2, "manifests": [describe("manifest.v1+json", &manifest)] });
    blobs.extend([config, manifest]);
    let mut archive = Layer::new().file("oci-layout", r#"{"imageLayoutVersion": "1.0.0"}"#);
    for (index, mut blob) in blobs.into_iter().enumerate() {
        let name = format!("blobs/sha256/{}", sha256(&blob));
        spoil(index, &mut blob);
        archive = archive.raw(&name, EntryType::Regular, "", &blob);
    }
    fs::write(path, archive.file("index.json", &index.to_string()).bytes()).unwrap();
}

/// A directory with everything that a build needs; nothing in it can run.
pub(crate) struct Scene {
    pub(crate) dir: tempfile::TempDir,
}

/// One plugin and the telemetry of the base image.
pub(crate) const MANIFEST: &str = "apiVersion: k8s.oblv.com/v1alpha1
kind: NitroEnclaveDeployment
metadata:
  name: test
spec:
  userPlugins:
    - name: app
      image: r/app:1
  plugins:
    telemetry: {}
";

/// An ELF file for x86-64 with one program header of this type.
pub(crate) fn elf(header: u8) -> Vec<u8> {
    let mut bytes = vec![0; 120];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (bytes[18], bytes[32], bytes[54], bytes[56], bytes[64]) = (62, 64, 56, 1, header);
    bytes
}

impl Scene {
    pub(crate) fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        let mut kernel = vec![7; 0x1001];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e..0x210].fill(0);
        fs::write(scene.path("kernel"), kernel).unwrap();
        fs::write(scene.path("enclave-supervisor"), elf(1)).unwrap();
        fs::write(scene.path("enclave-init"), elf(1)).unwrap();
        fs::write(scene.path("enclave-telemetry"), elf(1)).unwrap();
        fs::write(scene.path("m.yaml"), MANIFEST).unwrap();
        let layers = vec![Layer::new().owned("app", 0o4755, 1, 2, 5).file("etc/data", "one")];
        docker_archive(&scene.path("app.tar"), layers, r#"{"Entrypoint": ["/app"], "User": "7"}"#, None);
        scene
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program; its exit code, standard output and standard error, with the directory as `DIR`.
    pub(crate) fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).unwrap().replace(&self.dir.path().display().to_string(), "DIR")
        };
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// The program in this directory, without options from the environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_enclave-image"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("ENCLAVE_IMAGE_")
                || ["NITRO_CLI_BLOBS", "SOURCE_DATE_EPOCH"].contains(&name.as_str())
            {
                command.env_remove(name);
            }
        }
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    /// Builds `x.eif` of this scene with more or other options.
    pub(crate) fn build(&self, more: &[&str]) -> (i32, String, String) {
        let mut arguments = vec!["build", "--manifest", "m.yaml", "--supervisor", "enclave-supervisor"];
        arguments.extend(["--telemetry", "enclave-telemetry"]);
        for (option, value) in
            [("--kernel", "kernel"), ("--output", "x.eif"), ("--image", "app=docker-archive:app.tar")]
        {
            let others: &[&str] = if option == "--kernel" { &["--blobs", "--kernel-root"] } else { &[] };
            if !more.iter().any(|given| *given == option || others.contains(given)) {
                arguments.extend([option, value]);
            }
        }
        arguments.extend(more);
        self.run(&arguments)
    }

    /// Builds and returns the measurements.
    pub(crate) fn built(&self, more: &[&str]) -> serde_json::Value {
        let (code, out, error) = self.build(more);
        assert_eq!(code, 0, "{error}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap()["Measurements"].clone()
    }

    /// Builds, which must fail; the message.
    pub(crate) fn refused(&self, more: &[&str]) -> String {
        let (code, out, error) = self.build(more);
        assert_eq!((code, out.as_str()), (2, ""), "{error}");
        error
    }
}

/// Runs another program, if it is there.
pub(crate) fn other(program: &str, arguments: &[&str], dir: &Path) -> Option<std::process::Output> {
    Command::new(program).args(arguments).current_dir(dir).output().ok()
}

//! The two ramdisks of an image. The first, measured in PCR 1, holds what is the same for every deployment:
//! supervisor, the plugins' init, devices, modules. The second, in PCR 2, holds the plugins and what was
//! decided about them. The kernel unpacks one over the other, so a directory of both has the same attributes
//! in both.

use std::{
    io::{self, Write as _},
    path::Path,
};

use enclave_protocol::image::BakedConfig;
use flate2::{Compression, GzBuilder};

use crate::{
    cpio,
    failure::{Failure, Outcome},
    module::Module,
    spool::Spool,
    tree::{Entry, Meta, Node, Tree, join},
};

/// Kernel modules, one path a line, in the order in which they are loaded.
pub const MODULES: &str = "etc/enclave/modules";
/// Which manifests run.
pub const POLICY: &str = "etc/enclave/policy.json";
/// The image's build time in Unix seconds: the clock is never set before it.
pub const BUILD_TIME: &str = "etc/enclave/build-time";
/// Every plugin's init: beside the supervisor, which is `/init`, where it looks for it.
pub const PLUGIN_INIT: &str = "enclave-init";
/// One directory per plugin.
pub const PLUGINS: &str = "plugins";
/// What both ramdisks have, because the second has files in them.
const DIRECTORIES_OF_BOTH: [&str; 3] = ["etc", "etc/enclave", PLUGINS];
/// Empty directories that init mounts something on, and those that programs look for.
const DIRECTORIES: [(&str, u32); 7] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
];
/// The kernel gives init this one as its standard streams, before anything is mounted.
const CONSOLE: (u32, u32) = (5, 1);
/// What plugins get as standard input.
const NULL: (u32, u32) = (1, 3);
/// zlib's own default: the next levels take twice the time for a percent.
const GZIP_LEVEL: u32 = 6;
/// The loader puts ramdisks behind each other; the kernel looks for the next one at a multiple of this.
const ALIGNMENT: u64 = 4;

/// What runs in every image, each a static program.
#[derive(Debug)]
pub struct Programs {
    /// The first process.
    pub supervisor: Vec<u8>,
    /// The first process of every plugin.
    pub plugin_init: Vec<u8>,
}

/// Adds generated files to a tree: root's, at one time.
#[derive(Debug)]
pub struct Author<'a> {
    /// What it makes.
    pub tree: Tree,
    spool: &'a mut Spool,
    mtime: u32,
}

impl<'a> Author<'a> {
    /// An empty tree.
    pub fn new(spool: &'a mut Spool, mtime: u32) -> Self {
        Self { tree: Tree::default(), spool, mtime }
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Outcome<()> {
        let content = self.spool.add(bytes).map_err(|error| Failure::Internal(error.to_string()))?;
        self.insert(path, mode, Node::File(content));
        Ok(())
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.insert(path, mode, Node::Directory);
    }

    fn insert(&mut self, path: &str, mode: u32, node: Node) {
        let meta = Meta::root(mode, self.mtime);
        self.tree.insert(path.as_bytes(), Entry { meta, node, layer: 0 });
    }
}

/// The first ramdisk. Its times are 0: it follows from our programs and the kernel alone.
pub fn boot(programs: &Programs, modules: &[Module], spool: &mut Spool) -> Outcome<Tree> {
    let mut author = Author::new(spool, 0);
    for (path, mode) in DIRECTORIES {
        author.directory(path, mode);
    }
    for path in DIRECTORIES_OF_BOTH {
        author.directory(path, 0o755);
    }
    let devices = [("dev/console", 0o600, CONSOLE), ("dev/null", 0o666, NULL)];
    for (path, mode, (major, minor)) in devices {
        author.insert(path, mode, Node::Device { major, minor });
    }
    author.file("init", 0o755, &programs.supervisor)?;
    author.file(PLUGIN_INIT, 0o755, &programs.plugin_init)?;
    for module in modules {
        author.file(&module.path, 0o644, &module.bytes)?;
    }
    let list: Vec<String> = modules.iter().map(|module| format!("/{}\n", module.path)).collect();
    author.file(MODULES, 0o644, list.concat().as_bytes())?;
    Ok(author.tree)
}

/// A plugin that goes into the second ramdisk.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// Its name in the manifest.
    pub name: String,
    /// What the supervisor is told of it.
    pub config: BakedConfig,
    /// Its root file system.
    pub tree: Tree,
}

/// The second ramdisk.
pub fn application(plugins: &[Plugin], policy: &[u8], build_time: u32, spool: &mut Spool) -> Outcome<Tree> {
    let mut author = Author::new(spool, build_time);
    for path in DIRECTORIES_OF_BOTH {
        // As in the first ramdisk, the time too.
        let entry = Entry { meta: Meta::root(0o755, 0), node: Node::Directory, layer: 0 };
        author.tree.insert(path.as_bytes(), entry);
    }
    author.file(POLICY, 0o644, policy)?;
    author.file(BUILD_TIME, 0o644, format!("{build_time}\n").as_bytes())?;
    for Plugin { name, config, tree } in plugins {
        let file =
            serde_json::to_string_pretty(config).map_err(|error| Failure::Internal(error.to_string()))?;
        let dir = format!("{PLUGINS}/{name}");
        author.directory(&dir, 0o755);
        author.file(&format!("{dir}/config.json"), 0o644, format!("{file}\n").as_bytes())?;
        author.tree.graft(&join(dir.as_bytes(), b"rootfs"), tree);
    }
    Ok(author.tree)
}

/// Writes a ramdisk: cpio in gzip, filled up to a multiple of four bytes.
pub fn write(tree: &Tree, path: &Path) -> Outcome<()> {
    let written = || -> io::Result<()> {
        let file = io::BufWriter::new(std::fs::File::create_new(path)?);
        // No name and no time in gzip's header: the same tree gives the same bytes.
        let mut gzip = GzBuilder::new().mtime(0).write(file, Compression::new(GZIP_LEVEL));
        cpio::write(tree, &mut gzip)?;
        let mut file = gzip.finish()?.into_inner()?;
        pad(&mut file)
    };
    written().map_err(|error| Failure::internal(path, error))
}

/// Fills a file with zeros up to a multiple of four bytes, which the kernel passes over.
pub fn pad(file: &mut std::fs::File) -> io::Result<()> {
    let missing = usize::try_from(file.metadata()?.len().wrapping_neg() % ALIGNMENT).unwrap_or(0);
    file.write_all(&[0; 4][..missing])
}

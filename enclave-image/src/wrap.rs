//! `enclave-image wrap`: one container image behind a given bootstrap ramdisk, as `nitro-cli build-enclave`
//! makes it. The bootstrap's `/init` reads `/env` and `/cmd` and changes its root to `/rootfs`.

use std::{fs::File, io::Read as _, path::Path};

use crate::{
    build::clamp_tree,
    compression::GZIP,
    cpio,
    eif::{self, Measurements, Parts, Ramdisk},
    failure::{Failure, Outcome},
    image::{self, Image, Source},
    kernel,
    limits::Limits,
    options::{Environment, WrapOptions},
    ramdisk::Author,
    signing::Signing,
    spool::Spool,
    tree::Tree,
};

/// What the bootstrap mounts something on.
const MOUNT_POINTS: [(&str, u32); 5] =
    [("dev", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777)];

/// Builds an image from one container image.
pub fn wrap(
    options: &WrapOptions,
    environment: &Environment,
    remark: &mut dyn FnMut(&str),
) -> Outcome<Measurements> {
    let output = &options.output;
    let signing = match (&output.signing_certificate, &output.private_key) {
        (Some(certificate), Some(key)) => Some(Signing::read(certificate, key)?),
        _ => None,
    };
    check_bootstrap(&options.bootstrap)?;
    let kernel = options.kernel.choice(environment.nitro_cli_blobs.clone()).read()?;
    remark(&format!("kernel {} ({})", kernel.path.display(), kernel.version));
    let limits = Limits::default();
    let mut spool = Spool::new(limits.bytes).map_err(|error| Failure::Internal(error.to_string()))?;
    let mut image = image::read(&options.image, kernel.machine, &limits, &mut spool, remark)?;
    let build_time = environment.build_time(output.build_time, image.created)?;
    if matches!(options.image, Source::Directory(_)) {
        clamp_tree(&mut image.tree, build_time);
    }
    let name = options.image.path().file_stem().map(|name| name.to_string_lossy().into_owned());
    if !["", "0", "root"].contains(&image.config.user.as_str()) {
        let user = &image.config.user;
        remark(&format!("the image wants to run as {user:?}; AWS's init runs everything as root"));
    }
    let tree = ramdisk(image, options.image.path(), build_time, &mut spool)?;
    let parts = Parts {
        cmdline: kernel::cmdline(&[&kernel.cmdline, &output.append])?,
        kernel: &kernel,
        ramdisks: &[Ramdisk::File(&options.bootstrap), Ramdisk::Tree(&tree)],
        name: name.unwrap_or_default(),
        build_time,
        custom: serde_json::Value::Null,
        signing,
    };
    eif::write(parts, &output.output)
}

/// The bootstrap is a cpio archive, perhaps in gzip: anything else stops the kernel where nobody sees it.
fn check_bootstrap(path: &Path) -> Outcome<()> {
    let mut start = [0; 6];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.map_err(|error| Failure::input(path, error))?;
    if start == *cpio::MAGIC || start.starts_with(&GZIP) {
        return Ok(());
    }
    Err(Failure::input(path, "no cpio archive in the form newc, with or without gzip"))
}

fn ramdisk(image: Image, path: &Path, build_time: u32, spool: &mut Spool) -> Outcome<Tree> {
    let Image { tree, config, .. } = image;
    let words: Vec<&str> = config.entrypoint.iter().chain(&config.cmd).map(String::as_str).collect();
    if words.is_empty() {
        return Err(Failure::input(path, "the image names no program: neither Entrypoint nor Cmd"));
    }
    for (what, lines) in [("Env", &config.env), ("Entrypoint", &config.entrypoint), ("Cmd", &config.cmd)] {
        if let Some(line) = lines.iter().find(|line| line.contains(['\n', '\0'])) {
            return Err(Failure::input(path, format!("{what} {line:?} is no single line")));
        }
    }
    let mut author = Author::new(spool, build_time);
    author.tree.graft(b"rootfs", &tree);
    for (name, mode) in MOUNT_POINTS {
        if tree.get(name.as_bytes()).is_none() {
            author.directory(&format!("rootfs/{name}"), mode);
        }
    }
    let lines =
        |lines: &mut dyn Iterator<Item = &str>| lines.flat_map(|line| [line, "\n"]).collect::<String>();
    author.file("cmd", 0o644, lines(&mut words.into_iter()).as_bytes())?;
    author.file("env", 0o644, lines(&mut config.env.iter().map(String::as_str)).as_bytes())?;
    Ok(author.tree)
}

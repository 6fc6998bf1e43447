//! `enclave-image build`: a checked manifest and its plugins' images become an image file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use enclave_protocol::{
    bundle::Bundle,
    control::Diagnostic,
    digest,
    image::{BakedConfig, ImageConfig},
    manifest::{self, Context, Manifest, TELEMETRY},
};

use crate::{
    eif::{self, Measurements, Parts, Ramdisk},
    failure::{Failure, Outcome},
    image::{self, Image},
    kernel,
    limits::Limits,
    options::{BuildOptions, Environment, Given, Nsm, PolicyKind},
    policy, program,
    program::Machine,
    ramdisk::{self, Author, Plugin, Programs},
    signing::Signing,
    spool::Spool,
    tree::{Meta, Tree},
};

/// The base image's telemetry program.
const TELEMETRY_PROGRAM: Ours =
    Ours { name: "enclave-telemetry", package: "enclave-telemetry", option: "--telemetry" };
/// The program that becomes `/init`.
const SUPERVISOR_PROGRAM: Ours =
    Ours { name: "enclave-supervisor", package: "enclave-supervisor", option: "--supervisor" };
/// The program that is the init of every plugin.
const PLUGIN_INIT_PROGRAM: Ours =
    Ours { name: "enclave-init", package: "enclave-supervisor", option: "--plugin-init" };

/// A program of ours that goes into images.
struct Ours {
    name: &'static str,
    /// Cargo's package of it.
    package: &'static str,
    /// How another file is named in its stead.
    option: &'static str,
}

/// Builds an image. `remark` hears what the user should know.
pub fn build(
    options: &BuildOptions,
    environment: &Environment,
    remark: &mut dyn FnMut(&str),
) -> Outcome<Measurements> {
    let signing = signing(options)?;
    let (manifest, digest) = manifest(options)?;
    let policy = policy::write(options.policy, &options.policy_keys, &digest)?;
    let kernel = options.kernel_choice(environment).read()?;
    remark(&format!("kernel {} ({})", kernel.path.display(), kernel.version));
    let programs = programs(options, environment, kernel.machine)?;

    let limits = Limits::default();
    let mut spool = Spool::new(limits.bytes).map_err(|error| Failure::Internal(error.to_string()))?;
    let images = images(options, &limits, &mut spool, kernel.machine, remark)?;
    let newest = images.values().filter_map(|image| image.created).max();
    let build_time = environment.build_time(options.output.build_time, newest)?;
    let mut plugins = plugins(&manifest, images, &options.manifest)?;
    // An image that runs other manifests too has it for those that want it.
    let wants_telemetry = options.policy != PolicyKind::Pinned
        || manifest.plugins.iter().any(|plugin| plugin.name == TELEMETRY);
    if wants_telemetry && !plugins.iter().any(|known| known.name == TELEMETRY) {
        plugins.push(base_telemetry(options, environment, kernel.machine, build_time, &mut spool)?);
        remark("telemetry: no --image given; the base image's own telemetry plugin goes in");
    }
    plugins.sort_by(|a, b| a.name.cmp(&b.name));
    clamp(&mut plugins, options, build_time);

    let boot = ramdisk::boot(&programs, &kernel.modules, &mut spool)?;
    let application = ramdisk::application(&plugins, &policy, build_time, &mut spool)?;
    let nsm = match options.nsm {
        Nsm::Required => "enclave.init=vm enclave.nsm=required",
        Nsm::Auto => "enclave.init=vm enclave.nsm=auto",
    };
    let parts = Parts {
        cmdline: kernel::cmdline(&[&kernel.cmdline, nsm, &options.output.append])?,
        kernel: &kernel,
        ramdisks: &[Ramdisk::Tree(&boot), Ramdisk::Tree(&application)],
        name: manifest.name.clone(),
        build_time,
        custom: serde_json::json!({ "namespace": manifest.namespace, "manifestDigest": digest.to_string() }),
        signing,
    };
    eif::write(parts, &options.output.output)
}

impl BuildOptions {
    fn kernel_choice(&self, environment: &Environment) -> kernel::Choice {
        self.kernel.choice(environment.nitro_cli_blobs.clone())
    }
}

fn signing(options: &BuildOptions) -> Outcome<Option<Signing>> {
    let output = &options.output;
    match (&output.signing_certificate, &output.private_key) {
        (Some(certificate), Some(key)) => Signing::read(certificate, key).map(Some),
        _ => Ok(None),
    }
}

/// Reads and checks the manifest, with the images that were given as those that are baked in.
fn manifest(options: &BuildOptions) -> Outcome<(Manifest, digest::Digest)> {
    let bundle = Bundle::read(&options.manifest, options.config_dir.as_deref());
    let Bundle { manifest: text, files } = bundle.map_err(|error| Failure::Input(error.to_string()))?;
    let with_files = options.config_dir.as_ref().map(|_| &files);
    // Once without images, to learn which references they stand for.
    let context = Context { files: with_files, ..Context::default() };
    let named = manifest::parse(&text, &context).map_err(|errors| mistakes(&options.manifest, &errors))?;
    let given: BTreeSet<&str> = options.images.iter().map(|given| given.plugin.as_str()).collect();
    let references = named.plugins.iter().filter(|plugin| given.contains(plugin.name.as_str()));
    let baked: BTreeMap<String, String> =
        references.map(|plugin| (plugin.name.clone(), plugin.image.clone().unwrap_or_default())).collect();
    let context = Context { files: with_files, baked: Some(&baked), ..Context::default() };
    let checked = manifest::parse(&text, &context).map_err(|errors| mistakes(&options.manifest, &errors))?;
    check_given(&options.images, &checked)?;
    let digest = digest::digest(&checked, &files);
    Ok((checked, digest))
}

fn mistakes(file: &Path, errors: &[Diagnostic]) -> Failure {
    Failure::Manifest(errors.iter().map(|error| format!("{}:{error}", file.display())).collect())
}

/// Every image is for a plugin of the manifest, and no plugin has two.
fn check_given(images: &[Given], manifest: &Manifest) -> Outcome<()> {
    let mut seen = BTreeSet::new();
    for given in images {
        let name = &given.plugin;
        if manifest.plugin(name).is_none() {
            let names: Vec<&str> = manifest.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
            return Err(Failure::Input(format!(
                "--image {name}=…: the manifest has no plugin {name:?}; it has {}",
                names.join(", ")
            )));
        }
        if manifest.plugin(name).is_some_and(|plugin| plugin.image.is_none()) {
            return Err(Failure::Input(format!("--image {name}=…: the manifest names no image for {name}")));
        }
        if !seen.insert(name) {
            return Err(Failure::Input(format!("--image {name}=… is given twice")));
        }
    }
    Ok(())
}

fn images(
    options: &BuildOptions,
    limits: &Limits,
    spool: &mut Spool,
    machine: Machine,
    remark: &mut dyn FnMut(&str),
) -> Outcome<BTreeMap<String, Image>> {
    let mut images = BTreeMap::new();
    for given in &options.images {
        let image = image::read(&given.source, machine, limits, spool, remark)?;
        images.insert(given.plugin.clone(), image);
    }
    Ok(images)
}

/// The plugins whose images were given. Each has a program to start.
fn plugins(manifest: &Manifest, mut images: BTreeMap<String, Image>, file: &Path) -> Outcome<Vec<Plugin>> {
    let mut plugins = Vec::new();
    let mut without_program = Vec::new();
    for plugin in &manifest.plugins {
        let Some(Image { tree, config, .. }) = images.remove(&plugin.name) else { continue };
        let from_manifest = plugin.command.as_ref().or(plugin.args.as_ref());
        let has_program = from_manifest.is_some_and(|words| !words.is_empty())
            || !config.entrypoint.is_empty()
            || !config.cmd.is_empty();
        if !has_program {
            without_program
                .push(plugin.diagnostic("neither its image nor the manifest's command names a program"));
        }
        let image = plugin.image.clone().unwrap_or_default();
        let config = BakedConfig { image, base: false, config };
        plugins.push(Plugin { name: plugin.name.clone(), config, tree });
    }
    if without_program.is_empty() { Ok(plugins) } else { Err(mistakes(file, &without_program)) }
}

/// The telemetry plugin that belongs to the base image.
fn base_telemetry(
    options: &BuildOptions,
    environment: &Environment,
    machine: Machine,
    build_time: u32,
    spool: &mut Spool,
) -> Outcome<Plugin> {
    let Ours { name, .. } = TELEMETRY_PROGRAM;
    let dir = environment.program_dir.as_deref();
    let path = options.telemetry.clone().map_or_else(|| TELEMETRY_PROGRAM.within(dir), Ok)?;
    let mut author = Author::new(spool, build_time);
    author.file(name, 0o755, &program::read(&path, machine)?)?;
    let entrypoint = vec![format!("/{name}")];
    Ok(Plugin {
        name: TELEMETRY.to_owned(),
        config: BakedConfig {
            image: name.to_owned(),
            base: true,
            config: ImageConfig { entrypoint, ..ImageConfig::default() },
        },
        tree: author.tree,
    })
}

/// The supervisor and what is beside it. Without the plugins' init it would do that work too, and cost every
/// plugin more memory: that is nothing to find out in production.
fn programs(options: &BuildOptions, environment: &Environment, machine: Machine) -> Outcome<Programs> {
    let dir = environment.program_dir.as_deref();
    let supervisor = options.supervisor.clone().map_or_else(|| SUPERVISOR_PROGRAM.within(dir), Ok)?;
    let beside = || PLUGIN_INIT_PROGRAM.within(supervisor.parent());
    let plugin_init = options.plugin_init.clone().map_or_else(beside, Ok)?;
    Ok(Programs {
        supervisor: program::read(&supervisor, machine)?,
        plugin_init: program::read(&plugin_init, machine)?,
    })
}

impl Ours {
    /// Where it is installed, if it is.
    fn within(&self, dir: Option<&Path>) -> Outcome<PathBuf> {
        let dir =
            dir.ok_or_else(|| Failure::Internal("the path of this program cannot be read".to_owned()))?;
        let Self { name, package, option } = self;
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
        Err(Failure::input(
            path,
            format!(
                "no such program; build it with cargo build --release --package {package} --bin {name} \
                 --target {}-unknown-linux-musl and say where it is: {option} FILE",
                Machine::here().rust()
            ),
        ))
    }
}

/// No file of a directory is newer than the image: a checkout's times are those of the checkout. Archives
/// keep theirs, which compiled Python files are compared with.
fn clamp(plugins: &mut [Plugin], options: &BuildOptions, build_time: u32) {
    for plugin in plugins {
        let source = options.images.iter().find(|given| given.plugin == plugin.name);
        if source.is_some_and(|given| matches!(given.source, image::Source::Directory(_))) {
            clamp_tree(&mut plugin.tree, build_time);
        }
    }
}

/// Sets every later time to `build_time`.
pub(crate) fn clamp_tree(tree: &mut Tree, build_time: u32) {
    tree.change(&mut |meta: &mut Meta| meta.mtime = meta.mtime.min(build_time));
}

//! `cargo xtask peers`: the real programs that a user runs beside this project, for the tests and the demo.
//!
//! Each is built with `go build` from the pins in `xtask/peers/MODULE` (go.mod, go.sum) through the Go module
//! proxy, once: the result is kept outside the checkout, under a hash of all that it was built from. `go mod
//! tidy` and the Collector's own builder are not used: both also resolve the tests of every dependency, and
//! those need modules that a proxy may refuse.

#![expect(clippy::disallowed_types, reason = "as the module `cargo`")]

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{RecvTimeoutError, sync_channel},
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use crate::{
    cargo,
    failure::{Failure, While as _},
    python,
    stopwatch::Stopwatch,
    terminal,
};

/// Options of `cargo xtask peers`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these; all of them without.
    names: Vec<String>,
}

/// A program, the module it comes from and how it is built.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The program's name.
    pub(crate) name: &'static str,
    /// As its makers count.
    pub(crate) version: &'static str,
    /// The directory with its pins, beneath `xtask/peers`.
    module: &'static str,
    package: &'static str,
    tags: &'static str,
    ldflags: &'static str,
    /// Minutes of a cold build on two idle cores, as far as the peers before it in the list have not warmed
    /// the cache.
    minutes: u32,
}

/// Without these the Kubernetes programs say that they are v0.0.0, and clients decide by that.
const KUBERNETES_VERSION: &str = "-X k8s.io/component-base/version.gitVersion=v1.36.3 \
     -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36 \
     -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3";

/// All of them.
pub(crate) const PEERS: [Peer; 7] = [
    Peer {
        name: "otelcol",
        version: "0.161.0",
        module: "otelcol",
        package: ".",
        tags: "prometheusreceiver,remove_all_sd",
        ldflags: "",
        minutes: 4,
    },
    Peer {
        name: "prometheus",
        version: "3.16.0",
        module: "prometheus",
        package: "github.com/prometheus/prometheus/cmd/prometheus",
        tags: "remove_all_sd",
        ldflags: "-X github.com/prometheus/common/version.Version=3.16.0",
        minutes: 2,
    },
    Peer {
        name: "etcd",
        version: "3.6.16",
        module: "etcd",
        package: "go.etcd.io/etcd/server/v3",
        tags: "",
        ldflags: "",
        minutes: 1,
    },
    Peer {
        name: "kube-apiserver",
        version: "1.36.3",
        module: "k8s",
        package: "k8s.io/kubernetes/cmd/kube-apiserver",
        tags: "",
        ldflags: KUBERNETES_VERSION,
        minutes: 5,
    },
    Peer {
        name: "kube-controller-manager",
        version: "1.36.3",
        module: "k8s",
        package: "k8s.io/kubernetes/cmd/kube-controller-manager",
        tags: "",
        ldflags: KUBERNETES_VERSION,
        minutes: 2,
    },
    Peer {
        name: "kubectl",
        version: "1.36.3",
        module: "k8s",
        package: "k8s.io/kubernetes/cmd/kubectl",
        tags: "",
        ldflags: KUBERNETES_VERSION,
        minutes: 1,
    },
    Peer {
        name: "prometheus-adapter",
        version: "0.12.0",
        module: "adapter",
        package: "sigs.k8s.io/prometheus-adapter/cmd/adapter",
        tags: "",
        ldflags: "",
        minutes: 3,
    },
];

/// Where the built programs are kept.
const CACHE_VARIABLE: &str = "ENCLAVE_PEERS_CACHE";
/// The oldest Go that reads the pins: each go.mod says so.
const GO_MIN: (u32, u32) = (1, 26);
/// `-mod=mod`: go.sum has the sums of what is built, not those of every module's tests, which the default
/// asks for.
const GOFLAGS: &str = "-mod=mod -buildvcs=false";
/// Arguments of every `go build`. Two compilers at a time: each takes up to a gigabyte of memory.
const BUILD_FLAGS: [&str; 3] = ["-p=2", "-trimpath", "-v"];
/// How often a build says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(15);
/// Lines of a failed build that are shown.
const TAIL_LINES: usize = 20;
/// Lines on their way from the reader to the display.
const LINES_QUEUED_MAX: usize = 64;
/// Characters of the hash in a directory's name.
const HASH_CHARACTERS: usize = 16;
/// Parts of messages of `go` that mean that the proxy could not be asked, or refused.
const PROXY_MARKS: [&str; 9] = [
    "403 Forbidden",
    "404 Not Found",
    "410 Gone",
    "Bad Gateway",
    "dial tcp",
    "proxyconnect",
    "no such host",
    "i/o timeout",
    "connection refused",
];

/// Built programs, by name.
#[derive(Debug, Default)]
pub(crate) struct Built(BTreeMap<&'static str, PathBuf>);

impl Built {
    /// The path of a program, if it is there.
    pub(crate) fn path(&self, name: &str) -> Option<&Path> {
        self.0.get(name).map(PathBuf::as_path)
    }

    /// Whether all of [`PEERS`] are there.
    pub(crate) fn is_complete(&self) -> bool {
        PEERS.iter().all(|peer| self.0.contains_key(peer.name))
    }

    /// Tells a test where they are: `ENCLAVE_TEST_PEER_KUBE_APISERVER` is the path of `kube-apiserver`.
    pub(crate) fn tell(&self, test: &mut Command) {
        for (name, path) in &self.0 {
            test.env(format!("ENCLAVE_TEST_PEER_{}", name.to_uppercase().replace('-', "_")), path);
        }
    }
}

/// Builds what is missing, and prints versions and paths.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let chosen = choose(&options.names)?;
    let built = ensure(&chosen)?;
    for peer in chosen {
        let path = built.path(peer.name).expect("invariant: `ensure` built every peer it was asked for");
        terminal::say(&format!("{:<24} {:<9} {}", peer.name, peer.version, path.display()));
    }
    if options.names.is_empty() || options.names.iter().any(|name| name == python::NAME) {
        terminal::say(&format!("{:<24} {:<9} {}", python::NAME, "", python::ensure()?.display()));
    }
    Ok(())
}

/// The programs among these names.
fn choose(names: &[String]) -> Result<Vec<&'static Peer>, Failure> {
    if names.is_empty() {
        return Ok(PEERS.iter().collect());
    }
    let find = |name: &String| {
        PEERS.iter().find(|peer| peer.name == name).ok_or_else(|| {
            let mut known: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
            known.push(python::NAME);
            Failure::new(format!("invalid peer: got {name:?}, expected one of {}", known.join(", ")))
        })
    };
    names.iter().filter(|name| *name != python::NAME).map(find).collect()
}

/// The peers that have been built before. Nothing is built and nothing fails: without Go there are none.
pub(crate) fn cached() -> Built {
    let cache = Cache::find();
    let found =
        cache.map(|cache| PEERS.iter().filter_map(|peer| Some((peer.name, cache.built(peer)?))).collect());
    Built(found.unwrap_or_default())
}

/// Builds one peer if it is missing, and returns its path.
pub(crate) fn ensure_one(name: &str) -> Result<PathBuf, Failure> {
    let built = ensure(&choose(&[name.to_owned()])?)?;
    let path = built.path(name).expect("invariant: `ensure` built every peer it was asked for");
    Ok(path.to_owned())
}

/// Builds all peers that are missing.
pub(crate) fn ensure_all() -> Result<Built, Failure> {
    ensure(&PEERS.iter().collect::<Vec<_>>())
}

fn ensure(peers: &[&'static Peer]) -> Result<Built, Failure> {
    // Nothing to build needs no Go.
    if peers.is_empty() {
        return Ok(Built::default());
    }
    let cache = Cache::find()?;
    let mut missing: Vec<&Peer> = peers.iter().copied().filter(|peer| cache.built(peer).is_none()).collect();
    if !missing.is_empty() {
        fs::create_dir_all(&cache.directory).while_doing(cache.directory.display())?;
        let names: Vec<&str> = missing.iter().map(|peer| peer.name).collect();
        let minutes: u32 = missing.iter().map(|peer| peer.minutes).sum();
        terminal::say(&format!(
            "building {} with {}: about {minutes} min on two idle cores where Go's caches are cold, with \
             up to 6 GB of modules and 8 GB of build cache in Go's own directories; kept in {}",
            names.join(", "),
            cache.go,
            cache.directory.display()
        ));
        let _alone = lock(&cache.directory)?;
        // Another run may have built them while this one waited.
        missing.retain(|peer| cache.built(peer).is_none());
        for peer in missing {
            cache.build(peer)?;
        }
    }
    let found = peers.iter().map(|peer| {
        let path =
            cache.built(peer).ok_or_else(|| Failure::new(format!("{} was built and is gone", peer.name)));
        path.map(|path| (peer.name, path))
    });
    found.collect::<Result<_, _>>().map(Built)
}

/// The directory of built peers, and the Go that builds them.
#[derive(Debug)]
struct Cache {
    directory: PathBuf,
    /// As `go version` says it.
    go: String,
}

impl Cache {
    fn find() -> Result<Self, Failure> {
        let mut version = go();
        version.arg("version");
        if crate::packages::find("go").is_none() {
            let (major, minor) = GO_MIN;
            return Err(Failure::new(format!(
                "there is no `go` in PATH; Go {major}.{minor} or newer builds the peers"
            )));
        }
        let go = cargo::capture(&mut version)?.trim().to_owned();
        check_version(&go)?;
        Ok(Self { directory: directory()?, go })
    }

    /// Where a peer is, if it has been built.
    fn built(&self, peer: &Peer) -> Option<PathBuf> {
        let program = self.home(peer).ok()?.join(peer.name);
        program.is_file().then_some(program)
    }

    /// The directory of a peer: its name and a hash of all that it is built from.
    fn home(&self, peer: &Peer) -> Result<PathBuf, Failure> {
        let mut hash = Sha256::new();
        let source = source(peer);
        let mut files: Vec<PathBuf> = fs::read_dir(&source)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
            .while_doing(source.display())?;
        files.sort();
        for file in files {
            let bytes = fs::read(&file).while_doing(file.display())?;
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The length keeps two files apart from one that holds both.
            hash.update(format!("{name} {}\n", bytes.len()));
            hash.update(bytes);
        }
        let Peer { package, tags, ldflags, .. } = peer;
        hash.update(format!(
            "{package}\n{tags}\n{ldflags}\n{GOFLAGS}\n{}\n{}",
            BUILD_FLAGS.join(" "),
            self.go
        ));
        let hash = format!("{:x}", hash.finalize());
        Ok(self.directory.join(format!("{}-{}", peer.name, &hash[..HASH_CHARACTERS])))
    }

    fn build(&self, peer: &Peer) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        terminal::say(&format!("{} {}: reading its modules", peer.name, peer.version));
        let flags = ["-tags", peer.tags];
        let mut list = go();
        list.current_dir(source(peer)).args(["list", "-deps"]).args(flags).arg(peer.package);
        let packages = follow(list.stdout(Stdio::piped()), peer, watch, "")?.len();

        let home = self.home(peer)?;
        let unfinished = tempfile::Builder::new().prefix("unfinished-").tempdir_in(&self.directory);
        let unfinished = unfinished.while_doing(self.directory.display())?;
        let mut build = go();
        build.current_dir(source(peer)).arg("build").args(BUILD_FLAGS).args(flags);
        build.arg("-ldflags").arg(format!("-s -w {}", peer.ldflags));
        build.arg("-o").arg(unfinished.path().join(peer.name)).arg(peer.package);
        follow(build.stdout(Stdio::null()), peer, watch, &format!(" of at most {packages}"))?;
        // A run that is killed leaves nothing under the final name.
        match fs::rename(unfinished.keep(), &home) {
            Ok(()) => {}
            Err(_) if home.join(peer.name).is_file() => {}
            Err(error) => return Err(Failure::new(format!("{}: {error}", home.display()))),
        }
        terminal::say(&format!("{} {}: built in {watch}", peer.name, peer.version));
        Ok(())
    }
}

/// Held while peers are built: two runs at a time would do the same work twice.
pub(crate) fn lock(directory: &Path) -> Result<fs::File, Failure> {
    let path = directory.join("lock");
    let file = fs::File::create(&path).while_doing(path.display())?;
    if file.try_lock().is_err() {
        terminal::say("waiting for another run that builds peers");
        file.lock().while_doing(path.display())?;
    }
    Ok(file)
}

/// Where peers are kept.
pub(crate) fn directory() -> Result<PathBuf, Failure> {
    if let Some(named) = std::env::var_os(CACHE_VARIABLE).filter(|named| !named.is_empty()) {
        return Ok(cargo::workspace_root().join(named));
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home =
        home.ok_or_else(|| Failure::new(format!("neither {CACHE_VARIABLE} nor HOME names a directory")))?;
    Ok(Path::new(&home).join(".cache/enclave-peers"))
}

fn source(peer: &Peer) -> PathBuf {
    cargo::workspace_root().join("xtask/peers").join(peer.module)
}

/// The Go of this machine: with the flags that the pins need, and never another Go that it fetches itself.
fn go() -> Command {
    let mut go = cargo::command("go");
    go.env("GOFLAGS", GOFLAGS).env("GOTOOLCHAIN", "local").env("GOWORK", "off");
    // The programs run here, whatever this machine's Go is set to build for.
    go.env_remove("GOOS").env_remove("GOARCH");
    go
}

/// Refuses a Go that cannot read the pins.
fn check_version(line: &str) -> Result<(), Failure> {
    let (major, minor) = GO_MIN;
    let version = line.split_whitespace().nth(2).and_then(|word| word.strip_prefix("go"));
    let mut parts = version.unwrap_or_default().split(['.', 'r', 'b']).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= GO_MIN => Ok(()),
        _ => Err(Failure::new(format!(
            "invalid Go: got {line:?}, expected {major}.{minor} or newer to build the peers"
        ))),
    }
}

/// Runs `go` to its end and says now and then how far it is; the lines of its standard output.
fn follow(command: &mut Command, peer: &Peer, watch: Stopwatch, of: &str) -> Result<Vec<String>, Failure> {
    let shown = cargo::show(command);
    let mut child =
        command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().while_doing("could not start go")?;
    let stderr = child.stderr.take().expect("invariant: stderr is piped above");
    let stdout = child.stdout.take();
    let (sender, said) = sync_channel(LINES_QUEUED_MAX);
    let reader = std::thread::spawn(move || {
        for line in lines(stderr) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let output = std::thread::spawn(move || stdout.map(|stdout| lines(stdout).collect()).unwrap_or_default());

    let (mut modules, mut packages) = (0, 0);
    let mut tail = VecDeque::new();
    let mut last_said = watch.elapsed();
    loop {
        match said.recv_timeout(PROGRESS_INTERVAL) {
            Ok(line) if line.starts_with("go: downloading ") => modules += 1,
            Ok(line) => {
                packages += 1;
                tail.push_back(line);
                if tail.len() > TAIL_LINES {
                    tail.pop_front();
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if watch.elapsed() >= last_said + PROGRESS_INTERVAL {
            last_said = watch.elapsed();
            let name = peer.name;
            terminal::say(&format!(
                "    {watch}  {name}: {modules} modules fetched, {packages}{of} packages compiled"
            ));
        }
    }
    let gone = |_| Failure::new("a reader of go's output panicked");
    reader.join().map_err(gone)?;
    let output = output.join().map_err(gone)?;
    let status = child.wait().while_doing("waiting for go")?;
    if status.success() { Ok(output) } else { Err(explain(peer, &shown, status, tail.make_contiguous())) }
}

fn lines(stream: impl Read) -> impl Iterator<Item = String> {
    // Not `lines()`: a line that is not UTF-8 is no reason to stop reading.
    BufReader::new(stream)
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).into_owned())
}

fn explain(peer: &Peer, shown: &str, status: std::process::ExitStatus, tail: &[String]) -> Failure {
    let is_proxy = tail.iter().any(|line| PROXY_MARKS.iter().any(|mark| line.contains(mark)));
    let advice = if is_proxy {
        "\nthe Go module proxy refused a module or could not be reached: `go env GOPROXY` names it"
    } else {
        ""
    };
    Failure::new(format!("{}: `{shown}` failed ({status}):\n{}{advice}", peer.name, tail.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_of_the_pins() {
        for peer in &PEERS {
            let pins = fs::read_to_string(source(peer).join("go.mod")).unwrap();
            // Prometheus 3.16.0 is the module v0.316.0.
            let (major, rest) = peer.version.split_once('.').unwrap();
            let module =
                if peer.name == "prometheus" { format!("0.{major}{rest}") } else { peer.version.to_owned() };
            assert!(pins.contains(&format!(" v{module}\n")), "{}: {module}", peer.name);
            let (major, minor) = GO_MIN;
            assert!(pins.contains(&format!("\ngo {major}.{minor}")), "{}", peer.name);
            assert!(source(peer).join("go.sum").is_file(), "{}", peer.name);
        }
    }

    #[test]
    fn a_go_that_is_too_old_or_not_understood_is_refused() {
        for good in
            ["go version go1.26.8 linux/amd64", "go version go1.27rc1 linux/arm64", "go version go2.0 x"]
        {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in ["go version go1.19.8 linux/amd64", "go version devel +abc", "gccgo", ""] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
        expect_test::expect![[
            r#"invalid Go: got "go version go1.19.8 linux/amd64", expected 1.26 or newer to build the peers"#
        ]]
        .assert_eq(&check_version("go version go1.19.8 linux/amd64").unwrap_err().to_string());
    }

    #[test]
    fn what_a_peer_is_built_from_names_its_directory() {
        let cache = |go: &str| Cache { directory: PathBuf::from("/cache"), go: go.to_owned() };
        let homes: std::collections::BTreeSet<_> =
            PEERS.iter().map(|peer| cache("1").home(peer).unwrap()).collect();
        assert_eq!(homes.len(), PEERS.len());
        let home = cache("1").home(&PEERS[0]).unwrap();
        assert!(home.to_str().unwrap().starts_with("/cache/otelcol-"), "{}", home.display());
        assert_ne!(home, cache("2").home(&PEERS[0]).unwrap(), "another Go makes another program");
    }

    #[test]
    fn an_unknown_name_is_told_with_the_known_ones() {
        assert_eq!(choose(&[]).unwrap().len(), PEERS.len());
        assert!(choose(&["fastapi".to_owned()]).unwrap().is_empty(), "it is none of the programs");
        expect_test::expect![[r#"invalid peer: got "jaeger", expected one of otelcol, prometheus, etcd, kube-apiserver, kube-controller-manager, kubectl, prometheus-adapter, fastapi"#]]
            .assert_eq(&choose(&["jaeger".to_owned()]).unwrap_err().to_string());
    }

    #[test]
    fn a_proxy_that_refuses_is_named_as_the_cause() {
        let refused = ["go: example.com/m@v1: reading https://p/m.zip: 403 Forbidden".to_owned()];
        let status = std::os::unix::process::ExitStatusExt::from_raw(256);
        let text = explain(&PEERS[0], "go build .", status, &refused).to_string();
        assert!(text.contains("the Go module proxy refused a module"), "{text}");
        let text =
            explain(&PEERS[0], "go build .", status, &["main.go:1: syntax error".to_owned()]).to_string();
        assert!(!text.contains("proxy"), "{text}");
    }
}

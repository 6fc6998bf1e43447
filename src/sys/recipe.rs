//! From what a plugin's process shall be to the steps that make it one.

use std::{
    ffi::CString,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    mount::MsFlags,
    sched::CloneFlags,
    unistd::{Gid, Uid},
};

use super::{
    capability::{Capabilities, Confinement},
    cgroup::Cgroup,
    confine::{Identity, Step},
    netns::NetworkNamespace,
    seccomp,
    spawn::{Failure, Program, Recipe},
    surroundings::{DEVICES, List, Surroundings, path},
};

/// What plugins with the same capabilities have in common: the sets, and the filter of system calls.
#[derive(Debug, Clone)]
pub struct Rights {
    confinement: Arc<Confinement>,
    /// Taken before it changes the user.
    bound: Arc<[Step]>,
    /// Taken last of all.
    closing: Arc<[Step]>,
}

impl Rights {
    /// Works them out for this process.
    pub fn new(capabilities: &Capabilities) -> Result<Self, Failure> {
        let invalid = |error| Failure::of("prepare the capabilities", &io::Error::other(error));
        let confinement = Arc::new(capabilities.confinement().map_err(invalid)?);
        let bound = Arc::new([Step::Bound(Arc::clone(&confinement))]);
        let closing = Arc::new([Step::DieWithParent, Step::Filter(seccomp::filter(capabilities))]);
        Ok(Self { confinement, bound, closing })
    }
}

/// A plugin's process.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Its host name.
    pub name: String,
    /// Program and arguments; the program is looked up in `PATH` within the root when it has no slash.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory within the root.
    pub cwd: String,
    /// The image's root file system.
    pub root: PathBuf,
    /// What is done with it.
    pub writes: Writes,
    /// Mounted in order.
    pub binds: Vec<Bind>,
    /// User and group.
    pub identity: Identity,
    /// What it may do beyond that.
    pub rights: Rights,
    /// Whether it is isolated, which takes root's rights; it has a root file system of its own anyway.
    pub isolated: bool,
    /// Its network; the supervisor's own without.
    pub network: Option<&'a NetworkNamespace>,
    /// Its control group.
    pub cgroup: Option<&'a Cgroup>,
}

/// Where a plugin's writes to its root file system go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writes {
    /// Nowhere: they fail.
    Refused,
    /// Into the image's files, and stay there for the next run.
    Image,
    /// Into memory of its own, which the next run does not find.
    Layer {
        /// An empty directory for it, outside.
        directory: PathBuf,
        /// The most it holds.
        bytes: u64,
    },
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// A file or directory outside.
    pub source: PathBuf,
    /// Where it appears: a path outside, beneath the image's root, free of symlinks, already there.
    pub target: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
}

impl Recipe {
    /// Works out how to start it. Without root's rights it gets less: a mount namespace and a root of its
    /// own, as this process's user.
    pub fn new(
        launch: &Launch<'_>,
        surroundings: &Surroundings,
        init: Arc<Program>,
    ) -> Result<Self, Failure> {
        let root = Uid::effective().is_root();
        let isolated = launch.isolated;
        let mut steps = Steps { launch, root: launch.root.clone(), parts: Vec::new(), list: List::default() };
        let invalid = |error| Failure::of("prepare the start", &error);
        let doors = launch.cgroup.map(Cgroup::doors).transpose().map_err(invalid)?.unwrap_or_default();
        let cradle = launch.cgroup.map(Cgroup::cradle).transpose().map_err(invalid)?.flatten();
        if isolated { steps.isolate(surroundings) } else { steps.separate(root) }.map_err(invalid)?;
        let parts = steps.finish(isolated || !root);
        let mut namespaces = CloneFlags::CLONE_NEWNS;
        namespaces |= if isolated {
            CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS
        } else if root {
            CloneFlags::empty()
        } else {
            CloneFlags::CLONE_NEWUSER
        };
        let text = |text: &str| CString::new(text).map_err(|error| invalid(error.into()));
        let words = launch.argv.iter().map(|word| text(word)).collect::<Result<Vec<_>, _>>()?;
        let variables = launch.env.iter().map(|(name, value)| text(&format!("{name}={value}")));
        // With neither a PID namespace nor limits on its user there is nothing for an init to make up for.
        let is_direct = root && !isolated;
        let path = launch.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
        let program = launch.argv.first().map_or("", String::as_str);
        let programs = if is_direct { candidates(program, path) } else { Vec::new() };
        let programs = programs.iter().map(|path| text(path)).collect::<Result<_, _>>()?;
        let before = if is_direct { &[] } else { init.words() };
        Ok(Self {
            programs,
            namespaces,
            cradle,
            doors,
            steps: parts,
            words: before.iter().cloned().chain(words).collect(),
            variables: variables.collect::<Result<_, _>>()?,
            init,
        })
    }
}

/// The list while it is written.
struct Steps<'a> {
    launch: &'a Launch<'a>,
    /// Where the root is mounted.
    root: PathBuf,
    parts: Vec<Arc<[Step]>>,
    list: List,
}

impl Steps<'_> {
    /// Goes on with steps that others have as well.
    fn share(&mut self, part: &Arc<[Step]>) {
        self.parts.push(self.list.part());
        self.parts.push(Arc::clone(part));
    }

    fn finish(mut self, filtered: bool) -> Vec<Arc<[Step]>> {
        if filtered {
            let closing = Arc::clone(&self.launch.rights.closing);
            self.share(&closing);
        } else {
            self.list.add(Step::DieWithParent);
            self.parts.push(self.list.part());
        }
        self.parts.retain(|part| !part.is_empty());
        self.parts
    }

    fn isolate(&mut self, surroundings: &Surroundings) -> io::Result<()> {
        let launch = self.launch;
        self.share(&surroundings.opening);
        if launch.cgroup.is_some() {
            self.list.add(Step::GroupNamespace);
        }
        if let Some(network) = &launch.network {
            self.list.add(Step::Network(network.descriptor()?));
        }
        self.file_systems()?;
        self.list.add(Step::Enter(path(&self.root)?));
        self.share(&surroundings.around);
        self.binds()?;
        self.share(&surroundings.inside);
        self.list.add(Step::Hostname(launch.name.clone()));
        self.list.add(Step::Enter(CString::new(launch.cwd.as_str())?));
        self.share(&launch.rights.bound);
        // Where that is denied, groups can neither be taken nor given up. A kernel without user namespaces
        // has no such file, and denies nothing.
        let groups = std::fs::read_to_string("/proc/self/setgroups");
        let alone = groups.map_or(true, |text| text.trim() != "deny");
        self.list.add(Step::User { identity: launch.identity, alone });
        let confinement = Arc::clone(&launch.rights.confinement);
        self.list.add(Step::Keep { confinement, root: launch.identity.uid == 0 });
        Ok(())
    }

    /// Only a root file system of its own; without root's rights in a user namespace, which is what it takes
    /// to mount anything.
    fn separate(&mut self, root: bool) -> io::Result<()> {
        self.list.add(Step::Session);
        if !root {
            let (uid, gid) = (Uid::effective(), Gid::effective());
            // Without this the kernel refuses an unprivileged gid map.
            self.list.write(c"/proc/self/setgroups", "deny", true);
            self.list.write(c"/proc/self/uid_map", &format!("{uid} {uid} 1"), true);
            self.list.write(c"/proc/self/gid_map", &format!("{gid} {gid} 1"), true);
        }
        self.list.add(Step::PrivateMounts);
        // A mount of its own, because only a mount can become the root.
        self.list.bind(&self.launch.root.clone(), &self.root.clone(), false)?;
        self.list.bind(Path::new("/proc"), &self.root.join("proc"), false)?;
        for (device, _) in DEVICES {
            self.list.bind(&Path::new("/dev").join(device), &self.root.join("dev").join(device), false)?;
        }
        self.list.add(Step::Enter(path(&self.root)?));
        self.binds()?;
        if self.launch.writes == Writes::Refused {
            self.list.read_only(&self.launch.root.clone(), &self.root.clone())?;
        }
        self.list.add(Step::Root);
        self.list.add(Step::Enter(CString::new(self.launch.cwd.as_str())?));
        self.list.limits()?;
        if root {
            self.list.add(Step::User { identity: self.launch.identity, alone: true });
            return Ok(());
        }
        let confinement = Arc::clone(&self.launch.rights.confinement);
        self.list.add(Step::Keep { confinement, root: false });
        Ok(())
    }

    /// The root file system itself.
    fn file_systems(&mut self) -> io::Result<()> {
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        let image = self.launch.root.clone();
        match &self.launch.writes {
            Writes::Image => self.list.bind(&image, &image, false),
            Writes::Refused => self.list.bind(&image, &image, true),
            Writes::Layer { directory, bytes } => {
                let (upper, work, root) =
                    (directory.join("upper"), directory.join("work"), directory.join("root"));
                self.list.memory(directory, *bytes, 0o755, flags)?;
                for directory in [&upper, &work, &root] {
                    self.list.add(Step::Directory(path(directory)?));
                }
                let data = format!(
                    "lowerdir={},upperdir={},workdir={}",
                    image.display(),
                    upper.display(),
                    work.display()
                );
                let (source, target) = (c"overlay".to_owned(), path(&root)?);
                let data = Some(CString::new(data)?);
                self.list.add(Step::Mount { kind: Some(c"overlay"), source, target, flags, data });
                self.root = root;
                Ok(())
            }
        }
    }

    fn binds(&mut self) -> io::Result<()> {
        for Bind { source, target, read_only } in &self.launch.binds {
            let inside = target.strip_prefix(&self.launch.root).map_err(io::Error::other)?;
            self.list.bind(source, inside, *read_only)?;
        }
        Ok(())
    }
}

/// The paths to try, as execvp does.
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .map(|dir| if dir.is_empty() { format!("./{program}") } else { format!("{dir}/{program}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_a_slash_is_looked_up_in_path() {
        assert_eq!(candidates("sh", "/usr/bin:/bin::"), ["/usr/bin/sh", "/bin/sh", "./sh", "./sh"]);
        assert_eq!(candidates("/hello", "/bin"), ["/hello"]);
        assert!(candidates("", "/bin").is_empty());
    }
}

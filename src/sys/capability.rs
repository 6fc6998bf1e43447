//! Capability sets, by the kernel's names without `CAP_`.

use std::{collections::BTreeSet, str::FromStr};

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// Docker's default set, less `NET_RAW` (it sniffs and forges) and `MKNOD` (it makes a way to any device).
const DEFAULT: [Capability; 12] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_KILL,
    Capability::CAP_AUDIT_WRITE,
];

/// What a plugin may do beyond its user's rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities(CapsHashSet);

impl Capabilities {
    /// The default set with `added` given and then `dropped` taken away, as Kubernetes' runtimes do it; `ALL`
    /// stands for every one and comes before the others. A name that is not known here is left out.
    pub fn new(added: &BTreeSet<String>, dropped: &BTreeSet<String>) -> Self {
        let mut set: CapsHashSet =
            if added.contains("ALL") { caps::all() } else { DEFAULT.into_iter().collect() };
        if dropped.contains("ALL") {
            set.clear();
        }
        set.extend(added.iter().filter_map(|name| named(name)));
        for capability in dropped.iter().filter_map(|name| named(name)) {
            set.remove(&capability);
        }
        Self(set)
    }

    /// Whether the set has this one.
    pub fn has(&self, name: &str) -> bool {
        named(name).is_some_and(|capability| self.0.contains(&capability))
    }

    /// What it takes to leave a child of this process with the set alone.
    pub(super) fn confinement(&self) -> Result<Confinement, CapsError> {
        let owned = caps::read(None, CapSet::Permitted)?;
        let mut lost: Vec<_> = caps::runtime::thread_all_supported().difference(&self.0).copied().collect();
        lost.sort_by_key(Capability::index);
        Ok(Confinement { lost, kept: self.0.intersection(&owned).copied().collect() })
    }
}

/// The sets of a child, worked out before there is one.
#[derive(Debug, Clone)]
pub(super) struct Confinement {
    lost: Vec<Capability>,
    kept: CapsHashSet,
}

impl Confinement {
    /// Takes everything else from whatever this process will execute. Before the change of user, which takes
    /// the right to do it.
    pub(super) fn bound(&self) -> Result<(), CapsError> {
        self.lost.iter().try_for_each(|capability| caps::drop(None, CapSet::Bounding, *capability))
    }

    /// Takes everything else from this process. Another user than root has nothing by now, and keeps nothing.
    pub(super) fn keep(&self, root: bool) -> Result<(), CapsError> {
        let none = CapsHashSet::default();
        let kept = if root { &self.kept } else { &none };
        caps::clear(None, CapSet::Inheritable)?;
        caps::set(None, CapSet::Effective, kept)?;
        caps::set(None, CapSet::Permitted, kept)
    }
}

fn named(name: &str) -> Option<Capability> {
    Capability::from_str(&format!("CAP_{name}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(added: &[&str], dropped: &[&str]) -> String {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut shown: Vec<_> =
            Capabilities::new(&names(added), &names(dropped)).0.iter().map(ToString::to_string).collect();
        shown.sort();
        shown.join(" ").replace("CAP_", "")
    }

    #[test]
    fn by_default_a_plugin_has_dockers_capabilities_without_raw_sockets_and_device_nodes() {
        let expected = "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID \
                        SETPCAP SETUID SYS_CHROOT";
        assert_eq!(left(&[], &[]), expected);
    }

    #[test]
    fn all_comes_before_single_names_and_a_name_that_is_dropped_is_gone() {
        assert_eq!(left(&["NET_BIND_SERVICE"], &["ALL"]), "NET_BIND_SERVICE");
        assert_eq!(left(&["SYS_TIME"], &["ALL", "SYS_TIME"]), "");
        let all = left(&["ALL"], &["SYS_ADMIN"]);
        assert!(all.contains("SYS_MODULE") && !all.contains("SYS_ADMIN"), "{all}");
        assert_eq!(left(&["NO_SUCH"], &["ALL"]), "");
    }
}

//! Start and stop order: what the dependency graph and the roles come down to, worked out once.

use super::event::PluginId;
use super::spec::{Role, Spec};

/// The orders of one list of plugins.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// Dependencies before dependants, whatever their role; leaves out what can never start.
    pub(super) by_dependency: Vec<usize>,
    /// By role, then dependencies before dependants, then by index. Holds every plugin. Stopping goes
    /// backwards.
    pub(super) start: Vec<usize>,
    /// Per plugin: the others of its role that depend on it and so are stopped before it.
    pub(super) dependants: Vec<Vec<usize>>,
    /// Plugins that can never start: in or behind a dependency cycle, or with a dependency that is not in
    /// the list. The manifest check refuses both; here they only must not break anything.
    pub(super) impossible: Vec<usize>,
}

impl Order {
    pub(super) fn new(specs: &[Spec]) -> Self {
        let levels = levels(specs);
        let key = |&index: &usize| (levels[index], index);
        let (mut by_dependency, impossible): (Vec<_>, Vec<_>) =
            (0..specs.len()).partition(|&index| levels[index].is_some());
        by_dependency.sort_by_key(key);
        let mut start: Vec<_> = (0..specs.len()).collect();
        start.sort_by_key(|index| (specs[*index].role, key(index)));
        let mut dependants = vec![Vec::new(); specs.len()];
        for &index in &by_dependency {
            for &PluginId(dependency) in &specs[index].depends_on {
                if specs[dependency].role == specs[index].role {
                    dependants[dependency].push(index);
                }
            }
        }
        Self { by_dependency, start, dependants, impossible }
    }

    /// Per plugin, how many turns of the stop order come after its own, counting only plugins that are
    /// `live`: one that is down already needs no time.
    pub(super) fn turns_after(
        &self,
        roles: impl Fn(usize) -> Role,
        live: impl Fn(usize) -> bool,
    ) -> Vec<u32> {
        let mut after = vec![0; self.start.len()];
        // The longest chain from any plugin of the role in work, and of the roles that stop after it.
        let (mut role, mut chain, mut chain_of_later_roles) = (None, 0, 0);
        for &index in &self.start {
            if role != Some(roles(index)) {
                role = Some(roles(index));
                chain_of_later_roles = chain;
            }
            after[index] = after[index].max(chain_of_later_roles);
            let with_own = after[index] + u32::from(live(index));
            chain = chain.max(with_own);
            for &dependant in &self.dependants[index] {
                after[dependant] = after[dependant].max(with_own);
            }
        }
        after
    }
}

/// The length of the longest chain of dependencies below each plugin; none where the chain has no end or
/// leads out of the list.
fn levels(specs: &[Spec]) -> Vec<Option<usize>> {
    let mut levels: Vec<Option<usize>> = vec![None; specs.len()];
    // Each round but the last settles at least one plugin, so there are at most as many rounds as plugins.
    loop {
        let mut settled_one = false;
        for (index, spec) in specs.iter().enumerate() {
            if levels[index].is_some() {
                continue;
            }
            let below = spec.depends_on.iter().map(|&PluginId(other)| levels.get(other).copied().flatten());
            let level = below
                .map(|level| level.map(|level| level + 1))
                .try_fold(0, |most, level| Some(most.max(level?)));
            settled_one |= level.is_some();
            levels[index] = level;
        }
        if !settled_one {
            return levels;
        }
    }
}

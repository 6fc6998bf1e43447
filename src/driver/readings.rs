//! What a sample says about every plugin: its control group, or its processes where there are no groups.

use std::{collections::BTreeMap, time::Duration};

use enclave_protocol::control::{PluginPhase, PluginStatus};

use super::{
    children::{Children, Live, Plugin},
    standby::Standby,
};
use crate::{
    engine::{Moment, PluginId, PluginSnapshot},
    sample::{
        families,
        plugin::{DETAIL_EVERY, Detail, NEAR_LIMIT_OVER, Numbers, OPEN_FILES_PROCESSES_MAX, PROCESSES_MAX},
        process::{self, Usage},
        system::Space,
    },
    sys::cgroup::{Cgroup, Limits, Reading},
};

/// A plugin that has come near to its memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NearLimit {
    pub(super) plugin: PluginId,
    /// What is in use, in thousandths of the limit.
    pub(super) filled: u64,
    /// The limit, in bytes.
    pub(super) limit: u64,
}

impl Children {
    /// Reads every plugin. `number` counts the samples, `oom_kills` is the kernel's own count of kills.
    pub(super) fn readings<'a>(
        &'a mut self,
        (now, number): (Moment, u64),
        statuses: &'a [PluginStatus],
        snapshots: &[PluginSnapshot],
        oom_kills: Option<u64>,
    ) -> Vec<families::Plugin<'a>> {
        let without_group = self.plugins.iter().filter(|slot| slot.cgroup.is_none());
        let leaders: Vec<i32> = without_group.filter_map(|slot| slot.live.as_ref()?.pid()).collect();
        let mut usage = process::usage_of(&leaders);
        self.oom_kills_seen = oom_kills;
        let mut numbers = Vec::with_capacity(self.plugins.len());
        for (index, (slot, snapshot)) in self.plugins.iter_mut().zip(snapshots).enumerate() {
            let detailed = (number.wrapping_add(index as u64)).is_multiple_of(DETAIL_EVERY);
            numbers.push(slot.numbers(now, snapshot, detailed, &mut usage));
        }
        let whole = self.plugins.iter().zip(statuses).zip(numbers);
        whole
            .map(|((slot, status), numbers)| families::Plugin { status, names: &slot.track.names, numbers })
            .collect()
    }

    /// Plugins that have come near to their memory limits since the last look.
    pub(super) fn near_limits(&mut self) -> Vec<NearLimit> {
        let look = |(index, slot): (usize, &mut Plugin)| {
            let cgroup = slot.cgroup.as_ref().filter(|_| slot.live.is_some())?;
            let filled = cgroup.memory_filled(NEAR_LIMIT_OVER)?;
            let limit = cgroup.limits().memory_bytes?;
            let comes = slot.track.comes_near_limit(filled);
            comes.then_some(NearLimit { plugin: PluginId(index), filled, limit })
        };
        self.plugins.iter_mut().enumerate().filter_map(look).collect()
    }

    /// Whether any plugin has a memory limit in force.
    pub(super) fn has_memory_limits(&self) -> bool {
        let limited =
            |slot: &Plugin| slot.cgroup.as_ref().is_some_and(|cgroup| memory_limit(cgroup).is_some());
        self.plugins.iter().any(limited)
    }

    /// The limit of a plugin that the out-of-memory killer struck before anybody was told that it is near.
    /// Once for each such end.
    pub(super) fn untold_limit(&mut self, plugin: PluginId) -> Option<u64> {
        let slot = self.plugins.get_mut(plugin.0)?;
        let untold = std::mem::take(&mut slot.untold);
        slot.cgroup.as_ref().filter(|_| untold).and_then(|cgroup| memory_limit(cgroup))
    }
}

fn memory_limit(cgroup: &Cgroup) -> Option<u64> {
    cgroup.limits().memory_bytes
}

impl Plugin {
    fn numbers(
        &mut self,
        now: Moment,
        snapshot: &PluginSnapshot,
        detailed: bool,
        usage: &mut BTreeMap<i32, Usage>,
    ) -> Numbers {
        let pid = self.live.as_ref().and_then(Live::pid);
        let inits = self.inits();
        let (reading, own, threads, limits) = if let Some(cgroup) = &self.cgroup {
            let reading = cgroup.reading();
            (reading, None, reading.pids.map(|pids| pids.saturating_sub(inits)), *cgroup.limits())
        } else {
            let own = pid.and_then(|pid| usage.remove(&pid)).unwrap_or_default();
            let reading = of_processes(&own, self.cpu_gone);
            (reading, Some(own.pids), Some(own.threads), Limits::default())
        };
        // A run that has not answered is still being made, and not worth keeping.
        if self.live.as_ref().is_none_or(|live| !live.answered) {
            self.track.detail = None;
        } else if detailed || self.track.detail.is_none() || own.is_some() {
            self.track.detail = Some(self.detail(own));
        }
        let none_runs = Detail { processes: Some(0), open_files: Some(0), space: None };
        Numbers {
            reading,
            limits,
            cpu_usage: self.track.cpu_usage(now, reading.cpu),
            threads,
            uptime: (snapshot.phase == PluginPhase::Running).then(|| now.since(snapshot.since)),
            oom_kills: self.oom_kills,
            detail: self.track.detail.unwrap_or(none_runs),
        }
    }

    /// Looks at every process. `own` are those of a plugin without a group.
    fn detail(&self, own: Option<Vec<i32>>) -> Detail {
        let listed = own.or_else(|| self.cgroup.as_ref()?.processes(PROCESSES_MAX));
        let Some(mut pids) = listed else { return Detail::default() };
        let live = self.live.as_ref();
        let standby = self.standby.as_ref().and_then(Standby::pid);
        let init = live.filter(|_| !self.recipe.is_direct()).and_then(Live::pid);
        pids.retain(|pid| Some(*pid) != init && Some(*pid) != standby);
        let few = pids.len() <= OPEN_FILES_PROCESSES_MAX;
        Detail {
            processes: Some(pids.len() as u64),
            open_files: few.then(|| process::open_files(&pids)),
            space: init.and_then(Space::of_layer),
        }
    }
}

/// What control groups would say of these processes. What they do not have is not made up.
fn of_processes(usage: &Usage, cpu_gone: Duration) -> Reading {
    Reading {
        cpu: Some(usage.cpu + cpu_gone),
        memory: Some(usage.memory),
        anonymous: Some(usage.memory),
        page_faults: Some(usage.page_faults),
        major_page_faults: Some(usage.major_page_faults),
        ..Reading::default()
    }
}

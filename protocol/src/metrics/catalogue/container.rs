//! Plugins under the names that the conventions have for containers.

entries! {
    /// CPU time used by the plugin over all its runs.
    CPU_TIME: Counter "container.cpu.time" "s" ["plugin", "k8s.container.name"]
        "group: cpu.stat (v2), cpuacct.usage (v1); else /proc, with the reaped processes of earlier runs";
    /// CPUs in use by the plugin, since the reading before.
    CPU_USAGE: Gauge "container.cpu.usage" "{cpu}" ["plugin", "k8s.container.name"]
        "Δ`container.cpu.time`/Δt";
    /// Memory in use by the plugin, page cache and files in memory included.
    MEMORY_USAGE: Gauge "container.memory.usage" "By" ["plugin", "k8s.container.name"]
        "group: memory.current (v2), memory.usage_in_bytes (v1); else the processes' resident memory";
    /// Memory in use by the plugin that the kernel cannot easily take back.
    MEMORY_WORKING_SET: Gauge "container.memory.working_set" "By" ["plugin", "k8s.container.name"]
        "group: usage − inactive_file (v1: total_inactive_file), not below 0; else resident memory";
    /// Memory that is left before the working set reaches the limit.
    MEMORY_AVAILABLE: Gauge "container.memory.available" "By" ["plugin", "k8s.container.name"]
        "limit − working set, not below 0. Absent without a limit in force";
    /// Anonymous memory of the plugin.
    MEMORY_RSS: Gauge "container.memory.rss" "By" ["plugin", "k8s.container.name"]
        "group: anon of memory.stat (v2), total_rss (v1); else resident memory";
    /// Page faults of the plugin.
    MEMORY_PAGE_FAULTS: Gauge "container.memory.page_faults" "1" ["plugin", "k8s.container.name"]
        "group: pgfault of memory.stat (v1: total_pgfault); else minor and major faults of the living \
         processes";
    /// Page faults of the plugin that waited for a disk.
    MEMORY_MAJOR_PAGE_FAULTS: Gauge "container.memory.major_page_faults" "1"
        ["plugin", "k8s.container.name"]
        "group: pgmajfault of memory.stat (v1: total_pgmajfault); else major faults of the living \
         processes";
    /// Space used in the plugin's writable layer.
    FILESYSTEM_USAGE: Gauge "container.filesystem.usage" "By" ["plugin", "k8s.container.name"]
        "statfs of the root of a running plugin, at every fourth sample. Absent without a layer of its own";
    /// Space left in the plugin's writable layer.
    FILESYSTEM_AVAILABLE: Gauge "container.filesystem.available" "By" ["plugin", "k8s.container.name"]
        "as `container.filesystem.usage`";
    /// Size of the plugin's writable layer.
    FILESYSTEM_CAPACITY: Gauge "container.filesystem.capacity" "By" ["plugin", "k8s.container.name"]
        "as `container.filesystem.usage`";
    /// Time since the present run started.
    UPTIME: Gauge "container.uptime" "s" ["plugin", "k8s.container.name"]
        "the supervisor. Absent while it does not run";
    /// Restarts since the manifest was accepted.
    RESTART_COUNT: UpDownCounter "k8s.container.restart.count" "{restart}" ["plugin", "k8s.container.name"]
        "the supervisor";
    /// 1 while the plugin counts as ready.
    READY: UpDownCounter "k8s.container.ready" "{container}" ["plugin", "k8s.container.name"]
        "the supervisor";
    /// 1 for the state that the plugin is in, 0 for the others.
    STATUS_STATE: UpDownCounter "k8s.container.status.state" "{container}"
        ["plugin", "k8s.container.name", "k8s.container.status.state"]
        "the supervisor: `waiting`, `running`, `terminated`";
    /// 1 for the reason of the plugin's state, 0 for the others.
    STATUS_REASON: UpDownCounter "k8s.container.status.reason" "{container}"
        ["plugin", "k8s.container.name", "k8s.container.status.reason"]
        "the supervisor, of the conventions' words those that it has: `ContainerCreating`, \
         `CrashLoopBackOff`, `OOMKilled`, `Completed`, `Error`, `ContainerCannotRun`";
    /// CPU limit in force.
    CPU_LIMIT: UpDownCounter "k8s.container.cpu.limit.current" "{cpu}" ["plugin", "k8s.container.name"]
        "resources.limits.cpu. Absent without one in force";
    /// Memory limit in force.
    MEMORY_LIMIT: UpDownCounter "k8s.container.memory.limit.current" "By" ["plugin", "k8s.container.name"]
        "resources.limits.memory. Absent without one in force";
    /// CPUs in use by CPU limit.
    CPU_LIMIT_UTILIZATION: Gauge "k8s.container.cpu_limit_utilization" "1" ["plugin", "k8s.container.name"]
        "`container.cpu.usage`/limit. Absent without one in force";
    /// Memory in use by memory limit, 0.0–1.0.
    MEMORY_LIMIT_UTILIZATION: Gauge "k8s.container.memory_limit_utilization" "1"
        ["plugin", "k8s.container.name"]
        "`container.memory.usage`/limit, as the receiver has it. Absent without one in force";
}

//! The enclave as a whole: the two headline gauges, the node, the pod.

entries! {
    /// Share of CPU time used over all cores since the reading before, 0.0–1.0, the supervisor's own
    /// included.
    NITRO_CPU_USAGE: Gauge "nitro_enclave_cpu_usage" "" []
        "1 − Δ(idle + iowait)/Δtotal of /proc/stat; steal counts as used. No point before the second \
         reading, a second after the manifest";
    /// Share of the memory in use, 0.0–1.0, the in-memory file system included.
    NITRO_MEMORY_USAGE: Gauge "nitro_enclave_memory_usage" "" []
        "1 − MemAvailable/MemTotal of /proc/meminfo";
    /// Memory that programs can still get.
    MEMORY_AVAILABLE_BYTES: Gauge "enclave_memory_available_bytes" "" [] "MemAvailable of /proc/meminfo";
    /// Memory of the enclave, without what the kernel reserves at boot.
    MEMORY_TOTAL_BYTES: Gauge "enclave_memory_total_bytes" "" [] "MemTotal of /proc/meminfo";
    /// CPU time used over all cores.
    CPU_TIME: Counter "k8s.node.cpu.time" "s" [] "/proc/stat, all modes but idle and iowait";
    /// CPUs in use, since the reading before.
    CPU_USAGE: Gauge "k8s.node.cpu.usage" "{cpu}" []
        "/proc/stat: the share of time used × the number of CPUs";
    /// Memory in use, page cache and the in-memory root file system included.
    MEMORY_USAGE: Gauge "k8s.node.memory.usage" "By" []
        "MemTotal − MemFree of /proc/meminfo, which is what kubelet takes where the root group has no \
         count of its own";
    /// Memory in use that the kernel cannot easily take back; what kubelet evicts by.
    MEMORY_WORKING_SET: Gauge "k8s.node.memory.working_set" "By" []
        "usage − Inactive(file), not below 0. Files in memory (tmpfs, ramfs) are in it";
    /// Memory that is left before the working set fills the enclave.
    MEMORY_AVAILABLE: Gauge "k8s.node.memory.available" "By" []
        "MemTotal − working set, as kubelet has it. MemAvailable is `enclave_memory_available_bytes`";
    /// Anonymous memory of all processes.
    MEMORY_RSS: Gauge "k8s.node.memory.rss" "By" [] "AnonPages of /proc/meminfo";
    /// Page faults since boot.
    MEMORY_PAGE_FAULTS: Gauge "k8s.node.memory.page_faults" "1" []
        "pgfault of /proc/vmstat. A gauge with unit 1 in the receiver, and so `_ratio` in Prometheus";
    /// Page faults since boot that waited for a disk.
    MEMORY_MAJOR_PAGE_FAULTS: Gauge "k8s.node.memory.major_page_faults" "1" [] "pgmajfault of /proc/vmstat";
    /// Space left in the root file system.
    FILESYSTEM_AVAILABLE: Gauge "k8s.node.filesystem.available" "By" []
        "statfs of /. Absent where it has no size: ramfs, the root of an enclave on aarch64";
    /// Size of the root file system.
    FILESYSTEM_CAPACITY: Gauge "k8s.node.filesystem.capacity" "By" [] "as `k8s.node.filesystem.available`";
    /// Space used in the root file system.
    FILESYSTEM_USAGE: Gauge "k8s.node.filesystem.usage" "By" [] "as `k8s.node.filesystem.available`";
    /// Bytes over the vsock link; `receive` is into the enclave.
    NETWORK_IO: Counter "k8s.node.network.io" "By" ["interface", "direction"]
        "what `net` relays for egress and ingress; `interface` is `vsock`. Control calls and logs are not \
         in it";
    /// Streams over the vsock link that an error or the idle limit ended; `transmit` are those that plugins
    /// opened.
    NETWORK_ERRORS: Counter "k8s.node.network.errors" "1" ["interface", "direction"] "`net`";
    /// Time since boot.
    UPTIME: Gauge "k8s.node.uptime" "s" [] "CLOCK_BOOTTIME";
    /// CPU time used by all plugins.
    POD_CPU_TIME: Counter "k8s.pod.cpu.time" "s" [] "sum of `container.cpu.time`";
    /// CPUs in use by all plugins.
    POD_CPU_USAGE: Gauge "k8s.pod.cpu.usage" "{cpu}" [] "sum of `container.cpu.usage`";
    /// Memory in use by all plugins, page cache included.
    POD_MEMORY_USAGE: Gauge "k8s.pod.memory.usage" "By" [] "sum of `container.memory.usage`";
    /// Working set of all plugins.
    POD_MEMORY_WORKING_SET: Gauge "k8s.pod.memory.working_set" "By" []
        "sum of `container.memory.working_set`";
    /// Memory that is left to the plugins before their limits.
    POD_MEMORY_AVAILABLE: Gauge "k8s.pod.memory.available" "By" []
        "sum of `container.memory.available`. Absent unless every plugin has a limit";
    /// Anonymous memory of all plugins.
    POD_MEMORY_RSS: Gauge "k8s.pod.memory.rss" "By" [] "sum of `container.memory.rss`";
    /// Page faults of all plugins.
    POD_MEMORY_PAGE_FAULTS: Gauge "k8s.pod.memory.page_faults" "1" []
        "sum of `container.memory.page_faults`";
    /// Page faults of all plugins that waited for a disk.
    POD_MEMORY_MAJOR_PAGE_FAULTS: Gauge "k8s.pod.memory.major_page_faults" "1" []
        "sum of `container.memory.major_page_faults`";
    /// Space left to the plugins' root file systems.
    POD_FILESYSTEM_AVAILABLE: Gauge "k8s.pod.filesystem.available" "By" []
        "as `k8s.node.filesystem.available`";
    /// Size of the file system that the plugins' root file systems are in.
    POD_FILESYSTEM_CAPACITY: Gauge "k8s.pod.filesystem.capacity" "By" []
        "as `k8s.node.filesystem.capacity`";
    /// Space used by all plugins' writable layers.
    POD_FILESYSTEM_USAGE: Gauge "k8s.pod.filesystem.usage" "By" [] "sum of `container.filesystem.usage`";
    /// Bytes over the vsock link for plugins.
    POD_NETWORK_IO: Counter "k8s.pod.network.io" "By" ["interface", "direction"] "as `k8s.node.network.io`";
    /// Streams of plugins over the vsock link that an error or the idle limit ended.
    POD_NETWORK_ERRORS: Counter "k8s.pod.network.errors" "1" ["interface", "direction"]
        "as `k8s.node.network.errors`";
    /// Time since the manifest was accepted.
    POD_UPTIME: Gauge "k8s.pod.uptime" "s" [] "the supervisor";
    /// CPU time of all cores by mode.
    SYSTEM_CPU_TIME: Counter "system.cpu.time" "s" ["cpu.mode"]
        "/proc/stat: user (niced included), system (interrupts included), idle, iowait, steal";
    /// Time in which some, or all (`full`), of the runnable work waited for a resource.
    PRESSURE: Counter "enclave_pressure_seconds_total" "" ["resource", "scope"]
        "/proc/pressure. Absent where the kernel has no PSI, as AWS's enclave kernels";
}

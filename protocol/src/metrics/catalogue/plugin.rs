//! Plugins: what the conventions have no names for.

entries! {
    /// 1 while the plugin's process runs.
    UP: Gauge "enclave_plugin_up" "" ["plugin"] "the supervisor";
    /// 1 while the plugin counts as ready.
    READY: Gauge "enclave_plugin_ready" "" ["plugin"] "the supervisor";
    /// Restarts since the manifest was accepted.
    RESTARTS: Counter "enclave_plugin_restarts_total" "" ["plugin"] "the supervisor";
    /// 1 while the plugin counts as crashing again and again: `CrashLoopBackOff`.
    CRASH_LOOP: Gauge "enclave_plugin_crash_loop" "" ["plugin"] "the supervisor";
    /// Failures in a row of the plugin's probe.
    PROBE_FAILURES: Gauge "enclave_plugin_probe_failures" "" ["plugin", "probe"]
        "the supervisor; `probe` is `startup`, `liveness`, `readiness` or `notify`. Absent for probes \
         that the manifest has not";
    /// Exit code of the last run; 128 + the signal's number where one ended it.
    LAST_EXIT_CODE: Gauge "enclave_plugin_last_exit_code" "" ["plugin"]
        "the supervisor. Absent before the first end";
    /// Runs ended by the out-of-memory killer.
    OOM_KILLS: Counter "enclave_plugin_oom_kills_total" "" ["plugin"] "the supervisor";
    /// Threads of the plugin, its init's not included.
    THREADS: Gauge "enclave_plugin_threads" "" ["plugin"]
        "group: pids.current; else /proc. Absent without the controller";
    /// Processes of the plugin, its init not included.
    PROCESSES: Gauge "enclave_plugin_processes" "" ["plugin"]
        "group: cgroup.procs, at every fourth sample and at the first of a run; else /proc";
    /// Files that the plugin's processes have open.
    OPEN_FILES: Gauge "enclave_plugin_open_files" "" ["plugin"]
        "/proc/PID/fd, at every fourth sample and at the first of a run. Absent for more than 256 \
         processes";
    /// What happened at the plugin's memory limits, by event.
    MEMORY_EVENTS: Counter "enclave_plugin_memory_events_total" "" ["plugin", "event"]
        "group: memory.events (v2): `high`, `max` (the limit was hit), `oom`, `oom_kill` (processes \
         killed). v1 has `max` (memory.failcnt) and, since Linux 4.13, `oom_kill`. Absent without a group";
    /// Periods in which the plugin could have been throttled.
    CPU_PERIODS: Counter "enclave_plugin_cpu_periods_total" "" ["plugin"]
        "group: nr_periods of cpu.stat. Absent without the controller";
    /// Periods in which the plugin was throttled.
    CPU_THROTTLED_PERIODS: Counter "enclave_plugin_cpu_throttled_periods_total" "" ["plugin"]
        "group: nr_throttled of cpu.stat. Absent without the controller";
    /// Time for which the plugin was throttled.
    CPU_THROTTLED: Counter "enclave_plugin_cpu_throttled_seconds_total" "" ["plugin"]
        "group: throttled_usec (v2) or throttled_time (v1) of cpu.stat. Absent without the controller";
    /// Time in which some, or all (`full`), of the plugin's work waited for a resource.
    PRESSURE: Counter "enclave_plugin_pressure_seconds_total" "" ["plugin", "resource", "scope"]
        "group, v2 alone: cpu.pressure, memory.pressure, io.pressure. Absent where the kernel has no PSI";
    /// Bytes of the plugin's output.
    LOG_BYTES: Counter "enclave_plugin_log_bytes_total" "" ["plugin"] "the supervisor";
    /// Log records lost: pushed out before they were acknowledged, or above the plugin's rate.
    LOG_DROPPED: Counter "enclave_plugin_log_dropped_total" "" ["plugin"] "the supervisor";
    /// Log records lost because they were above the plugin's rate.
    LOG_RATE_LIMITED: Counter "enclave_plugin_log_rate_limited_total" "" ["plugin"] "the supervisor";
}

//! What host-proxy counts.

entries! {
    /// Egress streams that were connected.
    EGRESS_CONNECTIONS: Counter "enclave_host_egress_connections_total" "" [] "host-proxy";
    /// Egress streams now.
    EGRESS_ACTIVE: Gauge "enclave_host_egress_connections" "" [] "host-proxy";
    /// Egress bytes moved.
    EGRESS_BYTES: Counter "enclave_host_egress_bytes_total" "" ["to"]
        "host-proxy; `to` is `world` or `enclave`";
    /// Egress streams that were refused.
    EGRESS_REFUSED: Counter "enclave_host_egress_refused_total" "" ["reason"] "host-proxy";
    /// Ingress streams that were connected.
    INGRESS_CONNECTIONS: Counter "enclave_host_ingress_connections_total" "" [] "host-proxy";
    /// Ingress streams now.
    INGRESS_ACTIVE: Gauge "enclave_host_ingress_connections" "" [] "host-proxy";
    /// Ingress bytes moved.
    INGRESS_BYTES: Counter "enclave_host_ingress_bytes_total" "" ["to"]
        "host-proxy; `to` is `world` or `enclave`";
    /// Ingress streams that were refused.
    INGRESS_REFUSED: Counter "enclave_host_ingress_refused_total" "" ["reason"] "host-proxy";
    /// Log records written to stdout.
    LOG_RECORDS: Counter "enclave_host_log_records_total" "" [] "host-proxy";
    /// Bytes of log records written to stdout.
    LOG_BYTES: Counter "enclave_host_log_bytes_total" "" [] "host-proxy";
    /// Log records that the enclave had to drop.
    LOG_DROPPED: Counter "enclave_host_log_dropped_total" "" [] "host-proxy";
    /// Log sequence numbers that never came.
    LOG_SKIPPED: Counter "enclave_host_log_skipped_total" "" [] "host-proxy";
    /// Log records that came twice.
    LOG_DUPLICATES: Counter "enclave_host_log_duplicates_total" "" [] "host-proxy";
    /// Lines of the log stream that are not a record.
    LOG_MALFORMED: Counter "enclave_host_log_malformed_total" "" [] "host-proxy";
    /// Failed writes to stdout.
    LOG_SINK_ERRORS: Counter "enclave_host_log_sink_errors_total" "" [] "host-proxy";
    /// Log streams opened.
    LOG_STREAMS: Counter "enclave_host_log_streams_total" "" [] "host-proxy";
    /// Manifests accepted by an enclave.
    MANIFESTS_ACCEPTED: Counter "enclave_host_manifests_accepted_total" "" [] "host-proxy";
    /// Status calls without an answer.
    STATUS_FAILURES: Counter "enclave_host_status_failures_total" "" [] "host-proxy";
    /// Connection tasks that panicked.
    PANICS: Counter "enclave_host_panics_total" "" [] "host-proxy";
    /// Pauses of accepting because descriptors or memory ran out.
    ACCEPT_PAUSES: Counter "enclave_host_accept_pauses_total" "" [] "host-proxy";
    /// Connections that are not our enclave's.
    FOREIGN_PEERS: Counter "enclave_host_foreign_peers_total" "" [] "host-proxy";
    /// Control connections made to the enclave.
    CONTROL_CONNECTIONS: Counter "enclave_host_control_connections_total" "" [] "host-proxy";
    /// 1 while the enclave gives samples.
    ENCLAVE_UP: Gauge "enclave_host_enclave_up" "" [] "host-proxy";
    /// 1 while the enclave runs our manifest.
    SYNCED: Gauge "enclave_host_synced" "" [] "host-proxy";
    /// 1 while the manifest on disk is another than the one that runs.
    MANIFEST_DRIFT: Gauge "enclave_host_manifest_drift" "" [] "host-proxy";
}

//! Streams that `net` relays, and the supervisor's own counters.

entries! {
    /// Egress streams that both sides agreed to.
    EGRESS_CONNECTIONS: Counter "enclave_egress_connections_total" "" ["plugin", "destination"] "`net`";
    /// Egress streams open now.
    EGRESS_ACTIVE: Gauge "enclave_egress_connections_active" "" ["plugin", "destination"] "`net`";
    /// Egress streams ended by an error or the idle limit.
    EGRESS_BROKEN: Counter "enclave_egress_broken_total" "" ["plugin", "destination"] "`net`";
    /// Egress bytes from whoever connected.
    EGRESS_SENT: Counter "enclave_egress_sent_bytes_total" "" ["plugin", "destination"] "`net`";
    /// Egress bytes to whoever connected.
    EGRESS_RECEIVED: Counter "enclave_egress_received_bytes_total" "" ["plugin", "destination"] "`net`";
    /// Egress streams refused, by reason.
    EGRESS_REFUSED: Counter "enclave_egress_refused_total" "" ["plugin", "reason"]
        "`net`. `plugin` is absent as long as it is not known";
    /// Egress accepts that failed.
    EGRESS_ACCEPT_ERRORS: Counter "enclave_egress_accept_errors_total" "" [] "`net`";
    /// Egress streams closed by a panic in their task.
    EGRESS_PANICS: Counter "enclave_egress_panics_total" "" [] "`net`";
    /// Ingress streams that both sides agreed to.
    INGRESS_CONNECTIONS: Counter "enclave_ingress_connections_total" "" ["plugin", "port"] "`net`";
    /// Ingress streams open now.
    INGRESS_ACTIVE: Gauge "enclave_ingress_connections_active" "" ["plugin", "port"] "`net`";
    /// Ingress streams ended by an error or the idle limit.
    INGRESS_BROKEN: Counter "enclave_ingress_broken_total" "" ["plugin", "port"] "`net`";
    /// Ingress bytes from whoever connected.
    INGRESS_SENT: Counter "enclave_ingress_sent_bytes_total" "" ["plugin", "port"] "`net`";
    /// Ingress bytes to whoever connected.
    INGRESS_RECEIVED: Counter "enclave_ingress_received_bytes_total" "" ["plugin", "port"] "`net`";
    /// Ingress streams refused, by reason.
    INGRESS_REFUSED: Counter "enclave_ingress_refused_total" "" ["plugin", "reason"]
        "`net`. `plugin` is absent as long as it is not known";
    /// Ingress accepts that failed.
    INGRESS_ACCEPT_ERRORS: Counter "enclave_ingress_accept_errors_total" "" [] "`net`";
    /// Ingress streams closed by a panic in their task.
    INGRESS_PANICS: Counter "enclave_ingress_panics_total" "" [] "`net`";
    /// Peer streams that both sides agreed to.
    PEER_CONNECTIONS: Counter "enclave_peer_connections_total" "" ["plugin", "port"] "`net`";
    /// Peer streams open now.
    PEER_ACTIVE: Gauge "enclave_peer_connections_active" "" ["plugin", "port"] "`net`";
    /// Peer streams ended by an error or the idle limit.
    PEER_BROKEN: Counter "enclave_peer_broken_total" "" ["plugin", "port"] "`net`";
    /// Peer bytes from whoever connected.
    PEER_SENT: Counter "enclave_peer_sent_bytes_total" "" ["plugin", "port"] "`net`";
    /// Peer bytes to whoever connected.
    PEER_RECEIVED: Counter "enclave_peer_received_bytes_total" "" ["plugin", "port"] "`net`";
    /// Peer streams refused, by reason.
    PEER_REFUSED: Counter "enclave_peer_refused_total" "" ["plugin", "reason"]
        "`net`. `plugin` is absent as long as it is not known";
    /// Peer accepts that failed.
    PEER_ACCEPT_ERRORS: Counter "enclave_peer_accept_errors_total" "" [] "`net`";
    /// Peer streams closed by a panic in their task.
    PEER_PANICS: Counter "enclave_peer_panics_total" "" [] "`net`";
    /// Control requests and connections turned away.
    CONTROL_REFUSALS: Counter "enclave_control_refusals_total" "" ["reason"]
        "the supervisor: `unauthorized`, `malformed`, `connection`, `panic`";
    /// Restarts of the net process.
    NET_RESTARTS: Counter "enclave_net_restarts_total" "" [] "the supervisor";
    /// The supervisor's own log records pushed out before they were acknowledged.
    LOG_DROPPED: Counter "enclave_supervisor_log_dropped_total" "" [] "the supervisor";
    /// The supervisor's own log records that standard error did not take.
    STDERR_LOST: Counter "enclave_supervisor_stderr_lost_total" "" [] "the supervisor";
}

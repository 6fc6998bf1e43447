//! What the telemetry plugin counts, and what it makes for every target that it scrapes.

entries! {
    /// Data points made or received.
    POINTS_PRODUCED: Counter "enclave_telemetry_points_produced_total" "" [] "the telemetry plugin";
    /// Data points that the collector took.
    POINTS_SENT: Counter "enclave_telemetry_points_sent_total" "" [] "the telemetry plugin";
    /// Data points lost, by reason.
    POINTS_DROPPED: Counter "enclave_telemetry_points_dropped_total" "" ["reason"] "the telemetry plugin";
    /// Data points sent once more.
    POINTS_RETRIED: Counter "enclave_telemetry_points_retried_total" "" [] "the telemetry plugin";
    /// Data points received from plugins.
    POINTS_RECEIVED: Counter "enclave_telemetry_points_received_total" "" []
        "the telemetry plugin; part of those produced";
    /// Data points that wait, those being sent included.
    POINTS_QUEUED: Gauge "enclave_telemetry_points_queued" "" [] "the telemetry plugin";
    /// Log records made or received.
    LOG_RECORDS_PRODUCED: Counter "enclave_telemetry_log_records_produced_total" "" []
        "the telemetry plugin";
    /// Log records that the collector took.
    LOG_RECORDS_SENT: Counter "enclave_telemetry_log_records_sent_total" "" [] "the telemetry plugin";
    /// Log records lost, by reason.
    LOG_RECORDS_DROPPED: Counter "enclave_telemetry_log_records_dropped_total" "" ["reason"]
        "the telemetry plugin";
    /// Log records sent once more.
    LOG_RECORDS_RETRIED: Counter "enclave_telemetry_log_records_retried_total" "" [] "the telemetry plugin";
    /// Log records received from plugins.
    LOG_RECORDS_RECEIVED: Counter "enclave_telemetry_log_records_received_total" "" []
        "the telemetry plugin; part of those produced";
    /// Log records that wait, those being sent included.
    LOG_RECORDS_QUEUED: Gauge "enclave_telemetry_log_records_queued" "" [] "the telemetry plugin";
    /// Spans made or received.
    SPANS_PRODUCED: Counter "enclave_telemetry_spans_produced_total" "" [] "the telemetry plugin";
    /// Spans that the collector took.
    SPANS_SENT: Counter "enclave_telemetry_spans_sent_total" "" [] "the telemetry plugin";
    /// Spans lost, by reason.
    SPANS_DROPPED: Counter "enclave_telemetry_spans_dropped_total" "" ["reason"] "the telemetry plugin";
    /// Spans sent once more.
    SPANS_RETRIED: Counter "enclave_telemetry_spans_retried_total" "" [] "the telemetry plugin";
    /// Spans received from plugins.
    SPANS_RECEIVED: Counter "enclave_telemetry_spans_received_total" "" []
        "the telemetry plugin; part of those produced";
    /// Spans that wait, those being sent included.
    SPANS_QUEUED: Gauge "enclave_telemetry_spans_queued" "" [] "the telemetry plugin";
    /// Bytes that wait, compressed.
    QUEUE_BYTES: Gauge "enclave_telemetry_queue_bytes" "" ["signal"]
        "the telemetry plugin; `signal` is `metrics`, `logs` or `traces`";
    /// Batches that wait.
    QUEUE_BATCHES: Gauge "enclave_telemetry_queue_batches" "" ["signal"] "the telemetry plugin";
    /// Time since the collector last took something.
    LAST_SUCCESS_AGE: Gauge "enclave_telemetry_last_success_age_seconds" "" ["signal"]
        "the telemetry plugin. Absent before the first success";
    /// 1 while the target's last scrape succeeded.
    UP: Gauge "up" "" ["plugin", "scrape_job", "scrape_target"] "each scraped target";
    /// Duration of the scrape.
    SCRAPE_DURATION: Gauge "scrape_duration_seconds" "" ["plugin", "scrape_job", "scrape_target"]
        "each scraped target";
    /// Samples on the target's page.
    SCRAPE_SAMPLES: Gauge "scrape_samples_scraped" "" ["plugin", "scrape_job", "scrape_target"]
        "each scraped target";
    /// Samples left after relabelling.
    SCRAPE_RELABELLED: Gauge "scrape_samples_post_metric_relabeling" ""
        ["plugin", "scrape_job", "scrape_target"] "each scraped target";
    /// Series that the scrape before did not have.
    SCRAPE_ADDED: Gauge "scrape_series_added" "" ["plugin", "scrape_job", "scrape_target"]
        "each scraped target";
}

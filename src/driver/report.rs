//! Between the engine's words and the contract's: specs in, events and status out. Pure but for the board.

use std::{collections::BTreeMap, time::Duration};

use enclave_protocol::{
    control::{self, ManifestAccepted, PluginStatus, ProbeStatus, Status},
    manifest::{self, Manifest, PluginKind},
};

use crate::{
    clock::Clock,
    control::board::Board,
    engine::{
        Change, DeploymentPhase, ExitReason, LastExit, Outcome, PluginId, PluginSnapshot, ProbeSnapshot,
        ProbeSpec, Probes, RestartCurve, RestartPolicy, Role, RunEnd, Snapshot, Spec,
    },
};

/// What the engine must know of the manifest's plugins, in the same order.
pub(super) fn specs(manifest: &Manifest) -> Vec<Spec> {
    let ids: BTreeMap<&str, PluginId> = manifest
        .plugins
        .iter()
        .enumerate()
        .map(|(id, plugin)| (plugin.name.as_str(), PluginId(id)))
        .collect();
    let spec = |plugin: &manifest::Plugin| Spec {
        name: plugin.name.clone(),
        role: match plugin.kind {
            PluginKind::Telemetry => Role::Telemetry,
            PluginKind::Service => Role::Service,
            PluginKind::User => Role::User,
        },
        restart: match plugin.restart.policy {
            manifest::RestartPolicy::Always => RestartPolicy::Always,
            manifest::RestartPolicy::OnFailure => RestartPolicy::OnFailure,
            manifest::RestartPolicy::Never => RestartPolicy::Never,
        },
        curve: RestartCurve {
            initial_delay: plugin.restart.delay_initial,
            factor_milli: plugin.restart.factor_thousandths,
            max_delay: plugin.restart.delay_max,
            reset_after: plugin.restart.reset_after,
            max_restarts: plugin.restart.restarts_max,
            jitter_milli: plugin.restart.jitter_thousandths,
        },
        grace: plugin.grace,
        depends_on: plugin.depends_on.iter().filter_map(|name| ids.get(name.as_str()).copied()).collect(),
        probes: Probes {
            startup: plugin.probes.startup.as_ref().map(probe),
            liveness: plugin.probes.liveness.as_ref().map(probe),
            readiness: plugin.probes.readiness.as_ref().map(probe),
        },
        notify: plugin.notify_ready,
        pre_stop: plugin.pre_stop.is_some(),
    };
    manifest.plugins.iter().map(spec).collect()
}

fn probe(probe: &manifest::Probe) -> ProbeSpec {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    ProbeSpec {
        initial_delay: seconds(probe.initial_delay_seconds),
        period: seconds(probe.period_seconds),
        timeout: seconds(probe.timeout_seconds),
        failure_threshold: probe.failure_threshold,
        success_threshold: probe.success_threshold,
        grace: probe.termination_grace_seconds.map(seconds),
    }
}

/// The event of a plugin that has come near to its memory limit.
pub(super) const NEAR_LIMIT: &str = "MemoryNearLimit";

/// Its message.
pub(super) fn near_limit(filled: u64, limit: u64) -> String {
    format!("uses {} % of its memory limit of {} MiB", filled / 10, limit >> 20)
}

/// Tells the board and the log of a change. `more` says more of a spawn or a probe that failed than the
/// engine knows.
pub(super) fn publish(change: &Change, name: Option<&str>, more: Option<&str>, board: &Board, clock: Clock) {
    let message = match (change, more) {
        (Change::SpawnFailed { .. }, Some(failure)) => format!("could not be started: {failure}"),
        (Change::ProbeFailed { .. }, Some(answer)) => format!("{change}: {answer}"),
        (change, _) => change.to_string(),
    };
    let reason = change.reason();
    if change.is_failure() {
        tracing::warn!(plugin = name, reason, "{message}");
    } else {
        tracing::info!(plugin = name, reason, "{message}");
    }
    board.events.push(clock.wall(), name, reason, message);
}

/// What the driver knows of a plugin beyond the engine.
#[derive(Debug)]
pub(super) struct Detail {
    /// Its name.
    pub(super) name: String,
    /// Why it could last not be started.
    pub(super) failure: Option<String>,
    /// Runs in which the out-of-memory killer struck.
    pub(super) oom_kills: u64,
    /// What the last failures of its probes were.
    pub(super) messages: Vec<(control::ProbeKind, String)>,
}

/// The contract's status.
pub(super) fn status(
    snapshot: &Snapshot,
    details: Vec<Detail>,
    accepted: &ManifestAccepted,
    deployment: &str,
    board: &Board,
    clock: Clock,
) -> Status {
    let plugin = |(plugin, detail): (&PluginSnapshot, Detail)| PluginStatus {
        name: detail.name,
        phase: plugin.phase,
        reason: plugin.reason.map(|reason| reason.as_str().to_owned()),
        ready: plugin.ready,
        restarts: plugin.restarts,
        pid: plugin.pid,
        last_exit: plugin.last_exit.map(|exit| last_exit(&exit, detail.failure.as_deref(), clock)),
        next_restart: plugin.next_restart.map(|moment| clock.wall_at(moment)),
        since: clock.wall_at(plugin.since),
        message: message(plugin),
        oom_kills: detail.oom_kills,
        probes: plugin.probes.iter().map(|probe| probe_status(*probe, &detail.messages)).collect(),
    };
    Status {
        boot_id: accepted.boot_id.clone(),
        digest: Some(accepted.digest.clone()),
        deployment: Some(deployment.to_owned()),
        phase: match snapshot.phase {
            DeploymentPhase::Idle | DeploymentPhase::Running => control::Phase::Running,
            DeploymentPhase::Stopping { .. } => control::Phase::Stopping,
            DeploymentPhase::Ended(Outcome::Completed | Outcome::Drained) => control::Phase::Completed,
            DeploymentPhase::Ended(Outcome::Failed) => control::Phase::Failed,
        },
        ready: snapshot.ready,
        conditions: accepted.conditions.clone(),
        seq: board.events.last_seq(),
        log_seq: board.logs.host.last_seq(),
        measurements: board.status.borrow().measurements.clone(),
        plugins: snapshot.plugins.iter().zip(details).map(plugin).collect(),
        telemetry: None,
    }
}

/// More about the reason than its word says, where the engine knows it.
fn message(plugin: &PluginSnapshot) -> Option<String> {
    let failed = plugin.reason.and(plugin.last_exit)?.failed_probe?;
    Some(format!("the last run was ended by its {} probe", control::ProbeKind::from(failed).word()))
}

fn probe_status(probe: ProbeSnapshot, messages: &[(control::ProbeKind, String)]) -> ProbeStatus {
    let ProbeSnapshot { kind, passing, failures } = probe;
    let message = messages.iter().find(|(known, _)| *known == kind).map(|(_, message)| message.clone());
    ProbeStatus { kind, passing, failures, message }
}

fn last_exit(exit: &LastExit, failure: Option<&str>, clock: Clock) -> control::LastExit {
    let (code, signal, oom, error) = match exit.end {
        RunEnd::Exited(ExitReason::Code(code)) => (Some(code), None, false, None),
        RunEnd::Exited(ExitReason::Signal(signal)) => (None, Some(signal), false, None),
        RunEnd::Exited(ExitReason::OutOfMemory) => (None, Some(libc::SIGKILL), true, None),
        RunEnd::SpawnFailed(error) => {
            (None, None, false, Some(failure.map_or_else(|| error.to_string(), str::to_owned)))
        }
    };
    control::LastExit { code, signal, oom, error, time: clock.wall_at(exit.at) }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::engine::{Moment, PluginPhase, ProbeKind, Reason};

    fn manifest(plugin: &str) -> Manifest {
        let text = format!(
            "{{apiVersion: k8s.oblv.com/v1alpha1, kind: NitroEnclaveDeployment, metadata: {{name: test}}, \
             spec: {{userPlugins: [{{name: app, image: x, {plugin}}}]}}}}"
        );
        manifest::parse(&text, &manifest::Context::default()).unwrap()
    }

    #[test]
    fn the_engine_is_told_of_probes_notices_and_hooks() {
        let asking = "startupProbe: {tcpSocket: {port: 1}, failureThreshold: 30}, livenessProbe: {tcpSocket: \
                      {port: 1}, initialDelaySeconds: 2, periodSeconds: 3, timeoutSeconds: 4, \
                      terminationGracePeriodSeconds: 5}, readinessProbe: {exec: {command: [x]}, \
                      successThreshold: 6}, notifyReady: true, lifecycle: {preStop: {exec: {command: [x]}}}";
        let specs = specs(&manifest(asking));
        let spec = &specs[0];
        assert!(spec.notify && spec.pre_stop);
        expect![[r"
            Probes {
                startup: Some(
                    ProbeSpec {
                        initial_delay: 0ns,
                        period: 10s,
                        timeout: 1s,
                        failure_threshold: 30,
                        success_threshold: 1,
                        grace: None,
                    },
                ),
                liveness: Some(
                    ProbeSpec {
                        initial_delay: 2s,
                        period: 3s,
                        timeout: 4s,
                        failure_threshold: 3,
                        success_threshold: 1,
                        grace: Some(
                            5s,
                        ),
                    },
                ),
                readiness: Some(
                    ProbeSpec {
                        initial_delay: 0ns,
                        period: 10s,
                        timeout: 1s,
                        failure_threshold: 3,
                        success_threshold: 6,
                        grace: None,
                    },
                ),
            }
        "]]
        .assert_debug_eq(&spec.probes);
    }

    #[test]
    fn a_plugin_without_any_has_none() {
        let specs = specs(&manifest("args: [x]"));
        let spec = &specs[0];
        assert!(!spec.notify && !spec.pre_stop && spec.probes == Probes::default());
    }

    #[test]
    fn a_plugin_that_is_down_by_a_probe_says_by_which_and_one_that_is_well_says_nothing() {
        let exit = LastExit {
            end: RunEnd::Exited(ExitReason::Signal(15)),
            at: Moment::default(),
            ran_for: Duration::ZERO,
            failed_probe: Some(ProbeKind::Liveness),
        };
        let mut plugin = PluginSnapshot {
            phase: PluginPhase::BackingOff,
            reason: Some(Reason::CrashLoopBackOff),
            ready: false,
            restarts: 3,
            pid: None,
            last_exit: Some(exit),
            next_restart: None,
            since: Moment::default(),
            probes: Vec::new(),
        };
        assert_eq!(message(&plugin).unwrap(), "the last run was ended by its liveness probe");
        plugin.reason = None;
        assert_eq!(message(&plugin), None);
    }
}

//! The CPU time of one sample of an enclave with many plugins, each in a control group of its own with a
//! process: `sample_cost [PLUGINS] [SAMPLES]`, as root. Prints one line of JSON. It measures reading and
//! making the families, as the supervisor does them at every sample; `cargo xtask bench` runs it.

use std::{collections::BTreeMap, io::Write as _, time::Duration};

use enclave_protocol::{
    control::{PluginPhase, PluginStatus},
    timestamp::Timestamp,
};
use enclave_supervisor::{
    engine::Moment,
    sample::{
        families,
        plugin::{DETAIL_EVERY, Detail, Names, Numbers},
        process,
        system::{System, Window},
    },
    sys::cgroup::{Cgroup, Cgroups, Limits},
};
use nix::{
    sys::resource::{UsageWho, getrusage},
    time::{ClockId, clock_gettime},
};

/// A plugin under measurement.
struct Subject {
    group: Cgroup,
    names: Names,
    status: PluginStatus,
    detail: Detail,
    child: std::process::Child,
}

fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

#[expect(clippy::disallowed_types, reason = "an example starts processes as it likes")]
fn subject(groups: &Cgroups, index: usize) -> std::io::Result<Subject> {
    let name = format!("plugin-{index}");
    let limits = Limits { cpu_millis: Some(1000), memory_bytes: Some(64 << 20), pids: Some(64) };
    let group = groups.plugin(&name, &limits)?;
    let child = std::process::Command::new("sleep").arg("1000").spawn()?;
    group.adopt(child.id())?;
    let status = PluginStatus {
        name: name.clone(),
        phase: PluginPhase::Running,
        reason: None,
        ready: true,
        restarts: 0,
        pid: Some(child.id()),
        last_exit: None,
        next_restart: None,
        since: Timestamp(0),
        message: None,
        oom_kills: 0,
        probes: Vec::new(),
    };
    Ok(Subject { group, names: Names::of(&name), status, detail: Detail::default(), child })
}

/// One sample; how many points it has.
fn sample(
    system: &mut System,
    window: &mut Window,
    subjects: &mut [Subject],
    number: u64,
) -> std::io::Result<usize> {
    let now = Moment(Duration::from_secs(number));
    let reading = system.read()?;
    let (first, usage) = window.take(now, reading.cpu);
    let mut all = families::system(&reading, first, usage);
    for (index, subject) in subjects.iter_mut().enumerate() {
        if (number.wrapping_add(index as u64)).is_multiple_of(DETAIL_EVERY) {
            let pids = subject.group.processes(1000).unwrap_or_default();
            let open_files = Some(process::open_files(&pids));
            subject.detail = Detail { processes: Some(pids.len() as u64), open_files, space: None };
        }
    }
    let plugins: Vec<_> = subjects
        .iter()
        .map(|subject| {
            let reading = subject.group.reading();
            let numbers = Numbers {
                reading,
                limits: *subject.group.limits(),
                cpu_usage: Some(0.5),
                threads: reading.pids,
                uptime: Some(Duration::from_secs(1)),
                oom_kills: 0,
                detail: subject.detail,
            };
            families::Plugin { status: &subject.status, names: &subject.names, numbers }
        })
        .collect();
    all.extend(families::plugins(&plugins, &BTreeMap::new()));
    all.extend(families::pod(&plugins, reading.root, now.0));
    Ok(all.iter().map(|family| family.points.len()).sum())
}

fn main() -> std::io::Result<()> {
    let mut words = std::env::args().skip(1).map(|word| word.parse::<usize>());
    let mut next = |default| words.next().and_then(Result::ok).unwrap_or(default);
    let (count, samples) = (next(100), next(200));
    let name = format!("enclave-sample-cost-{}", std::process::id());
    let groups = Cgroups::make(&name, 0, false)?
        .ok_or_else(|| std::io::Error::other("this machine has no control groups mounted"))?;
    let mut subjects =
        (0..count).map(|index| subject(&groups, index)).collect::<std::io::Result<Vec<_>>>()?;
    let (mut system, mut window) = (System::open()?, Window::default());
    let mut times = Vec::with_capacity(samples);
    let mut points = 0;
    for number in 0..samples {
        let begun = cpu();
        points = sample(&mut system, &mut window, &mut subjects, number as u64)?;
        times.push(cpu().saturating_sub(begun));
    }
    times.sort();
    let millis = |at: usize| times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    let peak = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss());
    writeln!(
        std::io::stdout(),
        "{{\"plugins\":{count},\"samples\":{samples},\"points\":{points},\
         \"cpuMillisMedian\":{:.3},\"cpuMillisMin\":{:.3},\"cpuMillisP90\":{:.3},\"maxRssKib\":{peak}}}",
        millis(samples / 2),
        millis(0),
        millis(samples * 9 / 10),
    )?;
    for subject in &mut subjects {
        subject.child.kill().ok();
        subject.child.wait().ok();
    }
    Ok(())
}

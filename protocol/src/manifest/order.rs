//! The order in which plugins start: telemetry, services by name, user plugins as written; within the last
//! two groups a plugin comes after those it depends on.

use super::nearest::nearest;
use super::plugin::{Checked, Plugin, PluginKind};
use super::scalar::quoted;

/// Sorts the plugins, or reports why there is no order.
pub(super) fn sort(mut checked: Vec<Checked<'_>>) -> Vec<Plugin> {
    checked.sort_by(|a, b| {
        let by_kind = a.plugin.kind.cmp(&b.plugin.kind);
        let by_name = a.plugin.name.cmp(&b.plugin.name);
        // The sort is stable, so that user plugins stay as written.
        by_kind.then(if a.plugin.kind == PluginKind::Service { by_name } else { std::cmp::Ordering::Equal })
    });
    for one in &checked {
        report_unmeetable(one, &checked);
    }
    let mut left: Vec<&Checked<'_>> = checked.iter().collect();
    let mut sorted: Vec<Plugin> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        // A dependency that is not there at all was reported, and holds nothing up here.
        let waits =
            |one: &Checked<'_>| left.iter().any(|other| one.plugin.depends_on.contains(&other.plugin.name));
        let Some(next) = left.iter().position(|one| !waits(one)) else {
            report_cycle(&left);
            break;
        };
        sorted.push(left.remove(next).plugin.clone());
    }
    sorted
}

fn report_unmeetable(one: &Checked<'_>, all: &[Checked<'_>]) {
    for (name, cursor) in one.plugin.depends_on.iter().zip(&one.dependencies) {
        match all.iter().find(|other| other.plugin.name == *name) {
            None => {
                let hint = nearest(name, all.iter().map(|other| other.plugin.name.as_str()));
                let hint = hint.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                cursor.error(format!("there is no plugin {}{hint}", quoted(name)));
            }
            Some(other) if other.plugin.kind > one.plugin.kind => {
                cursor.error(format!("{name} starts later by its kind: {}", order_of_kinds()));
            }
            Some(_) => {}
        }
    }
}

fn order_of_kinds() -> &'static str {
    "telemetry, then spec.plugins, then spec.userPlugins"
}

/// Among plugins that all wait for one of their own, names one cycle, at its first plugin.
fn report_cycle(left: &[&Checked<'_>]) {
    let index = |name: &String| left.iter().position(|other| other.plugin.name == *name);
    let next =
        |at: usize| left[at].plugin.depends_on.iter().enumerate().find_map(|(i, n)| Some((i, index(n)?)));
    let mut visited: Vec<usize> = Vec::new();
    let mut at = 0;
    while !visited.contains(&at) {
        visited.push(at);
        match next(at) {
            Some((_, to)) => at = to,
            None => return,
        }
    }
    let from = visited.iter().position(|v| *v == at).unwrap_or_default();
    let cycle = &visited[from..];
    let first = cycle.iter().copied().min().unwrap_or(at);
    let turn = cycle.iter().position(|v| *v == first).unwrap_or_default();
    let mut names: Vec<&str> = Vec::with_capacity(cycle.len() + 1);
    names.extend(cycle[turn..].iter().chain(&cycle[..turn]).map(|v| left[*v].plugin.name.as_str()));
    names.push(&left[first].plugin.name);
    let Some((item, _)) = next(first) else { return };
    let message = if cycle.len() == 1 {
        format!("{} depends on itself", left[first].plugin.name)
    } else {
        format!("a dependency cycle: {}", names.join(" → "))
    };
    left[first].dependencies[item].error(message);
}

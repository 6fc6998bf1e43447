//! When a plugin that ended is started again.

use std::time::Duration;

use super::cursor::{Cursor, Mapping};
use super::period::{self, PERIOD_MS_MAX};
use super::scalar::{Kind, quoted};

/// Whether an end is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    /// Never final.
    #[default]
    Always,
    /// Final when it succeeded.
    OnFailure,
    /// Always final.
    Never,
}

impl RestartPolicy {
    /// The word in the manifest.
    pub fn word(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::OnFailure => "OnFailure",
            Self::Never => "Never",
        }
    }
}

/// Policy and waiting times. Restart 1 is immediate; restart n ≥ 2 waits
/// `min(delay_max, delay_initial · factor^(n−2))`, spread by the jitter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restart {
    /// Whether an end is final.
    pub policy: RestartPolicy,
    /// Wait before the second restart.
    pub delay_initial: Duration,
    /// Growth from one wait to the next, in thousandths.
    pub factor_thousandths: u32,
    /// Longest wait before the jitter.
    pub delay_max: Duration,
    /// A run this long starts the count over.
    pub reset_after: Duration,
    /// How many restarts there may be; unlimited without a number.
    pub restarts_max: Option<u32>,
    /// Largest deviation of a wait, in thousandths of it.
    pub jitter_thousandths: u32,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::Always,
            delay_initial: Duration::from_secs(1),
            factor_thousandths: 2000,
            delay_max: Duration::from_mins(1),
            reset_after: Duration::from_mins(10),
            restarts_max: None,
            jitter_thousandths: 100,
        }
    }
}

/// Reads `restartPolicy` and `restart` of a plugin.
pub(super) fn check(plugin: &mut Mapping<'_>) -> Restart {
    let mut restart = Restart::default();
    let policies = [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never];
    if let Some(policy) = plugin.field("restartPolicy").and_then(|c| c.word(&policies.map(|p| (p.word(), p))))
    {
        restart.policy = policy;
    }
    let Some(curve) = plugin.field("restart") else { return restart };
    let Some(mut fields) = curve.mapping() else { return restart };
    // A shorter wait would only burn the CPU that the plugin needs to start.
    if let Some(delay) = fields.field("initialDelay").and_then(|c| period::check(&c, 10..=PERIOD_MS_MAX)) {
        restart.delay_initial = delay;
    }
    if let Some(factor) = fields.field("factor").and_then(|c| thousandths(&c, 1000, 100_000)) {
        restart.factor_thousandths = factor;
    }
    let delay_max = fields.field("maxDelay");
    if let Some(delay) = delay_max.as_ref().and_then(|c| period::check(c, 10..=PERIOD_MS_MAX)) {
        restart.delay_max = delay;
    }
    if let Some(reset) = fields.field("resetAfter").and_then(|c| period::check(&c, 1000..=PERIOD_MS_MAX)) {
        restart.reset_after = reset;
    }
    if let Some(limit) = fields.field("maxRestarts") {
        restart.restarts_max = restarts_max(&limit);
    }
    if let Some(jitter) = fields.field("jitter").and_then(|c| thousandths(&c, 0, 1000)) {
        restart.jitter_thousandths = jitter;
    }
    fields.finish();
    if restart.delay_max < restart.delay_initial {
        delay_max.as_ref().unwrap_or(&curve).error("maxDelay is shorter than initialDelay");
    }
    restart
}

fn restarts_max(cursor: &Cursor<'_>) -> Option<u32> {
    let scalar = cursor.scalar("a whole number or unlimited")?;
    if scalar.kind() == Kind::Text && scalar.text == "unlimited" {
        None
    } else {
        cursor.integer(0..=u32::MAX)
    }
}

/// A number with up to three decimals, in thousandths; no float enters the model, so that its digest is
/// exact.
fn thousandths(cursor: &Cursor<'_>, low: u32, high: u32) -> Option<u32> {
    let scalar = cursor.scalar("a number")?;
    if !matches!(scalar.kind(), Kind::Integer | Kind::Float) {
        cursor.error(format!("expected a number, found {}", scalar.found()));
        return None;
    }
    let parsed = parse_thousandths(&scalar.text);
    if parsed.is_none() {
        let message = format!("{} is no decimal number with at most three decimals", quoted(&scalar.text));
        cursor.error(message);
    }
    let shown = |n: u32| {
        let text = format!("{}.{:03}", n / 1000, n % 1000);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let value = parsed?;
    if !(low..=high).contains(&value) {
        cursor.error(format!("{} is out of range: {} to {}", shown(value), shown(low), shown(high)));
        return None;
    }
    Some(value)
}

fn parse_thousandths(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return None;
    }
    let whole: u32 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: u32 = format!("{fraction:0<3}").parse().ok()?;
    whole.checked_mul(1000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_is_read_in_thousandths_without_a_float() {
        for (text, expected) in [
            ("2", Some(2000)),
            ("1.5", Some(1500)),
            ("0.1", Some(100)),
            (".25", Some(250)),
            ("1.", Some(1000)),
            ("0.001", Some(1)),
            ("0.0001", None),
            ("1e3", None),
            ("-1", None),
            (".inf", None),
            ("4294967296", None),
            ("4294968", None),
        ] {
            assert_eq!(parse_thousandths(text), expected, "{text}");
        }
    }
}

//! Questions to plugins that PID 1 waits for an answer to. Each is answered exactly once: by `net`, by the
//! end of `net`, or by our own clock, since a `net` that hangs or is in a plugin's hands need not answer.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::net::probe::{Outcome, PROBES_MAX};

/// How much later than its time limit an answer may come: `net` is a process with other work to do.
const GRACE: Duration = Duration::from_secs(1);

/// What was asked and what was answered.
#[derive(Debug, Default)]
pub(super) struct Probes {
    state: Mutex<State>,
    /// There is something new in [`State::answered`].
    answered: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// When each is given up; at most [`PROBES_MAX`].
    asked: BTreeMap<u64, Instant>,
    /// Not more than were asked: whoever asks takes the answers.
    answered: VecDeque<(u64, Outcome)>,
}

impl Probes {
    /// Whether one more may be asked.
    pub(super) fn has_room(&self) -> bool {
        self.lock().asked.len() < PROBES_MAX
    }

    /// `net` is asked.
    pub(super) fn asked(&self, id: u64, limit: Duration) {
        self.lock().asked.insert(id, Instant::now() + limit + GRACE);
    }

    /// `net` says so. What was not asked, or is answered already, is left out.
    pub(super) fn answer(&self, id: u64, outcome: Outcome) {
        let mut state = self.lock();
        if state.asked.remove(&id).is_some() {
            self.push(&mut state, id, outcome.tamed());
        }
    }

    /// It cannot be asked.
    pub(super) fn not_asked(&self, id: u64, why: &str) {
        self.push(&mut self.lock(), id, Outcome::unknown(why));
    }

    /// There is nobody any more who would answer.
    pub(super) fn net_ended(&self) {
        let mut state = self.lock();
        for id in std::mem::take(&mut state.asked).into_keys() {
            self.push(&mut state, id, Outcome::unknown("the net process ended"));
        }
    }

    /// The next answer. Cancelling it loses none.
    pub(super) async fn next(&self) -> (u64, Outcome) {
        loop {
            let due = {
                let mut state = self.lock();
                if let Some(answer) = state.answered.pop_front() {
                    return answer;
                }
                let first = state.asked.iter().min_by_key(|(_, due)| **due).map(|(id, due)| (*id, *due));
                match first {
                    Some((id, due)) if due <= Instant::now() => {
                        state.asked.remove(&id);
                        return (id, Outcome::unknown("the net process did not answer in time"));
                    }
                    first => first.map(|(_, due)| due),
                }
            };
            let answered = self.answered.notified();
            match due {
                Some(due) => tokio::select! {
                    () = answered => {}
                    () = sleep_until(due) => {}
                },
                None => answered.await,
            }
        }
    }

    fn push(&self, state: &mut State, id: u64, outcome: Outcome) {
        state.answered.push_back((id, outcome));
        self.answered.notify_one();
    }

    /// A panic elsewhere leaves what was asked and answered as it was.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);

    fn failure(message: &str) -> Outcome {
        Outcome::Failure { message: message.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_once_and_one_to_no_question_not_at_all() {
        let probes = Probes::default();
        probes.answer(1, Outcome::Success);
        probes.asked(2, LIMIT);
        probes.answer(2, failure("no"));
        probes.answer(2, Outcome::Success);
        probes.not_asked(3, "full");
        assert_eq!(probes.next().await, (2, failure("no")));
        assert_eq!(probes.next().await, (3, Outcome::unknown("full")));
        assert!(tokio::time::timeout(LIMIT * 2, probes.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_net_that_does_not_answer_is_not_waited_for_and_its_late_answer_is_left_out() {
        let probes = Probes::default();
        let start = Instant::now();
        probes.asked(2, LIMIT);
        probes.asked(1, LIMIT * 2);
        for (id, limit) in [(2, LIMIT), (1, LIMIT * 2)] {
            let (answered, outcome) = probes.next().await;
            assert_eq!((answered, start.elapsed()), (id, limit + GRACE));
            assert_eq!(outcome, Outcome::unknown("the net process did not answer in time"));
            probes.answer(id, Outcome::Success);
        }
        assert!(tokio::time::timeout(LIMIT, probes.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_net_answers_everything_that_is_open() {
        let probes = Probes::default();
        for id in 0..PROBES_MAX as u64 {
            assert!(probes.has_room());
            probes.asked(id, LIMIT);
        }
        assert!(!probes.has_room());
        probes.answer(0, Outcome::Success);
        probes.net_ended();
        assert_eq!(probes.next().await, (0, Outcome::Success));
        for id in 1..PROBES_MAX as u64 {
            assert_eq!(probes.next().await, (id, Outcome::unknown("the net process ended")));
        }
        assert!(probes.has_room());
    }

    #[tokio::test(start_paused = true)]
    async fn what_net_says_is_one_bounded_line() {
        let probes = Probes::default();
        probes.asked(1, LIMIT);
        probes.answer(1, failure(&format!("a\nb\u{1b}[31m\0{}", "ö".repeat(10_000))));
        let (_, outcome) = probes.next().await;
        let Outcome::Failure { message } = outcome else { panic!("{outcome:?}") };
        assert!(message.starts_with("a b [31m ö"), "{message}");
        assert!(message.len() <= 256 && !message.contains(char::is_control), "{message}");
    }
}

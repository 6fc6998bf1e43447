//! Tests of the queue and its account.

use proptest::prelude::*;
use tokio::time::{advance, timeout};

use super::*;
use crate::{ledger::Account, records::Window};

const SECOND: Duration = Duration::from_secs(1);

/// A batch of one item whose body says which it is.
fn batch(byte: u8, len: usize) -> Batch {
    Batch { body: vec![byte; len].into(), items: 1, stream: Some(SUPERVISOR), receipt: None }
}

fn app(byte: u8) -> Batch {
    Batch { stream: None, ..batch(byte, 10) }
}

fn outbox() -> Outbox {
    Outbox::new(Signal::Metrics, Arc::new(Ledger::new()))
}

impl Outbox {
    fn account(&self) -> Account {
        self.ledger.account(self.signal)
    }
}

/// Which batch is next, if one is due.
async fn next(outbox: &Outbox) -> Option<(u8, Parcel<'_>)> {
    let parcel = timeout(Duration::from_nanos(1), outbox.next()).await.ok()??;
    Some((parcel.body()[0], parcel))
}

/// Sends all that is due, and says what it was.
async fn drain(outbox: &Outbox) -> Vec<u8> {
    let mut sent = Vec::new();
    while let Some((byte, parcel)) = next(outbox).await {
        parcel.sent(0);
        sent.push(byte);
    }
    sent
}

#[tokio::test(start_paused = true)]
async fn the_oldest_of_our_own_batches_makes_room_and_is_counted() {
    let outbox = outbox();
    for n in 0..OWN_BATCHES_MAX + 3 {
        outbox.push(batch(n.to_le_bytes()[0], 10));
    }
    let account = outbox.account();
    assert_eq!((account.queued_batches, account.queued_bytes), (1024, 10_240));
    assert_eq!(account.dropped(Dropped::QueueFull), 3);
    assert_eq!(next(&outbox).await.unwrap().0, 3);
}

#[tokio::test(start_paused = true)]
async fn bytes_are_bounded_as_well_as_batches() {
    let outbox = outbox();
    for n in 0..10 {
        outbox.push(batch(n, OWN_BYTES_MAX / 3));
    }
    assert_eq!(outbox.account().queued_bytes, (OWN_BYTES_MAX / 3 * 3) as u64);
    assert_eq!(outbox.account().dropped(Dropped::QueueFull), 7);
    outbox.push(batch(99, OWN_BYTES_MAX + 1));
    assert_eq!(outbox.account().dropped(Dropped::QueueFull), 8, "one that can never fit costs no other");
    assert_eq!(drain(&outbox).await, [7, 8, 9]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_nobody_would_look_back_for_is_dropped_and_counted() {
    let outbox = outbox();
    outbox.push(batch(1, 10));
    outbox.offer(app(2)).unwrap();
    advance(AGE_MAX / 2).await;
    outbox.push(batch(3, 10));
    advance(AGE_MAX / 2 + SECOND).await;
    assert_eq!(drain(&outbox).await, [3]);
    assert_eq!(outbox.account().dropped(Dropped::TooOld), 2);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_its_origin_waits_for_is_kept_until_the_collector_takes_or_refuses_it() {
    let (outbox, window) = (outbox(), Arc::new(Window::default()));
    let settled = || window.subscribe().borrow().settled;
    outbox.push(batch(1, 10).with_receipt(window.enter(5)));
    advance(2 * AGE_MAX).await;
    for _ in 0..3 {
        next(&outbox).await.unwrap().1.retry(Setback::Status(Some(Duration::ZERO)));
        advance(2 * retry::PUT_OFF_MAX).await;
    }
    assert_eq!((outbox.account().dropped_total(), settled()), (0, 0));
    assert_eq!(drain(&outbox).await, [1]);
    assert_eq!(settled(), 5);
    outbox.push(batch(2, 10).with_receipt(window.enter(9)));
    next(&outbox).await.unwrap().1.refused();
    assert_eq!((outbox.account().dropped(Dropped::Refused), settled()), (1, 9));
    outbox.push(batch(3, 10).with_receipt(window.enter(12)));
    outbox.discard(Dropped::Shutdown);
    assert_eq!(settled(), 9, "what is given up at the end is the supervisor's to count");
}

#[tokio::test(start_paused = true)]
async fn apps_are_refused_and_never_push_out_our_own() {
    let outbox = outbox();
    outbox.push(batch(1, 10));
    for _ in 0..APP_BATCHES_MAX {
        outbox.offer(app(2)).unwrap();
    }
    assert_eq!(outbox.offer(app(2)), Err(Refusal::Full));
    assert_eq!(outbox.offer(batch(2, APP_BYTES_MAX + 1)), Err(Refusal::TooLarge));
    let account = outbox.account();
    assert_eq!((account.dropped_total(), account.received), (0, APP_BATCHES_MAX as u64));
    assert_eq!(drain(&outbox).await[..2], [1, 2], "our own go first");
}

#[tokio::test(start_paused = true)]
async fn without_an_exporter_own_items_are_counted_as_dropped_and_apps_are_refused() {
    let outbox = Outbox::without_exporter(Signal::Logs, Arc::new(Ledger::new()));
    outbox.push(batch(1, 10));
    assert_eq!(outbox.offer(app(2)), Err(Refusal::NoExporter));
    let account = outbox.account();
    assert_eq!((account.produced, account.dropped(Dropped::NoExporter)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_put_off_holds_up_its_own_stream_and_no_other() {
    let outbox = outbox();
    outbox.push(batch(1, 10));
    outbox.push(batch(2, 10));
    outbox.push(batch(3, 10).in_stream(7));
    outbox.offer(app(4)).unwrap();
    let (first, parcel) = next(&outbox).await.unwrap();
    parcel.retry(Setback::Status(Some(20 * SECOND)));
    assert_eq!(first, 1);
    assert_eq!(drain(&outbox).await, [4], "the line rests, the apps' line does not");
    advance(21 * SECOND).await;
    let (first, parcel) = next(&outbox).await.unwrap();
    assert_eq!(first, 3, "the one that was tried least");
    parcel.sent(0);
    let (second, parcel) = next(&outbox).await.unwrap();
    assert_eq!(second, 1);
    parcel.retry(Setback::NoAnswer);
    outbox.push(batch(5, 10).in_stream(7));
    advance(Duration::from_millis(250)).await;
    let (third, parcel) = next(&outbox).await.unwrap();
    assert!([1, 5].contains(&third), "another stream goes on, the later batch of this one waits");
    parcel.sent(0);
    advance(SECOND).await;
    assert_eq!(drain(&outbox).await.last(), Some(&2));
}

#[tokio::test(start_paused = true)]
async fn one_apps_batch_that_is_put_off_is_tried_for_five_minutes_while_the_others_arrive() {
    let outbox = outbox();
    outbox.offer(app(255)).unwrap();
    let (begun, mut attempts, mut others) = (Instant::now(), 0, 0);
    while outbox.account().dropped(Dropped::RetriesExhausted) == 0 {
        outbox.push(batch(1, 10));
        outbox.offer(app(2)).unwrap();
        while let Some((byte, parcel)) = next(&outbox).await {
            if byte == 255 {
                parcel.retry(Setback::Status(None));
                attempts += 1;
            } else {
                parcel.sent(0);
                others += 1;
            }
        }
        advance(SECOND).await;
    }
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    assert!((5.0..6.1).contains(&minutes), "{minutes}");
    assert!((8..=17).contains(&attempts), "{attempts}");
    assert!(others >= 590, "{others}");
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_collector_costs_no_batch_and_is_asked_again_within_five_seconds() {
    let outbox = outbox();
    outbox.push(batch(1, 10));
    let down_until = Instant::now() + Duration::from_mins(5);
    let mut attempts = 0;
    while Instant::now() < down_until {
        let parcel = outbox.next().await.unwrap();
        parcel.retry(Setback::Unreachable);
        attempts += 1;
    }
    // The way out is there again at some moment of a pause.
    timeout(5 * SECOND, outbox.next()).await.unwrap().unwrap().sent(0);
    assert!(attempts < 200, "{attempts}");
    assert_eq!(outbox.account().sent, 1);
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_wait_for_the_pauses_of_the_day() {
    let outbox = outbox();
    outbox.push(batch(1, 10));
    next(&outbox).await.unwrap().1.retry(Setback::Status(Some(Duration::from_hours(1))));
    assert!(next(&outbox).await.is_none());
    outbox.close();
    let begun = Instant::now();
    outbox.next().await.unwrap().sent(0);
    assert!(begun.elapsed() <= FLUSH_PAUSE);
    assert!(outbox.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_was_in_hand_while_newer_ones_filled_the_line_is_the_oldest() {
    let outbox = outbox();
    outbox.push(batch(4, 10));
    let (_, held) = next(&outbox).await.unwrap();
    (0..OWN_BATCHES_MAX).for_each(|_| outbox.push(batch(5, 10)));
    held.retry(Setback::Unreachable);
    let account = outbox.account();
    assert_eq!((account.queued_batches, account.dropped(Dropped::QueueFull)), (1024, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_pushed_into_a_closed_outbox_is_counted() {
    let outbox = outbox();
    outbox.close();
    outbox.push(batch(1, 1));
    assert_eq!(outbox.offer(app(2)), Err(Refusal::Closed));
    assert!(outbox.next().await.is_none());
    assert_eq!(outbox.account().dropped(Dropped::Shutdown), 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_dies_with_its_sender_is_counted() {
    let outbox = Arc::new(outbox());
    outbox.push(batch(1, 1));
    let held = Arc::clone(&outbox);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let _parcel = held.next().await;
        panic!("a sender that panics");
    });
    assert!(tasks.join_next().await.unwrap().is_err());
    let account = outbox.account();
    assert_eq!((account.queued, account.dropped(Dropped::Shutdown)), (0, 1));
}

/// Something that may happen to an outbox.
#[derive(Debug, Clone)]
enum Step {
    Push { items: u64, bytes: usize, stream: u64 },
    Offer { items: u64, bytes: usize },
    Take,
    Sent { rejected: u64 },
    Refused,
    Retry(u8),
    Cancel,
    Advance(u64),
    Close,
    Discard,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..50u64, 1..OWN_BYTES_MAX / 2, 0..3u64)
            .prop_map(|(items, bytes, stream)| Step::Push { items, bytes, stream }),
        3 => (0..50u64, 1..APP_BYTES_MAX).prop_map(|(items, bytes)| Step::Offer { items, bytes }),
        6 => Just(Step::Take),
        2 => (0..60u64).prop_map(|rejected| Step::Sent { rejected }),
        1 => Just(Step::Refused),
        4 => (0..4u8).prop_map(Step::Retry),
        1 => Just(Step::Cancel),
        4 => (0..400u64).prop_map(Step::Advance),
        1 => Just(Step::Close),
        1 => Just(Step::Discard),
    ];
    proptest::collection::vec(step, 1..200)
}

async fn play(steps: Vec<Step>) {
    let outbox = outbox();
    let mut hand: Option<Parcel<'_>> = None;
    let (mut produced, mut closed) = (0, false);
    for step in steps {
        match step {
            Step::Push { items, bytes, stream } => {
                let body = vec![0; bytes].into();
                outbox.push(Batch { body, items, stream: Some(stream), receipt: None });
                produced += items;
            }
            Step::Offer { items, bytes } => {
                if outbox
                    .offer(Batch { body: vec![0; bytes].into(), items, stream: None, receipt: None })
                    .is_ok()
                {
                    produced += items;
                }
            }
            Step::Take if hand.is_none() => {
                hand = timeout(Duration::from_nanos(1), outbox.next()).await.ok().flatten();
            }
            Step::Sent { rejected } => hand.take().into_iter().for_each(|parcel| parcel.sent(rejected)),
            Step::Refused => hand.take().into_iter().for_each(Parcel::refused),
            Step::Retry(how) => {
                let setback = match how {
                    0 => Setback::Unreachable,
                    1 => Setback::NoAnswer,
                    2 => Setback::Status(None),
                    _ => Setback::Status(Some(Duration::from_mins(5))),
                };
                hand.take().into_iter().for_each(|parcel| parcel.retry(setback));
            }
            Step::Cancel => drop(hand.take()),
            Step::Advance(seconds) => advance(Duration::from_secs(seconds)).await,
            Step::Close => {
                outbox.close();
                closed = true;
            }
            Step::Discard if closed => {
                outbox.discard(Dropped::Shutdown);
            }
            Step::Take | Step::Discard => {}
        }
        let account = outbox.account();
        assert_eq!(account.produced, produced);
        assert_eq!(account.produced, account.sent + account.dropped_total() + account.queued);
        let lines = outbox.lines();
        let in_hand = hand.as_ref().map_or((0, 0), |parcel| (parcel.items(), parcel.body().len()));
        let entries = || lines.own.entries.iter().chain(&lines.apps.entries);
        assert_eq!(account.queued, in_hand.0 + entries().map(|entry| entry.batch.items).sum::<u64>());
        let bytes: usize = entries().map(|entry| entry.batch.body.len()).sum();
        assert_eq!(bytes, lines.own.bytes + lines.apps.bytes);
        assert_eq!(account.queued_bytes, (in_hand.1 + bytes) as u64);
        assert!(lines.own.bytes <= OWN_BYTES_MAX && lines.apps.bytes <= 2 * APP_BYTES_MAX);
    }
    drop(hand);
    outbox.close();
    outbox.discard(Dropped::Shutdown);
    let account = outbox.account();
    assert_eq!((account.queued, account.queued_bytes, account.queued_batches), (0, 0, 0));
    assert_eq!(account.produced, account.sent + account.dropped_total());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn produced_is_sent_and_dropped_and_queued_at_every_moment(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(steps));
    }
}

//! The time that the enclave is told. The runtime's own time is paused: where everything waits, it jumps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep};

use crate::{
    enclave::{Enclave, Inside, refusal},
    scene::Scene,
};

#[expect(clippy::disallowed_methods, reason = "what is told is compared with the wall clock")]
fn wall_nanos() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

fn managed(enclave: &Enclave) {
    enclave.inside.send_modify(|inside| inside.refuse_clock = None);
}

fn times(inside: &Inside) -> Vec<Instant> {
    inside.clocks.iter().map(|(at, _)| *at).collect()
}

#[tokio::test(start_paused = true)]
async fn an_enclave_without_a_clock_is_told_the_time_at_once_and_every_minute() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    managed(&enclave);
    let (before, started) = (wall_nanos(), Instant::now());
    let running = scene.start(&[]).await;
    let inside = enclave.until(|inside| inside.clocks.len() == 3).await;
    for (_, told) in &inside.clocks {
        assert!((before..=wall_nanos()).contains(&u128::from(*told)), "{told}");
    }
    let [first, second, third] = times(&inside)[..] else { panic!("three") };
    assert!(first - started < Duration::from_secs(5));
    for gap in [second - first, third - second] {
        assert!((Duration::from_mins(1)..Duration::from_secs(61)).contains(&gap), "{gap:?}");
    }
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn an_enclave_with_a_clock_is_asked_once_per_boot() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let running = scene.start(&[]).await;
    enclave.until(|inside| inside.clocks.len() == 1).await;
    sleep(Duration::from_mins(10)).await;
    assert_eq!(enclave.inside.borrow().clocks.len(), 1);
    enclave.power_off().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-2");
    enclave.until(|inside| inside.clocks.len() == 1).await;
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn an_enclave_that_was_out_of_reach_is_told_the_time_when_it_is_back() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    managed(&enclave);
    let running = scene.start(&[]).await;
    let inside = enclave.until(|inside| inside.clocks.len() == 1).await;
    enclave.power_off().await;
    sleep(Duration::from_secs(5)).await;
    let (back, enclave) = (Instant::now(), Enclave::start(scene.dir.path(), "boot-1"));
    // The same boot goes on: the manifest is not handed over again.
    enclave.inside.send_modify(|now| {
        (now.status, now.token) = (inside.status.clone(), inside.token.clone());
        now.refuse_clock = None;
    });
    let inside = enclave.until(|inside| inside.clocks.len() == 1).await;
    assert!(times(&inside)[0] - back < Duration::from_secs(10), "not after a minute");
    assert_eq!(inside.puts, 0);
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_time_that_is_refused_disturbs_nothing_and_is_told_again_after_a_minute() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let problem = refusal(422, "ClockImplausible", vec![]);
    enclave.inside.send_modify(|inside| inside.refuse_clock = Some(problem));
    let running = scene.start(&[]).await;
    let inside = enclave.until(|inside| inside.clocks.len() == 3).await;
    let told = times(&inside);
    assert!(told[1] - told[0] >= Duration::from_mins(1), "{told:?}");
    running.until_ready_is(200).await;
    running.kill().await;
}

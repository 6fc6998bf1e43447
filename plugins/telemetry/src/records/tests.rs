//! Reader and acknowledger between a supervisor's feed and a collector.

use std::sync::Mutex;

use enclave_protocol::{control::LogStream, exporter::Settings, timestamp::Timestamp};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
    task::JoinSet,
};

use super::*;
use crate::{
    endpoint::Endpoint,
    fake::{Answer, Collector, sample},
    options::Options,
    retry::Pace,
    sender::Sender,
};

/// A supervisor that has records: by hand, since its answer goes on for as long as there may be more.
struct Feeding {
    dir: tempfile::TempDir,
    /// How many records there are, and whether no more will come.
    there: watch::Sender<(u64, bool)>,
    acknowledged: Arc<watch::Sender<u64>>,
    requests: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

fn line(seq: u64) -> String {
    let record = LogRecord {
        seq,
        time: Timestamp(seq),
        plugin: "app".to_owned(),
        stream: LogStream::Stdout,
        text: Some(format!("line {seq}")),
        base64: None,
        partial: false,
        dropped: 0,
    };
    serde_json::to_string(&record).unwrap() + "\n"
}

impl Feeding {
    fn start(status: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("supervisor.sock")).unwrap();
        let (there, acknowledged) = (watch::Sender::new((0, false)), Arc::new(watch::Sender::new(0)));
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let mut tasks = JoinSet::new();
        let (seen, acks, kept) = (there.subscribe(), Arc::clone(&acknowledged), Arc::clone(&requests));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, status, seen.clone(), Arc::clone(&acks), Arc::clone(&kept)));
            }
        });
        Self { dir, there, acknowledged, requests, _tasks: tasks }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("supervisor.sock")
    }

    fn show(&self, records: u64, last: bool) {
        self.there.send_replace((records, last));
    }

    async fn until_acknowledged(&self, seq: u64) {
        self.acknowledged.subscribe().wait_for(|acknowledged| *acknowledged == seq).await.unwrap();
    }
}

async fn serve(
    mut stream: UnixStream,
    status: &'static str,
    mut there: watch::Receiver<(u64, bool)>,
    acknowledged: Arc<watch::Sender<u64>>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    let mut text = String::new();
    loop {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.unwrap_or(0);
        if count == 0 {
            return;
        }
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let first = head.lines().next().unwrap().to_owned();
        requests.lock().unwrap().push(first.clone());
        if first.starts_with("POST /v1/ack") {
            let ack: AckRequest = serde_json::from_str(body).unwrap();
            assert_eq!(ack.boot_id, "b00t");
            acknowledged.send_replace(ack.log_seq);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            text.clear();
            continue;
        }
        let after = first.split_once("after=").unwrap().1.split('&').next().unwrap().parse().unwrap();
        let forgotten = *acknowledged.borrow();
        feed(&mut stream, status, after, forgotten, &mut there).await;
        return;
    }
}

async fn feed(
    stream: &mut UnixStream,
    status: &str,
    after: u64,
    acknowledged: u64,
    there: &mut watch::Receiver<(u64, bool)>,
) {
    let head = format!("HTTP/1.1 {status}\r\nenclave-boot-id: b00t\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut next = after.max(acknowledged) + 1;
    loop {
        let (records, last) = *there.borrow_and_update();
        while next <= records {
            let text = line(next);
            let chunk = format!("{:x}\r\n{text}\r\n", text.len());
            if stream.write_all(chunk.as_bytes()).await.is_err() {
                return;
            }
            next += 1;
        }
        if last || status != "200 OK" {
            stream.write_all(b"0\r\n\r\n").await.ok();
            return;
        }
        if there.changed().await.is_err() {
            return;
        }
    }
}

struct Rig {
    feeding: Feeding,
    collector: Collector,
    ledger: Arc<Ledger>,
    outbox: Arc<Outbox>,
    stops: [watch::Sender<bool>; 2],
    reading: JoinSet<()>,
    acknowledging: JoinSet<()>,
    sending: JoinSet<()>,
}

const QUICK: Pace =
    Pace { status: |_, _| Duration::from_millis(1), unreachable: |_, _| Duration::from_millis(1) };

async fn rig(status: &'static str) -> Rig {
    let (feeding, collector) = (Feeding::start(status), Collector::start().await);
    let ledger = Arc::new(Ledger::new());
    let outbox = Arc::new(Outbox::paced(Signal::Logs, Arc::clone(&ledger), QUICK));
    let identity = watch::channel(Identity::of(&sample(1))).1;
    let (reader, acknowledger) = halves(feeding.socket(), identity, Arc::clone(&outbox), Arc::clone(&ledger));
    let stops = [watch::Sender::new(false), watch::Sender::new(false)];
    let told = |stop: &watch::Sender<bool>| {
        let mut told = stop.subscribe();
        async move { told.wait_for(|told| *told).await.map(drop).unwrap() }
    };
    let (mut reading, mut acknowledging, mut sending) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    reading.spawn(reader.run(told(&stops[0])));
    acknowledging.spawn(acknowledger.run(told(&stops[1])));
    let options = Options { exporter_url: Some(collector.url()), ..Options::for_tests() };
    let [_, endpoint, _] = Endpoint::all(&options, &Settings::default()).unwrap();
    let endpoint = endpoint.unwrap();
    sending.spawn(Sender::new(endpoint, Arc::clone(&outbox), Arc::clone(&ledger)).run());
    Rig { feeding, collector, ledger, outbox, stops, reading, acknowledging, sending }
}

impl Rig {
    /// The numbers in the records of the next export.
    async fn next(&mut self) -> Vec<u64> {
        let received = self.collector.next().await;
        assert_eq!(received.path, "/v1/logs");
        let records = received.logs.resource_logs.into_iter().flat_map(|group| group.scope_logs);
        records.flat_map(|scope| scope.log_records).map(|record| record.time_unix_nano).collect()
    }

    async fn end(&mut self) {
        self.stops[0].send_replace(true);
        while self.reading.join_next().await.is_some() {}
        self.outbox.close();
        while self.sending.join_next().await.is_some() {}
        self.stops[1].send_replace(true);
        while self.acknowledging.join_next().await.is_some() {}
    }
}

#[tokio::test]
async fn records_arrive_in_order_and_are_acknowledged_once_the_collector_has_them() {
    let mut rig = rig("200 OK").await;
    rig.feeding.show(2 * BATCH_RECORDS_MAX as u64 + 3, false);
    let mut seen = Vec::new();
    while seen.len() < 2 * BATCH_RECORDS_MAX + 3 {
        let batch = rig.next().await;
        assert!(batch.len() <= BATCH_RECORDS_MAX);
        seen.extend(batch);
    }
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>());
    rig.feeding.until_acknowledged(seen.len() as u64).await;
    // What comes while it is told to stop is sent as well.
    rig.feeding.show(seen.len() as u64 + 5, true);
    rig.end().await;
    let last = rig.next().await;
    assert_eq!(last.last(), Some(&(seen.len() as u64 + 5)));
    assert_eq!(*rig.feeding.acknowledged.borrow(), seen.len() as u64 + 5);
    let account = rig.ledger.account(Signal::Logs);
    assert_eq!((account.produced, account.sent), (seen.len() as u64 + 5, seen.len() as u64 + 5));
}

#[tokio::test]
async fn while_the_collector_takes_nothing_few_batches_wait_and_none_is_acknowledged() {
    let mut rig = rig("200 OK").await;
    rig.collector.answer_always(Answer::status(503));
    let there = (IN_FLIGHT_MAX + 10) * BATCH_RECORDS_MAX;
    rig.feeding.show(there as u64, false);
    while rig.ledger.account(Signal::Logs).queued_batches < IN_FLIGHT_MAX as u64 {
        rig.next().await;
    }
    for _ in 0..10 {
        rig.next().await;
        assert_eq!(rig.ledger.account(Signal::Logs).queued_batches, IN_FLIGHT_MAX as u64);
    }
    assert_eq!(*rig.feeding.acknowledged.borrow(), 0);
    rig.collector.answer_always(Answer::status(200));
    rig.feeding.until_acknowledged(there as u64).await;
    let account = rig.ledger.account(Signal::Logs);
    assert_eq!((account.sent, account.dropped_total(), account.queued), (there as u64, 0, 0));
}

#[tokio::test]
async fn records_that_the_collector_refuses_are_counted_and_acknowledged() {
    let mut rig = rig("200 OK").await;
    rig.collector.answer_once(Answer::status(400));
    rig.feeding.show(3, true);
    rig.end().await;
    assert_eq!(rig.next().await, [1, 2, 3]);
    assert_eq!(rig.ledger.account(Signal::Logs).dropped(Dropped::Refused), 3);
    assert_eq!(*rig.feeding.acknowledged.borrow(), 3);
}

#[tokio::test]
async fn a_manifest_that_sends_no_records_is_asked_once() {
    let mut rig = rig("403 Forbidden").await;
    while rig.feeding.requests.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    rig.end().await;
    // The second one is the last look.
    assert_eq!(rig.feeding.requests.lock().unwrap().len(), 2);
    assert_eq!(rig.ledger.account(Signal::Logs).produced, 0);
}

//! Egress and ingress through the whole proxy.

use std::io;

use enclave_protocol::{
    control::EGRESS_PORT,
    stream::{Header, Kind, REPLY_LEN, Reply, ReplyStatus},
    transport::{Host, Stream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    enclave::Enclave,
    scene::{Scene, get},
};

async fn dial(enclave: &Enclave, name: &str, port: u16) -> (Stream, ReplyStatus) {
    let mut stream = Host::Unix(enclave.path.clone()).dial(EGRESS_PORT).await.unwrap();
    let header = Header { kind: Kind::Egress, port, trace_id: 1, name: name.into() };
    stream.write_all(&header.encode().unwrap()).await.unwrap();
    let mut reply = [0; REPLY_LEN];
    stream.read_exact(&mut reply).await.unwrap();
    (stream, Reply::decode(reply).unwrap().status)
}

#[tokio::test]
async fn the_enclave_reaches_what_the_manifest_names_and_nothing_else() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let running = scene.start(&[]).await;
    running.until_ready_is(200).await;
    assert_eq!(dial(&enclave, "up.example", 81).await.1, ReplyStatus::NotAllowed);
    assert_eq!(dial(&enclave, "localhost", 80).await.1, ReplyStatus::NotAllowed);

    let (mut stream, status) = dial(&enclave, "up.example", 80).await;
    assert_eq!(status, ReplyStatus::Connected);
    let (mut tcp, _) = scene.upstream.accept().await.unwrap();
    stream.write_all(b"request").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut request = String::new();
    tcp.read_to_string(&mut request).await.unwrap();
    assert_eq!(request, "request");
    tcp.write_all(b"response after the half-close").await.unwrap();
    drop(tcp);
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert_eq!(response, "response after the half-close");
    let (_, page) = get(running.metrics, "/metrics", "text/plain").await;
    let count = |name: &str, labels: &str| {
        let line = page.lines().find(|line| line.starts_with(name) && line.contains(labels));
        line.unwrap_or_else(|| panic!("{name} {labels}\n{page}")).rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(count("enclave_host_egress_connections_total", ""), "1");
    assert_eq!(count("enclave_host_egress_bytes_total", "to=\"world\""), "7");
    assert_eq!(count("enclave_host_egress_refused_total", "reason=\"not_allowed\""), "2");
}

#[tokio::test]
async fn a_host_port_leads_to_its_plugin_and_back() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let running = scene.start(&[]).await;
    running.until_ready_is(200).await;
    let mut tcp = TcpStream::connect(scene.host).await.unwrap();
    tcp.write_all(b"ping").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut response = String::new();
    tcp.read_to_string(&mut response).await.unwrap();
    assert_eq!(response, "app: ping");

    enclave.power_off().await;
    let mut tcp = TcpStream::connect(scene.host).await.unwrap();
    let closed = tcp.read(&mut [0]).await.unwrap_err();
    assert_eq!(closed.kind(), io::ErrorKind::ConnectionReset, "a client sees at once that nobody is there");
}

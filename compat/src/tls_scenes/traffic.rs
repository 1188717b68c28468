//! Frames do not know of records: one record holds many, and one byte of a record may come at a
//! time.

use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use futures_util::FutureExt;
use tokio::time::sleep;
use tower_ws_liveness::Liveness;

use super::client::{Client, open, open_in_segments};
use super::{Scene, Server};
use crate::rig::{patient, quiet};
use crate::site::Site;
use crate::stack::{Dialect, Stack};
use crate::support::raw::{BINARY, Frame};
use crate::support::{ms, within};

pub(super) const SCENES: &[Scene] = &[
    Scene::on_axum("pongs behind a record that nobody has read", |server| {
        unread_record(server).boxed()
    }),
    Scene::on_axum("records that come byte by byte", |server| {
        byte_by_byte(server).boxed()
    }),
    Scene::everywhere("megabytes both ways, with pings between", |server| {
        megabytes(server).boxed()
    }),
];

/// A handler that is busy with the first message for a while, and then echoes.
const BUSY: Stack = Stack {
    name: "a busy handler",
    library: "axum",
    serve: |site| serve(site).boxed(),
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[],
};

/// How busy it is.
const WHILE: Duration = Duration::from_secs(2);

/// The handler has read one of the frames in a record. The others wait inside of TLS, and all
/// pongs come after them.
async fn unread_record(server: Server) {
    let heartbeat = quiet().interval(ms(20));
    let rig = server.serving(BUSY).start(heartbeat, patient()).await;
    let mut client = open(rig.addr).await;
    let live = rig.live().await;
    let texts = (0..100).map(|number| Frame::text(&format!("{number:0>100}")));
    let texts: Vec<_> = texts.collect();
    let record: Vec<_> = texts.iter().flat_map(Frame::masked).collect();
    // One write of less than 16 KiB is one record (RFC 8446 section 5.1).
    client.send_bytes(&record).await.expect("it listens");
    let first = client.expect_frame().await;
    let pongs = live.stats().pongs_received();
    assert!(pongs >= 3, "{pongs} pongs seen while the handler was busy");
    assert_eq!(first, texts[0]);
    for text in &texts[1..] {
        assert_eq!(&client.expect_frame().await, text);
    }
}

async fn byte_by_byte(server: Server) {
    const WHOLE: usize = usize::MAX;
    // Of a record in a segment, and of a frame in a record.
    for (segment, record) in [(1, WHOLE), (WHOLE, 1), (1, 3)] {
        let heartbeat = quiet().interval(ms(5));
        let rig = server.start(heartbeat, patient()).await;
        let client = open_in_segments(rig.addr, segment).await;
        let mut client = client.in_chunks_of(record);
        let live = rig.live().await;
        for size in [0, 1, 125, 126, 300] {
            let message = Frame::new(BINARY, vec![7; size]);
            client.send(&message).await.expect("it listens");
            assert_eq!(client.expect_frame().await, message);
        }
        pinged(&mut client, &live, 5).await;
        assert_eq!(rig.pongs.count(), 0, "pongs that the handler saw");
        assert_eq!(rig.recorder.total(), 0);
    }
}

async fn megabytes(server: Server) {
    let heartbeat = quiet().interval(ms(1));
    let rig = server.start(heartbeat, patient()).await;
    let mut client = open(rig.addr).await;
    let live = rig.live().await;
    for (count, size) in [(64, 64 * 1024), (1, 4 * 1024 * 1024)] {
        let messages = (0..count).map(|number| Frame::new(BINARY, vec![number; size]));
        let messages: Vec<_> = messages.collect();
        let bytes: Vec<_> = messages.iter().flat_map(Frame::masked).collect();
        let echoed = echo(&mut client, &bytes, messages.len());
        let echoed = within("all of it", echoed).await;
        assert!(echoed == messages, "it is not what was sent");
    }
    pinged(&mut client, &live, 3).await;
    assert_eq!(live.stats().bytes_received() >> 20, 8);
    assert_eq!(rig.pongs.count(), 0, "pongs that the handler saw");
    assert_eq!(rig.recorder.total(), 0);
}

/// Sends `bytes`, and takes in what comes meanwhile, until there are `count` frames.
async fn echo(client: &mut Client, mut bytes: &[u8], count: usize) -> Vec<Frame> {
    let mut echoed = Vec::new();
    while !bytes.is_empty() {
        let sent = client.send_or_receive(bytes).await;
        bytes = &bytes[sent.expect("it listens")..];
    }
    while echoed.len() < count {
        let frame = client.next().await.expect("it listens");
        echoed.push(frame.expect("no end of the stream"));
    }
    echoed
}

/// Lives on until so many pongs were recognized.
async fn pinged(client: &mut Client, live: &Liveness, pongs: u64) {
    let answered = async {
        while live.stats().pongs_received() < pongs {
            sleep(ms(2)).await;
        }
    };
    tokio::select! {
        frame = client.next() => panic!("{frame:?} to somebody who said nothing"),
        () = within("pongs", answered) => {}
    }
}

async fn serve(site: Site) {
    let route = any(async |ws: WebSocketUpgrade| {
        // What is not read at once stays in TLS.
        ws.read_buffer_size(128).on_upgrade(busy)
    });
    site.serve_router(Router::new().route("/ws", route)).await;
}

async fn busy(mut socket: WebSocket) {
    let mut first = true;
    while let Some(Ok(message @ Message::Text(_))) = socket.recv().await {
        if std::mem::take(&mut first) {
            sleep(WHILE).await;
        }
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

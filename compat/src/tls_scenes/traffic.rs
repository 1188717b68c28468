//! Scenes: many frames in one TLS record, and records that arrive byte by byte.

use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use futures_util::FutureExt;
use tokio::time::sleep;
use tower_ws_liveness::Liveness;

use super::client::{TlsClient, open, open_in_segments};
use super::{Scene, TlsServer};
use crate::rig::{long_heartbeat, long_idle};
use crate::site::Site;
use crate::stack::{Dialect, Stack};
use crate::support::raw::{BINARY, Frame};
use crate::support::{ms, within};

pub(super) const SCENES: &[Scene] = &[
    Scene::on_axum("pongs behind a record that is not read yet", |server| {
        unread_record(server).boxed()
    }),
    Scene::on_axum("records that arrive byte by byte", |server| {
        byte_by_byte(server).boxed()
    }),
    Scene::everywhere(
        "megabytes in both directions with pings between",
        |server| megabytes(server).boxed(),
    ),
];

/// A stack whose handler sleeps after the first message, and then echoes.
const BUSY_HANDLER: Stack = Stack {
    name: "a busy handler",
    library: "axum",
    serve: |site| serve(site).boxed(),
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[],
};

/// How long the handler sleeps after the first message.
const BUSY_FOR: Duration = Duration::from_secs(2);

/// The handler has read one of the frames in a record. The others are buffered in TLS, in front of
/// all pongs.
async fn unread_record(server: TlsServer) {
    let heartbeat = long_heartbeat().interval(ms(20));
    let rig = server
        .serving(BUSY_HANDLER)
        .start(heartbeat, long_idle())
        .await;
    let mut client = open(rig.addr).await;
    let live = rig.handle().await;
    let texts = (0..100).map(|number| Frame::text(&format!("{number:0>100}")));
    let texts: Vec<_> = texts.collect();
    let record: Vec<_> = texts.iter().flat_map(Frame::masked).collect();
    // One write of less than 16 KiB is one record (RFC 8446 section 5.1).
    client
        .send_bytes(&record)
        .await
        .expect("an open connection");
    let first = client.expect_frame().await;
    let pongs = live.stats().pongs_received();
    assert!(
        pongs >= 3,
        "{pongs} pongs received while the handler was busy"
    );
    assert_eq!(first, texts[0]);
    for text in &texts[1..] {
        assert_eq!(&client.expect_frame().await, text);
    }
}

async fn byte_by_byte(server: TlsServer) {
    const WHOLE: usize = usize::MAX;
    // Maximum bytes of a record per segment, and of a frame per record.
    for (segment, record) in [(1, WHOLE), (WHOLE, 1), (1, 3)] {
        let heartbeat = long_heartbeat().interval(ms(5));
        let rig = server.start(heartbeat, long_idle()).await;
        let client = open_in_segments(rig.addr, segment).await;
        let mut client = client.in_chunks_of(record);
        let live = rig.handle().await;
        for size in [0, 1, 125, 126, 300] {
            let message = Frame::new(BINARY, vec![7; size]);
            client.send(&message).await.expect("an open connection");
            assert_eq!(client.expect_frame().await, message);
        }
        answer_pings(&mut client, &live, 5).await;
        assert_eq!(rig.pongs.count(), 0, "pongs that the handler received");
        assert_eq!(rig.recorder.total(), 0);
    }
}

async fn megabytes(server: TlsServer) {
    let heartbeat = long_heartbeat().interval(ms(1));
    let rig = server.start(heartbeat, long_idle()).await;
    let mut client = open(rig.addr).await;
    let live = rig.handle().await;
    for (count, size) in [(64, 64 * 1024), (1, 4 * 1024 * 1024)] {
        let messages = (0..count).map(|number| Frame::new(BINARY, vec![number; size]));
        let messages: Vec<_> = messages.collect();
        let bytes: Vec<_> = messages.iter().flat_map(Frame::masked).collect();
        let echoed = echo(&mut client, &bytes, messages.len());
        let echoed = within("all of it", echoed).await;
        assert!(echoed == messages, "the echo differs from what was sent");
    }
    answer_pings(&mut client, &live, 3).await;
    assert_eq!(live.stats().bytes_received() >> 20, 8);
    assert_eq!(rig.pongs.count(), 0, "pongs that the handler received");
    assert_eq!(rig.recorder.total(), 0);
}

/// Sends `bytes` while receiving, until `count` frames have arrived.
async fn echo(client: &mut TlsClient, mut bytes: &[u8], count: usize) -> Vec<Frame> {
    let mut echoed = Vec::new();
    while !bytes.is_empty() {
        let sent = client.send_or_receive(bytes).await;
        bytes = &bytes[sent.expect("an open connection")..];
    }
    while echoed.len() < count {
        let frame = client.next().await.expect("an open connection");
        echoed.push(frame.expect("no end of the stream"));
    }
    echoed
}

/// Answers pings until the layer has recognized `pongs` pongs.
async fn answer_pings(client: &mut TlsClient, live: &Liveness, pongs: u64) {
    let answered = async {
        while live.stats().pongs_received() < pongs {
            sleep(ms(2)).await;
        }
    };
    tokio::select! {
        frame = client.next() => panic!("unexpected {frame:?}"),
        () = within("pongs", answered) => {}
    }
}

async fn serve(site: Site) {
    let route = any(async |ws: WebSocketUpgrade| {
        // A small buffer leaves the remaining bytes in TLS.
        ws.read_buffer_size(128).on_upgrade(busy)
    });
    site.serve_router(Router::new().route("/ws", route)).await;
}

async fn busy(mut socket: WebSocket) {
    let mut first = true;
    while let Some(Ok(message @ Message::Text(_))) = socket.recv().await {
        if std::mem::take(&mut first) {
            sleep(BUSY_FOR).await;
        }
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

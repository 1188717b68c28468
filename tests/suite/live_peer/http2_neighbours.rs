//! WebSockets that share an HTTP/2 connection: the end of one does not affect the others.

use std::io;
use std::pin::pin;

use axum::extract::ws::{Message as Served, WebSocket};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tower_ws_liveness::{HeartbeatLayerBuilder, Liveness, Reason};

use crate::support::h2_client::H2Stream;
use crate::support::h2_link::Link;
use crate::support::raw::{Answer, BINARY, Frame, RawClient};
use crate::support::scene::{Scene, patient, quiet};
use crate::support::wire::Wire;
use crate::support::{ms, noise, until, within};

const SOCKETS: usize = 500;

/// Sends 1 MB on "send", sends without end on "push", and echoes other messages.
async fn echo_or_send(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let message = match message {
            Served::Text(text) if text == "send" => Served::binary(noise(5, 1_000_000)),
            Served::Text(text) if text == "push" => {
                let message = Served::binary(vec![0; 10_000]);
                while socket.send(message.clone()).await.is_ok() {}
                return;
            }
            Served::Text(_) | Served::Binary(_) => message,
            _ => continue,
        };
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn five_hundred_sockets_are_all_pinged_and_each_is_reported_once() {
    let heartbeat = quiet().interval(ms(1_000)).timeout(ms(1_000));
    let mut scene = Scene::start(Wire::Http2, heartbeat, patient(), echo_or_send).await;
    let link = Link::open(scene.app.clone()).await;
    let (mut pinged, mut lives) = (JoinSet::new(), Vec::new());
    for _ in 0..SOCKETS {
        let mut client = link.websocket().await;
        lives.push(scene.next_live().await);
        pinged.spawn(async move {
            client.live_until_ping(5).await;
            client
        });
    }
    let clients = within("five pings each", pinged.join_all()).await;
    until("four pongs each", || {
        lives.iter().all(|live| live.stats().pongs_received() >= 4)
    })
    .await;
    assert_eq!((scene.registry.len(), scene.recorder.total()), (SOCKETS, 0));

    // As when the client's process is killed.
    drop(link);
    scene.recorder.nth(SOCKETS).await;
    scene.handlers_done(SOCKETS).await;
    let broken_pipe = Reason::Transport(io::ErrorKind::BrokenPipe);
    for live in &lives {
        assert_eq!(
            within("evicted()", live.evicted()).await.reason(),
            broken_pipe
        );
        assert_eq!(scene.recorder.count(live.id()), 1);
        assert_eq!(scene.local.count(live.id()), 1);
    }
    assert!(scene.registry.is_empty());
    drop(clients);
    scene.recorder.stays_at(SOCKETS).await;
}

/// Ends one socket while one neighbour is in the middle of an upload and another in the middle of a
/// download. Asserts that both frames arrive whole and that no other eviction is reported.
async fn assert_one_ends(
    heartbeat: HeartbeatLayerBuilder,
    reason: Reason,
    end: impl AsyncFnOnce(&mut RawClient<H2Stream>, &Liveness),
) {
    let heartbeat = heartbeat.close_timeout(ms(300));
    let idle = patient().close_timeout(ms(300));
    let mut scene = Scene::start(Wire::Http2, heartbeat, idle, echo_or_send).await;
    let link = Link::open(scene.app.clone()).await;
    let mut uploading = link.websocket().await;
    let mut downloading = link.websocket().await;
    let mut victim = link.websocket().await.answering(Answer::Nothing);
    scene.next_live().await;
    scene.next_live().await;
    let live = scene.next_live().await;

    let upload = Frame::new(BINARY, noise(4, 1_000_000));
    let bytes = upload.masked();
    let (most, last) = bytes.split_at(bytes.len() - 1);
    downloading.send(&Frame::text("send")).await.unwrap();
    {
        let mut transfers = pin!(async {
            // Five seconds, which is longer than every timeout here.
            for piece in most.chunks(5_000) {
                uploading.send_bytes(piece).await.unwrap();
                downloading.fill(4_000).await.unwrap();
                sleep(ms(25)).await;
            }
        });
        let ended = async {
            end(&mut victim, &live).await;
            let event = scene.recorder.nth(1).await;
            assert_eq!((event.id, event.reason), (live.id(), reason));
            victim.closed().await;
        };
        tokio::select! {
            () = ended => {}
            () = &mut transfers => panic!("the transfers completed before the victim ended"),
        }
        transfers.await;
    }
    uploading.send_bytes(last).await.unwrap();
    assert!(uploading.expect_frame().await == upload, "the upload");
    let download = Frame::new(BINARY, noise(5, 1_000_000));
    assert!(downloading.expect_frame().await == download, "the download");
    for client in [&mut uploading, &mut downloading] {
        client.send(&Frame::text("still here")).await.unwrap();
        assert_eq!(client.expect_frame().await, Frame::text("still here"));
    }
    scene.handlers_done(1).await;
    assert_eq!(scene.registry.len(), 2);
    scene.recorder.stays_at(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_kicked_socket_leaves_its_neighbours_alone() {
    assert_one_ends(quiet(), Reason::Kicked { code: 4003 }, async |_, live| {
        live.evict(4003, "go");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_socket_leaves_its_neighbours_alone() {
    let heartbeat = quiet().interval(ms(500)).timeout(ms(2_000));
    let reason = Reason::HeartbeatTimeout { missed: 1 };
    assert_one_ends(heartbeat, reason, async |_, _| {}).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_socket_leaves_its_neighbours_alone() {
    assert_one_ends(quiet(), Reason::IdleTimeout, async |_, live| {
        live.set_idle_timeout(ms(1_000)).unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_socket_leaves_its_neighbours_alone() {
    let heartbeat = quiet().write_timeout(ms(1_000));
    assert_one_ends(heartbeat, Reason::WriteStalled, async |victim, live| {
        victim.send(&Frame::text("push")).await.unwrap();
        // The victim must not read before its eviction, or the write would not stall.
        live.evicted().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_reset_leaves_its_neighbours_alone() {
    assert_one_ends(quiet(), Reason::PeerVanished, async |victim, _| {
        victim.io().reset(h2::Reason::CANCEL);
    })
    .await;
}

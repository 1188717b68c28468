//! Each behaviour of a client in memory leads to the reason that its docs name.

use std::future::pending;
use std::io::ErrorKind;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use tokio_tungstenite::WebSocketStream;
use tower_ws_liveness::test_util::{self, Client, ServerMessage, ServerStream};
use tower_ws_liveness::{
    Evicted, HeartbeatLayer, HeartbeatLayerBuilder, Liveness, LivenessStream, Reason,
};
use tungstenite::Message;
use tungstenite::protocol::Role;

use crate::support::{alive_tasks, ms, noise};

const TIMEOUT: Reason = Reason::HeartbeatTimeout { missed: 1 };

/// Pings after 10 s of silence, and waits 5 s.
fn heartbeat() -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .interval(ms(10_000))
        .timeout(ms(5_000))
        .jitter(0.0)
}

fn open(layer: HeartbeatLayerBuilder) -> (LivenessStream<ServerStream>, Liveness, Client) {
    let (io, client) = test_util::pair();
    let (io, live) = layer.build().unwrap().wrap_server(io);
    (io, live, client)
}

async fn socket<S>(io: S) -> WebSocketStream<S>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    WebSocketStream::from_raw_socket(io, Role::Server, None).await
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_never_polled_answers_every_ping_without_a_task() {
    let (_io, live, client) = open(heartbeat());
    sleep(ms(3_600_500)).await;
    assert_eq!(live.reason(), None);
    let stats = live.stats();
    // One per interval, but for the ticks of the driver.
    assert!((350..=360).contains(&stats.pings_sent()), "{stats:?}");
    assert_eq!(stats.pongs_received(), stats.pings_sent());
    assert_eq!(stats.missed_pings(), 0);
    assert_eq!(client.pings_received(), stats.pings_sent());
    assert!(live.rtt().is_some());
    assert_eq!(alive_tasks(), 1, "the driver's");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_no_pings_is_dead_after_interval_and_timeout() {
    let (_io, live, mut client) = open(heartbeat());
    let opened = Instant::now();
    client.answer_pings(false);
    let ev = live.evicted().await;
    assert_eq!(ev.reason(), TIMEOUT);
    let took = opened.elapsed();
    assert!((ms(15_000)..=ms(16_000)).contains(&took), "{took:?}");
    // It reads: it has the ping, and the Close frame.
    assert_eq!(client.pings_received(), 1);
    let Some(ServerMessage::Close { code, .. }) = client.recv().await else {
        panic!("no Close frame")
    };
    assert_eq!(code, Some(3008));
    assert_eq!(client.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_turned_on_in_time_keep_the_connection() {
    let (_io, live, mut client) = open(heartbeat().missed_pings(2));
    client.answer_pings(false);
    sleep(ms(12_000)).await;
    assert_eq!(client.pings_received(), 1);
    client.answer_pings(true);
    sleep(ms(60_000)).await;
    assert_eq!(live.reason(), None);
    assert_eq!(live.stats().missed_pings(), 1);
}

#[tokio::test(start_paused = true)]
async fn bytes_and_unsolicited_pongs_of_a_silent_client_are_signs_of_life() {
    for pong in [true, false] {
        let (mut io, live, mut client) = open(heartbeat());
        tokio::spawn(async move { while let Ok(1..) = io.read(&mut [0; 64]).await {} });
        client.answer_pings(false);
        for _ in 0..10 {
            sleep(ms(9_000)).await;
            if pong {
                client.send_pong("");
            } else {
                client.send_binary([7]);
            }
        }
        assert_eq!(live.reason(), None, "pong: {pong}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_client_is_dead_and_answers_in_a_burst_when_it_thaws() {
    let (_io, live, mut client) = open(heartbeat().missed_pings(3));
    client.freeze();
    sleep(ms(17_000)).await;
    assert_eq!(client.pings_received(), 0);
    assert_eq!(live.stats().missed_pings(), 1);
    client.thaw();
    assert_eq!(client.pings_received(), 2);
    sleep(ms(60_000)).await;
    assert_eq!(live.reason(), None);
    assert_eq!(live.stats().missed_pings(), 1);

    client.freeze();
    let reason = live.evicted().await.reason();
    assert_eq!(reason, Reason::HeartbeatTimeout { missed: 3 });
    live.closed().await;
    client.thaw();
    // The Close frame waited in the window.
    let close = client.recv().await;
    assert!(
        matches!(close, Some(ServerMessage::Close { .. })),
        "{close:?}"
    );
    assert_eq!(client.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_client_with_a_full_window_stalls_the_servers_write() {
    let (io, mut client) = test_util::pair_with_window(1_000);
    let layer = heartbeat().write_timeout(ms(30_000)).build().unwrap();
    let (mut io, live) = layer.wrap_server(io);
    client.freeze();
    // One frame of 2,000 bytes, of which 1,000 fit.
    let frame = [&[0x82, 126, 7, 0xd0][..], &[0; 2_000]].concat();
    let writer = tokio::spawn(async move { io.write_all(&frame).await });
    let ev = live.evicted().await;
    assert_eq!(ev.reason(), Reason::WriteStalled);
    assert_eq!(ev.stats().bytes_sent(), 1_000);
    let error = writer.await.unwrap().unwrap_err();
    assert_eq!(Evicted::from_error(&error).unwrap().reason(), ev.reason());
}

#[tokio::test(start_paused = true)]
async fn a_frozen_client_that_thaws_gets_what_the_server_still_had_to_write() {
    let (io, mut client) = test_util::pair_with_window(1_000);
    let (io, live) = heartbeat().build().unwrap().wrap_server(io);
    client.freeze();
    let payload = noise(1, 5_000);
    let mut socket = socket(io).await;
    let sent = Message::binary(payload.clone());
    let mut send = Box::pin(socket.send(sent));
    assert!((&mut send).now_or_never().is_none(), "the window is closed");
    client.thaw();
    send.await.unwrap();
    assert_eq!(client.try_recv(), Some(ServerMessage::Binary(payload)));
    assert_eq!(live.reason(), None);
}

#[tokio::test(start_paused = true)]
async fn a_vanished_client_is_dead_and_what_it_sent_before_arrives() {
    let (mut io, live, mut client) = open(heartbeat());
    client.send_text("last words");
    client.vanish();
    let mut frame = [0; 16];
    io.read_exact(&mut frame).await.unwrap();
    let opened = Instant::now();
    let error = io.read(&mut frame).await.unwrap_err();
    assert_eq!(Evicted::from_error(&error).unwrap().reason(), TIMEOUT);
    assert!(opened.elapsed() >= ms(15_000));
    assert_eq!(live.reason(), Some(TIMEOUT));
    // No time is spent on a closing handshake with a dead peer.
    let evicted = Instant::now();
    live.closed().await;
    assert_eq!(evicted.elapsed(), ms(0));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_disconnects_or_is_dropped_has_vanished() {
    for end in [Client::disconnect as fn(Client), drop] {
        let (io, live, mut client) = open(heartbeat());
        let opened = Instant::now();
        client.send_text("hello");
        end(client);
        let mut socket = socket(io).await;
        assert_eq!(
            socket.next().await.unwrap().unwrap(),
            Message::text("hello")
        );
        assert!(socket.next().await.unwrap().is_err());
        assert_eq!(live.evicted().await.reason(), Reason::PeerVanished);
        assert_eq!(opened.elapsed(), ms(0));
        let error = socket.send(Message::text("lost")).await.unwrap_err();
        assert!(matches!(
            error,
            tungstenite::Error::Io(_) | tungstenite::Error::AlreadyClosed
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_is_seen_although_the_handler_does_nothing() {
    let (_io, live, client) = open(heartbeat());
    client.disconnect();
    assert_eq!(live.evicted().await.reason(), Reason::PeerVanished);
}

#[tokio::test(start_paused = true)]
async fn a_reset_loses_unread_bytes_and_fails_reads_and_writes() {
    let (mut io, live, mut client) = open(heartbeat());
    client.send_text("lost");
    client.reset();
    let error = io.read(&mut [0; 16]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let reason = Reason::Transport(ErrorKind::ConnectionReset);
    assert_eq!(live.evicted().await.reason(), reason);
}

#[tokio::test(start_paused = true)]
async fn the_client_completes_the_closing_handshake_that_it_begins() {
    let (io, live, mut client) = open(heartbeat());
    let mut socket = socket(io).await;
    client.close(1001, "going away");
    client.send_text("not sent after the Close frame");
    let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else {
        panic!("no Close frame")
    };
    assert_eq!(
        (u16::from(close.code), &*close.reason),
        (1001, "going away")
    );
    assert!(socket.next().await.is_none());
    drop(socket);
    let reason = Reason::PeerClosed { code: Some(1001) };
    assert_eq!(live.evicted().await.reason(), reason);
    let answer = client.recv().await.unwrap();
    assert!(
        matches!(
            answer,
            ServerMessage::Close {
                code: Some(1001),
                ..
            }
        ),
        "{answer:?}"
    );
    assert_eq!(client.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_live_client_answers_the_servers_close_frame_and_a_frozen_one_does_not() {
    for frozen in [false, true] {
        let (_io, live, mut client) = open(heartbeat().close_timeout(ms(7_000)));
        if frozen {
            client.freeze();
        }
        assert!(live.evict(4000, "kicked"));
        let evicted = Instant::now();
        live.closed().await;
        let took = evicted.elapsed();
        if frozen {
            assert!((ms(7_000)..ms(8_000)).contains(&took), "{took:?}");
            client.thaw();
        } else {
            assert_eq!(took, ms(0));
        }
        let close = ServerMessage::Close {
            code: Some(4000),
            reason: "kicked".to_owned(),
        };
        assert_eq!(client.recv().await, Some(close));
        assert_eq!(client.recv().await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn messages_of_all_lengths_pass_in_both_directions() {
    let (io, _live, mut client) = open(heartbeat());
    let mut socket = socket(io).await;
    for len in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
        let bytes = noise(len as u32, len);
        client.send_binary(&bytes);
        let received = socket.next().await.unwrap().unwrap();
        assert_eq!(received, Message::binary(bytes.clone()), "{len}");
        socket.send(received).await.unwrap();
        assert_eq!(
            client.recv().await,
            Some(ServerMessage::Binary(bytes)),
            "{len}"
        );
    }
    client.send_text("é");
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("é"));
    socket.send(Message::text("è")).await.unwrap();
    assert_eq!(
        client.recv().await,
        Some(ServerMessage::Text("è".to_owned()))
    );
    // The library queues its pong, and sends it with the next flush.
    client.send_ping("tick");
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::Ping("tick".into())
    );
    socket.flush().await.unwrap();
    assert_eq!(
        client.recv().await,
        Some(ServerMessage::Pong(b"tick".to_vec()))
    );
    assert_eq!(client.try_recv(), None);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_a_message_is_woken_by_it_and_by_the_end() {
    let (io, mut client) = test_util::pair();
    let receiver = tokio::spawn(async move {
        let message = client.recv().await;
        (message, client.recv().await)
    });
    sleep(ms(1)).await;
    let mut socket = socket(io).await;
    socket.send(Message::text("a")).await.unwrap();
    sleep(ms(1)).await;
    assert!(!receiver.is_finished());
    drop(socket);
    let received = receiver.await.unwrap();
    assert_eq!(received, (Some(ServerMessage::Text("a".to_owned())), None));
}

#[tokio::test(start_paused = true)]
async fn too_many_pings_of_the_client_are_a_flood() {
    let (io, live, mut client) = open(heartbeat().control_frame_limit(Some(10)));
    let mut socket = socket(io).await;
    tokio::spawn(async move { while let Some(Ok(_)) = socket.next().await {} });
    for _ in 0..100 {
        client.send_ping("");
    }
    assert_eq!(live.evicted().await.reason(), Reason::ControlFlood);
}

#[tokio::test(start_paused = true)]
async fn a_live_client_of_a_busy_handler_is_not_dead_until_the_handler_stalls() {
    let layer = heartbeat().handler_stall_timeout(Some(ms(60_000)));
    let (io, live, mut client) = open(layer);
    tokio::spawn(async move {
        let _io = io; // never read
        pending::<()>().await
    });
    client.send_text("unread");
    sleep(ms(50_000)).await;
    assert_eq!(live.reason(), None);
    assert_eq!(live.stats().missed_pings(), 0);
    assert_eq!(live.evicted().await.reason(), Reason::HandlerStalled);
}

#[tokio::test(start_paused = true)]
async fn malformed_bytes_of_the_client_reach_the_handlers_library() {
    let (io, live, mut client) = open(heartbeat());
    let mut socket = socket(io).await;
    client.send_bytes([0x83, 0x80, 0, 0, 0, 0]); // a reserved opcode
    let error = socket.next().await.unwrap().unwrap_err();
    assert!(matches!(error, tungstenite::Error::Protocol(_)), "{error}");
    drop(socket);
    assert_eq!(live.evicted().await.reason(), Reason::HandlerDropped);
    assert_eq!(client.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_sends_in_a_loop_yields_to_the_test() {
    let (io, live, mut client) = open(heartbeat().write_timeout(ms(30_000)));
    let mut socket = socket(io).await;
    let pusher = tokio::spawn(async move {
        loop {
            let sent = socket.send(Message::binary(vec![0; 1_000])).await;
            if let Err(error) = sent {
                return error;
            }
        }
    });
    for _ in 0..1_000 {
        let message = client.recv().await;
        assert_eq!(message, Some(ServerMessage::Binary(vec![0; 1_000])));
    }
    client.freeze();
    assert_eq!(live.evicted().await.reason(), Reason::WriteStalled);
    let error = pusher.await.unwrap();
    assert!(Evicted::from_error(&error).is_some(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_pong_follows_the_frame_that_is_sent_in_parts() {
    let (io, live, mut client) = open(heartbeat());
    let mut socket = socket(io).await;
    let (begin, rest) = b"\x81\x85\0\0\0\0hello".split_at(8);
    client.send_bytes(begin);
    sleep(ms(12_000)).await;
    assert_eq!(client.pings_received(), 1);
    assert_eq!(live.stats().pongs_received(), 0);
    client.send_bytes(rest);
    let message = socket.next().await.unwrap().unwrap();
    assert_eq!(message, Message::text("hello"));
    sleep(ms(1)).await;
    assert_eq!(live.stats().pongs_received(), 1);
    assert_eq!(live.reason(), None);
}

#[tokio::test(start_paused = true)]
async fn a_close_frame_among_the_bytes_is_the_clients_close_frame() {
    let (mut io, mut client) = test_util::pair();
    let close = b"\x88\x82\0\0\0\0\x03\xe8";
    client.send_bytes(close);
    client.send_text("not sent after the Close frame");
    io.write_all(b"\x88\x02\x03\xe8").await.unwrap();
    drop(client);
    let mut sent = Vec::new();
    io.read_to_end(&mut sent).await.unwrap();
    assert_eq!(sent, close);
}

#[tokio::test]
async fn a_plain_stream_reads_and_writes_frames() {
    let (mut io, mut client) = test_util::pair();
    io.write_all(b"\x81\x02hi").await.unwrap();
    assert_eq!(
        client.recv().await,
        Some(ServerMessage::Text("hi".to_owned()))
    );
    client.send_binary([]);
    let mut frame = [0; 6];
    io.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[..2], [0x82, 0x80], "masked");
    io.shutdown().await.unwrap();
    assert_eq!(client.recv().await, None);
    client.send_text("not sent");
    assert_eq!(io.read(&mut frame).await.unwrap(), 0);
    let error = io.write_all(b"\x81\x00").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[tokio::test]
#[should_panic(expected = "a frozen client receives nothing")]
async fn a_wait_of_a_frozen_client_panics_instead_of_hanging() {
    let (_io, mut client) = test_util::pair();
    client.freeze();
    client.recv().await;
}

#[tokio::test]
#[should_panic(expected = "126 bytes, more than 125")]
async fn a_ping_that_is_too_long_panics() {
    let (_io, mut client) = test_util::pair();
    client.send_ping([0; 126]);
}

#[tokio::test]
async fn a_reason_that_is_too_long_is_cut() {
    let (io, mut client) = test_util::pair();
    client.close(4000, &"é".repeat(100));
    let mut socket = socket(io).await;
    let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else {
        panic!("no Close frame")
    };
    assert_eq!(&*close.reason, "é".repeat(61));
}

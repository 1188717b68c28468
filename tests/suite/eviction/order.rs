//! Evictions of wrapped streams: their time, the order of their effects, and no leaks.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::{
    Evicted, Eviction, Health, HeartbeatLayer, Liveness, LivenessStream, Reason,
};
use tracing::{Event, Metadata, Subscriber, span};

use crate::script::*;
use crate::support::recorder::Recorder;

const ONE_MISSED_PING: Reason = Reason::HeartbeatTimeout { missed: 1 };

fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

/// The reason of the eviction with which an operation of the handler failed.
#[track_caller]
fn eviction_reason<T: std::fmt::Debug>(operation: Poll<io::Result<T>>, kind: ErrorKind) -> Reason {
    let Poll::Ready(Err(error)) = operation else {
        panic!("did not fail: {operation:?}");
    };
    assert_eq!(error.kind(), kind);
    Evicted::from_error(&error).expect("an eviction").reason()
}

// Deadlines.

#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_evicted_within_one_tick_of_its_deadline() {
    // interval, timeout, missed pings
    let settings = [
        (1, 1, 1),
        (100, 50, 1),
        (100, 50, 3),
        (30_000, 15_000, 1),
        (1_000, 257, 5),
        (257, 1_000, 1),
        (333, 77, 7),
        (500, 4_001, 20),
    ];
    for (interval, limit, missed) in settings {
        for answered in [false, true] {
            let builder = heartbeat()
                .interval(ms(interval))
                .timeout(ms(limit))
                .close_timeout(ms(100_000))
                .missed_pings(missed);
            let (_stream, live, peer) = wrap_with(builder);
            let mut since = Instant::now();
            if answered {
                // A byte from the peer at an irregular time.
                sleep(ms(interval) / 3).await;
                peer.send(&frame(0x80 | TEXT, Some([0; 4]), b""));
                sleep(ms(interval + limit / 2)).await;
                since = live.last_seen();
            }
            let eviction = timeout(ms(1_000_000), live.evicted()).await.unwrap();
            assert_eq!(eviction.reason(), Reason::HeartbeatTimeout { missed });
            let due = ms(interval + limit * u64::from(missed));
            let shortest = interval.min(limit);
            let tick = ms(1 << (shortest / 32).clamp(1, 256).ilog2());
            let took = since.elapsed();
            let setting = (interval, limit, missed, answered);
            // Bytes that the driver finds late may count from before their arrival.
            let early = !answered && took < due;
            assert!(!early, "{setting:?}: {took:?}, expected {due:?}");
            assert!(
                took <= due + tick,
                "{setting:?}: {took:?}, expected {due:?} + {tick:?}"
            );
        }
    }
}

// Errors of the handler's operations.

#[tokio::test(start_paused = true)]
async fn blocked_reads_and_writes_wake_with_the_reason() {
    let (stream, live, peer) = wrapped();
    peer.write_steps(&[WAIT]);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (reads, writes) = (Wakes::new(), Wakes::new());
    assert!(poll_read(&mut reader, &reads, 64).is_pending());
    assert!(poll_write(&mut writer, &writes, &hello()).is_pending());
    assert!(live.evict(4000, "enough"));
    assert_eq!((reads.count(), writes.count()), (1, 1), "at once");
    let kind = ErrorKind::ConnectionAborted;
    let reason = Reason::Kicked { code: 4000 };
    assert_eq!(
        eviction_reason(poll_read(&mut reader, &reads, 64), kind),
        reason
    );
    assert_eq!(
        eviction_reason(poll_write(&mut writer, &writes, b"x"), kind),
        reason
    );
    assert_eq!(
        eviction_reason(poll_flush(&mut writer, &writes), kind),
        reason
    );
    assert!(!live.evict(4001, "again"));

    let (mut stream, live, peer) = wrap_with(heartbeat().write_timeout(ms(60_000)));
    let (reads, writes) = (Wakes::new(), Wakes::new());
    // The ping is written, then the handler's frame stalls after three bytes.
    assert!(poll_read(&mut stream, &reads, 64).is_pending());
    sleep(ms(120)).await;
    peer.write_steps(&[3, WAIT]);
    assert!(poll_write(&mut stream, &writes, &hello()).is_ready());
    assert!(poll_write(&mut stream, &writes, &hello()[3..]).is_pending());
    assert_eq!(live.evicted().await.reason(), ONE_MISSED_PING);
    assert_eq!((reads.count(), writes.count()), (1, 1));
    let kind = ErrorKind::TimedOut;
    assert_eq!(
        eviction_reason(poll_read(&mut stream, &reads, 64), kind),
        ONE_MISSED_PING
    );
    assert_eq!(
        eviction_reason(poll_write(&mut stream, &writes, &hello()[3..]), kind),
        ONE_MISSED_PING
    );
}

// The Close frame.

#[tokio::test(start_paused = true)]
async fn the_close_frame_is_sent_at_a_frame_boundary_only() {
    for role in [Role::Server, Role::Client] {
        for written in [0, 3, ALL] {
            let (io, peer) = script();
            let (mut stream, live) = role.wrap(&heartbeat().build().unwrap(), io);
            let hello = frame(0x80 | TEXT, role.outbound([1, 2, 3, 4]), b"hello");
            sleep(ms(105)).await;
            let bytes = &hello[..written.min(hello.len())];
            if !bytes.is_empty() {
                let done = poll_write(&mut stream, &Wakes::new(), bytes);
                assert!(matches!(done, Poll::Ready(Ok(_))));
            }
            assert_eq!(live.evicted().await.reason(), ONE_MISSED_PING);
            sleep(ms(5)).await;
            assert!(
                peer.is_dropped(),
                "the Close frame of a dead peer is not awaited"
            );
            let wire = peer.wire();
            let (frames, rest) = parse(&wire.written);
            let last = frames.last().unwrap();
            if written == 3 {
                assert_eq!(rest, bytes, "nothing is written inside the handler's frame");
                assert!(last.may_be_ours());
            } else {
                assert!(rest.is_empty());
                assert_eq!(last.first, 0x80 | CLOSE);
                assert_eq!(
                    last.payload,
                    [&3008_u16.to_be_bytes(), &b"heartbeat timeout"[..]].concat()
                );
                assert_eq!(last.masked, role == Role::Client);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_close_frame_of_a_stall_names_the_stalled_side() {
    let patient = || heartbeat().interval(ms(10_000)).timeout(ms(10_000));
    let close_frame = |peer: &Peer| {
        let frame = peer.frames().pop().expect("a frame");
        assert_eq!(frame.first, 0x80 | CLOSE);
        let (code, text) = frame.payload.split_at(2);
        let code = u16::from_be_bytes(code.try_into().unwrap());
        (code, String::from_utf8(text.to_vec()).unwrap())
    };

    let layer = patient().handler_stall_timeout(ms(300));
    let (_stream, live, peer) = wrap_with(layer);
    peer.send(&frame(0x80 | TEXT, Some([1, 2, 3, 4]), b"unread"));
    assert_eq!(live.evicted().await.reason(), Reason::HandlerStalled);
    sleep(ms(5)).await;
    assert_eq!(close_frame(&peer), (1013, "handler stalled".to_owned()));

    // A peer that reads again within `close_timeout` of the eviction.
    let (mut stream, live, peer) = wrap_with(patient().write_timeout(ms(300)));
    peer.write_steps(&[WAIT]);
    assert!(poll_write(&mut stream, &Wakes::new(), &hello()).is_pending());
    assert_eq!(live.evicted().await.reason(), Reason::WriteStalled);
    peer.drain();
    sleep(ms(5)).await;
    assert_eq!(close_frame(&peer), (3008, "write stalled".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn inside_the_handlers_frame_the_transport_is_closed_without_a_close_frame() {
    let (mut stream, live, peer) = wrapped();
    peer.write_steps(&[3, WAIT]);
    assert!(poll_write(&mut stream, &Wakes::new(), &hello()).is_ready());
    peer.drain();
    assert!(live.evict(4000, "now"));
    sleep(ms(5)).await;
    assert!(peer.wire().shutdown, "the write half is shut down at once");
    peer.end(Ok(()));
    sleep(ms(5)).await;
    assert!(peer.is_dropped(), "the peer has ended too");
    assert_eq!(peer.wire().written, &hello()[..3]);
}

#[tokio::test(start_paused = true)]
async fn a_half_written_ping_is_completed_before_the_close_frame() {
    let (_stream, live, peer) = wrapped();
    peer.write_steps(&[3, WAIT]);
    sleep(ms(105)).await;
    assert_eq!(peer.wire().written.len(), 3);
    live.evict(4000, "");
    sleep(ms(1)).await;
    peer.drain();
    sleep(ms(1)).await;
    let frames = peer.frames();
    assert!(frames[0].may_be_ours());
    assert_eq!(
        (frames[1].first, &frames[1].payload[..]),
        (0x80 | CLOSE, &[0xF, 0xA0][..])
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_a_close_frame_of_the_handlers() {
    let (mut stream, live, peer) = wrapped();
    let close = frame(0x80 | CLOSE, None, &1000_u16.to_be_bytes());
    assert!(poll_write(&mut stream, &Wakes::new(), &close).is_ready());
    sleep(ms(150)).await;
    assert!(live.evict(4000, "late"));
    sleep(ms(500)).await;
    assert_eq!(peer.wire().written, close);
    assert!(peer.is_dropped());
}

// The transport.

#[tokio::test(start_paused = true)]
async fn the_transport_of_a_stuck_handler_is_dropped_within_the_close_timeout() {
    type Block = fn(&mut Stream, &Peer);
    let blocks: [(&str, Block); 5] = [
        ("no answer", |_, _| {}),
        ("the transport is full", |_, peer| peer.write_steps(&[WAIT])),
        ("the Close frame is half written", |_, peer| {
            peer.write_steps(&[3, WAIT])
        }),
        ("no flush", |_, peer| peer.wire().flush_waits = true),
        ("the peer keeps sending", |_, peer| {
            peer.read_steps(&[1]);
            peer.send(&frame(0x80 | BINARY, Some([0; 4]), &[0; 60_000]));
        }),
    ];
    for (what, block) in blocks {
        let (mut stream, live, peer) = wrapped();
        block(&mut stream, &peer);
        assert!(live.evict(4000, "out"));
        assert_eq!(live.health(), Health::Ended);
        let kicked = Instant::now();
        sleep(ms(210)).await;
        let dropped = peer
            .wire()
            .dropped
            .unwrap_or_else(|| panic!("{what}: the transport is not dropped"));
        assert!(
            dropped - kicked <= ms(202),
            "{what}: {:?}",
            dropped - kicked
        );
        drop(stream);
    }
}

#[tokio::test(start_paused = true)]
async fn every_other_end_also_drops_the_transport_of_a_stuck_handler() {
    type End = fn(&Peer);
    let ends: [(&str, End); 4] = [
        ("Close", |peer| {
            peer.send(&frame(0x80 | CLOSE, Some([0; 4]), b""))
        }),
        ("EOF", |peer| peer.end(Ok(()))),
        ("reset", |peer| peer.end(Err(ErrorKind::ConnectionReset))),
        ("broken pipe", |peer| {
            peer.wire().write_error = Some(ErrorKind::BrokenPipe)
        }),
    ];
    for (what, end) in ends {
        let (_stream, live, peer) = wrapped();
        end(&peer);
        let ended = timeout(ms(200), live.evicted()).await;
        assert!(ended.is_ok(), "{what}: not detected");
        sleep(ms(210)).await;
        assert!(peer.is_dropped(), "{what}: the transport is not dropped");
    }
}

// Hooks.

#[tokio::test(start_paused = true)]
async fn hooks_are_called_first_and_may_use_the_handle() {
    for kick in [false, true] {
        let (io, peer) = script();
        let wakes = Wakes::new();
        let log = Arc::new(Mutex::new(Vec::new()));
        let handle: Arc<Mutex<Option<Liveness>>> = Arc::default();
        let hook = {
            let (peer, wakes) = (peer.clone(), Arc::clone(&wakes));
            let (log, handle) = (Arc::clone(&log), Arc::clone(&handle));
            move |ev: &Eviction| {
                let live = handle.lock().unwrap().clone().unwrap();
                assert!(
                    !peer.is_dropped() && wakes.count() == 0,
                    "the hook is called first"
                );
                assert_eq!((live.id(), live.health()), (ev.id(), Health::Ended));
                assert_eq!(live.stats(), ev.stats());
                assert_eq!(live.last_seen(), ev.last_seen());
                let _ = (live.rtt(), live.idle_for(), format!("{live:?}"));
                assert!(!live.evict(4001, "from a hook"));
                live.set_session("session");
                assert_eq!(live.session::<&str>().as_deref(), Some(&"session"));
                let inner = Arc::clone(&log);
                live.on_evict(move |_| inner.lock().unwrap().push("late"));
                let mut evicted = std::pin::pin!(live.evicted());
                let waker = std::task::Waker::noop();
                let polled = evicted
                    .as_mut()
                    .poll(&mut std::task::Context::from_waker(waker));
                assert!(polled.is_pending(), "not all hooks have been called");
                // A hook's panic is caught, so only this line proves that no assertion has failed.
                log.lock().unwrap().push("layer");
            }
        };
        let layer = heartbeat().on_evict(hook).build().unwrap();
        let (mut stream, live) = layer.wrap_server(io);
        *handle.lock().unwrap() = Some(live.clone());
        let local = Arc::clone(&log);
        live.on_evict(move |_| local.lock().unwrap().push("local"));
        assert!(poll_read(&mut stream, &wakes, 8).is_pending());
        if kick {
            assert!(live.evict(4000, ""));
        }
        let eviction = timeout(ms(1_000), live.evicted()).await.unwrap();
        assert_eq!(eviction.reason() == ONE_MISSED_PING, !kick);
        assert_eq!(*log.lock().unwrap(), ["local", "late", "layer"]);
        assert_eq!(wakes.count(), 1);
        // A hook that is added after the end is called as well.
        let late = Arc::clone(&log);
        live.on_evict(move |_| late.lock().unwrap().push("after the end"));
        assert_eq!(log.lock().unwrap().len(), 4);
        handle.lock().unwrap().take();
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_are_called_before_the_transport_is_dropped_without_a_close_frame() {
    type End = fn(Stream, &Peer);
    let ends: [End; 2] = [
        |stream, _| drop(stream),
        |stream, peer| {
            peer.wire().panics = true;
            peer.wake();
            // A stuck handler.
            tokio::spawn(async move {
                let _stream = stream;
                sleep(ms(1_000)).await;
            });
        },
    ];
    for end in ends {
        let (mut stream, live, peer) = wrapped();
        let transport_open = Arc::new(Mutex::new(None));
        let (seen, wire) = (Arc::clone(&transport_open), peer.clone());
        live.on_evict(move |_| *seen.lock().unwrap() = Some(!wire.is_dropped()));
        assert!(poll_read(&mut stream, &Wakes::new(), 8).is_pending());
        end(stream, &peer);
        sleep(ms(150)).await;
        assert_eq!(*transport_open.lock().unwrap(), Some(true));
        assert!(peer.is_dropped());
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_may_evict_another_connection() {
    let (mut other_stream, other, _other_peer) = wrapped();
    let wakes = Wakes::new();
    assert!(poll_read(&mut other_stream, &wakes, 8).is_pending());
    let (_stream, live, _peer) = wrapped();
    let victim = other.clone();
    live.on_evict(move |_| assert!(victim.evict(4002, "")));
    live.evict(4000, "");
    assert_eq!(wakes.count(), 1);
    assert_eq!(
        other.evicted().await.reason(),
        Reason::Kicked { code: 4002 }
    );
}

// Panics, and what remains after an end.

#[tokio::test(start_paused = true)]
async fn a_transport_that_panics_ends_only_its_own_connection() {
    for when in [0, 105] {
        let (mut stream, live, peer) = wrapped();
        let (mut other, other_live, other_peer) = wrapped();
        let (wakes, other_wakes) = (Wakes::new(), Wakes::new());
        assert!(poll_read(&mut stream, &wakes, 8).is_pending());
        assert!(poll_read(&mut other, &other_wakes, 8).is_pending());
        sleep(ms(when)).await;
        peer.wire().panics = true;
        peer.wake();
        let eviction = timeout(ms(500), live.evicted()).await.unwrap();
        assert_eq!(eviction.reason(), Reason::Transport(ErrorKind::Other));
        assert!(peer.is_dropped() && wakes.count() > 0);
        let reason = eviction_reason(poll_read(&mut stream, &wakes, 8), ErrorKind::Other);
        assert_eq!(reason, Reason::Transport(ErrorKind::Other));

        let pong = Role::Server.pong(&other_peer.last_ping());
        other_peer.send(&pong);
        sleep(ms(105)).await;
        assert_eq!(other_live.health(), Health::PeerSilent { missed: 0 });
        assert_eq!(other_live.stats().pings_sent(), 2, "the driver still runs");
    }
}

/// A transport that uses its own connection's handle each time it is polled.
struct HandleUser {
    io: Script,
    live: Arc<OnceLock<Liveness>>,
    act: fn(&Liveness),
}

impl HandleUser {
    fn call(&self) {
        if let Some(live) = self.live.get() {
            (self.act)(live);
        }
    }
}

impl AsyncRead for HandleUser {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.call();
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for HandleUser {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.call();
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.call();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A stream over a [`HandleUser`] transport, which runs `act` at each poll from now on.
fn wrap_handle_user(act: fn(&Liveness)) -> (LivenessStream<HandleUser>, Liveness, Peer) {
    let (io, peer) = script();
    let shared = Arc::new(OnceLock::new());
    let io = HandleUser {
        io,
        live: Arc::clone(&shared),
        act,
    };
    let (stream, live) = heartbeat().build().unwrap().wrap_server(io);
    assert!(shared.set(live.clone()).is_ok());
    (stream, live, peer)
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_uses_its_own_handle_panics_and_does_not_deadlock() {
    let actions: [fn(&Liveness); 7] = [
        |live| assert_eq!(live.health(), Health::Live),
        |live| assert!(live.rtt().is_none()),
        |live| assert_eq!(live.stats().pings_sent(), 0),
        |live| assert!(live.idle_for().is_zero()),
        |live| assert!(live.evict(4000, "")),
        |live| live.set_timeout(ms(1_000)).unwrap(),
        |live| {
            let ping = pin!(live.ping()).poll(&mut Context::from_waker(Waker::noop()));
            assert!(ping.is_pending());
        },
    ];
    for act in actions {
        // The handler's polls.
        let (mut stream, live, peer) = wrap_handle_user(act);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            poll_read(&mut stream, &Wakes::new(), 8).is_pending()
        }));
        let payload = polled.unwrap_err();
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or(payload.downcast_ref::<&str>().copied());
        assert!(message.is_some_and(|message| message.contains("see `LivenessStream`")));
        drop(stream);
        let eviction = timeout(ms(1_000), live.evicted()).await.unwrap();
        assert_eq!(eviction.reason(), Reason::HandlerDropped);
        assert!(peer.is_dropped());
        // The driver's polls.
        let (stream, live, peer) = wrap_handle_user(act);
        let eviction = timeout(ms(1_000), live.evicted()).await.unwrap();
        assert_eq!(eviction.reason(), Reason::Transport(ErrorKind::Other));
        assert!(peer.is_dropped());
        drop(stream);
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_may_format_its_own_handle_and_use_its_session() {
    let (mut stream, live, peer) = wrap_handle_user(|live| {
        let shown = format!("{live:?}");
        assert_eq!(shown, format!("Liveness {{ id: {:?}, .. }}", live.id()));
        live.set_session(7_u8);
        assert_eq!(live.session(), Some(Arc::new(7_u8)));
    });
    assert!(poll_read(&mut stream, &Wakes::new(), 8).is_pending());
    sleep(ms(105)).await;
    assert_eq!(peer.pings().len(), 1);
    assert!(format!("{live:?}").contains("health"));
}

/// A subscriber that panics at every event of this crate.
struct PanickingSubscriber;

impl Subscriber for PanickingSubscriber {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        if event.metadata().target().starts_with("tower_ws_liveness") {
            panic!("at {event:?}");
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_prevents_no_step_of_an_eviction() {
    type End = fn(&Liveness, &Peer);
    let ends: [(End, Reason); 6] = [
        (|_, _| {}, ONE_MISSED_PING),
        (
            |live, _| assert!(live.evict(4000, "")),
            Reason::Kicked { code: 4000 },
        ),
        (|_, peer| peer.end(Ok(())), Reason::PeerVanished),
        (
            |_, peer| peer.send(&frame(0x80 | CLOSE, Some([0; 4]), &[])),
            Reason::PeerClosed { code: None },
        ),
        (
            |_, peer| {
                peer.wire().panics = true;
                peer.wake();
            },
            Reason::Transport(ErrorKind::Other),
        ),
        (
            |live, peer| {
                // Unmasked, against RFC 6455 section 5.1. It may be logged as malformed.
                peer.send(&hello());
                assert!(live.evict(4000, ""));
            },
            Reason::Kicked { code: 4000 },
        ),
    ];
    let _guard = tracing::subscriber::set_default(PanickingSubscriber);
    let builder = heartbeat().timeout(ms(600_000));
    let (_other, other_live, other_peer) = wrap_with(builder);
    for (end, reason) in ends {
        let recorder = Recorder::new();
        let builder = heartbeat().on_evict(|_: &Eviction| panic!("a hook that panics"));
        let layer = builder.on_evict(recorder.hook()).build().unwrap();
        let (io, peer) = script();
        let (mut stream, live) = layer.wrap_server(io);
        let map = Arc::new(Mutex::new(HashMap::new()));
        live.register(&map, 7, ()).unwrap();
        let wakes = Wakes::new();
        assert!(poll_read(&mut stream, &wakes, 8).is_pending());
        sleep(ms(1)).await;
        end(&live, &peer);
        let eviction = timeout(ms(1_000), live.evicted()).await;
        assert_eq!(eviction.expect("an eviction").reason(), reason);
        assert_eq!(recorder.total(), 1, "{reason}");
        assert!(map.lock().unwrap().is_empty(), "{reason}");
        assert!(layer.registry().is_empty(), "{reason}");
        sleep(ms(1_000)).await;
        assert!(peer.is_dropped() && wakes.count() > 0, "{reason}");
        drop(stream);
        timeout(ms(1), layer.registry().wait_idle()).await.unwrap();
        // The driver still runs.
        let pings = other_live.stats().pings_sent();
        other_peer.send(&Role::Server.pong(&other_peer.last_ping()));
        sleep(ms(105)).await;
        assert_eq!(other_live.stats().pings_sent(), pings + 1, "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_task_is_left_and_a_later_connection_starts_the_driver() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    // Handles keep the idle driver allocated, so the same one starts again.
    let mut handles = Vec::new();
    for round in 0..3 {
        assert_eq!(tasks(), 0, "round {round}");
        let (stream, live, _peer) = wrapped();
        let (second, _second_live, _second_peer) = wrapped();
        assert_eq!(tasks(), 1, "one driver task for both");
        drop(second);
        sleep(ms(1)).await;
        assert_eq!(tasks(), 1);
        if round == 1 {
            drop(stream);
            assert_eq!(live.evicted().await.reason(), Reason::HandlerDropped);
        } else {
            let ended = timeout(ms(1_000), live.evicted()).await;
            assert_eq!(
                ended.expect("no driver runs").reason(),
                ONE_MISSED_PING,
                "round {round}"
            );
        }
        handles.push(live);
        // The task ends within two seconds after the last connection.
        sleep(ms(990)).await;
        assert_eq!(tasks(), 1, "round {round}");
        sleep(ms(1_012)).await;
    }
    assert_eq!(tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_late_wake_keeps_no_memory_of_an_ended_connection() {
    let session = Arc::new(());
    let (mut stream, live, peer) = wrapped();
    live.set_session(Arc::clone(&session));
    sleep(ms(105)).await;
    // The driver's waker is registered with the transport, which may use it at any later time.
    assert!(poll_read(&mut stream, &Wakes::new(), 8).is_pending());
    let late = peer.wire().take_reader().expect("a registered waker");
    drop((stream, live));
    sleep(ms(1)).await;
    late.wake();
    sleep(ms(1)).await;
    assert_eq!(Arc::strong_count(&session), 1);
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

#[test]
fn a_dropped_runtime_ends_its_connections() {
    let layer: HeartbeatLayer = heartbeat().build().unwrap();
    let mut seen = Vec::new();
    for round in 0..3 {
        let runtime = runtime();
        let (evictions, session) = (Arc::new(Mutex::new(0)), Arc::new(()));
        let (lives, peers): (Vec<_>, Vec<_>) = runtime.block_on(async {
            let mut made = Vec::new();
            for _ in 0..3 {
                let (io, peer) = script();
                let (mut stream, live) = layer.wrap_server(io);
                let evictions = Arc::clone(&evictions);
                live.on_evict(move |_| *evictions.lock().unwrap() += 1);
                live.set_session(Arc::clone(&session));
                tokio::spawn(async move { stream.read_u8().await });
                made.push((live, peer));
            }
            sleep(ms(105)).await;
            assert_eq!(
                made[0].0.stats().pings_sent(),
                1,
                "round {round}: a driver runs"
            );
            made.into_iter().unzip()
        });
        drop(runtime);
        assert!(peers.iter().all(Peer::is_dropped));
        assert_eq!(*evictions.lock().unwrap(), 3);
        assert_eq!(lives[0].health(), Health::Ended);
        assert_eq!(layer.registry().len(), 0);
        drop(lives);
        assert_eq!(Arc::strong_count(&session), 1, "round {round}: leaked");
        seen.extend(peers);
    }
}

#[test]
fn a_runtime_dropped_during_a_closing_handshake_drops_the_transport() {
    let runtime = runtime();
    let (peer, session) = runtime.block_on(async {
        let (mut stream, live, peer) = wrapped();
        let session = Arc::new(());
        live.set_session(Arc::clone(&session));
        tokio::spawn(async move { stream.read_u8().await });
        sleep(ms(10)).await;
        live.evict(4000, "");
        sleep(ms(10)).await;
        assert!(!peer.is_dropped(), "the peer has not answered yet");
        (peer, session)
    });
    drop(runtime);
    assert!(peer.is_dropped(), "dropped with the runtime");
    assert_eq!(Arc::strong_count(&session), 1);
}

#[test]
fn a_stream_that_outlives_its_runtime_has_ended() {
    let runtime = runtime();
    let (mut stream, live, peer) = runtime.block_on(async {
        let made = wrapped();
        sleep(Duration::from_millis(10)).await;
        made
    });
    drop(runtime);
    let wakes = Wakes::new();
    peer.send(&frame(0x80 | TEXT, Some([0; 4]), b"x"));
    assert!(peer.is_dropped());
    assert_eq!(live.health(), Health::Ended);
    let read = poll_read(&mut stream, &wakes, 64).map_ok(drop);
    let wrote = poll_write(&mut stream, &wakes, &hello()).map_ok(drop);
    for ended in [read, wrote] {
        let Poll::Ready(Err(error)) = ended else {
            panic!("{ended:?}")
        };
        let evicted = Evicted::from_error(&error).expect("an eviction");
        assert_eq!(evicted.reason(), Reason::HandlerDropped);
    }
}

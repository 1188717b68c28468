//! The ends of a wrapped stream: when the eviction comes, in which order, and that nothing is left.

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

const DEAD: Reason = Reason::HeartbeatTimeout { missed: 1 };

fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

/// The eviction that an operation of the handler failed with.
#[track_caller]
fn refused<T: std::fmt::Debug>(operation: Poll<io::Result<T>>, kind: ErrorKind) -> Reason {
    let Poll::Ready(Err(error)) = operation else {
        panic!("did not fail: {operation:?}");
    };
    assert_eq!(error.kind(), kind);
    Evicted::from_error(&error).expect("an eviction").reason()
}

// When.

#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_evicted_in_time_to_the_tick() {
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
                // A sign of life, at an odd time.
                sleep(ms(interval) / 3).await;
                peer.send(&frame(0x80 | TEXT, Some([0; 4]), b""));
                sleep(ms(interval + limit / 2)).await;
                since = live.last_seen();
            }
            let eviction = timeout(ms(1_000_000), live.evicted()).await.unwrap();
            assert_eq!(eviction.reason(), Reason::HeartbeatTimeout { missed });
            let promised = ms(interval + limit * u64::from(missed));
            let shortest = interval.min(limit);
            let tick = ms(1 << (shortest / 32).clamp(1, 256).ilog2());
            let took = since.elapsed();
            let setting = (interval, limit, missed, answered);
            // What the driver sees late, it may count from before.
            let early = !answered && took < promised;
            assert!(!early, "{setting:?}: {took:?}, not {promised:?}");
            assert!(
                took <= promised + tick,
                "{setting:?}: {took:?}, not {promised:?} + {tick:?}"
            );
        }
    }
}

// How the handler learns of it.

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
    assert_eq!(refused(poll_read(&mut reader, &reads, 64), kind), reason);
    assert_eq!(
        refused(poll_write(&mut writer, &writes, b"x"), kind),
        reason
    );
    assert_eq!(refused(poll_flush(&mut writer, &writes), kind), reason);
    assert!(!live.evict(4001, "again"));

    let (mut stream, live, peer) = wrap_with(heartbeat().write_timeout(ms(60_000)));
    let (reads, writes) = (Wakes::new(), Wakes::new());
    // The pings pass, the handler's frame is held up in the middle of the second.
    assert!(poll_read(&mut stream, &reads, 64).is_pending());
    sleep(ms(120)).await;
    peer.write_steps(&[3, WAIT]);
    assert!(poll_write(&mut stream, &writes, &hello()).is_ready());
    assert!(poll_write(&mut stream, &writes, &hello()[3..]).is_pending());
    assert_eq!(live.evicted().await.reason(), DEAD);
    assert_eq!((reads.count(), writes.count()), (1, 1));
    let kind = ErrorKind::TimedOut;
    assert_eq!(refused(poll_read(&mut stream, &reads, 64), kind), DEAD);
    assert_eq!(
        refused(poll_write(&mut stream, &writes, &hello()[3..]), kind),
        DEAD
    );
}

// The Close frame.

#[tokio::test(start_paused = true)]
async fn the_close_frame_comes_at_a_boundary_only() {
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
            assert_eq!(live.evicted().await.reason(), DEAD);
            sleep(ms(5)).await;
            assert!(peer.is_dropped(), "a dead peer is not waited for");
            let wire = peer.wire();
            let (frames, rest) = parse(&wire.written);
            let last = frames.last().unwrap();
            if written == 3 {
                assert_eq!(rest, bytes, "nothing inside the handler's frame");
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
async fn a_stall_is_announced_by_a_close_frame_that_says_whose_it_is() {
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

    // A peer that sleeps, and wakes up within `close_timeout` of the verdict.
    let (mut stream, live, peer) = wrap_with(patient().write_timeout(ms(300)));
    peer.write_steps(&[WAIT]);
    assert!(poll_write(&mut stream, &Wakes::new(), &hello()).is_pending());
    assert_eq!(live.evicted().await.reason(), Reason::WriteStalled);
    peer.drain();
    sleep(ms(5)).await;
    assert_eq!(close_frame(&peer), (3008, "write stalled".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn inside_the_handlers_frame_the_transport_is_closed_without_a_word() {
    let (mut stream, live, peer) = wrapped();
    peer.write_steps(&[3, WAIT]);
    assert!(poll_write(&mut stream, &Wakes::new(), &hello()).is_ready());
    peer.drain();
    assert!(live.evict(4000, "now"));
    sleep(ms(5)).await;
    assert!(peer.wire().shutdown, "the peer sees the end at once");
    peer.end(Ok(()));
    sleep(ms(5)).await;
    assert!(peer.is_dropped(), "there is nothing left to wait for");
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
async fn the_transport_goes_within_close_timeout_from_a_handler_that_is_stuck() {
    type Block = fn(&mut Stream, &Peer);
    let blocks: [(&str, Block); 5] = [
        ("nobody answers", |_, _| {}),
        ("the transport is full", |_, peer| peer.write_steps(&[WAIT])),
        ("the Close frame is half out", |_, peer| {
            peer.write_steps(&[3, WAIT])
        }),
        ("no flush", |_, peer| peer.wire().flush_waits = true),
        ("the peer talks on", |_, peer| {
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
            .unwrap_or_else(|| panic!("{what}: still there"));
        assert!(
            dropped - kicked <= ms(202),
            "{what}: {:?}",
            dropped - kicked
        );
        drop(stream);
    }
}

#[tokio::test(start_paused = true)]
async fn every_other_end_frees_the_transport_of_a_stuck_handler_too() {
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
        assert!(ended.is_ok(), "{what}: nobody looked");
        sleep(ms(210)).await;
        assert!(peer.is_dropped(), "{what}: still there");
    }
}

// Hooks.

#[tokio::test(start_paused = true)]
async fn hooks_come_first_and_may_call_everything() {
    for kick in [false, true] {
        let (io, peer) = script();
        let wakes = Wakes::new();
        let told = Arc::new(Mutex::new(Vec::new()));
        let handle: Arc<Mutex<Option<Liveness>>> = Arc::default();
        let hook = {
            let (peer, wakes) = (peer.clone(), Arc::clone(&wakes));
            let (told, handle) = (Arc::clone(&told), Arc::clone(&handle));
            move |ev: &Eviction| {
                let live = handle.lock().unwrap().clone().unwrap();
                assert!(
                    !peer.is_dropped() && wakes.count() == 0,
                    "the hook comes first"
                );
                assert_eq!((live.id(), live.health()), (ev.id(), Health::Ended));
                assert_eq!(live.stats(), ev.stats());
                assert_eq!(live.last_seen(), ev.last_seen());
                let _ = (live.rtt(), live.idle_for(), format!("{live:?}"));
                assert!(!live.evict(4001, "from a hook"));
                live.set_session("session");
                assert_eq!(live.session::<&str>().as_deref(), Some(&"session"));
                let inner = Arc::clone(&told);
                live.on_evict(move |_| inner.lock().unwrap().push("late"));
                let mut evicted = std::pin::pin!(live.evicted());
                let waker = std::task::Waker::noop();
                let polled = evicted
                    .as_mut()
                    .poll(&mut std::task::Context::from_waker(waker));
                assert!(polled.is_pending(), "not all hooks have been told");
                // A panic of a hook is caught: only this tells that it came so far.
                told.lock().unwrap().push("layer");
            }
        };
        let layer = heartbeat().on_evict(hook).build().unwrap();
        let (mut stream, live) = layer.wrap_server(io);
        *handle.lock().unwrap() = Some(live.clone());
        let local = Arc::clone(&told);
        live.on_evict(move |_| local.lock().unwrap().push("local"));
        assert!(poll_read(&mut stream, &wakes, 8).is_pending());
        if kick {
            assert!(live.evict(4000, ""));
        }
        let eviction = timeout(ms(1_000), live.evicted()).await.unwrap();
        assert_eq!(eviction.reason() == DEAD, !kick);
        assert_eq!(*told.lock().unwrap(), ["local", "late", "layer"]);
        assert_eq!(wakes.count(), 1);
        // Somebody who comes late is told as well.
        let late = Arc::clone(&told);
        live.on_evict(move |_| late.lock().unwrap().push("very late"));
        assert_eq!(told.lock().unwrap().len(), 4);
        handle.lock().unwrap().take();
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_come_before_the_transport_goes_even_if_nobody_says_goodbye() {
    type End = fn(Stream, &Peer);
    let ends: [End; 2] = [
        |stream, _| drop(stream),
        |stream, peer| {
            peer.wire().panics = true;
            peer.wake();
            // Stuck, and never coming back.
            tokio::spawn(async move {
                let _stream = stream;
                sleep(ms(1_000)).await;
            });
        },
    ];
    for end in ends {
        let (mut stream, live, peer) = wrapped();
        let there = Arc::new(Mutex::new(None));
        let (seen, wire) = (Arc::clone(&there), peer.clone());
        live.on_evict(move |_| *seen.lock().unwrap() = Some(!wire.is_dropped()));
        assert!(poll_read(&mut stream, &Wakes::new(), 8).is_pending());
        end(stream, &peer);
        sleep(ms(150)).await;
        assert_eq!(*there.lock().unwrap(), Some(true));
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

// Panics, and what is left.

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
        let reason = refused(poll_read(&mut stream, &wakes, 8), ErrorKind::Other);
        assert_eq!(reason, Reason::Transport(ErrorKind::Other));

        let pong = Role::Server.pong(&other_peer.last_ping());
        other_peer.send(&pong);
        sleep(ms(105)).await;
        assert_eq!(other_live.health(), Health::PeerSilent { missed: 0 });
        assert_eq!(other_live.stats().pings_sent(), 2, "the driver goes on");
    }
}

/// A transport that uses its own connection's handle each time it is polled.
struct Curious {
    io: Script,
    live: Arc<OnceLock<Liveness>>,
    asks: fn(&Liveness),
}

impl Curious {
    fn ask(&self) {
        if let Some(live) = self.live.get() {
            (self.asks)(live);
        }
    }
}

impl AsyncRead for Curious {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ask();
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Curious {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.ask();
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ask();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The handler's stream over a [`Curious`] transport, which uses its handle from now on.
fn curious(asks: fn(&Liveness)) -> (LivenessStream<Curious>, Liveness, Peer) {
    let (io, peer) = script();
    let shared = Arc::new(OnceLock::new());
    let io = Curious {
        io,
        live: Arc::clone(&shared),
        asks,
    };
    let (stream, live) = heartbeat().build().unwrap().wrap_server(io);
    assert!(shared.set(live.clone()).is_ok());
    (stream, live, peer)
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_uses_its_own_handle_panics_and_does_not_hang() {
    let questions: [fn(&Liveness); 7] = [
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
    for asks in questions {
        // The handler's polls.
        let (mut stream, live, peer) = curious(asks);
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
        // The driver's.
        let (stream, live, peer) = curious(asks);
        let eviction = timeout(ms(1_000), live.evicted()).await.unwrap();
        assert_eq!(eviction.reason(), Reason::Transport(ErrorKind::Other));
        assert!(peer.is_dropped());
        drop(stream);
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_may_show_its_own_handle_and_use_its_slot() {
    let (mut stream, live, peer) = curious(|live| {
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

/// Panics at every line that is logged.
struct Panics;

impl Subscriber for Panics {
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
async fn a_subscriber_that_panics_keeps_nothing_from_being_done() {
    type End = fn(&Liveness, &Peer);
    let ends: [(End, Reason); 6] = [
        (|_, _| {}, DEAD),
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
                // Not masked as it should be: logged as malformed, or not.
                peer.send(&hello());
                assert!(live.evict(4000, ""));
            },
            Reason::Kicked { code: 4000 },
        ),
    ];
    let _guard = tracing::subscriber::set_default(Panics);
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
        assert_eq!(eviction.expect("told").reason(), reason);
        assert_eq!(recorder.total(), 1, "{reason}");
        assert!(map.lock().unwrap().is_empty(), "{reason}");
        assert!(layer.registry().is_empty(), "{reason}");
        sleep(ms(1_000)).await;
        assert!(peer.is_dropped() && wakes.count() > 0, "{reason}");
        drop(stream);
        timeout(ms(1), layer.registry().wait_idle()).await.unwrap();
        // The driver goes on.
        let pings = other_live.stats().pings_sent();
        other_peer.send(&Role::Server.pong(&other_peer.last_ping()));
        sleep(ms(105)).await;
        assert_eq!(other_live.stats().pings_sent(), pings + 1, "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_task_is_left_and_a_later_connection_finds_a_driver() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    // Handles keep the idle driver, so it is the same one that starts again.
    let mut handles = Vec::new();
    for round in 0..3 {
        assert_eq!(tasks(), 0, "round {round}");
        let (stream, live, _peer) = wrapped();
        let (second, _second_live, _second_peer) = wrapped();
        assert_eq!(tasks(), 1, "one for all of them");
        drop(second);
        sleep(ms(1)).await;
        assert_eq!(tasks(), 1);
        if round == 1 {
            drop(stream);
            sleep(ms(1)).await;
            assert_eq!(live.evicted().await.reason(), Reason::HandlerDropped);
        } else {
            let ended = timeout(ms(1_000), live.evicted()).await;
            assert_eq!(
                ended.expect("nobody drives").reason(),
                DEAD,
                "round {round}"
            );
            sleep(ms(1)).await;
        }
        handles.push(live);
    }
    assert_eq!(tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_late_wake_keeps_no_ended_connection_alive() {
    let session = Arc::new(());
    let (mut stream, live, peer) = wrapped();
    live.set_session(Arc::clone(&session));
    sleep(ms(105)).await;
    // The transport is told to wake the driver, and a socket's reactor may do so at any time.
    assert!(poll_read(&mut stream, &Wakes::new(), 8).is_pending());
    let late = peer.wire().take_reader().expect("somebody reads");
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
fn a_runtime_that_goes_takes_its_connections_along() {
    let layer: HeartbeatLayer = heartbeat().build().unwrap();
    let mut seen = Vec::new();
    for round in 0..3 {
        let runtime = runtime();
        let (told, session) = (Arc::new(Mutex::new(0)), Arc::new(()));
        let (lives, peers): (Vec<_>, Vec<_>) = runtime.block_on(async {
            let mut made = Vec::new();
            for _ in 0..3 {
                let (io, peer) = script();
                let (mut stream, live) = layer.wrap_server(io);
                let told = Arc::clone(&told);
                live.on_evict(move |_| *told.lock().unwrap() += 1);
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
        assert_eq!(*told.lock().unwrap(), 3);
        assert_eq!(lives[0].health(), Health::Ended);
        assert_eq!(layer.registry().len(), 0);
        drop(lives);
        assert_eq!(Arc::strong_count(&session), 1, "round {round}: leaked");
        seen.extend(peers);
    }
}

#[test]
fn a_runtime_that_goes_during_a_closing_handshake_frees_the_transport() {
    let runtime = runtime();
    let (peer, session) = runtime.block_on(async {
        let (mut stream, live, peer) = wrapped();
        let session = Arc::new(());
        live.set_session(Arc::clone(&session));
        tokio::spawn(async move { stream.read_u8().await });
        sleep(ms(10)).await;
        live.evict(4000, "");
        sleep(ms(10)).await;
        assert!(!peer.is_dropped(), "the peer has yet to answer");
        (peer, session)
    });
    drop(runtime);
    assert!(peer.is_dropped(), "nobody can close it any more");
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

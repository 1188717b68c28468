//! Several causes end a connection at the same time: it is announced once, with one reason.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{AcqRel, Acquire};

use super::{Peer, TIME, Wire, read, wire};
use crate::connection::{
    Connection, DrainOrder, ErasedConnection, ErasedRegistry, LayerConfig, LayerHooks, Liveness,
    LivenessStream, OnOpen, Refused, TransportTraits,
};
use crate::driver::Driver;
use crate::eviction::{ConnectionId, Eviction};
use crate::hooks::OnEvict;
use crate::monitor::{CloseFrame, IdlePolicy, Policy, Reason};
use crate::sync::Mutex;
use crate::sync::modelled::{advance, all_done, block_on, check, shut_down, thread};
use crate::wire::Role;

pub(super) const KICKED: Reason = Reason::Kicked { code: 4_000 };

/// Records all announcements of a connection: the hooks and a registry.
#[derive(Default)]
pub(super) struct Announcements {
    /// The layer's hook.
    layer: Mutex<Vec<Reason>>,
    /// The connection's own hooks.
    local: Mutex<Vec<Reason>>,
    /// The set of a registry.
    live: Mutex<Vec<Liveness>>,
    opened: AtomicUsize,
    ended: AtomicUsize,
    /// What counts against the limit, and what counts as present.
    admitted: AtomicUsize,
    present: AtomicUsize,
    /// Evictions that a registry passes on.
    passed_on: Mutex<Vec<Reason>>,
    draining: Mutex<bool>,
    /// Session values that were dropped.
    sessions: Arc<AtomicUsize>,
    /// Open hooks that found an eviction hook called before them.
    late_open_hooks: AtomicUsize,
}

/// A session value that keeps its connection alive while it is in the slot.
struct Session {
    dropped: Arc<AtomicUsize>,
    _live: Liveness,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, AcqRel);
    }
}

struct LayerHook(Arc<Announcements>);

impl OnEvict for LayerHook {
    fn on_evict(&self, eviction: &Eviction) {
        self.0.layer.lock().unwrap().push(eviction.reason());
    }
}

impl OnOpen for LayerHook {
    fn on_open(&self, _: &Liveness) {
        let layer = self.0.layer.lock().unwrap().len();
        let local = self.0.local.lock().unwrap().len();
        if layer + local > 0 {
            self.0.late_open_hooks.fetch_add(1, AcqRel);
        }
    }
}

impl ErasedRegistry for Announcements {
    fn admit(&self) -> Result<(), Refused> {
        self.admit_always();
        Ok(())
    }

    fn admit_always(&self) {
        self.admitted.fetch_add(1, AcqRel);
        self.present.fetch_add(1, AcqRel);
    }

    fn release_permit(&self) {
        self.admitted.fetch_sub(1, AcqRel);
    }

    fn release_presence(&self) {
        self.present.fetch_sub(1, AcqRel);
    }

    fn opened(&self, connection: Arc<dyn ErasedConnection>) {
        self.opened.fetch_add(1, AcqRel);
        assert_eq!(
            self.admitted.load(Acquire),
            1,
            "entered without an admission"
        );
        self.live.lock().unwrap().push(Liveness::new(connection));
    }

    fn call_alarms(&self) {}

    fn drain_order(&self) -> Option<DrainOrder> {
        let frame = CloseFrame {
            code: 1001,
            reason: "".into(),
        };
        let draining = *self.draining.lock().unwrap();
        draining.then_some((Reason::Drained, frame))
    }

    fn ended(&self, id: ConnectionId) {
        self.ended.fetch_add(1, AcqRel);
        let mut live = self.live.lock().unwrap();
        let index = live.iter().position(|live| live.id() == id);
        let ended = index.map(|index| live.swap_remove(index));
        drop(live);
        drop(ended);
    }

    fn evicted(&self, eviction: &Eviction) {
        assert_eq!(
            self.admitted.load(Acquire),
            0,
            "it still counts against the limit"
        );
        self.passed_on.lock().unwrap().push(eviction.reason());
    }

    fn draining(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(pending())
    }
}

impl Announcements {
    fn session(&self, live: &Liveness) -> Session {
        Session {
            dropped: Arc::clone(&self.sessions),
            _live: live.clone(),
        }
    }

    fn add_local_hook(self: &Arc<Self>, live: &Liveness) {
        let announced = Arc::clone(self);
        live.on_evict(move |eviction| announced.local.lock().unwrap().push(eviction.reason()));
    }

    /// The reason of the end, which was announced once to each, including `locals` hooks of the
    /// connection.
    pub(super) fn end(&self, locals: usize) -> Reason {
        let layer = self.layer.lock().unwrap().clone();
        assert_eq!(layer.len(), 1, "the layer's hook: {layer:?}");
        let local = self.local.lock().unwrap().clone();
        assert_eq!(local, vec![layer[0]; locals], "the connection's own hooks");
        assert!(self.live.lock().unwrap().is_empty(), "still in the set");
        assert_eq!(*self.passed_on.lock().unwrap(), layer);
        assert_eq!(self.admitted.load(Acquire), 0);
        layer[0]
    }
}

/// A layer that limits the lifetime of a connection to `TIME`.
fn layer(announced: &Arc<Announcements>) -> LayerConfig {
    let policy = Policy {
        heartbeat: None,
        idle: Some(Arc::new(IdlePolicy {
            max_lifetime: Some(TIME),
            max_lifetime_jitter: 0.0,
            ..IdlePolicy::default()
        })),
    };
    let registry = Arc::clone(announced) as Arc<dyn ErasedRegistry>;
    let hook = Arc::new(LayerHook(Arc::clone(announced)));
    let hooks = LayerHooks {
        hooks: vec![hook],
        ..LayerHooks::default()
    };
    LayerConfig::new(policy, Some(registry), hooks)
}

/// A layer that only has hooks.
fn layer_with_open_hook(announced: &Arc<Announcements>) -> LayerConfig {
    let hook = Arc::new(LayerHook(Arc::clone(announced)));
    let hooks = LayerHooks {
        open_hooks: vec![hook.clone()],
        hooks: vec![hook],
        ..LayerHooks::default()
    };
    LayerConfig::new(Policy::default(), None, hooks)
}

pub(super) fn open() -> (LivenessStream<Wire>, Liveness, Peer, Arc<Announcements>) {
    let announced = Arc::new(Announcements::default());
    let (wire, peer) = wire(usize::MAX);
    let (stream, live) = LivenessStream::wrap(wire, Role::Server, &layer(&announced));
    (stream, live, peer, announced)
}

/// Ends the upgrade of a connection whose handshake was accepted.
fn upgrade(connection: Arc<Connection<Wire>>, wire: Wire) -> Option<LivenessStream<Wire>> {
    LivenessStream::open(connection, wire, &Driver::expect_current())
}

pub(super) fn assert_tracked_once(announced: &Announcements) {
    assert_eq!(
        (
            announced.opened.load(Acquire),
            announced.ended.load(Acquire)
        ),
        (1, 1)
    );
}

#[test]
fn loom_one_end_for_all_causes_at_once() {
    check("eof, kick, verdict and drop", 3, || {
        let (mut stream, live, peer, announced) = open();
        live.set_session(announced.session(&live));
        announced.add_local_hook(&live);
        peer.end();
        thread(move || {
            let read = read(&mut stream);
            assert!(read.is_err() || read.is_ok_and(|bytes| bytes.is_empty()));
        });
        let kicked = Arc::new(AtomicUsize::new(0));
        let (kick, recorded) = (Arc::clone(&kicked), Arc::clone(&announced));
        thread(move || {
            if live.evict(4_000, "") {
                kick.fetch_add(1, AcqRel);
                assert_eq!(recorded.end(1), KICKED, "all hooks have returned");
            }
            assert!(!live.evict(4_000, ""));
        });
        advance(TIME);
        all_done();
        let reason = announced.end(1);
        assert_eq!(reason == KICKED, kicked.load(Acquire) == 1);
        let possible = [KICKED, Reason::PeerVanished, Reason::MaxLifetime];
        assert!(possible.contains(&reason), "{reason:?}");
        assert_tracked_once(&announced);
        assert_eq!(announced.sessions.load(Acquire), 1);
        assert!(peer.is_transport_dropped());
    });
}

#[test]
fn loom_an_eviction_wakes_a_pending_read() {
    check("verdict and kick, while the handler reads", 3, || {
        let (mut stream, live, peer, announced) = open();
        // The peer sends no end, so only the eviction can wake it.
        thread(move || assert!(read(&mut stream).is_err()));
        let answering = peer.clone();
        thread(move || {
            live.evict(4_000, "");
            answering.end();
        });
        advance(TIME);
        all_done();
        assert!([KICKED, Reason::MaxLifetime].contains(&announced.end(0)));
        assert_tracked_once(&announced);
        assert!(peer.is_transport_dropped());
    });
}

#[test]
fn loom_a_task_that_awaits_the_end_is_woken() {
    check("evicted() and the end", 3, || {
        let (stream, live, _, announced) = open();
        live.set_session(announced.session(&live));
        announced.add_local_hook(&live);
        let (awaited, recorded) = (live.clone(), Arc::clone(&announced));
        thread(move || {
            let eviction = block_on(awaited.evicted());
            assert_eq!(
                eviction.reason(),
                recorded.end(1),
                "all hooks have returned"
            );
        });
        thread(move || drop(stream));
        all_done();
        assert_eq!(announced.end(1), Reason::HandlerDropped);
        // The slot is empty although a handle exists.
        assert!(live.session::<Session>().is_none());
        assert_eq!(announced.sessions.load(Acquire), 1);
    });
}

#[test]
fn loom_a_hook_added_at_the_end_is_called_once() {
    check("on_evict and the end", 3, || {
        let (stream, live, peer, announced) = open();
        peer.end();
        let (kicker, recorded) = (live.clone(), Arc::clone(&announced));
        thread(move || recorded.add_local_hook(&live));
        thread(move || {
            kicker.evict(4_000, "");
        });
        drop(stream);
        all_done();
        announced.end(1);
        assert_tracked_once(&announced);
    });
}

#[test]
fn loom_a_session_set_at_the_end_is_dropped_once() {
    check("set_session and the end", 3, || {
        let (stream, live, _, announced) = open();
        let (setter, own) = (live.clone(), Arc::clone(&announced));
        thread(move || {
            for _ in 0..2 {
                drop(setter.set_session(own.session(&setter)));
            }
        });
        thread(move || drop(stream));
        all_done();
        assert!(live.session::<Session>().is_none());
        assert_eq!(announced.sessions.load(Acquire), 2);
        announced.end(0);
    });
}

#[test]
fn loom_an_eviction_during_the_upgrade() {
    check("kick and upgrade", 3, || {
        let announced = Arc::new(Announcements::default());
        let (wire, peer) = wire(usize::MAX);
        peer.end();
        let connection = Connection::new(Role::Server, TransportTraits::FOREIGN);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        let layer = layer(&announced);
        live.attach(&layer, layer.admit().unwrap());
        announced.add_local_hook(&live);
        thread(move || assert!(live.evict(4_000, "")));
        let stream = Arc::new(Mutex::new(None));
        let opened = Arc::clone(&stream);
        thread(move || *opened.lock().unwrap() = upgrade(connection, wire));
        all_done();
        assert_eq!(announced.end(1), KICKED);
        assert!(peer.is_transport_dropped());
        drop(stream);
    });
}

#[test]
fn loom_eviction_hooks_follow_open_hooks() {
    check("kick and upgrade, with an open hook", 3, || {
        let announced = Arc::new(Announcements::default());
        let (wire, peer) = wire(usize::MAX);
        peer.end();
        let connection = Connection::new(Role::Server, TransportTraits::FOREIGN);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        live.attach(&layer_with_open_hook(&announced), None);
        announced.add_local_hook(&live);
        thread(move || assert!(live.evict(4_000, "")));
        let stream = Arc::new(Mutex::new(None));
        let opened = Arc::clone(&stream);
        thread(move || *opened.lock().unwrap() = upgrade(connection, wire));
        all_done();
        assert_eq!(announced.late_open_hooks.load(Acquire), 0);
        assert_eq!(*announced.local.lock().unwrap(), [KICKED]);
        assert_eq!(*announced.layer.lock().unwrap(), [KICKED]);
        assert!(peer.is_transport_dropped());
        drop(stream);
    });
}

#[test]
fn loom_an_admission_is_given_back_once() {
    check("kick, upgrade and peer's end", 3, || {
        let announced = Arc::new(Announcements::default());
        let (wire, peer) = wire(usize::MAX);
        peer.end();
        let connection = Connection::new(Role::Server, TransportTraits::FOREIGN);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        let layer = layer(&announced);
        live.attach(&layer, layer.admit().unwrap());
        thread(move || {
            live.evict(4_000, "");
        });
        thread(move || drop(upgrade(connection, wire)));
        all_done();
        announced.end(0);
        assert_eq!(announced.ended.load(Acquire), 1);
        assert_eq!(announced.present.load(Acquire), 0);
        assert!(peer.is_transport_dropped());
    });
}

#[test]
fn loom_no_connection_escapes_a_drain() {
    check("upgrade and drain", 3, || {
        let announced = Arc::new(Announcements::default());
        let (wire, peer) = wire(usize::MAX);
        peer.end();
        let connection = Connection::new(Role::Server, TransportTraits::FOREIGN);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        let layer = layer(&announced);
        live.attach(&layer, layer.admit().unwrap());
        let drain = Arc::clone(&announced);
        thread(move || {
            *drain.draining.lock().unwrap() = true;
            let found: Vec<_> = drain.live.lock().unwrap().clone();
            for live in found {
                live.evict(1001, "");
            }
        });
        // The handler keeps its stream, if it gets one, and does nothing.
        let stream = upgrade(connection, wire);
        all_done();
        let reason = announced.end(0);
        let possible = [Reason::Drained, Reason::Kicked { code: 1001 }];
        assert!(possible.contains(&reason), "{reason:?}");
        assert_eq!(announced.present.load(Acquire), 0);
        drop(stream);
    });
}

#[test]
fn loom_a_runtime_shutdown_is_one_end() {
    check("runtime shutdown, kick and drop", 3, || {
        let (stream, live, peer, announced) = open();
        announced.add_local_hook(&live);
        thread(move || drop(stream));
        thread(move || {
            live.evict(4_000, "");
        });
        shut_down();
        all_done();
        assert!([KICKED, Reason::HandlerDropped].contains(&announced.end(1)));
        assert_tracked_once(&announced);
        assert_eq!(announced.present.load(Acquire), 0);
        assert!(peer.is_transport_dropped());
    });
}

#[test]
fn loom_a_runtime_shutdown_wakes_the_reader_of_a_new_stream() {
    check("runtime shutdown, open and read", 3, || {
        let announced = Arc::new(Announcements::default());
        let (wire, peer) = wire(usize::MAX);
        let layer = layer(&announced);
        thread(move || {
            let (mut stream, _live) = LivenessStream::wrap(wire, Role::Server, &layer);
            assert!(read(&mut stream).is_err());
        });
        shut_down();
        all_done();
        assert_eq!(announced.end(0), Reason::HandlerDropped);
        assert_tracked_once(&announced);
        assert_eq!(announced.present.load(Acquire), 0);
        assert!(peer.is_transport_dropped());
    });
}

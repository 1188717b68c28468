//! However many notice the end of a connection at once, everybody is told of it once, and the same.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{AcqRel, Acquire};

use super::{Peer, TIME, Wire, read, wire};
use crate::connection::{
    Connection, ErasedConnection, LayerConfig, Liveness, LivenessStream, Refused, Tracker,
    TransportTraits,
};
use crate::eviction::{ConnectionId, Eviction};
use crate::hooks::OnEvict;
use crate::monitor::{CloseFrame, IdlePolicy, Policy, Reason};
use crate::sync::Mutex;
use crate::sync::modelled::{advance, all_done, block_on, check, shut_down, thread};
use crate::wire::Role;

pub(super) const KICKED: Reason = Reason::Kicked { code: 4_000 };

/// Everybody who is told of a connection.
#[derive(Default)]
pub(super) struct Told {
    /// The layer's hook.
    layer: Mutex<Vec<Reason>>,
    /// Hooks of the connection's own.
    local: Mutex<Vec<Reason>>,
    /// What a registry holds.
    live: Mutex<Vec<Liveness>>,
    opened: AtomicUsize,
    ended: AtomicUsize,
    /// Places that are taken, and connections that are not wholly over.
    admitted: AtomicUsize,
    present: AtomicUsize,
    /// What a registry passes on.
    passed_on: Mutex<Vec<Reason>>,
    draining: Mutex<bool>,
    /// Session values that were dropped.
    sessions: Arc<AtomicUsize>,
}

/// What the handler leaves in the slot: it keeps the connection from going by itself.
struct Session {
    dropped: Arc<AtomicUsize>,
    _live: Liveness,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, AcqRel);
    }
}

struct Hook(Arc<Told>);

impl OnEvict for Hook {
    fn on_evict(&self, eviction: &Eviction) {
        self.0.layer.lock().unwrap().push(eviction.reason());
    }
}

impl Tracker for Told {
    fn admit(&self) -> Result<(), Refused> {
        self.take_in();
        Ok(())
    }

    fn take_in(&self) {
        self.admitted.fetch_add(1, AcqRel);
        self.present.fetch_add(1, AcqRel);
    }

    fn vacated(&self) {
        self.admitted.fetch_sub(1, AcqRel);
    }

    fn left(&self) {
        self.present.fetch_sub(1, AcqRel);
    }

    fn opened(&self, connection: Arc<dyn ErasedConnection>) {
        self.opened.fetch_add(1, AcqRel);
        assert_eq!(self.admitted.load(Acquire), 1, "entered without a place");
        self.live.lock().unwrap().push(Liveness::new(connection));
    }

    fn announce(&self) {}

    fn farewell(&self) -> Option<(Reason, CloseFrame)> {
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
        let place = live.iter().position(|live| live.id() == id);
        let ended = place.map(|place| live.swap_remove(place));
        drop(live);
        drop(ended);
    }

    fn evicted(&self, eviction: &Eviction) {
        assert_eq!(
            self.admitted.load(Acquire),
            0,
            "the place was not given back"
        );
        self.passed_on.lock().unwrap().push(eviction.reason());
    }

    fn draining(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(pending())
    }
}

impl Told {
    fn session(&self, live: &Liveness) -> Session {
        Session {
            dropped: Arc::clone(&self.sessions),
            _live: live.clone(),
        }
    }

    fn hear(self: &Arc<Self>, live: &Liveness) {
        let told = Arc::clone(self);
        live.on_evict(move |eviction| told.local.lock().unwrap().push(eviction.reason()));
    }

    /// The end, of which everybody was told, each of `locals` hooks once.
    pub(super) fn end(&self, locals: usize) -> Reason {
        let layer = self.layer.lock().unwrap().clone();
        assert_eq!(layer.len(), 1, "the layer's hook: {layer:?}");
        let local = self.local.lock().unwrap().clone();
        assert_eq!(local, vec![layer[0]; locals], "the connection's own hooks");
        assert!(self.live.lock().unwrap().is_empty(), "still entered");
        assert_eq!(*self.passed_on.lock().unwrap(), layer);
        assert_eq!(self.admitted.load(Acquire), 0);
        layer[0]
    }
}

/// A layer under which the lifetime of a connection is `TIME`.
fn layer(told: &Arc<Told>) -> LayerConfig {
    let policy = Policy {
        heartbeat: None,
        idle: Some(Arc::new(IdlePolicy {
            max_lifetime: Some(TIME),
            ..IdlePolicy::default()
        })),
    };
    let tracker = Arc::clone(told) as Arc<dyn Tracker>;
    let hook = Arc::new(Hook(Arc::clone(told)));
    LayerConfig::new(policy, Some(tracker), vec![hook], Vec::new())
}

pub(super) fn open() -> (LivenessStream<Wire>, Liveness, Peer, Arc<Told>) {
    let told = Arc::new(Told::default());
    let (wire, peer) = wire(usize::MAX);
    let (stream, live) = LivenessStream::wrap(wire, Role::Server, &layer(&told));
    (stream, live, peer, told)
}

pub(super) fn assert_tracked_once(told: &Told) {
    assert_eq!(
        (told.opened.load(Acquire), told.ended.load(Acquire)),
        (1, 1)
    );
}

#[test]
fn loom_one_end_whoever_notices_it() {
    check("eof, kick, verdict and drop", 3, || {
        let (mut stream, live, peer, told) = open();
        live.set_session(told.session(&live));
        told.hear(&live);
        peer.end();
        thread(move || {
            let read = read(&mut stream);
            assert!(read.is_err() || read.is_ok_and(|bytes| bytes.is_empty()));
        });
        let kicked = Arc::new(AtomicUsize::new(0));
        let (kick, heard) = (Arc::clone(&kicked), Arc::clone(&told));
        thread(move || {
            if live.evict(4_000, "") {
                kick.fetch_add(1, AcqRel);
                assert_eq!(heard.end(1), KICKED, "all hooks have returned");
            }
            assert!(!live.evict(4_000, ""));
        });
        advance(TIME);
        all_done();
        let reason = told.end(1);
        assert_eq!(reason == KICKED, kicked.load(Acquire) == 1);
        let possible = [KICKED, Reason::PeerVanished, Reason::MaxLifetime];
        assert!(possible.contains(&reason), "{reason:?}");
        assert_tracked_once(&told);
        assert_eq!(told.sessions.load(Acquire), 1);
        assert!(peer.has_lost_the_transport());
    });
}

#[test]
fn loom_the_driver_takes_a_silent_peer_from_a_waiting_handler() {
    check("verdict and kick, while the handler reads", 3, || {
        let (mut stream, live, peer, told) = open();
        // It gets no end from the peer, so it is woken by the eviction or never.
        thread(move || assert!(read(&mut stream).is_err()));
        let answering = peer.clone();
        thread(move || {
            live.evict(4_000, "");
            answering.end();
        });
        advance(TIME);
        all_done();
        assert!([KICKED, Reason::MaxLifetime].contains(&told.end(0)));
        assert_tracked_once(&told);
        assert!(peer.has_lost_the_transport());
    });
}

#[test]
fn loom_whoever_awaits_the_end_sees_it() {
    check("evicted() and the end", 3, || {
        let (stream, live, _, told) = open();
        live.set_session(told.session(&live));
        told.hear(&live);
        let (awaited, heard) = (live.clone(), Arc::clone(&told));
        thread(move || {
            let eviction = block_on(awaited.evicted());
            assert_eq!(eviction.reason(), heard.end(1), "all hooks have returned");
        });
        thread(move || drop(stream));
        all_done();
        assert_eq!(told.end(1), Reason::HandlerDropped);
        // The slot is empty, though there is still a handle.
        assert!(live.session::<Session>().is_none());
        assert_eq!(told.sessions.load(Acquire), 1);
    });
}

#[test]
fn loom_a_hook_that_comes_late_is_called_once() {
    check("on_evict and the end", 3, || {
        let (stream, live, peer, told) = open();
        peer.end();
        let (kicker, heard) = (live.clone(), Arc::clone(&told));
        thread(move || heard.hear(&live));
        thread(move || {
            kicker.evict(4_000, "");
        });
        drop(stream);
        all_done();
        told.end(1);
        assert_tracked_once(&told);
    });
}

#[test]
fn loom_a_session_that_comes_late_is_dropped_once() {
    check("set_session and the end", 3, || {
        let (stream, live, _, told) = open();
        let (setter, own) = (live.clone(), Arc::clone(&told));
        thread(move || {
            for _ in 0..2 {
                drop(setter.set_session(own.session(&setter)));
            }
        });
        thread(move || drop(stream));
        all_done();
        assert!(live.session::<Session>().is_none());
        assert_eq!(told.sessions.load(Acquire), 2);
        told.end(0);
    });
}

#[test]
fn loom_an_end_before_the_upgrade_is_complete() {
    check("kick and upgrade", 3, || {
        let told = Arc::new(Told::default());
        let (wire, peer) = wire(usize::MAX);
        peer.end();
        let connection = Connection::new(Role::Server, TransportTraits::FOREIGN);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        let layer = layer(&told);
        live.attach(&layer, layer.admit().unwrap());
        told.hear(&live);
        thread(move || assert!(live.evict(4_000, "")));
        let stream = Arc::new(Mutex::new(None));
        let opened = Arc::clone(&stream);
        thread(move || *opened.lock().unwrap() = LivenessStream::open(connection, wire));
        all_done();
        assert_eq!(told.end(1), KICKED);
        assert!(peer.has_lost_the_transport());
        drop(stream);
    });
}

#[test]
fn loom_a_place_is_given_back_once() {
    check("kick, upgrade and peer's end", 3, || {
        let told = Arc::new(Told::default());
        let (wire, peer) = wire(usize::MAX);
        peer.end();
        let connection = Connection::new(Role::Server, TransportTraits::FOREIGN);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        let layer = layer(&told);
        live.attach(&layer, layer.admit().unwrap());
        thread(move || {
            live.evict(4_000, "");
        });
        thread(move || drop(LivenessStream::open(connection, wire)));
        all_done();
        told.end(0);
        assert_eq!(told.ended.load(Acquire), 1);
        assert_eq!(told.present.load(Acquire), 0);
        assert!(peer.has_lost_the_transport());
    });
}

#[test]
fn loom_nobody_slips_past_a_drain() {
    check("upgrade and drain", 3, || {
        let told = Arc::new(Told::default());
        let (wire, peer) = wire(usize::MAX);
        peer.end();
        let connection = Connection::new(Role::Server, TransportTraits::FOREIGN);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        let layer = layer(&told);
        live.attach(&layer, layer.admit().unwrap());
        let drain = Arc::clone(&told);
        thread(move || {
            *drain.draining.lock().unwrap() = true;
            let found: Vec<_> = drain.live.lock().unwrap().clone();
            for live in found {
                live.evict(1001, "");
            }
        });
        // The handler keeps its stream, if it gets one, and does nothing.
        let stream = LivenessStream::open(connection, wire);
        all_done();
        let reason = told.end(0);
        let possible = [Reason::Drained, Reason::Kicked { code: 1001 }];
        assert!(possible.contains(&reason), "{reason:?}");
        assert_eq!(told.present.load(Acquire), 0);
        drop(stream);
    });
}

#[test]
fn loom_a_runtime_that_goes_is_one_end() {
    check("the runtime goes, kick and drop", 3, || {
        let (stream, live, peer, told) = open();
        told.hear(&live);
        thread(move || drop(stream));
        thread(move || {
            live.evict(4_000, "");
        });
        shut_down();
        all_done();
        assert!([KICKED, Reason::HandlerDropped].contains(&told.end(1)));
        assert_tracked_once(&told);
        assert_eq!(told.present.load(Acquire), 0);
        assert!(peer.has_lost_the_transport());
    });
}

#[test]
fn loom_a_runtime_that_goes_wakes_the_reader_of_a_stream_that_just_opens() {
    check("the runtime goes, open and read", 3, || {
        let told = Arc::new(Told::default());
        let (wire, peer) = wire(usize::MAX);
        let layer = layer(&told);
        thread(move || {
            let (mut stream, _live) = LivenessStream::wrap(wire, Role::Server, &layer);
            assert!(read(&mut stream).is_err());
        });
        shut_down();
        all_done();
        assert_eq!(told.end(0), Reason::HandlerDropped);
        assert_tracked_once(&told);
        assert_eq!(told.present.load(Acquire), 0);
        assert!(peer.has_lost_the_transport());
    });
}

//! Sessions that outlive their connection: each is resumed or ends, once.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::{Builder, Handle};
use tokio::time::sleep;
use tower_ws_liveness::{
    ConnectionId, Drain, Health, HeartbeatLayer, Linger, LingerBuilder, Liveness, LivenessStream,
    Reason, RegisterError, Registered, ReplacePolicy, Seat, SeatState, SessionEnd, SessionEndCause,
    SessionMap,
};

use super::maps::{Census, Map, MutexMap, Session, with_every_map};

with_every_map![
    a_seat_lingers_and_expires,
    a_lingering_session_is_resumed,
    the_session_of_an_open_connection_is_resumed,
    a_final_end_removes_the_seat,
    a_registration_without_grace_ends_the_session,
    unregister_ends_the_session,
    a_seat_that_the_application_removed_expires,
];

const GRACE: Duration = Duration::from_secs(30);

/// The latest end of the grace period: a 32nd of it, at most 256 ms.
const LATEST: Duration = Duration::from_millis(30_000 + 256);

type Stream = LivenessStream<DuplexStream>;
type Ends = Arc<Mutex<Vec<SessionEnd<String, Session>>>>;

/// A map and its lingering seats, and the ends of its sessions.
struct Scene<M> {
    map: Arc<M>,
    linger: Linger<String, Session>,
    ends: Ends,
    layer: HeartbeatLayer,
}

impl<M: Map> Scene<M> {
    fn new() -> Self {
        Self::with(|builder| builder)
    }

    fn with(
        configure: impl FnOnce(LingerBuilder<String, Session>) -> LingerBuilder<String, Session>,
    ) -> Self {
        let ends = Ends::default();
        let (hook, hooks_map) = (Arc::clone(&ends), Arc::new(M::default()));
        let map = Arc::clone(&hooks_map);
        let builder = Linger::builder(GRACE).on_session_end(move |end| {
            // The seat has left the map, and the hook may use the map.
            assert_ne!(hooks_map.holders().get(end.key()), Some(&end.connection()));
            hook.lock().unwrap().push(end.clone());
        });
        Self {
            map,
            linger: configure(builder).build().unwrap(),
            ends,
            layer: HeartbeatLayer::builder()
                .interval(Duration::from_secs(3600))
                .build()
                .unwrap(),
        }
    }

    fn connect(&self) -> (Stream, Liveness) {
        self.layer.wrap_server(duplex(64).0)
    }

    fn register(&self, live: &Liveness, value: Session) -> Registered<Session> {
        let registered = live.register_lingering(&self.map, alice(), value, &self.linger);
        registered.unwrap()
    }

    fn state(&self) -> Option<SeatState> {
        Some(self.map.seat("alice")?.state())
    }

    /// The last connection, its reason, and the cause of each.
    fn ends(&self) -> Vec<(ConnectionId, Option<Reason>, SessionEndCause)> {
        let ends = self.ends.lock().unwrap();
        let all = ends.iter().map(|end| {
            assert_eq!(end.key(), "alice");
            (end.connection(), end.reason(), end.cause())
        });
        all.collect()
    }
}

fn alice() -> String {
    "alice".to_owned()
}

async fn a_seat_lingers_and_expires<M: Map>() {
    let (scene, census) = (Scene::<M>::new(), Census::default());
    let (stream, live) = scene.connect();
    let registered = scene.register(&live, census.session("first"));
    assert!(registered.resumed().is_none());
    assert_eq!(registered.seat().state(), SeatState::Connected);
    assert_eq!(scene.state(), Some(SeatState::Connected));
    drop(registered);
    let seats = Arc::new(Mutex::new(None));
    let hook = Arc::clone(&seats);
    live.on_evict(move |ev| {
        *hook.lock().unwrap() = Some(ev.seats::<String, Session>().count());
    });
    drop(stream);
    assert_eq!(*seats.lock().unwrap(), Some(0), "the seat is still in use");
    let mut away = Duration::ZERO;
    for wait in [0, 10_000, 19_999] {
        let wait = Duration::from_millis(wait);
        sleep(wait).await;
        away += wait;
        let reason = Reason::HandlerDropped;
        assert_eq!(scene.state(), Some(SeatState::Lingering { reason, away }));
    }
    assert_eq!((scene.linger.lingering(), scene.ends()), (1, vec![]));
    sleep(LATEST - away).await;
    assert_eq!(scene.state(), None);
    let expected = (
        live.id(),
        Some(Reason::HandlerDropped),
        SessionEndCause::Expired,
    );
    assert_eq!(scene.ends(), [expected]);
    assert_eq!(scene.linger.lingering(), 0);
    let away = scene.ends.lock().unwrap()[0].away();
    assert!((GRACE..=LATEST).contains(&away), "{away:?}");

    // The value goes with the last reference to it.
    scene.ends.lock().unwrap().clear();
    drop(live);
    if M::FREES_AT_ONCE {
        assert_eq!((census.created(), census.dropped()), (1, 1));
    }
    // The driver's task ends within two seconds after the last seat.
    sleep(Duration::from_millis(2_002)).await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
}

async fn a_lingering_session_is_resumed<M: Map>() {
    let (scene, census) = (Scene::<M>::new(), Census::default());
    let (stream, first) = scene.connect();
    let before = scene.register(&first, census.session("first")).into_seat();
    drop(stream);
    sleep(Duration::from_secs(10)).await;

    let (stream, second) = scene.connect();
    let registered = scene.register(&second, census.session("second"));
    assert_eq!(census.dropped(), 1, "the unused value");
    let resumed = *registered.resumed().expect("resumed");
    assert_eq!(resumed.connection(), first.id());
    assert_eq!(resumed.reason(), Reason::HandlerDropped);
    assert_eq!(resumed.away(), Duration::from_secs(10));
    assert_eq!(registered.seat().name, "first");
    assert!(std::ptr::eq(&**registered.seat(), &*before));
    assert_eq!(registered.seat().id(), second.id());
    assert_eq!(before.state(), SeatState::Left);
    assert_eq!(scene.state(), Some(SeatState::Connected));
    // The first grace period is over and ends nothing.
    sleep(LATEST).await;
    assert_eq!(scene.map.holders(), [(alice(), second.id())].into());
    assert!(scene.ends().is_empty());

    // The second one runs from the second end.
    drop(stream);
    sleep(Duration::from_secs(29)).await;
    assert!(matches!(scene.state(), Some(SeatState::Lingering { .. })));
    sleep(LATEST).await;
    let ends = scene.ends();
    assert_eq!(ends.len(), 1, "{ends:?}");
    assert_eq!(
        (ends[0].0, ends[0].2),
        (second.id(), SessionEndCause::Expired)
    );
}

async fn the_session_of_an_open_connection_is_resumed<M: Map>() {
    let (scene, census) = (Scene::<M>::new(), Census::default());
    let (_old_stream, old) = scene.connect();
    drop(scene.register(&old, census.session("first")));
    let (new_stream, new) = scene.connect();
    let registered = scene.register(&new, census.session("second"));
    let resumed = *registered.resumed().expect("resumed");
    assert_eq!(
        (resumed.connection(), resumed.reason()),
        (old.id(), Reason::Replaced)
    );
    assert_eq!(resumed.away(), Duration::ZERO);
    assert_eq!(registered.seat().name, "first");
    assert_eq!(old.evicted().await.reason(), Reason::Replaced);
    assert!(scene.ends().is_empty());
    assert_eq!(scene.map.holders(), [(alice(), new.id())].into());

    // Its own seat is resumed too.
    let again = scene.register(&new, census.session("third"));
    assert_eq!(again.seat().name, "first");
    assert_eq!(
        again.resumed().map(|resumed| resumed.connection()),
        Some(new.id())
    );
    drop(new_stream);
    assert!(matches!(scene.state(), Some(SeatState::Lingering { .. })));
    assert_eq!(scene.linger.lingering(), 1);
    sleep(LATEST).await;
    assert_eq!(scene.ends().len(), 1);
}

async fn a_final_end_removes_the_seat<M: Map>() {
    let (scene, census) = (Scene::<M>::new(), Census::default());
    let (_stream, live) = scene.connect();
    drop(scene.register(&live, census.session("first")));
    let order = Arc::new(Mutex::new(Vec::new()));
    let (hook, ends) = (Arc::clone(&order), Arc::clone(&scene.ends));
    live.on_evict(move |ev| {
        let seats = ev.seats::<String, Session>().count();
        hook.lock()
            .unwrap()
            .push((seats, ends.lock().unwrap().len()));
    });
    live.evict(4000, "kicked");
    // The eviction's hook is called first, and finds the seat.
    assert_eq!(*order.lock().unwrap(), [(1, 0)]);
    let reason = Some(Reason::Kicked { code: 4000 });
    assert_eq!(
        scene.ends(),
        [(live.id(), reason, SessionEndCause::ConnectionEnded)]
    );
    assert_eq!((scene.state(), scene.linger.lingering()), (None, 0));

    // Nothing is registered after the end.
    let late = live.register_lingering(&scene.map, alice(), census.session("late"), &scene.linger);
    assert!(matches!(late, Err(RegisterError::Ended { .. })), "{late:?}");
    drop(late);
    assert_eq!((scene.state(), scene.ends().len()), (None, 1));
}

async fn a_registration_without_grace_ends_the_session<M: Map>() {
    for lingers in [true, false] {
        let (scene, census) = (Scene::<M>::new(), Census::default());
        let (stream, old) = scene.connect();
        drop(scene.register(&old, census.session("first")));
        let _open = (!lingers).then_some(stream);
        let (_stream, new) = scene.connect();
        let previous = new.register(&scene.map, alice(), census.session("second"));
        assert_eq!(previous.unwrap().unwrap().state(), SeatState::Left);
        let seat = scene.map.seat("alice").unwrap();
        assert_eq!(
            (&*seat.name, seat.state()),
            ("second", SeatState::Connected)
        );
        let ends = scene.ends();
        assert_eq!(ends.len(), 1, "{ends:?}");
        let expected = match lingers {
            true => (Some(Reason::HandlerDropped), SessionEndCause::Replaced),
            // Its connection was open.
            false => (None, SessionEndCause::Replaced),
        };
        assert_eq!((ends[0].1, ends[0].2), expected);
        sleep(LATEST).await;
        assert_eq!((scene.ends().len(), scene.linger.lingering()), (1, 0));
    }
}

async fn unregister_ends_the_session<M: Map>() {
    for lingers in [true, false] {
        let (scene, census) = (Scene::<M>::new(), Census::default());
        let (stream, live) = scene.connect();
        drop(scene.register(&live, census.session("first")));
        let _open = (!lingers).then_some(stream);
        let seat = live.unregister(&scene.map, &alice()).expect("its seat");
        assert_eq!(seat.state(), SeatState::Left);
        let reason = lingers.then_some(Reason::HandlerDropped);
        assert_eq!(
            scene.ends(),
            [(live.id(), reason, SessionEndCause::Unregistered)]
        );
        assert_eq!((scene.state(), scene.linger.lingering()), (None, 0));
        sleep(LATEST).await;
        assert_eq!(scene.ends().len(), 1);
    }
}

async fn a_seat_that_the_application_removed_expires<M: Map>() {
    let (scene, census) = (Scene::<M>::new(), Census::default());
    let (stream, first) = scene.connect();
    drop(scene.register(&first, census.session("first")));
    drop(stream);
    scene.map.remove_by_hand("alice");
    let (_stream, second) = scene.connect();
    let registered = scene.register(&second, census.session("second"));
    assert!(registered.resumed().is_none(), "there was no seat");
    sleep(LATEST).await;
    let ends = scene.ends();
    assert_eq!(ends.len(), 1, "{ends:?}");
    assert_eq!(
        (ends[0].0, ends[0].2),
        (first.id(), SessionEndCause::Expired)
    );
    assert_eq!(scene.map.holders(), [(alice(), second.id())].into());
}

#[tokio::test(start_paused = true)]
async fn the_longest_lingering_seat_makes_room() {
    let scene = Scene::<MutexMap>::with(|builder| builder.capacity(2));
    let census = Census::default();
    for name in ["a", "b", "c", "d"] {
        let (_stream, live) = scene.connect();
        let session = census.session(name);
        let registered =
            live.register_lingering(&scene.map, name.to_owned(), session, &scene.linger);
        drop(registered.unwrap());
    }
    let ends = scene.ends.lock().unwrap();
    let ended = ends.iter().map(|end| (end.key().as_str(), end.cause()));
    let expected = ["a", "b"].map(|name| (name, SessionEndCause::OverCapacity));
    assert_eq!(ended.collect::<Vec<_>>(), expected);
    let left: Vec<_> = scene.map.holders().into_keys().collect();
    assert_eq!(left, ["c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn a_closed_linger_keeps_no_seat() {
    for hands_over in [true, false] {
        let (scene, census) = (Scene::<MutexMap>::new(), Census::default());
        let (stream, live) = scene.connect();
        drop(scene.register(&live, census.session("first")));
        drop(stream);
        sleep(Duration::from_secs(1)).await;
        if hands_over {
            let sessions = scene.linger.hand_over();
            assert_eq!(sessions.len(), 1);
            assert_eq!(
                (sessions[0].key(), sessions[0].away().as_secs()),
                (&alice(), 1)
            );
            assert_eq!(sessions[0].cause(), SessionEndCause::Closed);
            assert!(scene.ends().is_empty(), "no hook");
        } else {
            assert_eq!(scene.linger.close(), 1);
            let reason = Some(Reason::HandlerDropped);
            assert_eq!(scene.ends(), [(live.id(), reason, SessionEndCause::Closed)]);
        }
        assert_eq!(scene.state(), None);

        // A session can still begin, and ends with its connection.
        scene.ends.lock().unwrap().clear();
        let (stream, live) = scene.connect();
        assert!(
            scene
                .register(&live, census.session("second"))
                .resumed()
                .is_none()
        );
        drop(stream);
        assert_eq!((scene.state(), scene.linger.lingering()), (None, 0));
        assert_eq!(scene.ends()[0].2, SessionEndCause::ConnectionEnded);
        assert_eq!((scene.linger.close(), scene.ends().len()), (0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn the_replace_policy_decides_about_an_open_connection() {
    let oldest =
        |builder: LingerBuilder<_, _>| builder.replace_policy(ReplacePolicy::oldest_wins());
    let (scene, census) = (Scene::<MutexMap>::with(oldest), Census::default());
    let (stream, old) = scene.connect();
    drop(scene.register(&old, census.session("first")));
    let (_new_stream, new) = scene.connect();
    let refused =
        new.register_lingering(&scene.map, alice(), census.session("second"), &scene.linger);
    match refused {
        Err(RegisterError::Occupied { occupant, value }) => {
            assert_eq!((occupant.id(), &*value.name), (old.id(), "second"));
        }
        other => panic!("{other:?}"),
    }
    drop(stream);
    let registered = scene.register(&new, census.session("third"));
    assert_eq!(registered.seat().name, "first");

    let both = |builder: LingerBuilder<_, _>| builder.replace_policy(ReplacePolicy::keep_both());
    let scene = Scene::<MutexMap>::with(both);
    let (stream, old) = scene.connect();
    drop(scene.register(&old, census.session("first")));
    let (_new_stream, new) = scene.connect();
    assert!(
        scene
            .register(&new, census.session("second"))
            .resumed()
            .is_some()
    );
    assert_ne!(old.health(), Health::Ended);
    drop(stream);
    assert_eq!(scene.map.holders(), [(alice(), new.id())].into());
    assert_eq!((scene.linger.lingering(), scene.ends().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_application_decides_after_which_ends_a_seat_lingers() {
    let kicks = |builder: LingerBuilder<_, _>| {
        builder.after(|reason| matches!(reason, Reason::Kicked { .. }))
    };
    let (scene, census) = (Scene::<MutexMap>::with(kicks), Census::default());
    for (kick, lingers) in [(true, 1), (false, 0)] {
        let (stream, live) = scene.connect();
        drop(scene.register(&live, census.session("first")));
        match kick {
            true => drop(live.evict(4000, "")),
            false => drop(stream),
        }
        assert_eq!(scene.linger.lingering(), lingers, "kick: {kick}");
    }
    let panics = |builder: LingerBuilder<_, _>| builder.after(|_| panic!("of the application"));
    let scene = Scene::<MutexMap>::with(panics);
    let (stream, live) = scene.connect();
    drop(scene.register(&live, census.session("first")));
    drop(stream);
    assert_eq!(scene.state(), None);
    assert_eq!(scene.ends()[0].2, SessionEndCause::ConnectionEnded);
}

#[tokio::test(start_paused = true)]
async fn sessions_of_a_drain_are_handed_over_if_the_application_lets_them_linger() {
    let also = |builder: LingerBuilder<_, _>| builder.also_after(|it| it == Reason::Drained);
    for lets in [true, false] {
        let census = Census::default();
        let scene = match lets {
            true => Scene::<MutexMap>::with(also),
            false => Scene::new(),
        };
        let (_stream, live) = scene.connect();
        drop(scene.register(&live, census.session("first")));
        scene.layer.registry().drain(Drain::default()).await;
        assert_eq!(live.reason(), Some(Reason::Drained));
        let handed_over = scene.linger.hand_over();
        assert_eq!(handed_over.len(), usize::from(lets));
        assert_eq!(scene.ends().len(), usize::from(!lets));
        assert_eq!(scene.state(), None);
    }
    // The defaults hold beside it.
    let (scene, census) = (Scene::<MutexMap>::with(also), Census::default());
    let (stream, live) = scene.connect();
    drop(scene.register(&live, census.session("first")));
    drop(stream);
    assert_eq!(scene.linger.lingering(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_seat_lingers_after_the_close_frame_of_its_client() {
    let (scene, census) = (Scene::<MutexMap>::new(), Census::default());
    let (io, mut peer) = duplex(64);
    let (mut stream, live) = scene.layer.wrap_server(io);
    drop(scene.register(&live, census.session("first")));
    // Close 1000, masked with zeros.
    peer.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8])
        .await
        .unwrap();
    let mut frame = [0; 8];
    stream.read_exact(&mut frame).await.unwrap();
    drop(stream);
    let reason = live.evicted().await.reason();
    assert!(matches!(reason, Reason::PeerClosed { .. }), "{reason:?}");
    assert_eq!(scene.linger.lingering(), 1);
}

#[test]
fn a_runtime_that_is_shut_down_ends_its_sessions() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (scene, census) = (Scene::<MutexMap>::new(), Census::default());
    let (lingering, open) = runtime.block_on(async {
        let (stream, lingering) = scene.connect();
        let session = census.session("first");
        let first = lingering.register_lingering(&scene.map, alice(), session, &scene.linger);
        drop((first.unwrap(), stream));
        // Lets the driver's task begin.
        tokio::task::yield_now().await;
        let (stream, open) = scene.connect();
        let session = census.session("second");
        let second = open.register_lingering(&scene.map, "bob".to_owned(), session, &scene.linger);
        drop(second.unwrap());
        std::mem::forget(stream);
        (lingering.id(), open.id())
    });
    assert_eq!(scene.linger.lingering(), 1);
    drop(runtime);
    let ends = scene.ends.lock().unwrap();
    let mut ended: Vec<_> = ends
        .iter()
        .map(|end| (end.connection(), end.cause()))
        .collect();
    ended.sort_by_key(|(id, _)| *id);
    let expected = [
        (lingering, SessionEndCause::RuntimeShutDown),
        (open, SessionEndCause::ConnectionEnded),
    ];
    assert_eq!(ended, expected);
    assert!(scene.map.holders().is_empty());
}

#[test]
fn bad_settings_are_refused() {
    let build = |grace, capacity| {
        let builder = Linger::<String, Session>::builder(grace).capacity(capacity);
        builder.build().unwrap_err().to_string()
    };
    let year = Duration::from_secs(366 * 24 * 3600);
    assert_eq!(
        build(Duration::ZERO, 1),
        "Linger::builder: 0ns: must be greater than zero"
    );
    assert!(build(year, 1).ends_with("must be at most 365 days"));
    assert_eq!(
        build(GRACE, 0),
        "LingerBuilder::capacity: 0: must be at least 1"
    );
    let linger = Linger::<String, Session>::builder(GRACE).build().unwrap();
    assert_eq!(
        linger.with_grace(Duration::ZERO).unwrap_err().to_string(),
        "Linger::with_grace: 0ns: must be greater than zero"
    );
}

#[tokio::test(start_paused = true)]
async fn each_seat_has_the_grace_period_of_its_registration() {
    let scene = Scene::<MutexMap>::new();
    let census = Census::default();
    let longer = scene.linger.with_grace(GRACE * 2).unwrap();
    for (user, linger) in [("alice", &scene.linger), ("bob", &longer)] {
        let (stream, live) = scene.connect();
        let (key, value) = (user.to_owned(), census.session(user));
        live.register_lingering(&scene.map, key, value, linger)
            .unwrap();
        drop(stream);
    }
    assert_eq!((scene.linger.lingering(), longer.lingering()), (2, 2));
    sleep(LATEST).await;
    let seats = scene.map.holders().into_keys().collect::<Vec<_>>();
    assert_eq!(seats, ["bob"]);
    sleep(LATEST).await;
    assert!(scene.map.holders().is_empty());
    for (end, grace) in scene.ends.lock().unwrap().iter().zip([GRACE, GRACE * 2]) {
        assert!(end.away() >= grace, "{end:?}");
    }
}

/// A value that panics when it is dropped, if it is `true`.
struct Panics(bool);

impl Drop for Panics {
    fn drop(&mut self) {
        assert!(!self.0, "of the application");
    }
}

#[tokio::test(start_paused = true)]
async fn values_that_panic_when_they_are_dropped_concern_no_other_session() {
    for capacity in [10, 1] {
        let map: Arc<Mutex<HashMap<&str, Seat<Panics>>>> = Arc::default();
        let ended = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&ended);
        let linger = Linger::<&str, Panics>::builder(GRACE)
            .capacity(capacity)
            .on_session_end(move |end| hook.lock().unwrap().push(*end.key()));
        let linger = linger.build().unwrap();
        let layer = Scene::<MutexMap>::new().layer;
        let (_open_stream, open) = layer.wrap_server(duplex(64).0);
        for (name, panics) in [("a", true), ("b", false)] {
            let (stream, live) = layer.wrap_server(duplex(64).0);
            let registered = live.register_lingering(&map, name, Panics(panics), &linger);
            drop((registered.unwrap(), stream));
            assert_eq!(live.evicted().await.reason(), Reason::HandlerDropped);
        }
        // With room for one, the second end has ended the first session.
        assert_eq!(*ended.lock().unwrap(), &["a"][..2 - capacity.min(2)]);
        sleep(LATEST).await;
        assert_eq!(*ended.lock().unwrap(), ["a", "b"]);
        assert!(map.lock().unwrap().is_empty());
        assert_eq!(open.health(), Health::Live, "the driver drives on");
    }
}

/// Ends a connection or panics when it inserts the next seat.
#[derive(Default)]
struct Disturbed {
    seats: MutexMap,
    evicts: Mutex<Option<Liveness>>,
    panics: AtomicBool,
}

impl SessionMap<String, Session> for Disturbed {
    fn insert_if(
        &self,
        key: String,
        seat: Seat<Session>,
        admit: &mut dyn FnMut(&Seat<Session>) -> bool,
    ) -> Result<Option<Seat<Session>>, Seat<Session>> {
        if let Some(live) = self.evicts.lock().unwrap().take() {
            live.evict(4000, "");
        }
        let holds_other = self.seats.seat(&key).is_some_and(|seat| admit(&seat));
        assert!(
            !(holds_other && self.panics.load(Ordering::SeqCst)),
            "of the application"
        );
        self.seats.insert_if(key, seat, admit)
    }

    fn remove_if(&self, key: &String, id: ConnectionId) -> Option<Seat<Session>> {
        self.seats.remove_if(key, id)
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_while_it_registers_again_ends_its_session_once() {
    let ends = Arc::new(AtomicUsize::new(0));
    let hook = Arc::clone(&ends);
    let linger = Linger::<String, Session>::builder(GRACE)
        .after(|_| true)
        .on_session_end(move |_| {
            hook.fetch_add(1, Ordering::SeqCst);
        });
    let linger = linger.build().unwrap();
    let (map, census) = (Arc::new(Disturbed::default()), Census::default());
    let (_stream, live) = HeartbeatLayer::default().wrap_server(duplex(64).0);
    let first = live.register_lingering(&map, alice(), census.session("first"), &linger);
    drop(first.unwrap());
    *map.evicts.lock().unwrap() = Some(live.clone());
    let again = live.register_lingering(&map, alice(), census.session("second"), &linger);
    assert!(
        matches!(again, Err(RegisterError::Ended { .. })),
        "{again:?}"
    );
    drop(again);
    assert!(map.seats.holders().is_empty());
    sleep(LATEST).await;
    assert_eq!((ends.load(Ordering::SeqCst), linger.lingering()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_map_that_panics_while_a_session_is_resumed_keeps_no_seat() {
    for lingers in [true, false] {
        let ends = Arc::new(AtomicUsize::new(0));
        let hook = Arc::clone(&ends);
        let linger = Linger::<String, Session>::builder(GRACE).on_session_end(move |_| {
            hook.fetch_add(1, Ordering::SeqCst);
        });
        let linger = linger.build().unwrap();
        let (map, census) = (Arc::new(Disturbed::default()), Census::default());
        let layer = HeartbeatLayer::default();
        let (old_stream, old) = layer.wrap_server(duplex(64).0);
        let first = old.register_lingering(&map, alice(), census.session("first"), &linger);
        drop(first.unwrap());
        let open = (!lingers).then_some(old_stream);
        map.panics.store(true, Ordering::SeqCst);
        let (stream, new) = layer.wrap_server(duplex(64).0);
        let resumed = catch_unwind(AssertUnwindSafe(|| {
            let second = census.session("second");
            drop(new.register_lingering(&map, alice(), second, &linger));
        }));
        assert!(resumed.is_err());
        assert!(map.seats.holders().is_empty());
        drop((open, stream));
        sleep(LATEST).await;
        assert_eq!((ends.load(Ordering::SeqCst), linger.lingering()), (1, 0));
    }
}

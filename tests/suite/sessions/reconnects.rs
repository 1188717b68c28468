//! Users reconnect while their old connections end late; each always has exactly one seat.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use fastrand::Rng;
use tokio::runtime::{Builder, Handle};
use tokio::time::timeout;
use tower_ws_liveness::{ConnectionId, Eviction, HeartbeatLayer, Liveness, Reason, ReplacePolicy};

use super::maps::{Census, Map, Session, with_every_map_in_threads};
use super::seeded::{PATIENCE, Seed, until};
use crate::script::{Stream, ms, script};

with_every_map_in_threads![every_user_has_a_seat_at_all_times];

const USERS: usize = 500;
const CONNECTIONS_PER_USER: usize = 50;
const THREADS: usize = 4;

/// The expected state of one user. One thread changes it, all threads read it.
#[derive(Default)]
struct User {
    /// The id of the connection that registered last. 0 while the user may have no seat.
    seated: AtomicU64,
}

struct Fixture<M> {
    map: Arc<M>,
    census: Census,
    users: Vec<User>,
    layer: HeartbeatLayer,
    over: AtomicBool,
}

/// A connection whose stream is never polled: only the driver detects its end.
type Connection = (Stream, Liveness);

/// The evictions that the layer's hook recorded: the reason and the number of seats.
type Evictions = Arc<Mutex<BTreeMap<ConnectionId, (Reason, usize)>>>;

fn every_user_has_a_seat_at_all_times<M: Map>() {
    let seed = Seed::new();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let evictions = Evictions::default();
    let hook = Arc::clone(&evictions);
    let layer = HeartbeatLayer::builder()
        .interval(ms(600_000))
        .timeout(ms(600_000))
        .close_timeout(ms(50))
        .on_evict(move |ev: &Eviction| {
            let end = (ev.reason(), ev.seats::<String, Session>().count());
            let before = hook.lock().unwrap().insert(ev.id(), end);
            assert_eq!(before, None, "evicted twice");
        });
    let fixture = Arc::new(Fixture {
        map: Arc::new(M::default()),
        census: Census::default(),
        users: (0..USERS).map(|_| User::default()).collect(),
        layer: layer.build().unwrap(),
        over: AtomicBool::new(false),
    });
    let reader = thread::spawn({
        let fixture = Arc::clone(&fixture);
        move || fixture.check_seats()
    });
    let threads = (0..THREADS).map(|number| {
        let (fixture, rng) = (Arc::clone(&fixture), seed.rng(number as u64, 0));
        let handle = runtime.handle().clone();
        thread::spawn(move || fixture.reconnect_users(number, rng, &handle))
    });
    let threads: Vec<_> = threads.collect();
    let (mut current, mut old) = (Vec::new(), Vec::new());
    for thread in threads {
        let (its_current, its_old) = thread.join().unwrap();
        current.extend(its_current);
        old.extend(its_old);
    }
    // The remaining old connections end: half when they are dropped, half on a timeout.
    for (at, (stream, live)) in old.into_iter().enumerate() {
        if at % 2 == 0 {
            drop(stream);
        }
        let ended = runtime.block_on(async { timeout(PATIENCE, live.evicted()).await });
        assert!(ended.is_ok(), "{live:?}");
    }
    fixture.over.store(true, Ordering::SeqCst);
    let (scans, seen) = reader.join().unwrap();
    assert!(
        scans > 10 && seen > USERS,
        "{scans} scans, {seen} seats seen"
    );

    let seats = current
        .iter()
        .map(|(key, (_, live))| (key.clone(), live.id()));
    let seats: BTreeMap<String, ConnectionId> = seats.collect();
    assert_eq!(fixture.map.holders(), seats);
    assert_eq!(seats.len(), USERS);
    fixture.verify(&evictions.lock().unwrap());

    drop(current);
    assert_eq!(fixture.map.holders(), BTreeMap::new());
    assert_eq!(
        evictions.lock().unwrap().len(),
        USERS * CONNECTIONS_PER_USER
    );
    let Fixture { map, census, .. } = Arc::into_inner(fixture).unwrap();
    until("the map is released", || Arc::strong_count(&map) == 1);
    drop(map);
    until("all values are dropped", || {
        census.dropped() == census.created()
    });
    assert_eq!(census.created(), USERS * CONNECTIONS_PER_USER);
}

impl<M: Map> Fixture<M> {
    /// Reconnects one thread's share of the users. Returns their last connections, and the old ones
    /// that have not been dropped.
    fn reconnect_users(
        &self,
        number: usize,
        mut rng: Rng,
        runtime: &Handle,
    ) -> (Vec<(String, Connection)>, Vec<Connection>) {
        let _entered = runtime.enter();
        let mine: Vec<usize> = (number..USERS).step_by(THREADS).collect();
        let mut current: BTreeMap<usize, Connection> = BTreeMap::new();
        let mut ending: Vec<Connection> = Vec::new();
        for _ in 0..CONNECTIONS_PER_USER {
            let mut order = mine.clone();
            rng.shuffle(&mut order);
            for at in order {
                let before = current.remove(&at);
                let connection = self.reconnect(at, before, &mut ending, &mut rng);
                current.insert(at, connection);
                while ending.len() > 60 || !ending.is_empty() && rng.u8(..3) == 0 {
                    let late = ending.swap_remove(rng.usize(..ending.len()));
                    drop(late);
                }
            }
        }
        let named = current.into_iter().map(|(at, last)| (name(at), last));
        (named.collect(), ending)
    }

    fn reconnect(
        &self,
        at: usize,
        before: Option<Connection>,
        ending: &mut Vec<Connection>,
        rng: &mut Rng,
    ) -> Connection {
        let user = &self.users[at];
        let (io, _peer) = script();
        let (stream, live) = self.layer.wrap_server(io);
        let before = before.filter(|_| {
            let ends_first = rng.u8(..10) == 0;
            if ends_first {
                // In one case of ten the old connection ends before the new one registers.
                user.seated.store(0, Ordering::SeqCst);
            }
            !ends_first
        });
        let policy = match rng.u8(..3) {
            0 => ReplacePolicy::newest_wins(),
            _ => ReplacePolicy::keep_both(),
        };
        let session = self.census.session(name(at));
        let replaced = live.register_with(&self.map, name(at), session, &policy);
        let replaced = replaced.unwrap().map(|seat| seat.id());
        assert_eq!(replaced, before.as_ref().map(|(_, live)| live.id()));
        user.seated.store(live.id().as_u64(), Ordering::SeqCst);
        if let Some((stream, old)) = before {
            if rng.bool() {
                // The peer answers no pings, so the connection times out.
                old.set_interval(ms(rng.u64(1..10))).unwrap();
                old.set_timeout(ms(rng.u64(1..10))).unwrap();
            } else {
                old.set_interval(ms(50)).unwrap();
                old.set_timeout(ms(50)).unwrap();
            }
            ending.push((stream, old));
        }
        (stream, live)
    }

    /// Checks the seat of every user until the threads are done. Returns the numbers of scans and
    /// of seats checked.
    fn check_seats(&self) -> (usize, usize) {
        let (mut scans, mut seen) = (0, 0);
        while !self.over.load(Ordering::SeqCst) {
            for (at, user) in self.users.iter().enumerate() {
                let before = user.seated.load(Ordering::SeqCst);
                let seat = self.map.seat(&name(at));
                let after = user.seated.load(Ordering::SeqCst);
                // The user has reconnected between the two loads.
                if before == 0 || before != after {
                    continue;
                }
                let seat = seat.unwrap_or_else(|| panic!("{} is missing", name(at)));
                // The seat may be newer if the user is reconnecting.
                assert!(seat.id().as_u64() >= before, "an old seat of {}", name(at));
                if seat.live().health().to_string() == "ended" {
                    // The connection was replaced meanwhile, or ended before the reconnect.
                    let again = self.map.seat(&name(at)).map(|seat| seat.id());
                    let has_moved = user.seated.load(Ordering::SeqCst) != before;
                    assert!(
                        has_moved || again > Some(seat.id()),
                        "the seat of {} has ended",
                        name(at)
                    );
                }
                seen += 1;
            }
            scans += 1;
        }
        (scans, seen)
    }

    /// Checks the reason and the seats of each eviction.
    fn verify(&self, evictions: &BTreeMap<ConnectionId, (Reason, usize)>) {
        assert_eq!(evictions.len(), USERS * (CONNECTIONS_PER_USER - 1));
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for (id, (reason, seats)) in evictions {
            *reasons.entry(reason.as_str()).or_default() += 1;
            // Only a connection that ended before the reconnect had a seat at its end.
            let may_have = usize::from(*reason == Reason::HandlerDropped);
            assert!(*seats <= may_have, "{id}: {reason}, {seats} seats");
        }
        let kinds: Vec<&str> = reasons.keys().copied().collect();
        assert_eq!(
            kinds,
            ["handler_dropped", "heartbeat_timeout", "replaced"],
            "{reasons:?}"
        );
    }
}

fn name(at: usize) -> String {
    format!("user {at}")
}

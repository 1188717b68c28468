//! Users who come back again and again while their old connections die late: never is one of them
//! missing from the map, and nobody is in it twice.

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

with_every_map_in_threads![every_user_is_there_all_the_time];

const USERS: usize = 500;
const TIMES: usize = 50;
const THREADS: usize = 4;

/// What is known of one user. Changed by one thread, and read by all.
#[derive(Default)]
struct User {
    /// The connection that was registered last, 0 while there need not be one.
    seated: AtomicU64,
}

struct World<M> {
    map: Arc<M>,
    census: Census,
    users: Vec<User>,
    layer: HeartbeatLayer,
    over: AtomicBool,
}

/// A connection that nobody polls: what is to be noticed, the driver notices.
type Connection = (Stream, Liveness);

/// What the layer's hook was told: who ended, why, and with how many seats.
type Told = Arc<Mutex<BTreeMap<ConnectionId, (Reason, usize)>>>;

fn every_user_is_there_all_the_time<M: Map>() {
    let seed = Seed::new();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let told = Told::default();
    let hook = Arc::clone(&told);
    let layer = HeartbeatLayer::builder()
        .interval(ms(600_000))
        .timeout(ms(600_000))
        .close_timeout(ms(50))
        .on_evict(move |ev: &Eviction| {
            let end = (ev.reason(), ev.seats::<String, Session>().count());
            let before = hook.lock().unwrap().insert(ev.id(), end);
            assert_eq!(before, None, "told twice");
        });
    let world = Arc::new(World {
        map: Arc::new(M::default()),
        census: Census::default(),
        users: (0..USERS).map(|_| User::default()).collect(),
        layer: layer.build().unwrap(),
        over: AtomicBool::new(false),
    });
    let reader = thread::spawn({
        let world = Arc::clone(&world);
        move || world.watch()
    });
    let threads = (0..THREADS).map(|number| {
        let (world, rng) = (Arc::clone(&world), seed.rng(number as u64, 0));
        let handle = runtime.handle().clone();
        thread::spawn(move || world.storm(number, rng, &handle))
    });
    let threads: Vec<_> = threads.collect();
    let (mut current, mut old) = (Vec::new(), Vec::new());
    for thread in threads {
        let (its_current, its_old) = thread.join().unwrap();
        current.extend(its_current);
        old.extend(its_old);
    }
    // The last of the old ones die, some by themselves.
    for (at, (stream, live)) in old.into_iter().enumerate() {
        if at % 2 == 0 {
            drop(stream);
        }
        let ended = runtime.block_on(async { timeout(PATIENCE, live.evicted()).await });
        assert!(ended.is_ok(), "{live:?}");
    }
    world.over.store(true, Ordering::SeqCst);
    let (scans, seen) = reader.join().unwrap();
    assert!(
        scans > 10 && seen > USERS,
        "{scans} scans, {seen} seats seen"
    );

    let seats = current
        .iter()
        .map(|(key, (_, live))| (key.clone(), live.id()));
    let seats: BTreeMap<String, ConnectionId> = seats.collect();
    assert_eq!(world.map.holders(), seats);
    assert_eq!(seats.len(), USERS);
    world.verify(&told.lock().unwrap());

    drop(current);
    assert_eq!(world.map.holders(), BTreeMap::new());
    assert_eq!(told.lock().unwrap().len(), USERS * TIMES);
    let World { map, census, .. } = Arc::into_inner(world).unwrap();
    until("nobody keeps the map", || Arc::strong_count(&map) == 1);
    drop(map);
    until("all values are gone", || census.dropped() == census.made());
    assert_eq!(census.made(), USERS * TIMES);
}

impl<M: Map> World<M> {
    /// One thread's share of the users. Returns their last connections, and the old ones that are
    /// dying still.
    fn storm(
        &self,
        number: usize,
        mut rng: Rng,
        runtime: &Handle,
    ) -> (Vec<(String, Connection)>, Vec<Connection>) {
        let _entered = runtime.enter();
        let mine: Vec<usize> = (number..USERS).step_by(THREADS).collect();
        let mut current: BTreeMap<usize, Connection> = BTreeMap::new();
        let mut dying: Vec<Connection> = Vec::new();
        for _ in 0..TIMES {
            let mut order = mine.clone();
            rng.shuffle(&mut order);
            for at in order {
                let before = current.remove(&at);
                let connection = self.reconnect(at, before, &mut dying, &mut rng);
                current.insert(at, connection);
                while dying.len() > 60 || !dying.is_empty() && rng.u8(..3) == 0 {
                    let late = dying.swap_remove(rng.usize(..dying.len()));
                    drop(late);
                }
            }
        }
        let named = current.into_iter().map(|(at, last)| (name(at), last));
        (named.collect(), dying)
    }

    fn reconnect(
        &self,
        at: usize,
        before: Option<Connection>,
        dying: &mut Vec<Connection>,
        rng: &mut Rng,
    ) -> Connection {
        let user = &self.users[at];
        let (io, _peer) = script();
        let (stream, live) = self.layer.wrap_server(io);
        let before = before.filter(|_| {
            let goes_first = rng.u8(..10) == 0;
            if goes_first {
                // For once the old one has gone before the new one comes.
                user.seated.store(0, Ordering::SeqCst);
            }
            !goes_first
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
                // Nobody answers its pings.
                old.set_interval(ms(rng.u64(1..10))).unwrap();
                old.set_timeout(ms(rng.u64(1..10))).unwrap();
            } else {
                old.set_interval(ms(50)).unwrap();
                old.set_timeout(ms(50)).unwrap();
            }
            dying.push((stream, old));
        }
        (stream, live)
    }

    /// Looks for every user, over and over, as long as the storm lasts.
    fn watch(&self) -> (usize, usize) {
        let (mut scans, mut seen) = (0, 0);
        while !self.over.load(Ordering::SeqCst) {
            for (at, user) in self.users.iter().enumerate() {
                let before = user.seated.load(Ordering::SeqCst);
                let seat = self.map.seat(&name(at));
                let after = user.seated.load(Ordering::SeqCst);
                // Between two looks the user may have gone, and come back.
                if before == 0 || before != after {
                    continue;
                }
                let seat = seat.unwrap_or_else(|| panic!("{} is missing", name(at)));
                // Newer, if the user is just coming back.
                assert!(seat.id().as_u64() >= before, "an old seat of {}", name(at));
                if seat.live().health().to_string() == "ended" {
                    // It was replaced meanwhile, or the user has gone.
                    let again = self.map.seat(&name(at)).map(|seat| seat.id());
                    let is_gone = user.seated.load(Ordering::SeqCst) != before;
                    assert!(is_gone || again > Some(seat.id()), "{} is dead", name(at));
                }
                seen += 1;
            }
            scans += 1;
        }
        (scans, seen)
    }

    /// Whoever has ended was told so for a reason of the test's, and with the seats it had.
    fn verify(&self, told: &BTreeMap<ConnectionId, (Reason, usize)>) {
        assert_eq!(told.len(), USERS * (TIMES - 1));
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for (id, (reason, seats)) in told {
            *reasons.entry(reason.as_str()).or_default() += 1;
            // Only who went before the user came back had a seat to its end.
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

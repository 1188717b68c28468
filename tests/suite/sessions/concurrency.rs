//! Many threads that connect, take seats, take them from one another, give them back, die and are
//! drained, on every path and all at once: every seat that was ever put in has gone exactly one way.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use fastrand::Rng;
use tokio::io::AsyncReadExt;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower_ws_liveness::{
    ConnectionId, Drain, DrainReport, Eviction, HeartbeatLayer, Liveness, Reason, RegisterError,
    Registry, ReplacePolicy,
};

use super::maps::{Census, Map, Session, with_every_map_in_threads};
use super::seeded::{PATIENCE, Seed, until};
use crate::script::{Peer, Stream, frame, ms, script};

with_every_map_in_threads![storm];

const ROUNDS: u64 = 40;
const THREADS: u64 = 4;
const CONNECTIONS: usize = 30;
/// In one round of so many everybody is drained, while more connect.
const DRAINED: u64 = 4;
const USERS: usize = 9;

/// What becomes of a connection, if nobody else ends it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    StreamDropped,
    TaskPanics,
    TaskAborted,
    PeerCloses,
    PeerVanishes,
    Reset,
    Kicked,
    /// Its peer answers no pings.
    Silent,
}

const FATES: [Fate; 9] = [
    Fate::Stays,
    Fate::StreamDropped,
    Fate::TaskPanics,
    Fate::TaskAborted,
    Fate::PeerCloses,
    Fate::PeerVanishes,
    Fate::Reset,
    Fate::Kicked,
    Fate::Silent,
];

/// How a seat has left its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exit {
    Displaced,
    GivenBack,
    Told,
    StillThere,
}

/// One storm: the map, and everything that is known of it by other means.
struct Storm<M> {
    map: Arc<M>,
    census: Census,
    serials: AtomicUsize,
    /// Which seat was put in by whom.
    inserted: Mutex<BTreeMap<usize, ConnectionId>>,
    exits: Mutex<Vec<(usize, Exit)>>,
    /// What the hooks of connections were told.
    told: Mutex<Vec<(ConnectionId, Reason)>>,
    /// What the layers' hook was told.
    layers_told: Arc<Mutex<Vec<ConnectionId>>>,
    /// The connections of this round, for everybody to meddle with.
    lives: Mutex<Vec<Liveness>>,
    registry: Registry,
}

/// A connection, with its handler's task and its peer.
struct Client {
    live: Liveness,
    fate: Fate,
    peer: Peer,
    task: JoinHandle<()>,
    order: Option<oneshot::Sender<Fate>>,
}

fn storm<M: Map>() {
    let seed = Seed::new();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (map, census) = (Arc::new(M::default()), Census::default());
    for round in 0..ROUNDS {
        let storm = Arc::new(Storm::new(&map, &census));
        let threads = (0..THREADS).map(|thread| {
            let (storm, rng) = (Arc::clone(&storm), seed.rng(thread, round));
            let handle = runtime.handle().clone();
            thread::spawn(move || storm.rage(rng, &handle))
        });
        let threads: Vec<_> = threads.collect();
        let drain = (round % DRAINED == 0).then(|| {
            let (storm, rng) = (Arc::clone(&storm), seed.rng(THREADS + 1, round));
            let handle = runtime.handle().clone();
            thread::spawn(move || storm.drain(rng, &handle))
        });
        let clients = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        let clients: Vec<Client> = clients.collect();
        let report = drain.map(|thread| thread.join().unwrap());
        storm.lives.lock().unwrap().clear();
        runtime.block_on(storm.settle(&clients));
        storm.verify(&clients, report);
        let mut rng = seed.rng(THREADS, round);
        runtime.block_on(storm.end(clients, &mut rng));
        assert_eq!(map.holders(), BTreeMap::new(), "round {round}");
        assert!(storm.registry.is_empty(), "round {round}");
        storm.account();
        drop(storm);
        // What is dropped last hangs on the driver's last look at a connection.
        until("nobody keeps the map", || Arc::strong_count(&map) == 1);
        if M::FREES_AT_ONCE {
            until("all values are gone", || census.dropped() == census.made());
        }
    }
    // Those that readers of the map kept from being freed go with it.
    drop(map);
    assert_eq!(census.dropped(), census.made());
}

impl<M: Map> Storm<M> {
    fn new(map: &Arc<M>, census: &Census) -> Self {
        Self {
            map: Arc::clone(map),
            census: census.clone(),
            serials: AtomicUsize::new(0),
            inserted: Mutex::default(),
            exits: Mutex::default(),
            told: Mutex::default(),
            layers_told: Arc::default(),
            lives: Mutex::default(),
            registry: Registry::new(),
        }
    }

    /// What one thread does in a round.
    fn rage(self: &Arc<Self>, mut rng: Rng, runtime: &Handle) -> Vec<Client> {
        let _entered = runtime.enter();
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(self.connect(&mut rng));
            for _ in 0..rng.usize(..6) {
                self.meddle(&mut rng);
            }
            let client = rng.choice(&mut clients).unwrap();
            client.meet(client.fate);
        }
        for client in &mut clients {
            client.meet(client.fate);
            self.meddle(&mut rng);
        }
        clients
    }

    fn connect(self: &Arc<Self>, rng: &mut Rng) -> Client {
        let fate = *rng.choice(&FATES).unwrap();
        let times = if fate == Fate::Silent { 4 } else { 600_000 };
        let told = Arc::clone(&self.layers_told);
        let layer = HeartbeatLayer::builder()
            .interval(ms(times))
            .timeout(ms(times))
            .close_timeout(ms(20))
            .registry(self.registry.clone())
            .on_evict(move |ev: &Eviction| told.lock().unwrap().push(ev.id()))
            .build()
            .unwrap();
        let (io, peer) = script();
        let (stream, live) = layer.wrap_server(io);
        let (order, ordered) = oneshot::channel();
        let task = tokio::spawn(handle(stream, ordered));
        let storm = Arc::clone(self);
        live.on_evict(move |ev| storm.tell(ev));
        self.lives.lock().unwrap().push(live.clone());
        self.register(&live, rng);
        Client {
            live,
            fate,
            peer,
            task,
            order: Some(order),
        }
    }

    /// Comes when some have connected.
    fn drain(&self, mut rng: Rng, runtime: &Handle) -> DrainReport {
        let some = rng.usize(1..THREADS as usize * CONNECTIONS / 2);
        until("some have connected", || {
            self.lives.lock().unwrap().len() >= some
        });
        let drain = Drain {
            batch: 8,
            pause: ms(rng.u64(..3)),
            deadline: ms(100),
            ..Drain::default()
        };
        runtime.block_on(self.registry.drain(drain))
    }

    /// Somebody does something with a connection that need not be its own.
    fn meddle(&self, rng: &mut Rng) {
        let live = rng.choice(&*self.lives.lock().unwrap()).unwrap().clone();
        if rng.u8(..4) > 0 {
            return self.register(&live, rng);
        }
        let key = user(rng);
        if let Some(seat) = live.unregister(&self.map, &key) {
            assert_eq!(seat.id(), live.id());
            self.exit(&seat.name, Exit::GivenBack);
        }
    }

    fn register(&self, live: &Liveness, rng: &mut Rng) {
        let serial = self.serials.fetch_add(1, Ordering::SeqCst);
        let session = self.census.session(serial.to_string());
        let policy = match rng.u8(..3) {
            0 => ReplacePolicy::newest_wins(),
            1 => ReplacePolicy::oldest_wins(),
            _ => ReplacePolicy::keep_both(),
        };
        match live.register_with(&self.map, user(rng), session, &policy) {
            Ok(before) => {
                self.inserted.lock().unwrap().insert(serial, live.id());
                let Some(before) = before else { return };
                self.exit(&before.name, Exit::Displaced);
                if policy == ReplacePolicy::newest_wins() && before.id() != live.id() {
                    assert_eq!(before.live().health().to_string(), "ended");
                }
            }
            Err(RegisterError::Ended { value, .. }) => {
                assert_eq!(value.name, serial.to_string());
                assert_eq!(live.health().to_string(), "ended");
            }
            Err(RegisterError::Occupied { occupant, .. }) => {
                assert_eq!(policy, ReplacePolicy::oldest_wins());
                assert_ne!(occupant.id(), live.id());
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The hook of each connection.
    fn tell(&self, ev: &Eviction) {
        self.told.lock().unwrap().push((ev.id(), ev.reason()));
        for (key, seat) in ev.seats::<String, Session>() {
            assert_eq!(seat.id(), ev.id());
            self.exit(&seat.name, Exit::Told);
            // It is out already, and whoever is there is somebody else.
            let there = self.map.seat(key);
            assert_ne!(there.map(|seat| seat.id()), Some(ev.id()));
        }
    }

    fn exit(&self, name: &str, exit: Exit) {
        let serial = name.parse().unwrap();
        self.exits.lock().unwrap().push((serial, exit));
    }

    /// Waits for the ends that are to come.
    async fn settle(&self, clients: &[Client]) {
        for client in clients {
            if client.fate != Fate::Stays {
                let ended = timeout(PATIENCE, client.live.evicted()).await;
                assert!(ended.is_ok(), "{:?}", client.fate);
            }
        }
    }

    /// The map against everything that was said of it.
    fn verify(&self, clients: &[Client], report: Option<DrainReport>) {
        let told = self.told.lock().unwrap().clone();
        let reasons: HashMap<ConnectionId, Reason> = told.iter().copied().collect();
        assert_eq!(told.len(), reasons.len(), "told twice");
        let mut layers_told = self.layers_told.lock().unwrap().clone();
        layers_told.sort_unstable();
        let mut ended: Vec<ConnectionId> = reasons.keys().copied().collect();
        ended.sort_unstable();
        assert_eq!(layers_told, ended);
        for Client { live, fate, .. } in clients {
            let reason = reasons.get(&live.id());
            let is_ended = live.health().to_string() == "ended";
            assert_eq!(reason.is_some(), is_ended, "{fate:?}: {reason:?}");
            if *fate == Fate::Stays && report.is_none() {
                assert!(
                    matches!(reason, None | Some(Reason::Replaced)),
                    "{reason:?}"
                );
            }
        }
        assert_eq!(self.registry.len(), clients.len() - reasons.len());
        if let Some(report) = report {
            assert_eq!(self.registry.len(), 0, "{report:?}");
            let is_drained = |(_, reason): &&(_, _)| *reason == Reason::Drained;
            // More, if some came when the drain had begun: those end as they open.
            let drained = told.iter().filter(is_drained).count();
            assert!(report.clean() + report.cut() <= drained, "{report:?}");
        }
        for (key, id) in self.map.holders() {
            assert!(!reasons.contains_key(&id), "{key}: {id} has ended");
            let seat = self.map.seat(&key).unwrap();
            assert_eq!(seat.id(), id);
            self.exit(&seat.name, Exit::StillThere);
        }
        self.account();
        let is_there = |(_, exit): &(usize, Exit)| *exit != Exit::StillThere;
        self.exits.lock().unwrap().retain(is_there);
    }

    /// Every seat that was put in has gone exactly one way.
    fn account(&self) {
        let mut exits = self.exits.lock().unwrap().clone();
        exits.sort_unstable();
        let gone: Vec<usize> = exits.iter().map(|(serial, _)| *serial).collect();
        let inserted = self.inserted.lock().unwrap();
        let inserted: Vec<usize> = inserted.keys().copied().collect();
        assert_eq!(gone, inserted, "{exits:?}");
    }

    /// Ends whoever is left, on some path.
    async fn end(&self, mut clients: Vec<Client>, rng: &mut Rng) {
        rng.shuffle(&mut clients);
        for mut client in clients {
            client.meet(FATES[1 + rng.usize(..FATES.len() - 2)]);
            let ended = timeout(PATIENCE, client.live.evicted()).await.unwrap();
            assert_eq!(ended.id(), client.live.id());
            // Panicked, aborted or returned.
            let _ = timeout(PATIENCE, client.task).await.unwrap();
        }
    }
}

fn user(rng: &mut Rng) -> String {
    format!("user {}", rng.usize(..USERS))
}

/// A handler that reads until its end, or until it is told how to go.
async fn handle(mut stream: Stream, ordered: oneshot::Receiver<Fate>) {
    let reads = async {
        let mut buffer = [0; 16];
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        () = reads => {}
        order = ordered => match order {
            Ok(Fate::TaskPanics) => resume_unwind(Box::new("as the test wants")),
            _ => drop(stream),
        },
    }
}

impl Client {
    /// May come twice.
    fn meet(&mut self, fate: Fate) {
        match fate {
            Fate::Stays | Fate::Silent => {}
            Fate::StreamDropped | Fate::TaskPanics => {
                // Nobody listens if it has ended already.
                let _ = self.order.take().map(|order| order.send(fate));
            }
            Fate::TaskAborted => self.task.abort(),
            Fate::PeerCloses => {
                let code = 1000_u16.to_be_bytes();
                self.peer.send(&frame(0x88, Some([1, 2, 3, 4]), &code));
                self.peer.end(Ok(()));
            }
            Fate::PeerVanishes => self.peer.end(Ok(())),
            Fate::Reset => self.peer.end(Err(io::ErrorKind::ConnectionReset)),
            Fate::Kicked => {
                self.live.evict(4000, "");
            }
        }
    }
}

//! Threads register, replace, unregister, evict and drain concurrently; each seat leaves once.

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

with_every_map_in_threads![every_seat_leaves_the_map_exactly_once];

const ROUNDS: u64 = 40;
const THREADS: u64 = 4;
const CONNECTIONS_PER_THREAD: usize = 30;
/// One round in this many drains the registry while connections open.
const ROUNDS_PER_DRAIN: u64 = 4;
const USERS: usize = 9;

/// How a connection ends, unless another thread ends it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Stays,
    StreamDropped,
    TaskPanics,
    TaskAborted,
    PeerCloses,
    PeerVanishes,
    Reset,
    Kicked,
    /// The peer answers no pings.
    Silent,
}

const OUTCOMES: [Outcome; 9] = [
    Outcome::Stays,
    Outcome::StreamDropped,
    Outcome::TaskPanics,
    Outcome::TaskAborted,
    Outcome::PeerCloses,
    Outcome::PeerVanishes,
    Outcome::Reset,
    Outcome::Kicked,
    Outcome::Silent,
];

/// How a seat has left its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exit {
    Replaced,
    Unregistered,
    Evicted,
    StillPresent,
}

/// One round: the map, and a record of every operation on it.
struct Round<M> {
    map: Arc<M>,
    census: Census,
    serials: AtomicUsize,
    /// The connection that registered each seat, by the seat's serial number.
    inserted: Mutex<BTreeMap<usize, ConnectionId>>,
    exits: Mutex<Vec<(usize, Exit)>>,
    /// Recorded by the hooks on the handles.
    evictions: Mutex<Vec<(ConnectionId, Reason)>>,
    /// Recorded by the hooks of the layers.
    layer_evictions: Arc<Mutex<Vec<ConnectionId>>>,
    /// The connections of this round, which every thread uses.
    handles: Mutex<Vec<Liveness>>,
    registry: Registry,
}

/// A connection, with its handler's task and its peer.
struct Client {
    live: Liveness,
    outcome: Outcome,
    peer: Peer,
    task: JoinHandle<()>,
    command: Option<oneshot::Sender<Outcome>>,
}

fn every_seat_leaves_the_map_exactly_once<M: Map>() {
    let seed = Seed::new();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (map, census) = (Arc::new(M::default()), Census::default());
    for round in 0..ROUNDS {
        let record = Arc::new(Round::new(&map, &census));
        let threads = (0..THREADS).map(|thread| {
            let (record, rng) = (Arc::clone(&record), seed.rng(thread, round));
            let handle = runtime.handle().clone();
            thread::spawn(move || record.run_thread(rng, &handle))
        });
        let threads: Vec<_> = threads.collect();
        let drain = (round % ROUNDS_PER_DRAIN == 0).then(|| {
            let (record, rng) = (Arc::clone(&record), seed.rng(THREADS + 1, round));
            let handle = runtime.handle().clone();
            thread::spawn(move || record.drain(rng, &handle))
        });
        let clients = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        let clients: Vec<Client> = clients.collect();
        let report = drain.map(|thread| thread.join().unwrap());
        record.handles.lock().unwrap().clear();
        runtime.block_on(record.wait_for_ends(&clients));
        record.verify(&clients, report);
        let mut rng = seed.rng(THREADS, round);
        runtime.block_on(record.end(clients, &mut rng));
        assert_eq!(map.holders(), BTreeMap::new(), "round {round}");
        assert!(record.registry.is_empty(), "round {round}");
        record.check_exits();
        drop(record);
        // The driver drops the last references when it next polls a connection.
        until("the map is released", || Arc::strong_count(&map) == 1);
        if M::FREES_AT_ONCE {
            until("all values are dropped", || {
                census.dropped() == census.created()
            });
        }
    }
    // The map drops the values whose drop was deferred because of its readers.
    drop(map);
    assert_eq!(census.dropped(), census.created());
}

impl<M: Map> Round<M> {
    fn new(map: &Arc<M>, census: &Census) -> Self {
        Self {
            map: Arc::clone(map),
            census: census.clone(),
            serials: AtomicUsize::new(0),
            inserted: Mutex::default(),
            exits: Mutex::default(),
            evictions: Mutex::default(),
            layer_evictions: Arc::default(),
            handles: Mutex::default(),
            registry: Registry::new(),
        }
    }

    /// The operations of one thread in a round.
    fn run_thread(self: &Arc<Self>, mut rng: Rng, runtime: &Handle) -> Vec<Client> {
        let _entered = runtime.enter();
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS_PER_THREAD {
            clients.push(self.connect(&mut rng));
            for _ in 0..rng.usize(..6) {
                self.change_a_seat(&mut rng);
            }
            let client = rng.choice(&mut clients).unwrap();
            client.apply(client.outcome);
        }
        for client in &mut clients {
            client.apply(client.outcome);
            self.change_a_seat(&mut rng);
        }
        clients
    }

    fn connect(self: &Arc<Self>, rng: &mut Rng) -> Client {
        let outcome = *rng.choice(&OUTCOMES).unwrap();
        let times = if outcome == Outcome::Silent {
            4
        } else {
            600_000
        };
        let evictions = Arc::clone(&self.layer_evictions);
        let layer = HeartbeatLayer::builder()
            .interval(ms(times))
            .timeout(ms(times))
            .close_timeout(ms(20))
            .registry(self.registry.clone())
            .on_evict(move |ev: &Eviction| evictions.lock().unwrap().push(ev.id()))
            .build()
            .unwrap();
        let (io, peer) = script();
        let (stream, live) = layer.wrap_server(io);
        let (command_tx, command) = oneshot::channel();
        let task = tokio::spawn(handle(stream, command));
        let record = Arc::clone(self);
        live.on_evict(move |ev| record.on_evict(ev));
        self.handles.lock().unwrap().push(live.clone());
        self.register(&live, rng);
        Client {
            live,
            outcome,
            peer,
            task,
            command: Some(command_tx),
        }
    }

    /// Drains the registry after some connections have opened.
    fn drain(&self, mut rng: Rng, runtime: &Handle) -> DrainReport {
        let least = rng.usize(1..THREADS as usize * CONNECTIONS_PER_THREAD / 2);
        until("some connections have opened", || {
            self.handles.lock().unwrap().len() >= least
        });
        let drain = Drain::default()
            .batch(8)
            .pause(ms(rng.u64(..3)))
            .deadline(ms(100));
        runtime.block_on(self.registry.drain(drain))
    }

    /// Registers or unregisters a seat of a random connection.
    fn change_a_seat(&self, rng: &mut Rng) {
        let live = rng.choice(&*self.handles.lock().unwrap()).unwrap().clone();
        if rng.u8(..4) > 0 {
            return self.register(&live, rng);
        }
        let key = user(rng);
        if let Some(seat) = live.unregister(&self.map, &key) {
            assert_eq!(seat.id(), live.id());
            self.exit(&seat.name, Exit::Unregistered);
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
                self.exit(&before.name, Exit::Replaced);
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

    /// The hook on each handle.
    fn on_evict(&self, ev: &Eviction) {
        self.evictions.lock().unwrap().push((ev.id(), ev.reason()));
        for (key, seat) in ev.seats::<String, Session>() {
            assert_eq!(seat.id(), ev.id());
            self.exit(&seat.name, Exit::Evicted);
            // The seat is already removed, so a seat at this key belongs to another connection.
            let there = self.map.seat(key);
            assert_ne!(there.map(|seat| seat.id()), Some(ev.id()));
        }
    }

    fn exit(&self, name: &str, exit: Exit) {
        let serial = name.parse().unwrap();
        self.exits.lock().unwrap().push((serial, exit));
    }

    /// Waits for the connections that must end.
    async fn wait_for_ends(&self, clients: &[Client]) {
        for client in clients {
            if client.outcome != Outcome::Stays {
                let ended = timeout(PATIENCE, client.live.evicted()).await;
                assert!(ended.is_ok(), "{:?}", client.outcome);
            }
        }
    }

    /// Compares the map with the record.
    fn verify(&self, clients: &[Client], report: Option<DrainReport>) {
        let evictions = self.evictions.lock().unwrap().clone();
        let reasons: HashMap<ConnectionId, Reason> = evictions.iter().copied().collect();
        assert_eq!(evictions.len(), reasons.len(), "evicted twice");
        let mut layer_evictions = self.layer_evictions.lock().unwrap().clone();
        layer_evictions.sort_unstable();
        let mut ended: Vec<ConnectionId> = reasons.keys().copied().collect();
        ended.sort_unstable();
        assert_eq!(layer_evictions, ended);
        for Client { live, outcome, .. } in clients {
            let reason = reasons.get(&live.id());
            let is_ended = live.health().to_string() == "ended";
            assert_eq!(reason.is_some(), is_ended, "{outcome:?}: {reason:?}");
            if *outcome == Outcome::Stays && report.is_none() {
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
            // There are more if connections opened after the drain had begun: those end as they
            // open.
            let drained = evictions.iter().filter(is_drained).count();
            assert!(report.clean() + report.cut() <= drained, "{report:?}");
        }
        for (key, id) in self.map.holders() {
            assert!(!reasons.contains_key(&id), "{key}: {id} has ended");
            let seat = self.map.seat(&key).unwrap();
            assert_eq!(seat.id(), id);
            self.exit(&seat.name, Exit::StillPresent);
        }
        self.check_exits();
        let has_left = |(_, exit): &(usize, Exit)| *exit != Exit::StillPresent;
        self.exits.lock().unwrap().retain(has_left);
    }

    /// Asserts that every inserted seat has exactly one exit.
    fn check_exits(&self) {
        let mut exits = self.exits.lock().unwrap().clone();
        exits.sort_unstable();
        let gone: Vec<usize> = exits.iter().map(|(serial, _)| *serial).collect();
        let inserted = self.inserted.lock().unwrap();
        let inserted: Vec<usize> = inserted.keys().copied().collect();
        assert_eq!(gone, inserted, "{exits:?}");
    }

    /// Ends the remaining connections on random paths.
    async fn end(&self, mut clients: Vec<Client>, rng: &mut Rng) {
        rng.shuffle(&mut clients);
        for mut client in clients {
            client.apply(OUTCOMES[1 + rng.usize(..OUTCOMES.len() - 2)]);
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

/// A handler that reads until the end, or until a command drops the stream or panics.
async fn handle(mut stream: Stream, command: oneshot::Receiver<Outcome>) {
    let reads = async {
        let mut buffer = [0; 16];
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        () = reads => {}
        command = command => match command {
            Ok(Outcome::TaskPanics) => resume_unwind(Box::new("a scripted panic")),
            _ => drop(stream),
        },
    }
}

impl Client {
    /// Ends the connection like this. May be called twice.
    fn apply(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Stays | Outcome::Silent => {}
            Outcome::StreamDropped | Outcome::TaskPanics => {
                // The receiver is gone if the handler has returned already.
                let _ = self.command.take().map(|command| command.send(outcome));
            }
            Outcome::TaskAborted => self.task.abort(),
            Outcome::PeerCloses => {
                let code = 1000_u16.to_be_bytes();
                self.peer.send(&frame(0x88, Some([1, 2, 3, 4]), &code));
                self.peer.end(Ok(()));
            }
            Outcome::PeerVanishes => self.peer.end(Ok(())),
            Outcome::Reset => self.peer.end(Err(io::ErrorKind::ConnectionReset)),
            Outcome::Kicked => {
                self.live.evict(4000, "");
            }
        }
    }
}

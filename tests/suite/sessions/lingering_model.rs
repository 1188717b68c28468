//! Random sequences of ends, resumptions, expiries and replacements, checked against a plain model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{DuplexStream, duplex};
use tokio::runtime::Builder;
use tokio::time::sleep;
use tower_ws_liveness::{
    Drain, HeartbeatLayer, Linger, Liveness, LivenessStream, Reason, SeatState, SessionEnd,
    SessionEndCause,
};

use super::maps::{Census, Map, MutexMap, Session};

const GRACE: Duration = Duration::from_secs(30);
const LONG_GRACE: Duration = Duration::from_secs(60);
/// Times are multiples of it. Each grace period and its latest end lie between two of them.
const STEP: Duration = Duration::from_secs(7);
const CAPACITY: usize = 2;

#[derive(Clone, Debug)]
enum Action {
    /// Opens a connection and registers it at the key.
    Connect {
        key: u8,
        grace: Grace,
    },
    /// Ends one of the open connections: recoverably if its handler drops it.
    End {
        index: usize,
        recoverably: bool,
    },
    Unregister {
        key: u8,
    },
    /// Removes the seat at the key without the crate.
    RemoveByHand {
        key: u8,
    },
    Wait,
    Close,
    HandOver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grace {
    None,
    Usual,
    Long,
}

impl Grace {
    /// The steps after which a seat has expired.
    fn steps(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Usual => 5,
            Self::Long => 9,
        }
    }
}

fn action() -> impl Strategy<Value = Action> {
    let key = 0..3_u8;
    let grace = prop_oneof![Just(Grace::None), Just(Grace::Usual), Just(Grace::Long)];
    prop_oneof![
        6 => (key.clone(), grace).prop_map(|(key, grace)| Action::Connect { key, grace }),
        5 => (any::<usize>(), prop::bool::weighted(0.8))
            .prop_map(|(index, recoverably)| Action::End { index, recoverably }),
        1 => key.clone().prop_map(|key| Action::Unregister { key }),
        1 => key.prop_map(|key| Action::RemoveByHand { key }),
        4 => Just(Action::Wait),
        // Rare, since no seat lingers from then on.
        1 => (0..30_u8).prop_map(|choice| match choice {
            0 => Action::Close,
            1 => Action::HandOver,
            _ => Action::Wait,
        }),
    ]
}

/// A registration that has not ended.
#[derive(Debug)]
struct Registration {
    key: u8,
    /// Its value has this name, which the session keeps.
    name: usize,
    grace: Grace,
    /// The number of its connection.
    connection: usize,
    /// Steps since the end of its connection.
    away: Option<u32>,
    is_in_map: bool,
}

#[derive(Debug, Default)]
struct Model {
    /// Those that linger are in the order in which they began to.
    registrations: Vec<Registration>,
    ends: Vec<(usize, SessionEndCause)>,
    is_closed: bool,
}

impl Model {
    fn at(&self, key: u8) -> Option<usize> {
        let mut all = self.registrations.iter();
        all.position(|registration| registration.key == key && registration.is_in_map)
    }

    fn end(&mut self, index: usize, cause: SessionEndCause) {
        let registration = self.registrations.remove(index);
        if registration.grace != Grace::None {
            self.ends.push((registration.name, cause));
        }
    }

    /// Returns the name in the seat, and whether a session was resumed.
    fn connect(&mut self, key: u8, name: usize, grace: Grace) -> (usize, bool) {
        let (mut name, mut resumed) = (name, false);
        if let Some(index) = self.at(key) {
            let occupant = &self.registrations[index];
            if grace != Grace::None && occupant.grace != Grace::None {
                (name, resumed) = (occupant.name, true);
                self.registrations.remove(index);
            } else {
                self.end(index, SessionEndCause::Replaced);
            }
        }
        (name, resumed)
    }

    fn connection_ended(&mut self, connection: usize, recoverably: bool) {
        let mut all = self.registrations.iter();
        let Some(index) = all.position(|registration| registration.connection == connection) else {
            return;
        };
        let has_session = self.registrations[index].grace != Grace::None;
        if !recoverably || self.is_closed || !has_session {
            return self.end(index, SessionEndCause::ConnectionEnded);
        }
        let mut registration = self.registrations.remove(index);
        registration.away = Some(0);
        self.registrations.push(registration);
        if self.lingering() > CAPACITY {
            let mut all = self.registrations.iter();
            let oldest = all.position(|registration| registration.away.is_some());
            self.end(oldest.unwrap(), SessionEndCause::OverCapacity);
        }
    }

    fn wait(&mut self) {
        for registration in &mut self.registrations {
            registration.away = registration.away.map(|away| away + 1);
        }
        let expired = |registration: &Registration| {
            registration
                .away
                .is_some_and(|away| away >= registration.grace.steps())
        };
        while let Some(index) = self.registrations.iter().position(expired) {
            self.end(index, SessionEndCause::Expired);
        }
    }

    fn close(&mut self) {
        self.is_closed = true;
        let lingers = |registration: &Registration| registration.away.is_some();
        while let Some(index) = self.registrations.iter().position(lingers) {
            self.end(index, SessionEndCause::Closed);
        }
    }

    fn lingering(&self) -> usize {
        let all = self.registrations.iter();
        all.filter(|registration| registration.away.is_some())
            .count()
    }

    /// Name and steps away of the seat at each key.
    fn seats(&self) -> BTreeMap<String, (usize, Option<u32>)> {
        let all = self.registrations.iter();
        all.filter(|registration| registration.is_in_map)
            .map(|registration| {
                let state = (registration.name, registration.away);
                (registration.key.to_string(), state)
            })
            .collect()
    }
}

fn name_and_cause(end: &SessionEnd<String, Session>) -> (usize, SessionEndCause) {
    (end.value().name.parse().unwrap(), end.cause())
}

/// The crate's side of the model.
struct Scene {
    map: Arc<MutexMap>,
    linger: Linger<String, Session>,
    long_linger: Linger<String, Session>,
    layer: HeartbeatLayer,
    /// In the hooks, or handed over.
    ends: Arc<Mutex<Vec<(usize, SessionEndCause)>>>,
    census: Census,
    /// The open connections with their numbers.
    open: Vec<(usize, LivenessStream<DuplexStream>, Liveness)>,
}

impl Scene {
    fn new() -> Self {
        let ends = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&ends);
        let linger = Linger::builder(GRACE)
            .capacity(CAPACITY)
            .on_session_end(move |end| hook.lock().unwrap().push(name_and_cause(end)));
        let linger = linger.build().unwrap();
        Self {
            map: Arc::default(),
            long_linger: linger.with_grace(LONG_GRACE).unwrap(),
            linger,
            layer: HeartbeatLayer::builder()
                .interval(Duration::from_secs(3_600))
                .build()
                .unwrap(),
            ends,
            census: Census::default(),
            open: Vec::new(),
        }
    }

    async fn act(&mut self, action: &Action, number: usize, model: &mut Model) {
        match *action {
            Action::Connect { key, grace } => {
                let (stream, live) = self.layer.wrap_server(duplex(64).0);
                let value = self.census.session(number.to_string());
                let (seat_name, resumed) = model.connect(key, number, grace);
                let linger = match grace {
                    Grace::None => None,
                    Grace::Usual => Some(&self.linger),
                    Grace::Long => Some(&self.long_linger),
                };
                if let Some(linger) = linger {
                    let key = key.to_string();
                    let registered = live.register_lingering(&self.map, key, value, linger);
                    let registered = registered.unwrap();
                    assert_eq!(registered.resumed().is_some(), resumed);
                    assert_eq!(registered.seat().name, seat_name.to_string());
                } else {
                    live.register(&self.map, key.to_string(), value).unwrap();
                }
                model.registrations.push(Registration {
                    key,
                    name: seat_name,
                    grace,
                    connection: number,
                    away: None,
                    is_in_map: true,
                });
                // The connection that had the seat was evicted, and its handler returns.
                self.open.retain(|(_, _, live)| live.reason().is_none());
                self.open.push((number, stream, live));
            }
            Action::End { index, recoverably } if !self.open.is_empty() => {
                let (number, stream, live) = self.open.remove(index % self.open.len());
                if !recoverably {
                    assert!(live.evict(4_000, ""));
                }
                drop(stream);
                model.connection_ended(number, recoverably);
            }
            Action::Unregister { key } => {
                if let Some(seat) = self.map.seat(&key.to_string()) {
                    let removed = seat.live().unregister(&self.map, &key.to_string());
                    assert!(removed.is_some());
                }
                if let Some(index) = model.at(key) {
                    model.end(index, SessionEndCause::Unregistered);
                }
            }
            Action::RemoveByHand { key } => {
                self.map.remove_by_hand(&key.to_string());
                if let Some(index) = model.at(key) {
                    model.registrations[index].is_in_map = false;
                }
            }
            Action::Wait => {
                sleep(STEP).await;
                model.wait();
            }
            Action::Close => {
                assert_eq!(self.linger.close(), model.lingering());
                model.close();
            }
            Action::HandOver => {
                self.hand_over();
                model.close();
            }
            Action::End { .. } => {}
        }
    }

    fn hand_over(&self) {
        let handed_over = self.long_linger.hand_over();
        let handed_over = handed_over.iter().map(name_and_cause);
        self.ends.lock().unwrap().extend(handed_over);
    }

    /// No connection of a registry that drains takes a seat or resumes a session.
    fn check_refusal(&self) {
        for key in 0..3_u8 {
            let (_stream, live) = self.layer.wrap_server(duplex(64).0);
            let value = self.census.session("refused");
            let result = live.register_lingering(&self.map, key.to_string(), value, &self.linger);
            assert!(result.is_err());
            assert_eq!(live.reason(), Some(Reason::Drained));
        }
    }

    fn seats(&self) -> BTreeMap<String, (usize, Option<u32>)> {
        let map = self.map.lock().unwrap();
        map.iter()
            .map(|(key, seat)| {
                let away = match seat.state() {
                    SeatState::Connected => None,
                    SeatState::Lingering { away, .. } => Some(away.div_duration_f64(STEP) as u32),
                    state => panic!("{state:?} in the map"),
                };
                (key.clone(), (seat.name.parse().unwrap(), away))
            })
            .collect()
    }

    fn check(&self, model: &Model) {
        assert_eq!(self.seats(), model.seats(), "{model:#?}");
        assert_eq!(self.linger.lingering(), model.lingering(), "{model:#?}");
        let mut ends = self.ends.lock().unwrap().clone();
        let mut expected = model.ends.clone();
        // Sessions that end at the same time do so in no order.
        ends.sort_by_key(|&(name, _)| name);
        expected.sort_by_key(|&(name, _)| name);
        assert_eq!(ends, expected, "{model:#?}");
    }
}

async fn play(actions: Vec<Action>) {
    let (mut scene, mut model) = (Scene::new(), Model::default());
    for (number, action) in actions.iter().enumerate() {
        scene.act(action, number, &mut model).await;
        scene.check(&model);
    }
    // A drain ends the sessions of open connections. Those that linger go on, until they are handed
    // over.
    scene.layer.registry().drain(Drain::default()).await;
    for (number, ..) in &scene.open {
        model.connection_ended(*number, false);
    }
    scene.check(&model);
    scene.check_refusal();
    scene.check(&model);
    sleep(STEP).await;
    model.wait();
    scene.check(&model);
    scene.hand_over();
    model.close();
    scene.check(&model);
    assert!(scene.seats().is_empty());
    drop((scene.open, scene.map, scene.linger, scene.long_linger));
    assert_eq!(scene.census.dropped(), scene.census.created());
}

proptest! {
    #[test]
    fn each_session_ends_as_in_the_model(actions in prop::collection::vec(action(), 1..60)) {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(actions));
    }
}

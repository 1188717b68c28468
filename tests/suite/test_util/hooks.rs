//! Evictions and changes of health that a test makes, for hooks that it calls directly.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tower_ws_liveness::{
    ConnectionId, Eviction, Health, HealthChange, OnEvict, OnHealth, PeerKernel, Reason, Seat,
    Stats, map_in, test_util,
};

use crate::support::ms;

fn seven() -> ConnectionId {
    ConnectionId::from_u64(7).unwrap()
}

#[test]
fn an_eviction_has_the_values_that_were_set() {
    let now = Instant::now();
    let stats = test_util::stats().pings_sent(3).build();
    let ev = test_util::eviction(Reason::Kicked { code: 4000 })
        .id(seven())
        .label("rude")
        .lifetime(ms(9_000))
        .last_seen(now)
        .idle_for(ms(8_000))
        .rtt(ms(80))
        .rtt(ms(160))
        .stats(stats)
        .peer_kernel(PeerKernel::Silent)
        .session("session".to_owned())
        .build();
    assert_eq!(
        (ev.id(), ev.reason()),
        (seven(), Reason::Kicked { code: 4000 })
    );
    assert_eq!((ev.label(), ev.last_seen()), ("rude", now));
    assert_eq!((ev.lifetime(), ev.idle_for()), (ms(9_000), ms(8_000)));
    let rtt = ev.rtt().unwrap();
    assert_eq!(
        (rtt.last(), rtt.min(), rtt.smoothed()),
        (ms(160), ms(80), ms(90))
    );
    assert_eq!((ev.stats(), ev.peer_kernel()), (stats, PeerKernel::Silent));
    assert_eq!(*ev.session::<String>().unwrap(), "session");
    assert!(ev.session::<u32>().is_none());
}

#[test]
fn an_eviction_without_settings_lasted_a_minute() {
    let before = Instant::now();
    let ev = test_util::eviction(Reason::Drained).build();
    assert_eq!((ev.reason(), ev.label()), (Reason::Drained, "drained"));
    assert_eq!((ev.lifetime(), ev.idle_for()), (ms(60_000), ms(60_000)));
    let opened = before.checked_sub(ms(60_000)).unwrap();
    assert!(ev.last_seen() >= opened);
    assert!(ev.last_seen() + ms(60_000) <= Instant::now());
    assert_eq!((ev.rtt(), ev.stats()), (None, Stats::default()));
    assert_eq!(ev.peer_kernel(), PeerKernel::Unknown);
    assert!(ev.session::<String>().is_none());
    assert_eq!(ev.seats::<String, ()>().count(), 0);
    assert_ne!(ev.id(), test_util::eviction(Reason::Drained).build().id());
}

#[test]
fn the_times_of_an_eviction_follow_its_lifetime_unless_they_are_set() {
    let short = || test_util::eviction(Reason::Drained).lifetime(ms(5_000));
    let ev = short().build();
    assert_eq!((ev.lifetime(), ev.idle_for()), (ms(5_000), ms(5_000)));
    assert!(ev.last_seen().elapsed() >= ms(5_000));
    let seen = Instant::now();
    let ev = short().last_seen(seen).idle_for(ms(1)).build();
    assert_eq!((ev.last_seen(), ev.idle_for()), (seen, ms(1)));
    let oldest = test_util::eviction(Reason::Drained).lifetime(Duration::MAX);
    assert_eq!(oldest.build().idle_for(), Duration::MAX);
}

type Users = Mutex<HashMap<String, Seat<u32>>>;

struct AppState {
    players: Users,
    spectators: Users,
}

#[test]
fn seats_have_the_handle_of_the_connection_and_the_map_that_was_set() {
    let state = Arc::new(AppState {
        players: Mutex::default(),
        spectators: Mutex::default(),
    });
    let players = map_in(&state, |state: &AppState| &state.players);
    let spectators = map_in(&state, |state: &AppState| &state.spectators);
    // The id is set last: the seats have it all the same.
    let ev = test_util::eviction(Reason::PeerVanished)
        .seat("ann".to_owned(), 1_u32)
        .seat_in(&players, "bob".to_owned(), 2_u32)
        .id(seven())
        .build();
    let keys: Vec<_> = ev
        .seats::<String, u32>()
        .map(|(key, _)| key.as_str())
        .collect();
    assert_eq!(keys, ["ann", "bob"]);
    let (_, ann) = ev.seats::<String, u32>().next().unwrap();
    assert_eq!((**ann, ann.id()), (1, seven()));
    assert!(ann.live().is_detached());
    let in_players: Vec<_> = ev
        .seats_in(&players)
        .map(|(key, seat)| (key.as_str(), **seat))
        .collect();
    assert_eq!(in_players, [("bob", 2)]);
    assert_eq!(ev.seats_in(&spectators).count(), 0);
    assert!(state.players.lock().unwrap().is_empty());
}

#[test]
fn stats_have_the_values_that_were_set() {
    let stats = test_util::stats()
        .bytes_received(1)
        .bytes_sent(2)
        .messages_received(3)
        .messages_sent(4)
        .pings_sent(5)
        .pongs_received(6)
        .missed_pings(7)
        .slow_pongs(8)
        .write_stalls(9)
        .unacknowledged_bytes(10)
        .kernel_rtt(Duration::from_micros(11))
        .build();
    assert_eq!((stats.bytes_received(), stats.bytes_sent()), (1, 2));
    assert_eq!((stats.messages_received(), stats.messages_sent()), (3, 4));
    assert_eq!((stats.pings_sent(), stats.pongs_received()), (5, 6));
    assert_eq!(
        (
            stats.missed_pings(),
            stats.slow_pongs(),
            stats.write_stalls()
        ),
        (7, 8, 9)
    );
    assert_eq!(stats.unacknowledged_bytes(), Some(10));
    assert_eq!(stats.kernel_rtt(), Some(Duration::from_micros(11)));
    let longest = test_util::stats().kernel_rtt(Duration::MAX).build();
    assert_eq!(
        longest.kernel_rtt(),
        Some(Duration::from_micros(u32::MAX.into()))
    );
}

#[test]
fn a_change_of_health_has_the_values_that_were_set() {
    let stats = test_util::stats().missed_pings(1).build();
    let silent = Health::PeerSilent { missed: 1 };
    let builder = test_util::health_change(Health::Live, silent)
        .rtt(ms(80))
        .stats(stats);
    let change = builder.build();
    assert_eq!((change.from(), change.to()), (Health::Live, silent));
    assert_eq!(
        (change.rtt().unwrap().last(), change.stats()),
        (ms(80), stats)
    );
    assert!(change.live().is_detached());

    let live = test_util::detached();
    let change = test_util::health_change(silent, Health::Live)
        .live(live.clone())
        .build();
    assert_eq!((change.id(), change.rtt()), (live.id(), None));
    let change = test_util::health_change(silent, Health::Live)
        .id(seven())
        .build();
    assert_eq!(change.id(), seven());
}

#[test]
fn hooks_are_called_with_them() {
    static CALLS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let evict = |ev: &Eviction| CALLS.lock().unwrap().push(ev.label().to_owned());
    let health = |change: &HealthChange| CALLS.lock().unwrap().push(change.to().to_string());
    OnEvict::on_evict(&evict, &test_util::eviction(Reason::Replaced).build());
    let change = test_util::health_change(Health::Live, Health::Idle).build();
    OnHealth::on_health(&health, &change);
    assert_eq!(*CALLS.lock().unwrap(), ["replaced", "idle"]);
}

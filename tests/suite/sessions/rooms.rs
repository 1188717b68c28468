//! The recipe of `docs/session-map.md` for rooms behind an async lock, whose entries one task removes.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::io::duplex;
use tokio::sync::{RwLock, mpsc};
use tower_ws_liveness::{ConnectionId, Evictions, Health, HeartbeatLayer, Liveness};

type Room = HashMap<ConnectionId, mpsc::Sender<String>>;
type Rooms = Arc<RwLock<HashMap<String, Room>>>;

async fn join(live: &Liveness, rooms: &Rooms, name: String, member: mpsc::Sender<String>) {
    live.set_session(name.clone());
    let id = live.id();
    let mut all = rooms.write().await;
    all.entry(name.clone()).or_default().insert(id, member);
    drop(all);
    if live.health() == Health::Ended {
        leave(rooms, &name, id).await;
    }
}

async fn remove_evicted(mut evictions: Evictions, rooms: Rooms) {
    while let Some(eviction) = evictions.recv().await {
        let ev = eviction.expect("few evictions");
        if let Some(name) = ev.session::<String>() {
            leave(&rooms, &name, ev.id()).await;
        }
    }
}

async fn leave(rooms: &Rooms, name: &str, id: ConnectionId) {
    if let Some(room) = rooms.write().await.get_mut(name) {
        room.remove(&id);
    }
}

#[tokio::test(start_paused = true)]
async fn one_task_removes_the_members_of_rooms_behind_an_async_lock() {
    let layer = HeartbeatLayer::default();
    let rooms = Rooms::default();
    tokio::spawn(remove_evicted(layer.registry().evictions(), rooms.clone()));

    let (io, _silent_peer) = duplex(64);
    let (_stream, live) = layer.wrap_server(io);
    let (member, mut pushes) = mpsc::channel(1);
    join(&live, &rooms, "lobby".to_owned(), member).await;
    assert_eq!(rooms.read().await["lobby"].len(), 1);
    // The heartbeat evicts the peer, and the member's only sender is dropped with its entry.
    assert_eq!(pushes.recv().await, None);
    assert!(rooms.read().await["lobby"].is_empty());

    // Its eviction was handled before this insertion.
    join(&live, &rooms, "lobby".to_owned(), mpsc::channel(1).0).await;
    assert!(rooms.read().await["lobby"].is_empty());
}

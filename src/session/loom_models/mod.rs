//! Loom models of registrations that race with the end of a connection.
//!
//! In every order of events the map has exactly the seats of open connections and of lingering
//! sessions, and hooks get exactly the seats that the end of their connection removed.

mod groups;
mod lingering;
mod registrations;

use std::collections::HashMap;
use std::sync::Arc;

use super::unopened::connection;
use super::{Seat, SessionMap};
use crate::connection::Liveness;
use crate::eviction::ConnectionId;
use crate::sync::Mutex;

/// A map that loom can interleave with: each call is one step of the model.
#[derive(Default)]
struct ModelMap(Mutex<HashMap<u8, Seat<u8>>>);

impl SessionMap<u8, u8> for ModelMap {
    fn insert_if(
        &self,
        key: u8,
        seat: Seat<u8>,
        admit: &mut dyn FnMut(&Seat<u8>) -> bool,
    ) -> Result<Option<Seat<u8>>, Seat<u8>> {
        let mut map = self.0.lock().unwrap();
        match map.get(&key) {
            Some(occupant) if !admit(occupant) => Err(occupant.clone()),
            _ => Ok(map.insert(key, seat)),
        }
    }

    fn remove_if(&self, key: &u8, id: ConnectionId) -> Option<Seat<u8>> {
        let mut map = self.0.lock().unwrap();
        let holds_seat = map.get(key).is_some_and(|seat| seat.id() == id);
        holds_seat.then(|| map.remove(key)).flatten()
    }
}

impl ModelMap {
    fn holder(&self) -> Option<ConnectionId> {
        self.0.lock().unwrap().get(&KEY).map(Seat::id)
    }
}

const KEY: u8 = 7;

/// Records the number of seats in each call of the connection's eviction hook.
fn record_seats(live: &Liveness) -> Arc<Mutex<Vec<usize>>> {
    let seat_counts = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&seat_counts);
    live.on_evict(move |ev| hook.lock().unwrap().push(ev.seats::<u8, u8>().count()));
    seat_counts
}

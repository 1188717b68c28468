//! `Arc<M>`: delegates to the map inside.

use std::sync::Arc;

use crate::eviction::ConnectionId;
use crate::session::{MapLocation, Seat, SessionMap};

#[diagnostic::do_not_recommend]
impl<K, V, M> SessionMap<K, V> for Arc<M>
where
    M: SessionMap<K, V> + ?Sized,
{
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>> {
        (**self).insert_if(key, seat, admit)
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        (**self).remove_if(key, id)
    }

    fn location(&self) -> MapLocation {
        (**self).location().inside(self)
    }
}

//! Sessions that are resumed, expire or are ended by the application: each one once.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{Empty, empty};

use super::{KEY, ModelMap, connection};
use crate::connection::{LayerConfig, LayerHooks, Liveness, LivenessStream};
use crate::monitor::Policy;
use crate::session::{Linger, RegisterError};
use crate::sync::Mutex;
use crate::sync::modelled::{advance, all_done, check, thread};
use crate::wire::Role;

const GRACE: Duration = Duration::from_secs(1);

/// The values of the sessions that have ended.
type Ended = Arc<Mutex<Vec<u8>>>;

fn linger() -> (Linger<u8, u8>, Ended) {
    let ended = Ended::default();
    let hook = Arc::clone(&ended);
    let linger =
        Linger::builder(GRACE).on_session_end(move |end| hook.lock().unwrap().push(**end.value()));
    (linger.build().unwrap(), ended)
}

/// A connection that is open: its seat lingers at its end.
fn open() -> (LivenessStream<Empty>, Liveness) {
    let layer = LayerConfig::new(Policy::default(), None, LayerHooks::default());
    LivenessStream::wrap(empty(), Role::Server, &layer)
}

/// The map with the seat of a session, 1, whose connection has ended.
fn lingering(linger: &Linger<u8, u8>) -> Arc<ModelMap> {
    let map = Arc::new(ModelMap::default());
    let (stream, live) = open();
    drop(live.register_lingering(&map, KEY, 1, linger).unwrap());
    drop(stream);
    assert_eq!(linger.lingering(), 1);
    map
}

#[test]
fn loom_a_lingering_session_is_resumed_or_expires() {
    check("resume, while the grace period ends", 3, || {
        let (linger, ended) = linger();
        let map = lingering(&linger);
        let new = connection();
        let (resuming, into, its_linger) = (new.clone(), Arc::clone(&map), linger.clone());
        let resumed = Arc::new(Mutex::new(None));
        let result = Arc::clone(&resumed);
        thread(move || {
            let registered = resuming.register_lingering(&into, KEY, 2, &its_linger);
            let registered = registered.unwrap();
            let value = **registered.seat();
            *result.lock().unwrap() = Some((value, registered.resumed().is_some()));
        });
        advance(GRACE * 2);
        all_done();
        assert_eq!((map.holder(), linger.lingering()), (Some(new.id()), 0));
        let (value, resumed) = resumed.lock().unwrap().unwrap();
        assert_eq!(value, if resumed { 1 } else { 2 });
        let expired = if resumed { vec![] } else { vec![1] };
        assert_eq!(*ended.lock().unwrap(), expired);
        assert!(new.evict(4_000, ""));
        let all = if resumed { vec![1] } else { vec![1, 2] };
        assert_eq!(*ended.lock().unwrap(), all);
        assert_eq!(map.holder(), None);
    });
}

#[test]
fn loom_a_lingering_session_expires_or_is_handed_over() {
    check("hand over, while the grace period ends", 3, || {
        let (linger, ended) = linger();
        let map = lingering(&linger);
        let (handing_over, count) = (linger.clone(), Arc::new(Mutex::new(0)));
        let handed_over = Arc::clone(&count);
        thread(move || *handed_over.lock().unwrap() = handing_over.hand_over().len());
        advance(GRACE * 2);
        all_done();
        let expired = ended.lock().unwrap().len();
        assert_eq!(expired + *count.lock().unwrap(), 1);
        assert_eq!((map.holder(), linger.lingering()), (None, 0));
    });
}

#[test]
fn loom_a_connection_ends_while_its_session_is_resumed() {
    check("resume, while an open connection ends", 2, || {
        let (linger, ended) = linger();
        let map = Arc::new(ModelMap::default());
        let ((stream, old), new) = (open(), connection());
        drop(old.register_lingering(&map, KEY, 1, &linger).unwrap());
        let (resuming, into, its_linger) = (new.clone(), Arc::clone(&map), linger.clone());
        thread(move || {
            let registered = resuming.register_lingering(&into, KEY, 2, &its_linger);
            // Whether it lingers already or not, the session goes on.
            let registered = registered.unwrap();
            assert_eq!(
                (**registered.seat(), registered.resumed().is_some()),
                (1, true)
            );
        });
        thread(move || drop(stream));
        all_done();
        assert_eq!((map.holder(), linger.lingering()), (Some(new.id()), 0));
        assert!(ended.lock().unwrap().is_empty());
        assert!(new.evict(4_000, ""));
        assert_eq!(*ended.lock().unwrap(), [1]);
    });
}

#[test]
fn loom_a_session_is_resumed_or_ends_once() {
    check("resume, while the occupant ends", 3, || {
        let map = Arc::new(ModelMap::default());
        let (old, new) = (connection(), connection());
        let (linger, ended) = linger();
        drop(old.register_lingering(&map, KEY, 1, &linger).unwrap());
        let (resuming, into, its_linger) = (new.clone(), Arc::clone(&map), linger.clone());
        let resumed = Arc::new(Mutex::new(None));
        let result = Arc::clone(&resumed);
        thread(move || {
            let registered = resuming.register_lingering(&into, KEY, 2, &its_linger);
            let registered = registered.unwrap();
            let value = **registered.seat();
            *result.lock().unwrap() = Some((value, registered.resumed().is_some()));
        });
        thread(move || {
            old.evict(4_000, "");
        });
        all_done();
        assert_eq!(map.holder(), Some(new.id()));
        let (value, resumed) = resumed.lock().unwrap().unwrap();
        assert_eq!(value, if resumed { 1 } else { 2 });
        // A session that was not resumed has ended.
        assert_eq!(
            *ended.lock().unwrap(),
            if resumed { vec![] } else { vec![1] }
        );
        assert!(new.evict(4_000, ""));
        let all = if resumed { vec![1] } else { vec![1, 2] };
        assert_eq!(*ended.lock().unwrap(), all);
        assert_eq!(map.holder(), None);
    });
}

#[test]
fn loom_two_connections_resume_one_session() {
    check("resume twice", 2, || {
        let map = Arc::new(ModelMap::default());
        let (linger, ended) = linger();
        let old = connection();
        drop(old.register_lingering(&map, KEY, 1, &linger).unwrap());
        let newcomers = [connection(), connection()];
        for live in &newcomers {
            let (live, map, linger) = (live.clone(), Arc::clone(&map), linger.clone());
            thread(move || {
                match live.register_lingering(&map, KEY, 2, &linger) {
                    Ok(registered) => assert_eq!(**registered.seat(), 1),
                    // The other one has replaced it already.
                    Err(error) => assert!(matches!(error, RegisterError::Ended { .. })),
                }
            });
        }
        all_done();
        assert!(ended.lock().unwrap().is_empty());
        let holder = map.holder().unwrap();
        for live in newcomers.into_iter().chain([old]) {
            assert_eq!(live.evict(4_000, ""), live.id() == holder);
        }
        assert_eq!(*ended.lock().unwrap(), [1]);
        assert_eq!(map.holder(), None);
    });
}

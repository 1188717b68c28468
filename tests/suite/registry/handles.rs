//! The handles of a registry's connections, evictions by a predicate, and the totals.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tower_ws_liveness::{ConnectionId, HeartbeatLayer, Liveness, LivenessStream, Reason, Registry};

use crate::support::recorder::Recorder;

/// A connection of the layer, and its peer's end.
type Opened = (LivenessStream<DuplexStream>, Liveness, DuplexStream);

fn open(layer: &HeartbeatLayer) -> Opened {
    let (near, far) = duplex(256);
    let (stream, live) = layer.wrap_server(near);
    (stream, live, far)
}

fn ids<'a>(lives: impl IntoIterator<Item = &'a Liveness>) -> Vec<ConnectionId> {
    lives.into_iter().map(Liveness::id).collect()
}

#[tokio::test]
async fn handles_are_those_of_the_open_connections_oldest_first() {
    let layer = HeartbeatLayer::default();
    let registry = layer.registry();
    assert!(registry.handles().is_empty());
    let mut opened: Vec<_> = (0..100).map(|_| open(&layer)).collect();
    assert_eq!(
        ids(&registry.handles()),
        ids(opened.iter().map(|(_, live, _)| live))
    );
    opened.retain(|(_, live, _)| live.id().as_u64() % 3 == 0);
    assert_eq!(
        ids(&registry.handles()),
        ids(opened.iter().map(|(_, live, _)| live))
    );
}

#[tokio::test]
async fn ids_that_no_connection_has_find_none() {
    let layer = HeartbeatLayer::default();
    let registry = layer.registry();
    let (_stream, live, _peer) = open(&layer);
    let parsed: ConnectionId = live.id().to_string().parse().unwrap();
    assert_eq!(
        registry.get(parsed).map(|found| found.id()),
        Some(live.id())
    );
    let never_issued = ConnectionId::from_u64(u64::MAX).unwrap();
    assert!(registry.get(never_issued).is_none());
}

#[tokio::test]
async fn a_predicate_selects_the_connections_to_evict() {
    let recorder = Recorder::new();
    let layer = HeartbeatLayer::builder()
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let registry = layer.registry();
    let mut opened: Vec<_> = (0..10_u32).map(|_| open(&layer)).collect();
    for (index, (_, live, _)) in (0_u32..).zip(&opened) {
        live.set_session(index);
    }
    let mut seen = Vec::new();
    let count = registry.evict_where(
        |live| {
            // Each of these calls would deadlock under a lock of the registry or the connection.
            assert!(registry.get(live.id()).is_some());
            assert_eq!(registry.snapshot().len(), registry.len());
            let index = *live.session::<u32>().unwrap();
            // The next one ends before its turn.
            if index == 4 {
                assert!(opened[5].1.evict(4999, ""));
            }
            seen.push(index);
            index % 3 == 1
        },
        // Must not be sent, so the peer gets 1011.
        1005,
        "x".repeat(200),
    );
    assert_eq!(seen, [0, 1, 2, 3, 4, 6, 7, 8, 9]);
    assert_eq!((count, registry.len()), (3, 6));
    let kicked: Vec<_> = recorder.all().iter().map(|event| event.reason).collect();
    let [by_predicate, by_handle] = [1005, 4999].map(|code| Reason::Kicked { code });
    assert_eq!(
        kicked,
        [by_predicate, by_handle, by_predicate, by_predicate]
    );
    let mut frame = [0; 127];
    opened[1].2.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[..5], [0x88, 125, 0x03, 0xf3, b'x']);
    assert_eq!(registry.evict_where(|_| false, 4000, ""), 0);
    assert_eq!(registry.evict_where(|_| true, 4000, ""), 6);
    assert_eq!(registry.evict_where(|_| true, 4000, ""), 0);
}

#[tokio::test]
async fn a_predicate_that_panics_leaves_the_registry_usable() {
    let layer = HeartbeatLayer::default();
    let registry = layer.registry();
    let opened = [(); 3].map(|()| open(&layer));
    let panics = |live: &Liveness| {
        assert!(live.id() < opened[1].1.id(), "a predicate that panics");
        true
    };
    let escaped = catch_unwind(AssertUnwindSafe(|| registry.evict_where(panics, 4000, "")));
    assert!(escaped.is_err());
    assert_eq!(ids(&registry.handles()), ids([&opened[1].1, &opened[2].1]));
    assert_eq!(registry.evict_where(|_| true, 4000, ""), 2);
}

#[tokio::test]
async fn totals_never_decrease() {
    let registry = Registry::new();
    let layer = HeartbeatLayer::builder()
        .registry(registry.clone())
        .build()
        .unwrap();
    assert_eq!((registry.opened_total(), registry.refused_total()), (0, 0));
    for total in 1..=3 {
        drop(open(&layer));
        assert_eq!((registry.opened_total(), registry.len()), (total, 0));
    }
    // A handshake that fails opens nothing.
    drop(layer.wrap_server_handshake(duplex(64).0));
    assert_eq!((registry.opened_total(), registry.refused_total()), (3, 0));
}

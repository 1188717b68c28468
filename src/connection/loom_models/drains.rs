//! A drain against the handler, the driver and another drain.

use std::sync::Arc;

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{AcqRel, Acquire};

use super::ends::{KICKED, assert_tracked_once, open};
use super::{TO_PEER, write_all};
use crate::monitor::{CloseFrame, Reason};
use crate::sync::modelled::{all_done, block_on, check, thread};

/// The Close frame of a drain.
fn going_away() -> CloseFrame {
    CloseFrame {
        code: 1001,
        reason: "".into(),
    }
}

#[test]
fn loom_a_task_that_awaits_the_transports_end_is_woken() {
    check(
        "until_transport_closed() and the closing handshake",
        3,
        || {
            let (stream, live, peer, announced) = open();
            let (awaited, seen) = (live.clone(), peer.clone());
            thread(move || {
                block_on(awaited.until_transport_closed());
                assert!(seen.is_transport_dropped());
            });
            thread(move || {
                live.evict(4_000, "");
                peer.end();
            });
            all_done();
            assert_eq!(announced.end(0), KICKED);
            drop(stream);
        },
    );
}

#[test]
fn loom_a_closing_handshake_is_cut_once() {
    check("two drains, both cut, and the peer's end", 2, || {
        let (stream, live, peer, announced) = open();
        let evicted_by = Arc::new(AtomicUsize::new(0));
        for _ in 0..2 {
            let (live, evicted_by, peer) = (live.clone(), Arc::clone(&evicted_by), peer.clone());
            thread(move || {
                evicted_by.fetch_add(
                    usize::from(live.evict_at_boundary(Reason::Drained, going_away())),
                    AcqRel,
                );
                live.cut();
                block_on(live.until_transport_closed());
                assert!(peer.is_transport_dropped());
                assert_eq!(block_on(live.evicted()).reason(), Reason::Drained);
            });
        }
        all_done();
        assert_eq!(evicted_by.load(Acquire), 1);
        assert_eq!(announced.end(0), Reason::Drained);
        assert_tracked_once(&announced);
        drop(stream);
    });
}

#[test]
fn loom_a_frame_is_not_torn_by_a_drain() {
    check("a frame in two writes, and a drain", 3, || {
        let (mut stream, live, peer, announced) = open();
        thread(move || {
            let (first, rest) = TO_PEER.split_at(2);
            if write_all(&mut stream, first).is_ok() {
                write_all(&mut stream, rest).unwrap();
            }
        });
        let answering = peer.clone();
        thread(move || {
            live.evict_at_boundary(Reason::Drained, going_away());
            answering.end();
            block_on(live.until_transport_closed());
        });
        all_done();
        announced.end(0);
        let written = peer.written();
        let whole = written.starts_with(&TO_PEER) || !written.starts_with(&TO_PEER[..1]);
        assert!(whole, "{written:?}");
    });
}

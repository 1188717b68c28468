//! Evictions deferred until the handler finishes its current frame.

use crate::connection::io::CloseHandshake;
use crate::connection::state::State;
use crate::monitor::{CloseFrame, Moment, Reason, TransportUse};

impl<T: 'static> State<T> {
    /// Like [`evict`](Self::evict), but after the frame that the handler is in the middle of. False
    /// if the connection has ended, or an eviction is deferred already.
    pub(crate) fn evict_at_boundary(
        &mut self,
        now: Moment,
        reason: Reason,
        frame: CloseFrame,
    ) -> bool {
        let lifecycle = self.monitor.lifecycle;
        if lifecycle.is_usable() && self.has_close_handshake() {
            return false;
        }
        if !lifecycle.is_usable() || lifecycle.is_ended() || !self.write_half.awaits_boundary() {
            return self.evict(now, reason, frame);
        }
        self.rare().close = Some(Box::new(CloseHandshake::deferred(reason, frame)));
        self.write_half.stop_at_boundary();
        true
    }

    /// Carries out a deferred eviction once the handler has finished its frame, or cannot finish
    /// it.
    #[inline]
    pub(crate) fn evict_deferred(&mut self) {
        if self.has_close_handshake() {
            self.evict_deferred_now_or_later();
        }
    }

    /// Whether an eviction is deferred, or its closing handshake awaits the transport or is under
    /// way.
    fn has_close_handshake(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.close.is_some())
    }

    fn evict_deferred_now_or_later(&mut self) {
        if !self.monitor.lifecycle.is_usable() || self.write_half.awaits_boundary() {
            return;
        }
        if let Some(timer) = &self.timer {
            let now = timer.now();
            self.evict_deferred_at(now);
        }
    }

    fn evict_deferred_at(&mut self, now: Moment) {
        let close = self.rare.as_mut().and_then(|rare| rare.close.take());
        if let Some((reason, frame)) = close.and_then(|close| close.into_deferred()) {
            self.evict(now, reason, frame);
        }
    }

    /// Waits no longer for an end that has come or is deferred: neither for the handler's frame nor
    /// for the peer. Returns whether the caller must drive the connection now, so that the bytes
    /// that the transport accepts immediately are sent.
    pub(crate) fn stop_waiting(&mut self, now: Moment) -> bool {
        if self.monitor.lifecycle.is_usable() {
            self.evict_deferred_at(now);
        }
        let close = self.rare.as_mut().and_then(|rare| rare.close.as_mut());
        match (self.monitor.lifecycle.transport(), close) {
            (Some(TransportUse::CloseHandshake), Some(close)) => {
                close.stop_waiting();
                true
            }
            (Some(TransportUse::Awaited), Some(close)) => {
                close.stop_waiting();
                false
            }
            (Some(TransportUse::Handler), _) => {
                self.monitor.lifecycle.release(false);
                false
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::{Instant, sleep};

    use crate::connection::{
        Connection, ErasedConnection, Liveness, LivenessStream, TransportTraits,
    };
    use crate::driver::Driver;
    use crate::wire::Role;

    fn opening() -> (Arc<Connection<DuplexStream>>, Liveness) {
        let connection = Connection::new(Role::Server, TransportTraits::FOREIGN);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        (connection, live)
    }

    #[track_caller]
    fn assert_transport_closed(live: &Liveness, clean: bool) {
        assert!(live.is_transport_closed());
        let closed =
            pin!(live.until_transport_closed()).poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(closed, Poll::Ready(clean));
    }

    #[test]
    fn a_failed_upgrade_closes_the_transport_of_a_connection_that_never_opened() {
        type Failure = fn(&Arc<Connection<DuplexStream>>);
        let failures: [Failure; 2] = [Connection::upgrade_failed, Connection::not_upgraded];
        for fail in failures {
            for evicted in [false, true] {
                let (connection, live) = opening();
                if evicted {
                    assert!(live.evict(1000, "bye"));
                    assert!(
                        !live.is_transport_closed(),
                        "the upgrade may still complete"
                    );
                }
                fail(&connection);
                assert_transport_closed(&live, false);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_transport_that_comes_after_the_eviction_is_closed_with_its_frame() {
        let close = [0x88, 5, 0x03, 0xe8, b'b', b'y', b'e'];
        for answered in [true, false] {
            let (connection, live) = opening();
            assert!(live.evict(1000, "bye"));
            assert!(!live.evict(1001, "no"));
            // Longer than `close_timeout`, which is counted from the opening.
            sleep(Duration::from_secs(60)).await;
            assert!(!live.is_transport_closed());
            let (ours, mut theirs) = duplex(64);
            let opened = Instant::now();
            assert!(LivenessStream::open(connection, ours, &Driver::expect_current()).is_none());
            let mut frame = [0; 7];
            theirs.read_exact(&mut frame).await.unwrap();
            assert_eq!(frame, close);
            if answered {
                let answer = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
                theirs.write_all(&answer).await.unwrap();
            }
            assert_eq!(theirs.read(&mut frame).await.unwrap(), 0);
            assert_eq!(live.until_transport_closed().await, answered);
            let took = opened.elapsed().as_secs();
            assert_eq!(took, if answered { 0 } else { 5 });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_before_the_transport_comes_leaves_it_no_time() {
        let (connection, live) = opening();
        assert!(live.evict(1000, "bye"));
        live.cut();
        let (ours, mut theirs) = duplex(64);
        let opened = Instant::now();
        assert!(LivenessStream::open(connection, ours, &Driver::expect_current()).is_none());
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, [0x88, 5, 0x03, 0xe8, b'b', b'y', b'e']);
        assert_eq!(opened.elapsed(), Duration::ZERO);
        assert_transport_closed(&live, false);
    }

    #[tokio::test]
    async fn an_open_connection_is_neither_cut_nor_closed() {
        let (connection, live) = opening();
        let (ours, theirs) = duplex(64);
        let stream = LivenessStream::open(connection, ours, &Driver::expect_current()).unwrap();
        live.cut();
        assert!(!live.is_transport_closed());
        assert_eq!(live.health().to_string(), "live");
        drop(stream);
        assert_transport_closed(&live, false);
        drop(theirs);
    }
}

//! Ends that wait for the handler's frame, or no longer for anybody.

use crate::connection::state::{Phase, State};
use crate::monitor::{CloseFrame, Moment, Reason};

impl<T: 'static> State<T> {
    /// Ends the connection as [`evict`](Self::evict) does, but after the frame that the handler is
    /// in the middle of. False if it has ended, or is about to end this way, already.
    pub(crate) fn part(&mut self, now: Moment, reason: Reason, frame: CloseFrame) -> bool {
        match &mut self.phase {
            Phase::Open { parting: Some(_) } => false,
            Phase::Open { parting }
                if !self.monitor.is_over() && self.write_half.has_end_ahead() =>
            {
                *parting = Some(Box::new((reason, frame)));
                self.write_half.stop_at_boundary();
                true
            }
            _ => self.evict(now, reason, frame),
        }
    }

    /// Ends a connection that is about to end, once the handler has finished its frame, or cannot.
    #[inline]
    pub(crate) fn part_at_boundary(&mut self) {
        if let Phase::Open { parting: Some(_) } = self.phase {
            self.part_now_or_later();
        }
    }

    fn part_now_or_later(&mut self) {
        let (Phase::Open { parting }, Some(timer)) = (&mut self.phase, &self.timer) else {
            return;
        };
        if self.write_half.has_end_ahead() {
            return;
        }
        if let Some(parting) = parting.take() {
            let now = timer.driver.clock().now();
            let (reason, frame) = *parting;
            self.evict(now, reason, frame);
        }
    }

    /// Nobody waits any longer for an end that has come or was asked for: neither for the frame
    /// that the handler is in the middle of, nor for the peer. Returns whether there is something to be
    /// said to the peer, if it can be said at once.
    pub(crate) fn hurry(&mut self, now: Moment) -> bool {
        if let Phase::Open { parting } = &mut self.phase {
            if let Some(parting) = parting.take() {
                let (reason, frame) = *parting;
                self.evict(now, reason, frame);
            }
        }
        match &mut self.phase {
            Phase::Evicting { closing, .. } => {
                closing.hurry();
                true
            }
            Phase::Opening {
                closing: Some(closing),
            } => {
                closing.hurry();
                false
            }
            Phase::Open { .. } if self.monitor.is_over() => {
                self.phase = Phase::Closed {
                    reason: self.monitor.reason(),
                    readable: true,
                };
                false
            }
            Phase::Opening { closing: None } | Phase::Open { .. } | Phase::Closed { .. } => false,
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
    use crate::wire::Role;

    fn opening() -> (Arc<Connection<DuplexStream>>, Liveness) {
        let connection = Connection::new(Role::Server, TransportTraits::FOREIGN);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        (connection, live)
    }

    #[track_caller]
    fn assert_told(live: &Liveness, clean: bool) {
        assert!(live.is_closed());
        let closed = pin!(live.closed()).poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(closed, Poll::Ready(clean));
    }

    #[test]
    fn a_connection_that_never_opens_is_gone_when_the_upgrade_is_given_up() {
        type Failure = fn(&Arc<Connection<DuplexStream>>);
        let failures: [Failure; 2] = [Connection::upgrade_failed, Connection::not_upgraded];
        for fail in failures {
            for evicted in [false, true] {
                let (connection, live) = opening();
                if evicted {
                    assert!(live.evict(1000, "bye"));
                    assert!(!live.is_closed(), "a transport may yet come");
                }
                fail(&connection);
                assert_told(&live, false);
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
            assert!(!live.is_closed());
            let (ours, mut theirs) = duplex(64);
            let opened = Instant::now();
            assert!(LivenessStream::open(connection, ours).is_none());
            let mut frame = [0; 7];
            theirs.read_exact(&mut frame).await.unwrap();
            assert_eq!(frame, close);
            if answered {
                let answer = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
                theirs.write_all(&answer).await.unwrap();
            }
            assert_eq!(theirs.read(&mut frame).await.unwrap(), 0);
            assert_eq!(live.closed().await, answered);
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
        assert!(LivenessStream::open(connection, ours).is_none());
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, [0x88, 5, 0x03, 0xe8, b'b', b'y', b'e']);
        assert_eq!(opened.elapsed(), Duration::ZERO);
        assert_told(&live, false);
    }

    #[tokio::test]
    async fn a_connection_that_lives_is_neither_cut_nor_gone() {
        let (connection, live) = opening();
        let (ours, theirs) = duplex(64);
        let stream = LivenessStream::open(connection, ours).unwrap();
        live.cut();
        assert!(!live.is_closed());
        assert_eq!(live.health().to_string(), "live");
        drop(stream);
        assert_told(&live, false);
        drop(theirs);
    }
}

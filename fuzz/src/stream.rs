//! Runs a scenario on a stream over a scripted transport, with paused time.
//!
//! The checks: both sides read each other's bytes, every pending operation is woken when it becomes
//! ready, and the connection is evicted once.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use tokio::io::AsyncWrite;
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep};
use tower_ws_liveness::{Evicted, Eviction, Liveness, Reason, Registry};

use crate::scenario::{Forgery, Op, Scenario, Step, flipped, millis};
use crate::script::{self, PONG, Peer, Role, Stream, Wakes, frame, script};
use crate::transparent;

/// Longer scenarios reach no new states and take long.
const MAX_OPS: usize = 200;

/// Runs the scenario that is decoded from `data`.
pub fn run(data: &[u8]) {
    let Ok(scenario) = Scenario::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    // Ping tags and masking keys are reproducible for an input, and differ between inputs.
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    fastrand::seed(hasher.finish());
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(Simulation::run(&scenario));
}

/// An operation of the handler that may be pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Flush,
    Shutdown,
}

/// One connection with its handler and its peer.
pub(crate) struct Simulation {
    pub(crate) role: Role,
    pub(crate) close_timeout: Duration,
    pub(crate) stream: Option<Stream>,
    pub(crate) live: Liveness,
    pub(crate) registry: Registry,
    pub(crate) peer: Peer,
    wakes: Arc<Wakes>,
    pub(crate) evictions: Arc<Mutex<Vec<(Reason, Instant)>>>,
    /// The bytes that the peer has sent.
    pub(crate) sent: Vec<u8>,
    /// The bytes that the peer holds back until it sends again.
    held: Vec<u8>,
    /// The pings that the peer has answered.
    pub(crate) answered: Vec<[u8; 8]>,
    /// The bytes that the handler will write.
    queue: VecDeque<u8>,
    /// The bytes that the stream has accepted from the handler.
    pub(crate) accepted: Vec<u8>,
    /// The bytes that the handler has read.
    pub(crate) handler_read: Vec<u8>,
    /// The last pending operation in each direction, and the number of wakes before it.
    pending: [Option<(Operation, usize)>; 2],
    pub(crate) ended: bool,
    pub(crate) shut: bool,
    /// The handler has written arbitrary bytes, which may look like the layer's frames.
    pub(crate) raw: bool,
    pub(crate) kicked: bool,
    /// The number of huge frames so far.
    huge: u8,
    /// The total time for which the process was stopped.
    pub(crate) paused: Duration,
    /// The result of the last [`check_outbound`](Self::check_outbound), and the lengths that it
    /// applies to.
    checked: ((usize, usize), transparent::Injected),
}

impl Simulation {
    async fn run(scenario: &Scenario) {
        let evictions = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&evictions);
        let layer = scenario
            .builder()
            .on_evict(move |ev: &Eviction| {
                log.lock().unwrap().push((ev.reason(), Instant::now()));
            })
            .build()
            .expect("a valid policy");
        let (io, peer) = script();
        if scenario.vectored {
            peer.vectored();
        }
        let (stream, live) = scenario.role().wrap(&layer, io);
        let mut simulation = Self {
            role: scenario.role(),
            close_timeout: scenario.close_timeout(),
            stream: Some(stream),
            live,
            registry: layer.registry(),
            peer,
            wakes: Wakes::new(),
            evictions,
            sent: Vec::new(),
            held: Vec::new(),
            answered: Vec::new(),
            queue: VecDeque::new(),
            accepted: Vec::new(),
            handler_read: Vec::new(),
            pending: [None; 2],
            ended: false,
            shut: false,
            raw: false,
            kicked: false,
            huge: 0,
            paused: Duration::ZERO,
            checked: Default::default(),
        };
        for op in scenario.ops.iter().take(MAX_OPS) {
            simulation.perform(op).await;
            simulation.settle().await;
            simulation.check_outbound();
        }
        if scenario.read_to_the_end {
            simulation.read_to_the_end().await;
        }
        simulation.end().await;
    }

    async fn perform(&mut self, op: &Op) {
        match op {
            Op::PeerFrame(spec, hold) => {
                if spec.is_huge() && self.exceeds_huge_frames() {
                    return;
                }
                let frame = spec.frame(false, |key| self.role.inbound(key));
                self.peer_sends(&frame, *hold);
            }
            Op::PeerRaw(bytes) => self.peer_sends(bytes, 0),
            Op::PeerPong(back, hold) => {
                if let Some(ping) = self.ping(*back) {
                    self.answered.push(ping);
                    let key = self.role.inbound([9, 8, 7, 6]);
                    let key = if *hold < 128 { key } else { flipped(key) };
                    self.peer_sends(&frame(0x80 | PONG, key, &ping), *hold);
                }
            }
            Op::PeerForges(back, forgery) => {
                if let Some(ping) = self.ping(*back) {
                    self.peer_sends(&self.forge(ping, forgery), 0);
                }
            }
            Op::PeerEnds(eof) => {
                self.peer_sends(&[], 0);
                self.ended = true;
                self.peer.end(if *eof {
                    Ok(())
                } else {
                    Err(ErrorKind::ConnectionReset)
                });
            }
            Op::Queue(spec) => {
                if !(spec.is_huge() && self.exceeds_huge_frames()) {
                    self.queue
                        .extend(spec.frame(true, |key| self.role.outbound(key)));
                }
            }
            Op::QueueRaw(bytes) => {
                self.raw = true;
                self.queue.extend(bytes);
            }
            Op::Write(size) => self.write(usize::from(*size), None),
            Op::WriteMuch => self.write(usize::MAX, None),
            Op::WriteVectored(size, at) => self.write(usize::from(*size), Some(usize::from(*at))),
            Op::Flush => self.flush(),
            Op::Shutdown => self.shutdown(),
            Op::Read(size) => {
                self.read(1 + usize::from(*size));
            }
            Op::ReadMuch => {
                self.read(100_000);
            }
            Op::Drop => self.stream = None,
            Op::Evict(code, len) => {
                self.kicked |= self.live.evict(*code, "é".repeat(usize::from(*len)));
            }
            Op::ReadSteps(steps) => self.peer.read_steps(&steps.map(Step::size)),
            Op::WriteSteps(steps) => {
                self.peer.kick();
                self.peer.write_steps(&steps.map(Step::size));
            }
            Op::WriteFails => {
                self.peer.wire().write_error = Some(ErrorKind::BrokenPipe);
                self.peer.drain();
            }
            Op::FlushWaits => self.peer.wire().flush_waits = true,
            Op::Kick => self.peer.kick(),
            Op::Drain => self.peer.drain(),
            Op::Sleep(time) => sleep(millis(*time)).await,
            Op::Pause(time) => {
                self.paused += millis(*time);
                advance(millis(*time)).await;
            }
        }
    }

    /// Yields until all woken tasks were polled.
    pub(crate) async fn settle(&self) {
        for _ in 0..8 {
            yield_now().await;
        }
    }

    /// Counts a huge frame. Returns whether the scenario already had two.
    fn exceeds_huge_frames(&mut self) -> bool {
        self.huge += 1;
        self.huge > 2
    }

    /// Sends the bytes held back so far and `bytes`, without the last `hold % 16` of them.
    pub(crate) fn peer_sends(&mut self, bytes: &[u8], hold: u8) {
        if self.ended {
            return;
        }
        let mut now = std::mem::take(&mut self.held);
        now.extend_from_slice(bytes);
        // At most the frame itself: a pong of an earlier call, already recorded as answered, must
        // be sent.
        let hold = bytes.len().min(usize::from(hold % 16));
        self.held = now.split_off(now.len() - hold);
        self.sent.extend_from_slice(&now);
        self.peer.send(&now);
    }

    /// The payload of a ping that the peer has received completely.
    fn ping(&mut self, back: u8) -> Option<[u8; 8]> {
        if self.raw || self.ended {
            return None;
        }
        let pings = &self.check_outbound().pings;
        let index = pings.len().checked_sub(1 + usize::from(back % 8))?;
        pings.get(index).copied()
    }

    fn forge(&self, mut ping: [u8; 8], forgery: &Forgery) -> Vec<u8> {
        let key = self.role.inbound([1, 2, 3, 4]);
        match forgery {
            // Changes the tag, so that no sequence number is valid.
            Forgery::Payload { at, flip } => {
                ping[usize::from(at % 4)] ^= flip.max(&1);
                frame(0x80 | PONG, key, &ping)
            }
            Forgery::Rsv(bits) => frame(0x90 | PONG | bits & 0x70, key, &ping),
            Forgery::Short => frame(0x80 | PONG, key, &ping[..7]),
            Forgery::Long => {
                let mut bytes = frame(0x80 | PONG, key, &ping);
                let mask = bytes[1] & 0x80;
                bytes.splice(1..2, [mask | 126, 0, 8]);
                bytes
            }
        }
    }

    /// Checks that the peer has received the handler's bytes with complete control frames in
    /// between, and returns these.
    pub(crate) fn check_outbound(&mut self) -> &transparent::Injected {
        let wire = self.peer.wire();
        let lens = (wire.written.len(), self.accepted.len());
        if lens != self.checked.0 {
            let masked = self.role == Role::Client;
            let injected = transparent::outbound(&wire.written, &self.accepted, masked);
            let injected = injected.unwrap_or_else(|| {
                let (received, accepted) = (&wire.written, &self.accepted);
                panic!("the peer received {received:x?} of {accepted:x?}")
            });
            self.checked = (lens, injected);
        }
        &self.checked.1
    }

    /// Checks that an operation which was pending has been woken, and checks its error. Returns its
    /// output if it is ready.
    fn check_result<T>(
        &mut self,
        operation: Operation,
        poll: Poll<std::io::Result<T>>,
    ) -> Option<T> {
        let slot = &mut self.pending[usize::from(operation != Operation::Read)];
        let wakes = self.wakes.count();
        let Poll::Ready(result) = poll else {
            *slot = Some((operation, wakes));
            return None;
        };
        if let Some((_, before)) = slot.take().filter(|(pending, _)| *pending == operation) {
            assert!(wakes > before, "{operation:?} became ready without a wake");
        }
        match result {
            Ok(done) => Some(done),
            Err(error) => {
                let evictions = self.evictions.lock().unwrap();
                match Evicted::from_error(&error) {
                    Some(evicted) => assert_eq!(
                        evictions.first().map(|(reason, _)| *reason),
                        Some(evicted.reason()),
                        "the reason differs from the hook's"
                    ),
                    None => assert!(
                        matches!(
                            error.kind(),
                            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                        ),
                        "an error that the transport did not return: {error:?}"
                    ),
                }
                None
            }
        }
    }

    /// Reads at most `size` bytes. Returns whether the handler has read any.
    pub(crate) fn read(&mut self, size: usize) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        let read = script::poll_read(stream, &self.wakes, size);
        let Some(bytes) = self.check_result(Operation::Read, read) else {
            return false;
        };
        self.handler_read.extend_from_slice(&bytes);
        let (expected, _) = transparent::inbound(&self.sent, &self.answered);
        assert!(
            expected.starts_with(&self.handler_read),
            "the handler read {:x?} of {expected:x?}",
            self.handler_read
        );
        if bytes.is_empty() {
            assert!(
                self.ended,
                "the stream ended, but the peer has not ended it"
            );
            assert_eq!(self.handler_read.len(), expected.len(), "truncated");
        }
        !bytes.is_empty()
    }

    fn write(&mut self, size: usize, cut: Option<usize>) {
        let (Some(stream), false) = (&mut self.stream, self.shut) else {
            return;
        };
        let bytes: Vec<u8> = self.queue.iter().copied().take(size).collect();
        let written = match cut {
            None => script::poll_write(stream, &self.wakes, &bytes),
            Some(cut) => {
                let (head, tail) = bytes.split_at(cut.min(bytes.len()));
                let slices = [IoSlice::new(head), IoSlice::new(&[]), IoSlice::new(tail)];
                let waker = Waker::from(Arc::clone(&self.wakes));
                Pin::new(stream).poll_write_vectored(&mut Context::from_waker(&waker), &slices)
            }
        };
        let Some(written) = self.check_result(Operation::Write, written) else {
            return;
        };
        assert!(written > 0 || bytes.is_empty(), "accepted no bytes");
        self.accepted.extend(self.queue.drain(..written));
    }

    fn flush(&mut self) {
        if let Some(stream) = &mut self.stream {
            let flushed = script::poll_flush(stream, &self.wakes);
            self.check_result(Operation::Flush, flushed);
        }
    }

    fn shutdown(&mut self) {
        if let Some(stream) = &mut self.stream {
            self.shut = true;
            let waker = Waker::from(Arc::clone(&self.wakes));
            let done = Pin::new(stream).poll_shutdown(&mut Context::from_waker(&waker));
            self.check_result(Operation::Shutdown, done);
        }
    }
}

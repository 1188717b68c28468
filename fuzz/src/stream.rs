//! The whole stream over a scripted transport, on paused time: whatever happens in whatever order,
//! both sides read each other's bytes, nobody waits in vain, and the end is told once.

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

/// Longer ones show nothing new, and take long.
const MAX_OPS: usize = 200;

/// Plays the scenario that `data` stands for.
pub fn run(data: &[u8]) {
    let Ok(scenario) = Scenario::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    // Tags and masking keys repeat with the input, and cannot be guessed from another one.
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    fastrand::seed(hasher.finish());
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(Scene::play(&scenario));
}

/// The handler's operations that may have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Read,
    Write,
    Flush,
    Shutdown,
}

pub(crate) struct Scene {
    pub(crate) role: Role,
    pub(crate) close_timeout: Duration,
    pub(crate) stream: Option<Stream>,
    pub(crate) live: Liveness,
    pub(crate) registry: Registry,
    pub(crate) peer: Peer,
    wakes: Arc<Wakes>,
    pub(crate) evictions: Arc<Mutex<Vec<(Reason, Instant)>>>,
    /// What the peer has sent, and what it will send next.
    pub(crate) sent: Vec<u8>,
    held: Vec<u8>,
    /// The pings that the peer has answered.
    pub(crate) answered: Vec<[u8; 8]>,
    /// What the handler will write, has written, and has read.
    queue: VecDeque<u8>,
    pub(crate) accepted: Vec<u8>,
    pub(crate) heard: Vec<u8>,
    /// The operations that got `Pending` last, in each direction, and the wakes until then.
    waiting: [Option<(Waits, usize)>; 2],
    pub(crate) ended: bool,
    pub(crate) shut: bool,
    /// The handler's bytes may look like the wrapper's.
    pub(crate) raw: bool,
    pub(crate) kicked: bool,
    huge: u8,
    pub(crate) jumped: Duration,
    /// The last look at what the peer has received, and at how many bytes.
    seen: ((usize, usize), transparent::Injected),
}

impl Scene {
    async fn play(scenario: &Scenario) {
        let evictions = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&evictions);
        let layer = scenario
            .builder()
            .on_evict(move |ev: &Eviction| {
                told.lock().unwrap().push((ev.reason(), Instant::now()));
            })
            .build()
            .expect("a valid policy");
        let (io, peer) = script();
        if scenario.vectored {
            peer.vectored();
        }
        let (stream, live) = scenario.role().wrap(&layer, io);
        let mut scene = Self {
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
            heard: Vec::new(),
            waiting: [None; 2],
            ended: false,
            shut: false,
            raw: false,
            kicked: false,
            huge: 0,
            jumped: Duration::ZERO,
            seen: Default::default(),
        };
        for op in scenario.ops.iter().take(MAX_OPS) {
            scene.perform(op).await;
            scene.settle().await;
            scene.look();
        }
        if scenario.in_peace {
            scene.read_to_the_end().await;
        }
        scene.end().await;
    }

    async fn perform(&mut self, op: &Op) {
        match op {
            Op::PeerFrame(said, hold) => {
                if said.is_huge() && self.is_enough() {
                    return;
                }
                let frame = said.frame(false, |key| self.role.inbound(key));
                self.peer_says(&frame, *hold);
            }
            Op::PeerRaw(bytes) => self.peer_says(bytes, 0),
            Op::PeerPong(back, hold) => {
                if let Some(ping) = self.ping(*back) {
                    self.answered.push(ping);
                    let key = self.role.inbound([9, 8, 7, 6]);
                    let key = if *hold < 128 { key } else { flipped(key) };
                    self.peer_says(&frame(0x80 | PONG, key, &ping), *hold);
                }
            }
            Op::PeerForges(back, forgery) => {
                if let Some(ping) = self.ping(*back) {
                    self.peer_says(&self.forge(ping, forgery), 0);
                }
            }
            Op::PeerEnds(whole) => {
                self.peer_says(&[], 0);
                self.ended = true;
                self.peer.end(if *whole {
                    Ok(())
                } else {
                    Err(ErrorKind::ConnectionReset)
                });
            }
            Op::Say(said) => {
                if !(said.is_huge() && self.is_enough()) {
                    self.queue
                        .extend(said.frame(true, |key| self.role.outbound(key)));
                }
            }
            Op::SayRaw(bytes) => {
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
            Op::Jump(time) => {
                self.jumped += millis(*time);
                advance(millis(*time)).await;
            }
        }
    }

    /// Everybody who was woken has been polled.
    pub(crate) async fn settle(&self) {
        for _ in 0..8 {
            yield_now().await;
        }
    }

    /// Enough huge frames for one scenario.
    fn is_enough(&mut self) -> bool {
        self.huge += 1;
        self.huge > 2
    }

    pub(crate) fn peer_says(&mut self, bytes: &[u8], hold: u8) {
        if self.ended {
            return;
        }
        let mut now = std::mem::take(&mut self.held);
        now.extend_from_slice(bytes);
        // Not more than the frame itself, or a pong might be sent that has been answered late.
        let hold = bytes.len().min(usize::from(hold % 16));
        self.held = now.split_off(now.len() - hold);
        self.sent.extend_from_slice(&now);
        self.peer.send(&now);
    }

    /// A ping that the peer has received whole.
    fn ping(&mut self, back: u8) -> Option<[u8; 8]> {
        if self.raw || self.ended {
            return None;
        }
        let pings = &self.look().pings;
        let index = pings.len().checked_sub(1 + usize::from(back % 8))?;
        pings.get(index).copied()
    }

    fn forge(&self, mut ping: [u8; 8], forgery: &Forgery) -> Vec<u8> {
        let key = self.role.inbound([1, 2, 3, 4]);
        match forgery {
            // The tag is wrong, whatever the count.
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

    /// What the peer has received is the handler's, with whole frames in between.
    pub(crate) fn look(&mut self) -> &transparent::Injected {
        let wire = self.peer.wire();
        let lens = (wire.written.len(), self.accepted.len());
        if lens != self.seen.0 {
            let masked = self.role == Role::Client;
            let injected = transparent::outbound(&wire.written, &self.accepted, masked);
            let injected = injected.unwrap_or_else(|| {
                let (received, accepted) = (&wire.written, &self.accepted);
                panic!("the peer received {received:x?} of {accepted:x?}")
            });
            self.seen = (lens, injected);
        }
        &self.seen.1
    }

    /// Keeps account of whom was promised a wake-up. Returns what the operation is ready with.
    fn came<T>(&mut self, what: Waits, poll: Poll<std::io::Result<T>>) -> Option<T> {
        let slot = &mut self.waiting[usize::from(what != Waits::Read)];
        let wakes = self.wakes.count();
        let Poll::Ready(result) = poll else {
            *slot = Some((what, wakes));
            return None;
        };
        if let Some((_, before)) = slot.take().filter(|(waited, _)| *waited == what) {
            assert!(wakes > before, "{what:?} was ready, and nobody was woken");
        }
        match result {
            Ok(done) => Some(done),
            Err(error) => {
                let evictions = self.evictions.lock().unwrap();
                match Evicted::from_error(&error) {
                    Some(evicted) => assert_eq!(
                        evictions.first().map(|(reason, _)| *reason),
                        Some(evicted.reason()),
                        "another reason than the hook's"
                    ),
                    None => assert!(
                        matches!(
                            error.kind(),
                            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                        ),
                        "an error that nobody made: {error:?}"
                    ),
                }
                None
            }
        }
    }

    /// Whether the handler got something to read.
    pub(crate) fn read(&mut self, size: usize) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        let read = script::poll_read(stream, &self.wakes, size);
        let Some(bytes) = self.came(Waits::Read, read) else {
            return false;
        };
        self.heard.extend_from_slice(&bytes);
        let (expected, _) = transparent::inbound(&self.sent, &self.answered);
        assert!(
            expected.starts_with(&self.heard),
            "the handler heard {:x?} of {expected:x?}",
            self.heard
        );
        if bytes.is_empty() {
            assert!(
                self.ended,
                "an end of the stream that the peer has not made"
            );
            assert_eq!(self.heard.len(), expected.len(), "the end came too early");
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
        let Some(written) = self.came(Waits::Write, written) else {
            return;
        };
        assert!(written > 0 || bytes.is_empty(), "accepted nothing");
        self.accepted.extend(self.queue.drain(..written));
    }

    fn flush(&mut self) {
        if let Some(stream) = &mut self.stream {
            let flushed = script::poll_flush(stream, &self.wakes);
            self.came(Waits::Flush, flushed);
        }
    }

    fn shutdown(&mut self) {
        if let Some(stream) = &mut self.stream {
            self.shut = true;
            let waker = Waker::from(Arc::clone(&self.wakes));
            let done = Pin::new(stream).poll_shutdown(&mut Context::from_waker(&waker));
            self.came(Waits::Shutdown, done);
        }
    }
}

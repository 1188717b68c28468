//! A scenario of a connection, decoded from the fuzzer's bytes.

use std::time::Duration;

use arbitrary::Arbitrary;
use tower_ws_liveness::{HeartbeatLayer, HeartbeatLayerBuilder, ProofOfLife};

use crate::script::{ALL, Role, WAIT, frame};

#[derive(Arbitrary, Debug)]
pub(crate) struct Scenario {
    client: bool,
    pub(crate) vectored: bool,
    interval: u8,
    timeout: u8,
    missed: u8,
    matching: bool,
    write_timeout: Option<u8>,
    handler_stall: Option<u8>,
    close_timeout: u8,
    /// Before the end, the transport is unblocked and the handler reads everything.
    pub(crate) read_to_the_end: bool,
    pub(crate) ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Op {
    /// The peer sends a frame. The number is how many of its last bytes are held back until the
    /// peer sends again.
    PeerFrame(FrameSpec, u8),
    PeerRaw(Vec<u8>),
    /// The peer answers one of the layer's pings, counted from the newest. The second number is
    /// that of bytes held back; from 128 on the pong is masked against the peer's role.
    PeerPong(u8, u8),
    /// The peer sends a frame that is similar to a pong to this ping.
    PeerForges(u8, Forgery),
    PeerEnds(bool),
    /// Queues a frame for the handler's next writes.
    Queue(FrameSpec),
    QueueRaw(Vec<u8>),
    Write(u8),
    WriteMuch,
    WriteVectored(u8, u8),
    Flush,
    Shutdown,
    Read(u8),
    ReadMuch,
    Drop,
    Evict(u16, u8),
    ReadSteps([Step; 3]),
    WriteSteps([Step; 3]),
    WriteFails,
    FlushWaits,
    Kick,
    Drain,
    Sleep(u8),
    /// Time advances and no task runs, as if the process was stopped.
    Pause(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Step {
    One,
    Few(u8),
    All,
    Wait,
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Forgery {
    Payload {
        at: u8,
        flip: u8,
    },
    Rsv(u8),
    Short,
    /// The length is not encoded minimally.
    Long,
}

/// A valid frame, except that bit 0 of `bits` masks it against its sender's role.
#[derive(Arbitrary, Debug)]
pub(crate) struct FrameSpec {
    bits: u8,
    opcode: u8,
    size: Size,
    key: [u8; 4],
    fill: u8,
}

#[derive(Arbitrary, Debug)]
enum Size {
    Any(u8),
    /// The size of the layer's pings.
    Eight,
    /// Around the longest control frame.
    Edge(u8),
    /// Around the longest 16-bit length.
    Huge(u8),
}

impl Scenario {
    pub(crate) fn role(&self) -> Role {
        if self.client {
            Role::Client
        } else {
            Role::Server
        }
    }

    pub(crate) fn close_timeout(&self) -> Duration {
        millis(self.close_timeout) * 2
    }

    pub(crate) fn builder(&self) -> HeartbeatLayerBuilder {
        HeartbeatLayer::builder()
            .interval(millis(self.interval))
            .timeout(millis(self.timeout))
            .missed_pings(1 + u32::from(self.missed % 4))
            .jitter(0.0)
            .proof_of_life(match self.matching {
                true => ProofOfLife::MatchingPong,
                false => ProofOfLife::AnyBytes,
            })
            .write_timeout(self.write_timeout.map(millis))
            .handler_stall_timeout(self.handler_stall.map(millis))
            .close_timeout(self.close_timeout())
    }
}

pub(crate) fn millis(millis: u8) -> Duration {
    Duration::from_millis(1 + u64::from(millis))
}

/// No masking key where one is required, and one where none is allowed (RFC 6455 section 5.1).
pub(crate) fn flipped(key: Option<[u8; 4]>) -> Option<[u8; 4]> {
    match key {
        Some(_) => None,
        None => Some([4, 3, 2, 1]),
    }
}

impl FrameSpec {
    /// Encodes the frame. `mask` derives the masking key that the sender's role requires.
    pub(crate) fn frame(
        &self,
        from_handler: bool,
        mask: impl FnOnce([u8; 4]) -> Option<[u8; 4]>,
    ) -> Vec<u8> {
        let opcode = [0, 1, 2, 8, 9, 10][usize::from(self.opcode % 6)];
        let control = opcode >= 8;
        let fin = if control { 0x80 } else { self.bits & 0x80 };
        let len = match self.size {
            Size::Any(len) => usize::from(len),
            Size::Eight => 8,
            Size::Edge(more) => 122 + usize::from(more % 8),
            Size::Huge(more) => 65_532 + usize::from(more % 8),
        };
        let len = if control { len.min(125) } else { len };
        // The checks must not take the handler's own pings for the layer's.
        let len = if from_handler && opcode == 9 && len == 8 {
            7
        } else {
            len
        };
        let payload: Vec<u8> = (0..len)
            .map(|at| (at as u8).wrapping_mul(self.fill))
            .collect();
        let key = mask(self.key);
        let key = if self.bits & 1 == 0 {
            key
        } else {
            flipped(key)
        };
        frame(fin | self.bits & 0x70 | opcode, key, &payload)
    }

    pub(crate) fn is_huge(&self) -> bool {
        matches!(self.size, Size::Huge(_))
    }
}

impl Step {
    pub(crate) fn size(self) -> usize {
        match self {
            Step::One => 1,
            Step::Few(few) => 1 + usize::from(few),
            Step::All => ALL,
            Step::Wait => WAIT,
        }
    }
}

//! A schedule: the settings, the network, and what both ends are going to do.

use std::io::ErrorKind;

use tower_ws_liveness::Traffic;

use super::asks::Ask;

pub(crate) const ALL: usize = usize::MAX;

/// All times are in ms.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) config: Config,
    pub(crate) net: Net,
    pub(crate) peer: Peer,
    pub(crate) handler: Handler,
    pub(crate) asks: Vec<(u64, Ask)>,
    /// When the process stands still, and for how long.
    pub(crate) jumps: Vec<(u64, u64)>,
    pub(crate) until: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) interval: u64,
    pub(crate) timeout: u64,
    pub(crate) missed: u64,
    pub(crate) matching: bool,
    pub(crate) write_timeout: Option<u64>,
    pub(crate) stall_timeout: Option<u64>,
    pub(crate) close_timeout: u64,
    pub(crate) jitter: f64,
    /// Control frames per second.
    pub(crate) control_limit: Option<u64>,
    /// Without it, what is above does not hold, but for `close_timeout`. Then there is `idle`.
    pub(crate) heartbeat: bool,
    pub(crate) idle: Option<Idle>,
}

/// The settings of an `IdleTimeoutLayer`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    pub(crate) timeout: u64,
    pub(crate) watch: Traffic,
    pub(crate) first_message: Option<u64>,
    pub(crate) message_timeout: Option<u64>,
    pub(crate) max_lifetime: Option<u64>,
    /// It is the outer one of two layers.
    pub(crate) outside: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Net {
    pub(crate) inbound: Link,
    pub(crate) outbound: Link,
    pub(crate) vectored: bool,
    /// Sends nothing before it is flushed, which takes so long.
    pub(crate) buffered: Option<u64>,
    pub(crate) shutdown_waits: bool,
    /// A write that is answered `Pending` has taken the bytes, as OpenSSL's has: the next write has to
    /// begin with them.
    pub(crate) claims: bool,
    /// Takes part in tokio's cooperative scheduling: without budget it is `Pending` in any state.
    pub(crate) cooperative: bool,
    pub(crate) faults: Vec<(u64, Fault)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) latency: u64,
    /// Bytes per ms.
    pub(crate) rate: usize,
    /// How much of that, in ms, goes at once.
    pub(crate) burst: usize,
    pub(crate) capacity: usize,
    /// Bytes per poll.
    pub(crate) step: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    StallIn(u64),
    StallOut(u64),
    StallBoth(u64),
    BlackIn,
    BlackOut,
    BlackBoth,
    /// The peer's process is killed: its kernel says FIN, and RST to what comes after.
    Kill,
    HalfClose,
    Reset(ErrorKind),
}

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) answers: Answers,
    pub(crate) reaction: u64,
    pub(crate) closes_back: bool,
    /// Ends its direction when ours has ended.
    pub(crate) hangs_up: bool,
    pub(crate) masks: Masks,
    pub(crate) acts: Vec<(u64, Act)>,
}

/// What becomes of the pings that the peer has heard since it last answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    All,
    Backwards,
    Newest,
    Oldest,
    Twice,
    Dribbled,
    BehindData,
    Forged,
    Never,
}

/// Which of its frames the peer masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Masks {
    All,
    Some,
    None,
}

/// What makes a frame one behind which no boundary can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    ReservedOpcode(u8),
    OversizedControl(u8),
    FragmentedControl(u8),
    LengthTopBit,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Message {
        len: usize,
        parts: usize,
        control: bool,
        /// A chunk of so many bytes each ms.
        pace: usize,
    },
    Steady {
        every: u64,
        len: usize,
        times: u64,
    },
    Ping,
    Pong,
    Flood(usize),
    Close {
        code: Option<u16>,
        fin: bool,
    },
    Freeze(Option<u64>),
    Malformed(Malformed),
}

#[derive(Clone, Debug)]
pub(crate) struct Handler {
    /// The tasks it consists of: one, or one for each half.
    pub(crate) tasks: Vec<Vec<Step>>,
    /// Keeps the socket for so long after an error.
    pub(crate) lingers: u64,
    pub(crate) spends: Spends,
}

/// When a task of the handler has used up its cooperative budget before it touches its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spends {
    Never,
    /// Before an operation is polled for the first time.
    Once,
    /// Whenever it is polled, but not if that is again within a millisecond: then it has nothing left
    /// to do beside.
    Often,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Read {
        span: u64,
        size: usize,
    },
    ReadOnce {
        size: usize,
    },
    ReadOn {
        size: usize,
    },
    Busy(u64),
    Write {
        len: usize,
        parts: usize,
        piece: usize,
        gap: u64,
    },
    TryWrite {
        len: usize,
        patience: u64,
    },
    /// Begins a frame, and does something else.
    Begin {
        len: usize,
        cut: usize,
    },
    Steady {
        every: u64,
        len: usize,
    },
    Close(Option<u16>),
    Shutdown,
    Kick(u16),
    Stop,
    Drop,
}

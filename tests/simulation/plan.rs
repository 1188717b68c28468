//! The plan of a schedule: settings, network, and the scripts of both ends.

use std::io::ErrorKind;

use tower_ws_liveness::Traffic;

use super::handle_calls::HandleCall;

pub(crate) const ALL: usize = usize::MAX;

/// All times are in ms.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) config: Config,
    pub(crate) net: Net,
    pub(crate) peer: Peer,
    pub(crate) handler: Handler,
    pub(crate) handle_calls: Vec<(u64, HandleCall)>,
    /// Begin and duration of each standstill of the process.
    pub(crate) standstills: Vec<(u64, u64)>,
    pub(crate) duration: u64,
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
    /// If false, only `close_timeout` above applies, and `idle` is set.
    pub(crate) heartbeat: bool,
    pub(crate) idle: Option<Idle>,
}

/// Settings of an `IdleTimeoutLayer`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    pub(crate) timeout: Option<u64>,
    pub(crate) watch: Traffic,
    pub(crate) first_message: Option<u64>,
    pub(crate) message_timeout: Option<u64>,
    pub(crate) max_lifetime: Option<u64>,
    pub(crate) lifetime_jitter: f64,
    /// Whether the idle layer is outside the heartbeat layer.
    pub(crate) outside: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Net {
    pub(crate) inbound: Link,
    pub(crate) outbound: Link,
    pub(crate) vectored: bool,
    /// Bytes are sent only when they are flushed, and a flush takes this many ms.
    pub(crate) buffered: Option<u64>,
    pub(crate) shutdown_waits: bool,
    /// A write that returns `Pending` has taken its bytes, as with OpenSSL: the next write must
    /// begin with them.
    pub(crate) claims: bool,
    /// Takes part in tokio's cooperative scheduling: without budget it returns `Pending` in any
    /// state.
    pub(crate) cooperative: bool,
    pub(crate) faults: Vec<(u64, Fault)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) latency: u64,
    /// Bytes per ms.
    pub(crate) rate: usize,
    /// How many ms of that rate are sent at once.
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
    BlackholeIn,
    BlackholeOut,
    BlackholeBoth,
    /// The peer's process is killed: its kernel sends FIN, and RST in answer to later bytes.
    Kill,
    HalfClose,
    Reset(ErrorKind),
}

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) answers: Answers,
    pub(crate) reaction: u64,
    pub(crate) answers_close: bool,
    /// Sends FIN when it reads the server's end of stream.
    pub(crate) answers_fin: bool,
    pub(crate) masks: Masks,
    pub(crate) acts: Vec<(u64, Act)>,
}

/// How the peer answers the pings that it received since its last answer.
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

/// Kinds of malformed frames, after which no frame boundary can be known.
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
        /// Number of bytes sent each ms.
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
    /// One task, or one for each direction.
    pub(crate) tasks: Vec<Vec<Step>>,
    /// How long the handler keeps the socket after an error.
    pub(crate) linger_ms: u64,
    pub(crate) spends: Spends,
}

/// When a task of the handler has no cooperative budget left at an operation on its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spends {
    Never,
    /// At the first poll of each operation.
    Once,
    /// At each poll, except a second one in the same millisecond: by then the task has nothing else
    /// to do.
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
        cancel_after: u64,
    },
    /// Begins a frame and leaves it unfinished.
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

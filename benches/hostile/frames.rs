//! Instructions per hostile frame, counted by callgrind.
//!
//! After each flood in one segment, another peer sends a message and awaits its echo: by then the
//! server, which has one thread, has read the flood. The cost of the echo alone is subtracted.
//! Single frames and bytes are sent so slowly that each is read alone. Each server runs twice, with
//! fewer and with more repetitions; the difference is free of the start, the handshake and the end.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::sleep;

use super::Result;
use super::support::callgrind::Profiles;
use super::support::options::{Kind, Options};
use super::support::peer::{Frame, Peer, short_frame};
use super::support::peers::ANY_LOCAL;

const KINDS: [Kind; 2] = [Kind::Bare, Kind::Layered];

/// Frames in one segment of a flood: small ones fit into one read of the server.
const FLOOD_FRAMES: usize = 100;

/// The pause between single frames or bytes under callgrind, which needs about 5 ms for a read with
/// axum's read buffer.
const PAUSE: Duration = Duration::from_millis(20);

/// What the attacker sends in each repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// Nothing before the echo of the other peer.
    Nothing,
    /// An empty ping, alone in its segment.
    Ping,
    /// A flood of empty pings.
    Pings,
    /// A flood of empty pongs to a server that has sent no ping.
    Pongs,
    /// A flood of pongs after the server's first ping, as long as its pong and with another payload.
    WrongPongs,
    /// A flood of copies of the pong to the server's first ping.
    RepeatedPongs,
    /// A flood of empty fragments of one message.
    Fragments,
    /// One byte of a frame that never ends, alone in its segment.
    Byte,
    /// The same after a ping of the server that stays unanswered.
    BytePinged,
    /// A connection that is opened and reset, while that of the other peer is open.
    Connection,
}

impl Attack {
    const ALL: [Self; 9] = [
        Self::Ping,
        Self::Pings,
        Self::Pongs,
        Self::WrongPongs,
        Self::RepeatedPongs,
        Self::Fragments,
        Self::Byte,
        Self::BytePinged,
        Self::Connection,
    ];

    /// Attacks whose cost depends on the size of the read buffer.
    const BY_BUFFER: [Self; 3] = [Self::Ping, Self::Byte, Self::BytePinged];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Ping => "ping, one per segment",
            Self::Pings => "ping, 100 per segment",
            Self::Pongs => "unsolicited pong, 100 per segment",
            Self::WrongPongs => "pong with a wrong payload, 100 per segment",
            Self::RepeatedPongs => "repeated pong, 100 per segment",
            Self::Fragments => "empty fragment, 100 per segment",
            Self::Byte => "byte of a message, one per segment",
            Self::BytePinged => "the same, a ping unanswered",
            Self::Connection => "connection opened and reset",
        }
    }

    /// Frames, bytes or connections in one repetition.
    fn frames(self) -> usize {
        match self {
            Self::Pings
            | Self::Pongs
            | Self::WrongPongs
            | Self::RepeatedPongs
            | Self::Fragments => FLOOD_FRAMES,
            Self::Nothing | Self::Ping | Self::Byte | Self::BytePinged | Self::Connection => 1,
        }
    }

    fn is_flood(self) -> bool {
        self.frames() == FLOOD_FRAMES
    }

    /// Whether the next repetition follows after a pause, and not after an echo.
    fn is_paced(self) -> bool {
        matches!(self, Self::Ping | Self::Byte | Self::BytePinged)
    }

    /// How often the attack is repeated in the shorter and in the longer run.
    fn counts(self) -> [u32; 2] {
        match self {
            Self::Connection => [200, 1_200],
            _ if self.is_paced() => [50, 250],
            _ => [20, 120],
        }
    }

    /// Whether the server must have sent a ping first.
    fn needs_ping(self) -> bool {
        matches!(
            self,
            Self::WrongPongs | Self::RepeatedPongs | Self::BytePinged
        )
    }

    /// Prepares `attacker`, and returns the bytes of each repetition. `pings` if the server sends
    /// any.
    async fn begin(self, attacker: &mut Peer, pings: bool) -> io::Result<Vec<u8>> {
        let mut payload = vec![0; 8];
        match self {
            Self::WrongPongs | Self::RepeatedPongs if pings => {
                while attacker.receive().await? != Frame::Ping {}
                payload = attacker.last_ping().to_vec();
            }
            Self::BytePinged if pings => attacker.socket().readable().await?,
            _ => {}
        }
        let frame = match self {
            Self::Nothing | Self::Connection => Vec::new(),
            Self::Ping | Self::Pings => short_frame(0x89, b""),
            Self::Pongs => short_frame(0x8a, b""),
            Self::WrongPongs => {
                payload[0] ^= 1;
                short_frame(0x8a, &payload)
            }
            Self::RepeatedPongs => short_frame(0x8a, &payload),
            Self::Fragments => {
                // The first fragment of a binary message.
                attacker.send(&short_frame(0x02, b"")).await?;
                short_frame(0x00, b"")
            }
            Self::Byte | Self::BytePinged => {
                // The header of a message of 1 MiB.
                attacker.send(&Peer::message(1 << 20)[..14]).await?;
                vec![b'x']
            }
        };
        Ok(frame.repeat(self.frames()))
    }

    async fn run(self, addr: SocketAddr, pings: bool, count: u32) -> io::Result<()> {
        let mut other = Peer::connect(addr, ANY_LOCAL).await?;
        if self == Self::Connection {
            for _ in 0..count {
                let peer = Peer::connect(addr, ANY_LOCAL).await?;
                peer.reset_on_drop()?;
            }
            return Ok(());
        }
        let mut attacker = Peer::connect(addr, ANY_LOCAL).await?;
        let bytes = self.begin(&mut attacker, pings).await?;
        let message = Peer::message(1);
        for _ in 0..count {
            attacker.send(&bytes).await?;
            match self.is_paced() {
                true => sleep(PAUSE).await,
                false => other.echo(&message).await?,
            }
        }
        Ok(())
    }

    /// Instructions of one repetition, including the echo if there is one.
    fn cost(self, profiles: &Profiles, kind: Kind, buffer: Option<usize>) -> Result<f64> {
        let pings = kind == Kind::Layered && self.needs_ping();
        let options = Options {
            kind,
            buffer,
            // Traffic suppresses all pings but the first.
            interval: Duration::from_millis(if pings { 500 } else { 30_000 }),
            timeout: Duration::from_secs(180),
            workers: 0,
        };
        let counts = self.counts();
        let mut totals = [0.0; 2];
        for (total, count) in totals.iter_mut().zip(counts) {
            let name = format!("{self:?}-{count}");
            let work = async |addr| self.run(addr, pings, count).await;
            *total = profiles.instructions(&name, options, work)?;
        }
        Ok((totals[1] - totals[0]) / f64::from(counts[1] - counts[0]))
    }
}

pub(crate) fn run() -> Result<()> {
    let profiles = Profiles::create()?;
    println!("| instructions in user mode | read buffer | bare | layered | added |");
    println!("|---|---|---|---|---|");
    for (name, buffer, attacks) in [
        ("4 KiB", Some(4096), &Attack::ALL[..]),
        ("axum's", None, &Attack::BY_BUFFER),
    ] {
        let mut echoes = [0.0; 2];
        for (kind, echo) in KINDS.into_iter().zip(&mut echoes) {
            if attacks.iter().any(|attack| attack.is_flood()) {
                *echo = Attack::Nothing.cost(&profiles, kind, buffer)?;
            }
        }
        for attack in attacks {
            let mut costs = [0.0; 2];
            for ((kind, echo), cost) in KINDS.into_iter().zip(echoes).zip(&mut costs) {
                let echo = if attack.is_flood() { echo } else { 0.0 };
                let total = attack.cost(&profiles, kind, buffer)?;
                *cost = (total - echo) / attack.frames() as f64;
            }
            let ([bare, layered], added) = (costs, costs[1] - costs[0]);
            let attack = attack.name();
            println!("| {attack} | {name} | {bare:.0} | {layered:.0} | {added:+.0} |");
        }
    }
    profiles.remove()?;
    Ok(())
}

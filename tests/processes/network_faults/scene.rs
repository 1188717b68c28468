//! What a fault strikes: two servers at one end of a cable, a client of
//! each at the other, and a neighbour that does without the cable.

use std::time::{Duration, Instant};

use super::netns::{Cable, SERVER};
use crate::process::{Client, Server};

/// What a loaded machine may add, for processes that are to run.
pub(crate) const ALLOWANCE: Duration = ms(2000);

/// For so long the control has to keep its connection: many times what the layer may take.
const WATCH: Duration = ms(9000);

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The heartbeat's settings, for one missed ping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

impl Times {
    /// By when a dead peer is evicted, with one tick of the timer.
    pub(crate) fn bound(&self) -> Duration {
        self.interval + self.timeout + self.interval.min(self.timeout) / 32
    }
}

// Dropped in this order: the processes before the namespaces in which they run.
pub(crate) struct Scene {
    /// The client of the server with the layer.
    pub(crate) victim: Client,
    /// The client of the server without it.
    pub(crate) control: Client,
    /// Another client of the server with the layer, in the server's own namespace.
    pub(crate) neighbour: Client,
    pub(crate) layered: Server,
    bare: Server,
    pub(crate) cable: Cable,
    /// The victim's.
    pub(crate) id: u64,
    times: Times,
    /// When the last fault struck.
    pub(crate) struck: Instant,
}

impl Scene {
    pub(crate) fn start(role: &str, times: Times) -> Self {
        Self::start_with(role, times, &[])
    }

    pub(crate) fn start_with(role: &str, times: Times, client_flags: &[&str]) -> Self {
        Self::with_flags(role, times, &[], client_flags)
    }

    pub(crate) fn with_flags(
        role: &str,
        times: Times,
        server_flags: &[&str],
        client_flags: &[&str],
    ) -> Self {
        let cable = Cable::new();
        let (here, there) = (&cable.server.0, &cable.client.0);
        let interval = times.interval.as_millis().to_string();
        let timeout = times.timeout.as_millis().to_string();
        let flags = [
            "--log-evictions",
            "--interval-ms",
            &interval,
            "--timeout-ms",
            &timeout,
        ];
        let mut layered = Server::start_in(here, role, &[&flags, server_flags].concat());
        let bare = Server::start_in(here, role, &["--bare"]);
        let at = |server: &Server| format!("{SERVER}:{}", server.port());
        let victim = Client::start_in(there, &at(&layered), client_flags);
        let id = layered.next_open();
        let control = Client::start_in(there, &at(&bare), client_flags);
        let local = format!("127.0.0.1:{}", layered.port());
        let neighbour = Client::start_in(here, &local, &[]);
        assert_ne!(layered.next_open(), id);
        Self {
            victim,
            control,
            neighbour,
            layered,
            bare,
            cable,
            id,
            times,
            struck: Instant::now(),
        }
    }

    /// Strikes, and takes note of when that was done.
    pub(crate) fn strike(&mut self, fault: impl FnOnce(&mut Self)) {
        fault(self);
        self.struck = Instant::now();
    }

    /// Has the victim say something, and returns when at the earliest the server saw it: the next
    /// ping comes an interval later.
    pub(crate) fn last_sign_of_life(&mut self) -> Instant {
        // Only the very first ping may come sooner than that.
        self.victim.expect_ping();
        let asked = Instant::now();
        // What was read together with the pong may count as older than it is.
        self.victim.echo("one moment");
        self.victim.echo("last words");
        asked
    }

    /// Strikes with something that leaves the victim silent, and waits for the verdict. Returns how
    /// long that took.
    pub(crate) fn evicted_by_heartbeat(&mut self, strike: impl FnOnce(&mut Self)) -> Duration {
        let asked = self.last_sign_of_life();
        self.control.echo("last words");
        let took = self.evicted_by_heartbeat_after(Duration::ZERO, strike);
        let eviction = self.layered.eviction_of(self.id);
        let silent = eviction.at - asked;
        let least = self.times.interval + self.times.timeout;
        assert!(silent >= least, "{silent:?} is early");
        took
    }

    /// The same, for a victim that says nothing before either. The verdict must not come before
    /// `least`.
    pub(crate) fn evicted_by_heartbeat_after(
        &mut self,
        least: Duration,
        strike: impl FnOnce(&mut Self),
    ) -> Duration {
        let begun = Instant::now();
        self.strike(strike);
        let eviction = self.layered.eviction_of(self.id);
        assert_eq!(eviction.reason, "heartbeat_timeout", "{eviction:?}");
        let took = eviction.at.saturating_duration_since(self.struck);
        let bound = self.times.bound();
        assert!(took <= bound + ALLOWANCE, "{took:?}, {bound:?} was due");
        let since = eviction.at.saturating_duration_since(begun);
        // A ping may have been under way for as long as the client takes to answer it.
        assert!(since + ms(100) >= least, "{since:?} is early");
        took
    }

    /// Watches for long whether the control's connection is kept, and returns for how long it was.
    pub(crate) fn control_has_noticed_nothing(&mut self) -> Duration {
        while self.struck.elapsed() < WATCH {
            assert_eq!(self.bare.established(), 1, "the control's connection");
            self.bare.listen_for(ms(200));
        }
        self.struck.elapsed()
    }

    /// Waits until the server without the layer has noticed the end, too.
    pub(crate) fn control_is_gone(&self) {
        let end = Instant::now() + ALLOWANCE;
        while self.bare.established() > 0 {
            assert!(Instant::now() < end, "the control still has its connection");
            std::thread::sleep(ms(20));
        }
    }

    /// How often the server without the layer has told of `event` since.
    pub(crate) fn control_notes(&self, event: &str, since: Instant) -> usize {
        let notes = self.bare.notes().iter();
        let wanted = |note: &&crate::process::Note| note.entry["event"] == event && note.at > since;
        notes.filter(wanted).count()
    }

    pub(crate) fn nobody_was_evicted(&self) {
        let evictions = self.layered.evictions();
        assert!(evictions.is_empty(), "{evictions:?}");
    }

    /// One connection has ended, once, and its socket is closed; the other one lives.
    pub(crate) fn neighbour_has_noticed_nothing(&mut self) {
        self.neighbour.echo("I am still here");
        self.layered.listen_for(ms(200));
        let evictions = self.layered.evictions();
        assert_eq!(evictions.len(), 1, "{evictions:?}");
        assert_eq!(self.layered.established(), 1, "the neighbour's connection");
    }
}

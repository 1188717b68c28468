//! Two servers at one end of a cable, their clients at the other, and a neighbour beside it.

use std::time::{Duration, Instant};

use super::netns::{Cable, SERVER};
use crate::process::{Client, Server};

/// Tolerance on wall-clock bounds for a loaded machine.
pub(crate) const ALLOWANCE: Duration = ms(2000);

/// How long the control must keep its connection: many times the bound of the layer.
const CONTROL_TIME: Duration = ms(9000);

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Settings of the heartbeat, with one missed ping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

impl Times {
    /// Bound on the eviction of a dead peer, including one tick of the timer.
    pub(crate) fn bound(&self) -> Duration {
        self.interval + self.timeout + self.interval.min(self.timeout) / 32
    }
}

// Fields are dropped in this order: the processes before the namespaces in which they run.
pub(crate) struct Scene {
    /// The client of the server with the layer.
    pub(crate) victim: Client,
    /// Client of the server without the layer.
    pub(crate) control: Client,
    /// Another client of the server with the layer, in the server's namespace.
    pub(crate) neighbour: Client,
    pub(crate) layered: Server,
    bare: Server,
    pub(crate) cable: Cable,
    /// Connection id of the victim.
    pub(crate) id: u64,
    pub(crate) times: Times,
    /// When the last fault began.
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

    /// Starts a fault, and records when.
    pub(crate) fn strike(&mut self, fault: impl FnOnce(&mut Self)) {
        fault(self);
        self.struck = Instant::now();
    }

    /// Lets the victim send a message. Returns the earliest time at which the server saw it: the
    /// next ping follows an `interval` later.
    pub(crate) fn last_sign_of_life(&mut self) -> Instant {
        // Because of jitter, only the first ping may come earlier than that.
        self.victim.expect_ping();
        let asked = Instant::now();
        // Bytes that are read together with the pong may count as older than they are.
        self.victim.echo("a message");
        self.victim.echo("last message");
        asked
    }

    /// Starts a fault that silences the victim, and waits for the eviction. Returns how long that
    /// took.
    pub(crate) fn evicted_by_heartbeat(&mut self, strike: impl FnOnce(&mut Self)) -> Duration {
        let asked = self.last_sign_of_life();
        self.control.echo("last message");
        let took = self.evicted_by_heartbeat_after(Duration::ZERO, strike);
        let eviction = self.layered.eviction_of(self.id);
        let silent = eviction.at - asked;
        let least = self.times.interval + self.times.timeout;
        assert!(silent >= least, "{silent:?} is early");
        took
    }

    /// As [`evicted_by_heartbeat`](Self::evicted_by_heartbeat), for a victim that sends nothing
    /// before the fault. The eviction must not come before `least`.
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
        // A ping may have been unanswered for as long as the client takes to answer.
        assert!(since + ms(100) >= least, "{since:?} is early");
        took
    }

    /// Asserts that the control keeps its connection for [`CONTROL_TIME`] after the fault. Returns
    /// for how long it did.
    pub(crate) fn control_has_noticed_nothing(&mut self) -> Duration {
        while self.struck.elapsed() < CONTROL_TIME {
            assert_eq!(self.bare.established(), 1, "the control's connection");
            self.bare.listen_for(ms(200));
        }
        self.struck.elapsed()
    }

    /// Waits until the server without the layer has noticed the end.
    pub(crate) fn control_is_gone(&self) {
        let end = Instant::now() + ALLOWANCE;
        while self.bare.established() > 0 {
            assert!(Instant::now() < end, "the control still has its connection");
            std::thread::sleep(ms(20));
        }
    }

    /// Number of `event` lines of the server without the layer after `since`.
    pub(crate) fn control_notes(&self, event: &str, since: Instant) -> usize {
        let notes = self.bare.notes().iter();
        let wanted = |note: &&crate::process::Note| note.entry["event"] == event && note.at > since;
        notes.filter(wanted).count()
    }

    pub(crate) fn no_client_was_evicted(&self) {
        let evictions = self.layered.evictions();
        assert!(evictions.is_empty(), "{evictions:?}");
    }

    /// Asserts that one connection was evicted, once, that its socket is closed, and that the
    /// neighbour's is open.
    pub(crate) fn neighbour_has_noticed_nothing(&mut self) {
        self.neighbour.echo("I am still here");
        self.layered.listen_for(ms(200));
        let evictions = self.layered.evictions();
        assert_eq!(evictions.len(), 1, "{evictions:?}");
        assert_eq!(self.layered.established(), 1, "the neighbour's connection");
    }
}

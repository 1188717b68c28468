//! Two megabytes over a link of 256 kbit/s: the peer is not evicted, and round-trip times are true.
//!
//! Pings wait behind the bytes that the kernel has for the link: those in the network's queue, and
//! without `TCP_NOTSENT_LOWAT` those that the kernel has accepted long before it can send them. They
//! take many times the timeout to drain. The kernel shows the layer that they drain, so a ping
//! behind them is not missed.

use std::time::{Duration, Instant};

use super::fault_server;
use super::netns::{Cable, SERVER, Way};
use super::scene::ms;
use crate::process::{Client, Note, Server};

const RATE: &str = "256kbit";
/// Lower bound on the transfer at this rate.
const MIN_TRANSFER: Duration = Duration::from_secs(60);
/// Upper bound on the transfer.
const MAX_TRANSFER: Duration = Duration::from_secs(100);

const HEARTBEAT: [&str; 4] = ["--interval-ms", "5000", "--timeout-ms", "5000"];

/// Allowed difference between a round-trip time and what both ends saw.
const TOLERANCE: Duration = ms(500);

pub(crate) fn download() {
    let mut link = SlowLink::new(Way::ToClient, "400ms");
    link.transfer("send 2000000 1", "binary 2000000 whole", 1);
    link.assert_alive();
}

/// In messages of three seconds each, with room for pings between them.
pub(crate) fn long_queue() {
    let mut link = SlowLink::new(Way::ToClient, "2s");
    link.transfer("send 100000 20", "binary 100000 whole", 20);
    let slowest = link.assert_alive();
    // At least one ping waited behind a message.
    assert!(
        slowest >= ms(500),
        "{slowest:?} through a queue of two seconds"
    );
}

/// Algorithms that keep more bytes in flight than fit into the queue.
pub(crate) fn long_queue_with_cubic() {
    long_queue_with("cubic", &[]);
}

pub(crate) fn long_queue_with_bbr() {
    long_queue_with("bbr", &[]);
}

/// Megabytes in the kernel are ahead of the ping.
pub(crate) fn untuned() {
    let slowest = long_queue_with("reno", &[fault_server::UNTUNED]);
    assert!(
        slowest > ms(5000),
        "{slowest:?} is no longer than the timeout"
    );
}

/// The kernel accepts no byte until a third of its buffer has drained.
pub(crate) fn full_buffer() {
    let flags = [fault_server::UNTUNED, "--write-timeout-ms", "2000"];
    let mut link = SlowLink::with(Way::ToClient, "2s", "reno", &flags);
    link.transfer("send 2000000 1", "binary 2000000 whole", 1);
    link.assert_alive();
}

fn long_queue_with(algorithm: &str, flags: &[&str]) -> Duration {
    let mut link = SlowLink::with(Way::ToClient, "2s", algorithm, flags);
    link.transfer("send 100000 20", "binary 100000 whole", 20);
    link.assert_alive()
}

pub(crate) fn upload() {
    let mut link = SlowLink::new(Way::ToServer, "400ms");
    link.transfer("put 2000000", "echo 2000000 whole", 1);
    link.assert_alive();
}

struct SlowLink {
    client: Client,
    server: Server,
    // Last: the processes must exit before their namespaces are removed.
    _cable: Cable,
    name: String,
}

impl SlowLink {
    fn new(way: Way, queue: &str) -> Self {
        Self::with(way, queue, "reno", &[])
    }

    fn with(way: Way, queue: &str, algorithm: &str, flags: &[&str]) -> Self {
        let cable = Cable::new();
        cable.shape(way, RATE, queue);
        let congestion = [fault_server::CONGESTION, algorithm];
        let flags = [&HEARTBEAT[..], &congestion, flags].concat();
        let mut server = Server::start_in(&cable.server.0, fault_server::ROLE, &flags);
        let addr = format!("{SERVER}:{}", server.port());
        let client = Client::start_in(&cable.client.0, &addr, &[]);
        server.next_open();
        Self {
            client,
            server,
            _cable: cable,
            name: format!("{RATE} {way:?}, {queue} of queue, {algorithm}"),
        }
    }

    /// Sends two megabytes. They have arrived when `answer` was printed `times` times.
    fn transfer(&mut self, command: &str, answer: &str, times: u32) {
        let begun = Instant::now();
        self.client.send_line(command);
        for _ in 0..times {
            let (_, line) = self.client.next_line(MAX_TRANSFER);
            self.server.listen_for(Duration::ZERO);
            let evictions = self.server.evictions();
            assert_eq!(line, answer, "after {:?}, {evictions:?}", begun.elapsed());
        }
        let took = begun.elapsed();
        assert!(took >= MIN_TRANSFER, "{took:?}: the link is not slow");
        println!("{}: {command}: whole after {took:?}", self.name);
    }

    /// Asserts that no client was evicted and that the round-trip times are true. Returns the
    /// slowest.
    fn assert_alive(&mut self) -> Duration {
        // Waits until a ping had the link to itself.
        let done = Instant::now();
        while self.left().last().is_none_or(|left| *left < done) {
            self.client.expect_ping();
            self.server.listen_for(TOLERANCE);
        }
        let asked = Instant::now();
        self.client.echo("echo this");
        let echoed = asked.elapsed();
        self.server.listen_for(TOLERANCE);
        assert!(
            self.server.evictions().is_empty(),
            "{:?}",
            self.server.evictions()
        );

        let left = self.left();
        let pongs: Vec<&Note> = self.notes_of("pong").collect();
        let seen = self.client.pings();
        assert_eq!(left.len(), seen.len(), "every ping arrives");
        assert_eq!(left.len(), pongs.len(), "every ping is answered");
        let mut slowest = Duration::ZERO;
        let mut last = None;
        for ((left, seen), pong) in left.iter().zip(seen).zip(pongs) {
            // Ambiguous samples are left out.
            let Some(micros) = pong.entry["rtt_us"].as_u64() else {
                continue;
            };
            let rtt = Duration::from_micros(micros);
            let truth = seen.saturating_duration_since(*left);
            println!(
                "{}: round trip {rtt:?}, ping seen after {truth:?}",
                self.name
            );
            assert!(rtt.abs_diff(truth) <= TOLERANCE, "{rtt:?} is not {truth:?}");
            slowest = slowest.max(rtt);
            last = Some(rtt);
        }
        let last = last.expect("a round trip");
        assert!(
            last.abs_diff(echoed) <= TOLERANCE,
            "{last:?} is not {echoed:?}"
        );
        slowest
    }

    /// Times at which pings were handed to the server's kernel.
    fn left(&self) -> Vec<Instant> {
        self.notes_of("ping").map(|note| note.at).collect()
    }

    fn notes_of(&self, event: &'static str) -> impl Iterator<Item = &Note> {
        let notes = self.server.notes().iter();
        notes.filter(move |note| note.entry["event"] == event)
    }
}

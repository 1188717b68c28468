//! Two network namespaces joined by a cable, and its faults. Needs root, `ip`, `tc` and `nft`.
//!
//! A blackhole drops packets at the receiving end, where they have passed the network and no end
//! notices. At the sending end the kernel would notice that its own rule dropped them.

use std::io::Write;
use std::process::{Command, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};

/// Interface name and addresses of the two ends. Namespaces do not share them.
const DEVICE: &str = "veth0";
pub(crate) const SERVER: &str = "10.77.0.1";
const CLIENT: &str = "10.77.0.2";

/// Direction of packets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    ToClient,
    ToServer,
}

/// The two namespaces. Dropping it removes them and everything in them.
pub(crate) struct Cable {
    pub(crate) server: Namespace,
    pub(crate) client: Namespace,
}

/// A network namespace, with its name.
pub(crate) struct Namespace(pub(crate) String);

impl Cable {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cable = Self {
            server: Namespace::new(format!("ws-liveness-{}-{number}-server", id())),
            client: Namespace::new(format!("ws-liveness-{}-{number}-client", id())),
        };
        let (server, client) = (&cable.server.0, &cable.client.0);
        let ends = format!("{DEVICE} netns {server} type veth peer name {DEVICE} netns {client}");
        run(&format!("ip link add {ends}"));
        for (name, address) in [(server, SERVER), (client, CLIENT)] {
            run(&format!("ip -n {name} addr add {address}/30 dev {DEVICE}"));
            run(&format!("ip -n {name} link set {DEVICE} up"));
            run(&format!("ip -n {name} link set lo up"));
        }
        for end in [&cable.server, &cable.client] {
            // Every kernel has reno, so results are the same everywhere.
            end.tune("tcp_congestion_control", "reno");
        }
        cable
    }

    /// Drops all packets of this direction from now on.
    pub(crate) fn block(&self, way: Way) {
        let chain = "type filter hook prerouting priority raw;";
        let drop = format!("iifname {DEVICE} counter drop");
        let table = format!("table ip fault {{\nchain lost {{\n{chain} {drop}\n}}\n}}\n");
        let name = &self.receiver(way).0;
        run_with(&format!("ip netns exec {name} nft -f -"), &table);
    }

    /// Ends a [`block`](Self::block), and returns the number of dropped packets.
    pub(crate) fn unblock(&self, way: Way) -> u64 {
        let nft = format!("ip netns exec {} nft", self.receiver(way).0);
        let table = run(&format!("{nft} list table ip fault"));
        run(&format!("{nft} delete table ip fault"));
        let mut words = table.split_whitespace();
        let packets = words.find(|word| *word == "packets");
        let count = packets.and_then(|_| words.next()).expect(&table);
        count.parse().unwrap()
    }

    /// Pulls the plug at the client's end, or puts it back.
    pub(crate) fn plug(&self, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        run(&format!(
            "ip -n {} link set {DEVICE} {state}",
            self.client.0
        ));
    }

    /// Limits this direction to `rate`, with a queue of `queue`.
    pub(crate) fn shape(&self, way: Way, rate: &str, queue: &str) {
        let name = &self.sender(way).0;
        let shaper = format!("tbf rate {rate} burst 16kb latency {queue}");
        run(&format!(
            "tc -n {name} qdisc add dev {DEVICE} root {shaper}"
        ));
    }

    fn sender(&self, way: Way) -> &Namespace {
        match way {
            Way::ToClient => &self.server,
            Way::ToServer => &self.client,
        }
    }

    fn receiver(&self, way: Way) -> &Namespace {
        match way {
            Way::ToClient => &self.client,
            Way::ToServer => &self.server,
        }
    }
}

impl Namespace {
    fn new(name: String) -> Self {
        // A namespace of this name is left from an ended process with the same id.
        let _ = command(&format!("ip netns del {name}"))
            .stderr(Stdio::null()) // usually there is none
            .status();
        run(&format!("ip netns add {name}"));
        Self(name)
    }

    fn tune(&self, setting: &str, value: &str) {
        let file = format!("/proc/sys/net/ipv4/{setting}");
        run_with(&format!("ip netns exec {} tee {file}", self.0), value);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Does not panic: a second panic while a failed test unwinds would abort the whole run.
        let _ = command(&format!("ip netns del {}", self.0)).status();
    }
}

/// Runs a command, which must succeed, and returns its output.
fn run(line: &str) -> String {
    run_with(line, "")
}

fn run_with(line: &str, input: &str) -> String {
    let mut child = command(line)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{line}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn command(line: &str) -> Command {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

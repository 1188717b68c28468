//! 100,000 idle connections over real sockets: opening, idle cost, pings, evictions and drain.
//!
//! Checks that exactly the dead peers are evicted and that a drain closes every connection cleanly.
//! There is no baseline.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::percentiles::Percentiles;
use super::support::process::{Process, Server, require_files};
use super::{Result, Size, client, command, ping_spread, read_figures, request_figures, server};

/// Connections per process, if its limit of open files allows.
const MAX_PER_PROCESS: u64 = 17_000;
/// Files that a process needs besides its connections.
const OTHER_FILES: u64 = 100;

/// Limit for an event that should happen immediately.
const WAIT_LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
struct Plan {
    servers: u64,
    total: u64,
    /// Number of clients that are killed, and of those that are stopped.
    doomed: u64,
    interval: Duration,
    timeout: Duration,
}

impl Plan {
    fn of(size: Size) -> Result<Self> {
        if size == Size::Quick {
            return Ok(Self {
                servers: 2,
                total: 200,
                doomed: 4,
                interval: Duration::from_secs(1),
                timeout: Duration::from_millis(500),
            });
        }
        let limit = require_files(1_000 + OTHER_FILES)?;
        let per_process = MAX_PER_PROCESS.min(limit - OTHER_FILES);
        let servers = 6;
        let total = 100_000.min(servers * per_process);
        println!("A process may open {limit} files, so {total} connections are held.\n");
        Ok(Self {
            servers,
            total,
            doomed: total / 100,
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(15),
        })
    }
}

pub(crate) fn run(size: Size) -> Result<()> {
    let plan = Plan::of(size)?;
    println!(
        "{} servers behind both layers, `read_buffer_size(4096)`, interval {:?}, timeout {:?}, \
         default jitter.\n",
        plan.servers, plan.interval, plan.timeout
    );
    println!("| what | figure |\n|---|---|");
    let mut fleet = Fleet::start(plan)?;
    fleet.connect()?;
    let first = fleet.first_pings(size)?;
    fleet.idle()?;
    let [vanished, late] = fleet.deaths()?;
    fleet.drain()?;
    println!("\n| when | {}", Percentiles::HEAD);
    println!("| first ping: after the connection opened | {first} |");
    println!("| eviction of killed clients: after the kill | {vanished} |");
    println!("| eviction of stopped clients: after the last byte + interval + timeout | {late} |");
    Ok(())
}

/// The processes of one run.
struct Fleet {
    plan: Plan,
    servers: Vec<Server>,
    /// The clients that stay alive: one process per server.
    steady: Vec<Process>,
    killed: Option<Process>,
    stopped: Option<Process>,
    /// Number of connections: in total, with a peer that stays alive, and with one that is killed
    /// or stopped.
    held: u64,
    alive: u64,
    doomed: [u64; 2],
}

impl Fleet {
    fn start(plan: Plan) -> Result<Self> {
        let times = [plan.interval, plan.timeout].map(|time| time.as_millis().to_string());
        let servers: Vec<_> = (0..plan.servers)
            .map(|_| Server::spawn(command(server::ROLE, &times)?))
            .collect::<Result<_>>()?;
        let addrs: Vec<_> = servers
            .iter()
            .map(|server| server.addr.to_string())
            .collect();
        let clients = |count: u64, addrs: &[String]| {
            let args: Vec<_> = [&[count.to_string()], addrs].concat();
            Process::spawn(command(client::ROLE, &args)?)
        };
        let alive = plan.total - 2 * plan.doomed;
        let steady = (0..plan.servers)
            .map(|index| {
                // The first processes take the remainder.
                let count = (alive + plan.servers - 1 - index) / plan.servers;
                clients(count, &addrs[index as usize..][..1])
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            killed: Some(clients(plan.doomed, &addrs)?),
            stopped: Some(clients(plan.doomed, &addrs)?),
            plan,
            servers,
            steady,
            held: 0,
            alive: 0,
            doomed: [0; 2],
        })
    }

    fn connect(&mut self) -> Result<()> {
        let resident = self.resident()?;
        let heap: u64 = self.request_all("heap")?.iter().sum();
        let kernel = slab_bytes()?;
        let begun = Instant::now();
        for clients in self.clients() {
            clients.send_line("connect")?;
        }
        let mut counts = Vec::new();
        for clients in self.clients() {
            let line = clients.read_line()?;
            let (count, stopped) = line.split_once(' ').unwrap_or((&line, ""));
            counts.push(count.parse::<u64>()?);
            if !stopped.is_empty() {
                println!("| stopped at {count} connections of one process | {stopped} |");
            }
        }
        let took = begun.elapsed();
        self.held = counts.iter().sum();
        let (steady, doomed) = counts.split_at(self.steady.len());
        self.alive = steady.iter().sum();
        self.doomed = doomed.try_into()?;
        self.wait_until_open(self.held)?;
        let held = self.held;
        let per_connection = |before: u64, after: u64| after.saturating_sub(before) / held.max(1);
        let heap = per_connection(heap, self.request_all("heap")?.iter().sum());
        let resident = per_connection(resident, self.resident()?);
        let kernel = per_connection(kernel, slab_bytes()?);
        println!("| connections held | {held} of {} |", self.plan.total);
        println!("| time for all to connect | {:.1} s |", took.as_secs_f64());
        println!("| live heap of the servers, per connection | {heap} B |");
        println!("| resident memory of the servers, per connection | {resident} B |");
        println!("| kernel memory (slab) for both ends, per connection | {kernel} B |");
        Ok(())
    }

    /// Waits until every connection has been pinged. Returns the percentiles of the first pings.
    fn first_pings(&mut self, size: Size) -> Result<Percentiles> {
        self.wait_for_round(0)?;
        let mut firsts = Vec::new();
        for clients in self.clients() {
            firsts.extend(request_figures(clients, "firsts")?);
        }
        ping_spread::show(&firsts, self.plan.interval, size)?;
        Ok(Percentiles::of(firsts))
    }

    /// Measures one interval with nothing but pings and pongs.
    fn idle(&mut self) -> Result<()> {
        let (pings, cpu, begun) = (self.pings()?, self.cpu()?, Instant::now());
        sleep(self.plan.interval);
        let pings = self.pings()? - pings;
        let (cpu, took) = (self.cpu()? - cpu, begun.elapsed());
        let share = cpu.as_secs_f64() / took.as_secs_f64() * 100.0;
        let of_all = share * 100_000.0 / self.held.max(1) as f64;
        println!("| CPU time of all servers, idle | {share:.1} % of a core |");
        println!("| the same for 100,000 connections | {of_all:.1} % of a core |");
        println!(
            "| CPU time for a ping and its pong | {:.1} µs ({pings} pings) |",
            cpu.as_secs_f64() * 1e6 / pings.max(1) as f64
        );
        self.wait_for_round(1)?;
        let [vanished, dead] = [self.request_all("vanished")?, self.request_all("dead")?];
        if !vanished.is_empty() || !dead.is_empty() {
            let count = vanished.len() + dead.len();
            return Err(format!("{count} live connections were evicted").into());
        }
        Ok(())
    }

    /// Kills one process of clients and stops another. Returns the delays of their evictions.
    fn deaths(&mut self) -> Result<[Percentiles; 2]> {
        let [killed, dead] = self.doomed;
        let stopped = self.stopped.as_ref().ok_or("no clients are left to stop")?;
        kill(Pid::from_raw(stopped.pid() as i32), Signal::SIGSTOP)?;
        let killed_at = server::unix_micros();
        // Drop kills the process.
        drop(self.killed.take());
        let vanished = self.collect("vanished", killed, WAIT_LIMIT)?;
        let limit = self.plan.interval + self.plan.timeout + WAIT_LIMIT;
        let silences = self.collect("dead", dead, limit)?;
        // No other connection ends.
        self.wait_until_open(self.alive)?;
        let unexpected = [
            self.request_all("vanished")?,
            self.request_all("dead")?,
            self.request_all("others")?,
        ];
        let unexpected_count =
            unexpected[0].len() + unexpected[1].len() + unexpected[2].iter().sum::<u64>() as usize;
        if unexpected_count > 0 {
            return Err(format!(
                "{unexpected_count} connections were evicted that should not have been"
            )
            .into());
        }
        let timeout = self.plan.timeout.as_micros() as u64;
        if silences.iter().any(|&silence| silence < timeout) {
            return Err("a peer was evicted too early".into());
        }
        let due = (self.plan.interval + self.plan.timeout).as_micros() as u64;
        Ok([
            Percentiles::of(vanished.iter().map(|&at| at.saturating_sub(killed_at))),
            Percentiles::of(silences.iter().map(|silence| silence.saturating_sub(due))),
        ])
    }

    fn drain(&mut self) -> Result<()> {
        for server in &mut self.servers {
            server.send_line("drain")?;
        }
        let mut sums = [0; 3];
        let (mut shortest, mut longest) = (u64::MAX, 0);
        for server in &mut self.servers {
            let [clean, cut, already_gone, took] = read_figures(server)?[..] else {
                return Err("a server did not report its drain".into());
            };
            for (sum, count) in sums.iter_mut().zip([clean, cut, already_gone]) {
                *sum += count;
            }
            shortest = shortest.min(took);
            longest = longest.max(took);
        }
        println!(
            "| time for a server to drain | {:.1} to {:.1} s |",
            shortest as f64 / 1e6,
            longest as f64 / 1e6
        );
        let [clean, cut, already_gone] = sums;
        println!("| drained clean, cut, already gone | {clean}, {cut}, {already_gone} |");
        let [clean_ends, other_ends] = self.client_ends()?;
        println!("| clients that received 1001, replied and read EOF | {clean_ends} |");
        if clean + cut + already_gone != self.alive
            || self.request_all("open")?.iter().sum::<u64>() != 0
        {
            return Err("the drain did not reach every connection".into());
        }
        if other_ends > cut {
            return Err(format!("{other_ends} clients received no Close 1001").into());
        }
        Ok(())
    }

    /// Waits until all clients have ended. Returns the number of clean ends and of others.
    fn client_ends(&mut self) -> Result<[u64; 2]> {
        let begun = Instant::now();
        loop {
            let mut sums = [0; 2];
            for clients in &mut self.steady {
                for (sum, count) in sums.iter_mut().zip(request_figures(clients, "ends")?) {
                    *sum += count;
                }
            }
            if sums.iter().sum::<u64>() == self.alive {
                return Ok(sums);
            }
            if begun.elapsed() > WAIT_LIMIT {
                return Err(
                    format!("{} clients have not ended", self.alive - sums[0] - sums[1]).into(),
                );
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// The processes of all clients that have not been killed, starting with the steady ones.
    fn clients(&mut self) -> impl Iterator<Item = &mut Process> {
        let doomed = [&mut self.killed, &mut self.stopped];
        self.steady.iter_mut().chain(doomed.into_iter().flatten())
    }

    fn resident(&self) -> Result<u64> {
        self.servers.iter().map(|server| server.resident()).sum()
    }

    fn cpu(&self) -> Result<Duration> {
        self.servers.iter().map(|server| server.cpu()).sum()
    }

    /// Sends a command to all servers and returns the numbers of all replies.
    fn request_all(&mut self, command: &str) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        for server in &mut self.servers {
            all.extend(request_figures(server, command)?);
        }
        Ok(all)
    }

    fn pings(&mut self) -> Result<u64> {
        let mut sum = 0;
        for clients in self.clients() {
            sum += request_figures(clients, "pings")?.iter().sum::<u64>();
        }
        Ok(sum)
    }

    /// Waits until every connection has been pinged once (`round` 0) or twice (`round` 1).
    fn wait_for_round(&mut self, round: usize) -> Result<()> {
        let limit = self.plan.interval + WAIT_LIMIT;
        let begun = Instant::now();
        loop {
            let mut pinged = 0;
            for clients in self.clients() {
                pinged += request_figures(clients, "rounds")?[round];
            }
            if pinged == self.held {
                return Ok(());
            }
            if begun.elapsed() > limit {
                return Err(format!("{pinged} were pinged instead of {}", self.held).into());
            }
            sleep(Duration::from_millis(200));
        }
    }

    fn wait_until_open(&mut self, count: u64) -> Result<()> {
        let begun = Instant::now();
        loop {
            let open: u64 = self.request_all("open")?.iter().sum();
            if open == count {
                return Ok(());
            }
            if begun.elapsed() > WAIT_LIMIT {
                return Err(format!("{open} connections are open instead of {count}").into());
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Repeats a command to all servers until their replies hold `count` numbers in total.
    fn collect(&mut self, command: &str, count: u64, limit: Duration) -> Result<Vec<u64>> {
        let begun = Instant::now();
        let mut all = Vec::new();
        while all.len() as u64 != count {
            all.extend(self.request_all(command)?);
            if begun.elapsed() > limit || all.len() as u64 > count {
                return Err(format!("{command}: {} instead of {count}", all.len()).into());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(all)
    }
}

/// Returns the bytes of kernel memory in slabs, which include sockets.
fn slab_bytes() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Slab:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no Slab")?.parse::<u64>()? * 1024)
}

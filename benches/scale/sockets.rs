//! 100,000 idle connections of real sockets: how long they take to come, what they cost while nothing
//! happens, how their pings are spread, whether exactly the dead are evicted, and how long it takes to
//! say goodbye to all. There is no baseline: this is about whether it works, and what it takes.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::percentiles::Percentiles;
use super::support::process::{Process, Server, need_files};
use super::{Result, Size, client, command, figures, heard, ping_spread, server};

/// Connections of one process, if it may open as many files.
const PER_PROCESS: u64 = 17_000;
/// Files that a process needs besides.
const OTHER_FILES: u64 = 100;

/// How long something may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
struct Plan {
    servers: u64,
    total: u64,
    /// How many are killed, and as many are stopped.
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
        let limit = need_files(1_000 + OTHER_FILES)?;
        let per_process = PER_PROCESS.min(limit - OTHER_FILES);
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
    let mut scene = Scene::start(plan)?;
    scene.connect()?;
    let first = scene.first_pings(size)?;
    scene.idle()?;
    let [vanished, late] = scene.deaths()?;
    scene.drain()?;
    println!("\n| when | {}", Percentiles::HEAD);
    println!("| first pings: after the opening | {first} |");
    println!("| evictions of the killed: after the kill | {vanished} |");
    println!(
        "| evictions of the stopped: after the last sign of life + interval + timeout | {late} |"
    );
    Ok(())
}

/// All processes.
struct Scene {
    plan: Plan,
    servers: Vec<Server>,
    /// The clients that live: one process for each server.
    steady: Vec<Process>,
    killed: Option<Process>,
    stopped: Option<Process>,
    /// How many connections there are, how many of them live to the end, and how many are killed and
    /// stopped.
    held: u64,
    living: u64,
    doomed: [u64; 2],
}

impl Scene {
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
        let living = plan.total - 2 * plan.doomed;
        let steady = (0..plan.servers)
            .map(|index| {
                // The remainder goes to the first ones.
                let count = (living + plan.servers - 1 - index) / plan.servers;
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
            living: 0,
            doomed: [0; 2],
        })
    }

    fn connect(&mut self) -> Result<()> {
        let resident = self.resident()?;
        let heap: u64 = self.ask("heap")?.iter().sum();
        let kernel = slab()?;
        let begun = Instant::now();
        for clients in self.clients() {
            clients.tell("connect")?;
        }
        let mut counts = Vec::new();
        for clients in self.clients() {
            let line = clients.hear()?;
            let (count, stopped) = line.split_once(' ').unwrap_or((&line, ""));
            counts.push(count.parse::<u64>()?);
            if !stopped.is_empty() {
                println!("| stopped at {count} connections of one process | {stopped} |");
            }
        }
        let took = begun.elapsed();
        self.held = counts.iter().sum();
        let (steady, doomed) = counts.split_at(self.steady.len());
        self.living = steady.iter().sum();
        self.doomed = doomed.try_into()?;
        self.wait_until_open(self.held)?;
        let held = self.held;
        let per_connection = |before: u64, after: u64| after.saturating_sub(before) / held.max(1);
        let heap = per_connection(heap, self.ask("heap")?.iter().sum());
        let resident = per_connection(resident, self.resident()?);
        let kernel = per_connection(kernel, slab()?);
        println!("| connections held | {held} of {} |", self.plan.total);
        println!("| time for all to connect | {:.1} s |", took.as_secs_f64());
        println!("| live heap of the servers, per connection | {heap} B |");
        println!("| resident memory of the servers, per connection | {resident} B |");
        println!("| kernel memory (slab) for both ends, per connection | {kernel} B |");
        Ok(())
    }

    /// Waits until everybody was pinged for the first time, and says when.
    fn first_pings(&mut self, size: Size) -> Result<Percentiles> {
        self.wait_for_round(0)?;
        let mut firsts = Vec::new();
        for clients in self.clients() {
            firsts.extend(figures(clients, "firsts")?);
        }
        ping_spread::show(&firsts, self.plan.interval, size)?;
        Ok(Percentiles::of(firsts))
    }

    /// One interval in which nothing happens but pings and pongs.
    fn idle(&mut self) -> Result<()> {
        let (pings, cpu, begun) = (self.pings()?, self.cpu()?, Instant::now());
        sleep(self.plan.interval);
        let pings = self.pings()? - pings;
        let (cpu, took) = (self.cpu()? - cpu, begun.elapsed());
        let share = cpu.as_secs_f64() / took.as_secs_f64() * 100.0;
        let of_all = share * 100_000.0 / self.held.max(1) as f64;
        println!("| processor time of all servers, idle | {share:.1} % of a core |");
        println!("| the same for 100,000 connections | {of_all:.1} % of a core |");
        println!(
            "| processor time for a ping and its pong | {:.1} µs ({pings} pings) |",
            cpu.as_secs_f64() * 1e6 / pings.max(1) as f64
        );
        self.wait_for_round(1)?;
        let [vanished, dead] = [self.ask("vanished")?, self.ask("dead")?];
        if !vanished.is_empty() || !dead.is_empty() {
            let count = vanished.len() + dead.len();
            return Err(format!("{count} connections were evicted that live").into());
        }
        Ok(())
    }

    /// Kills some and stops others. How late each was evicted.
    fn deaths(&mut self) -> Result<[Percentiles; 2]> {
        let [killed, dead] = self.doomed;
        let stopped = self
            .stopped
            .as_ref()
            .ok_or("nobody is left to be stopped")?;
        kill(Pid::from_raw(stopped.pid() as i32), Signal::SIGSTOP)?;
        let killed_at = server::now();
        // Kills it.
        drop(self.killed.take());
        let vanished = self.collect("vanished", killed, PATIENCE)?;
        let patience = self.plan.interval + self.plan.timeout + PATIENCE;
        let silences = self.collect("dead", dead, patience)?;
        // Nobody follows them.
        self.wait_until_open(self.living)?;
        let others = [
            self.ask("vanished")?,
            self.ask("dead")?,
            self.ask("others")?,
        ];
        let more = others[0].len() + others[1].len() + others[2].iter().sum::<u64>() as usize;
        if more > 0 {
            return Err(
                format!("{more} connections were evicted that should not have been").into(),
            );
        }
        let timeout = self.plan.timeout.as_micros() as u64;
        if silences.iter().any(|&silence| silence < timeout) {
            return Err("somebody was evicted too early".into());
        }
        let due = (self.plan.interval + self.plan.timeout).as_micros() as u64;
        Ok([
            Percentiles::of(vanished.iter().map(|&at| at.saturating_sub(killed_at))),
            Percentiles::of(silences.iter().map(|silence| silence.saturating_sub(due))),
        ])
    }

    fn drain(&mut self) -> Result<()> {
        for server in &mut self.servers {
            server.tell("drain")?;
        }
        let mut sums = [0; 3];
        let (mut shortest, mut longest) = (u64::MAX, 0);
        for server in &mut self.servers {
            let [clean, cut, gone, took] = heard(server)?[..] else {
                return Err("a server does not say how it was drained".into());
            };
            for (sum, count) in sums.iter_mut().zip([clean, cut, gone]) {
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
        let [clean, cut, gone] = sums;
        println!("| drained clean, cut, already gone | {clean}, {cut}, {gone} |");
        let [goodbyes, lost] = self.farewells()?;
        println!("| clients that got 1001, answered and saw the end | {goodbyes} |");
        if clean + cut + gone != self.living || self.ask("open")?.iter().sum::<u64>() != 0 {
            return Err("the drain has not come to everybody".into());
        }
        if lost > cut {
            return Err(format!("{lost} clients were not told to go").into());
        }
        Ok(())
    }

    /// How many clients saw a proper end, and how many another, as soon as all have.
    fn farewells(&mut self) -> Result<[u64; 2]> {
        let begun = Instant::now();
        loop {
            let mut sums = [0; 2];
            for clients in &mut self.steady {
                for (sum, count) in sums.iter_mut().zip(figures(clients, "ends")?) {
                    *sum += count;
                }
            }
            if sums.iter().sum::<u64>() == self.living {
                return Ok(sums);
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} have not ended", self.living - sums[0] - sums[1]).into());
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// The processes of all clients that have not been killed, those that live first.
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

    /// Asks all servers.
    fn ask(&mut self, asked: &str) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        for server in &mut self.servers {
            all.extend(figures(server, asked)?);
        }
        Ok(all)
    }

    fn pings(&mut self) -> Result<u64> {
        let mut sum = 0;
        for clients in self.clients() {
            sum += figures(clients, "pings")?.iter().sum::<u64>();
        }
        Ok(sum)
    }

    /// Waits until everybody has been pinged once (0) or twice (1).
    fn wait_for_round(&mut self, round: usize) -> Result<()> {
        let patience = self.plan.interval + PATIENCE;
        let begun = Instant::now();
        loop {
            let mut pinged = 0;
            for clients in self.clients() {
                pinged += figures(clients, "rounds")?[round];
            }
            if pinged == self.held {
                return Ok(());
            }
            if begun.elapsed() > patience {
                return Err(format!("{pinged} were pinged instead of {}", self.held).into());
            }
            sleep(Duration::from_millis(200));
        }
    }

    fn wait_until_open(&mut self, count: u64) -> Result<()> {
        let begun = Instant::now();
        loop {
            let open: u64 = self.ask("open")?.iter().sum();
            if open == count {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{open} connections are open instead of {count}").into());
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Asks all servers until they have named `count` altogether.
    fn collect(&mut self, asked: &str, count: u64, patience: Duration) -> Result<Vec<u64>> {
        let begun = Instant::now();
        let mut all = Vec::new();
        while all.len() as u64 != count {
            all.extend(self.ask(asked)?);
            if begun.elapsed() > patience || all.len() as u64 > count {
                return Err(format!("{asked}: {} instead of {count}", all.len()).into());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(all)
    }
}

/// Bytes that the kernel has taken for its own structures, sockets among them.
fn slab() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Slab:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no Slab")?.parse::<u64>()? * 1024)
}

//! A million in-memory streams in one process: the cost of the layer alone.
//!
//! There are no sockets and no WebSocket library, and the kernel is not involved. The baseline for
//! memory is a process with the same streams and tasks without the layer.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::percentiles::Percentiles;
use super::support::process::Process;
use super::{Result, Size, command, holder, request_figures};

/// Limit for an event that should happen immediately.
const WAIT_LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
struct Plan {
    count: u64,
    interval: Duration,
    timeout: Duration,
}

pub(crate) fn run(size: Size) -> Result<()> {
    let plan = match size {
        Size::Quick => Plan {
            count: 10_000,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
        },
        Size::Full => Plan {
            count: 1_000_000,
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(15),
        },
    };
    println!(
        "{} streams in memory, a task reads each; interval {:?}, timeout {:?}, default jitter.\n",
        plan.count, plan.interval, plan.timeout
    );
    let mut bare = Holder::start(plan, holder::BARE)?;
    let baseline = bare.open()?;
    bare.process.end()?;
    let mut layered = Holder::start(plan, holder::LAYERED)?;
    let probe_alone = layered.probe(plan.interval.min(Duration::from_secs(5)))?;
    let opened = layered.open()?;
    memory(baseline, opened);
    println!("\n| what | figure |\n|---|---|");
    let rate = opened.took.as_secs_f64() / baseline.took.as_secs_f64();
    println!(
        "| time to open all | {:.2} s, {rate:.1} × the baseline |",
        opened.took.as_secs_f64()
    );
    layered.quiet(opened.took)?;
    let (round, probe) = layered.round()?;
    let deaths = layered.deaths()?;
    layered.close_peers()?;
    println!("\n| how late | {}", Percentiles::HEAD);
    println!("| pings, after the last byte + interval | {round} |");
    println!(
        "| eviction hooks of {} peers silent at once, after the last byte + interval + timeout | {} |",
        deaths.hooks.count, deaths.hooks
    );
    println!(
        "| pings in the meantime, including those to silent peers | {} |",
        deaths.pings
    );
    println!(
        "\n| opening and dropping one more stream | {}",
        Percentiles::HEAD
    );
    println!("| with no other stream | {probe_alone} |");
    println!("| with all streams open and pinged | {probe} |");
    println!("| during the evictions | {} |", deaths.probe);
    Ok(())
}

/// Time and memory that opening all streams took.
#[derive(Clone, Copy)]
struct Opened {
    took: Duration,
    /// Bytes per stream.
    heap: f64,
    resident: f64,
}

fn memory(baseline: Opened, opened: Opened) {
    println!("| bytes per connection | without the layer | with it | the layer's |");
    println!("|---|---|---|---|");
    for (what, without, with) in [
        ("live heap", baseline.heap, opened.heap),
        ("resident", baseline.resident, opened.resident),
    ] {
        let added = with - without;
        println!("| {what} | {without:.0} | {with:.0} | {added:.0} |");
    }
}

/// Figures from the time in which many peers died at once.
struct Deaths {
    hooks: Percentiles,
    pings: Percentiles,
    probe: Percentiles,
}

/// The process that holds the streams.
struct Holder {
    plan: Plan,
    process: Process,
}

impl Holder {
    fn start(plan: Plan, kind: &str) -> Result<Self> {
        let args = [
            kind.to_owned(),
            plan.count.to_string(),
            plan.interval.as_millis().to_string(),
            plan.timeout.as_millis().to_string(),
        ];
        let process = Process::spawn(command(holder::ROLE, &args)?)?;
        Ok(Self { plan, process })
    }

    fn open(&mut self) -> Result<Opened> {
        let (heap, resident) = (self.request_figure("heap")?, self.process.resident()?);
        let took = Duration::from_micros(self.request_figure("open")?);
        let each =
            |before: u64, after: u64| (after as f64 - before as f64) / self.plan.count as f64;
        Ok(Opened {
            took,
            heap: each(heap, request_figure(&mut self.process, "heap")?),
            resident: each(resident, self.process.resident()?),
        })
    }

    /// Measures the time before the first ping is due, if any is left after the opening.
    fn quiet(&mut self, opening: Duration) -> Result<()> {
        // With the default jitter no ping is due in the first half of the interval.
        let left = (self.plan.interval / 2).saturating_sub(opening.mul_f64(1.2));
        if left < self.plan.interval / 10 {
            println!("| CPU time while nothing is due | opening took too long to measure |");
            return Ok(());
        }
        let (cpu, begun) = (self.process.cpu()?, Instant::now());
        sleep(left.mul_f64(0.8));
        let (cpu, took) = (self.process.cpu()? - cpu, begun.elapsed());
        let millis = cpu.as_secs_f64() * 1e3 / took.as_secs_f64();
        println!("| CPU time while nothing is due | {millis:.1} ms per second |");
        Ok(())
    }

    /// Measures a whole interval, in which every stream is pinged. Returns the pings' delay and the
    /// times of the probe.
    fn round(&mut self) -> Result<(Percentiles, Percentiles)> {
        let begun = Instant::now();
        while self.request_figure("pings")? < self.plan.count {
            if begun.elapsed() > self.plan.interval + WAIT_LIMIT {
                return Err("not every stream was pinged".into());
            }
            sleep(Duration::from_millis(20));
        }
        let (cpu, pings, begun) = (
            self.process.cpu()?,
            self.request_figure("pings")?,
            Instant::now(),
        );
        let reads = self.request_figure("reads")?;
        self.percentiles("lateness")?;
        let probe = self.probe(self.plan.interval)?;
        let lateness = self.percentiles("lateness")?;
        let reads = self.request_figure("reads")? - reads;
        let (pings, took) = (self.request_figure("pings")? - pings, begun.elapsed());
        let cpu = (self.process.cpu()? - cpu).as_secs_f64();
        println!(
            "| CPU time while all are pinged | {:.1} % of a core |",
            cpu / took.as_secs_f64() * 100.0
        );
        println!(
            "| CPU time for a ping and its pong | {:.2} µs ({pings} pings) |",
            cpu * 1e6 / pings.max(1) as f64
        );
        println!(
            "| transport reads per ping and pong, including pending ones | {:.2} |",
            reads as f64 / pings.max(1) as f64
        );
        self.check_live(self.plan.count)?;
        Ok((lateness, probe))
    }

    /// Silences a tenth of the peers. They send a last pong at the same time, so that the driver
    /// pings and evicts all of them in the same turn.
    fn deaths(&mut self) -> Result<Deaths> {
        let dying = self.plan.count / 10;
        let before = request_figure(&mut self.process, "heap")?;
        self.percentiles("lateness")?;
        let took = Duration::from_micros(self.request_figure(&format!("silence {dying}"))?);
        println!(
            "| time in which {dying} peers sent their last pong | {:.3} s |",
            took.as_secs_f64()
        );
        let due = self.plan.interval + self.plan.timeout;
        let probe = self.probe(due + self.plan.interval / 10)?;
        let begun = Instant::now();
        let (hooks, early) = loop {
            let (hooks, early) = (self.percentiles("late")?, self.request_figure("early")?);
            if hooks.count + early >= dying {
                break (hooks, early);
            }
            if begun.elapsed() > WAIT_LIMIT {
                let dead = hooks.count + early;
                return Err(format!("{dead} of {dying} were found dead").into());
            }
            sleep(Duration::from_millis(20));
        };
        self.check_live(self.plan.count - dying)?;
        println!(
            "| evicted before the deadline, since the driver read the last pong first | {early} |"
        );
        let freed = before as f64 - self.request_figure("heap")? as f64;
        println!(
            "| heap freed per evicted stream | {:.0} B |",
            freed / dying as f64
        );
        Ok(Deaths {
            hooks,
            pings: self.percentiles("lateness")?,
            probe,
        })
    }

    fn close_peers(&mut self) -> Result<()> {
        let took = Duration::from_micros(self.request_figure("close")?);
        println!(
            "| time until all others have ended, whose peers close at once | {:.2} s |",
            took.as_secs_f64()
        );
        self.check_live(0)?;
        let left = self.request_figure("heap")? as f64 / self.plan.count as f64;
        let resident = self.process.resident()? as f64 / self.plan.count as f64;
        println!(
            "| left per stream after that: live heap, resident | {left:.0} B, {resident:.0} B |"
        );
        Ok(())
    }

    fn check_live(&mut self, count: u64) -> Result<()> {
        let (live, others) = (self.request_figure("live")?, self.request_figure("others")?);
        if live != count || others > 0 {
            let text =
                format!("{live} open instead of {count}, {others} ended for an unexpected reason");
            return Err(text.into());
        }
        Ok(())
    }

    fn probe(&mut self, span: Duration) -> Result<Percentiles> {
        self.percentiles(&format!("probe {}", span.as_millis()))
    }

    fn percentiles(&mut self, command: &str) -> Result<Percentiles> {
        Percentiles::parse(&request_figures(&mut self.process, command)?)
    }

    fn request_figure(&mut self, command: &str) -> Result<u64> {
        request_figure(&mut self.process, command)
    }
}

fn request_figure(process: &mut Process, command: &str) -> Result<u64> {
    let figures = request_figures(process, command)?;
    Ok(*figures.first().ok_or("no figure")?)
}

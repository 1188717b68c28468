//! A million connections of one process, in memory: what the layer costs without sockets, WebSocket
//! libraries and the kernel. The baseline of the memory is the same streams, read by the same tasks,
//! without the layer, in a process of their own.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::percentiles::Percentiles;
use super::support::process::Process;
use super::{Result, Size, command, figures, holder};

/// How long something may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

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
    let alone = layered.probe(plan.interval.min(Duration::from_secs(5)))?;
    let opened = layered.open()?;
    memory(baseline, opened);
    println!("\n| what | figure |\n|---|---|");
    let rate = opened.took.as_secs_f64() / baseline.took.as_secs_f64();
    println!(
        "| time to open all | {:.2} s, {rate:.1} × the baseline |",
        opened.took.as_secs_f64()
    );
    layered.quiet(opened.took)?;
    let (round, coming) = layered.round()?;
    let deaths = layered.deaths()?;
    layered.hang_up()?;
    println!("\n| how late | {}", Percentiles::HEAD);
    println!("| pings, after the last byte + interval | {round} |");
    println!(
        "| hooks of {} that fell silent at once, after the last byte + interval + timeout | {} |",
        deaths.hooks.count, deaths.hooks
    );
    println!("| pings meanwhile, also to those | {} |", deaths.pings);
    println!("\n| one more opens and is dropped | {}", Percentiles::HEAD);
    println!("| nobody else there | {alone} |");
    println!("| all there, and pinged | {coming} |");
    println!("| while so many die | {} |", deaths.coming);
    Ok(())
}

/// What all streams took up as they were opened.
#[derive(Clone, Copy)]
struct Opened {
    took: Duration,
    /// Bytes for each.
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

/// What happened while many died at once.
struct Deaths {
    hooks: Percentiles,
    pings: Percentiles,
    coming: Percentiles,
}

/// The process that holds them.
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
        let (heap, resident) = (self.figure("heap")?, self.process.resident()?);
        let took = Duration::from_micros(self.figure("open")?);
        let each =
            |before: u64, after: u64| (after as f64 - before as f64) / self.plan.count as f64;
        Ok(Opened {
            took,
            heap: each(heap, figure(&mut self.process, "heap")?),
            resident: each(resident, self.process.resident()?),
        })
    }

    /// The time before the first ping is due, if there is any left after the opening.
    fn quiet(&mut self, opening: Duration) -> Result<()> {
        // Jitter leaves half of the interval out at most.
        let left = (self.plan.interval / 2).saturating_sub(opening.mul_f64(1.2));
        if left < self.plan.interval / 10 {
            println!("| processor time while nothing is due | opening took too long to say |");
            return Ok(());
        }
        let (cpu, begun) = (self.process.cpu()?, Instant::now());
        sleep(left.mul_f64(0.8));
        let (cpu, took) = (self.process.cpu()? - cpu, begun.elapsed());
        let millis = cpu.as_secs_f64() * 1e3 / took.as_secs_f64();
        println!("| processor time while nothing is due | {millis:.1} ms per second |");
        Ok(())
    }

    /// A whole interval with a ping for everybody. How late they were, and what somebody noticed who
    /// came meanwhile.
    fn round(&mut self) -> Result<(Percentiles, Percentiles)> {
        let begun = Instant::now();
        while self.figure("pings")? < self.plan.count {
            if begun.elapsed() > self.plan.interval + PATIENCE {
                return Err("not everybody was pinged".into());
            }
            sleep(Duration::from_millis(20));
        }
        let (cpu, pings, begun) = (self.process.cpu()?, self.figure("pings")?, Instant::now());
        let reads = self.figure("reads")?;
        self.percentiles("lateness")?;
        let coming = self.probe(self.plan.interval)?;
        let lateness = self.percentiles("lateness")?;
        let reads = self.figure("reads")? - reads;
        let (pings, took) = (self.figure("pings")? - pings, begun.elapsed());
        let cpu = (self.process.cpu()? - cpu).as_secs_f64();
        println!(
            "| processor time while all are pinged | {:.1} % of a core |",
            cpu / took.as_secs_f64() * 100.0
        );
        println!(
            "| processor time for a ping and its pong | {:.2} µs ({pings} pings) |",
            cpu * 1e6 / pings.max(1) as f64
        );
        println!(
            "| reads of the transport for a ping and its pong, also in vain | {:.2} |",
            reads as f64 / pings.max(1) as f64
        );
        self.check_live(self.plan.count)?;
        Ok((lateness, coming))
    }

    /// A tenth falls silent after a last word of all at the same time, so that all are pinged, and
    /// found dead, in the same turn of the driver.
    fn deaths(&mut self) -> Result<Deaths> {
        let dying = self.plan.count / 10;
        let before = figure(&mut self.process, "heap")?;
        self.percentiles("lateness")?;
        let took = Duration::from_micros(self.figure(&format!("silence {dying}"))?);
        println!(
            "| time in which {dying} said their last word | {:.3} s |",
            took.as_secs_f64()
        );
        let due = self.plan.interval + self.plan.timeout;
        let coming = self.probe(due + self.plan.interval / 10)?;
        let begun = Instant::now();
        let (hooks, sooner) = loop {
            let (hooks, sooner) = (self.percentiles("late")?, self.figure("sooner")?);
            if hooks.count + sooner >= dying {
                break (hooks, sooner);
            }
            if begun.elapsed() > PATIENCE {
                let dead = hooks.count + sooner;
                return Err(format!("{dead} of {dying} were found dead").into());
            }
            sleep(Duration::from_millis(20));
        };
        self.check_live(self.plan.count - dying)?;
        println!(
            "| found dead sooner, since a visit of the driver crossed their last word | {sooner} |"
        );
        let freed = before as f64 - self.figure("heap")? as f64;
        println!(
            "| heap that came back with each of the dead | {:.0} B |",
            freed / dying as f64
        );
        Ok(Deaths {
            hooks,
            pings: self.percentiles("lateness")?,
            coming,
        })
    }

    fn hang_up(&mut self) -> Result<()> {
        let took = Duration::from_micros(self.figure("hang-up")?);
        println!(
            "| time until all the others are gone that hang up at once | {:.2} s |",
            took.as_secs_f64()
        );
        self.check_live(0)?;
        let left = self.figure("heap")? as f64 / self.plan.count as f64;
        let resident = self.process.resident()? as f64 / self.plan.count as f64;
        println!("| left of each after that: live heap, resident | {left:.0} B, {resident:.0} B |");
        Ok(())
    }

    fn check_live(&mut self, count: u64) -> Result<()> {
        let (live, others) = (self.figure("live")?, self.figure("others")?);
        if live != count || others > 0 {
            let text = format!("{live} live instead of {count}, {others} ended for no reason");
            return Err(text.into());
        }
        Ok(())
    }

    fn probe(&mut self, span: Duration) -> Result<Percentiles> {
        self.percentiles(&format!("probe {}", span.as_millis()))
    }

    fn percentiles(&mut self, asked: &str) -> Result<Percentiles> {
        Percentiles::parse(&figures(&mut self.process, asked)?)
    }

    fn figure(&mut self, asked: &str) -> Result<u64> {
        figure(&mut self.process, asked)
    }
}

fn figure(process: &mut Process, asked: &str) -> Result<u64> {
    let figures = figures(process, asked)?;
    Ok(*figures.first().ok_or("no figure")?)
}

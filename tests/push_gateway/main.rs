//! The push_gateway example as a process, with bots that are killed, stopped, slow or replaced.
//!
//! A binary of its own, since its tests measure times and run one at a time. Like `tests/processes`
//! it plays every role: the example, bots in processes of their own where a signal is needed, and
//! the harness. All other bots are sockets of the harness.

mod gateway;
#[path = "../support/harness.rs"]
mod harness;
#[allow(dead_code)] // shared with `tests/processes`
#[path = "../support/process.rs"]
mod process;
#[allow(dead_code, unreachable_pub)] // its `main` is not the one that runs
#[path = "../../examples/push_gateway.rs"]
mod push_gateway;
mod roles;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use gateway::{Bot, Http, Received, ShortLivedBots, raw};
use harness::{Arguments, Trial};
use nix::sys::signal::Signal;
use process::{Client, Server};
use roles::runtime;
use support::{PATIENCE, SLACK, ms};
use tokio::io::AsyncReadExt;

/// Pings are sent, and no bot is evicted for a missing pong or a stalled write: evictions have
/// other causes.
const SLOW_HEARTBEAT: [&str; 6] = [
    "--interval-ms",
    "500",
    "--timeout-ms",
    "60000",
    "--write-timeout-ms",
    "60000",
];

/// Number of events queued before a bot must have read them: far from the 256 at which a bot is
/// slow, also on a loaded machine.
const BURST: u64 = 64;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some(roles::SERVER) => roles::server(args.collect()),
        Some(roles::CLIENT) => roles::client(&args.collect::<Vec<_>>()),
        _ => test(),
    }
}

fn test() -> ExitCode {
    let tests: [(&str, fn()); 8] = [
        ("a_killed_bot_is_pushed_nothing_after_the_verdict", killed),
        (
            "a_stopped_bot_is_too_slow_for_many_events",
            stopped_in_events,
        ),
        (
            "a_stopped_bot_without_events_is_evicted_by_the_heartbeat",
            stopped_in_quiet,
        ),
        ("a_bot_that_reconnects_takes_over_its_seat", reconnected),
        (
            "all_bots_get_all_events_of_many_publishers_in_one_order",
            in_order,
        ),
        (
            "dead_stopped_and_slow_bots_do_not_delay_the_others",
            not_delayed,
        ),
        ("memory_stays_flat_while_bots_are_evicted", flat),
        ("invalid_bots_and_events_are_refused", refused),
    ];
    let trial = |(name, test): (&str, fn())| {
        let reads_proc = name == "memory_stays_flat_while_bots_are_evicted";
        Trial {
            name: name.into(),
            test,
            ignored: (reads_proc && !cfg!(target_os = "linux")).then_some("reads /proc"),
        }
    };
    let mut arguments = Arguments::from_env();
    // One at a time by default: the tests measure times.
    arguments.test_threads.get_or_insert(1);
    harness::run(&arguments, tests.map(trial).into())
}

// The tests.

fn killed() {
    let mut server = Server::start(&SLOW_HEARTBEAT);
    let mut http = Http::connect(&server);
    let mut victim = Client::start(&server, &["victim"]);
    let mut spared = [
        Client::start(&server, &["spared"]),
        Client::start(&server, &["spared-too"]),
    ];
    let id = http.session("victim")["id"].as_u64().unwrap();

    let mut counts = Vec::new();
    let mut killed = None;
    // In bursts. The victim is killed within one, with events in transit to it.
    while server.evictions().is_empty() {
        for _ in 0..BURST {
            let (event, count) = http.push("an event");
            counts.push(count);
            if event == BURST * 5 / 2 {
                victim.signal(Signal::SIGKILL);
                killed = Some(Instant::now());
            }
        }
        expect_burst(&mut spared, http.last_event);
        server.listen_for(Duration::ZERO);
        let waits = killed.is_some_and(|killed| killed.elapsed() > PATIENCE);
        assert!(!waits, "the dead session is still pushed to: {counts:?}");
    }
    let eviction = server.eviction_of(id);
    assert_eq!(eviction.entry["bot"], "victim");
    let is_end = matches!(eviction.reason.as_str(), "peer_vanished" | "transport");
    assert!(is_end, "{eviction:?}");
    // The kernel closes the connection immediately, and so does the layer.
    let took = eviction.at - killed.expect("evicted because it was killed");
    assert!(took < SLACK, "{took:?}");

    // The session gets events until the eviction, and none after it.
    let gone_at = counts.iter().position(|count| *count == 2);
    let after = gone_at.unwrap_or(counts.len());
    assert!(
        counts[..after].iter().all(|count| *count == 3),
        "{counts:?}"
    );
    assert!(
        counts[after..].iter().all(|count| *count == 2),
        "{counts:?}"
    );
    for _ in 0..BURST {
        assert_eq!(http.push("an event after the eviction").1, 2);
    }
    expect_burst(&mut spared, http.last_event);
    let events = http.last_event;
    assert_eq!(http.bots(), ["spared", "spared-too"]);
    assert_eq!(http.session("spared")["pushed"], events);
    assert_eq!(http.session("spared")["queued"], 0);
    expect_one_eviction(&mut server);
}

/// Events fill the queue of a stopped bot, as they do for a slow one.
fn stopped_in_events() {
    let mut server = Server::start(&SLOW_HEARTBEAT);
    let mut http = Http::connect(&server);
    let runtime = runtime();
    let neighbour = Bot::connect(&runtime, &server, "neighbour");
    let mut victim = Client::start(&server, &["victim"]);
    let id = http.session("victim")["id"].as_u64().unwrap();
    victim.stop();

    let text = "n".repeat(2048);
    let (mut last_queued, mut count) = (0, 2);
    while count == 2 {
        let event;
        (event, count) = http.push(&text);
        neighbour.expect_event(event);
        if count == 2 {
            last_queued = event;
        }
        // The 202 is sent after the eviction, so that the seat is free when it arrives.
        assert_eq!(http.bots().len(), count);
        assert!(event < 5000, "a stopped bot takes everything");
    }
    // More events than the queue holds, since some were in the sockets' buffers.
    assert!(last_queued >= 256, "{last_queued}");
    assert_eq!(http.bots(), ["neighbour"]);
    assert_eq!(server.eviction_of(id).reason, "kicked");
    assert_eq!(http.push(&text).1, 1);
    neighbour.expect_event(http.last_event);

    // The bot gets the events that were in transit, and none from after the eviction.
    victim.signal(Signal::SIGCONT);
    let last_received = events_until_closed(&mut victim);
    assert!(
        last_received <= last_queued,
        "{last_received} of {last_queued}"
    );
    expect_one_eviction(&mut server);
}

/// Without events the queue does not fill, and the heartbeat finds the stopped bot.
fn stopped_in_quiet() {
    let flags = ["--interval-ms", "300", "--timeout-ms", "1500"];
    let mut server = Server::start(&flags);
    let mut http = Http::connect(&server);
    let runtime = runtime();
    let neighbour = Bot::connect(&runtime, &server, "neighbour");
    let mut victim = Client::start(&server, &["victim"]);
    let id = http.session("victim")["id"].as_u64().unwrap();
    assert_eq!(http.push("before"), (1, 2));
    victim.expect("event 1", PATIENCE);

    victim.stop();
    let stopped = Instant::now();
    // A few events wait for the bot to resume.
    assert_eq!(http.push("into its buffers"), (2, 2));
    let eviction = server.eviction_of(id);
    assert_eq!(eviction.reason, "heartbeat_timeout");
    let took = eviction.at - stopped;
    assert!(took < ms(300 + 1500) + SLACK, "{took:?}");
    assert_eq!(http.push("after"), (3, 1));
    assert_eq!(http.bots(), ["neighbour"]);
    (1..=3).for_each(|event| {
        neighbour.expect_event(event);
    });

    victim.signal(Signal::SIGCONT);
    assert!(events_until_closed(&mut victim) <= 2);
    expect_one_eviction(&mut server);
    assert!(http.session("neighbour")["rtt_ms"].is_f64());
}

fn reconnected() {
    let mut server = Server::start(&SLOW_HEARTBEAT);
    let mut http = Http::connect(&server);
    let runtime = runtime();
    let old = Bot::connect(&runtime, &server, "bot");
    let old_id = http.session("bot")["id"].as_u64().unwrap();
    for event in 1..=3 {
        assert_eq!(http.push("for the old one"), (event, 1));
        old.expect_event(event);
    }

    let new = Bot::connect(&runtime, &server, "bot");
    assert_eq!(old.next().1, Received::Closed(Some(4000)));
    let eviction = server.eviction_of(old_id);
    assert_eq!(eviction.reason, "replaced");
    assert_eq!(eviction.entry["bot"], "bot");
    let new_id = http.session("bot")["id"].as_u64().unwrap();
    assert_ne!(new_id, old_id);
    // The new session has its own queue, without events of the old one.
    for event in 4..=6 {
        assert_eq!(http.push("for the new one"), (event, 1));
        new.expect_event(event);
    }

    // The old connection's end does not remove the new seat.
    drop(old);
    expect_one_eviction(&mut server);
    assert_eq!(http.session("bot")["id"], new_id);
    assert_eq!(http.push("still for the new one"), (7, 1));
    new.expect_event(7);
}

fn in_order() {
    const PUBLISHERS: u64 = 4;
    let server = Server::start(&SLOW_HEARTBEAT);
    let runtime = runtime();
    let bots: Vec<_> = (0..5)
        .map(|bot| Bot::connect(&runtime, &server, &format!("bot-{bot}")))
        .collect();
    let mut publishers: Vec<_> = (0..PUBLISHERS).map(|_| Http::connect(&server)).collect();
    let mut last = 0;
    for _ in 0..10 {
        std::thread::scope(|scope| {
            for http in &mut publishers {
                scope.spawn(|| {
                    for _ in 0..BURST / PUBLISHERS {
                        assert_eq!(http.push("an event").1, 5);
                    }
                });
            }
        });
        for bot in &bots {
            (last + 1..=last + BURST).for_each(|event| {
                bot.expect_event(event);
            });
        }
        last += BURST;
    }
}

fn not_delayed() {
    const BOTS: usize = 20;
    let mut server = Server::start(&SLOW_HEARTBEAT);
    let mut http = Http::connect(&server);
    let runtime = runtime();
    let bots: Vec<_> = (0..BOTS)
        .map(|bot| Bot::connect(&runtime, &server, &format!("bot-{bot}")))
        .collect();
    let text = "n".repeat(2048);
    // Measures from before the POST until a bot has the event, for all bots. The next event is sent
    // after all have this one, so that none waits for the test.
    let push = |http: &mut Http, took: &mut Vec<Duration>| {
        let start = Instant::now();
        let (event, count) = http.push(&text);
        took.extend(bots.iter().map(|bot| bot.expect_event(event) - start));
        count
    };

    let mut undisturbed = Vec::new();
    for _ in 0..50 {
        push(&mut http, &mut Vec::new()); // to warm up
    }
    for _ in 0..300 {
        assert_eq!(push(&mut http, &mut undisturbed), BOTS);
    }

    let mut killed: Vec<_> = ["killed-0", "killed-1", "killed-2"]
        .map(|name| Client::start(&server, &[name]))
        .into();
    let mut stopped =
        ["stopped-0", "stopped-1", "stopped-2"].map(|name| Client::start(&server, &[name]));
    let connect = |name: &str| runtime.block_on(raw(&server.addr, name));
    let silent = ["silent-0", "silent-1"].map(connect);
    let mut slow = connect("slow");
    stopped.iter_mut().for_each(Client::stop);
    assert_eq!(http.bots().len(), BOTS + 9);

    let mut disturbed = Vec::new();
    for round in 0.. {
        if round % 50 == 25 {
            if let Some(mut bot) = killed.pop() {
                bot.signal(Signal::SIGKILL);
            }
        }
        if round % 10 == 5 {
            // The slow bot reads, but more slowly than events are pushed. The read fails after its
            // eviction.
            let _ = runtime.block_on(slow.io().read(&mut [0; 2048]));
        }
        let count = push(&mut http, &mut disturbed);
        assert!(count >= BOTS, "{count}");
        server.listen_for(Duration::ZERO);
        // Until all nine were evicted, and for a while after.
        if server.evictions().len() == 9 && round >= 400 {
            break;
        }
        assert!(round < 5000, "{:?} only", server.evictions());
    }
    for eviction in server.evictions() {
        let bot = eviction.entry["bot"].as_str().unwrap();
        let is_kicked = eviction.reason == "kicked";
        assert_eq!(is_kicked, !bot.starts_with("killed"), "{eviction:?}");
    }
    assert_eq!(http.bots().len(), BOTS);

    let [undisturbed, disturbed] = [undisturbed, disturbed].map(p99);
    // A wide bound, for a loaded machine. A push that waited for a bot would take a minute, the
    // timeout of the bot.
    let bound = undisturbed * 5 + ms(50);
    assert!(
        disturbed <= bound,
        "{disturbed:?}, undisturbed {undisturbed:?}"
    );
    drop(silent);
}

/// Bots end all the time in all ways, each under a new name. After a warm-up and at the end only
/// the steady bots are left. Memory must not grow in between.
fn flat() {
    /// Allowance for the allocator, which takes 150 to 250 KiB in each run. Some 1,900 bots end
    /// between the two measurements. Leaked seats would take 6 MiB, and leaked queues with their
    /// events 11 MiB, so that a leak of one bot in four is still found.
    const TOLERANCE: u64 = 1536 * 1024;
    /// Number of queued events, counted for each session.
    const WARM_UP: usize = 60_000;
    const ALL: usize = 200_000;
    let flags = [
        "--interval-ms",
        "500",
        "--timeout-ms",
        "2000",
        "--write-timeout-ms",
        "2000",
    ];
    let mut server = Server::start(&flags);
    let mut http = Http::connect(&server);
    let runtime = runtime();
    let steady: Vec<_> = (0..10)
        .map(|bot| Bot::connect(&runtime, &server, &format!("steady-{bot}")))
        .collect();
    let mut short_lived = ShortLivedBots::default();
    let mut resident_after = |pushed| {
        while short_lived.pushed < pushed {
            short_lived.round(&runtime, &server, &mut http, &steady);
        }
        short_lived.wait_for_evictions(&mut server, &mut http, &steady);
        server.resident()
    };
    let [warm, end] = [WARM_UP, ALL].map(&mut resident_after);
    let grown = end.saturating_sub(warm);
    assert!(grown <= TOLERANCE, "grown by {grown} bytes from {warm}");
}

fn refused() {
    let mut server = Server::start(&SLOW_HEARTBEAT);
    let mut http = Http::connect(&server);
    for name in ["a".repeat(65), "%07".into(), "%ff".into()] {
        let opening = support::raw::opening(&format!("/ws/{name}"));
        assert_eq!(http.exchange(opening.as_bytes()).0, 400, "{name}");
    }
    assert_eq!(http.request("GET /ws/bot", b"").0, 400);
    assert_eq!(http.request("GET /events", b"").0, 405);
    assert_eq!(http.request("POST /events", b"\xff").0, 400);
    assert_eq!(
        Http::connect(&server)
            .request("POST /events", &[b'n'; 64 * 1024 + 1])
            .0,
        413
    );
    // None of these was an event or a bot.
    assert_eq!(http.push(""), (1, 0));
    assert_eq!(http.bots(), [""; 0]);
    assert_eq!(http.push(&"n".repeat(64 * 1024)), (2, 0));
    server.listen_for(ms(100));
    assert!(server.evictions().is_empty(), "{:?}", server.evictions());

    for flags in [
        &["--no-such-flag"][..],
        &["--interval-ms"],
        &["--interval-ms", "0"],
    ] {
        let flags = flags.iter().map(ToString::to_string).collect();
        assert!(runtime().block_on(push_gateway::run(flags)).is_err());
    }
}

// Bots in processes.

/// Asserts that each bot gets the burst that ends with event `last`.
fn expect_burst(bots: &mut [Client], last: u64) {
    for bot in bots {
        for event in last - BURST + 1..=last {
            bot.expect(&format!("event {event}"), PATIENCE);
        }
    }
}

/// Reads the bot's remaining events, which have no gap. Returns the last one, or 0.
fn events_until_closed(bot: &mut Client) -> u64 {
    let mut last = 0;
    loop {
        let (_, line) = bot.next_line(PATIENCE);
        if line == "closed" {
            return last;
        }
        let event = line.strip_prefix("event ").expect(&line).parse().unwrap();
        assert!(last == 0 || event == last + 1, "{event} after {last}");
        last = event;
    }
}

/// Asserts that there is one eviction, and no second one in 300 ms.
fn expect_one_eviction(server: &mut Server) {
    server.listen_for(ms(300));
    assert_eq!(server.evictions().len(), 1, "{:?}", server.evictions());
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

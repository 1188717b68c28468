//! A client that stays connected: its own heartbeat tells it that the server is gone, and it comes
//! back without running the server over.
//!
//! ```text
//! cargo run --example echo -- --interval-ms 1000 --timeout-ms 1000
//! cargo run --example reconnecting_client -- --interval-ms 1000 --timeout-ms 1000
//! ```
//!
//! Then `kill -9` or `kill -STOP` the server. Every line of stdin is sent as a text message. What
//! comes back is printed, and what happens besides goes to stderr as JSON, one object per line;
//! with `--jsonl` all of it goes to stdout so. Ctrl-C and the end of stdin close the connection
//! with 1000. `--help` lists the flags.
//!
//! What to know before you copy this:
//!
//! - A line is sent at most once. Up to [`QUEUE`] lines wait while there is no connection, and then
//!   stdin is not read on, so none of those is lost. One that was written to a connection may be:
//!   that it was written says nothing about who read it. Where every message counts, number them,
//!   keep each until the server has acknowledged it, and have the server drop what it has seen
//!   before.
//! - The session's id is made once and sent with every attempt, as the `session-id` header. A
//!   server that finds an older connection under it knows that one to be dead. `session-attempt`
//!   counts the attempts, since a server that was paused may come to the newest first, and would
//!   take it for dead.
//! - The delays are of the "full jitter" kind: anything from nothing to a ceiling that doubles.
//!   backon computes the ceilings; its own jitter is added on top of them, which leaves the first
//!   half of every window empty, so the draw is made here.
//! - The ceilings start over only after a connection that lasted for `--stable-ms`. Were it any
//!   open one, a server that accepts and hangs up would be called in a tight loop.
//! - For `wss:` do the TLS handshake right after connecting, and go on with its stream in place of
//!   TCP's.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::CancellationToken;
use tower_ws_liveness::{Eviction, HandshakeStream, HeartbeatLayer, Liveness, Reason};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::generate_key;
use tungstenite::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tungstenite::{Message, Utf8Bytes};

const USAGE: &str = "\
Usage: reconnecting_client [FLAGS]

Sends the lines of stdin as text messages, and prints what comes back.

  --url URL               where to connect to [ws://127.0.0.1:9001/ws]
  --interval-ms N         silence before the server is pinged [30000]
  --timeout-ms N          time a ping may stay unanswered [15000]
  --connect-timeout-ms N  time for connecting and the opening handshake [10000]
  --min-backoff-ms N      ceiling of the first delay, doubled from then on [1000]
  --max-backoff-ms N      the highest ceiling [60000]
  --stable-ms N           lifetime of a connection after which the ceilings start over [60000]
  --restart-ms N          ceiling of the delay after 1001 and 1012, if that is higher [5000]
  --jsonl                 one JSON line per event
  --help                  print this text

Exit status: 0 after Close 1000 from either side, 1 if something is wrong here, 3 if the server
closed with a code that means not to come back, 4 if it refused the opening handshake for good.";

/// Lines that wait for a connection.
const QUEUE: usize = 64;
/// A server that asks for more patience than this is asked again all the same.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// The exit status after a Close that means not to come back.
const CLOSED_FOR_GOOD: u8 = 3;
/// The exit status after an HTTP response that means not to come back.
const REFUSED: u8 = 4;

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(status) => status,
        Err(error) => {
            eprintln!("reconnecting_client: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Stays connected until somebody says not to. `args` are the flags, without the program's name.
pub async fn run(args: Vec<String>) -> Result<ExitCode, Box<dyn Error + Send + Sync>> {
    let Some(options) = Options::parse(args)? else {
        print_line(USAGE)?;
        return Ok(ExitCode::SUCCESS);
    };
    let client = Client {
        heartbeat: HeartbeatLayer::builder()
            .interval(options.interval)
            .timeout(options.timeout)
            .build()?,
        // As hard to guess as the key of a handshake, which is what this makes.
        session: generate_key().parse()?,
        leaving: CancellationToken::new(),
        options,
    };
    let mut lines = read_lines(client.leaving.clone());
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_ok() {
            client.leaving.cancel();
        }
        std::future::pending().await
    };
    let status = tokio::select! {
        // The handler is there before anything is printed.
        biased;
        never = interrupted => never,
        status = client.stay_connected(&mut lines) => status,
    };
    Ok(status?.into())
}

// The client.

struct Client {
    options: Options,
    heartbeat: HeartbeatLayer,
    session: HeaderValue,
    /// Cancelled when there is nothing more to do than to say goodbye.
    leaving: CancellationToken,
}

/// The WebSocket library speaks through the heartbeat, and that through TCP.
type Socket = WebSocketStream<HandshakeStream<TcpStream>>;

/// Why there is no connection (any more), for people, and what follows from it.
struct Ended {
    event: Value,
    next: Next,
}

impl Client {
    /// Returns the exit status.
    async fn stay_connected(&self, lines: &mut mpsc::Receiver<String>) -> io::Result<u8> {
        let mut backoff = Backoff::new(&self.options);
        let mut was_open = false;
        for attempt in 1_u64.. {
            self.tell(json!({ "event": "connecting", "attempt": attempt }))?;
            let opening = tokio::time::timeout(self.options.connect_timeout, self.open(attempt));
            let Ended { event, next } = match self.leaving.run_until_cancelled(opening).await {
                None => break,
                Some(Ok(Ok((socket, live)))) => {
                    self.tell(json!({
                        "event": "open",
                        "session": self.session.to_str().unwrap_or_default(),
                        // To the client's knowledge. What the server still knows, it has to say
                        // itself.
                        "resumed": was_open,
                        "attempt": attempt,
                    }))?;
                    was_open = true;
                    self.converse(socket, lines).await?;
                    // Whatever ended it, the layer tells of one end and one reason.
                    let eviction = live.evicted().await;
                    if eviction.lifetime() >= self.options.stable {
                        backoff = Backoff::new(&self.options);
                    }
                    Ended::by(&eviction)
                }
                Some(Ok(Err(error))) => Ended::refused(&error),
                Some(Err(_)) => Ended::failed("connect_timeout"),
            };
            if self.leaving.is_cancelled() {
                break;
            }
            self.tell(event)?;
            let (ceiling, delay) = match next {
                Next::Stop { code, status } => {
                    self.tell(json!({ "event": "stopped", "code": code, "status": status }))?;
                    return Ok(status);
                }
                Next::Retry(when) => backoff.delay(when),
            };
            let (ceiling, millis) = (ceiling.as_millis() as u64, delay.as_millis() as u64);
            self.tell(json!({ "event": "retry_in", "ms": millis, "ceiling_ms": ceiling }))?;
            let waiting = tokio::time::sleep(delay);
            if self.leaving.run_until_cancelled(waiting).await.is_none() {
                break;
            }
        }
        self.tell(json!({ "event": "stopped", "code": 1000, "status": 0 }))?;
        Ok(0)
    }

    /// Connects, and puts the heartbeat between TCP and the WebSocket library.
    async fn open(&self, attempt: u64) -> Result<(Socket, Liveness), tungstenite::Error> {
        let mut request = self.options.url.clone().into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("session-id", self.session.clone());
        headers.insert("session-attempt", attempt.into());

        let tcp = TcpStream::connect(&self.options.authority).await?;
        // A socket that refuses an option works all the same.
        let _ = tcp.set_nodelay(true);
        let _ = self.heartbeat.tcp_options().apply(&tcp);

        let (io, live) = self.heartbeat.wrap_client_handshake(tcp);
        let (socket, _) = client_async(request, io).await?;
        Ok((socket, live))
    }

    /// Sends lines and prints messages until the connection has ended.
    async fn converse(&self, socket: Socket, lines: &mut mpsc::Receiver<String>) -> io::Result<()> {
        // Apart, so that a server that takes nothing for a while is still listened to: it may be
        // waiting for just that.
        let (mut outgoing, mut incoming) = socket.split();
        let talking = async {
            while let Some(Some(line)) = self.leaving.run_until_cancelled(lines.recv()).await {
                if outgoing.send(Message::text(line)).await.is_err() {
                    // The reader sees why.
                    return;
                }
            }
            self.leaving.cancelled().await;
            let goodbye = CloseFrame {
                code: CloseCode::Normal,
                reason: Utf8Bytes::default(),
            };
            // The server's answer, or the layer's `close_timeout`, ends the reading.
            let _ = outgoing.send(Message::Close(Some(goodbye))).await;
        };
        let listening = async {
            while let Some(Ok(message)) = incoming.next().await {
                match message {
                    Message::Text(text) => {
                        self.tell(json!({ "event": "message", "text": text.as_str() }))?;
                    }
                    Message::Binary(payload) => {
                        self.tell(json!({ "event": "message", "bytes": payload.len() }))?;
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        tokio::pin!(talking, listening);
        tokio::select! {
            result = &mut listening => result,
            () = &mut talking => listening.await,
        }
    }

    /// Prints an event: as it is, or messages to stdout and the rest to stderr.
    fn tell(&self, event: Value) -> io::Result<()> {
        if self.options.jsonl {
            return print_line(&event.to_string());
        }
        match event["text"].as_str() {
            Some(text) => print_line(text),
            None => writeln!(io::stderr(), "{event}"),
        }
    }
}

impl Ended {
    /// By the end of an open connection.
    fn by(eviction: &Eviction) -> Self {
        let reason = eviction.reason();
        let code = match reason {
            Reason::PeerClosed { code } => Some(code.unwrap_or(1005)),
            _ => None,
        };
        let event = json!({ "event": "lost", "reason": reason.as_str(), "code": code });
        let next = code.map_or(Next::Retry(When::Backoff), Next::after_close);
        Self { event, next }
    }

    /// By what connecting or the handshake failed with.
    fn refused(error: &tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Http(response) => {
                let status = response.status();
                Self {
                    event: json!({ "event": "refused", "http": status.as_u16() }),
                    next: Next::after_http(status, response.headers()),
                }
            }
            error => Self::failed(&error.to_string()),
        }
    }

    fn failed(error: &str) -> Self {
        Self {
            event: json!({ "event": "failed", "error": error }),
            next: Next::Retry(When::Backoff),
        }
    }
}

// What follows.

enum Next {
    Retry(When),
    Stop {
        /// Of the Close, or of the HTTP response.
        code: u16,
        status: u8,
    },
}

enum When {
    /// Nobody knows: by the backoff alone.
    Backoff,
    /// The server leaves, and it or another one will be there in seconds. Who registered 1012
    /// thought of 5 to 30 of them, at random.
    Restart,
    /// The server has too much to do.
    Later,
    /// The server has said when.
    NotBefore(Duration),
}

impl Next {
    /// RFC 6455 section 7.4.1, and IANA's registry of close codes for those from 1012 on:
    ///
    /// | code | means | so |
    /// |---|---|---|
    /// | 1000 | done | stop: nothing failed |
    /// | 1001, 1012 | going away, service restart | come back soon, but not all clients at once |
    /// | 1013 | try again later: overload | come back late |
    /// | 1002, 1003, 1007, 1009, 1010 | what the client sent was wrong | stop: it would be again |
    /// | 1008, 3000, 3003 | policy, unauthorized, forbidden | stop: it takes a person to change |
    /// | 4000 to 4999 | what the application says | stop: it was meant for this client |
    /// | 1005, 1011, 1014, 3008, other | no code, server's error, bad gateway, timeout | backoff: it may pass |
    ///
    /// By this crate's defaults 3008 comes from the server's heartbeat, and 4000 when a newer
    /// connection has taken the seat: two clients must not take it from each other for ever. An end
    /// without a Close (1006 to a browser) has no code, and is a matter for the backoff.
    fn after_close(code: u16) -> Self {
        match code {
            1000 => Self::Stop { code, status: 0 },
            1001 | 1012 => Self::Retry(When::Restart),
            1013 => Self::Retry(When::Later),
            1002 | 1003 | 1007..=1010 | 3000 | 3003 | 4000..=4999 => Self::Stop {
                code,
                status: CLOSED_FOR_GOOD,
            },
            _ => Self::Retry(When::Backoff),
        }
    }

    /// RFC 9110 section 15: what the client did wrong it would do wrong again (401 and 403 above
    /// all), save for the statuses that speak of time. Redirects are not followed.
    fn after_http(status: StatusCode, headers: &HeaderMap) -> Self {
        let passes = matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error();
        if !passes && (status.is_client_error() || status.is_redirection()) {
            return Self::Stop {
                code: status.as_u16(),
                status: REFUSED,
            };
        }
        // Section 10.2.3 also allows a date. It says that there is a wait, and this takes it for a
        // long one.
        Self::Retry(match headers.get(header::RETRY_AFTER) {
            None => When::Backoff,
            Some(wait) => match wait.to_str().unwrap_or_default().trim().parse() {
                Ok(seconds) => When::NotBefore(Duration::from_secs(seconds)),
                Err(_) => When::Later,
            },
        })
    }
}

/// How long to wait before the next attempt.
struct Backoff {
    ceilings: <ExponentialBuilder as BackoffBuilder>::Backoff,
    max: Duration,
    restart: Duration,
}

impl Backoff {
    fn new(options: &Options) -> Self {
        Self {
            ceilings: ExponentialBuilder::new()
                .with_min_delay(options.min_backoff)
                .with_max_delay(options.max_backoff)
                .without_max_times()
                .build(),
            max: options.max_backoff,
            restart: options.restart,
        }
    }

    /// A delay, and the longest that it could have been. Every call raises the ceiling of the next,
    /// so that a server that says 1012 whenever it is called is not called ever faster.
    fn delay(&mut self, when: When) -> (Duration, Duration) {
        let ceiling = self.ceilings.next().unwrap_or(self.max);
        let (floor, ceiling) = match when {
            When::Backoff => (Duration::ZERO, ceiling),
            When::Restart => (Duration::ZERO, ceiling.max(self.restart)),
            When::Later => (self.max / 2, self.max),
            When::NotBefore(wait) => {
                let wait = wait.min(LONGEST_RETRY_AFTER);
                (wait, wait + ceiling)
            }
        };
        let drawn = (ceiling - floor).mul_f64(fastrand::f64());
        (ceiling, floor + drawn)
    }
}

// Input and output.

/// Queues the lines of stdin. When it has ended and all of them were taken, it is time to leave.
fn read_lines(leaving: CancellationToken) -> mpsc::Receiver<String> {
    let (queue, lines) = mpsc::channel(QUEUE);
    let runtime = Handle::current();
    // tokio's stdin would keep the runtime from ending until one more line has come.
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if queue.blocking_send(line).is_err() {
                return;
            }
        }
        // All of the room is there when no line is.
        let _ = runtime.block_on(queue.reserve_many(QUEUE));
        leaving.cancel();
    });
    lines
}

/// Prints one line at once: stdout buffers whole blocks when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

// The command line.

/// What the flags say.
#[derive(Debug, Clone)]
struct Options {
    url: Uri,
    /// Host and port of the URL.
    authority: String,
    interval: Duration,
    timeout: Duration,
    connect_timeout: Duration,
    min_backoff: Duration,
    max_backoff: Duration,
    stable: Duration,
    restart: Duration,
    jsonl: bool,
}

impl Options {
    /// Reads the flags; `None` when they ask for help.
    fn parse(args: Vec<String>) -> Result<Option<Self>, String> {
        let mut options = Self {
            url: Uri::from_static("ws://127.0.0.1:9001/ws"),
            authority: String::new(),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(10),
            min_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(60),
            stable: Duration::from_secs(60),
            restart: Duration::from_secs(5),
            jsonl: false,
        };
        let mut args = args.into_iter();
        while let Some(flag) = args.next() {
            match flag.as_str() {
                "--url" => options.url = value(&flag, args.next())?,
                "--interval-ms" => options.interval = millis(&flag, args.next())?,
                "--timeout-ms" => options.timeout = millis(&flag, args.next())?,
                "--connect-timeout-ms" => options.connect_timeout = millis(&flag, args.next())?,
                "--min-backoff-ms" => options.min_backoff = millis(&flag, args.next())?,
                "--max-backoff-ms" => options.max_backoff = millis(&flag, args.next())?,
                "--stable-ms" => options.stable = millis(&flag, args.next())?,
                "--restart-ms" => options.restart = millis(&flag, args.next())?,
                "--jsonl" => options.jsonl = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown flag {flag}\n\n{USAGE}")),
            }
        }
        let (Some("ws"), Some(host)) = (options.url.scheme_str(), options.url.host()) else {
            return Err(format!(
                "--url {}: not of the form ws://host/path",
                options.url
            ));
        };
        options.authority = format!("{host}:{}", options.url.port_u16().unwrap_or(80));
        if options.min_backoff.is_zero() || options.min_backoff > options.max_backoff {
            return Err("--min-backoff-ms must be above 0 and not above --max-backoff-ms".into());
        }
        Ok(Some(options))
    }
}

fn millis(flag: &str, text: Option<String>) -> Result<Duration, String> {
    value(flag, text).map(Duration::from_millis)
}

fn value<T>(flag: &str, text: Option<String>) -> Result<T, String>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = text.ok_or_else(|| format!("{flag} needs a value\n\n{USAGE}"))?;
    text.parse()
        .map_err(|error| format!("{flag} {text}: {error}\n\n{USAGE}"))
}

//! A client that detects a dead server by its own heartbeat and reconnects with backoff.
//!
//! ```text
//! cargo run --example echo -- --interval-ms 1000 --timeout-ms 1000
//! cargo run --example reconnecting_client -- --interval-ms 1000 --timeout-ms 1000
//! ```
//!
//! Then `kill -9` or `kill -STOP` the server. Every line of stdin is sent as a text message.
//! Received messages are printed to stdout, and other events to stderr as JSON, one object per
//! line; with `--jsonl` all events are printed to stdout as JSON. Ctrl-C and the end of stdin close
//! the connection with 1000. `--help` lists the flags.
//!
//! Notes for a client of your own:
//!
//! - A line is sent at most once. Up to [`QUEUE_CAPACITY`] lines are queued while there is no
//!   connection, and then stdin is not read further, so no queued line is lost. A line that was
//!   written to a connection may be lost: a successful write does not mean that the server has read
//!   it. If every message counts, number the messages, keep each until the server has acknowledged
//!   it, and let the server drop duplicates.
//! - The session id is generated once and sent with every attempt, as the `session-id` header. A
//!   server that has an older connection with that id can treat it as dead. `session-attempt`
//!   counts the attempts, because a server that was paused may process the newest attempt first,
//!   and would then treat it as dead when it processes an older one.
//! - The delays have "full jitter": each is random between zero and a ceiling that doubles. backon
//!   computes the ceilings. Its own jitter is added to the delay, which leaves the first half of
//!   every window empty, so the random delay is drawn here.
//! - The ceilings are reset only after a connection that lasted for `--stable-ms`. If every open
//!   connection reset them, a server that accepts and closes at once would be called in a tight
//!   loop.
//! - For `wss:`, do the TLS handshake after connecting, and use the TLS stream in place of the TCP
//!   stream.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::{SinkExt, StreamExt};
use pico_args::Arguments;
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

Sends the lines of stdin as text messages, and prints the messages that it receives.

  --url URL               URL of the server [ws://127.0.0.1:9001/ws]
  --interval-ms N         silence before a ping is sent [30000]
  --timeout-ms N          time a ping may stay unanswered [15000]
  --connect-timeout-ms N  time for connecting and the opening handshake [10000]
  --min-backoff-ms N      ceiling of the first delay, doubled for each further one [1000]
  --max-backoff-ms N      the highest ceiling [60000]
  --stable-ms N           lifetime of a connection that resets the ceilings [60000]
  --restart-ms N          ceiling of the delay after 1001 and 1012, if that is higher [5000]
  --jsonl                 print all events to stdout, one JSON line each
  --help                  print this text

Exit status: 0 after Close 1000 from either side, 1 after a local error, 3 if the server closed
with a code after which the client must not retry, 4 if it refused the opening handshake
permanently.";

/// Lines that can be queued for a connection.
const QUEUE_CAPACITY: usize = 64;
/// A longer `Retry-After` of the server counts as this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// The exit status after a Close code that does not allow a retry.
const EXIT_CLOSED: u8 = 3;
/// The exit status after an HTTP response that does not allow a retry.
const EXIT_REFUSED: u8 = 4;

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

/// Runs until Ctrl-C, the end of stdin, or an end that does not allow a retry. `args` are the
/// command-line flags without the program's name.
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
        // Generates the random key of a handshake, which is as hard to guess as a session id must
        // be.
        session: generate_key().parse()?,
        shutdown: CancellationToken::new(),
        options,
    };
    let mut lines = read_lines(client.shutdown.clone());
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_ok() {
            client.shutdown.cancel();
        }
        std::future::pending().await
    };
    let status = tokio::select! {
        // Polled in order, so that the signal handler is installed before the first event is
        // printed.
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
    /// Cancelled when the client must close its connection and end.
    shutdown: CancellationToken,
}

/// The WebSocket library on top of the heartbeat's stream on top of TCP.
type Socket = WebSocketStream<HandshakeStream<TcpStream>>;

/// The end of a connection or of an attempt to connect.
struct AttemptEnd {
    /// The event that is printed.
    event: Value,
    next: NextStep,
}

impl Client {
    /// Connects, and reconnects after each end that allows it. Returns the exit status.
    async fn stay_connected(&self, lines: &mut mpsc::Receiver<String>) -> io::Result<u8> {
        let mut backoff = Backoff::new(&self.options);
        let mut was_open = false;
        for attempt in 1_u64.. {
            self.print_event(json!({ "event": "connecting", "attempt": attempt }))?;
            let opening = tokio::time::timeout(self.options.connect_timeout, self.open(attempt));
            let AttemptEnd { event, next } = match self.shutdown.run_until_cancelled(opening).await
            {
                None => break,
                Some(Ok(Ok((socket, live)))) => {
                    self.print_event(json!({
                        "event": "open",
                        "session": self.session.to_str().unwrap_or_default(),
                        // True if the client was connected before. Whether the server still has the
                        // session is not known here.
                        "resumed": was_open,
                        "attempt": attempt,
                    }))?;
                    was_open = true;
                    self.exchange_messages(socket, lines).await?;
                    // On every path the layer reports one end with one reason.
                    let eviction = live.evicted().await;
                    if eviction.lifetime() >= self.options.stable {
                        backoff = Backoff::new(&self.options);
                    }
                    AttemptEnd::from_eviction(&eviction)
                }
                Some(Ok(Err(error))) => AttemptEnd::from_error(&error),
                Some(Err(_)) => AttemptEnd::failed("connect_timeout"),
            };
            if self.shutdown.is_cancelled() {
                break;
            }
            self.print_event(event)?;
            let (ceiling, delay) = match next {
                NextStep::Stop { code, status } => {
                    self.print_event(
                        json!({ "event": "stopped", "code": code, "status": status }),
                    )?;
                    return Ok(status);
                }
                NextStep::Retry(kind) => backoff.delay(kind),
            };
            let (ceiling, millis) = (ceiling.as_millis() as u64, delay.as_millis() as u64);
            self.print_event(json!({ "event": "retry_in", "ms": millis, "ceiling_ms": ceiling }))?;
            let waiting = tokio::time::sleep(delay);
            if self.shutdown.run_until_cancelled(waiting).await.is_none() {
                break;
            }
        }
        self.print_event(json!({ "event": "stopped", "code": 1000, "status": 0 }))?;
        Ok(0)
    }

    /// Connects, with the heartbeat between TCP and the WebSocket library.
    async fn open(&self, attempt: u64) -> Result<(Socket, Liveness), tungstenite::Error> {
        let mut request = self.options.url.clone().into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("session-id", self.session.clone());
        headers.insert("session-attempt", attempt.into());

        let tcp = TcpStream::connect(&self.options.authority).await?;
        // The client works without these options too.
        let _ = tcp.set_nodelay(true);
        let _ = self.heartbeat.tcp_options().apply(&tcp);

        let (io, live) = self.heartbeat.wrap_client_handshake(tcp);
        let (socket, _) = client_async(request, io).await?;
        Ok((socket, live))
    }

    /// Sends lines and prints messages until the connection has ended.
    async fn exchange_messages(
        &self,
        socket: Socket,
        lines: &mut mpsc::Receiver<String>,
    ) -> io::Result<()> {
        // Two independent halves: if the server does not read for a while, its messages are still
        // read, because it may be waiting for that.
        let (mut outgoing, mut incoming) = socket.split();
        let sending = async {
            while let Some(Some(line)) = self.shutdown.run_until_cancelled(lines.recv()).await {
                if outgoing.send(Message::text(line)).await.is_err() {
                    // The receiving half gets the end too.
                    return;
                }
            }
            self.shutdown.cancelled().await;
            let close_frame = CloseFrame {
                code: CloseCode::Normal,
                reason: Utf8Bytes::default(),
            };
            // The server's Close frame, or the layer's `close_timeout`, ends `receiving`.
            let _ = outgoing.send(Message::Close(Some(close_frame))).await;
        };
        let receiving = async {
            while let Some(Ok(message)) = incoming.next().await {
                match message {
                    Message::Text(text) => {
                        self.print_event(json!({ "event": "message", "text": text.as_str() }))?;
                    }
                    Message::Binary(payload) => {
                        self.print_event(json!({ "event": "message", "bytes": payload.len() }))?;
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        tokio::pin!(sending, receiving);
        tokio::select! {
            result = &mut receiving => result,
            () = &mut sending => receiving.await,
        }
    }

    /// Prints an event: with `--jsonl` to stdout as JSON, otherwise the text of a message to stdout
    /// and other events to stderr.
    fn print_event(&self, event: Value) -> io::Result<()> {
        if self.options.jsonl {
            return print_line(&event.to_string());
        }
        match event["text"].as_str() {
            Some(text) => print_line(text),
            None => writeln!(io::stderr(), "{event}"),
        }
    }
}

impl AttemptEnd {
    /// The end of an open connection.
    fn from_eviction(eviction: &Eviction) -> Self {
        let reason = eviction.reason();
        let code = match reason {
            Reason::PeerClosed { code } => Some(code.unwrap_or(1005)),
            _ => None,
        };
        let event = json!({ "event": "lost", "reason": reason.as_str(), "code": code });
        let next = code.map_or(NextStep::Retry(RetryDelay::Backoff), NextStep::after_close);
        Self { event, next }
    }

    /// The end of an attempt whose connect or opening handshake failed.
    fn from_error(error: &tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Http(response) => {
                let status = response.status();
                Self {
                    event: json!({ "event": "refused", "http": status.as_u16() }),
                    next: NextStep::after_http(status, response.headers()),
                }
            }
            error => Self::failed(&error.to_string()),
        }
    }

    fn failed(error: &str) -> Self {
        Self {
            event: json!({ "event": "failed", "error": error }),
            next: NextStep::Retry(RetryDelay::Backoff),
        }
    }
}

// The next step after an attempt.

enum NextStep {
    Retry(RetryDelay),
    Stop {
        /// The Close code or the HTTP status.
        code: u16,
        /// The exit status of the process.
        status: u8,
    },
}

enum RetryDelay {
    /// Only the backoff applies.
    Backoff,
    /// The server is restarting, and it or another one is available within seconds. The
    /// registration of 1012 proposes a random delay of 5 to 30 s.
    Restart,
    /// The server is overloaded.
    Overload,
    /// The server has sent a delay in seconds.
    NotBefore(Duration),
}

impl NextStep {
    /// RFC 6455 section 7.4.1, and IANA's registry of close codes for those from 1012 on:
    ///
    /// | code | meaning | next step |
    /// |---|---|---|
    /// | 1000 | normal closure | stop: nothing failed |
    /// | 1001, 1012 | going away, service restart | retry soon, but not all clients at once |
    /// | 1013 | try again later: overload | retry late |
    /// | 1002, 1003, 1007, 1009, 1010 | the client sent invalid data | stop: a retry fails again |
    /// | 1008, 3000, 3003 | policy, unauthorized, forbidden | stop: needs a change by an operator |
    /// | 4000 to 4999 | defined by the application | stop: addressed to this client |
    /// | 1005, 1011, 1014, 3008, other | no code, server error, bad gateway, timeout | backoff: may be transient |
    ///
    /// By this crate's defaults the server's heartbeat sends 3008, and a connection whose seat a
    /// newer one has taken gets 4000: two clients must not take it from each other forever. An end
    /// without a Close frame (1006 in a browser) has no code, and only the backoff applies.
    fn after_close(code: u16) -> Self {
        match code {
            1000 => Self::Stop { code, status: 0 },
            1001 | 1012 => Self::Retry(RetryDelay::Restart),
            1013 => Self::Retry(RetryDelay::Overload),
            1002 | 1003 | 1007..=1010 | 3000 | 3003 | 4000..=4999 => Self::Stop {
                code,
                status: EXIT_CLOSED,
            },
            _ => Self::Retry(RetryDelay::Backoff),
        }
    }

    /// RFC 9110 section 15: a client error would occur again (401 and 403 above all), except for
    /// the statuses that depend on time: 408, 425 and 429. Redirects are not followed.
    fn after_http(status: StatusCode, headers: &HeaderMap) -> Self {
        let is_transient = matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error();
        if !is_transient && (status.is_client_error() || status.is_redirection()) {
            return Self::Stop {
                code: status.as_u16(),
                status: EXIT_REFUSED,
            };
        }
        // Section 10.2.3 also allows a date. It is not parsed, and counts as a long delay.
        Self::Retry(match headers.get(header::RETRY_AFTER) {
            None => RetryDelay::Backoff,
            Some(wait) => match wait.to_str().unwrap_or_default().trim().parse() {
                Ok(seconds) => RetryDelay::NotBefore(Duration::from_secs(seconds)),
                Err(_) => RetryDelay::Overload,
            },
        })
    }
}

/// Computes the delay before the next attempt.
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

    /// Returns the ceiling and the delay. Every call raises the ceiling of the next one, so that
    /// even a server that always closes with 1012 is called at growing intervals.
    fn delay(&mut self, kind: RetryDelay) -> (Duration, Duration) {
        let ceiling = self.ceilings.next().unwrap_or(self.max);
        let (floor, ceiling) = match kind {
            RetryDelay::Backoff => (Duration::ZERO, ceiling),
            RetryDelay::Restart => (Duration::ZERO, ceiling.max(self.restart)),
            RetryDelay::Overload => (self.max / 2, self.max),
            RetryDelay::NotBefore(wait) => {
                let wait = wait.min(MAX_RETRY_AFTER);
                (wait, wait + ceiling)
            }
        };
        let jitter = (ceiling - floor).mul_f64(fastrand::f64());
        (ceiling, floor + jitter)
    }
}

// Input and output.

/// Queues the lines of stdin. Cancels `shutdown` when stdin has ended and the queue is empty.
fn read_lines(shutdown: CancellationToken) -> mpsc::Receiver<String> {
    let (queue, lines) = mpsc::channel(QUEUE_CAPACITY);
    let runtime = Handle::current();
    // A thread, because tokio's stdin blocks the shutdown of the runtime until the next line.
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if queue.blocking_send(line).is_err() {
                return;
            }
        }
        // The whole capacity can be reserved only when the queue is empty.
        let _ = runtime.block_on(queue.reserve_many(QUEUE_CAPACITY));
        shutdown.cancel();
    });
    lines
}

/// Prints a line and flushes it: stdout is block-buffered when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

// The command line.

/// The parsed flags.
#[derive(Debug, Clone)]
struct Options {
    url: Uri,
    /// The host and port of the URL.
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
    /// Parses the flags. Returns `None` for `--help`.
    fn parse(args: Vec<String>) -> Result<Option<Self>, Box<dyn Error + Send + Sync>> {
        let mut args = Arguments::from_vec(args.into_iter().map(Into::into).collect());
        if args.contains(["-h", "--help"]) {
            return Ok(None);
        }
        let mut millis_or = |flag, default_secs| {
            let given = millis(&mut args, flag)?;
            Ok::<_, String>(given.unwrap_or(Duration::from_secs(default_secs)))
        };
        let mut options = Self {
            interval: millis_or("--interval-ms", 30)?,
            timeout: millis_or("--timeout-ms", 15)?,
            connect_timeout: millis_or("--connect-timeout-ms", 10)?,
            min_backoff: millis_or("--min-backoff-ms", 1)?,
            max_backoff: millis_or("--max-backoff-ms", 60)?,
            stable: millis_or("--stable-ms", 60)?,
            restart: millis_or("--restart-ms", 5)?,
            url: args
                .opt_value_from_str("--url")
                .map_err(|error| format!("--url: {error}"))?
                .unwrap_or(Uri::from_static("ws://127.0.0.1:9001/ws")),
            authority: String::new(),
            jsonl: args.contains("--jsonl"),
        };
        if let Some(unknown) = args.finish().first() {
            return Err(format!("unknown flag {unknown:?}\n\n{USAGE}").into());
        }
        let (Some("ws"), Some(host)) = (options.url.scheme_str(), options.url.host()) else {
            return Err(format!("--url {}: not of the form ws://host/path", options.url).into());
        };
        options.authority = format!("{host}:{}", options.url.port_u16().unwrap_or(80));
        if options.min_backoff.is_zero() || options.min_backoff > options.max_backoff {
            return Err("--min-backoff-ms must be above 0 and not above --max-backoff-ms".into());
        }
        Ok(Some(options))
    }
}

/// Takes a flag with a number of milliseconds.
fn millis(args: &mut Arguments, flag: &'static str) -> Result<Option<Duration>, String> {
    let given = args.opt_value_from_str(flag);
    let given: Option<u64> = given.map_err(|error| format!("{flag}: {error}"))?;
    Ok(given.map(Duration::from_millis))
}

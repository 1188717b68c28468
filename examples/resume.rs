//! Server and client of a feed that loses and doubles no message across reconnects.
//!
//! ```text
//! cargo run --example resume -- --addr 127.0.0.1:3000 --grace-ms 60000 --max-messages 1000
//! cargo run --example resume -- --connect 127.0.0.1:3000 --user alice
//! curl --data hello 'http://127.0.0.1:3000/push?user=alice'     # in a third window, again and again
//! ```
//!
//! `kill -9` the client, push more, and start it again with the place that it has printed last:
//! `--session ID --from N --refused R`. It gets exactly the messages from N on. A push is answered with
//! the position of the message; with 404 if the user has no session; with 503 if the outbox is full,
//! which the client sees too; with 413 if the message is larger than an outbox.
//!
//! | text message | from | means |
//! |---|---|---|
//! | `resumed ID` | server | the first one: the session goes on where the client asked |
//! | `new ID` | server | or this: it does not; the client must reload everything |
//! | `message N TEXT` | server | the message at position N |
//! | `refused R` | server | R messages were refused so far: if it is more than before, as `new` |
//! | `ack N` | client | it has N and all before, and will not ask for them again |
//!
//! Notes for a program of your own:
//!
//! - A client must store its place (session, position of the next message, refused count) together
//!   with what it has made of the messages, and acknowledge only then. This client prints, which is its
//!   store.
//! - The id is that of the session, not of the user. Without it, a client that comes back after the
//!   grace period would skip the first messages of the new session.
//! - A client numbers its connections. A server that was paused may process the newest one first, and
//!   the older one, which the client has given up, must not take the session back. A client that is
//!   started again is another client.
//! - This client retries at a fixed interval. `reconnecting_client` shows a backoff with jitter, and
//!   a heartbeat that finds a dead server.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use futures_util::{SinkExt, StreamExt};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use pico_args::Arguments;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::client_async;
use tower_ws_liveness::{
    HeartbeatLayer, Linger, Liveness, Outbox, OutboxError, OutboxLimits, OutboxReader, Seat,
};

const USAGE: &str = "\
usage: resume [--addr 127.0.0.1:3000] [--grace-ms 60000] [--max-messages 1000]
       resume --connect 127.0.0.1:3000 --user NAME [--session ID --from N --refused R]";

/// A client that is silent is evicted after ten seconds, and then has the grace period.
const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(5);

/// The bytes of all messages that one client has not acknowledged.
const MAX_BYTES: usize = 1024 * 1024;

/// How long the client waits before it connects again.
const RETRY: Duration = Duration::from_millis(200);

/// The code with which `ReplacePolicy::newest_wins` closes the older connection.
const REPLACED: u16 = 4000;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("resume: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs until the process ends. `args` are the command-line flags without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Failure> {
    let mut args = Arguments::from_vec(args.into_iter().map(Into::into).collect());
    if args.contains("--help") {
        return print_line(USAGE);
    }
    let server: Option<SocketAddr> = flag(&mut args, "--connect")?;
    let Some(server) = server else {
        let addr = flag(&mut args, "--addr")?;
        let addr = addr.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000)));
        let grace = flag(&mut args, "--grace-ms")?.unwrap_or(60_000);
        let max_messages = flag(&mut args, "--max-messages")?.unwrap_or(1_000);
        if !args.finish().is_empty() {
            return Err(USAGE.into());
        }
        let limits = OutboxLimits::new(max_messages, MAX_BYTES)?;
        let app = app(Duration::from_millis(grace), limits)?;
        let listener = TcpListener::bind(addr).await?;
        print_line(&format!("listening on {}", listener.local_addr()?))?;
        return Ok(axum::serve(listener, app).await?);
    };
    let user: Option<String> = flag(&mut args, "--user")?;
    let mut place = Place {
        session: flag(&mut args, "--session")?.unwrap_or_default(),
        from: flag(&mut args, "--from")?.unwrap_or_default(),
        refused: flag(&mut args, "--refused")?.unwrap_or_default(),
    };
    let (Some(user), true) = (user, args.finish().is_empty()) else {
        return Err(USAGE.into());
    };
    let mut attempt = Attempt {
        client: random_id(),
        number: 0,
    };
    loop {
        attempt.number += 1;
        match follow(server, &user, &attempt, &mut place).await {
            Ok(End::TakenOver) => {
                writeln!(io::stderr(), "another client has taken the session over")?;
                return Ok(());
            }
            Ok(End::Refused(status)) => return Err(format!("refused: {status}").into()),
            Err(error) => writeln!(io::stderr(), "connection lost: {error}")?,
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn flag<T>(args: &mut Arguments, name: &'static str) -> Result<Option<T>, String>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let value = args.opt_value_from_str(name);
    value.map_err(|error| format!("{name}: {error}"))
}

fn print_line(line: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

fn random_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// A connection of a client, which numbers them from 1 on.
#[derive(Clone)]
struct Attempt {
    client: String,
    number: u64,
}

// The server.

struct Session {
    id: String,
    outbox: Outbox<Utf8Bytes>,
    /// The connection that has the session.
    attempt: Mutex<Attempt>,
}

#[derive(Clone)]
struct Feed {
    sessions: Arc<Mutex<HashMap<String, Seat<Session>>>>,
    /// Locked between the check of an attempt and its registration. No hook takes this lock.
    registering: Arc<Mutex<()>>,
    linger: Linger<String, Session>,
    limits: OutboxLimits,
}

fn app(grace: Duration, limits: OutboxLimits) -> Result<Router, Failure> {
    let linger = Linger::<String, Session>::builder(grace)
        // A push that has found the seat just before is refused once the hook has run.
        .on_session_end(|end| end.value().outbox.close());
    let feed = Feed {
        sessions: Arc::default(),
        registering: Arc::default(),
        linger: linger.build()?,
        limits,
    };
    let heartbeat = HeartbeatLayer::builder()
        .interval(INTERVAL)
        .timeout(TIMEOUT);
    Ok(Router::new()
        .route("/ws", any(upgrade))
        .layer(heartbeat.build()?)
        // A larger message would not fit into an empty outbox either.
        .route("/push", post(push).layer(DefaultBodyLimit::max(MAX_BYTES)))
        .with_state(feed))
}

async fn upgrade(
    ws: WebSocketUpgrade,
    live: Liveness,
    RawQuery(query): RawQuery,
    State(feed): State<Feed>,
) -> Response {
    let query = query.unwrap_or_default();
    let Some(user) = parameter(&query, "user") else {
        return (StatusCode::BAD_REQUEST, "the query must have user=NAME\n").into_response();
    };
    ws.on_upgrade(async move |socket| {
        let number = parameter(&query, "attempt").and_then(|number| number.parse().ok());
        let attempt = Attempt {
            client: parameter(&query, "client").unwrap_or_default(),
            number: number.unwrap_or_default(),
        };
        let Some(seat) = feed.register(&live, user, attempt) else {
            return;
        };
        let Session { id, outbox, .. } = &*seat;
        // The position counts only in the session of which the client has it.
        let same = parameter(&query, "session").is_some_and(|session| session == *id);
        let from = parameter(&query, "from").and_then(|from| from.parse().ok());
        let resumed = from
            .filter(|_| same)
            .and_then(|from| outbox.reader_from(&live, from));
        let (greeting, reader) = match resumed {
            Some(reader) => (format!("resumed {id}"), reader),
            None => (format!("new {id}"), outbox.reader(&live)),
        };
        // An error is the end of the connection, after which the session lingers.
        let _ = serve(socket, greeting, reader).await;
    })
}

impl Feed {
    /// Returns `None` if a newer connection of the same client has the session, or this one has
    /// ended.
    fn register(&self, live: &Liveness, user: String, attempt: Attempt) -> Option<Seat<Session>> {
        let _guard = lock(&self.registering);
        let seat = lock(&self.sessions).get(&user).cloned();
        if seat.is_some_and(|seat| {
            let newest = lock(&seat.attempt);
            newest.client == attempt.client && newest.number > attempt.number
        }) {
            return None;
        }
        let newcomer = Session {
            id: random_id(),
            outbox: Outbox::new(self.limits),
            attempt: Mutex::new(attempt.clone()),
        };
        let registered = live.register_lingering(&self.sessions, user, newcomer, &self.linger);
        let seat = registered.ok()?.into_seat();
        // If a session was resumed, the seat has that one and not the newcomer.
        *lock(&seat.attempt) = attempt;
        Some(seat)
    }
}

async fn serve(
    mut socket: WebSocket,
    greeting: String,
    reader: OutboxReader<Utf8Bytes>,
) -> Result<(), axum::Error> {
    socket.send(greeting.into()).await?;
    loop {
        tokio::select! {
            received = reader.recv() => {
                let text = match received {
                    Some(Ok((position, text))) => format!("message {position} {text}"),
                    Some(Err(overflow)) => format!("refused {}", overflow.refused()),
                    // A newer connection has the session, or the session is over.
                    None => return Ok(()),
                };
                socket.send(text.into()).await?;
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => {
                    let position = text.strip_prefix("ack ");
                    if let Some(position) = position.and_then(|position| position.parse().ok()) {
                        reader.release(position);
                    }
                }
                Some(message) => drop(message?),
                None => return Ok(()),
            },
        }
    }
}

async fn push(RawQuery(query): RawQuery, State(feed): State<Feed>, text: String) -> Response {
    let user = parameter(&query.unwrap_or_default(), "user").unwrap_or_default();
    let seat = lock(&feed.sessions).get(&user).cloned();
    let Some(seat) = seat else {
        return (StatusCode::NOT_FOUND, "no session\n").into_response();
    };
    let bytes = text.len();
    match seat.outbox.push(text.into(), bytes) {
        Ok(position) => format!("{position}\n").into_response(),
        Err(OutboxError::Closed(_)) => (StatusCode::NOT_FOUND, "no session\n").into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// The value of a parameter in a query, if it has one that is not empty.
fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    let value = percent_decode_str(value).decode_utf8().ok()?;
    (!value.is_empty()).then(|| value.into_owned())
}

/// A panic under these locks leaves nothing inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// The client.

/// What the client has received.
struct Place {
    /// The session to which the position belongs; empty before the first one.
    session: String,
    /// The position of the next message.
    from: u64,
    /// How many messages were refused before it, as the server has reported.
    refused: u64,
}

/// An end after which the client does not retry.
enum End {
    /// Two clients must not take the session from each other for ever.
    TakenOver,
    /// The same request would be refused again.
    Refused(StatusCode),
}

/// Connects, and prints messages until the connection ends. After an error the client retries.
async fn follow(
    server: SocketAddr,
    user: &str,
    attempt: &Attempt,
    place: &mut Place,
) -> Result<End, Failure> {
    let user = utf8_percent_encode(user, NON_ALPHANUMERIC);
    let session = utf8_percent_encode(&place.session, NON_ALPHANUMERIC);
    let (from, Attempt { client, number }) = (place.from, attempt);
    let url = format!(
        "ws://{server}/ws?user={user}&session={session}&from={from}&client={client}&attempt={number}"
    );
    let opened = client_async(url, TcpStream::connect(server).await?).await;
    let mut socket = match opened {
        Ok((socket, _)) => socket,
        Err(tungstenite::Error::Http(response)) if response.status().is_client_error() => {
            return Ok(End::Refused(response.status()));
        }
        Err(error) => return Err(error.into()),
    };
    while let Some(message) = socket.next().await {
        let text = match message? {
            tungstenite::Message::Text(text) => text,
            tungstenite::Message::Close(Some(close)) if close.code == REPLACED.into() => {
                return Ok(End::TakenOver);
            }
            _ => continue,
        };
        let (kind, rest) = text.split_once(' ').ok_or("not a message of the feed")?;
        match kind {
            "resumed" => print_line(&text)?,
            "new" => {
                *place = Place {
                    session: rest.to_owned(),
                    from: 0,
                    refused: 0,
                };
                print_line(&text)?;
            }
            "message" => {
                let (position, _) = rest.split_once(' ').ok_or("a message without a position")?;
                let position: u64 = position.parse()?;
                print_line(&text)?;
                // Only after the message is in the store of the client.
                place.from = position + 1;
                socket.send(format!("ack {position}").into()).await?;
            }
            "refused" => {
                let refused = rest.parse()?;
                if refused > place.refused {
                    place.refused = refused;
                    print_line(&text)?;
                }
            }
            _ => {}
        }
    }
    Err("the server has closed it".into())
}

//! Runs a case with and without the layers, and compares the outcomes.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use axum::Router;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tower_ws_liveness::Reason;

use super::case::{Case, Cut, Place, Want, place};
use super::server::{Meter, Notes, bare, layered};
use super::support::raw::{BINARY, CLOSE, Frame, PING, PONG, RawClient, TEXT};
use super::support::recorder::Recorder;
use super::support::{ms, serve_io, within};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In memory, on a paused clock: time advances only when every task is idle.
    Memory,
    /// Loopback sockets, on one thread: a woken task runs before a task that yielded runs again.
    Sockets,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layers {
    None,
    /// The client answers the layers' pings as soon as its own frames allow.
    Answered,
    /// The client answers no ping.
    Ignored,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// All that is observable from outside, except the layers' pings.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    received: Vec<Frame>,
    end: End,
    handler: Vec<String>,
    /// Number of parts sent before the server ended the connection.
    sent: usize,
}

/// Runs every case in every cut, several at a time so that waits overlap.
pub(crate) async fn all(cases: Vec<Case>, way: Way, cuts: &[Cut]) {
    let runs = cases.iter().flat_map(|case| {
        let cuts = cuts.iter();
        cuts.map(move |cut| compare(case, way, *cut))
    });
    // On a paused clock waits take no time, and concurrent runs would advance each other's clock.
    let at_once = if way == Way::Memory { 1 } else { 16 };
    let done = futures_util::stream::iter(runs).buffer_unordered(at_once);
    assert_eq!(done.count().await, cases.len() * cuts.len());
}

async fn compare(case: &Case, way: Way, cut: Cut) {
    let name = format!("{}, {cut:?}", case.name);
    let (alone, _) = run(case, way, cut, Layers::None).await;
    alone.is_as_wanted(&name, case.want, cut);
    let ways: &[Layers] = match cut {
        Cut::Pieces => &[Layers::Answered, Layers::Ignored],
        Cut::Bytes => &[Layers::Answered],
        Cut::Odd => &[Layers::Ignored],
    };
    for &layers in ways {
        let (with, shut_down) = run(case, way, cut, layers).await;
        // With an unanswered ping the layers shut the transport down and read on, so that a late
        // pong does not reset the connection. Then nothing else resets it either.
        let mut expected = alone.clone();
        if shut_down {
            expected.end = End::Fin;
        }
        assert_eq!(with, expected, "{name}, {layers:?}");
    }
}

/// Returns the outcome, and whether the server shut its transport down before it dropped it.
async fn run(case: &Case, way: Way, cut: Cut, layers: Layers) -> (Outcome, bool) {
    let name = format!("{}, {cut:?}, {layers:?}", case.name);
    let (notes, handler_lines) = Notes::new();
    let own_pings = notes.own_pings();
    let recorder = Recorder::new();
    let app = match layers {
        Layers::None => bare(notes),
        Layers::Answered | Layers::Ignored => layered(notes, &recorder),
    };
    let meter = Meter::default();
    let run = Run {
        name,
        way,
        layers,
        meter: meter.clone(),
        own_pings,
        received: Vec::new(),
        before: 0,
        sent: Vec::new(),
        pongs: 0,
        unanswered: None,
        pings: 0,
        end: None,
    };
    let outcome = match way {
        Way::Memory => {
            let (client, server) = tokio::io::duplex(1 << 20);
            run.go(case.cut(cut), app, client, server, handler_lines)
                .await
        }
        Way::Sockets => {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap());
            let (client, server) = tokio::join!(client, listener.accept());
            let (client, (server, _)) = (client.unwrap(), server.unwrap());
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            run.go(case.cut(cut), app, client, server, handler_lines)
                .await
        }
    };
    if layers != Layers::None {
        let reason = recorder.nth(1).await.reason;
        let own = matches!(
            reason,
            Reason::PeerClosed { .. } | Reason::PeerVanished | Reason::HandlerDropped
        );
        assert!(own, "{}: {reason}", case.name);
    }
    let shut_down = meter.readings().shut_down;
    (outcome, shut_down)
}

/// The client of one run.
struct Run {
    name: String,
    way: Way,
    layers: Layers,
    meter: Meter,
    own_pings: Arc<Mutex<Vec<Vec<u8>>>>,
    received: Vec<Frame>,
    /// Bytes that the server had read after the opening handshake.
    before: usize,
    /// The client's bytes of this case, without pongs to the layers.
    sent: Vec<u8>,
    /// Number of bytes of the client's pongs to the layers.
    pongs: usize,
    /// The layers' last ping, until the client may answer it.
    unanswered: Option<Vec<u8>>,
    /// Number of the layers' pings since the first byte.
    pings: usize,
    end: Option<End>,
}

impl Run {
    async fn go<S>(
        mut self,
        parts: Vec<Vec<u8>>,
        app: Router,
        client: S,
        server: S,
        mut handler_lines: mpsc::UnboundedReceiver<String>,
    ) -> Outcome
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let serving = serve_io(app, self.meter.over(server));
        let mut client = RawClient::handshake(client, "/ws").await;
        within("the upgrade", serving).await.unwrap().unwrap();
        self.before = self.meter.readings().read;
        let (mut sent, mut inside) = (0, 0);
        for part in &parts {
            if self.end.is_some() {
                break;
            }
            inside = self.pings;
            let taken = client.send_bytes(part).await;
            self.sent.extend_from_slice(part);
            sent += 1;
            if taken.is_err() {
                // The server closed while the part was written.
                self.read_to_end(&mut client).await;
                self.end = Some(End::Reset);
                break;
            }
            self.settled().await;
            if self.meter.readings().has_ended() {
                self.read_to_end(&mut client).await;
            } else if sent < parts.len() {
                self.gap(&mut client).await;
            }
        }
        // The layers sent a ping between the first byte and the last.
        let has_pings = self.layers != Layers::None;
        assert_eq!(inside > 0, has_pings, "{}: pings inside", self.name);
        if self.end.is_none() {
            client.shutdown().await.unwrap();
            self.read_to_end(&mut client).await;
        }
        assert!(
            client.read_exactly(1).await.is_err(),
            "{}: half a frame at the end",
            self.name
        );
        let mut handler = Vec::new();
        while let Some(line) = within("the handler's end", handler_lines.recv()).await {
            handler.push(line);
        }
        Outcome {
            received: self.received,
            end: self.end.unwrap(),
            handler,
            sent,
        }
    }

    /// Waits until the server has handled all bytes sent so far.
    async fn settled(&self) {
        if self.way == Way::Memory {
            // Longer than an interval, so that a due ping is sent, too.
            return sleep(ms(3)).await;
        }
        let sent = self.sent_in_all();
        let is_settled = || {
            let readings = self.meter.readings();
            readings.has_ended() || readings.waits_at >= sent
        };
        let settled = async {
            while !is_settled() {
                yield_now().await;
            }
        };
        within(&self.name, settled).await;
        // If the layers' driver has read the bytes, the handler runs next.
        for _ in 0..8 {
            yield_now().await;
        }
    }

    /// Between two parts: expects a ping where one may be sent, and none elsewhere.
    async fn gap<S: AsyncRead + AsyncWrite + Unpin>(&mut self, client: &mut RawClient<S>) {
        let place = place(&self.sent);
        let may = matches!(place, Place::Boundary | Place::Inside);
        if self.layers == Layers::None || !may || self.is_closing() {
            if self.way == Way::Memory {
                let pings = self.pings;
                while let Ok(frame) = timeout(ms(3), client.read_frame()).await {
                    self.take(frame);
                }
                assert_eq!(self.pings, pings, "{}: pinged at {place:?}", self.name);
            }
            return;
        }
        let pings = self.pings;
        while self.pings == pings && !self.is_closing() {
            let frame = within(&self.name, client.read_frame()).await;
            if self.take(frame) {
                break;
            }
        }
        let may_answer = place == Place::Boundary && self.layers == Layers::Answered;
        if !may_answer || self.is_closing() {
            return;
        }
        if let Some(ping) = self.unanswered.take() {
            let pong = Frame::new(PONG, ping);
            client.send(&pong).await.unwrap();
            self.pongs += pong.masked().len();
        }
    }

    fn sent_in_all(&self) -> usize {
        self.before + self.sent.len() + self.pongs
    }

    fn is_closing(&self) -> bool {
        self.end.is_some() || self.received.iter().any(|frame| frame.opcode == CLOSE)
    }

    async fn read_to_end<S: AsyncRead + AsyncWrite + Unpin>(&mut self, client: &mut RawClient<S>) {
        loop {
            let frame = within(&self.name, client.read_frame()).await;
            if self.take(frame) {
                break;
            }
        }
    }

    /// Separates the layers' pings from other frames. Returns whether the connection ended.
    fn take(&mut self, frame: io::Result<Option<Frame>>) -> bool {
        match frame {
            Ok(Some(ping)) if ping.opcode == PING && !self.is_handlers(&ping) => {
                assert!(ping.fin && ping.rsv == 0, "{}: {ping:?}", self.name);
                self.pings += 1;
                self.unanswered = Some(ping.payload);
                return false;
            }
            Ok(Some(frame)) => {
                self.received.push(frame);
                return false;
            }
            Ok(None) => self.end = Some(self.how_it_ended()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                self.end = Some(End::Reset);
            }
            Err(error) => panic!("{}: {error}", self.name),
        }
        true
    }

    fn is_handlers(&self, ping: &Frame) -> bool {
        self.own_pings.lock().unwrap().contains(&ping.payload)
    }

    /// A socket reports a reset itself. In memory it is derived: a socket with unread bytes is
    /// reset.
    fn how_it_ended(&self) -> End {
        let unread = self.meter.readings().read < self.sent_in_all();
        match self.way {
            Way::Memory if unread => End::Reset,
            Way::Memory | Way::Sockets => End::Fin,
        }
    }
}

/// The codec's error when the stream ends without a Close frame.
const NO_CLOSE_FRAME: &str = "WebSocket protocol error: Connection reset without closing handshake";

impl Outcome {
    fn is_as_wanted(&self, name: &str, want: Want, cut: Cut) {
        let is_data = |frame: &&Frame| matches!(frame.opcode, TEXT | BINARY);
        let echoed = self.received.iter().filter(is_data).count();
        let closed = self.received.iter().any(|frame| frame.opcode == CLOSE);
        let error = self.handler.iter().find(|line| line.starts_with("error: "));
        let refused = error.is_some_and(|error| !error.ends_with(NO_CLOSE_FRAME));
        let reset = self.end == End::Reset || cut != Cut::Pieces;
        let as_wanted = match want {
            Want::Echoes(count) => echoed == count && !refused && !closed,
            Want::Refused => refused,
            Want::Closed => closed && !refused,
            Want::Reset => reset && (closed || refused),
        };
        assert!(as_wanted, "{name}: not {want:?} but {self:?}");
    }
}

//! Slow frames of 100 MB outlast every timeout, arrive unchanged and cause no eviction.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, duplex, split};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::{HeartbeatLayer, HeartbeatLayerBuilder, Liveness, ProofOfLife, Reason};

use crate::support::h2_client::H2Client;
use crate::support::raw::{BINARY, Frame, PING, PONG, TEXT, opening};
use crate::support::recorder::Recorder;
use crate::support::wire::{Carrier, Wire, over_each_wire};
use crate::support::{bytes_route, ms, noise, within};

over_each_wire! {
    #[tokio::test]
    a_huge_frame_over_a_slow_socket_does_not_evict;
}

const HUGE_BYTES: usize = 100_000_000;

/// A frame of this length is read without pauses.
const LAST_BYTES: usize = 3_000_000;

/// The payload repeats at a prime number of bytes.
const PERIOD_BYTES: usize = 65_521;

const PROOFS: [ProofOfLife; 2] = [ProofOfLife::AnyBytes, ProofOfLife::MatchingPong];

/// Which sides send a huge frame.
#[derive(Clone, Copy, Debug)]
struct Sends {
    peer: bool,
    handler: bool,
}

/// A number of bytes, and the pause after them.
#[derive(Clone, Copy)]
struct Pace(usize, Duration);

/// Without pauses. If the other side is slow, one `write_all` call outlasts every timeout.
const UNHURRIED: Pace = Pace(PERIOD_BYTES * 16, Duration::ZERO);

impl Pace {
    async fn rest(self) {
        if !self.1.is_zero() {
            sleep(self.1).await;
        }
    }
}

/// 17 periods of the payload, so that 16 periods are available from any offset.
fn payload() -> Vec<u8> {
    noise(100, PERIOD_BYTES).repeat(17)
}

/// Writes the frame in pieces. A client masks with a key of zero, which RFC 6455 permits.
async fn send_frame<W: AsyncWrite + Unpin>(
    io: &mut W,
    len: usize,
    masked: bool,
    pace: Pace,
) -> io::Result<()> {
    let mask_bit = if masked { 0x80 } else { 0 };
    io.write_all(&[0x80 | BINARY, mask_bit | 127]).await?;
    io.write_u64(len as u64).await?;
    if masked {
        io.write_u32(0).await?;
    }
    let payload = payload();
    let mut sent = 0;
    while sent < len {
        let end = len.min(sent + pace.0);
        while sent < end {
            let at = sent % PERIOD_BYTES;
            let count = (PERIOD_BYTES * 16).min(end - sent);
            io.write_all(&payload[at..at + count]).await?;
            sent += count;
        }
        io.flush().await?;
        pace.rest().await;
    }
    Ok(())
}

/// Reads the payload of a frame and compares every byte.
async fn read_payload<R: AsyncRead + Unpin>(io: &mut R, len: usize, pace: Pace) -> io::Result<()> {
    let payload = payload();
    let mut buffer = vec![0; PERIOD_BYTES];
    let (mut read, mut rest_at) = (0, pace.0);
    while read < len {
        let room = PERIOD_BYTES.min(len - read).min(rest_at - read);
        let count = io.read(&mut buffer[..room]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let at = read % PERIOD_BYTES;
        assert!(
            buffer[..count] == payload[at..at + count],
            "changed after byte {read}"
        );
        read += count;
        if read == rest_at {
            rest_at += pace.0;
            pace.rest().await;
        }
    }
    Ok(())
}

/// A frame that one side receives.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Binary(usize),
    Ping(Vec<u8>),
    Text(Vec<u8>),
}

/// Sends each received frame to `frames_tx` until the stream ends or fails.
async fn read_frames<R: AsyncRead + Unpin>(
    io: R,
    pace: Pace,
    frames_tx: mpsc::UnboundedSender<Got>,
) -> io::Result<()> {
    let mut io = BufReader::with_capacity(64, io);
    loop {
        let first = io.read_u8().await?;
        let second = io.read_u8().await?;
        let count = match second & 0x7f {
            127 => io.read_u64().await?,
            short => u64::from(short),
        };
        let key = match second & 0x80 {
            0 => 0,
            _ => io.read_u32().await?,
        };
        let got = if first == 0x80 | BINARY {
            assert_eq!(key, 0);
            let pace = if count == LAST_BYTES as u64 {
                UNHURRIED
            } else {
                pace
            };
            read_payload(&mut io, count as usize, pace).await?;
            Got::Binary(count as usize)
        } else {
            let mut payload = vec![0; count as usize];
            io.read_exact(&mut payload).await?;
            let key = key.to_be_bytes().into_iter().cycle();
            payload
                .iter_mut()
                .zip(key)
                .for_each(|(byte, key)| *byte ^= key);
            match first & 0xf {
                PING => Got::Ping(payload),
                TEXT => Got::Text(payload),
                // Only the layer sends pings, so the handler must not receive a pong.
                opcode => panic!("opcode {opcode:#x} of {count} bytes"),
            }
        };
        if frames_tx.send(got).is_err() {
            return Ok(());
        }
    }
}

/// Reads without pauses, sends its huge frame, and then echoes texts.
async fn handler<S: AsyncRead + AsyncWrite + Send + 'static>(io: S, sends: Sends) {
    let (read, mut write) = split(io);
    let (frames_tx, mut frames) = mpsc::unbounded_channel();
    let reading = tokio::spawn(read_frames(read, UNHURRIED, frames_tx));
    if sends.handler {
        send_frame(&mut write, HUGE_BYTES, false, UNHURRIED)
            .await
            .unwrap();
    }
    let mut got = Vec::new();
    while let Some(frame) = frames.recv().await {
        if let Got::Text(text) = &frame {
            let echo = Frame::new(TEXT, text.clone()).unmasked();
            write.write_all(&echo).await.unwrap();
            write.flush().await.unwrap();
        }
        got.push(frame);
    }
    let end = reading.await.unwrap();
    let mut expected = vec![Got::Text(b"end".to_vec())];
    if sends.peer {
        expected.insert(0, Got::Binary(HUGE_BYTES));
    }
    assert_eq!(got, expected, "{end:?}");
}

/// The peer's side. Returns the duration of the frames, and the number of pings during its own
/// frame.
async fn peer<S>(io: S, sends: Sends, pace: Pace) -> (Duration, usize)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let begun = Instant::now();
    let (read, mut write) = split(io);
    let (frames_tx, mut frames) = mpsc::unbounded_channel();
    let reading = tokio::spawn(read_frames(read, pace, frames_tx));
    if sends.peer {
        send_frame(&mut write, HUGE_BYTES, true, pace)
            .await
            .unwrap();
    }
    // The peer could not send a pong inside its own frame.
    let pings_during = frames.len();
    let (mut took, mut pings_after) = (None, 0);
    if !sends.handler {
        took = Some(begun.elapsed());
    }
    let mut sent_end = false;
    let long = Duration::from_secs(3_600);
    loop {
        match timeout(long, frames.recv()).await.expect("a frame") {
            Some(Got::Ping(ping)) => {
                let pong = Frame::new(PONG, ping).masked();
                write.write_all(&pong).await.unwrap();
                pings_after += usize::from(took.is_some());
            }
            Some(Got::Binary(_)) => took = Some(begun.elapsed()),
            Some(Got::Text(text)) => {
                assert_eq!(text, b"end");
                break;
            }
            None => panic!("{:?} with {sends:?}", reading.await),
        }
        // The connection is still open, and pings are still sent.
        if pings_after >= pings_during + 3 && !sent_end {
            sent_end = true;
            write.write_all(&Frame::text("end").masked()).await.unwrap();
        }
        write.flush().await.unwrap();
    }
    reading.abort();
    (took.unwrap(), pings_during)
}

fn heartbeat(proof: ProofOfLife, recorder: &Recorder) -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .proof_of_life(proof)
        .on_evict(recorder.hook())
}

#[track_caller]
fn assert_not_evicted(recorder: &Recorder, live: &Liveness, case: &impl Debug) {
    assert_eq!(recorder.total(), 0, "{case:?}: {:?}", recorder.all());
    let stats = live.stats();
    assert!(stats.pongs_received() >= 3, "{case:?}: {stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_huge_frame_that_lasts_minutes_does_not_evict() {
    let (interval, limit) = (ms(100), ms(400));
    for proof in PROOFS {
        for (peer_sends, handler_sends) in [(true, false), (false, true), (true, true)] {
            let sends = Sends {
                peer: peer_sends,
                handler: handler_sends,
            };
            let recorder = Recorder::new();
            let layer = heartbeat(proof, &recorder)
                .interval(interval)
                .timeout(limit)
                .write_timeout(ms(600))
                .handler_stall_timeout(ms(600))
                .build()
                .unwrap();
            let (client, server) = duplex(16 * 1024);
            let (stream, live) = layer.wrap_server(server);
            let handler = tokio::spawn(handler(stream, sends));
            // The pauses are longer than the interval.
            let pace = Pace(100_000, ms(250));
            let (took, pings) = peer(client, sends, pace).await;
            let case = (proof, sends);
            assert!(took > (interval + limit) * 400, "{case:?}: {took:?}");
            assert_not_evicted(&recorder, &live, &case);
            // A ping between any two pieces, or only one if only its pong is proof of life.
            let least = match (sends, proof) {
                (Sends { handler: true, .. }, _) => 0,
                (_, ProofOfLife::AnyBytes) => 900,
                _ => 1,
            };
            assert!(pings >= least, "{case:?}: {pings} pings");
            within("the handler's end", handler).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_ping_queued_behind_draining_megabytes_does_not_evict() {
    for proof in PROOFS {
        let recorder = Recorder::new();
        let layer = heartbeat(proof, &recorder)
            .interval(ms(100))
            .timeout(ms(400))
            .build()
            .unwrap();
        // A full buffer takes ten pauses to drain, which is many times the timeout.
        let (client, server) = duplex(1 << 20);
        let (mut stream, live) = layer.wrap_server(server);
        let handler = tokio::spawn(async move {
            for len in [1_000_000; 30].into_iter().chain([LAST_BYTES]) {
                send_frame(&mut stream, len, false, UNHURRIED).await?;
            }
            sleep(ms(1_000)).await;
            stream.shutdown().await
        });
        let (read, mut write) = split(client);
        let (frames_tx, mut frames) = mpsc::unbounded_channel();
        let reading = tokio::spawn(read_frames(read, Pace(100_000, ms(250)), frames_tx));
        let (mut messages, mut pings, begun) = (0, 0, Instant::now());
        while let Some(got) = frames.recv().await {
            messages += usize::from(matches!(got, Got::Binary(_)));
            if let Got::Ping(ping) = got {
                pings += 1;
                let pong = Frame::new(PONG, ping).masked();
                write.write_all(&pong).await.unwrap();
            }
        }
        assert_eq!(messages, 31, "{:?}", reading.await);
        assert!(begun.elapsed() > ms(30 * 10 * 250));
        assert!(pings >= 10, "{pings} pings");
        within("the handler", handler).await.unwrap().unwrap();
        // The handler ended the connection.
        let event = recorder.nth(1).await;
        let reason = Reason::ServerClosed { code: None };
        assert_eq!(event.reason, reason, "{proof:?}: {:?}", live.stats());
        assert!(live.rtt().unwrap().smoothed() > ms(400), "{:?}", live.rtt());
    }
}

async fn a_huge_frame_over_a_slow_socket_does_not_evict(wire: Wire) {
    let (interval, limit) = (ms(100), ms(200));
    let both = Sends {
        peer: true,
        handler: true,
    };
    let recorder = Recorder::new();
    let (done_tx, mut done) = mpsc::unbounded_channel();
    let mut app = Router::new();
    for (path, proof) in ["/any", "/pong"].into_iter().zip(PROOFS) {
        let layer = heartbeat(proof, &recorder)
            .interval(interval)
            .timeout(limit)
            .build()
            .unwrap();
        let done_tx = done_tx.clone();
        let route = bytes_route(move |io| {
            let done_tx = done_tx.clone();
            async move {
                handler(io, both).await;
                done_tx.send(()).unwrap();
            }
        });
        app = app.route(path, route.layer(layer));
    }
    // A ping is queued behind the bytes in the kernel's send buffer. The buffer is small, so that
    // they drain within the configured timeout.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(64 * 1024).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(8).unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });

    let transfer = async |path| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let socket = socket.connect(addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let io = open(wire, socket, path).await;
        let (took, _) = peer(io, both, Pace(250_000, ms(16))).await;
        assert!(took > (interval + limit) * 20, "{path}: {took:?}");
    };
    tokio::join!(transfer("/any"), transfer("/pong"));
    for ended in 1..=2 {
        within("the handler's end", done.recv()).await.unwrap();
        let event = recorder.nth(ended).await;
        // The peers end the connections. An unread last ping makes that a reset.
        let by_peer = matches!(event.reason, Reason::PeerVanished | Reason::Transport(_));
        assert!(by_peer, "{event:?}");
        let stats = event.eviction.stats();
        assert!(stats.pongs_received() >= 3, "{stats:?}");
        assert!(stats.bytes_received().min(stats.bytes_sent()) > HUGE_BYTES as u64);
    }
    serving.abort();
}

/// Opens a WebSocket over this new TCP connection.
async fn open(wire: Wire, mut socket: TcpStream, path: &str) -> Carrier {
    if wire == Wire::Http2 {
        let settings = h2::client::Builder::new();
        let connection = H2Client::handshake(socket, &settings).await.unwrap();
        return Carrier::stream(&Arc::new(connection), path).await;
    }
    socket.write_all(opening(path).as_bytes()).await.unwrap();
    // Byte by byte, because the first frame may follow immediately.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("the upgrade", socket.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    Carrier::Tcp(socket)
}

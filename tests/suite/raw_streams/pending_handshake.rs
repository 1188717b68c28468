//! Tasks that wait, and evictions, while the opening handshake passes through a wrapped stream.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex, split};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::accept_async;
use tower_ws_liveness::{Evicted, Health, Reason};

use super::handshakes::{SWITCHING, heartbeat};
use crate::panicking_waker::PanickingWaker;
use crate::script::{Wakes, poll_write};
use crate::support::raw::{CLOSE, Frame, PING, RawClient, opening};
use crate::support::{self, ms, never, within};

const HOUR: Duration = Duration::from_secs(3600);

// Waiting tasks.

/// A reader registers its waker with the transport during the handshake. Later the driver registers
/// its own there, for a pong.
#[tokio::test(start_paused = true)]
async fn a_reader_pending_since_the_handshake_is_woken_by_data_during_a_ping() {
    let (layer, _) = heartbeat();
    let (near, far) = duplex(4096);
    let (io, live) = layer.wrap_server_handshake(near);
    let (mut read, mut write) = split(io);
    let mut client = RawClient::over(far);
    client.send_bytes(opening("/").as_bytes()).await.unwrap();
    let mut head = vec![0; opening("/").len()];
    read.read_exact(&mut head).await.unwrap();
    let reading = tokio::spawn(async move {
        let mut frame = vec![0; Frame::text("hello").masked().len()];
        read.read_exact(&mut frame).await.unwrap();
        frame
    });
    // Now the reader is pending.
    sleep(ms(1)).await;
    write.write_all(SWITCHING.as_bytes()).await.unwrap();
    client.read_exactly(SWITCHING.len()).await.unwrap();
    let ping = client.expect_ping_in(HOUR).await;
    assert_eq!(live.stats().pings_sent(), 1);
    client.send(&Frame::text("hello")).await.unwrap();
    let frame = timeout(ms(100), reading).await.expect("woken");
    assert_eq!(frame.unwrap(), Frame::text("hello").masked());
    client.send(&ping).await.unwrap();
}

/// The reader's bytes arrive before the response, so the stream holds them back.
#[tokio::test]
async fn a_reader_whose_bytes_arrived_early_is_woken_by_the_response() {
    for answer in [SWITCHING, "HTTP/1.1 400 No\r\n\r\n"] {
        let (layer, _) = heartbeat();
        let (near, far) = duplex(4096);
        let (io, _live) = layer.wrap_server_handshake(near);
        let (mut read, mut write) = split(io);
        let mut client = RawClient::over(far);
        client.send_bytes(opening("/").as_bytes()).await.unwrap();
        let mut head = vec![0; opening("/").len()];
        read.read_exact(&mut head).await.unwrap();
        let expected = Frame::text("early").masked();
        client.send_bytes(&expected).await.unwrap();
        let mut frame = vec![0; expected.len()];
        never("a frame", ms(20), read.read_exact(&mut frame)).await;
        let reading = tokio::spawn(async move {
            read.read_exact(&mut frame).await.unwrap();
            frame
        });
        // Now the reader is pending: no other task runs on this thread.
        tokio::task::yield_now().await;
        write.write_all(answer.as_bytes()).await.unwrap();
        assert_eq!(within("the frame", reading).await.unwrap(), expected);
    }
}

/// The same for a writer at the client's end.
#[tokio::test]
async fn an_early_frame_of_a_client_is_held_back_until_the_response() {
    let (layer, _) = heartbeat();
    let (near, mut far) = duplex(4096);
    let (mut io, live) = layer.wrap_client_handshake(near);
    let frame = Frame::text("early").masked();
    let request = [opening("/").as_bytes(), &frame].concat();
    let (mut read, mut write) = split(io);
    let writing = tokio::spawn(async move {
        write.write_all(&request).await.unwrap();
        write
    });
    let mut head = vec![0; opening("/").len()];
    within("the request", far.read_exact(&mut head))
        .await
        .unwrap();
    never("an early frame", ms(20), far.read_u8()).await;
    far.write_all(SWITCHING.as_bytes()).await.unwrap();
    let mut head = vec![0; SWITCHING.len()];
    within("the answer", read.read_exact(&mut head))
        .await
        .unwrap();
    io = read.unsplit(within("the writer", writing).await.unwrap());
    let mut got = vec![0; frame.len()];
    within("the frame", far.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, frame);
    assert_eq!(live.stats().messages_sent(), 1);
    drop(io);
}

/// The reader registered this waker before, in a task that it has left.
#[tokio::test]
async fn a_waker_that_panics_keeps_no_writer_from_the_end_of_the_handshake() {
    let (layer, _) = heartbeat();
    let (near, mut far) = duplex(4096);
    let (mut io, _live) = layer.wrap_client_handshake(near);
    io.write_all(opening("/").as_bytes()).await.unwrap();
    let panics = Arc::new(PanickingWaker::default());
    let waker = Waker::from(Arc::clone(&panics));
    let mut head = vec![0; SWITCHING.len()];
    let mut buf = ReadBuf::new(&mut head);
    let reading = Pin::new(&mut io).poll_read(&mut Context::from_waker(&waker), &mut buf);
    assert!(reading.is_pending());
    let wakes = Wakes::new();
    let frame = Frame::text("early").masked();
    assert!(poll_write(&mut io, &wakes, &frame).is_pending());
    far.write_all(SWITCHING.as_bytes()).await.unwrap();
    panics.arm();
    io.read_exact(&mut head).await.unwrap();
    assert_eq!(head, SWITCHING.as_bytes());
    assert_eq!(wakes.count(), 1);
    assert!(poll_write(&mut io, &wakes, &frame).is_ready());
}

#[tokio::test]
async fn a_vectored_write_of_the_response_and_a_frame_passes_whole() {
    let (layer, _) = heartbeat();
    let (near, mut far) = duplex(4096);
    let (mut io, live) = layer.wrap_server_handshake(near);
    let frame = Frame::text("hello").unmasked();
    let pieces = [b"", SWITCHING.as_bytes(), &frame];
    let mut slices = &mut pieces.map(IoSlice::new)[..];
    while !slices.is_empty() {
        let written = io.write_vectored(slices).await.unwrap();
        IoSlice::advance_slices(&mut slices, written);
    }
    let mut got = vec![0; SWITCHING.len() + frame.len()];
    within("all of it", far.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, pieces.concat());
    assert_eq!(live.stats().messages_sent(), 1);
}

// Evictions during the handshake.

#[tokio::test]
async fn an_eviction_during_the_handshake_takes_effect_at_its_end() {
    let (layer, recorder) = heartbeat();
    let (near, far) = duplex(4096);
    let (io, live) = layer.wrap_server_handshake(near);
    assert!(live.evict(4001, "not you"));
    let accepting = tokio::spawn(accept_async(io));
    // The transport receives the response before the eviction takes effect.
    let mut client = RawClient::handshake(far, "/").await;
    let error = within("the handshake", accepting).await.unwrap();
    let evicted = Evicted::from_error(&error.unwrap_err()).expect("an eviction");
    assert_eq!(evicted.reason(), Reason::Kicked { code: 4001 });
    let close = client.expect_frame().await;
    assert_eq!((close.opcode, close.close_code()), (CLOSE, Some(4001)));
    client.send(&close).await.unwrap();
    assert_eq!(client.closed().await, None);
    within("an idle registry", layer.registry().wait_idle()).await;
    assert_eq!(recorder.total(), 1);
}

/// At the client's end the Close frame is masked, and nothing else follows the request.
#[tokio::test]
async fn a_client_evicted_during_its_handshake_sends_its_close_frame_at_the_end() {
    let (layer, recorder) = heartbeat();
    let (near, mut far) = duplex(4096);
    let (mut io, live) = layer.wrap_client_handshake(near);
    io.write_all(opening("/").as_bytes()).await.unwrap();
    assert!(live.evict(4001, "not you"));
    let mut head = vec![0; opening("/").len()];
    far.read_exact(&mut head).await.unwrap();
    far.write_all(SWITCHING.as_bytes()).await.unwrap();
    let mut head = vec![0; SWITCHING.len()];
    within("the answer", io.read_exact(&mut head))
        .await
        .unwrap();
    let read = within("the end", io.read_u8()).await;
    let evicted = Evicted::from_error(&read.unwrap_err()).expect("an eviction");
    assert_eq!(evicted.reason(), Reason::Kicked { code: 4001 });
    let mut server = RawClient::over(far);
    let close = server.expect_frame().await;
    assert_eq!(close, Frame::close(4001, "not you"));
    server.send_bytes(&close.unmasked()).await.unwrap();
    assert_eq!(server.closed().await, None);
    within("an idle registry", layer.registry().wait_idle()).await;
    assert_eq!(recorder.total(), 1);
}

#[tokio::test]
async fn an_eviction_during_a_handshake_that_fails_sends_no_frame() {
    for answer in ["HTTP/1.1 400 No\r\n\r\n", ""] {
        let (layer, recorder) = heartbeat();
        let (near, far) = duplex(4096);
        let (mut io, live) = layer.wrap_server_handshake(near);
        let mut client = RawClient::over(far);
        client.send_bytes(opening("/").as_bytes()).await.unwrap();
        let mut head = vec![0; opening("/").len()];
        io.read_exact(&mut head).await.unwrap();
        assert!(live.evict(4001, "not you"));
        io.write_all(answer.as_bytes()).await.unwrap();
        drop(io);
        let mut received = Vec::new();
        client.io().read_to_end(&mut received).await.unwrap();
        assert_eq!(received, answer.as_bytes(), "no frame");
        within("an idle registry", layer.registry().wait_idle()).await;
        assert_eq!(recorder.total(), 1);
    }
}

#[tokio::test]
async fn a_drain_during_the_handshake_ends_the_connection_as_it_opens() {
    let (layer, recorder) = heartbeat();
    let (near, far) = duplex(4096);
    let (io, live) = layer.wrap_server_handshake(near);
    layer.registry().begin_drain();
    assert_eq!(live.health(), Health::Opening);
    let accepting = tokio::spawn(accept_async(io));
    let mut client = RawClient::handshake(far, "/").await;
    let close = client.expect_frame().await;
    assert_eq!((close.opcode, close.close_code()), (CLOSE, Some(1001)));
    drop(client);
    assert_eq!(recorder.nth(1).await.reason, Reason::Drained);
    drop(accepting.await.unwrap());
    within("an idle registry", layer.registry().wait_idle()).await;
}

impl RawClient<DuplexStream> {
    /// Waits up to `span` for a ping, and returns the pong that answers it.
    async fn expect_ping_in(&mut self, span: Duration) -> Frame {
        let frame = timeout(span, self.read_frame()).await.expect("a ping");
        let frame = frame.unwrap().unwrap();
        assert_eq!(frame.opcode, PING);
        Frame::new(support::raw::PONG, frame.payload)
    }
}

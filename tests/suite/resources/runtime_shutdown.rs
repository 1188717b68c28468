//! Connections opened while or after their runtime shuts down, and reads after an eviction.

use std::future::{self, Future};
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};
use tower_ws_liveness::{Evicted, Eviction, HeartbeatLayer, Liveness, Reason};

/// Longer than any operation here takes: only a deadlock exceeds it.
const PATIENCE: Duration = Duration::from_secs(20);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Opens a connection in a runtime that is shut down, where no driver can run, and asserts that it
/// ends at once.
fn wrap_without_driver() -> Liveness {
    let ends = Arc::new(Mutex::new(Vec::new()));
    let end = Arc::clone(&ends);
    let layer = HeartbeatLayer::builder()
        .on_evict(move |ev: &Eviction| end.lock().unwrap().push(ev.reason()))
        .build()
        .unwrap();
    let (ours, theirs) = duplex(64);
    let (mut stream, live) = layer.wrap_server(ours);
    assert_eq!(*ends.lock().unwrap(), [Reason::HandlerDropped]);
    assert!(layer.registry().is_empty());
    let mut byte = [0];
    let read = pin!(stream.read(&mut byte));
    let Poll::Ready(Err(error)) = read.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("the stream can be read");
    };
    let evicted = Evicted::from_error(&error).unwrap();
    assert_eq!(evicted.reason(), Reason::HandlerDropped);
    drop((stream, theirs));
    assert_eq!(ends.lock().unwrap().len(), 1);
    live
}

/// Runs `act` on a thread of its own, and fails if it does not return in time.
fn returns_in_time<R: Send + 'static>(act: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(act()));
    result.recv_timeout(PATIENCE).expect("no return in time")
}

#[test]
fn a_connection_may_be_opened_while_its_runtime_shuts_down() {
    let live = returns_in_time(|| {
        let runtime = runtime();
        let (started, starts) = mpsc::channel();
        let (wrapped, wraps) = mpsc::channel();
        // The first task that the runtime cancels drops the only sender.
        let (pending, cancelled) = mpsc::channel::<()>();
        runtime.spawn(async move {
            let _pending = pending;
            future::pending::<()>().await;
        });
        runtime.spawn(async move {
            started.send(()).unwrap();
            // A handler that is busy while the runtime cancels its other tasks.
            cancelled.recv().unwrap_err();
            wrapped.send(wrap_without_driver()).unwrap();
        });
        starts.recv().unwrap();
        let dropping = thread::spawn(move || drop(runtime));
        dropping.join().unwrap();
        wraps.recv().unwrap()
    });
    assert_eq!(live.health().to_string(), "ended");
}

#[test]
fn a_connection_may_be_opened_in_a_runtime_that_has_shut_down() {
    let live = returns_in_time(|| {
        let runtime = runtime();
        let handle = runtime.handle().clone();
        drop(runtime);
        let _entered = handle.enter();
        wrap_without_driver()
    });
    assert_eq!(live.health().to_string(), "ended");
    // The next runtime, which may have the same id, gets a working driver.
    returns_in_time(|| {
        runtime().block_on(async {
            let (ours, _theirs) = duplex(64);
            let (_stream, live) = HeartbeatLayer::new(ms(20), ms(20)).wrap_server(ours);
            let end = timeout(PATIENCE, live.evicted()).await.unwrap();
            assert_eq!(end.reason().as_str(), "heartbeat_timeout");
        });
    });
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_continues_a_long_frame_is_not_stalled() {
    let layer = HeartbeatLayer::builder()
        .interval(ms(1_000))
        .timeout(ms(1_000))
        .handler_stall_timeout(ms(3_000))
        .build()
        .unwrap();
    let (ours, mut theirs) = duplex(1 << 16);
    let peer = tokio::spawn(async move {
        let mut buffer = [0; 1024];
        while theirs.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    });
    let (mut stream, _live) = layer.wrap_server(ours);
    stream.write_all(&[0x82, 126, 0x40, 0]).await.unwrap();
    for _ in 0..100 {
        sleep(ms(100)).await;
        stream.write_all(&[0; 16]).await.unwrap();
    }
    drop(stream);
    peer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_held_back_bytes_are_read_after_a_kick() {
    let layer = HeartbeatLayer::new(ms(1_000), ms(5_000));
    let (ours, mut theirs) = duplex(1 << 16);
    let (mut stream, live) = layer.wrap_server(ours);
    theirs.read_exact(&mut [0; 10]).await.unwrap();
    // The first byte of a pong that turns out not to answer our ping.
    theirs.write_all(&[0x8a]).await.unwrap();
    let mut one = [0; 1];
    assert!(timeout(ms(50), stream.read(&mut one)).await.is_err());
    let rest = [0x88, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    theirs.write_all(&rest).await.unwrap();
    assert_eq!(stream.read(&mut one).await.unwrap(), 1);
    assert!(live.evict(1000, "bye"));
    assert!(stream.read(&mut one).await.is_err());
}

//! A runtime that goes while connections come, and what is left of one that was evicted.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};
use tower_ws_liveness::{Evicted, Eviction, HeartbeatLayer, Liveness, Reason};

/// Longer than anything here takes; a deadlock takes for ever.
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

/// Opens a connection where no driver can look after it any more.
fn wrap() -> Liveness {
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

/// Does `act` on a thread of its own, which has to come back.
fn comes_back<R: Send + 'static>(act: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, comes) = mpsc::channel();
    thread::spawn(move || done.send(act()));
    comes.recv_timeout(PATIENCE).expect("it does not come back")
}

#[test]
fn a_connection_may_be_opened_while_its_runtime_goes() {
    let live = comes_back(|| {
        let runtime = runtime();
        let (started, starts) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel::<()>();
        let (wrapped, wraps) = mpsc::channel();
        runtime.spawn(async move {
            started.send(()).unwrap();
            // A handler that is busy when the runtime is told to go.
            goes_on.recv().unwrap();
            // By now its tasks are being cancelled, though nobody can see that from in here.
            thread::sleep(ms(100));
            wrapped.send(wrap()).unwrap();
        });
        starts.recv().unwrap();
        let going = thread::spawn(move || drop(runtime));
        go_on.send(()).unwrap();
        going.join().unwrap();
        wraps.recv().unwrap()
    });
    assert_eq!(live.health().to_string(), "ended");
}

#[test]
fn a_connection_may_be_opened_in_a_runtime_that_has_gone() {
    let live = comes_back(|| {
        let runtime = runtime();
        let handle = runtime.handle().clone();
        drop(runtime);
        let _entered = handle.enter();
        wrap()
    });
    assert_eq!(live.health().to_string(), "ended");
    // The next runtime, which may have the same id, has a driver that works.
    comes_back(|| {
        runtime().block_on(async {
            let (ours, _theirs) = duplex(64);
            let (_stream, live) = HeartbeatLayer::new(ms(20), ms(20)).wrap_server(ours);
            let end = timeout(PATIENCE, live.evicted()).await.unwrap();
            assert_eq!(end.reason().as_str(), "heartbeat_timeout");
        });
    });
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_goes_on_with_a_long_frame_is_not_stalled() {
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
async fn nothing_is_read_after_a_kick_whatever_was_held_back() {
    let layer = HeartbeatLayer::new(ms(1_000), ms(5_000));
    let (ours, mut theirs) = duplex(1 << 16);
    let (mut stream, live) = layer.wrap_server(ours);
    theirs.read_exact(&mut [0; 10]).await.unwrap();
    // The beginning of a pong of the length of ours, which is none of ours in the end.
    theirs.write_all(&[0x8a]).await.unwrap();
    let mut one = [0; 1];
    assert!(timeout(ms(50), stream.read(&mut one)).await.is_err());
    let rest = [0x88, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    theirs.write_all(&rest).await.unwrap();
    assert_eq!(stream.read(&mut one).await.unwrap(), 1);
    assert!(live.evict(1000, "bye"));
    assert!(stream.read(&mut one).await.is_err());
}

//! The outbox of a session: a newer connection continues where the client is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tower_ws_liveness::{
    HeartbeatLayer, Linger, Liveness, LivenessStream, Outbox, OutboxError, OutboxLimits,
    OutboxReader, Seat, SeatState,
};

const GRACE: Duration = Duration::from_secs(30);

type Sessions = Mutex<HashMap<&'static str, Seat<Outbox<u64>>>>;
type Stream = LivenessStream<DuplexStream>;

/// Sessions whose values are outboxes, which are closed with them.
struct Scene {
    map: Arc<Sessions>,
    linger: Linger<&'static str, Outbox<u64>>,
    layer: HeartbeatLayer,
}

impl Scene {
    fn new() -> Self {
        let linger = Linger::<&'static str, Outbox<u64>>::builder(GRACE)
            .on_session_end(|end| end.value().close());
        Self {
            map: Arc::default(),
            linger: linger.build().unwrap(),
            layer: HeartbeatLayer::default(),
        }
    }

    fn connect(&self) -> (Stream, Liveness, Seat<Outbox<u64>>) {
        let (stream, live) = self.layer.wrap_server(duplex(64).0);
        let registered =
            live.register_lingering(&self.map, "alice", Outbox::default(), &self.linger);
        (stream, live, registered.unwrap().into_seat())
    }
}

#[tokio::test(start_paused = true)]
async fn a_resumed_session_continues_with_what_was_not_acknowledged() {
    let scene = Scene::new();
    let (stream, live, seat) = scene.connect();
    for message in 0..3 {
        assert_eq!(seat.push(message, 8), Ok(message));
    }
    let reader = seat.reader(&live);
    assert_eq!(reader.recv().await, Some(Ok((0, 0))));
    assert_eq!(reader.recv().await, Some(Ok((1, 1))));
    assert_eq!(reader.release(0), 1);
    drop(stream);
    sleep(Duration::from_secs(10)).await;
    assert!(matches!(seat.state(), SeatState::Lingering { .. }));
    assert_eq!(seat.push(3, 8), Ok(3));

    let (_stream, live, seat) = scene.connect();
    let reader = seat.reader_from(&live, 1).unwrap();
    for expected in 1..4 {
        assert_eq!(reader.recv().await, Some(Ok((expected, expected))));
    }
}

#[tokio::test(start_paused = true)]
async fn the_handler_of_a_replaced_connection_gets_no_message() {
    let scene = Scene::new();
    let (_old_stream, live, seat) = scene.connect();
    let old = seat.reader(&live);
    let handler = tokio::spawn(async move { old.recv().await });
    tokio::task::yield_now().await;
    let (_stream, live, newer) = scene.connect();
    let reader = newer.reader(&live);
    // A producer that has found the older seat.
    assert_eq!(seat.push(0, 8), Ok(0));
    assert_eq!(handler.await.unwrap(), None);
    assert_eq!(reader.recv().await, Some(Ok((0, 0))));
}

/// Its handler was suspended between its registration and the call that takes its reader.
#[tokio::test(start_paused = true)]
async fn a_replaced_connection_that_takes_its_reader_late_ends_no_other() {
    let scene = Scene::new();
    let (_old_stream, old, seat) = scene.connect();
    let (_stream, live, newer) = scene.connect();
    let reader = newer.reader(&live);
    assert_eq!(seat.push(0, 8), Ok(0));
    for late in [seat.reader(&old), seat.reader_from(&old, 0).unwrap()] {
        assert_eq!(late.recv().await, None);
        assert_eq!(late.release(0), 0);
    }
    assert_eq!(reader.recv().await, Some(Ok((0, 0))));
    assert_eq!(reader.release(0), 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_handed_over_is_closed_before_it_is_saved() {
    let scene = Scene::new();
    let (stream, live, seat) = scene.connect();
    let reader = seat.reader(&live);
    drop(stream);
    let ends = scene.linger.hand_over();
    // No hook was called, so a producer that has the seat still pushes.
    assert_eq!(seat.push(0, 8), Ok(0));
    let [end] = &ends[..] else {
        panic!("one session")
    };
    end.value().close();
    assert_eq!(seat.push(1, 8), Err(OutboxError::Closed(1)));
    // All that was accepted can be saved.
    assert_eq!(end.value().len(), 1);
    assert_eq!(reader.try_recv(), Some(Ok((0, 0))));
    assert_eq!(reader.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_closes_its_outbox() {
    let scene = Scene::new();
    let (stream, live, seat) = scene.connect();
    let reader = seat.reader(&live);
    drop(stream);
    assert_eq!(seat.push(0, 8), Ok(0));
    sleep(2 * GRACE).await;
    assert_eq!(seat.push(1, 8), Err(OutboxError::Closed(1)));
    assert_eq!(reader.recv().await, Some(Ok((0, 0))));
    assert_eq!(reader.recv().await, None);

    let (_stream, live, newcomer) = scene.connect();
    assert!(newcomer.reader_from(&live, 1).is_none());
    assert_eq!(newcomer.push(7, 8), Ok(0));
}

/// As a handler that waits for a channel whose sender is in its seat.
#[tokio::test(start_paused = true)]
async fn a_reader_ends_when_its_seat_has_left_the_map() {
    let scene = Scene::new();
    let (_stream, live) = scene.layer.wrap_server(duplex(64).0);
    let outbox = Outbox::default();
    let reader = outbox.reader(&live);
    live.register(&scene.map, "bob", outbox).unwrap();
    let handler = tokio::spawn(async move { reader.recv().await });
    tokio::task::yield_now().await;
    assert!(live.evict(4000, "kicked"));
    assert_eq!(handler.await.unwrap(), None);
}

/// Connections of one client, which is cut off after a few messages each time, and producers that
/// push all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_reconnects_all_the_time_gets_each_message_once() {
    const PRODUCERS: u64 = 4;
    const EACH: u64 = 2_000;

    let limits = OutboxLimits::new(100_000, 1 << 20).unwrap();
    let outbox: Outbox<u64> = Outbox::new(limits);
    let pushed: Arc<Mutex<HashMap<u64, u64>>> = Arc::default();
    let mut producers = JoinSet::new();
    for producer in 0..PRODUCERS {
        let (outbox, pushed) = (outbox.clone(), Arc::clone(&pushed));
        producers.spawn(async move {
            for message in (0..EACH).map(|number| producer * EACH + number) {
                let position = outbox.push(message, 8).unwrap();
                assert_eq!(pushed.lock().unwrap().insert(position, message), None);
                tokio::task::yield_now().await;
            }
        });
    }
    let received: Arc<Mutex<Vec<u64>>> = Arc::default();
    let layer = HeartbeatLayer::default();
    while received.lock().unwrap().len() < (PRODUCERS * EACH) as usize {
        // The lock is the client: it has a message when it has stored it.
        let place = received.lock().unwrap().len() as u64;
        let (_stream, live) = layer.wrap_server(duplex(64).0);
        let reader = outbox.reader_from(&live, place).unwrap();
        let connection = tokio::spawn(store(reader, place, Arc::clone(&received)));
        for _ in 0..fastrand::u32(1..50) {
            tokio::task::yield_now().await;
        }
        connection.abort();
        let _cut_off_or_replaced = connection.await;
    }
    producers.join_all().await;
    let pushed = pushed.lock().unwrap();
    for (position, message) in received.lock().unwrap().iter().enumerate() {
        assert_eq!(pushed[&(position as u64)], *message);
    }
}

/// Stores the messages from `place` on, and acknowledges them.
async fn store(reader: OutboxReader<u64>, place: u64, received: Arc<Mutex<Vec<u64>>>) {
    for expected in place.. {
        let Some(item) = reader.recv().await else {
            return;
        };
        let (position, message) = item.unwrap();
        assert_eq!(position, expected);
        received.lock().unwrap().push(message);
        reader.release(position);
    }
}

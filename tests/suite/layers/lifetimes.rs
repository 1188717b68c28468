//! The end of one connection's lifetime, which moves while it is open, and the warning before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{
    Health, HeartbeatLayer, HeartbeatLayerBuilder, IdleTimeoutLayer, Liveness, PolicyOverride,
    Reason,
};

use crate::script::*;
use crate::support::raw::{Frame, RawClient};
use crate::support::recorder::Recorder;
use crate::support::{echo, in_memory, never, watched_route, within};

const HOUR: Duration = Duration::from_secs(3600);

/// Lateness by the driver's tick: a 32nd of the shortest duration, which is 200 ms here.
const TICK: Duration = Duration::from_millis(8);

/// A heartbeat that sends no ping for an hour.
fn quiet() -> HeartbeatLayerBuilder {
    heartbeat().interval(HOUR).timeout(HOUR)
}

/// A connection under a heartbeat alone, with the layer's default jitter of the lifetime.
struct Scene {
    stream: Stream,
    live: Liveness,
    peer: Peer,
    start: Instant,
    recorder: Recorder,
}

impl Scene {
    fn open() -> Self {
        let recorder = Recorder::new();
        let (stream, live, peer) = wrap_with(quiet().on_evict(recorder.hook()));
        Self {
            stream,
            live,
            peer,
            start: Instant::now(),
            recorder,
        }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + ms(millis)
    }

    /// Asserts that the connection ends as late as this, and up to `earlier` before.
    async fn ends_at(&self, millis: u64, earlier: u64) {
        let event = self.recorder.nth(1).await;
        assert_eq!(event.reason, Reason::MaxLifetime);
        let after = event.at - self.start;
        let due = ms(millis - earlier)..=ms(millis) + TICK;
        assert!(due.contains(&after), "{after:?}, due {due:?}");
        self.recorder.stays_at(1).await;
    }

    /// Counts the calls of a hook that is called this long before the expiry.
    fn warned(&self, before: u64) -> Warnings {
        let (sender, receiver) = mpsc::unbounded_channel();
        let id = self.live.id();
        let hook = move |live: &Liveness| {
            assert_eq!(live.id(), id);
            assert_eq!(live.health(), Health::Live, "called without a lock");
            sender.send(Instant::now()).unwrap();
        };
        self.live.on_expiring(ms(before), hook).unwrap();
        Warnings {
            start: self.start,
            receiver,
        }
    }
}

struct Warnings {
    start: Instant,
    receiver: mpsc::UnboundedReceiver<Instant>,
}

impl Warnings {
    /// Asserts that the next call is at this time.
    async fn at(&mut self, millis: u64) {
        let at = within("a warning", self.receiver.recv()).await.unwrap();
        let after = at - self.start;
        let due = ms(millis)..=ms(millis) + TICK;
        assert!(due.contains(&after), "{after:?}, due {due:?}");
    }

    async fn none_for(&mut self, millis: u64) {
        never("a warning", ms(millis), self.receiver.recv()).await;
    }

    /// Asserts that the hook was dropped without a further call.
    async fn dropped(&mut self) {
        let call = within("the drop of the hook", self.receiver.recv()).await;
        assert_eq!(call, None);
    }
}

// ---- the maximum lifetime -----------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_lifetime_is_counted_from_the_upgrade_and_can_be_extended_and_shortened() {
    let scene = Scene::open();
    sleep(ms(1_000)).await;
    scene.live.set_max_lifetime(ms(10_000)).unwrap();
    sleep(ms(7_000)).await;
    scene.live.set_max_lifetime(HOUR).unwrap();
    sleep(ms(12_000)).await;
    assert_eq!(scene.live.health(), Health::Live, "extended");
    scene.live.set_max_lifetime(ms(30_000)).unwrap();
    scene.ends_at(30_000, 3_000).await;
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_that_is_over_ends_the_connection_now() {
    let scene = Scene::open();
    sleep(ms(5_000)).await;
    scene.live.set_max_lifetime(ms(1_000)).unwrap();
    scene.ends_at(5_000, 0).await;
    // The heartbeat's own frame says that the peer is dead.
    assert!(
        scene.peer.wire().written.starts_with(&[0x88]),
        "a Close frame"
    );
    assert_eq!(scene.peer.wire().written[2..4], 1012_u16.to_be_bytes());
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_can_be_removed() {
    let scene = Scene::open();
    scene.live.set_max_lifetime(ms(1_000)).unwrap();
    scene.live.set_max_lifetime(None).unwrap();
    sleep(HOUR / 2).await;
    assert_eq!(scene.live.health(), Health::Live);
}

#[tokio::test(start_paused = true)]
async fn a_refused_lifetime_changes_nothing() {
    let scene = Scene::open();
    scene.live.set_max_lifetime(ms(1_000)).unwrap();
    for (value, shown) in [
        (
            Duration::ZERO,
            "0ns: must be greater than zero (None turns it off)",
        ),
        (Duration::from_nanos(1), "1ns: must be at least 1ms"),
        (
            Duration::MAX,
            "18446744073709551615.999999999s: must be at most 365 days",
        ),
    ] {
        let error = scene.live.set_max_lifetime(value).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("Liveness::set_max_lifetime: {shown}")
        );
    }
    scene.ends_at(1_000, 100).await;
}

#[tokio::test(start_paused = true)]
async fn after_the_end_nothing_is_set() {
    let Scene { stream, live, .. } = Scene::open();
    drop(stream);
    live.set_max_lifetime(ms(1)).unwrap();
    live.expires_at(Instant::now());
    let called = Arc::new(());
    let kept = Arc::clone(&called);
    live.on_expiring(ms(10), move |_| {
        let _ = &kept;
    })
    .unwrap();
    assert_eq!(Arc::strong_count(&called), 1, "the hook is dropped");
    sleep(ms(1_000)).await;
    assert_eq!(live.evicted().await.reason(), Reason::HandlerDropped);
}

/// Neither makes the connection one of an idle layer.
#[tokio::test(start_paused = true)]
async fn a_connection_with_a_lifetime_alone_has_no_idle_timeout() {
    let scene = Scene::open();
    scene.live.set_max_lifetime(HOUR).unwrap();
    scene.live.expires_at(Instant::now() + HOUR);
    let refused = scene.live.set_idle_timeout(ms(10)).unwrap_err();
    assert!(refused.to_string().contains("needs the layer"), "{refused}");
    sleep(HOUR / 2).await;
    assert_eq!(scene.live.health(), Health::Live, "not idle");
}

// ---- the expiry ---------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn an_expiry_ends_the_connection_without_jitter_and_moves() {
    let scene = Scene::open();
    scene.live.expires_at(scene.at(1_000));
    sleep(ms(900)).await;
    scene.live.expires_at(scene.at(3_000));
    sleep(ms(1_900)).await;
    assert_eq!(scene.live.health(), Health::Live, "refreshed");
    scene.live.expires_at(scene.at(2_900));
    scene.ends_at(2_900, 0).await;
}

#[tokio::test(start_paused = true)]
async fn an_expiry_in_the_past_ends_the_connection_now() {
    let times: [fn(&Liveness); 3] = [
        |live| live.expires_at(Instant::now() - ms(1)),
        |live| live.expires_at(SystemTime::now() - ms(1)),
        |live| live.expires_at(SystemTime::UNIX_EPOCH),
    ];
    for set in times {
        let scene = Scene::open();
        let mut warnings = scene.warned(100);
        sleep(ms(500)).await;
        set(&scene.live);
        scene.ends_at(500, 0).await;
        warnings.dropped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_expiry_can_be_removed_and_a_far_one_never_comes() {
    let scene = Scene::open();
    let mut warnings = scene.warned(100);
    scene.live.expires_at(scene.at(1_000));
    scene.live.expires_at(None);
    warnings.none_for(2_000).await;
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64);
    scene.live.expires_at(last);
    warnings.none_for(HOUR.as_millis() as u64 / 2).await;
    assert_eq!(scene.live.health(), Health::Live);
}

#[tokio::test(start_paused = true)]
async fn a_system_time_expires_when_it_comes() {
    let scene = Scene::open();
    scene.live.expires_at(SystemTime::now() + HOUR);
    scene.live.set_interval(2 * HOUR).unwrap();
    sleep(HOUR - Duration::from_secs(60)).await;
    assert_eq!(scene.live.health(), Health::Live);
    sleep(Duration::from_secs(120)).await;
    let event = scene.recorder.nth(1).await;
    assert_eq!(event.reason, Reason::MaxLifetime);
    let after = event.at - scene.start;
    // The system clock is not paused.
    let apart = after.max(HOUR) - after.min(HOUR);
    assert!(apart < Duration::from_secs(30), "{after:?}");
}

// ---- the warning --------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_hook_is_called_once_before_each_expiry() {
    let scene = Scene::open();
    let mut warnings = scene.warned(100);
    warnings.none_for(500).await;
    scene.live.expires_at(scene.at(1_000));
    warnings.at(900).await;
    // A change of another setting is not a new expiry.
    scene.live.set_timeout(ms(1_000)).unwrap();
    scene.live.set_max_lifetime(HOUR).unwrap();
    warnings.none_for(50).await;
    scene.live.expires_at(scene.at(2_000));
    warnings.at(1_900).await;
    scene.ends_at(2_000, 0).await;
    warnings.dropped().await;
}

#[tokio::test(start_paused = true)]
async fn less_time_than_before_the_expiry_calls_the_hook_now() {
    // Whichever is set first.
    for hook_first in [true, false] {
        let scene = Scene::open();
        sleep(ms(950)).await;
        let mut warnings = if hook_first {
            let warnings = scene.warned(100);
            scene.live.expires_at(scene.at(1_000));
            warnings
        } else {
            scene.live.expires_at(scene.at(1_000));
            scene.warned(100)
        };
        warnings.at(950).await;
        scene.ends_at(1_000, 0).await;
        warnings.dropped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_expiry_that_moves_before_the_warning_takes_the_warning_along() {
    let scene = Scene::open();
    let mut warnings = scene.warned(100);
    scene.live.expires_at(scene.at(1_000));
    sleep(ms(899)).await;
    scene.live.expires_at(scene.at(1_500));
    warnings.at(1_400).await;
    // Nearer, and the same time again: both are new.
    scene.live.expires_at(scene.at(1_450));
    warnings.at(1_400).await;
    scene.live.expires_at(scene.at(1_450));
    warnings.at(1_400).await;
    scene.ends_at(1_450, 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_replaces_another_waits_for_the_next_warning() {
    let scene = Scene::open();
    let mut first = scene.warned(100);
    let mut second = scene.warned(200);
    first.dropped().await;
    scene.live.expires_at(scene.at(1_000));
    second.at(800).await;
    let mut third = scene.warned(100);
    second.dropped().await;
    scene.ends_at(1_000, 0).await;
    third.dropped().await;
}

#[tokio::test(start_paused = true)]
async fn no_hook_is_called_in_the_closing_handshake() {
    let Scene {
        mut stream,
        live,
        start,
        ..
    } = Scene::open();
    let called = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&called);
    live.on_expiring(ms(100), move |_| {
        calls.fetch_add(1, Ordering::SeqCst);
    })
    .unwrap();
    live.expires_at(start + ms(150));
    tokio::io::AsyncWriteExt::write_all(&mut stream, &[0x88, 0x02, 0x03, 0xe8])
        .await
        .unwrap();
    sleep(ms(1_000)).await;
    assert_eq!(called.load(Ordering::SeqCst), 0);
    assert_eq!(live.evicted().await.reason(), Reason::CloseTimeout);
}

#[tokio::test(start_paused = true)]
async fn a_hook_may_refresh_the_expiry_or_end_the_connection() {
    let scene = Scene::open();
    let refreshed = AtomicUsize::new(0);
    let hook = move |live: &Liveness| match refreshed.fetch_add(1, Ordering::SeqCst) {
        0..3 => live.expires_at(Instant::now() + ms(1_100)),
        _ => assert!(live.evict(4001, "enough")),
    };
    scene.live.on_expiring(ms(100), hook).unwrap();
    scene.live.expires_at(scene.at(1_100));
    let event = scene.recorder.nth(1).await;
    assert_eq!(event.reason, Reason::Kicked { code: 4001 });
    let after = event.at - scene.start;
    assert!(
        (ms(4_000)..=ms(4_000) + 4 * TICK).contains(&after),
        "{after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_sets_the_same_expiry_is_called_once() {
    let scene = Scene::open();
    let (calls, expiry) = (Arc::new(AtomicUsize::new(0)), scene.at(1_000));
    let count = Arc::clone(&calls);
    let hook = move |live: &Liveness| {
        count.fetch_add(1, Ordering::SeqCst);
        live.expires_at(expiry);
    };
    scene.live.on_expiring(ms(300), hook).unwrap();
    scene.live.expires_at(expiry);
    scene.ends_at(1_000, 0).await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_leaves_the_connection_as_it_is() {
    let scene = Scene::open();
    scene
        .live
        .on_expiring(ms(100), |_| panic!("a hook"))
        .unwrap();
    scene.live.expires_at(scene.at(1_000));
    sleep(ms(950)).await;
    assert_eq!(scene.live.health(), Health::Live);
    scene.ends_at(1_000, 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_time_before_the_expiry_is_reported_and_drops_the_hook() {
    let scene = Scene::open();
    for value in [Duration::ZERO, Duration::MAX] {
        let error = scene
            .live
            .on_expiring(value, |_| panic!("called"))
            .unwrap_err();
        assert_eq!(error.setter(), "Liveness::on_expiring");
    }
    scene.live.expires_at(scene.at(1_000));
    scene.ends_at(1_000, 0).await;
}

// ---- before the upgrade -------------------------------------------------------------------------

/// Inserts an override into each request.
fn overriding(router: Router, expiry: Duration) -> Router {
    router.layer(from_fn(move |mut request: Request, next: Next| {
        let own = PolicyOverride::builder().expires_at(Instant::now() + expiry);
        request.extensions_mut().insert(own.build().unwrap());
        next.run(request)
    }))
}

async fn connect(app: impl FnOnce(Router) -> Router) -> (RawClient<DuplexStream>, Liveness) {
    let (route, mut handles) = watched_route(echo);
    let app = app(Router::new().route("/ws", route));
    let client = RawClient::handshake(in_memory(app, 64 * 1024), "/ws").await;
    (client, within("the handler", handles.recv()).await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_override_sets_the_expiry_before_the_upgrade() {
    let layers: [fn(Router) -> Router; 3] = [
        |router| router.layer(quiet().build().unwrap()),
        |router| router.layer(IdleTimeoutLayer::new(HOUR)),
        |router| {
            let inner = router.layer(IdleTimeoutLayer::new(HOUR));
            inner.layer(quiet().build().unwrap())
        },
    ];
    for layer in layers {
        let (mut client, live) = connect(|app| overriding(layer(app), ms(5_000))).await;
        let close = client.closed().await;
        assert_eq!(close, Some(Frame::close(1012, "maximum lifetime reached")));
        let end = live.evicted().await;
        let lifetime = end.lifetime();
        assert!((ms(5_000)..=ms(5_256)).contains(&lifetime), "{lifetime:?}");
        assert_eq!(end.reason(), Reason::MaxLifetime);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_set_before_the_upgrade_applies_from_it_on() {
    for limit in [true, false] {
        let (sender, mut warned) = mpsc::unbounded_channel();
        let set = from_fn(move |request: Request, next: Next| {
            let live = request.extensions().get::<Liveness>().unwrap();
            let sender = sender.clone();
            live.on_expiring(ms(1_000), move |_| sender.send(Instant::now()).unwrap())
                .unwrap();
            if limit {
                live.set_max_lifetime(ms(5_000)).unwrap();
            } else {
                live.expires_at(Instant::now() + ms(5_000));
            }
            next.run(request)
        });
        let start = Instant::now();
        let beat: HeartbeatLayer = quiet().build().unwrap();
        let (_client, live) = connect(|app| app.layer(set).layer(beat)).await;
        let end = live.evicted().await;
        assert_eq!(end.reason(), Reason::MaxLifetime);
        let after = start.elapsed();
        assert!((ms(4_500)..=ms(5_000) + TICK).contains(&after), "{after:?}");
        match warned.try_recv() {
            Ok(at) => assert!(!limit && at - start >= ms(4_000)),
            Err(_) => assert!(limit, "there is no warning of the lifetime"),
        }
    }
}

//! Handles that no socket follows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use futures_util::FutureExt;
use tower::ServiceExt;
use tower_ws_liveness::{
    ConnectionId, Evicted, Health, HeartbeatLayer, Liveness, Reason, Seat, SeatState, Stats,
    test_util,
};

use crate::support::{ms, never};

type Users = Arc<Mutex<HashMap<&'static str, Seat<u32>>>>;

#[test]
fn it_has_no_age_and_no_figures() {
    let live = test_util::detached();
    assert!(live.is_detached());
    assert_eq!(live.health(), Health::Opening);
    assert_eq!((live.age(), live.idle_for()), (ms(0), ms(0)));
    assert_eq!((live.rtt(), live.stats()), (None, Stats::default()));
    assert_eq!((live.reason(), live.peer_addr()), (None, None));
    assert_ne!(live.id(), test_util::detached().id());
    let id = ConnectionId::from_u64(7).unwrap();
    assert_eq!(test_util::detached_with_id(id).id(), id);
}

#[tokio::test(start_paused = true)]
async fn handles_of_real_connections_are_not_detached() {
    let (io, _client) = test_util::pair();
    let (_io, live) = HeartbeatLayer::default().wrap_server(io);
    assert!(!live.is_detached());
}

#[tokio::test(start_paused = true)]
async fn an_eviction_removes_its_seats_and_calls_its_hooks() {
    let users = Users::default();
    let live = test_util::detached();
    live.set_session("session");
    live.register(&users, "ann", 7).unwrap();
    assert_eq!(users.lock().unwrap()["ann"].state(), SeatState::Connected);
    let calls = Arc::new(AtomicUsize::new(0));
    let called = Arc::clone(&calls);
    live.on_evict(move |ev| {
        assert_eq!(ev.seats::<&str, u32>().count(), 1);
        assert_eq!(ev.session().as_deref(), Some(&"session"));
        called.fetch_add(1, Ordering::SeqCst);
    });
    let ev = live.evicted();
    assert!(live.evict_as("rude", 4000, "kicked"));
    let ev = ev.await;
    assert_eq!(
        (ev.reason(), ev.label()),
        (Reason::Kicked { code: 4000 }, "rude")
    );
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert!(users.lock().unwrap().is_empty());
    assert_eq!(live.health(), Health::Ended);
    live.closed()
        .now_or_never()
        .expect("no transport to wait for");
    assert!(!live.evict(4000, "again"));
}

#[tokio::test(start_paused = true)]
async fn a_newer_connection_replaces_it() {
    let users = Users::default();
    let [older, newer] = [test_util::detached(), test_util::detached()];
    older.register(&users, "ann", 1).unwrap();
    newer.register(&users, "ann", 2).unwrap();
    assert_eq!(older.reason(), Some(Reason::Replaced));
    assert_eq!(users.lock().unwrap()["ann"].id(), newer.id());
}

#[tokio::test(start_paused = true)]
async fn a_ping_waits_for_the_eviction() {
    let live = test_util::detached();
    never("a pong", ms(3_600_000), live.ping()).await;
    let (pinged, evicted) = tokio::join!(live.ping(), async { live.evict(4000, "") });
    assert!(evicted);
    let reason = pinged.as_ref().map_err(Evicted::reason);
    assert_eq!(reason, Err(Reason::Kicked { code: 4000 }));
}

/// Takes the handle as an extractor.
async fn id(live: Liveness) -> String {
    assert!(live.is_detached());
    live.id().to_string()
}

#[tokio::test]
async fn a_handler_extracts_it_with_and_without_a_layer() {
    let heartbeat = HeartbeatLayer::default();
    let registry = heartbeat.registry();
    let bare: Router = Router::new().route("/", get(id));
    for app in [bare.clone(), bare.layer(heartbeat)] {
        let live = test_util::detached();
        let request = Request::get("/").extension(live.clone());
        let request = request.body(Body::empty()).unwrap();
        let response = app.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = axum::body::to_bytes(response.into_body(), 64)
            .await
            .unwrap();
        assert_eq!(body, live.id().to_string());
        assert_eq!(live.reason(), None);
    }
    assert_eq!(registry.opened_total(), 0);
}

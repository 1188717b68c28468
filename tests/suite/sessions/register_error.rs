//! The error of a registration: its value, and the response that a handler returns for it.

use std::sync::Arc;

use tower_ws_liveness::{RegisterError, ReplacePolicy};

use super::maps::{Census, Map, Session, with_every_map};
use crate::script::wrapped;

with_every_map![the_value_is_given_back];

fn alice() -> String {
    "alice".to_owned()
}

async fn the_value_is_given_back<M: Map>() {
    let (map, census) = (Arc::new(M::default()), Census::default());
    let (stream, live, _) = wrapped();
    let (_other_stream, other, _) = wrapped();
    live.register(&map, alice(), census.session("seated"))
        .unwrap();
    let policy = ReplacePolicy::oldest_wins();
    let refused = other.register_with(&map, alice(), census.session("refused"), &policy);
    drop(stream);
    let ended = live.register(&map, alice(), census.session("ended"));
    for (error, name) in [(refused, "refused"), (ended, "ended")] {
        let value: Arc<Session> = error.unwrap_err().into_value();
        assert_eq!(Arc::into_inner(value).unwrap().name, name);
    }
    assert_eq!(census.dropped(), census.created());
}

#[cfg(feature = "axum")]
#[tokio::test(start_paused = true)]
async fn the_response_is_409_or_500_and_names_no_connection() {
    use axum::body::to_bytes;
    use axum::response::IntoResponse;

    use super::maps::MutexMap;

    let (map, census) = (Arc::new(MutexMap::default()), Census::default());
    let (stream, live, _) = wrapped();
    let (_other_stream, other, _) = wrapped();
    live.register(&map, alice(), census.session("a")).unwrap();
    let policy = ReplacePolicy::oldest_wins();
    let occupied = other.register_with(&map, alice(), census.session("b"), &policy);
    let occupied: RegisterError<Session> = occupied.unwrap_err();
    drop(stream);
    let ended = live
        .register(&map, alice(), census.session("c"))
        .unwrap_err();
    let zero_max = RegisterError::ZeroMax {
        value: Arc::new(census.session("d")),
    };
    for (error, status, text) in [
        (occupied, 409, "another connection has the seat"),
        (ended, 409, "the connection has ended"),
        (zero_max, 500, "the server permits no connection"),
    ] {
        let response = error.into_response();
        assert_eq!(response.status().as_u16(), status);
        let body = to_bytes(response.into_body(), 1024).await.unwrap();
        assert_eq!(body, text);
    }
    assert_eq!(census.dropped(), 4);
}

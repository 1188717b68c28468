//! Runs the scenes of `src/socketio/`.

use tower_ws_liveness_compat::socketio;

#[tokio::test]
async fn a_dead_peer_is_evicted_after_polling() {
    socketio::a_dead_peer_is_evicted_after_polling().await;
}

#[tokio::test]
async fn a_session_is_kicked_after_polling() {
    socketio::a_session_is_kicked_after_polling().await;
}

#[tokio::test]
async fn an_idle_session_is_evicted_between_rare_engine_io_pings() {
    socketio::an_idle_session_is_evicted_between_rare_engine_io_pings().await;
}

#[tokio::test]
async fn engine_io_closes_a_peer_that_ignores_its_pings() {
    socketio::engine_io_closes_a_peer_that_ignores_its_pings().await;
}

#[tokio::test]
async fn only_the_layers_write_timeout_ends_a_stuck_write() {
    socketio::only_the_layers_write_timeout_ends_a_stuck_write().await;
}

#[tokio::test]
async fn layers_inside_of_socketioxide_have_no_effect() {
    socketio::layers_inside_of_socketioxide_have_no_effect().await;
}

#[tokio::test]
async fn handlers_find_the_handle_unless_polling_came_first() {
    socketio::handlers_find_the_handle_unless_polling_came_first().await;
}

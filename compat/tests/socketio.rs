//! Socket.IO behind the layers: see `src/socketio/`.

use tower_ws_liveness_compat::socketio;

#[tokio::test]
async fn dies_after_polling() {
    socketio::dies_after_polling().await;
}

#[tokio::test]
async fn kicked_after_polling() {
    socketio::kicked_after_polling().await;
}

#[tokio::test]
async fn idles_between_rare_pings() {
    socketio::idles_between_rare_pings().await;
}

#[tokio::test]
async fn may_lose_patience_first() {
    socketio::may_lose_patience_first().await;
}

#[tokio::test]
async fn cannot_end_a_stuck_write() {
    socketio::cannot_end_a_stuck_write().await;
}

#[tokio::test]
async fn works_without_layers_inside() {
    socketio::works_without_layers_inside().await;
}

#[tokio::test]
async fn hands_the_request_to_handlers() {
    socketio::hands_the_request_to_handlers().await;
}

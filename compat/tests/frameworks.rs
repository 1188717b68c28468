//! Runs the scenes of `src/frameworks.rs`.

use tower_ws_liveness_compat::frameworks;

#[tokio::test]
async fn a_full_registry_responds_503_on_every_stack() {
    frameworks::a_full_registry_responds_503_on_every_stack().await;
}

#[tokio::test]
async fn handlers_of_every_framework_find_the_handle() {
    frameworks::handlers_of_every_framework_find_the_handle().await;
}

#[tokio::test]
async fn poems_tower_adapter_drops_the_upgrade() {
    frameworks::poems_tower_adapter_drops_the_upgrade().await;
}

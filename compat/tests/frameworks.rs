//! Frameworks around the layers: see `src/frameworks.rs`.

use tower_ws_liveness_compat::frameworks;

#[tokio::test]
async fn every_stack_refuses_what_is_too_many() {
    frameworks::every_stack_refuses_what_is_too_many().await;
}

#[tokio::test]
async fn every_framework_finds_the_handle() {
    frameworks::every_framework_finds_the_handle().await;
}

#[tokio::test]
async fn poem_keeps_the_upgrade_to_itself() {
    frameworks::poem_keeps_the_upgrade_to_itself().await;
}

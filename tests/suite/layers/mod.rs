//! The layers in stacks with other layers, and their configuration.

mod bodies;
mod builders;
mod http2;
mod lifetimes;
mod overrides;
mod routing;
mod stack;
mod stacking;
mod tower;
mod tower_http;

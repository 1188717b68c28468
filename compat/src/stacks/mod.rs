//! The stacks under test, one file for each library.

pub(crate) mod axum;
pub(crate) mod axum07;
pub(crate) mod axum_server;
mod axum_tws;
mod fastwebsockets;
mod fastwebsockets_split;
mod hyper;
mod hyper_tungstenite;
pub(crate) mod jsonrpsee;
pub(crate) mod poem;
pub(crate) mod salvo;
pub(crate) mod socketioxide;
mod sockudo_ws;
pub(crate) mod tokio_tungstenite;
pub(crate) mod warp;
mod yawc;

use crate::stack::Stack;

/// In the order of the table.
pub(crate) const ALL: &[Stack] = &[
    axum::STACK,
    axum07::STACK,
    axum_server::STACK,
    axum_tws::STACK,
    yawc::STACK,
    sockudo_ws::STACK,
    fastwebsockets::STACK,
    fastwebsockets_split::STACK,
    hyper::ALONE,
    hyper::AUTO,
    hyper_tungstenite::STACK,
    tokio_tungstenite::STACK,
    warp::STACK,
    salvo::STACK,
    poem::STACK,
    socketioxide::STACK,
    jsonrpsee::STACK,
];

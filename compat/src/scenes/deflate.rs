//! Scene: the layers do not affect permessage-deflate (RFC 7692).

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use http::header::SEC_WEBSOCKET_EXTENSIONS;

use super::Cell;
use crate::client::Client;
use crate::message_client::MessageClient;
use crate::protocol::Protocol;
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::stack::{Dialect, Feature, Of, Stack};
use crate::support::ms;
use crate::support::raw::{CONTINUATION, Frame, TEXT};

/// Without context takeover, a message can be decompressed without the ones before it.
const OFFER: &str = "permessage-deflate; client_no_context_takeover; server_no_context_takeover";

/// RSV1 marks a compressed message (RFC 7692 section 6).
const RSV1: u8 = 0b100;

pub(super) async fn run(stack: Stack, protocol: Protocol) -> Cell {
    let heartbeat = long_heartbeat().interval(ms(5));
    let rig = Rig::start(stack, protocol, heartbeat, long_idle()).await;
    let client = rig.try_open(Some(OFFER)).await.expect("an upgrade");
    let bare = Rig::bare(stack, protocol).await;
    let bare_client = bare.try_open(Some(OFFER)).await.expect("an upgrade");
    let agreed = extensions(&client);
    assert_eq!(
        agreed,
        extensions(&bare_client),
        "with the layers and without them"
    );
    let live = rig.handle().await;

    let limit = stack.limit(Of::Feature(Feature::Deflate));
    let Some(agreed) = agreed else {
        return Cell::Not(limit.expect("the library agreed to no extension"));
    };
    assert_eq!(limit, None, "the library agreed to {agreed}");
    assert!(agreed.starts_with("permessage-deflate"), "{agreed}");
    assert_eq!(
        stack.dialect,
        Dialect::Plain,
        "the scene supports no other dialect"
    );
    let mut client = MessageClient::connect(stack.dialect, client).await;
    for round in 0..20_u32 {
        let text = format!("round {round}: {}", "again and ".repeat(500));
        let compressed = compressed(text.as_bytes());
        let (first, rest) = compressed.split_at(compressed.len() / 2);
        let first = Frame::new(TEXT, first).with_rsv(RSV1).unfinished();
        client.send(&first).await;
        // A ping and its pong are sent between the fragments. Control frames are never compressed
        // (RFC 7692 section 6.1).
        let frames = &mut client.socket.frames;
        frames.live_until_ping(frames.pings + 1).await;
        client.send(&Frame::new(CONTINUATION, rest)).await;
        let mut echoed = client.receive().await;
        let (mut payload, rsv) = (echoed.payload, echoed.rsv);
        while !echoed.fin {
            echoed = client.receive().await;
            payload.extend_from_slice(&echoed.payload);
        }
        assert_eq!(rsv, RSV1, "the echo is compressed too");
        assert_eq!(String::from_utf8_lossy(&inflated(&payload)), text);
    }
    // The layer recognized the pong before the second fragment of each message.
    let stats = live.stats();
    assert!(stats.pongs_received() >= 20, "{stats:?}");
    Cell::Works
}

fn extensions(client: &Client) -> Option<String> {
    let agreed = client.headers.get(SEC_WEBSOCKET_EXTENSIONS)?;
    Some(agreed.to_str().expect("ASCII").to_owned())
}

/// Compresses a message (RFC 7692 section 7.2.1).
fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("a write to a vector");
    encoder.flush().expect("a write to a vector");
    let mut compressed = encoder.get_ref().clone();
    assert!(compressed.ends_with(&[0, 0, 0xff, 0xff]));
    compressed.truncate(compressed.len() - 4);
    compressed
}

/// Decompresses a message (RFC 7692 section 7.2.2).
fn inflated(payload: &[u8]) -> Vec<u8> {
    // An empty final block ends the stream for the decoder.
    let tail = [0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff];
    let mut inflated = Vec::new();
    let mut decoder = DeflateDecoder::new(payload.chain(&tail[..]));
    decoder.read_to_end(&mut inflated).expect("deflate");
    inflated
}

//! A registry with connections that a drain can end, and what their peers are told.
#![allow(dead_code)] // every test binary uses its own part of this

use std::collections::HashSet;
use std::time::Duration;

use tower_ws_liveness::{
    Drain, DrainReport, HeartbeatLayer, HeartbeatLayerBuilder, Liveness, Reason, Registry,
};

use crate::script::*;
use crate::support::recorder::Recorder;

pub(crate) const KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// The close timeout of the layer, far beyond any deadline here unless a test says otherwise.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(50);

/// What deadlines of the layer are rounded up to.
pub(crate) const TICK: Duration = Duration::from_millis(256);

/// A server's connections under one registry, each with its peer.
pub(crate) struct Room {
    pub(crate) layer: HeartbeatLayer,
    pub(crate) registry: Registry,
    pub(crate) recorder: Recorder,
    pub(crate) connections: Vec<(Stream, Liveness, Peer)>,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self::with(
            HeartbeatLayer::builder()
                .close_timeout(CLOSE_TIMEOUT)
                .takes_any_bytes(true),
        )
    }

    pub(crate) fn with(builder: HeartbeatLayerBuilder) -> Self {
        let recorder = Recorder::new();
        let registry = Registry::new();
        let layer = builder
            .interval(ms(3_600_000))
            .timeout(ms(3_600_000))
            .registry(registry.clone())
            .on_evict(recorder.hook())
            .build()
            .unwrap();
        Self {
            layer,
            registry,
            recorder,
            connections: Vec::new(),
        }
    }

    /// One whose peer never says anything.
    pub(crate) fn join(&mut self) -> &mut (Stream, Liveness, Peer) {
        let (io, peer) = script();
        let (stream, live) = self.layer.wrap_server(io);
        self.connections.push((stream, live, peer));
        self.connections.last_mut().unwrap()
    }

    /// One whose peer's Close is on its way already, though nobody has read it yet.
    pub(crate) fn join_polite(&mut self) {
        let (.., peer) = self.join();
        peer.send(&peer_close());
    }

    pub(crate) fn polite(count: usize) -> Self {
        let mut room = Self::new();
        (0..count).for_each(|_| room.join_polite());
        room
    }

    pub(crate) fn silent(count: usize) -> Self {
        let mut room = Self::new();
        for _ in 0..count {
            room.join();
        }
        room
    }

    /// Everybody has ended, was told so once, and for this reason; nothing of theirs is left.
    #[track_caller]
    pub(crate) fn assert_over(&self, reason: Reason) {
        let events = self.recorder.all();
        let ids: HashSet<_> = events.iter().map(|event| event.id).collect();
        assert_eq!(ids.len(), events.len(), "told twice");
        assert_eq!(events.len(), self.connections.len());
        for event in &events {
            assert_eq!(event.reason, reason, "{event:?}");
        }
        for (_, live, peer) in &self.connections {
            assert!(peer.is_dropped(), "{live:?}");
        }
        assert!(self.registry.is_empty());
    }
}

pub(crate) fn peer_close() -> Vec<u8> {
    frame(0x80 | CLOSE, KEY, &1_001_u16.to_be_bytes())
}

pub(crate) fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

/// Without pauses, and with time enough.
pub(crate) fn at_once() -> Drain {
    Drain {
        pause: Duration::ZERO,
        ..Drain::default()
    }
}

pub(crate) fn counts(report: DrainReport) -> (usize, usize, usize) {
    let (clean, cut, already_gone) = (report.clean(), report.cut(), report.already_gone());
    assert_eq!(report.total(), clean + cut + already_gone);
    (clean, cut, already_gone)
}

/// The codes of the Close frames that the peer got.
pub(crate) fn close_codes(peer: &Peer) -> Vec<u16> {
    let frames = peer.frames().into_iter();
    let closes = frames.filter(|frame| frame.opcode() == CLOSE);
    closes
        .map(|frame| u16::from_be_bytes(frame.payload[..2].try_into().unwrap()))
        .collect()
}

//! A registry with scripted connections for the tests of drains.

use std::collections::HashSet;
use std::time::Duration;

use tower_ws_liveness::{
    Drain, DrainReport, HeartbeatLayer, HeartbeatLayerBuilder, Liveness, Reason, Registry,
};

use crate::script::*;
use crate::support::recorder::Recorder;

pub(crate) const KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// The close timeout of the layer, far beyond the deadlines of most tests.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(50);

/// The granularity to which deadlines of the layer are rounded up.
pub(crate) const TICK: Duration = Duration::from_millis(256);

/// Server connections in one registry, each with its scripted peer.
pub(crate) struct DrainScene {
    pub(crate) layer: HeartbeatLayer,
    pub(crate) registry: Registry,
    pub(crate) recorder: Recorder,
    pub(crate) connections: Vec<(Stream, Liveness, Peer)>,
}

impl DrainScene {
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

    /// Opens a connection whose peer never sends anything.
    pub(crate) fn open_silent(&mut self) -> &mut (Stream, Liveness, Peer) {
        let (io, peer) = script();
        let (stream, live) = self.layer.wrap_server(io);
        self.connections.push((stream, live, peer));
        self.connections.last_mut().unwrap()
    }

    /// Opens a connection whose peer has already sent its Close frame, which is unread.
    pub(crate) fn open_closing(&mut self) {
        let (.., peer) = self.open_silent();
        peer.send(&peer_close());
    }

    pub(crate) fn with_closing_peers(count: usize) -> Self {
        let mut scene = Self::new();
        (0..count).for_each(|_| scene.open_closing());
        scene
    }

    pub(crate) fn with_silent_peers(count: usize) -> Self {
        let mut scene = Self::new();
        for _ in 0..count {
            scene.open_silent();
        }
        scene
    }

    /// Asserts that every connection was evicted once, with this reason, and that its transport is
    /// dropped.
    #[track_caller]
    pub(crate) fn assert_all_evicted(&self, reason: Reason) {
        let events = self.recorder.all();
        let ids: HashSet<_> = events.iter().map(|event| event.id).collect();
        assert_eq!(ids.len(), events.len(), "evicted twice");
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

/// A drain without pauses and with the default deadline.
pub(crate) fn without_pauses() -> Drain {
    Drain::default().pause(Duration::ZERO)
}

pub(crate) fn counts(report: DrainReport) -> (usize, usize, usize) {
    let (clean, cut, already_gone) = (report.clean(), report.cut(), report.already_gone());
    assert_eq!(report.total(), clean + cut + already_gone);
    (clean, cut, already_gone)
}

/// The codes of the Close frames that the peer received.
pub(crate) fn close_codes(peer: &Peer) -> Vec<u16> {
    let frames = peer.frames().into_iter();
    let closes = frames.filter(|frame| frame.opcode() == CLOSE);
    closes
        .map(|frame| u16::from_be_bytes(frame.payload[..2].try_into().unwrap()))
        .collect()
}

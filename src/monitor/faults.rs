//! The faults of a connection: refused writes, stalls of the handler, errors, a flood.

use super::blocked_write::BlockedWrite;
use super::control_rate::ControlRate;
use super::earlier_views::EarlierViews;
use super::history::History;
use super::moment::Moment;
use super::stats::FaultCounters;

/// What belongs to faults, past ones and those that may become a verdict.
///
/// Boxed, since most connections never have one. The box is made for the first and then kept: a
/// transport may refuse writes often, and nothing allocates per frame.
#[derive(Clone, Debug)]
pub(super) struct Faults {
    /// The write or flush that the transport refuses.
    pub(super) blocked: Option<BlockedWrite>,
    pub(super) earlier_views: EarlierViews,
    /// When a late verdict on the handler was last postponed. A stall counted from that time is not
    /// postponed again.
    pub(super) handler_verdict_postponed_at: Option<Moment>,
    pub(super) control_rate: ControlRate,
    pub(super) history: History,
    pub(super) counters: FaultCounters,
}

impl Faults {
    /// The faults of a connection that was opened at this moment and had none.
    pub(super) fn new(opened: Moment) -> Self {
        Self {
            blocked: None,
            earlier_views: EarlierViews::default(),
            handler_verdict_postponed_at: None,
            control_rate: ControlRate::new(opened),
            history: History::default(),
            counters: FaultCounters::default(),
        }
    }

    /// The timeout of a ping expired.
    pub(super) fn on_missed_ping(&mut self, now: Moment) {
        self.counters.missed_pings = self.counters.missed_pings.saturating_add(1);
        self.history.error(now);
    }

    /// The round trip of a ping was long.
    pub(super) fn on_slow_pong(&mut self, now: Moment) {
        self.counters.slow_pongs = self.counters.slow_pongs.saturating_add(1);
        self.history.error(now);
    }

    /// The transport accepts bytes again, after a long time.
    pub(super) fn on_write_stall(&mut self, now: Moment) {
        self.counters.write_stalls = self.counters.write_stalls.saturating_add(1);
        self.history.error(now);
    }
}

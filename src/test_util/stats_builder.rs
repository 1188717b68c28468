//! [`StatsBuilder`]: statistics for evictions and changes of health.

use std::time::Duration;

use crate::monitor::Stats;

/// Returns a builder of [`Stats`] whose counters are all 0, and without figures of the kernel.
///
/// ```
/// use tower_ws_liveness::test_util;
///
/// let stats = test_util::stats().messages_sent(3).bytes_sent(40).build();
/// assert_eq!((stats.messages_sent(), stats.bytes_sent()), (3, 40));
/// assert_eq!(stats.unacknowledged_bytes(), None);
/// ```
pub fn stats() -> StatsBuilder {
    StatsBuilder(Stats::default())
}

/// Builds [`Stats`]. Made by [`stats`]. Each setter has the name of the accessor.
///
/// ```
/// use tower_ws_liveness::test_util::{self, StatsBuilder};
///
/// /// A client that has missed pings.
/// fn unreliable() -> StatsBuilder {
///     test_util::stats().pings_sent(10).pongs_received(8).missed_pings(2)
/// }
///
/// assert_eq!(unreliable().slow_pongs(1).build().missed_pings(), 2);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct StatsBuilder(Stats);

/// Defines one setter per counter.
macro_rules! setters {
    ($($part:ident.$name:ident: $type:ty),+ $(,)?) => {
        $(
            #[doc = concat!("Sets [`Stats::", stringify!($name), "`].")]
            pub fn $name(mut self, count: $type) -> Self {
                self.0.$part.$name = count;
                self
            }
        )+
    };
}

impl StatsBuilder {
    setters! {
        counters.bytes_received: u64,
        counters.bytes_sent: u64,
        counters.messages_received: u64,
        counters.messages_sent: u64,
        pings.pings_sent: u32,
        pings.pongs_received: u32,
        faults.missed_pings: u32,
        faults.slow_pongs: u32,
        faults.write_stalls: u32,
    }

    /// Sets [`Stats::unacknowledged_bytes`].
    pub fn unacknowledged_bytes(mut self, bytes: u32) -> Self {
        self.0.unacknowledged = Some(bytes);
        self
    }

    /// Sets [`Stats::kernel_rtt`]. Whole microseconds, at most 71 minutes.
    pub fn kernel_rtt(mut self, rtt: Duration) -> Self {
        let micros = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        self.0.kernel_rtt_micros = Some(micros);
        self
    }

    /// Returns the statistics.
    #[must_use]
    pub fn build(self) -> Stats {
        self.0
    }
}

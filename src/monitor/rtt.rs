//! Round-trip times, measured with our own pings.

use std::time::Duration;

/// Round-trip time of a connection, measured with the layer's own pings.
///
/// A sample is the time from when the ping was handed to the transport until its pong was read. A
/// pong gives no sample if it may have waited unread in the kernel because the handler was busy, if
/// it arrived after other bytes, since the layer may not have polled for it in time, or if its ping
/// is older than the last four. A sample includes delays that the layer cannot separate: the time
/// that bytes before the ping take on a slow link, and pauses of the server's own process.
///
/// ```
/// use std::time::Duration;
///
/// use futures_util::StreamExt;
/// use tokio::{io::duplex, time::sleep};
/// use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
/// use tower_ws_liveness::HeartbeatLayer;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (io, peer) = duplex(1024);
/// let (_io, live) = HeartbeatLayer::default().wrap_server(io);
/// tokio::spawn(async move {
///     let mut client = WebSocketStream::from_raw_socket(peer, Role::Client, None).await;
///     sleep(Duration::from_millis(80)).await;
///     while client.next().await.is_some() {} // answers pings
/// });
/// assert_eq!(live.rtt(), None);
/// live.ping().await?;
/// let rtt = live.rtt().expect("a sample");
/// assert!(rtt.last() >= Duration::from_millis(80));
/// assert_eq!(rtt.smoothed(), rtt.min()); // of one sample
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtt {
    last: Duration,
    smoothed: Duration,
    min: Duration,
}

impl Rtt {
    /// The most recent sample.
    #[must_use]
    pub fn last(&self) -> Duration {
        self.last
    }

    /// The exponentially weighted average of all samples, with the gain of 1/8 that RFC 6298
    /// section 2 gives TCP's own estimate.
    #[must_use]
    pub fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// The smallest sample of the connection.
    #[must_use]
    pub fn min(&self) -> Duration {
        self.min
    }
}

/// The accumulator for [`Rtt`]: microseconds in 32 bits each, which saturate at 71 minutes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RttEstimate {
    last: u32,
    smoothed: u32,
    /// [`NO_SAMPLE`] before the first sample.
    min: u32,
}

/// More than any sample.
const NO_SAMPLE: u32 = u32::MAX;

impl Default for RttEstimate {
    fn default() -> Self {
        Self {
            last: 0,
            smoothed: 0,
            min: NO_SAMPLE,
        }
    }
}

impl RttEstimate {
    pub(crate) fn sample(&mut self, rtt: Duration) {
        let micros = u32::try_from(rtt.as_micros()).unwrap_or(NO_SAMPLE);
        let micros = micros.min(NO_SAMPLE - 1);
        self.last = micros;
        self.smoothed = match self.min {
            NO_SAMPLE => micros,
            _ => {
                let weighted = (u64::from(self.smoothed) * 7 + u64::from(micros)) / 8;
                u32::try_from(weighted).unwrap_or(u32::MAX)
            }
        };
        self.min = self.min.min(micros);
    }

    pub(crate) fn get(&self) -> Option<Rtt> {
        let micros = |value: u32| Duration::from_micros(u64::from(value));
        (self.min != NO_SAMPLE).then(|| Rtt {
            last: micros(self.last),
            smoothed: micros(self.smoothed),
            min: micros(self.min),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sample_sets_last_smoothed_and_min() {
        let mut estimate = RttEstimate::default();
        assert_eq!(estimate.get(), None);
        estimate.sample(Duration::from_millis(80));
        let rtt = estimate.get().unwrap();
        assert_eq!(rtt.last(), Duration::from_millis(80));
        assert_eq!(rtt.smoothed(), Duration::from_millis(80));
        assert_eq!(rtt.min(), Duration::from_millis(80));
    }

    #[test]
    fn later_samples_move_the_average_by_an_eighth() {
        let mut estimate = RttEstimate::default();
        estimate.sample(Duration::from_millis(80));
        estimate.sample(Duration::from_millis(160));
        let rtt = estimate.get().unwrap();
        assert_eq!(rtt.last(), Duration::from_millis(160));
        assert_eq!(rtt.smoothed(), Duration::from_millis(90));
        assert_eq!(rtt.min(), Duration::from_millis(80));
        estimate.sample(Duration::from_millis(10));
        assert_eq!(estimate.get().unwrap().min(), Duration::from_millis(10));
    }

    #[test]
    fn a_sample_beyond_the_range_saturates() {
        let mut estimate = RttEstimate::default();
        estimate.sample(Duration::MAX);
        estimate.sample(Duration::MAX);
        assert_eq!(
            estimate.get().unwrap().smoothed(),
            Duration::from_micros(u64::from(NO_SAMPLE - 1))
        );
    }
}

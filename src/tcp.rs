//! [`TcpOptions`]: what the kernel can do for liveness, derived from the heartbeat's times.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::monitor::HeartbeatPolicy;

/// Unsent bytes that the kernel may hold: enough to keep a fast link busy from one wake-up to the
/// next, little enough for a ping to pass soon.
const UNSENT_LIMIT: u32 = 16 * 1024;

/// Retransmissions begin after 0.2 s and double their distance. Less time than this, and a few lost
/// packets would look like a lost peer.
const MIN_USER_TIMEOUT: Duration = Duration::from_secs(5);

/// The kernel takes a signed number of milliseconds.
const MAX_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// Linux refuses more, for both times of keepalive.
const MAX_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// A probe that is lost is not sent again, as a ping's bytes are: one or two say nothing.
const MIN_PROBES: u32 = 3;

/// Linux refuses more.
const MAX_PROBES: u32 = 127;

/// Options of a TCP socket that make liveness better than it can be from above TCP.
///
/// [`HeartbeatLayer::tcp_options`](crate::HeartbeatLayer::tcp_options) derives them from the layer's
/// times. `TcpOptions::default()` are those of the layer's defaults. Each can be changed, or left
/// off: `None` leaves what the socket has.
///
/// Where the upgraded stream is a plain tokio `TcpStream`, as behind `axum::serve` and hyper's own
/// servers, the layer applies them by itself, unless
/// [`tune_tcp`](crate::HeartbeatLayerBuilder::tune_tcp) is off. Elsewhere, apply them to the socket
/// before it vanishes in something else: before the TLS handshake, or as axum accepts it, so that
/// they hold for HTTP/2 and during the opening handshake too:
///
/// ```
/// use axum::{Router, serve::ListenerExt};
/// use tokio::net::TcpListener;
/// use tower_ws_liveness::HeartbeatLayer;
///
/// # async fn serve() -> std::io::Result<()> {
/// let heartbeat = HeartbeatLayer::default();
/// let options = heartbeat.tcp_options();
/// let listener = TcpListener::bind("127.0.0.1:3000").await?;
/// // A socket that refuses an option works all the same.
/// let listener = listener.tap_io(move |io| {
///     let _ = options.apply(io);
/// });
/// let app: Router = Router::new().layer(heartbeat);
/// axum::serve(listener, app).await
/// # }
/// ```
///
/// Options that are applied like this do not follow when one connection is given other times (see
/// [`PolicyOverride`](crate::PolicyOverride)). If some are given longer ones, set `user_timeout` above
/// the longest, or to `None`: the kernel would end them before the layer does.
///
/// # Platforms
///
/// What a platform lacks is skipped without an error:
///
/// | option | where |
/// |---|---|
/// | `unsent_limit` | Linux, Android |
/// | `user_timeout` | Linux, Android, Fuchsia |
/// | `keepalive`: on, and `idle` | everywhere; OpenBSD and Haiku know no idle time of one socket |
/// | `keepalive`: `interval` | Linux, Android, Apple's, FreeBSD, NetBSD, DragonFly, illumos, Fuchsia, Windows |
/// | `keepalive`: `retries` | the same without Windows |
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpOptions {
    /// How many bytes the kernel may hold that it has not sent yet (`TCP_NOTSENT_LOWAT`).
    /// Default: 16 KiB.
    ///
    /// Without a limit the kernel takes megabytes from the handler at once, and a ping waits behind
    /// them: over a slow link its round trip is that of the whole queue, and may well take longer
    /// than `timeout`. With it, a ping waits behind so much at most, and behind what is on its way
    /// to the peer. That a writer is held back is seen sooner too. The kernel counts whole
    /// segments, so it takes somewhat more.
    ///
    /// It does not slow down a transfer: what is sent and unacknowledged is not counted.
    pub unsent_limit: Option<u32>,

    /// How long bytes may stay unacknowledged, or wait for a peer that takes none, before the kernel
    /// gives the connection up (`TCP_USER_TIMEOUT`). In whole milliseconds, at most 24 days. The
    /// default is 60 s, by the rule below from the layer's defaults.
    ///
    /// The connection then ends with
    /// [`Reason::Transport(TimedOut)`](crate::Reason::Transport). It decides where nobody else can:
    /// the handler does not read, all buffers up to the peer's are full, and the peer dies in
    /// silence; or the handler leaves a frame half-written, so that no ping can be sent. For
    /// keepalive it takes the place of `retries`.
    ///
    /// Linux also gives up a peer that is alive, acknowledges every probe, and yet takes no byte of
    /// those that wait for it for so long (its window is zero). So the derived value is later than
    /// every verdict of the layer: the largest of `interval + timeout × missed_pings`, of
    /// `write_timeout`, and of `interval + handler_stall_timeout` if that is set; and then another
    /// `timeout`, for the rounding of the layer's timer and for what was under way when the peer
    /// was last heard. It is at least 5 s, so that TCP has time for some retransmissions. It is off
    /// if `write_timeout` is `None`, since a peer that takes nothing for as long as it likes is then
    /// wanted, and if it would be more than the kernel's 24 days.
    pub user_timeout: Option<Duration>,

    /// Probes of a silent connection, by the kernel (`SO_KEEPALIVE`). Default: as
    /// [`TcpKeepalive`] says.
    ///
    /// The peer's kernel answers them, not its program: they find a peer that is gone even where no
    /// ping can be sent, and nothing else.
    pub keepalive: Option<TcpKeepalive>,
}

/// When the kernel probes a silent connection, and when it gives it up.
///
/// Whole seconds: fractions are cut off. Linux refuses times outside of 1 s to 32,767 s, and
/// retries outside of 1 to 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpKeepalive {
    /// Silence before the first probe (`TCP_KEEPIDLE`). Derived: the layer's `interval`.
    pub idle: Duration,
    /// From probe to probe (`TCP_KEEPINTVL`). Derived: the layer's `timeout`.
    pub interval: Duration,
    /// Unanswered probes until the peer is given up (`TCP_KEEPCNT`). Derived: the layer's
    /// `missed_pings`, but at least 3, for TCP does not repeat a probe that is lost. Where
    /// `user_timeout` is set, Linux goes by that instead.
    pub retries: u32,
}

impl TcpOptions {
    /// Sets these options on a socket.
    ///
    /// # Errors
    ///
    /// What the system said to the first option that it refused. The others are set nevertheless
    /// (those of keepalive count as one).
    pub fn apply(&self, socket: &TcpStream) -> io::Result<()> {
        let socket = SockRef::from(socket);
        let unsent_limit = self
            .unsent_limit
            .map_or(Ok(()), |limit| set_unsent_limit(&socket, limit));
        let user_timeout = match self.user_timeout {
            Some(timeout) => set_user_timeout(&socket, Some(timeout)),
            None => Ok(()),
        };
        let keepalive = self.keepalive.map_or(Ok(()), |keepalive| {
            socket.set_tcp_keepalive(&keepalive.to_socket2())
        });
        unsent_limit.and(user_timeout).and(keepalive)
    }

    /// Sets these options on a socket that may have others, of a heartbeat whose times were changed:
    /// a user timeout that is off now is turned off.
    pub(crate) fn replace(&self, socket: &TcpStream) -> io::Result<()> {
        let applied = self.apply(socket);
        let turned_off = match self.user_timeout {
            Some(_) => Ok(()),
            None => set_user_timeout(&SockRef::from(socket), None),
        };
        applied.and(turned_off)
    }

    /// The options that follow from a heartbeat.
    pub(crate) fn of(policy: &HeartbeatPolicy) -> Self {
        Self {
            unsent_limit: Some(UNSENT_LIMIT),
            user_timeout: user_timeout(policy),
            keepalive: Some(TcpKeepalive {
                idle: keepalive_time(policy.interval),
                interval: keepalive_time(policy.timeout),
                retries: policy.missed_pings.clamp(MIN_PROBES, MAX_PROBES),
            }),
        }
    }
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self::of(&HeartbeatPolicy::default())
    }
}

impl TcpKeepalive {
    /// Probes after `idle`, every `interval`, and so many.
    #[must_use]
    pub fn new(idle: Duration, interval: Duration, retries: u32) -> Self {
        Self {
            idle,
            interval,
            retries,
        }
    }

    fn to_socket2(self) -> socket2::TcpKeepalive {
        let keepalive = socket2::TcpKeepalive::new().with_time(self.idle);
        #[cfg(any(
            target_os = "android",
            target_os = "dragonfly",
            target_os = "freebsd",
            target_os = "fuchsia",
            target_os = "illumos",
            target_os = "ios",
            target_os = "linux",
            target_os = "macos",
            target_os = "netbsd",
            target_os = "tvos",
            target_os = "visionos",
            target_os = "watchos",
            target_os = "windows",
        ))]
        let keepalive = keepalive.with_interval(self.interval);
        #[cfg(any(
            target_os = "android",
            target_os = "dragonfly",
            target_os = "freebsd",
            target_os = "fuchsia",
            target_os = "illumos",
            target_os = "ios",
            target_os = "linux",
            target_os = "macos",
            target_os = "netbsd",
            target_os = "tvos",
            target_os = "visionos",
            target_os = "watchos",
        ))]
        let keepalive = keepalive.with_retries(self.retries);
        keepalive
    }
}

#[cfg(any(target_os = "android", target_os = "linux"))]
fn set_unsent_limit(socket: &SockRef<'_>, limit: u32) -> io::Result<()> {
    socket.set_tcp_notsent_lowat(limit)
}

#[cfg(not(any(target_os = "android", target_os = "linux")))]
fn set_unsent_limit(_: &SockRef<'_>, _: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
fn set_user_timeout(socket: &SockRef<'_>, timeout: Option<Duration>) -> io::Result<()> {
    socket.set_tcp_user_timeout(timeout)
}

#[cfg(not(any(target_os = "android", target_os = "fuchsia", target_os = "linux")))]
fn set_user_timeout(_: &SockRef<'_>, _: Option<Duration>) -> io::Result<()> {
    Ok(())
}

/// Later than every verdict of the layer, or off.
fn user_timeout(policy: &HeartbeatPolicy) -> Option<Duration> {
    let peer_dead = policy.interval + policy.timeout * policy.missed_pings;
    let write_stalled = policy.write_timeout?;
    // It may take an interval until the layer notices that bytes wait for the handler.
    let handler_stalled = policy
        .handler_stall_timeout
        .map_or(Duration::ZERO, |timeout| policy.interval + timeout);
    let latest = peer_dead.max(write_stalled).max(handler_stalled);
    let limit = (latest + policy.timeout).max(MIN_USER_TIMEOUT);
    (limit <= MAX_USER_TIMEOUT).then_some(limit)
}

/// Whole seconds, rounded up: the kernel is not to be sooner than the layer.
fn keepalive_time(time: Duration) -> Duration {
    let begun = u64::from(time.subsec_nanos() > 0);
    Duration::from_secs(time.as_secs() + begun).clamp(Duration::from_secs(1), MAX_KEEPALIVE)
}

#[cfg(test)]
mod tests;

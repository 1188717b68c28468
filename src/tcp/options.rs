//! [`TcpOptions`]: socket options for liveness, derived from the heartbeat's times.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::monitor::HeartbeatPolicy;

/// The kernel's limit on unsent bytes. Enough to keep a fast link busy between two wakes, and
/// little enough for a ping to be sent soon.
const UNSENT_LIMIT_BYTES: u32 = 16 * 1024;

/// TCP retransmits after 0.2 s and doubles the delay each time. Within less than this, a few lost
/// packets would look like a dead peer.
const MIN_USER_TIMEOUT: Duration = Duration::from_secs(5);

/// The kernel takes a signed number of milliseconds.
const MAX_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// Linux refuses longer keepalive times, idle and interval.
const MAX_KEEPALIVE_TIME: Duration = Duration::from_secs(32_767);

/// TCP retransmits the bytes of a ping but not a keepalive probe, so one or two lost probes do not
/// prove that the peer is dead.
const MIN_KEEPALIVE_PROBES: u32 = 3;

/// Linux refuses more.
const MAX_KEEPALIVE_PROBES: u32 = 127;

/// TCP socket options that detect dead peers where the layers above TCP cannot.
///
/// [`HeartbeatLayer::tcp_options`](crate::HeartbeatLayer::tcp_options) derives them from the
/// layer's times. `TcpOptions::default()` returns those of the layer's default times. Each option
/// can be changed, or set to `None`: the socket then keeps its current value.
///
/// Where the upgraded stream is a plain tokio `TcpStream`, as behind `axum::serve` and hyper's own
/// servers, the layer applies the options itself, unless
/// [`tune_tcp`](crate::HeartbeatLayerBuilder::tune_tcp) is off. Elsewhere, apply them to the socket
/// before another type wraps it: before the TLS handshake, or when axum accepts it, so that they
/// also hold for HTTP/2 and during the opening handshake:
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
/// // A socket that refuses an option still works.
/// let listener = listener.tap_io(move |io| {
///     let _ = options.apply(io);
/// });
/// let app: Router = Router::new().layer(heartbeat);
/// axum::serve(listener, app).await
/// # }
/// ```
///
/// Options that are applied like this do not change when one connection gets other times (see
/// [`PolicyOverride`](crate::PolicyOverride)). If some connections get longer times, set
/// `user_timeout` above the longest, or to `None`: otherwise the kernel ends these connections
/// before the layer does.
///
/// # Platforms
///
/// An option that a platform lacks is skipped without an error:
///
/// | option | platforms |
/// |---|---|
/// | `unsent_limit` | Linux, Android |
/// | `user_timeout` | Linux, Android, Fuchsia |
/// | `keepalive`: on, and `idle` | all; OpenBSD and Haiku have no idle time per socket |
/// | `keepalive`: `interval` | Linux, Android, Apple's, FreeBSD, NetBSD, DragonFly, illumos, Fuchsia, Windows |
/// | `keepalive`: `retries` | the same without Windows |
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpOptions {
    /// How many unsent bytes the kernel buffers (`TCP_NOTSENT_LOWAT`). Default: 16 KiB.
    ///
    /// Without a limit the kernel accepts megabytes from the handler at the same time, and a ping
    /// is queued behind them: over a slow link its round trip includes the whole queue and may take
    /// longer than `timeout`. With the limit, a ping is queued behind at most this many bytes and
    /// the unacknowledged ones. The layer also notices sooner that a writer is blocked. The kernel
    /// counts whole segments, so it accepts somewhat more.
    ///
    /// The limit hardly slows down a transfer, because bytes that are sent and not yet acknowledged
    /// do not count. Where it does, it can be `None`: on Linux, over plain TCP, a ping is not missed
    /// while the bytes ahead of it drain.
    pub unsent_limit: Option<u32>,

    /// How long bytes may stay unacknowledged, or wait for a peer whose receive window is closed,
    /// before the kernel ends the connection (`TCP_USER_TIMEOUT`). In whole milliseconds, at most
    /// 24 days. Default: 75 s, which follows from the layer's default times by the rule below.
    ///
    /// The connection then ends with [`Reason::Transport(TimedOut)`](crate::Reason::Transport).
    /// This option decides where the layer cannot: the handler does not read, all buffers on the
    /// way to the peer are full, and the peer dies silently; or the handler has written only part
    /// of a frame, so that no ping can be sent. For keepalive it replaces `retries`.
    ///
    /// Linux also ends the connection of a live peer that acknowledges every probe but keeps its
    /// window at zero for this long while bytes wait for it. So the derived value is later than
    /// every verdict of the layer on such a peer, each of which may be postponed once. It is the
    /// largest of `interval + timeout × (missed_pings + 1)`, twice `write_timeout`, and
    /// `interval + handler_stall_timeout` if that is set; plus another `timeout`, for the rounding
    /// of the layer's timer and for bytes in transit when the peer was last heard. It is at least
    /// 5 s, so that TCP has time for some retransmissions. It is off if `write_timeout` is `None`,
    /// which permits a peer to read nothing for any time, and if it would exceed the kernel's 24
    /// days.
    pub user_timeout: Option<Duration>,

    /// Keepalive probes by the kernel on a silent connection (`SO_KEEPALIVE`). Default: see
    /// [`TcpKeepalive`].
    ///
    /// The peer's kernel answers the probes, not its program. They detect a peer whose host is
    /// unreachable, also where no ping can be sent, but not a program that is stuck.
    pub keepalive: Option<TcpKeepalive>,
}

/// When the kernel probes a silent connection, and when it ends it.
///
/// Whole seconds: fractions are truncated. Linux refuses times outside 1 s to 32,767 s, and retries
/// outside 1 to 127.
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::{TcpKeepalive, TcpOptions};
///
/// let (idle, interval) = (Duration::from_secs(60), Duration::from_secs(10));
/// let options = TcpOptions::default().keepalive(TcpKeepalive::new(idle, interval, 5));
/// # assert_eq!(options.keepalive.unwrap().retries, 5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpKeepalive {
    /// Silence before the first probe (`TCP_KEEPIDLE`). Derived from the layer's `interval`.
    pub idle: Duration,
    /// Time between two probes (`TCP_KEEPINTVL`). Derived from the layer's `timeout`.
    pub interval: Duration,
    /// Unanswered probes before the connection ends (`TCP_KEEPCNT`). Derived from the layer's
    /// `missed_pings`, but at least 3, because TCP does not retransmit a lost probe. If
    /// `user_timeout` is set, Linux uses that instead.
    pub retries: u32,
}

impl TcpOptions {
    /// Sets [`unsent_limit`](Self::unsent_limit).
    #[must_use]
    pub fn unsent_limit(mut self, unsent_limit: impl Into<Option<u32>>) -> Self {
        self.unsent_limit = unsent_limit.into();
        self
    }

    /// Sets [`user_timeout`](Self::user_timeout).
    #[must_use]
    pub fn user_timeout(mut self, user_timeout: impl Into<Option<Duration>>) -> Self {
        self.user_timeout = user_timeout.into();
        self
    }

    /// Sets [`keepalive`](Self::keepalive).
    #[must_use]
    pub fn keepalive(mut self, keepalive: impl Into<Option<TcpKeepalive>>) -> Self {
        self.keepalive = keepalive.into();
        self
    }

    /// Sets these options on a socket.
    ///
    /// # Errors
    ///
    /// Returns the error of the first option that the system refuses. The other options are set
    /// nevertheless (those of keepalive count as one).
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

    /// Sets these options on a socket with options from earlier times of its heartbeat: in contrast
    /// to [`apply`](Self::apply), `None` turns off an earlier user timeout.
    pub(crate) fn replace(&self, socket: &TcpStream) -> io::Result<()> {
        let applied = self.apply(socket);
        let turned_off = match self.user_timeout {
            Some(_) => Ok(()),
            None => set_user_timeout(&SockRef::from(socket), None),
        };
        applied.and(turned_off)
    }

    /// Derives the options from a heartbeat's times.
    pub(crate) fn of(policy: &HeartbeatPolicy) -> Self {
        Self {
            unsent_limit: Some(UNSENT_LIMIT_BYTES),
            user_timeout: user_timeout(policy),
            keepalive: Some(TcpKeepalive {
                idle: keepalive_time(policy.interval),
                interval: keepalive_time(policy.timeout),
                retries: policy
                    .missed_pings
                    .clamp(MIN_KEEPALIVE_PROBES, MAX_KEEPALIVE_PROBES),
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
    /// Creates keepalive settings: the first probe after `idle`, the next ones every `interval`,
    /// and the end of the connection after `retries` unanswered probes.
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

/// Returns a user timeout later than every verdict of the layer, or `None` for off.
///
/// A peer that acknowledges the probes of its closed window postpones a verdict once. If bytes drain
/// later, the kernel starts anew as well.
fn user_timeout(policy: &HeartbeatPolicy) -> Option<Duration> {
    let peer_dead = policy.interval + policy.timeout * (policy.missed_pings + 1);
    let write_stalled = policy.write_timeout? * 2;
    // The layer may notice up to one interval late that bytes wait for the handler.
    let handler_stalled = policy
        .handler_stall_timeout
        .map_or(Duration::ZERO, |timeout| policy.interval + timeout);
    let latest = peer_dead.max(write_stalled).max(handler_stalled);
    let limit = (latest + policy.timeout).max(MIN_USER_TIMEOUT);
    (limit <= MAX_USER_TIMEOUT).then_some(limit)
}

/// Rounds up to whole seconds, so that the kernel does not decide before the layer.
fn keepalive_time(time: Duration) -> Duration {
    let partial_second = u64::from(time.subsec_nanos() > 0);
    Duration::from_secs(time.as_secs() + partial_second)
        .clamp(Duration::from_secs(1), MAX_KEEPALIVE_TIME)
}

#[cfg(test)]
mod tests;

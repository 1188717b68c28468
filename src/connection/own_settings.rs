//! Settings that a handle changes for its connection alone.

use std::sync::Arc;
use std::time::Duration;

use super::expiry::Expiry;
use super::handle::Liveness;
use crate::config_error::{self, ConfigError};
use crate::monitor::Overrides;

impl Liveness {
    /// Changes the interval of this connection's pings: the silence after which a ping is sent.
    ///
    /// Takes effect immediately: if the peer has been silent for longer, it is pinged now. To
    /// change the interval from the beginning of a request's connection, see
    /// [`PolicyOverride`](crate::PolicyOverride). After the end this does nothing.
    ///
    /// # Errors
    ///
    /// Zero, less than 1 ms, more than 365 days; or the connection is not under a
    /// [`HeartbeatLayer`](crate::HeartbeatLayer) (in a middleware: the request has passed none
    /// yet). Nothing is changed then.
    pub fn set_interval(&self, interval: Duration) -> Result<(), ConfigError> {
        let mut overrides = Overrides::default();
        overrides.heartbeat.interval = Some(interval);
        self.set("Liveness::set_interval", interval, &overrides)
    }

    /// Changes the timeout of this connection's pings.
    ///
    /// Takes effect immediately, also for a ping that is unanswered: if it has been for longer, it
    /// is missed now.
    ///
    /// # Errors
    ///
    /// As for [`set_interval`](Self::set_interval).
    pub fn set_timeout(&self, timeout: Duration) -> Result<(), ConfigError> {
        let mut overrides = Overrides::default();
        overrides.heartbeat.timeout = Some(timeout);
        self.set("Liveness::set_timeout", timeout, &overrides)
    }

    /// Changes the idle timeout of this connection. `None` turns the check off.
    ///
    /// Takes effect immediately, counted from the last byte of data.
    ///
    /// # Errors
    ///
    /// As for [`set_interval`](Self::set_interval), with
    /// [`IdleTimeoutLayer`](crate::IdleTimeoutLayer) as the layer.
    pub fn set_idle_timeout(
        &self,
        idle_timeout: impl Into<Option<Duration>>,
    ) -> Result<(), ConfigError> {
        let idle_timeout = idle_timeout.into();
        let mut overrides = Overrides::default();
        overrides.idle.timeout = Some(idle_timeout);
        config_error::optional_duration("Liveness::set_idle_timeout", idle_timeout)?;
        self.change("Liveness::set_idle_timeout", idle_timeout, &overrides)
    }

    /// Changes how long this connection may last, counted from its upgrade like
    /// [`IdleTimeoutLayerBuilder::max_lifetime`](crate::IdleTimeoutLayerBuilder::max_lifetime).
    /// `None` turns the check off.
    ///
    /// The connection need not be under an [`IdleTimeoutLayer`](crate::IdleTimeoutLayer). The end
    /// is earlier by the layer's
    /// [`max_lifetime_jitter`](crate::IdleTimeoutLayerBuilder::max_lifetime_jitter), or by up to a
    /// tenth without the layer. For an exact time, and for one that is not counted from the
    /// upgrade, use [`expires_at`](Self::expires_at); if both are set, the earlier one ends the
    /// connection.
    ///
    /// Takes effect immediately: if the connection has lasted for longer, it is evicted with
    /// [`Reason::MaxLifetime`](crate::Reason::MaxLifetime). Before the upgrade is complete, the
    /// value is kept for it. After the end this does nothing.
    ///
    /// # Errors
    ///
    /// Zero, less than 1 ms, more than 365 days. Nothing is changed then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_ws_liveness::{ConfigError, Liveness};
    ///
    /// /// Guests may stay for an hour, and members for as long as they like.
    /// fn on_login(live: &Liveness, is_member: bool) -> Result<(), ConfigError> {
    ///     let hour = Duration::from_secs(3600);
    ///     live.set_max_lifetime((!is_member).then_some(hour))
    /// }
    /// # let _ = on_login;
    /// ```
    pub fn set_max_lifetime(
        &self,
        max_lifetime: impl Into<Option<Duration>>,
    ) -> Result<(), ConfigError> {
        let max_lifetime = max_lifetime.into();
        config_error::optional_duration("Liveness::set_max_lifetime", max_lifetime)?;
        let mut overrides = Overrides::default();
        overrides.idle.max_lifetime = Some(max_lifetime);
        self.change("Liveness::set_max_lifetime", max_lifetime, &overrides)
    }

    /// Sets when the credentials of this connection expire. Replaces an earlier expiry: call it
    /// again when a token is refreshed. `None` removes the expiry.
    ///
    /// At that time the connection is evicted with
    /// [`Reason::MaxLifetime`](crate::Reason::MaxLifetime), later by at most one tick of the driver
    /// (see [`HeartbeatLayerBuilder`](crate::HeartbeatLayerBuilder)), and without jitter.
    /// [`on_expiring`](Self::on_expiring) adds a warning before it. [`Expiry`] says which times it
    /// can be made from, and what a jump of the system clock does.
    ///
    /// Takes effect immediately: a time in the past evicts the connection now. Before the upgrade
    /// is complete, the value is kept for it. After the end this does nothing. The connection need
    /// not be under an [`IdleTimeoutLayer`](crate::IdleTimeoutLayer). A middleware that knows the
    /// expiry before the handler can use
    /// [`PolicyOverrideBuilder::expires_at`](crate::PolicyOverrideBuilder::expires_at).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::SystemTime;
    ///
    /// use tower_ws_liveness::Liveness;
    ///
    /// /// The client has sent a new token.
    /// fn on_refresh(live: &Liveness, expires: SystemTime) {
    ///     live.expires_at(expires);
    /// }
    ///
    /// /// The user now has a session that does not expire.
    /// fn on_trusted(live: &Liveness) {
    ///     live.expires_at(None);
    /// }
    /// # let _ = (on_refresh, on_trusted);
    /// ```
    pub fn expires_at(&self, expiry: impl Into<Expiry>) {
        let overrides = Overrides {
            expires_at: Some(expiry.into().instant()),
            ..Overrides::default()
        };
        Arc::clone(&self.connection).override_policy(&overrides);
    }

    /// Calls `hook` this long before the credentials of this connection
    /// [expire](Self::expires_at), once for each expiry. Replaces an earlier hook.
    ///
    /// The hook can have the client send a new token, and the handler then sets the new expiry.
    /// Each call of [`expires_at`](Self::expires_at) makes a new expiry, also with the same time,
    /// except within the hook: the hook is not called again for one of which less than `before` is
    /// left when it returns.
    ///
    /// - If less than `before` is left, the hook is called immediately.
    /// - If the expiry is moved or removed before the hook is due, only the new one counts.
    /// - If the expiry has come when the driver visits the connection, because it was set too late
    ///   or the process was stopped, the connection is evicted without a call.
    /// - A hook that replaces one which has been called waits for the next expiry.
    /// - The hook is called later by at most one tick of the connection's timer, a 32nd of its
    ///   shortest time and at most 256 ms. A `before` below that may be skipped.
    /// - Without an expiry, before the upgrade is complete, in the closing handshake and after the
    ///   end, the hook is not called. It is dropped at the end.
    ///
    /// The hook runs on the driver's task, outside every lock, so it may use the handle that it is
    /// given. It must not block, since other connections wait meanwhile: hand slow work to a task
    /// or a channel. A slow hook is logged at WARN, and so is a panic, which is caught. It may also
    /// be called when [`expires_at`](Self::expires_at) is called on another thread at the same
    /// moment.
    ///
    /// # Errors
    ///
    /// `before` is zero, less than 1 ms, or more than 365 days. The hook is dropped then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    ///
    /// use axum::extract::ws::{Message, WebSocketUpgrade};
    /// use axum::response::Response;
    /// use tokio::sync::mpsc;
    /// use tower_ws_liveness::Liveness;
    ///
    /// # fn expiry_of(_: &str) -> SystemTime { SystemTime::now() + Duration::from_secs(900) }
    /// async fn handler(ws: WebSocketUpgrade, live: Liveness) -> Response {
    ///     let (warn, mut warned) = mpsc::unbounded_channel();
    ///     live.expires_at(expiry_of("the token in the request"));
    ///     live.on_expiring(Duration::from_secs(60), move |_| {
    ///         let _ = warn.send(());
    ///     })
    ///     .expect("a minute is accepted");
    ///     ws.on_upgrade(async move |mut socket| {
    ///         loop {
    ///             tokio::select! {
    ///                 Some(()) = warned.recv() => {
    ///                     if socket.send(Message::text("refresh")).await.is_err() {
    ///                         return;
    ///                     }
    ///                 }
    ///                 message = socket.recv() => match message {
    ///                     Some(Ok(Message::Text(token))) => live.expires_at(expiry_of(&token)),
    ///                     Some(Ok(_)) => {}
    ///                     Some(Err(_)) | None => return,
    ///                 },
    ///             }
    ///         }
    ///     })
    /// }
    /// # let _: axum::Router = axum::Router::new().route("/ws", axum::routing::any(handler));
    /// ```
    pub fn on_expiring(
        &self,
        before: Duration,
        hook: impl Fn(&Liveness) + Send + Sync + 'static,
    ) -> Result<(), ConfigError> {
        config_error::duration("Liveness::on_expiring", before)?;
        let hook = Arc::new(move |connection| hook(&Liveness::new(connection)));
        Arc::clone(&self.connection).warn_before_expiry(before, hook);
        Ok(())
    }

    fn set(
        &self,
        setter: &'static str,
        value: Duration,
        overrides: &Overrides,
    ) -> Result<(), ConfigError> {
        config_error::duration(setter, value)?;
        self.change(setter, Some(value), overrides)
    }

    /// Changes settings. `value` is that of `setter`, for the error if its layer is missing.
    fn change(
        &self,
        setter: &'static str,
        value: Option<Duration>,
        overrides: &Overrides,
    ) -> Result<(), ConfigError> {
        if Arc::clone(&self.connection).change_policy(overrides) {
            Ok(())
        } else {
            Err(config_error::missing_layer(setter, value))
        }
    }
}

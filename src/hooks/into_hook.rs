//! [`IntoHook`]: the conversion that lets builders accept closures, values and `Arc`s as hooks.

/// Converts a value that implements a hook's trait, a closure, or an [`Arc`](std::sync::Arc) of
/// either into a hook.
///
/// The builders of both layers accept this in `on_open_hook`, `on_health_hook` and `on_evict_hook`.
/// Their `on_open`, `on_health` and `on_evict` accept only closures, whose argument then needs no
/// type. `H` is [`dyn OnOpen`](crate::OnOpen), [`dyn OnHealth`](crate::OnHealth) or
/// [`dyn OnEvict`](crate::OnEvict). Hooks are compared by their `Arc`: a hook that is added to
/// several layers, or twice to one, is called once for each connection. Two equal closures are two
/// hooks.
///
/// ```
/// use std::sync::Arc;
///
/// use tower_ws_liveness::{
///     ConfigError, Eviction, HeartbeatLayer, IdleTimeoutLayer, OnEvict,
/// };
///
/// struct Audit;
///
/// impl OnEvict for Audit {
///     fn on_evict(&self, ev: &Eviction) {
///         println!("{} ended: {}", ev.id(), ev.reason());
///     }
/// }
///
/// # fn main() -> Result<(), ConfigError> {
/// let audit = Arc::new(Audit);
/// let heartbeat = HeartbeatLayer::builder().on_evict_hook(Arc::clone(&audit)).build()?;
/// let idle = IdleTimeoutLayer::builder().on_evict_hook(audit).build()?;
/// # Ok(())
/// # }
/// ```
///
/// This trait cannot be implemented outside of this crate. `M` is inferred; it distinguishes a
/// value from an `Arc`.
pub trait IntoHook<H: ?Sized, M>: sealed::IntoArc<H, M> {}

impl<T, H: ?Sized, M> IntoHook<H, M> for T where T: sealed::IntoArc<H, M> {}

pub(crate) mod sealed {
    use std::sync::Arc;

    /// Converts a value or an `Arc` into a hook. Without `M` the two impls would overlap, because a
    /// later version of `std` could implement `Fn` for `Arc`.
    pub trait IntoArc<H: ?Sized, M> {
        fn into_arc(self) -> Arc<H>;
    }

    #[derive(Debug)]
    pub enum Value {}

    #[derive(Debug)]
    pub enum Shared {}

    #[derive(Debug)]
    pub enum SharedDyn {}
}

//! The application's hooks: their conversion, [`OnEvict`], and the functions that call it.
//!
//! The hooks that get a connection's handle are in [`connection`](crate::connection).

mod into_hook;
mod on_evict;
mod session_hooks;

pub use into_hook::IntoHook;
pub(crate) use into_hook::sealed;
pub use on_evict::OnEvict;
pub(crate) use on_evict::{LocalHook, call_local, call_on_evict, guard_map, guard_waker};
pub(crate) use session_hooks::{call_on_session_end, guard_session_map};

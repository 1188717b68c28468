//! The application's hooks, [`OnEvict`] and [`OnHealth`], and the functions that call them.

mod into_hook;
mod on_evict;
mod on_health;
mod session_hooks;

pub use into_hook::IntoHook;
pub use on_evict::OnEvict;
pub(crate) use on_evict::{LocalHook, call_local, call_on_evict, guard_map, guard_waker};
pub(crate) use on_health::call_on_health;
pub use on_health::{HealthChange, OnHealth};
pub(crate) use session_hooks::{call_on_session_end, guard_session_map};

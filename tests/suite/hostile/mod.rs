//! Hostile or odd input never makes anything panic or hang.

mod control_frames;
mod handle_calls;
mod malformed;
mod peers;

//! Hostile or malformed input causes no panic and no hang.

mod control_frames;
mod handle_calls;
mod malformed;
mod peers;
mod unbounded;

//! What the benches of whole processes share: the servers that are compared, processes to run them
//! in, peers to talk to them, and what is made of the figures.

pub(crate) mod account;
pub(crate) mod comparison;
pub(crate) mod crowd;
pub(crate) mod floor;
pub(crate) mod hand_written;
pub(crate) mod options;
pub(crate) mod peer;
pub(crate) mod plot;
pub(crate) mod process;
pub(crate) mod server;
pub(crate) mod spread;

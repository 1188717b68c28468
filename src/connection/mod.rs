//! One connection, where its parties meet: the handler with its stream, the driver, the handles.
//!
//! | file | what happens there |
//! |---|---|
//! | [`stream`] | what the handler's WebSocket library reads and writes |
//! | [`inbound`] | pongs of ours are cut out |
//! | [`held`] | what is kept back for that between two reads |
//! | [`inject`] | pings and Close frames are put in |
//! | [`control`] | one of these, and how much of it is written |
//! | [`capabilities`] | properties of a kind of transport that `AsyncWrite` does not expose |
//! | [`state`] | what is behind the lock, and who has the transport |
//! | [`handler`] | the handler's operations |
//! | [`attend`] | the driver's visits |
//! | [`link`] | when it comes by, and which moves of that it is told |
//! | [`callers`] | who waits for the pong of a ping on demand |
//! | [`closing`] | the closing handshake of an eviction, and the lingering close of a transport |
//! | [`parting`] | an end that waits for the handler's frame, or for nobody any more |
//! | [`core`] | who is told of the end, and that it is once |
//! | [`extras`] | what is kept for that |
//! | [`birth`] | when it came |
//! | [`attachments`] | inner layers that may have to be detached |
//! | [`share`] | what the connections of a layer have in common |
//! | [`registries`] | what its layers' registries see of it, and what it takes up in them |
//! | [`places`] | the seats that it has to leave at its end |
//! | [`shared`] | the lock, and the one place where an end becomes an event |
//! | [`departure`] | the end of the transport, and the news that it is gone |
//! | [`news`] | when a change of health is to be told |
//! | [`told`] | what the health hooks were told |
//! | [`watch`] | what both directions report to |
//! | [`handle`] | [`Liveness`] |

mod attachments;
mod attend;
mod birth;
mod callers;
mod capabilities;
mod closing;
mod control;
mod core;
mod departure;
mod extras;
mod handle;
mod handler;
mod held;
mod inbound;
mod inject;
mod link;
#[cfg(all(test, liveness_loom))]
mod loom_models;
mod news;
mod parting;
mod places;
mod registries;
mod share;
mod shared;
mod state;
mod stream;
mod told;
mod watch;

pub(crate) use attachments::AttachmentId;
pub(crate) use capabilities::Capabilities;
pub(crate) use handle::Attachment;
pub use handle::Liveness;
pub(crate) use places::{Place, PlaceId};
pub(crate) use registries::{Managed, Refused, Track, View};
pub(crate) use share::Share;
pub(crate) use shared::Connection;
pub use stream::LivenessStream;

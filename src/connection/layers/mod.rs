//! The layers of a connection and their registries.

mod contracts;
mod inner_layers;
mod membership;

pub(crate) use contracts::{
    Admission, AttachmentId, DrainOrder, ErasedConnection, LayerConfig, Refused, Tracker, Trackers,
    View,
};
pub(crate) use inner_layers::{Attached, Attachments, Settings};
pub(crate) use membership::Membership;

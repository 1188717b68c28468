//! The layers of a connection and their registries.

mod contracts;
mod inner_layers;
mod membership;

pub(crate) use contracts::{
    Admission, AttachmentId, DrainOrder, ErasedConnection, ErasedRegistry, ExpiryHook, LayerConfig,
    Refused, Registries, View,
};
pub(crate) use inner_layers::{ConnectionSettings, InnerLayer, InnerLayers};
pub(crate) use membership::Membership;

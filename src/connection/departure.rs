//! The news that the transport is gone.

/// What is known of the transport's end, which is told once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Departure {
    /// There may yet be a transport: the upgrade is not complete.
    Opening,
    /// To be told when the transport is gone; `clean` if the closing handshake of the connection's
    /// eviction was completed.
    Untold {
        clean: bool,
    },
    Told,
}

impl Departure {
    /// The news, if they are due.
    pub(super) fn tell(&mut self) -> Option<bool> {
        let Self::Untold { clean } = *self else {
            return None;
        };
        *self = Self::Told;
        Some(clean)
    }
}

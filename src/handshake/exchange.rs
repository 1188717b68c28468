//! [`Exchange`]: follows the HTTP/1.1 messages of an opening handshake, without I/O.

use super::head::Head;
use crate::wire::Role;

/// A request and its responses, seen from one end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    role: Role,
    request: Head,
    request_ended: bool,
    response: Head,
    /// The request is not a handshake, or a final response other than 101 has passed.
    failed: bool,
}

/// The outcome of the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A 101 response: frames follow.
    Switched,
    /// Another final response, or a request that is not a handshake: no WebSocket follows.
    NotSwitched,
}

impl Exchange {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            request: Head::default(),
            request_ended: false,
            response: Head::default(),
            failed: false,
        }
    }

    /// Follows bytes that were read.
    ///
    /// If a head ends in them, returns the length up to its end, and the outcome if it decides one.
    pub(super) fn on_read(&mut self, bytes: &[u8]) -> Option<(usize, Option<Outcome>)> {
        match self.role {
            Role::Server => self.on_request(bytes),
            Role::Client => self.on_response(bytes),
        }
    }

    /// Follows bytes that were written. Returns the same as [`on_read`](Self::on_read).
    pub(super) fn on_write(&mut self, bytes: &[u8]) -> Option<(usize, Option<Outcome>)> {
        match self.role {
            Role::Server => self.on_response(bytes),
            Role::Client => self.on_request(bytes),
        }
    }

    /// Whether this end has `role` and the request has passed, but not the response. The client
    /// must not send frames yet.
    pub(super) fn awaits_response(&self, role: Role) -> bool {
        self.role == role && self.request_ended && !self.failed
    }

    fn on_request(&mut self, bytes: &[u8]) -> Option<(usize, Option<Outcome>)> {
        if self.failed {
            return None;
        }
        let end = self.request.advance(bytes)?;
        self.request_ended = true;
        // The body of another request must not wait for the response.
        self.failed = !self.request.is_get();
        Some((end, self.failed.then_some(Outcome::NotSwitched)))
    }

    fn on_response(&mut self, bytes: &[u8]) -> Option<(usize, Option<Outcome>)> {
        if self.failed {
            return None;
        }
        let mut at = 0;
        loop {
            at += self.response.advance(&bytes[at..])?;
            match self.response.status() {
                Some(101) => return Some((at, Some(Outcome::Switched))),
                // Interim responses may precede the final one (RFC 9110 section 15.2).
                Some(100..=199) => self.response = Head::default(),
                _ => {
                    self.failed = true;
                    return Some((at, Some(Outcome::NotSwitched)));
                }
            }
        }
    }
}

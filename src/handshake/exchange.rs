//! How far an opening handshake has come, from the bytes that passed; without IO.

use super::head::Head;
use crate::wire::Role;

/// A request and its answers, seen from one end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    role: Role,
    request: Head,
    request_ended: bool,
    response: Head,
    failed: bool,
}

/// A final answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// 101: frames follow.
    Switching,
    /// Anything else: there will be no connection.
    Other,
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

    /// Bytes were read. Returns where the head that they are of ends, if it does, and what has been
    /// answered by that.
    pub(super) fn inbound(&mut self, bytes: &[u8]) -> Option<(usize, Option<Answer>)> {
        match self.role {
            Role::Server => self.request(bytes),
            Role::Client => self.response(bytes),
        }
    }

    /// The same for bytes that were written.
    pub(super) fn outbound(&mut self, bytes: &[u8]) -> Option<(usize, Option<Answer>)> {
        match self.role {
            Role::Server => self.response(bytes),
            Role::Client => self.request(bytes),
        }
    }

    /// Whether the request has passed, in whatever direction `role` has it, and no answer yet: it is
    /// too early for frames of the client's.
    pub(super) fn awaits_answer(&self, role: Role) -> bool {
        self.role == role && self.request_ended && !self.failed
    }

    fn request(&mut self, bytes: &[u8]) -> Option<(usize, Option<Answer>)> {
        if self.failed {
            return None;
        }
        let end = self.request.advance(bytes)?;
        self.request_ended = true;
        // What another request has for a body is not to wait for an answer.
        self.failed = !self.request.is_get();
        Some((end, self.failed.then_some(Answer::Other)))
    }

    fn response(&mut self, bytes: &[u8]) -> Option<(usize, Option<Answer>)> {
        if self.failed {
            return None;
        }
        let mut at = 0;
        loop {
            at += self.response.advance(&bytes[at..])?;
            match self.response.status() {
                Some(101) => return Some((at, Some(Answer::Switching))),
                // Interim ones may come before (RFC 9110 section 15.2).
                Some(100..=199) => self.response = Head::default(),
                _ => {
                    self.failed = true;
                    return Some((at, Some(Answer::Other)));
                }
            }
        }
    }
}

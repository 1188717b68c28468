//! Times of the data frames in one direction (RFC 6455 section 5.6), for the idle layer.

use super::moment::Moment;

/// How bytes of data frames relate to their message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// The message continues after these bytes.
    Part,
    /// These bytes complete the message.
    End,
    /// Unknown, since the stream is malformed and its frame boundaries are lost.
    Unframed,
}

/// When data last passed, and when the current message started.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataClock {
    /// Time of the last data byte, or of the upgrade before the first one.
    pub(super) last: Moment,
    /// Time of the first byte of the current message. `None` between messages.
    pub(super) message: Option<Moment>,
}

impl DataClock {
    pub(super) fn new(opened: Moment) -> Self {
        Self {
            last: opened,
            message: None,
        }
    }

    /// Records bytes that passed at `now`. Returns whether they start a message without completing
    /// it.
    #[inline]
    pub(super) fn pass(&mut self, now: Moment, data: Data) -> bool {
        self.last = now;
        let started = self.message;
        self.message = match data {
            Data::Part => Some(started.unwrap_or(now)),
            Data::End | Data::Unframed => None,
        };
        started.is_none() && self.message.is_some()
    }

    /// Restarts the time of the current message, if there is one.
    pub(super) fn restart_message(&mut self, now: Moment) {
        self.message = self.message.map(|_| now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    #[test]
    fn a_message_lasts_from_its_first_byte_to_its_last() {
        let mut clock = DataClock::new(at(0));
        // (data, whether it starts a message, start of the current message in ms)
        let table = [
            (Data::End, false, None),
            (Data::Part, true, Some(2)),
            (Data::Part, false, Some(2)),
            (Data::End, false, None),
            (Data::Part, true, Some(5)),
            (Data::Unframed, false, None),
            (Data::Unframed, false, None),
        ];
        for ((data, starts, message), now) in table.into_iter().zip(1..) {
            assert_eq!(clock.pass(at(now), data), starts, "{now}");
            assert_eq!(clock.last, at(now));
            assert_eq!(clock.message, message.map(at), "{now}");
        }
    }

    #[test]
    fn restart_message_changes_only_an_incomplete_message() {
        let mut clock = DataClock::new(at(0));
        clock.restart_message(at(1));
        assert_eq!(clock.message, None);
        clock.pass(at(2), Data::Part);
        clock.restart_message(at(3));
        assert_eq!((clock.last, clock.message), (at(2), Some(at(3))));
    }
}

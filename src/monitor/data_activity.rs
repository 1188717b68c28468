//! The idle layer's clock for the data frames of one direction (RFC 6455 section 5.6).

use super::moment::Moment;

/// How bytes outside of control frames relate to their message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// The message continues after them.
    Part,
    /// They complete the message.
    End,
    /// Unknown, since frame boundaries are lost in malformed input.
    Unframed,
}

/// When data last passed, and when the current message began.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataClock {
    /// Time of the last data byte, or of the upgrade if there was none.
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

    /// Records bytes that passed at `now`. Returns whether they begin a message without completing it.
    pub(super) fn pass(&mut self, now: Moment, data: Data) -> bool {
        self.last = now;
        let begun = self.message;
        self.message = match data {
            Data::Part => Some(begun.unwrap_or(now)),
            Data::End | Data::Unframed => None,
        };
        begun.is_none() && self.message.is_some()
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
        // what passes, whether a message begins with it, and since when one is under way
        let table = [
            (Data::End, false, None),
            (Data::Part, true, Some(2)),
            (Data::Part, false, Some(2)),
            (Data::End, false, None),
            (Data::Part, true, Some(5)),
            (Data::Unframed, false, None),
            (Data::Unframed, false, None),
        ];
        for ((data, begins, message), now) in table.into_iter().zip(1..) {
            assert_eq!(clock.pass(at(now), data), begins, "{now}");
            assert_eq!(clock.last, at(now));
            assert_eq!(clock.message, message.map(at), "{now}");
        }
    }

    #[test]
    fn only_a_message_under_way_is_restarted() {
        let mut clock = DataClock::new(at(0));
        clock.restart_message(at(1));
        assert_eq!(clock.message, None);
        clock.pass(at(2), Data::Part);
        clock.restart_message(at(3));
        assert_eq!((clock.last, clock.message), (at(2), Some(at(3))));
    }
}

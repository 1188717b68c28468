//! Compares random calls with a plain model.

use proptest::prelude::*;

use super::*;

const MAX_MESSAGES: usize = 4;
const MAX_BYTES: usize = 10;

#[derive(Clone, Debug)]
enum Op {
    Push(usize),
    /// All these name one of the readers so far, mostly the newest one.
    Receive(usize),
    Release(usize, u64),
    NewReader,
    NewReaderFrom(u64),
    Close,
}

fn op() -> impl Strategy<Value = Op> {
    // How many readers it is behind the newest one.
    let reader = || prop_oneof![5 => Just(0), 1 => 1..3usize];
    let position = || prop_oneof![8 => 0..20u64, 1 => u64::MAX - 1..=u64::MAX];
    prop_oneof![
        20 => (0..=MAX_BYTES / 2).prop_map(Op::Push),
        2 => (0..=usize::MAX).prop_map(Op::Push),
        20 => reader().prop_map(Op::Receive),
        10 => (reader(), position()).prop_map(|(reader, at)| Op::Release(reader, at)),
        3 => Just(Op::NewReader),
        6 => position().prop_map(Op::NewReaderFrom),
        1 => Just(Op::Close),
    ]
}

/// Everything that was ever pushed, in order. `None` is a refusal.
#[derive(Default)]
struct Model {
    log: Vec<Option<u64>>,
    bytes: Vec<usize>,
    /// The number of released messages, which is the first position that is left.
    released: u64,
    closed: bool,
    /// The place of the newest reader in the log.
    place: usize,
}

impl Model {
    fn next(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.released as usize
    }

    fn push(&mut self, bytes: usize) -> Result<u64, OutboxError<u64>> {
        let position = self.next();
        let left: usize = self.bytes[self.released as usize..].iter().sum();
        let refused = if self.closed {
            return Err(OutboxError::Closed(position));
        } else if self.left() == MAX_MESSAGES {
            OutboxError::TooManyMessages(position)
        } else if left.saturating_add(bytes) > MAX_BYTES {
            OutboxError::TooManyBytes(position)
        } else {
            self.log.push(Some(position));
            self.bytes.push(bytes);
            return Ok(position);
        };
        self.log.push(None);
        Err(refused)
    }

    /// The place in the log after the message before `position`.
    fn place_of(&self, position: u64) -> usize {
        let before = |entry: &Option<u64>| entry.is_some_and(|known| known + 1 == position);
        self.log
            .iter()
            .position(before)
            .map_or(0, |index| index + 1)
    }

    fn begin(&mut self, position: u64) {
        self.place = self.place_of(position);
    }

    fn receive(&mut self) -> Item<u64> {
        let refused = |place: usize| self.log[..place].iter().filter(|e| e.is_none()).count();
        let run = self.log[self.place..]
            .iter()
            .take_while(|e| e.is_none())
            .count();
        if run > 0 {
            self.place += run;
            return Some(Err(overflow(refused(self.place) as u64)));
        }
        let position = (*self.log.get(self.place)?)?;
        self.place += 1;
        Some(Ok((position, position)))
    }

    fn release(&mut self, position: u64) -> usize {
        if !(self.released..self.next()).contains(&position) {
            return 0;
        }
        let count = position + 1 - self.released;
        self.released = position + 1;
        self.place = self.place.max(self.place_of(position + 1));
        count as usize
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn an_outbox_behaves_like_the_model(ops in prop::collection::vec(op(), 1..80)) {
        let outbox = outbox(MAX_MESSAGES, MAX_BYTES);
        let mut readers = vec![outbox.reader(&connection())];
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Push(bytes) => {
                    prop_assert_eq!(outbox.push(model.next(), bytes), model.push(bytes));
                }
                Op::Receive(age) => {
                    let reader = readers.iter().rev().nth(age);
                    let expected = if age == 0 { model.receive() } else { None };
                    prop_assert_eq!(reader.and_then(OutboxReader::try_recv), expected);
                }
                Op::Release(age, position) => {
                    let reader = readers.iter().rev().nth(age);
                    let expected = if age == 0 { model.release(position) } else { 0 };
                    let released = reader.map_or(0, |reader| reader.release(position));
                    prop_assert_eq!(released, expected);
                }
                Op::NewReader => {
                    readers.push(outbox.reader(&connection()));
                    model.begin(model.released);
                }
                Op::NewReaderFrom(position) => {
                    let reader = outbox.reader_from(&connection(), position);
                    let known = (model.released..=model.next()).contains(&position);
                    prop_assert_eq!(reader.is_some(), known);
                    if let Some(reader) = reader {
                        readers.push(reader);
                        model.begin(position);
                    }
                }
                Op::Close => {
                    outbox.close();
                    model.closed = true;
                }
            }
            prop_assert_eq!(outbox.len(), model.left());
            let refused = model.log.iter().filter(|entry| entry.is_none()).count();
            prop_assert_eq!(outbox.refused(), refused as u64);
        }
        // A client that has received nothing gets all that is left, each once and in order.
        let reader = outbox.reader(&connection());
        let messages = drain(&reader).into_iter().filter_map(Result::ok);
        let positions: Vec<u64> = messages.map(|(position, _)| position).collect();
        prop_assert_eq!(positions, (model.released..model.next()).collect::<Vec<_>>());
    }
}

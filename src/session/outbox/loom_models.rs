//! Loom models of an outbox whose reader is replaced while messages are pushed and released.

use std::sync::Arc;

use super::{Outbox, OutboxLimits, OutboxReader};
use crate::session::unopened::connection;
use crate::sync::Mutex;
use crate::sync::modelled::{all_done, block_on, check, thread};

const MESSAGES: u64 = 2;

fn outbox(max_messages: usize) -> Outbox<u64> {
    Outbox::new(OutboxLimits::new(max_messages, 10).unwrap())
}

/// Receives until the end, in a thread, and acts on each position.
fn receive(
    reader: impl FnOnce() -> OutboxReader<u64> + Send + 'static,
    act: impl Fn(&OutboxReader<u64>, u64) -> bool + Send + 'static,
) -> Arc<Mutex<Vec<u64>>> {
    let received = Arc::new(Mutex::new(Vec::new()));
    let positions = Arc::clone(&received);
    thread(move || {
        let reader = reader();
        while let Some(item) = block_on(reader.recv()) {
            let (position, message) = item.unwrap();
            assert_eq!(position, message);
            if act(&reader, position) {
                positions.lock().unwrap().push(position);
            }
        }
    });
    received
}

#[test]
fn loom_a_reader_takes_over_while_messages_are_pushed_and_released() {
    check("push, release and replace the reader", 3, || {
        let outbox = outbox(10);
        let (pushing, taking_over) = (outbox.clone(), outbox.clone());
        let old = outbox.reader(&connection());
        // Waits for messages, so a lost wake-up is a deadlock.
        let by_old = receive(
            move || old,
            |reader, position| reader.release(position) == 1,
        );
        let by_new = receive(move || taking_over.reader(&connection()), |_, _| true);
        thread(move || {
            for position in 0..MESSAGES {
                assert_eq!(pushing.push(position, 1), Ok(position));
            }
        });
        // Closes it, as soon as the other clones are dropped.
        drop(outbox);
        all_done();
        // The newer reader gets exactly those that the older one has not released: each message is
        // received once, and in order.
        let (by_old, by_new) = (by_old.lock().unwrap(), by_new.lock().unwrap());
        let all: Vec<u64> = by_old.iter().chain(&*by_new).copied().collect();
        assert_eq!(all, (0..MESSAGES).collect::<Vec<_>>());
    });
}

#[test]
fn loom_a_replaced_connection_takes_its_reader_late() {
    check("take readers, while the older connection ends", 3, || {
        let outbox = outbox(10);
        let (old, new) = (connection(), connection());
        let (late, its_outbox) = (old.clone(), outbox.clone());
        // Its reader is replaced, or has ended already. A lost wake-up is a deadlock.
        thread(move || {
            let reader = its_outbox.reader(&late);
            drop(its_outbox);
            assert_eq!(block_on(reader.recv()), None);
        });
        // Its end may be known, but not recorded yet, when it is replaced.
        let ending = old.clone();
        thread(move || {
            ending.evict(4_001, "");
        });
        // What the registration of the newer connection does before it returns.
        old.evict(4_000, "");
        let reader = outbox.reader(&new);
        assert_eq!(outbox.push(0, 1), Ok(0));
        all_done();
        assert_eq!(reader.try_recv(), Some(Ok((0, 0))));
        assert_eq!(reader.release(0), 1);
    });
}

#[test]
fn loom_each_refusal_is_reported() {
    check("push into a full outbox, while it is read", 3, || {
        let outbox = outbox(1);
        let reader = outbox.reader(&connection());
        for _ in 0..2 {
            let outbox = outbox.clone();
            thread(move || drop(outbox.push(0, 1)));
        }
        let received = Arc::new(Mutex::new((0, 0)));
        let result = Arc::clone(&received);
        thread(move || {
            while let Some(item) = block_on(reader.recv()) {
                let mut received = result.lock().unwrap();
                match item {
                    Ok((position, _)) => {
                        received.0 += 1;
                        drop(received);
                        assert_eq!(reader.release(position), 1);
                    }
                    Err(overflow) => received.1 = overflow.refused(),
                }
            }
        });
        drop(outbox);
        all_done();
        let (messages, refused) = *received.lock().unwrap();
        assert_eq!(messages + refused, 2);
        assert!(messages > 0);
    });
}

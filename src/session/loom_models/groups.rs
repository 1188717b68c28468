//! Connections that enter and leave groups.

use std::sync::Arc;

use super::{KEY, connection};
use crate::session::{GroupEvent, Groups, ReplacePolicy};
use crate::sync::Mutex;
use crate::sync::modelled::{all_done, check, thread};

#[test]
fn loom_connections_enter_and_leave_a_group() {
    check("enter and leave a group", 3, || {
        let events = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&events);
        let groups = Groups::<u8, u8>::builder()
            .on_event(move |event| hook.lock().unwrap().push(event))
            .build();
        for value in [1, 2] {
            let (live, groups) = (connection(), groups.clone());
            thread(move || {
                let policy = ReplacePolicy::newest_wins();
                let displaced = live.register_in(&groups, KEY, value, 2, &policy);
                assert!(displaced.unwrap().is_empty());
                assert!(live.evict(4_000, ""));
            });
        }
        all_done();
        assert!(groups.is_empty());
        let turn = [GroupEvent::FirstIn(KEY), GroupEvent::LastOut(KEY)];
        let events = events.lock().unwrap().clone();
        assert!(events == turn || events == [turn.clone(), turn].concat());
    });
}

#[test]
fn loom_the_end_of_a_connection_races_with_its_entry_to_a_group() {
    check("enter a group and evict", 3, || {
        let events = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&events);
        let groups = Groups::<u8, u8>::builder()
            .on_event(move |event| hook.lock().unwrap().push(event))
            .build();
        let live = connection();
        let (entering, into) = (live.clone(), groups.clone());
        thread(move || {
            let policy = ReplacePolicy::newest_wins();
            drop(entering.register_in(&into, KEY, 1, 1, &policy));
        });
        thread(move || {
            live.evict(4_000, "");
        });
        all_done();
        assert!(groups.is_empty());
        let turn = [GroupEvent::FirstIn(KEY), GroupEvent::LastOut(KEY)];
        let events = events.lock().unwrap().clone();
        assert!(events.is_empty() || events == turn);
    });
}

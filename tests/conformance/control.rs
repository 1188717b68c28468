//! Pings and pongs of the client and of the handler (RFC 6455 section 5.5).

use super::case::{Case, Want};
use super::support::noise;
use super::support::raw::{BINARY, CONTINUATION, Frame, PING, PONG};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // The layers' own pings have eight bytes.
    for length in [0, 1, 7, 8, 9, 124, 125] {
        let payload = noise(length as u32 + 1, length);
        for (name, opcode) in [("ping", PING), ("pong", PONG)] {
            let frame = Frame::new(opcode, payload.clone());
            cases.push(Case::new(format!("{name} of {length}"), Want::Echoes(0)).frame(&frame));
            cases.push(
                Case::new(format!("{name} of {length} between texts"), Want::Echoes(2))
                    .frame(&Frame::text("before"))
                    .frame(&frame)
                    .frame(&Frame::text("after")),
            );
        }
    }
    for (name, opcode) in [("ping", PING), ("pong", PONG)] {
        for length in [126, 200, 65_535, 65_536] {
            cases.push(
                Case::new(format!("{name} of {length} is too long"), Want::Refused)
                    .frame(&Frame::text("before"))
                    .frame(&Frame::new(opcode, noise(6, length))),
            );
        }
        cases.push(
            Case::new(format!("{name} in fragments"), Want::Refused)
                .frame(&Frame::text("before"))
                .frame(&Frame::new(opcode, "frag").unfinished())
                .frame(&Frame::new(CONTINUATION, "ment")),
        );
        cases.push(
            Case::new(format!("{name} without FIN in a message"), Want::Refused)
                .frame(&Frame::text("begun").unfinished())
                .frame(&Frame::new(opcode, "frag").unfinished())
                .frame(&Frame::new(CONTINUATION, "done")),
        );
        let ten = |n: u8| Frame::new(opcode, vec![n; 8]);
        cases.push((0..10).fold(
            Case::new(format!("ten of {name} in a row"), Want::Echoes(0)),
            |case, n| case.frame(&ten(n)),
        ));
        let segment: Vec<Frame> = (0..10).map(ten).collect();
        cases.push(
            Case::new(format!("ten of {name} in one segment"), Want::Echoes(1))
                .frame(&Frame::text("before"))
                .together(&segment),
        );
    }
    // The beginning of a pong that may, but does not, answer the layers.
    let pong = Frame::new(PONG, "8 bytes!").masked();
    for end in [1, 2, 6, 9, 13] {
        cases.push(
            Case::new(format!("the end {end} bytes into a pong"), Want::Echoes(1))
                .frame(&Frame::text("before"))
                .raw(&pong[..end]),
        );
    }
    cases.push(
        Case::new("a pong as the payload of a message", Want::Echoes(1))
            .frame(&Frame::new(BINARY, pong.repeat(20))),
    );
    // The handler's own pings are sent, and their pongs reach it.
    for ping in ["", "8 bytes!", "a ping of the handler's own"] {
        cases.push(
            Case::new(
                format!("the handler's ping {ping:?} is answered"),
                Want::Echoes(1),
            )
            .frame(&Frame::text(&format!("ping me: {ping}")))
            .frame(&Frame::new(PONG, ping))
            .frame(&Frame::text("after")),
        );
        cases.push(
            Case::new(
                format!("the handler's ping {ping:?} in a message"),
                Want::Echoes(1),
            )
            .frame(&Frame::text(&format!("ping me: {ping}")))
            .frame(&Frame::text("frag").unfinished())
            .frame(&Frame::new(PONG, ping))
            .frame(&Frame::new(CONTINUATION, "ment")),
        );
    }
    cases
}

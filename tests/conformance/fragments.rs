//! Fragmented messages, and the frames that may stand between fragments (RFC 6455 section 5.4).

use super::case::{Case, Want};
use super::support::noise;
use super::support::raw::{BINARY, CONTINUATION, Frame, PING, PONG, TEXT};

/// A message in fragments of these sizes.
fn fragments(opcode: u8, sizes: &[usize]) -> Vec<Frame> {
    let last = sizes.len() - 1;
    let frames = sizes.iter().enumerate().map(|(at, size)| {
        let opcode = if at == 0 { opcode } else { CONTINUATION };
        let payload = match opcode {
            BINARY => noise(at as u32, *size),
            _ => vec![b'a' + at as u8 % 26; *size],
        };
        let frame = Frame::new(opcode, payload);
        if at == last {
            frame
        } else {
            frame.unfinished()
        }
    });
    frames.collect()
}

fn each(case: Case, frames: &[Frame]) -> Case {
    frames.iter().fold(case, Case::frame)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, opcode) in [("text", TEXT), ("binary", BINARY)] {
        for sizes in [
            &[3, 4][..],
            &[1, 1, 1, 1, 1],
            &[0, 0],
            &[0, 0, 0],
            &[0, 5],
            &[5, 0],
            &[5, 0, 5],
            &[125, 126, 127],
            &[65_535, 65_536],
            &[1; 40],
        ] {
            let frames = fragments(opcode, sizes);
            let name = match sizes {
                [1, .., 1] if sizes.len() > 10 => format!("{kind} of {} bytes", sizes.len()),
                _ => format!("{kind} of {sizes:?}"),
            };
            cases.push(each(
                Case::new(format!("{name}, frames"), Want::Echoes(1)),
                &frames,
            ));
            cases.push(
                each(
                    Case::new(format!("{name}, one segment"), Want::Echoes(2)),
                    &[],
                )
                .frame(&Frame::text("before"))
                .together(&frames),
            );
            let between = |frame: Frame, what: &str| {
                let case = Case::new(format!("{name}, {what} between"), Want::Echoes(1));
                frames
                    .iter()
                    .enumerate()
                    .fold(case, |case, (at, fragment)| {
                        let case = if at == 0 { case } else { case.frame(&frame) };
                        case.frame(fragment)
                    })
            };
            cases.push(between(Frame::new(PING, "between"), "pings"));
            cases.push(between(Frame::new(PONG, "unasked!"), "pongs"));
        }
    }

    let begun = Frame::text("begun").unfinished();
    let more = Frame::new(CONTINUATION, "more").unfinished();
    let done = Frame::new(CONTINUATION, "done");
    for (name, frames) in [
        (
            "a last fragment without a message",
            vec![Frame::text("before"), done.clone()],
        ),
        (
            "a fragment without a message",
            vec![Frame::text("before"), more.clone()],
        ),
        (
            "one fragment too many",
            vec![begun.clone(), done.clone(), done.clone()],
        ),
        (
            "an empty fragment without a message",
            vec![Frame::text("before"), Frame::new(CONTINUATION, "")],
        ),
        (
            "a text in a text",
            vec![begun.clone(), Frame::text("whole"), done.clone()],
        ),
        (
            "a binary in a text",
            vec![begun.clone(), Frame::new(BINARY, "whole"), done.clone()],
        ),
        (
            "a text begun in a text",
            vec![begun.clone(), begun.clone(), done.clone()],
        ),
        (
            "a text after two fragments",
            vec![begun.clone(), more.clone(), Frame::text("whole")],
        ),
    ] {
        cases.push(each(Case::new(name, Want::Refused), &frames));
        let segment = [vec![Frame::text("good")], frames, vec![Frame::text("late")]].concat();
        let case = Case::new(format!("{name}, in one segment"), Want::Refused);
        cases.push(case.frame(&Frame::text("before")).together(&segment));
    }
    cases.push(each(
        Case::new("a message without an end", Want::Echoes(0)),
        &[begun, more],
    ));
    cases.push(each(
        Case::new(
            "two messages, each around a ping and a pong",
            Want::Echoes(2),
        ),
        &[
            Frame::text("one").unfinished(),
            Frame::new(PING, ""),
            Frame::new(CONTINUATION, ""),
            Frame::new(BINARY, "two").unfinished(),
            Frame::new(PONG, ""),
            Frame::new(CONTINUATION, "2"),
        ],
    ));
    cases
}

//! Close frames: codes, bodies, and frames before and after them (RFC 6455 sections 5.5.1 and 7).

use super::case::{Case, Want};
use super::support::noise;
use super::support::raw::{BINARY, CLOSE, CONTINUATION, Frame, PING, PONG, TEXT};

/// Both ends of each range of section 7.4.2, and each code of section 7.4.1.
const CODES: [u16; 41] = [
    0, 1, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013,
    1014, 1015, 1016, 1017, 1099, 1100, 1999, 2000, 2001, 2500, 2998, 2999, 3000, 3001, 3500, 3998,
    3999, 4000, 4001, 4500, 4999, 5000, 32_768, 65_535,
];

pub(crate) fn codes() -> Vec<Case> {
    let mut cases = Vec::new();
    for code in CODES {
        for (name, reason) in [("alone", ""), ("with a reason", "so long")] {
            cases.push(
                Case::new(format!("close {code} {name}"), Want::Closed)
                    .frame(&Frame::text("before"))
                    .frame(&Frame::close(code, reason)),
            );
        }
        cases.push(
            Case::new(format!("close {code} at once"), Want::Closed).frame(&Frame::close(code, "")),
        );
    }
    cases
}

pub(crate) fn bodies() -> Vec<Case> {
    let longest = "é".repeat(61) + "e";
    let body = |bytes: &[u8]| Frame::new(CLOSE, [&[0x03, 0xE8], bytes].concat());
    let mut cases = Vec::new();
    for (name, frame, want) in [
        ("no body", Frame::new(CLOSE, ""), Want::Closed),
        ("a body of one byte", Frame::new(CLOSE, [3]), Want::Refused),
        ("a body of a code", Frame::close(1000, ""), Want::Closed),
        (
            "a reason of one byte",
            Frame::close(1000, "!"),
            Want::Closed,
        ),
        (
            "the longest reason",
            Frame::close(1000, &longest),
            Want::Closed,
        ),
        (
            "a reason too long",
            Frame::close(1000, &"x".repeat(124)),
            Want::Refused,
        ),
        (
            "a reason far too long",
            Frame::new(CLOSE, noise(8, 70_000)),
            Want::Refused,
        ),
        ("half a character", body(&[b'a', 0xC3]), Want::Refused),
        ("a surrogate", body(&[0xED, 0xA0, 0x80]), Want::Refused),
        ("0xFF", body(&[0xFF]), Want::Refused),
        (
            "no FIN",
            Frame::close(1000, "x").unfinished(),
            Want::Refused,
        ),
    ] {
        cases.push(
            Case::new(format!("close with {name}"), want)
                .frame(&Frame::text("before"))
                .frame(&frame),
        );
        if name != "no FIN" {
            cases.push(Case::new(format!("close with {name}, at once"), want).frame(&frame));
        }
    }
    cases
}

pub(crate) fn order() -> Vec<Case> {
    let before = Frame::text("before");
    let close = Frame::close(1000, "bye");
    let begun = Frame::text("begun").unfinished();
    let mut cases = vec![
        Case::new("the end without a close", Want::Echoes(1))
            .frame(&before)
            .frame(&Frame::new(PONG, "the last")),
        Case::new("a close within a message", Want::Closed)
            .frame(&begun)
            .frame(&close),
        Case::new("a close within a message that goes on", Want::Closed)
            .frame(&begun)
            .together(&[close.clone(), Frame::new(CONTINUATION, "done")]),
        Case::new("a ping and a close in one segment", Want::Closed)
            .frame(&before)
            .together(&[Frame::new(PING, "last"), close.clone()]),
        Case::new("a text and a close in one segment", Want::Closed)
            .frame(&before)
            .together(&[Frame::text("last"), close.clone()]),
    ];
    // More than the codec reads at a time, so that bytes stay unread.
    let much = Frame::new(BINARY, noise(10, 400_000)).masked();
    for (name, last) in [
        ("a close", close.clone()),
        ("a reserved bit", Frame::text("rsv").with_rsv(4)),
        ("a reserved opcode", Frame::new(0xB, "?")),
        ("a bad text", Frame::new(TEXT, [0xFF])),
    ] {
        cases.push(
            Case::new(format!("{name} with much behind it"), Want::Reset)
                .frame(&before)
                .raw([last.masked(), much.clone()].concat()),
        );
    }
    // Bytes after a Close frame must be discarded, whatever they are (section 5.5.1).
    for (name, after) in [
        ("text", Frame::text("late").masked()),
        ("binary", Frame::new(BINARY, noise(9, 3_000)).masked()),
        ("fragment", begun.masked()),
        ("ping", Frame::new(PING, "late").masked()),
        ("pong", Frame::new(PONG, "8 bytes!").masked()),
        ("second close", close.masked()),
        ("close of another code", Frame::close(4000, "no").masked()),
        ("reserved opcode", Frame::new(0x3, "late").masked()),
        ("unmasked text", Frame::text("late").unmasked()),
        ("half a frame", Frame::text("late").masked()[..3].to_vec()),
        (
            "half a pong",
            Frame::new(PONG, "8 bytes!").masked()[..7].to_vec(),
        ),
    ] {
        let segment = [close.masked(), after.clone()].concat();
        cases.push(
            Case::new(format!("a close and a {name} in one segment"), Want::Closed)
                .frame(&before)
                .raw(segment),
        );
        cases.push(
            Case::new(format!("a close, and then a {name}"), Want::Closed)
                .frame(&before)
                .frame(&close)
                .raw(after),
        );
    }
    cases
}

//! Single frames: lengths, masks, reserved bits and opcodes (RFC 6455 section 5.2).

use super::case::{Case, Want};
use super::support::noise;
use super::support::raw::{BINARY, CLOSE, CONTINUATION, Frame, PING, PONG, TEXT};

/// The limits of each length class, and their neighbours.
const LENGTHS: [usize; 9] = [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537];

const KEY: [u8; 4] = [0xA5, 0x5A, 0x00, 0xFF];

/// A masked frame with this length field, which need not match the payload.
fn with_length_field(first: u8, field: &[u8], payload: &[u8]) -> Vec<u8> {
    let masked = payload.iter().zip(KEY.iter().cycle()).map(|(a, b)| a ^ b);
    [first, 0x80 | field[0]]
        .into_iter()
        .chain(field[1..].iter().copied())
        .chain(KEY)
        .chain(masked)
        .collect()
}

pub(crate) fn lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    for length in LENGTHS {
        let text = Frame::new(TEXT, vec![b'*'; length]);
        cases.push(Case::new(format!("text of {length} bytes"), Want::Echoes(1)).frame(&text));
        let binary = Frame::new(BINARY, noise(length as u32, length));
        cases.push(Case::new(format!("binary of {length} bytes"), Want::Echoes(1)).frame(&binary));
    }
    cases.push(LENGTHS.iter().fold(
        Case::new("all lengths in a row", Want::Echoes(9)),
        |case, length| case.frame(&Frame::new(BINARY, noise(1, *length))),
    ));
    let many: Vec<Frame> = (0..50_u8)
        .map(|n| Frame::new(BINARY, vec![n; 20]))
        .collect();
    cases.push(
        Case::new("fifty in one segment", Want::Echoes(51))
            .frame(&many[0])
            .together(&many),
    );

    // Longer length fields than needed. The RFC forbids them; the codec decides.
    for length in [0, 1, 125] {
        let payload = noise(3, length);
        let short = with_length_field(0x80 | BINARY, &[126, 0, length as u8], &payload);
        cases.push(Case::new(format!("{length} in 16 bits"), Want::Echoes(1)).raw(short));
        let long = [127, 0, 0, 0, 0, 0, 0, 0, length as u8];
        let long = with_length_field(0x80 | BINARY, &long, &payload);
        cases.push(Case::new(format!("{length} in 64 bits"), Want::Echoes(1)).raw(long));
    }
    for length in [126_u16, 65_535] {
        let [high, low] = length.to_be_bytes();
        let field = [127, 0, 0, 0, 0, 0, 0, high, low];
        let frame = with_length_field(0x80 | BINARY, &field, &noise(3, length.into()));
        cases.push(Case::new(format!("{length} in 64 bits"), Want::Echoes(1)).raw(frame));
    }

    // Lengths that the codec refuses.
    for (name, field) in [
        ("a length of 2^63", [127, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        (
            "a length of 2^64 - 1",
            [127, 255, 255, 255, 255, 255, 255, 255, 255],
        ),
        (
            "a length of 2^63 - 1",
            [127, 0x7F, 255, 255, 255, 255, 255, 255, 255],
        ),
        ("a length of 2^40", [127, 0, 0, 1, 0, 0, 0, 0, 0]),
    ] {
        let frame = with_length_field(0x80 | BINARY, &field, b"and so on");
        cases.push(
            Case::new(name, Want::Refused)
                .frame(&Frame::text("before"))
                .raw(frame),
        );
    }
    for (name, cut) in [("a header", 5), ("a payload", 40)] {
        let frame = Frame::new(BINARY, noise(4, 200)).masked();
        let case = Case::new(format!("the end in the middle of {name}"), Want::Echoes(1));
        cases.push(case.frame(&Frame::text("before")).raw(&frame[..cut]));
    }
    cases
}

pub(crate) fn masking() -> Vec<Case> {
    let mut cases = Vec::new();
    // Section 5.1: a server must refuse unmasked frames.
    for (name, frame) in [
        ("text", Frame::text("bare")),
        ("empty text", Frame::text("")),
        ("binary", Frame::new(BINARY, noise(5, 300))),
        ("fragment", Frame::text("bare").unfinished()),
        ("ping", Frame::new(PING, "bare")),
        ("pong", Frame::new(PONG, "8 bytes!")),
        ("close", Frame::close(1000, "bare")),
    ] {
        cases.push(
            Case::new(format!("unmasked {name}"), Want::Refused)
                .frame(&Frame::text("before"))
                .raw(frame.unmasked()),
        );
        cases.push(
            Case::new(format!("unmasked {name} at once"), Want::Refused).raw(frame.unmasked()),
        );
    }
    let unmasked_last = [CONTINUATION].map(|opcode| Frame::new(opcode, "ment").unmasked());
    cases.push(
        Case::new("unmasked last fragment", Want::Refused)
            .frame(&Frame::text("frag").unfinished())
            .raw(unmasked_last.concat()),
    );
    for key in [[0; 4], [255; 4], [0x88, 0x80, 0x8A, 0x88]] {
        let payload: Vec<u8> = (0..=255).collect();
        let mut frame = vec![0x80 | BINARY, 0x80 | 126, 1, 0];
        frame.extend(key);
        frame.extend(payload.iter().zip(key.iter().cycle()).map(|(a, b)| a ^ b));
        cases.push(Case::new(format!("masked with {key:x?}"), Want::Echoes(1)).raw(frame));
    }
    cases
}

pub(crate) fn reserved_bits() -> Vec<Case> {
    let mut cases = Vec::new();
    // Section 5.2: without a negotiated extension the codec must fail the connection.
    for rsv in 1..8 {
        for (name, frame) in [
            ("text", Frame::text("rsv")),
            ("empty binary", Frame::new(BINARY, "")),
            ("first fragment", Frame::text("rsv").unfinished()),
            ("ping", Frame::new(PING, "rsv")),
            ("pong", Frame::new(PONG, "rsv")),
            ("close", Frame::close(1000, "rsv")),
        ] {
            let case = Case::new(format!("rsv {rsv:03b} on a {name}"), Want::Refused);
            cases.push(
                case.frame(&Frame::text("before"))
                    .frame(&frame.with_rsv(rsv)),
            );
        }
        let case = Case::new(format!("rsv {rsv:03b} on a last fragment"), Want::Refused);
        cases.push(
            case.frame(&Frame::text("begun").unfinished())
                .frame(&Frame::new(CONTINUATION, "rsv").with_rsv(rsv)),
        );
        let case = Case::new(format!("rsv {rsv:03b} on a middle fragment"), Want::Refused);
        cases.push(
            case.frame(&Frame::text("begun").unfinished())
                .frame(&Frame::new(CONTINUATION, "rsv").with_rsv(rsv).unfinished())
                .frame(&Frame::new(CONTINUATION, "done")),
        );
        let segment = [
            Frame::text("good"),
            Frame::text("rsv").with_rsv(rsv),
            Frame::text("late"),
        ];
        let case = Case::new(format!("rsv {rsv:03b} within a segment"), Want::Refused);
        cases.push(case.frame(&Frame::text("before")).together(&segment));
    }
    cases
}

pub(crate) fn opcodes() -> Vec<Case> {
    let mut cases = Vec::new();
    for opcode in [0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF] {
        for (name, frame) in [
            ("empty", Frame::new(opcode, "")),
            ("with a payload", Frame::new(opcode, "unheard of")),
            ("unfinished", Frame::new(opcode, "unheard of").unfinished()),
            ("with rsv", Frame::new(opcode, "unheard of").with_rsv(0b111)),
        ] {
            cases.push(
                Case::new(format!("opcode {opcode:#x} {name}"), Want::Refused)
                    .frame(&Frame::text("before"))
                    .frame(&frame),
            );
        }
        cases.push(
            Case::new(format!("opcode {opcode:#x} in a message"), Want::Refused)
                .frame(&Frame::text("begun").unfinished())
                .frame(&Frame::new(opcode, "unheard of"))
                .frame(&Frame::new(CONTINUATION, "done")),
        );
        let segment = [
            Frame::text("good"),
            Frame::new(opcode, "?"),
            Frame::new(CLOSE, ""),
        ];
        cases.push(
            Case::new(
                format!("opcode {opcode:#x} within a segment"),
                Want::Refused,
            )
            .frame(&Frame::text("before"))
            .together(&segment),
        );
    }
    cases
}

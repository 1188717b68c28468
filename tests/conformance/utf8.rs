//! Texts at the limits of UTF-8, whole and fragmented (RFC 6455 section 8.1, RFC 3629 section 4).

use super::case::{Case, Want};
use super::support::raw::{CONTINUATION, Frame, TEXT};

/// The first and last character of each length, and the neighbours of the surrogates.
const GOOD: [char; 15] = [
    '\0',
    '\u{1}',
    '\u{7f}',
    '\u{80}',
    '\u{7ff}',
    '\u{800}',
    '\u{fff}',
    '\u{d7ff}',
    '\u{e000}',
    '\u{feff}',
    '\u{fffd}',
    '\u{ffff}',
    '\u{10000}',
    '\u{fffff}',
    '\u{10ffff}',
];

const BAD: [(&str, &[u8]); 22] = [
    ("a continuation byte", &[0x80]),
    ("the last continuation byte", &[0xBF]),
    ("two continuation bytes", &[0x80, 0xBF]),
    ("0xFE", &[0xFE]),
    ("0xFF", &[0xFF]),
    ("an overlong slash of two", &[0xC0, 0xAF]),
    ("an overlong slash of three", &[0xE0, 0x80, 0xAF]),
    ("an overlong slash of four", &[0xF0, 0x80, 0x80, 0xAF]),
    ("an overlong zero", &[0xC0, 0x80]),
    ("the greatest overlong of two", &[0xC1, 0xBF]),
    ("the greatest overlong of three", &[0xE0, 0x9F, 0xBF]),
    ("the greatest overlong of four", &[0xF0, 0x8F, 0xBF, 0xBF]),
    ("the first surrogate", &[0xED, 0xA0, 0x80]),
    ("the last surrogate", &[0xED, 0xBF, 0xBF]),
    (
        "a pair of surrogates",
        &[0xED, 0xA0, 0x80, 0xED, 0xB0, 0x80],
    ),
    ("U+110000", &[0xF4, 0x90, 0x80, 0x80]),
    ("a sequence of five", &[0xF8, 0x88, 0x80, 0x80, 0x80]),
    ("a sequence of six", &[0xFC, 0x84, 0x80, 0x80, 0x80, 0x80]),
    ("one of two", &[0xC3]),
    ("two of three", &[0xE2, 0x82]),
    ("three of four", &[0xF0, 0x9F, 0xA6]),
    (
        "an ASCII character inside one of three",
        &[0xE2, b'a', 0xAC],
    ),
];

/// Two fragments, cut at `at`.
fn in_two(text: &[u8], at: usize) -> [Frame; 2] {
    let (first, last) = text.split_at(at);
    [
        Frame::new(TEXT, first).unfinished(),
        Frame::new(CONTINUATION, last),
    ]
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for good in GOOD {
        let text = format!("<{good}>");
        let name = format!("U+{:04X}", u32::from(good));
        cases.push(Case::new(name.clone(), Want::Echoes(1)).frame(&Frame::text(&text)));
        for at in 1..text.len() {
            let [first, last] = in_two(text.as_bytes(), at);
            let case = Case::new(format!("{name} cut at {at}"), Want::Echoes(1));
            cases.push(case.frame(&first).frame(&last));
        }
    }
    let all: String = GOOD.iter().collect();
    cases.push(Case::new("all of them", Want::Echoes(1)).frame(&Frame::text(&all)));
    let last = all.len() - 1;
    cases.push(all.bytes().enumerate().fold(
        Case::new("all of them, byte by byte in fragments", Want::Echoes(1)),
        |case, (at, byte)| {
            let opcode = if at == 0 { TEXT } else { CONTINUATION };
            let frame = Frame::new(opcode, [byte]);
            case.frame(&if at == last {
                frame
            } else {
                frame.unfinished()
            })
        },
    ));

    for (name, bad) in BAD {
        let text = [b"<", bad, b">"].concat();
        cases.push(
            Case::new(format!("{name} in one frame"), Want::Refused)
                .frame(&Frame::text("before"))
                .frame(&Frame::new(TEXT, text.clone())),
        );
        cases.push(
            Case::new(format!("{name} at the end"), Want::Refused)
                .frame(&Frame::text("before"))
                .frame(&Frame::new(TEXT, &text[..text.len() - 1])),
        );
        for at in 1..text.len() {
            let [first, last] = in_two(&text, at);
            let case = Case::new(format!("{name} cut at {at}"), Want::Refused);
            cases.push(case.frame(&first).frame(&last));
        }
        cases.push(
            Case::new(format!("{name} in a binary message"), Want::Echoes(1))
                .frame(&Frame::new(super::support::raw::BINARY, text)),
        );
    }
    cases
}

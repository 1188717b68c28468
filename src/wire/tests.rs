//! The scanner over whole streams, with tungstenite as an independent reading of RFC 6455
//! section 5: it writes the frames and says where they lie. The helpers serve the tests of the
//! other files as well.

use std::io::Cursor;

use proptest::prelude::*;
use tungstenite::Bytes;
use tungstenite::error::Error;
use tungstenite::protocol::frame::coding::OpCode as OracleOpCode;
use tungstenite::protocol::frame::{Frame, FrameHeader};

use super::header::Header;
use super::scanner::FrameEnd;
use super::*;

pub(super) const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const OPCODES: [OpCode; 6] = [
    OpCode::Continuation,
    OpCode::Text,
    OpCode::Binary,
    OpCode::Close,
    OpCode::Ping,
    OpCode::Pong,
];

/// How many bytes had been fed when each frame ended, and how the scanner stood afterwards.
#[derive(Debug, PartialEq)]
struct Walk {
    ends: Vec<(usize, FrameEnd)>,
    at_boundary: bool,
    malformed: Option<Malformed>,
}

/// Feeds `bytes` in pieces of the sizes that `chunks` yields, checking on the way what must hold
/// at every step.
fn walk(bytes: &[u8], chunks: impl IntoIterator<Item = usize>) -> Walk {
    let mut scanner = Scanner::new();
    let mut ends = Vec::new();
    let (mut pos, mut begun) = (0, None);
    for size in chunks {
        let mut chunk = &bytes[pos..bytes.len().min(pos + size)];
        while !chunk.is_empty() {
            let ahead = scanner.boundary_within(chunk);
            let (consumed, end) = scanner.advance(chunk);
            assert!((1..=chunk.len()).contains(&consumed));
            assert_eq!(ahead, end.map(|_| consumed));
            begun = begun.or(OpCode::of(chunk[0]));
            match end {
                Some(end) => {
                    assert!(scanner.at_boundary());
                    assert_eq!(scanner.open_frame(), None);
                    assert_eq!(begun.take(), Some(end.opcode));
                }
                None => {
                    assert_eq!(consumed, chunk.len());
                    assert!(!scanner.at_boundary());
                    let known = begun.filter(|_| scanner.malformed().is_none());
                    assert_eq!(scanner.open_frame(), known);
                }
            }
            pos += consumed;
            ends.extend(end.map(|end| (pos, end)));
            chunk = &chunk[consumed..];
        }
        if pos == bytes.len() {
            break;
        }
    }
    assert_eq!(pos, bytes.len(), "the chunks did not cover the input");
    Walk {
        ends,
        at_boundary: scanner.at_boundary(),
        malformed: scanner.malformed(),
    }
}

fn walk_whole(bytes: &[u8]) -> Walk {
    walk(bytes, [bytes.len()])
}

fn walk_bytewise(bytes: &[u8]) -> Walk {
    walk(bytes, std::iter::repeat(1))
}

pub(super) fn oracle_opcode(opcode: OpCode) -> OracleOpCode {
    OracleOpCode::from(opcode as u8)
}

/// tungstenite's view of a header, in the shape of ours.
pub(super) fn oracle_parse(bytes: &[u8]) -> Result<Option<(FrameHeader, u64, usize)>, Error> {
    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor)?;
    Ok(parsed.map(|(header, len)| (header, len, cursor.position() as usize)))
}

/// A frame as tungstenite writes it.
pub(super) fn oracle_frame(
    fin: bool,
    rsv: u8,
    opcode: OpCode,
    mask: Option<[u8; 4]>,
    data: &[u8],
) -> Vec<u8> {
    let header = FrameHeader {
        is_final: fin,
        rsv1: rsv & 4 != 0,
        rsv2: rsv & 2 != 0,
        rsv3: rsv & 1 != 0,
        opcode: oracle_opcode(opcode),
        mask,
    };
    let mut out = Vec::new();
    Frame::from_payload(header, Bytes::copy_from_slice(data))
        .format(&mut out)
        .expect("writing to a Vec");
    out
}

/// What the scanner is expected to tell about such a frame.
fn expected_end(fin: bool, opcode: OpCode, data: &[u8]) -> FrameEnd {
    let code = data.first_chunk().map(|code| u16::from_be_bytes(*code));
    FrameEnd {
        opcode,
        fin,
        close_code: code.filter(|_| opcode == OpCode::Close),
    }
}

#[test]
fn opcodes_and_roles() {
    for value in 0..16 {
        let ours = OpCode::of(0xF0 | value);
        let known = OPCODES.into_iter().find(|opcode| *opcode as u8 == value);
        assert_eq!(ours, known, "{value:#x}");
    }
    for opcode in OPCODES {
        assert_eq!(opcode.is_control(), opcode as u8 & 0x8 != 0);
    }
    assert!(!Role::Server.outbound_masked() && Role::Client.outbound_masked());
}

#[test]
fn malformed_of_every_class() {
    use Malformed::*;
    let mut table: Vec<(Vec<u8>, Malformed)> = vec![
        (vec![0x08], FragmentedControl),
        (vec![0x09], FragmentedControl),
        (vec![0x7A], FragmentedControl),
        (vec![0x88, 126], OversizedControl),
        (vec![0x89, 127], OversizedControl),
        (vec![0x8A, 0xFE], OversizedControl),
        (vec![0x82, 127, 0x80], LengthTopBit),
        (vec![0x82, 0xFF, 0xFF], LengthTopBit),
    ];
    for opcode in (0x3..=0x7).chain(0xB..=0xF) {
        for flags in (0..16).map(|flags| flags << 4) {
            table.push((vec![flags | opcode], ReservedOpcode(opcode)));
        }
    }
    let plain = [0x81, 2, b'h', b'i'];
    let masked = [0x81, 0x82, 1, 2, 3, 4, b'h', b'i'];
    for (bytes, verdict) in table {
        // Each is given with the byte that breaks the rule as its last one.
        let (_, before) = bytes.split_last().expect("rows are not empty");
        assert_eq!(Header::parse(before), Ok(None), "{bytes:x?}");
        assert_eq!(Header::parse(&bytes), Err(verdict), "{bytes:x?}");

        // Behind a good frame, and followed by one: the first is reported and nothing after it.
        for good in [&plain[..], &masked[..]] {
            let stream = [good, &bytes, good, good].concat();
            for walk in [walk_whole(&stream), walk_bytewise(&stream)] {
                assert_eq!(
                    walk.ends,
                    [(good.len(), expected_end(true, OpCode::Text, b"hi"))]
                );
                assert_eq!(walk.malformed, Some(verdict), "{bytes:x?}");
                assert!(!walk.at_boundary);
            }
        }
    }
}

#[test]
fn no_bytes_change_nothing() {
    let mut scanner = Scanner::new();
    assert_eq!(scanner.advance(&[]), (0, None));
    assert_eq!(scanner.boundary_within(&[]), None);
    assert!(scanner.at_boundary());
    scanner.advance(&[0x81, 2, b'h']);
    assert_eq!(scanner.advance(&[]), (0, None));
    assert!(!scanner.at_boundary());
    assert_eq!(scanner.boundary_within(b"i"), Some(1));
}

#[test]
fn close_code_survives_any_cut() {
    for mask in [None, Some(KEY)] {
        for data in [&b""[..], b"\x03", b"\x03\xE8", b"\x03\xE9gone"] {
            let bytes = oracle_frame(true, 0, OpCode::Close, mask, data);
            let want = [(bytes.len(), expected_end(true, OpCode::Close, data))];
            for cut in 0..=bytes.len() {
                let walk = walk(&bytes, [cut, bytes.len() - cut]);
                assert_eq!(walk.ends, want, "{data:?} cut at {cut}");
            }
            assert_eq!(walk_bytewise(&bytes).ends, want);
        }
    }
    // What looks like a code in any other frame is none.
    let bytes = oracle_frame(true, 0, OpCode::Ping, None, b"\x03\xE8");
    assert_eq!(walk_whole(&bytes).ends[0].1.close_code, None);
}

#[test]
#[cfg_attr(miri, ignore = "walks for minutes")]
fn a_long_payload_ends_with_its_last_byte_at_any_read_size() {
    let data = vec![0x88; 200_003];
    let bytes = oracle_frame(true, 0, OpCode::Binary, Some(KEY), &data);
    let want = [(bytes.len(), expected_end(true, OpCode::Binary, &data))];
    for size in [7, 4096, 65_535, 65_536, 65_537, 131_072, 200_000] {
        let walk = walk(&bytes, std::iter::repeat(size));
        assert_eq!(walk.ends, want, "in reads of {size}");
    }
}

#[test]
fn the_longest_payload_is_counted_down_and_not_read() {
    let mut scanner = Scanner::new();
    let header = [0x82, 127, 0x7F, 255, 255, 255, 255, 255, 255, 255];
    assert_eq!(scanner.advance(&header), (10, None));
    let chunk = [0xFF; 4096];
    for _ in 0..100 {
        assert_eq!(scanner.advance(&chunk), (chunk.len(), None));
    }
    assert_eq!(scanner.malformed(), None);
    assert!(!scanner.at_boundary());
}

#[derive(Clone, Debug)]
struct AnyFrame {
    fin: bool,
    rsv: u8,
    opcode: OpCode,
    /// Each frame is masked or not, for both occur in one stream.
    mask: Option<[u8; 4]>,
    data: Vec<u8>,
}

fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    // Built from a length and a seed: generating each byte would cost more than the test.
    let len = prop_oneof![
        4 => prop::sample::select(vec![0usize, 1, 2, 125, 126, 127]),
        4 => 0usize..300,
        1 => prop::sample::select(vec![65535usize, 65536]),
        1 => 0usize..70_000,
    ];
    (len, any::<u8>()).prop_map(|(len, seed)| {
        (0..len)
            .map(|i| seed.wrapping_add((i as u8).wrapping_mul(31)))
            .collect()
    })
}

fn any_frame() -> impl Strategy<Value = AnyFrame> {
    let opcode = prop::sample::select(OPCODES.to_vec());
    (
        any::<bool>(),
        0u8..8,
        opcode,
        any::<Option<[u8; 4]>>(),
        any_payload(),
    )
        .prop_map(|(fin, rsv, opcode, mask, mut data)| {
            if opcode.is_control() {
                data.truncate(125);
            }
            AnyFrame {
                fin: fin || opcode.is_control(),
                rsv,
                opcode,
                mask,
                data,
            }
        })
}

/// Piece sizes, used over and over: mostly a few bytes, sometimes a network read.
fn any_chunks() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![3 => 1usize..4, 3 => 1usize..20, 1 => 1000usize..20_000];
    prop::collection::vec(size, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    #[cfg_attr(miri, ignore = "minutes for each case")]
    fn scanner_reports_exactly_the_frames(
        frames in prop::collection::vec(any_frame(), 0..6),
        chunks in any_chunks(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for f in &frames {
            bytes.extend(oracle_frame(f.fin, f.rsv, f.opcode, f.mask, &f.data));
            ends.push((bytes.len(), expected_end(f.fin, f.opcode, &f.data)));
        }
        let want = Walk { ends, at_boundary: true, malformed: None };
        prop_assert_eq!(&walk_whole(&bytes), &want);
        prop_assert_eq!(&walk_bytewise(&bytes), &want);
        prop_assert_eq!(&walk(&bytes, chunks.iter().copied().cycle()), &want);

        // Cut off anywhere, exactly the whole frames before the cut are reported.
        let cut = cut.index(bytes.len() + 1);
        let got = walk(&bytes[..cut], chunks.iter().copied().cycle());
        let whole: Vec<_> = want.ends.iter().copied().filter(|(end, _)| *end <= cut).collect();
        let last = whole.last().map_or(0, |(end, _)| *end);
        prop_assert_eq!(got, Walk { ends: whole, at_boundary: last == cut, malformed: None });
    }
}

/// Fully random bytes, or such that reach the later fields of a header.
pub(super) fn any_header_bytes() -> impl Strategy<Value = Vec<u8>> {
    let tail = prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..20);
    let first = prop::sample::select(vec![0x00u8, 0x01, 0x42, 0x82, 0x88, 0x89, 0x8A, 0x8B]);
    let second = prop::sample::select(vec![0u8, 1, 125, 126, 127, 128, 253, 254, 255]);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        (first, second, tail)
            .prop_map(|(first, second, tail)| [&[first, second], &tail[..]].concat()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 1024 }))]

    #[test]
    fn any_stream_gives_one_verdict_at_any_chunking(
        pieces in prop::collection::vec(any_header_bytes(), 1..8),
        chunks in any_chunks(),
    ) {
        let bytes = pieces.concat();
        let whole = walk_whole(&bytes);
        prop_assert_eq!(&walk_bytewise(&bytes), &whole);
        prop_assert_eq!(&walk(&bytes, chunks.iter().copied().cycle()), &whole);

        // The frames before the verdict lie where tungstenite's headers put them.
        let mut pos = 0;
        for (end, frame) in &whole.ends {
            let (header, payload_len, len) =
                oracle_parse(&bytes[pos..]).expect("accepted").expect("whole");
            prop_assert_eq!(*end as u64, (pos + len) as u64 + payload_len);
            prop_assert_eq!(oracle_opcode(frame.opcode), header.opcode);
            prop_assert_eq!(frame.fin, header.is_final);
            pos = *end;
        }
        // What is left is a broken header, or less than a frame.
        let rest = &bytes[pos..];
        match Header::parse(rest) {
            Err(verdict) => prop_assert_eq!(whole.malformed, Some(verdict)),
            Ok(Some((header, len))) => {
                prop_assert_eq!(whole.malformed, None);
                prop_assert!(header.payload_len > (rest.len() - len) as u64);
            }
            Ok(None) => {
                prop_assert_eq!(whole.malformed, None);
                prop_assert_eq!(whole.at_boundary, rest.is_empty());
            }
        }
    }
}

//! Tests of the scanner on streams of frames that tungstenite encodes and parses.
//!
//! tungstenite is the independent implementation of RFC 6455 section 5 that the results are
//! compared with. The tests of the other files use the helpers too.

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

/// The result of scanning a stream.
#[derive(Debug, PartialEq)]
struct ScanResult {
    /// The frames, each with the position of its end.
    ends: Vec<(usize, FrameEnd)>,
    at_boundary: bool,
    malformed: Option<Malformed>,
}

/// Scans `bytes` in chunks of the given sizes, and checks the scanner's invariants after each step.
fn scan(bytes: &[u8], chunks: impl IntoIterator<Item = usize>) -> ScanResult {
    let mut scanner = Scanner::new();
    let mut ends = Vec::new();
    let (mut pos, mut current) = (0, None);
    for size in chunks {
        let mut chunk = &bytes[pos..bytes.len().min(pos + size)];
        while !chunk.is_empty() {
            let ahead = scanner.boundary_within(chunk);
            let (consumed, end) = scanner.advance(chunk);
            assert!((1..=chunk.len()).contains(&consumed));
            assert_eq!(ahead, end.map(|_| consumed));
            current = current.or(OpCode::of(chunk[0]));
            match end {
                Some(end) => {
                    assert!(scanner.at_boundary());
                    assert_eq!(scanner.open_frame(), None);
                    assert_eq!(current.take(), Some(end.opcode));
                }
                None => {
                    assert_eq!(consumed, chunk.len());
                    assert!(!scanner.at_boundary());
                    let open = current.filter(|_| scanner.malformed().is_none());
                    assert_eq!(scanner.open_frame(), open);
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
    ScanResult {
        ends,
        at_boundary: scanner.at_boundary(),
        malformed: scanner.malformed(),
    }
}

fn scan_whole(bytes: &[u8]) -> ScanResult {
    scan(bytes, [bytes.len()])
}

fn scan_bytewise(bytes: &[u8]) -> ScanResult {
    scan(bytes, std::iter::repeat(1))
}

pub(super) fn oracle_opcode(opcode: OpCode) -> OracleOpCode {
    OracleOpCode::from(opcode as u8)
}

/// A header, the payload length and the header length, as tungstenite parses them.
pub(super) fn oracle_parse(bytes: &[u8]) -> Result<Option<(FrameHeader, u64, usize)>, Error> {
    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor)?;
    Ok(parsed.map(|(header, len)| (header, len, cursor.position() as usize)))
}

/// A frame as tungstenite encodes it.
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

/// The expected [`FrameEnd`] of such a frame.
fn expected_end(fin: bool, opcode: OpCode, data: &[u8]) -> FrameEnd {
    let code = data.first_chunk().map(|code| u16::from_be_bytes(*code));
    FrameEnd {
        opcode,
        fin,
        close_code: code.filter(|_| opcode == OpCode::Close),
    }
}

#[test]
fn opcodes_and_roles_follow_rfc_6455() {
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
fn each_violation_is_reported_at_its_byte() {
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
        // The last byte of each row violates the rule.
        let (_, before) = bytes.split_last().expect("rows are not empty");
        assert_eq!(Header::parse(before), Ok(None), "{bytes:x?}");
        assert_eq!(Header::parse(&bytes), Err(verdict), "{bytes:x?}");

        // Between valid frames: only the first of them is reported.
        for good in [&plain[..], &masked[..]] {
            let stream = [good, &bytes, good, good].concat();
            for scan in [scan_whole(&stream), scan_bytewise(&stream)] {
                assert_eq!(
                    scan.ends,
                    [(good.len(), expected_end(true, OpCode::Text, b"hi"))]
                );
                assert_eq!(scan.malformed, Some(verdict), "{bytes:x?}");
                assert!(!scan.at_boundary);
            }
        }
    }
}

#[test]
fn an_empty_slice_does_not_change_the_scanner() {
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
fn the_close_code_is_read_from_any_split() {
    for mask in [None, Some(KEY)] {
        for data in [&b""[..], b"\x03", b"\x03\xE8", b"\x03\xE9gone"] {
            let bytes = oracle_frame(true, 0, OpCode::Close, mask, data);
            let want = [(bytes.len(), expected_end(true, OpCode::Close, data))];
            for cut in 0..=bytes.len() {
                let scan = scan(&bytes, [cut, bytes.len() - cut]);
                assert_eq!(scan.ends, want, "{data:?} cut at {cut}");
            }
            assert_eq!(scan_bytewise(&bytes).ends, want);
        }
    }
    // No other frame has a close code.
    let bytes = oracle_frame(true, 0, OpCode::Ping, None, b"\x03\xE8");
    assert_eq!(scan_whole(&bytes).ends[0].1.close_code, None);
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_long_payload_ends_with_its_last_byte_at_any_read_size() {
    let data = vec![0x88; 200_003];
    let bytes = oracle_frame(true, 0, OpCode::Binary, Some(KEY), &data);
    let want = [(bytes.len(), expected_end(true, OpCode::Binary, &data))];
    for size in [7, 4096, 65_535, 65_536, 65_537, 131_072, 200_000] {
        let scan = scan(&bytes, std::iter::repeat(size));
        assert_eq!(scan.ends, want, "in reads of {size}");
    }
}

#[test]
fn a_payload_of_the_maximum_length_is_accepted() {
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
    /// Each frame is masked or not, independently of the others in its stream.
    mask: Option<[u8; 4]>,
    data: Vec<u8>,
}

fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    // Derived from a length and a seed: generating each byte would take longer than the test.
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

/// Chunk sizes, used cyclically: mostly a few bytes, sometimes the size of a network read.
fn any_chunks() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![3 => 1usize..4, 3 => 1usize..20, 1 => 1000usize..20_000];
    prop::collection::vec(size, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    #[cfg_attr(miri, ignore = "minutes for each case")]
    fn the_scanner_reports_exactly_the_frames_of_a_stream(
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
        let want = ScanResult { ends, at_boundary: true, malformed: None };
        prop_assert_eq!(&scan_whole(&bytes), &want);
        prop_assert_eq!(&scan_bytewise(&bytes), &want);
        prop_assert_eq!(&scan(&bytes, chunks.iter().copied().cycle()), &want);

        // In a truncated stream exactly the complete frames are reported.
        let cut = cut.index(bytes.len() + 1);
        let got = scan(&bytes[..cut], chunks.iter().copied().cycle());
        let ends: Vec<_> = want.ends.iter().copied().filter(|(end, _)| *end <= cut).collect();
        let last = ends.last().map_or(0, |(end, _)| *end);
        prop_assert_eq!(got, ScanResult { ends, at_boundary: last == cut, malformed: None });
    }
}

/// Random bytes, or bytes with a valid start, so that later fields of a header are reached too.
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
    fn any_stream_has_the_same_result_at_any_chunking(
        pieces in prop::collection::vec(any_header_bytes(), 1..8),
        chunks in any_chunks(),
    ) {
        let bytes = pieces.concat();
        let whole = scan_whole(&bytes);
        prop_assert_eq!(&scan_bytewise(&bytes), &whole);
        prop_assert_eq!(&scan(&bytes, chunks.iter().copied().cycle()), &whole);

        let only = whole.ends.first().filter(|_| whole.ends.len() == 1);
        let is_message = only.is_some_and(|(end, frame)| {
            *end == bytes.len() && frame.fin && !frame.opcode.is_control()
        });
        prop_assert_eq!(Scanner::new().is_message(&bytes), is_message);

        // The frames before a violation end where tungstenite's parser says.
        let mut pos = 0;
        for (end, frame) in &whole.ends {
            let (header, payload_len, len) =
                oracle_parse(&bytes[pos..]).expect("accepted").expect("complete");
            prop_assert_eq!(*end as u64, (pos + len) as u64 + payload_len);
            prop_assert_eq!(oracle_opcode(frame.opcode), header.opcode);
            prop_assert_eq!(frame.fin, header.is_final);
            pos = *end;
        }
        // The remaining bytes are a malformed header or an incomplete frame.
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

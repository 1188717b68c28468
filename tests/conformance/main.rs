//! Conformance corpus: the layers change no outcome of valid or invalid frame sequences.
//!
//! The corpus follows RFC 6455 sections 5 to 8. The frames that the client receives, the end of its
//! connection, and the handler's input are equal with and without the layers, although a ping is
//! sent in every case.
//!
//! A binary of its own: thousands of connections with a ping per millisecond would delay other
//! tests that measure wall-clock time.

mod case;
mod closing;
mod control;
mod fragments;
mod framing;
mod run;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod utf8;

use case::{Case, Cut, Place, place};
use run::{Way, all};
use support::raw::{CLOSE, Frame};

const CUTS: [Cut; 3] = [Cut::Pieces, Cut::Bytes, Cut::Odd];

macro_rules! sections {
    ($($name:ident: $cases:expr;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test(start_paused = true)]
            async fn in_memory_in_every_cut() {
                all($cases, Way::Memory, &CUTS).await;
            }

            #[tokio::test]
            async fn over_sockets() {
                all($cases, Way::Sockets, &[Cut::Pieces]).await;
            }
        }
    )*};
}

sections! {
    lengths: framing::lengths();
    masking: framing::masking();
    reserved_bits: framing::reserved_bits();
    opcodes: framing::opcodes();
    pings_and_pongs: control::cases();
    fragmentation: fragments::cases();
    utf8_texts: utf8::cases();
    close_codes: closing::codes();
    close_bodies: closing::bodies();
    closing_order: closing::order();
}

#[test]
fn the_corpus_has_at_least_700_cases_with_unique_names() {
    let mut names: Vec<String> = corpus().into_iter().map(|case| case.name).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count >= 700, "{count} cases");
}

fn corpus() -> Vec<Case> {
    [
        framing::lengths(),
        framing::masking(),
        framing::reserved_bits(),
        framing::opcodes(),
        control::cases(),
        fragments::cases(),
        utf8::cases(),
        closing::codes(),
        closing::bodies(),
        closing::order(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn the_corpus_parser_finds_frame_boundaries() {
    let text = Frame::text("abc").masked();
    for end in 1..text.len() {
        assert_eq!(place(&text[..end]), Place::Inside, "{end}");
    }
    assert_eq!(place(&text), Place::Boundary);
    // An unmasked frame violates section 5.1, but its end is known.
    let bare = Frame::text("abc").unmasked();
    for end in 1..bare.len() {
        assert_eq!(place(&bare[..end]), Place::Inside, "{end}");
    }
    assert_eq!(place(&bare), Place::Boundary);
    let long = Frame::new(0x2, vec![7; 70_000]).masked();
    assert_eq!(place(&[&text[..], &long].concat()), Place::Boundary);
    let close = Frame::close(1000, "").masked();
    assert_eq!(place(&[&text[..], &close].concat()), Place::Closed);
    for broken in [&[0x83][..], &[0x0B], &[0x89, 0xFE], &[0x89, 0x7E], &[0x09]] {
        assert_eq!(place(&[&text[..], broken].concat()), Place::Broken);
    }
    assert_eq!(
        place(&Frame::new(CLOSE, "").unfinished().masked()),
        Place::Broken
    );
    assert_eq!(place(&[0x82, 0xFF, 0x80]), Place::Broken);
}

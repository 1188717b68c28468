//! A corpus of frame sequences, good and bad (RFC 6455 sections 5 to 8): what the client receives,
//! how its connection ends, and what the handler sees is the same with the layers and without,
//! though a ping falls into every case.
//!
//! In a binary of its own, since thousands of connections that are pinged every millisecond would keep
//! the tests beside them, which look at the clock, waiting for a processor.

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
fn there_are_as_many_cases_as_meant_and_no_two_of_a_name() {
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
fn the_corpus_own_parser_knows_its_place() {
    let text = Frame::text("abc").masked();
    for end in 1..text.len() {
        assert_eq!(place(&text[..end]), Place::Inside, "{end}");
    }
    assert_eq!(place(&text), Place::Boundary);
    // Against the rules of section 5.1, and yet it is known where it ends.
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

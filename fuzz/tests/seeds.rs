//! Runs the checks of the fuzz targets on the committed seeds and on random inputs, without a
//! fuzzer.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use tower_ws_liveness_fuzz::{scanner, stream};

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target);
    let entries = fs::read_dir(dir).expect("seeds are committed");
    let seeds: Vec<Vec<u8>> = entries
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!seeds.is_empty());
    seeds
}

/// Runs `check` on every seed, on `count` random mutations of seeds, and on `count` random inputs.
fn check_all(target: &str, count: u64, check: fn(&[u8])) {
    let seeds = seeds(target);
    for seed in &seeds {
        check(seed);
    }
    for number in 0..count {
        // The number alone reproduces a failure.
        let mut random = fastrand::Rng::with_seed(number);
        let mut input = random.choice(&seeds).unwrap().clone();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..=input.len());
            match random.u8(..3) {
                0 => input.insert(at, random.u8(..)),
                1 if at < input.len() => input[at] = random.u8(..),
                _ => input.truncate(input.len() - random.usize(..=input.len().min(4))),
            }
        }
        check(&input);
        let mut noise = vec![0; random.usize(..400)];
        random.fill(&mut noise);
        check(&noise);
    }
}

#[test]
fn the_scanner_agrees_with_the_reference_on_whole_streams() {
    check_all("scanner", 4_000, scanner::whole);
}

#[test]
fn the_scanner_agrees_with_the_reference_on_split_streams() {
    check_all("scanner_split", 4_000, scanner::split);
}

#[test]
fn the_stream_is_transparent_and_ends_once_in_every_scenario() {
    check_all("stream", 2_000, stream::run);
}

//! Asking and changing in every state of a connection: nothing panics, the driver does not spin
//! (paused time would stand still), and the end is told once.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tower_ws_liveness::{HeartbeatLayerBuilder, Liveness, ProofOfLife};

use crate::script::*;
use crate::support::recorder::Recorder;
use crate::support::within;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn builders() -> Vec<HeartbeatLayerBuilder> {
    let mut builders = Vec::new();
    for proof in [ProofOfLife::AnyBytes, ProofOfLife::MatchingPong] {
        for limit in [None, Some(1)] {
            let builder = heartbeat().proof_of_life(proof).control_frame_limit(limit);
            builders.push(builder.clone().handler_stall_timeout(ms(5_000)));
            builders.push(builder.write_timeout(None));
        }
    }
    builders
}

/// Three calls at once, of which some are given up.
fn ask(live: &Liveness, patience: Duration) {
    for _ in 0..3 {
        let live = live.clone();
        tokio::spawn(async move { timeout(patience, live.ping()).await });
    }
}

async fn shake(live: &Liveness) {
    for n in 0..100 {
        ask(live, ms(n));
        // Without an idle timeout there is nothing to set.
        let _ = match n % 7 {
            0 => live.set_interval(YEAR),
            1 => live.set_timeout(YEAR),
            2 => live.set_interval(ms(1)),
            3 => live.set_timeout(ms(1 + n % 40)),
            4 => live.set_idle_timeout(ms(1)),
            _ => Ok(()),
        };
        sleep(ms(n % 13)).await;
    }
    live.set_interval(ms(100)).unwrap();
    live.set_timeout(ms(50)).unwrap();
    ask(live, YEAR);
    sleep(ms(20_000)).await;
}

/// The states that a connection can be brought into, by number.
async fn bring(state: u8, stream: &mut Stream, live: &Liveness, peer: &Peer) -> bool {
    let hello = frame(0x80 | TEXT, None, b"hello");
    let written = match state {
        0 => &b""[..],
        1 => b"\xff\xff\xff\xff malformed",
        2 => &hello[..3],
        3 => &frame(0x80 | CLOSE, None, b""),
        _ => {
            match state {
                4 => peer.send(b"\xff\xff\xff\xff malformed"),
                5 => peer.send(&frame(0x80 | CLOSE, Some([1; 4]), b"")),
                6 => assert!(live.evict(4_000, "go")),
                7 => peer.write_steps(&[WAIT]),
                8 => peer.wire().flush_waits = true,
                _ => return false,
            }
            return true;
        }
    };
    stream.write_all(written).await.unwrap();
    true
}

#[tokio::test(start_paused = true)]
async fn whatever_is_asked_in_whatever_state_the_end_is_told_once() {
    for builder in builders() {
        for state in 0.. {
            let recorder = Recorder::new();
            let (mut stream, live, peer) = wrap_with(builder.clone().on_evict(recorder.hook()));
            if !bring(state, &mut stream, &live, &peer).await {
                break;
            }
            shake(&live).await;
            peer.send(&frame(0x80 | PING, Some([1; 4]), b"").repeat(50));
            peer.send(&[0; 20_000]);
            shake(&live).await;
            if state % 2 == 0 {
                // Evicted or not: it is only to read.
                let _ = timeout(ms(100), stream.read(&mut [0; 100])).await;
            }
            peer.drain();
            shake(&live).await;
            drop(stream);
            within("the end", live.evicted()).await;
            sleep(ms(1_000)).await;
            assert_eq!(recorder.total(), 1, "state {state}");
            assert!(peer.is_dropped(), "state {state}");
        }
    }
}

//! Calls on the handle in every state of a connection, after which its end is reported once.
//!
//! No call may panic, and the driver must not spin: paused time would stand still.

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

/// Calls `ping` three times at once and cancels the calls after `patience`.
fn spawn_pings(live: &Liveness, patience: Duration) {
    for _ in 0..3 {
        let live = live.clone();
        tokio::spawn(async move { timeout(patience, live.ping()).await });
    }
}

/// Calls `ping` and the setters with changing values for a while.
async fn call_everything(live: &Liveness) {
    for n in 0..100 {
        spawn_pings(live, ms(n));
        // Fails without an idle timeout.
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
    spawn_pings(live, YEAR);
    sleep(ms(20_000)).await;
}

/// Brings the connection into the state with this number. Returns `false` if there is none.
async fn enter_state(state: u8, stream: &mut Stream, live: &Liveness, peer: &Peer) -> bool {
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
async fn calls_on_the_handle_in_every_state_leave_one_eviction() {
    for builder in builders() {
        for state in 0.. {
            let recorder = Recorder::new();
            let (mut stream, live, peer) = wrap_with(builder.clone().on_evict(recorder.hook()));
            if !enter_state(state, &mut stream, &live, &peer).await {
                break;
            }
            call_everything(&live).await;
            peer.send(&frame(0x80 | PING, Some([1; 4]), b"").repeat(50));
            peer.send(&[0; 20_000]);
            call_everything(&live).await;
            if state % 2 == 0 {
                // Only the read matters. It fails after an eviction.
                let _ = timeout(ms(100), stream.read(&mut [0; 100])).await;
            }
            peer.drain();
            call_everything(&live).await;
            drop(stream);
            within("the end", live.evicted()).await;
            sleep(ms(1_000)).await;
            assert_eq!(recorder.total(), 1, "state {state}");
            assert!(peer.is_dropped(), "state {state}");
        }
    }
}

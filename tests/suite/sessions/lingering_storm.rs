//! Connections that resume, replace and end sessions in every interleaving of three threads.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{DuplexStream, duplex};
use tokio::runtime::Builder;
use tower_ws_liveness::{HeartbeatLayer, Linger, Liveness, LivenessStream, SessionEnd};

use super::maps::{Census, Map, Session, with_every_map_in_threads};
use super::seeded::{Seed, until};

with_every_map_in_threads![each_session_has_one_fate];

type Stream = LivenessStream<DuplexStream>;

/// Threads connect, register, end, resume and replace, while grace periods of 1 ms expire. Then
/// every session that has begun has ended once.
fn each_session_has_one_fate<M: Map>() {
    const THREADS: u64 = 3;
    const ROUNDS: u64 = 1_500;
    const KEYS: usize = 4;
    let seed = Seed::new();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    // The names of the sessions, which are unique.
    let (begun, ended) = (
        Arc::new(Mutex::new(Vec::new())),
        Arc::new(Mutex::new(Vec::new())),
    );
    let hook = Arc::clone(&ended);
    let linger = Linger::builder(Duration::from_millis(1))
        .capacity(3)
        .on_session_end(move |end: &SessionEnd<String, Session>| {
            hook.lock().unwrap().push(end.value().name.clone());
        });
    let linger = linger.build().unwrap();
    let (map, census) = (Arc::new(M::default()), Census::default());
    let layer = HeartbeatLayer::default();
    let threads = (0..THREADS).map(|thread| {
        let (mut rng, runtime) = (seed.rng(thread, 0), runtime.handle().clone());
        let (map, linger, layer) = (Arc::clone(&map), linger.clone(), layer.clone());
        let (census, begun) = (census.clone(), Arc::clone(&begun));
        std::thread::spawn(move || {
            let _entered = runtime.enter();
            let mut open: Vec<(Stream, Liveness)> = Vec::new();
            for round in 0..ROUNDS {
                let key = format!("user {}", rng.usize(..KEYS));
                match rng.u8(..10) {
                    0..4 => {
                        let (stream, live) = layer.wrap_server(duplex(64).0);
                        let name = format!("{thread}.{round}");
                        let session = census.session(&name);
                        let result = live.register_lingering(&map, key, session, &linger);
                        let registered = result.unwrap();
                        if registered.resumed().is_none() {
                            assert_eq!(registered.seat().name, name);
                            begun.lock().unwrap().push(name);
                        }
                        open.push((stream, live));
                    }
                    4..7 if !open.is_empty() => {
                        let (stream, live) = open.swap_remove(rng.usize(..open.len()));
                        if rng.bool() {
                            live.evict(4000, "");
                        }
                        drop(stream);
                    }
                    7..10 => {
                        if let Some(seat) = map.seat(&key) {
                            drop(seat.live().unregister(&map, &key));
                        }
                    }
                    _ => std::thread::yield_now(),
                }
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().unwrap();
    }
    until("all seats expire", || map.holders().is_empty());
    until("all hooks are called", || {
        ended.lock().unwrap().len() >= begun.lock().unwrap().len()
    });
    assert_eq!(linger.lingering(), 0);
    let (mut begun, mut ended) = (begun.lock().unwrap().clone(), ended.lock().unwrap().clone());
    begun.sort();
    ended.sort();
    assert_eq!(begun, ended);
    assert!(begun.len() > 50, "{} sessions", begun.len());
}

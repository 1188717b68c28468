use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use super::*;

/// For the kernel to acknowledge, on a loaded machine.
const SOON: Duration = Duration::from_secs(10);

/// The two ends of a connection. The first does not block.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    (server, client)
}

fn view(socket: &TcpStream) -> KernelView {
    kernel_view(socket.as_fd()).unwrap()
}

/// Writes until the kernel accepts no more. Returns how many bytes it accepted.
fn fill(mut socket: &TcpStream) -> usize {
    let bytes = [0; 64 * 1024];
    let mut accepted = 0;
    loop {
        match socket.write(&bytes) {
            Ok(count) => accepted += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return accepted;
            }
        }
    }
}

#[track_caller]
fn until(socket: &TcpStream, wanted: impl Fn(&KernelView) -> bool) -> KernelView {
    let end = Instant::now() + SOON;
    loop {
        let view = view(socket);
        if wanted(&view) {
            return view;
        }
        assert!(Instant::now() < end, "{view:?}");
        std::thread::yield_now();
    }
}

#[test]
fn bytes_count_until_the_peers_kernel_acknowledges_them() {
    let (server, mut client) = connection();
    assert_eq!(view(&server).unacknowledged, 0);
    let accepted = fill(&server);
    // The peer does not read: its window closes, and the rest waits here.
    let full = until(&server, |view| !view.in_flight);
    assert!(full.unacknowledged > 0 && (full.unacknowledged as usize) < accepted);
    assert!(full.rtt_micros.is_some());
    client.read_exact(&mut vec![0; accepted]).unwrap();
    until(&server, |view| view.unacknowledged == 0 && !view.in_flight);
}

#[test]
fn the_last_data_is_that_of_the_peer_read_or_not() {
    let (server, mut client) = connection();
    let begun = Instant::now();
    let aged = Duration::from_millis(200);
    let before = until(&server, |view| view.last_data >= aged);
    assert!(before.last_data <= begun.elapsed() + aged);
    client.write_all(b"unread").unwrap();
    let after = until(&server, |view| view.last_data < before.last_data);
    assert!(after.last_data <= begun.elapsed());
    assert!(after.last_ack <= begun.elapsed());
}

#[test]
fn unread_bytes_close_the_receive_window() {
    let (server, client) = connection();
    let has_window = view(&server).receive_window_open;
    client.set_nonblocking(true).unwrap();
    fill(&client);
    until(&server, |view| !view.receive_window_open);
    if !has_window {
        println!("not tested: Linux before 6.7 does not tell the window");
    }
}

#[test]
fn an_older_kernel_writes_fewer_fields() {
    let (server, _client) = connection();
    let mut buf = [0; MAX_INFO_BYTES];
    let info = syscalls::tcp_info(server.as_fd(), &mut buf).unwrap();
    assert!(info.len() < MAX_INFO_BYTES, "raise MAX_INFO_BYTES");
    // (length, version of Linux)
    for (len, version) in [(104, "2.6"), (232, "5.4"), (240, "6.2")] {
        let view = TcpInfo(&info[..len]).view(7).unwrap();
        assert_eq!(view.unacknowledged, 7, "{version}");
        assert!(!view.receive_window_open, "{version}");
    }
    assert_eq!(
        TcpInfo(&info[..80]).view(0).unwrap().rtt_micros.is_some(),
        view(&server).rtt_micros.is_some()
    );
    assert_eq!(TcpInfo(&info[..70]).view(0), None);
    assert_eq!(TcpInfo(&[]).view(0), None);
}

#[test]
fn fields_are_read_at_their_offsets() {
    // (offset, change of the view)
    type Change = fn(&mut KernelView);
    let fields: [(usize, Change); 5] = [
        (offset::PROBES, |view| view.probing = true),
        (offset::SEGMENTS_IN_FLIGHT, |view| view.in_flight = true),
        (offset::LAST_ACK_RECEIVED_MILLIS, |view| {
            view.last_ack = Duration::from_millis(1);
        }),
        (offset::LAST_DATA_RECEIVED_MILLIS, |view| {
            view.last_data = Duration::from_millis(1);
        }),
        (offset::RTT_MICROS, |view| view.rtt_micros = Some(1)),
    ];
    let zero = TcpInfo(&[0; MAX_INFO_BYTES]).view(0).unwrap();
    for (offset, change) in fields {
        let mut bytes = [0; MAX_INFO_BYTES];
        match offset {
            offset::PROBES => bytes[offset] = 1,
            _ => bytes[offset..offset + 4].copy_from_slice(&1_u32.to_ne_bytes()),
        }
        let mut expected = zero;
        change(&mut expected);
        assert_eq!(TcpInfo(&bytes).view(0), Some(expected), "{offset}");
    }
}

#[test]
fn a_window_is_open_for_a_whole_segment_only() {
    // (window, maximum segment size, whether it is open)
    let table = [
        (0, 1_460, false),
        (1_459, 1_460, false),
        (1_460, 1_460, true),
        (16 * 1024 - 1, 65_483, false),
        (16 * 1024, 65_483, true),
        (0, 0, false),
    ];
    for (window, mss, open) in table {
        let mut bytes = [0; MAX_INFO_BYTES];
        for (offset, value) in [
            (offset::RECEIVE_WINDOW, window),
            (offset::ADVERTISED_MSS, mss),
        ] {
            bytes[offset..offset + 4].copy_from_slice(&u32::to_ne_bytes(value));
        }
        assert_eq!(
            TcpInfo(&bytes).is_receive_window_open(),
            open,
            "{window} of {mss}"
        );
    }
}

#[test]
fn a_socket_of_another_kind_is_not_asked() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(kernel_view(socket.as_fd()), None);
}

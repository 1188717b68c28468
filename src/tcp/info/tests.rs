use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use socket2::{Domain, Socket, Type};

use super::*;

/// For the kernel to acknowledge, on a loaded machine.
const SOON: Duration = Duration::from_secs(10);

/// The moment of each view.
fn now() -> Moment {
    Moment::after_millis(1_000_000)
}

fn age(moment: Moment) -> Duration {
    now().since(moment)
}

/// The two ends of a connection. The first does not block.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    (server, client)
}

fn view(socket: &TcpStream) -> KernelView {
    kernel_view(socket.as_fd(), &now).unwrap()
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
    let full = until(&server, |view| !view.awaits_ack);
    assert!(full.unacknowledged > 0 && (full.unacknowledged as usize) < accepted);
    assert!(full.rtt_micros.is_some());
    client.read_exact(&mut vec![0; accepted]).unwrap();
    until(&server, |view| view.unacknowledged == 0 && !view.awaits_ack);
}

#[test]
fn the_last_data_is_that_of_the_peer_read_or_not() {
    let (server, mut client) = connection();
    let begun = Instant::now();
    let aged = Duration::from_millis(200);
    let before = until(&server, |view| age(view.last_data) >= aged);
    assert!(age(before.last_data) <= begun.elapsed() + aged);
    client.write_all(b"unread").unwrap();
    let after = until(&server, |view| view.last_data > before.last_data);
    assert!(age(after.last_data) <= begun.elapsed());
    assert!(age(after.last_ack) <= begun.elapsed());
}

/// Otherwise a delay between them would make an arrival look older than it is.
#[test]
fn the_clock_is_read_after_the_kernel_is_asked() {
    let (server, client) = connection();
    until(&server, |view| {
        age(view.last_data) >= Duration::from_millis(200)
    });
    let late = || {
        (&client).write_all(b"after the system calls").unwrap();
        let end = Instant::now() + SOON;
        while view(&server).last_data < now().before(Duration::from_millis(100)) {
            assert!(Instant::now() < end);
        }
        now()
    };
    let view = kernel_view(server.as_fd(), &late).unwrap();
    assert!(age(view.last_data) >= Duration::from_millis(200));
}

#[test]
fn unread_bytes_close_the_receive_window() {
    let (server, client) = connection();
    let has_window = view(&server).peer_may_send;
    client.set_nonblocking(true).unwrap();
    fill(&client);
    until(&server, |view| !view.peer_may_send);
    if !has_window {
        println!("not tested: Linux before 6.2 does not report the window");
    }
}

/// As a ping after the verdict on another: the segment announces the window.
#[test]
fn a_widened_window_admits_what_the_peer_has_to_send() {
    let (mut server, mut client) = connection();
    let unread = 256 * 1024;
    client.write_all(&vec![0; unread]).unwrap();
    until(&server, |view| !view.peer_may_send);
    assert!(readable_bytes(&server) < unread);
    super::super::receive_window::widen(server.as_fd());
    server.write_all(b"ping").unwrap();
    let end = Instant::now() + SOON;
    while readable_bytes(&server) < unread {
        assert!(Instant::now() < end, "{} bytes", readable_bytes(&server));
        std::thread::yield_now();
    }
    until(&server, |view| view.peer_may_send);
}

/// Returns how many bytes the kernel has for this end, within what the test needs.
fn readable_bytes(socket: &TcpStream) -> usize {
    let mut bytes = vec![0; 1 << 20];
    socket.peek(&mut bytes).unwrap()
}

/// Otherwise a low watermark would stay, and few bytes would wake no task.
#[test]
fn after_a_widened_window_one_byte_is_readable() {
    let (server, mut client) = connection();
    super::super::receive_window::widen(server.as_fd());
    let mut low_watermark = [0; 4];
    let (level, name) = (libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    let read = syscalls::option(server.as_fd(), level, name, &mut low_watermark).unwrap();
    assert_eq!(read, 1_i32.to_ne_bytes());
    client.write_all(b"x").unwrap();
    let end = Instant::now() + SOON;
    while server.peek(&mut [0]).is_err() {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
}

/// Each takes far more of the kernel's memory than of the window.
#[test]
fn small_unread_segments_use_up_the_receive_memory() {
    let (server, client) = connection();
    client.set_nodelay(true).unwrap();
    client.set_nonblocking(true).unwrap();
    let end = Instant::now() + SOON;
    while view(&server).peer_may_send {
        let _ = (&client).write(b"x");
        assert!(Instant::now() < end);
    }
}

#[test]
fn a_peer_that_has_ended_its_direction_cannot_send() {
    let (server, client) = connection();
    client.shutdown(Shutdown::Write).unwrap();
    until(&server, |view| !view.peer_may_send);
}

#[test]
fn an_older_kernel_writes_fewer_fields() {
    let (server, _client) = connection();
    let mut buf = [0; MAX_INFO_BYTES];
    let info = tcp_info(&server, &mut buf).unwrap();
    assert!(info.len() < MAX_INFO_BYTES, "raise MAX_INFO_BYTES");
    let memory = Fields(&EMPTY_MEMORY);
    // (length, version of Linux)
    for (len, version) in [(104, "2.6"), (232, "5.4")] {
        let view = super::view(Fields(&info[..len]), memory, 7, now()).unwrap();
        assert_eq!(view.unacknowledged, 7, "{version}");
        assert!(!view.peer_may_send, "{version}");
    }
    // Without the maximum segment size it cannot be known whether the others are filled in.
    assert_eq!(super::view(Fields(&info[..84]), memory, 0, now()), None);
    assert_eq!(super::view(Fields(&[]), memory, 0, now()), None);
    let view = super::view(Fields(info), Fields(&[]), 7, now()).unwrap();
    assert!(
        view.unacknowledged == 7 && !view.peer_may_send,
        "before 4.12"
    );
}

/// Nothing is buffered, no limit is set, and nothing was dropped.
const EMPTY_MEMORY: [u8; MEMORY_BYTES] = [0; MEMORY_BYTES];

fn tcp_info<'a>(socket: &impl AsFd, buf: &'a mut [u8]) -> Option<&'a [u8]> {
    syscalls::option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, buf)
}

/// The view of these fields with [`EMPTY_MEMORY`].
fn view_of(info: &[u8]) -> Option<KernelView> {
    super::view(Fields(info), Fields(&EMPTY_MEMORY), 0, now())
}

#[test]
fn fields_are_read_at_their_offsets() {
    // (offset, change of the view)
    type Change = fn(&mut KernelView);
    let fields: [(usize, u8, Change); 8] = [
        (offset::RETRANSMITS, 1, |view| view.retransmitting = true),
        (offset::PROBES, 1, |_| {}),
        (offset::PROBES, 2, |view| view.awaits_ack = true),
        (offset::SEGMENTS_IN_FLIGHT, 1, |view| view.awaits_ack = true),
        (offset::LAST_ACK_RECEIVED_MILLIS, 1, |view| {
            view.last_ack = now().before(Duration::from_millis(1));
        }),
        (offset::LAST_DATA_RECEIVED_MILLIS, 1, |view| {
            view.last_data = now().before(Duration::from_millis(1));
        }),
        (offset::RTT_MICROS, 1, |view| view.rtt_micros = Some(1)),
        (offset::DATA_SEGMENTS_RECEIVED, 1, |view| {
            view.data_segments = 1;
        }),
    ];
    let mut zero = [0; MAX_INFO_BYTES];
    assert_eq!(view_of(&zero), None, "no maximum segment size");
    set(&mut zero, offset::ADVERTISED_MSS, 1_460);
    set(&mut zero, offset::SEND_MSS, 1_400);
    let unchanged = view_of(&zero).unwrap();
    assert_eq!((unchanged.last_ack, unchanged.last_data), (now(), now()));
    for (offset, value, change) in fields {
        let mut bytes = zero;
        match offset {
            offset::RETRANSMITS | offset::PROBES => bytes[offset] = value,
            _ => set(&mut bytes, offset, value.into()),
        }
        let mut expected = unchanged;
        change(&mut expected);
        assert_eq!(view_of(&bytes), Some(expected), "{offset}");
    }
}

#[test]
fn bytes_behind_a_gap_are_at_most_those_in_flight() {
    let mut info = [0; MAX_INFO_BYTES];
    set(&mut info, offset::ADVERTISED_MSS, 1_460);
    set(&mut info, offset::SEND_MSS, 1_400);
    set(&mut info, offset::SEGMENTS_BEHIND_GAP, 3);
    // (unacknowledged, unsent of them, received behind a gap)
    for (unacknowledged, unsent, expected) in [
        (10_000, 0, 4_200),
        (10_000, 5_800, 4_200),
        // The segments are small.
        (10_000, 9_000, 1_000),
        (10_000, 10_001, 0),
    ] {
        set(&mut info, offset::UNSENT_BYTES, unsent);
        let memory = Fields(&EMPTY_MEMORY);
        let view = super::view(Fields(&info), memory, unacknowledged, now()).unwrap();
        assert_eq!(
            view.received_behind_gap, expected,
            "{unacknowledged}, {unsent}"
        );
    }
}

#[test]
fn the_peer_may_send_with_window_and_memory_only() {
    let mut info = [0; MAX_INFO_BYTES];
    set(&mut info, offset::ADVERTISED_MSS, 1_460);
    set(&mut info, offset::RECEIVE_WINDOW, 65_535);
    info[offset::STATE] = ESTABLISHED;
    // (used, limit, whether it may send)
    let table = [
        (0, 131_072, true),
        (131_072 - ROOM_BYTES, 131_072, true),
        (131_073 - ROOM_BYTES, 131_072, false),
        (131_840, 131_072, false),
    ];
    for (used, limit, may_send) in table {
        let mut memory = EMPTY_MEMORY;
        set(&mut memory, offset::memory::RECEIVE_USED, used);
        set(&mut memory, offset::memory::RECEIVE_LIMIT, limit);
        let view = super::view(Fields(&info), Fields(&memory), 0, now());
        assert_eq!(view.unwrap().peer_may_send, may_send, "{used} of {limit}");
    }
}

fn set(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
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
        set(&mut bytes, offset::RECEIVE_WINDOW, window);
        set(&mut bytes, offset::ADVERTISED_MSS, mss);
        assert_eq!(
            is_receive_window_open(Fields(&bytes)),
            open,
            "{window} of {mss}"
        );
    }
}

#[test]
fn a_socket_of_another_kind_is_not_asked() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(kernel_view(socket.as_fd(), &now), None);
}

/// It has `TCP_INFO` too, of its first subflow.
#[test]
fn a_socket_of_mptcp_is_not_asked() {
    let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) else {
        println!("not tested: this kernel has no MPTCP");
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    socket.connect(&addr.into()).unwrap();
    let mut buf = [0; MAX_INFO_BYTES];
    assert!(tcp_info(&socket, &mut buf).is_some());
    assert_eq!(kernel_view(socket.as_fd(), &now), None);
}

//! The ring on its own: sockets, bells, hand-off between rings.

use super::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

fn ring(direct_slots: u32) -> Ring {
    let config = RingConfig { entries: 64, direct_slots, recv_buffers: 16, recv_buffer_bytes: 256, io_workers: 1 };
    Ring::open(&config, Waker::new().unwrap()).unwrap()
}

/// Waits for the next completion of `kind`; others are dropped.
fn next(ring: &mut Ring, kind: Kind) -> Completion {
    let mut batch = Vec::new();
    for _ in 0..100 {
        ring.reap(&mut batch, 1);
        if let Some(found) = batch.first() {
            if found.user_data.kind() == kind {
                return *found;
            }
            continue;
        }
        ring.park(100_000).unwrap();
    }
    panic!("no completion of {kind:?}");
}

fn echo_one(direct_slots: u32) {
    let mut ring = ring(direct_slots);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    ring.accept(listener.as_raw_fd(), UserData::only(Kind::Accept));
    ring.enter().unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = next(&mut ring, Kind::Accept).ok().unwrap();
    let socket = if direct_slots > 0 { Socket::Direct(accepted) } else { Socket::Fd(accepted as RawFd) };

    ring.recv_once(socket, UserData::new(Kind::Upgrade, 1, 1));
    client.write_all(b"once").unwrap();
    let once = next(&mut ring, Kind::Upgrade);
    let filled = ring.recv_buffers.take(once.buffer().unwrap(), once.result as usize);
    assert_eq!(*filled, *b"once");
    ring.recv_buffers.give_back(filled);

    // More bytes than all buffers hold: each must come back for the stream to get through.
    ring.recv(socket, UserData::new(Kind::Recv, 1, 1));
    let sent: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    let writer = std::thread::spawn({
        let mut client = client.try_clone().unwrap();
        let sent = sent.clone();
        move || client.write_all(&sent).unwrap()
    });
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let part = next(&mut ring, Kind::Recv);
        if let Some(bid) = part.buffer() {
            let filled = ring.recv_buffers.take(bid, part.result as usize);
            got.extend_from_slice(&filled);
            ring.recv_buffers.give_back(filled);
        }
        if !part.more() {
            ring.recv(socket, UserData::new(Kind::Recv, 1, 1));
        }
    }
    assert_eq!(got, sent);
    writer.join().unwrap();

    // SAFETY: `got` lives until the completion below.
    unsafe { ring.send(socket, got.as_ptr(), 7, UserData::new(Kind::Send, 1, 1)) };
    assert_eq!(next(&mut ring, Kind::Send).result, 7);
    let mut echoed = [0; 7];
    client.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, got[..7]);

    ring.cancel(UserData::new(Kind::Recv, 1, 1), UserData::new(Kind::Cancel, 1, 1));
    assert_eq!(next(&mut ring, Kind::Recv).result, -libc::ECANCELED);
    ring.close(socket, UserData::new(Kind::Close, 1, 1));
    assert_eq!(next(&mut ring, Kind::Close).result, 0);
    assert_eq!(client.read(&mut echoed).unwrap(), 0);
}

#[test]
fn a_socket_is_served_as_descriptor_and_as_direct_slot() {
    echo_one(0);
    echo_one(8);
}

#[test]
fn a_waker_and_a_peer_end_a_park() {
    let mut sleeper = ring(0);
    let waker = sleeper.waker().clone();
    std::thread::spawn(move || waker.wake());
    let rang = next(&mut sleeper, Kind::Control);
    sleeper.waker_rang(&rang);

    let fd = sleeper.raw_fd();
    std::thread::spawn(move || {
        let mut peer = ring(0);
        peer.wake(fd);
        peer.enter().unwrap();
    });
    next(&mut sleeper, Kind::Wake);
}

#[test]
fn a_direct_socket_moves_to_a_peer_and_leaves_no_slot_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut taker = ring(1);
    let fd = taker.raw_fd();
    let (moved_one, one_moved) = std::sync::mpsc::channel();
    let giver = std::thread::spawn(move || {
        let mut giver = ring(1);
        // One slot only: the second round accepts because the first one's was closed.
        for ticket in 0..2 {
            giver.accept(listener.as_raw_fd(), UserData::only(Kind::Accept));
            let slot = next(&mut giver, Kind::Accept).ok().unwrap();
            giver.hand_off(
                slot,
                fd,
                UserData::new(Kind::HandOff, 0, ticket),
                UserData::new(Kind::HandOffSent, slot, 0),
                UserData::new(Kind::HandOffClosed, slot, 0),
            );
            let sent = next(&mut giver, Kind::HandOffSent);
            let closed = next(&mut giver, Kind::HandOffClosed);
            if ticket == 0 {
                assert_eq!((sent.result >= 0, closed.result), (true, 0));
                moved_one.send(()).unwrap();
            } else {
                // The taker's table is full: the socket stays with the giver.
                assert_eq!((sent.result, closed.result), (-libc::ENFILE, -libc::ECANCELED));
            }
        }
    });
    let _first = TcpStream::connect(address).unwrap();
    let moved = next(&mut taker, Kind::HandOff);
    assert_eq!((moved.user_data.generation(), moved.ok()), (0, Ok(0)));
    one_moved.recv().unwrap();
    let _second = TcpStream::connect(address).unwrap();
    giver.join().unwrap();
}

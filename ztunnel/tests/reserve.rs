//! Connections that are accepted when the data path's descriptors are used up. A process of its own: the numbers are the
//! process's. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::cell::Cell;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tokio::net::TcpListener;
use tokio::task::{JoinSet, LocalSet};
use ztunnel::descriptors;

const LISTENERS: usize = 40;
const BOUND: Duration = Duration::from_secs(30);

#[test]
fn a_part_of_the_reserve_is_lent_to_who_was_accepted_already_and_the_rest_are_sent_away() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
    assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, crowd());
}

async fn crowd() {
    // Of 200, the reserve is 64, of which a quarter is lent.
    let reserve = descriptors::keep_reserve(200);
    let (cap, lent) = (200 - reserve as i32, reserve as usize / 4);
    let mut listeners = Vec::new();
    for _ in 0..LISTENERS {
        listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
    }
    let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let (mut accepting, begun) = (JoinSet::new(), Rc::new(Cell::new(0)));
    for listener in listeners {
        let begun = begun.clone();
        accepting.spawn_local(async move {
            let mut accept = Box::pin(descriptors::accept(&listener));
            assert!(futures_util::poll!(&mut accept).is_pending());
            begun.set(begun.get() + 1);
            let accepted = accept.as_mut().await;
            drop(accept);
            // Kept, since its number would be free otherwise.
            (accepted, listener)
        });
    }
    // Each listener waits for its caller when the last number below the cap is taken.
    while begun.get() < LISTENERS {
        tokio::task::yield_now().await;
    }
    let mut others = vec![File::open("/dev/null").unwrap()];
    while others.last().unwrap().as_raw_fd() < cap {
        others.push(File::open("/dev/null").unwrap());
    }
    let clients: Vec<_> = addresses.iter().map(|address| TcpStream::connect(address).unwrap()).collect();

    let mut sent_away = Vec::new();
    while sent_away.len() < LISTENERS - lent {
        let next = tokio::time::timeout(BOUND, accepting.join_next()).await;
        let next = next.unwrap_or_else(|_| panic!("only {} are sent away", sent_away.len()));
        let (accepted, listener) = next.unwrap().unwrap();
        assert_eq!(accepted.unwrap_err().raw_os_error(), Some(libc::EMFILE));
        sent_away.push(listener);
    }
    let mut kept = Vec::new();
    for client in clients {
        client.set_nonblocking(true).unwrap();
        match (&client).read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => kept.push(client),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            Ok(length) => panic!("{length} bytes of nobody"),
        }
    }
    assert_eq!(kept.len(), lent, "as many wait as may");
    assert_eq!(accepting.len(), lent);

    // With numbers free again they are served, and leave the reserve.
    others.truncate(others.len() / 2);
    while let Some(served) = tokio::time::timeout(BOUND, accepting.join_next()).await.expect("they are served") {
        let (accepted, _listener) = served.unwrap();
        let (stream, _) = accepted.unwrap();
        assert!(stream.as_raw_fd() < cap, "{} of {cap}", stream.as_raw_fd());
        stream.try_write(b"!").unwrap();
    }
    for client in &kept {
        let mut client = client;
        client.set_nonblocking(false).unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
}

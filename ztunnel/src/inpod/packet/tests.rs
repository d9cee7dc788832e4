//! What a packet may be, on a real socket pair.

use super::*;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, socketpair};
use std::fs::File;

fn pair() -> (OwnedFd, PacketSocket) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (agent, ours) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    (agent, PacketSocket::new(ours).unwrap())
}

fn send(agent: &OwnedFd, bytes: &[u8], fds: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(agent.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None).unwrap();
}

#[tokio::test]
async fn a_descriptor_that_comes_is_closed_in_programs_that_we_run() {
    let (agent, ours) = pair();
    let file = File::open("/dev/null").unwrap();
    send(&agent, b"x", &[file.as_raw_fd()]);
    let fd = ours.recv().await.unwrap().fd.unwrap();
    let flags = FdFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFD).unwrap());
    assert!(flags.contains(FdFlag::FD_CLOEXEC));
}

#[tokio::test]
async fn packets_of_1024_bytes_pass_whole_each_way_and_one_more_is_an_error() {
    let (agent, ours) = pair();
    for (length, whole) in [(1, true), (1024, true), (1025, false), (2048, false)] {
        send(&agent, &vec![7; length], &[]);
        let received = ours.recv().await;
        assert_eq!(received.as_ref().is_ok_and(|packet| packet.data.len() == length), whole, "{length}: {received:?}");
        assert!(whole || matches!(received, Err(PacketError::Truncated)));
    }
    ours.send(&[7; 1024]).await.unwrap();
    let mut buffer = [0; 2048];
    assert_eq!(nix::unistd::read(&agent, &mut buffer).unwrap(), 1024);
}

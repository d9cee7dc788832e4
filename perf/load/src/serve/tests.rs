use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use super::*;

/// A server of this process's, on ports of the system's choice, for as long as the test runs.
pub(crate) fn start(kinds: &[Kind]) -> Vec<SocketAddr> {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let listen: Vec<_> = kinds.iter().map(|kind| Listen { kind: *kind, address: local }).collect();
    let server = Server::bind(&listen, 2, 1024).unwrap();
    let addresses = server.addresses.clone();
    std::thread::spawn(|| server.run());
    addresses
}

/// An address where nobody listens, nor anybody else can as long as the socket is held.
pub(crate) fn closed() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

fn until_end(address: SocketAddr, send: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(send).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn one_port_tells_by_the_first_bytes() {
    let address = start(&[Kind::Auto])[0];
    assert_eq!(until_end(address, b"x"), b"x");
    assert_eq!(until_end(address, b"GOOD DAY"), b"GOOD DAY", "begins like GET");
    assert_eq!(until_end(address, b"SINK\n123"), 8u64.to_be_bytes());
    let page = until_end(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(page.starts_with(b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n"));
    assert_eq!(page.len() - page.windows(4).position(|w| w == b"\r\n\r\n").unwrap() - 4, 1024);

    let mut source = TcpStream::connect(address).unwrap();
    source.write_all(SOURCE).unwrap();
    source.read_exact(&mut vec![0; 3 << 20]).unwrap();
}

#[test]
fn requests_in_pieces_and_several_at_once_are_each_answered() {
    let address = start(&[Kind::Http])[0];
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let count = |answer: &[u8]| answer.windows(9).filter(|w| w == b"HTTP/1.1 ").count();
    assert_eq!(count(&until_end(address, &request.repeat(300))), 300);

    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in request {
        stream.write_all(&[*byte]).unwrap();
    }
    stream.write_all(b"GET / HTTP/1.1\r\nconnection: Close\r\n\r\nGET / HTTP/1.1\r\n\r\n").unwrap();
    let mut all = Vec::new();
    let _reset = stream.read_to_end(&mut all);
    assert_eq!(count(&all), 2, "one after the last is not answered");
    assert!(until_end(address, b"POST / HTTP/1.1\r\n\r\n").starts_with(b"HTTP/1.1 405 "));
}

#[test]
fn what_cannot_be_listened_on_is_told() {
    let error = |text: &str| format!("{:#}", text.parse::<Listen>().unwrap_err());
    assert_eq!(error("smtp=0.0.0.0:25"), "\"smtp\" is not served: take auto, http, echo, sink, source or grpc");
    assert!(error("8080").starts_with("\"8080\" is not an address:port, as in 0.0.0.0:8080"));
    assert_eq!("http=[::]:80".parse::<Listen>().unwrap().kind, Kind::Http);
}

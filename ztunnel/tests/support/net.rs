//! Network namespaces that end with the test.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use ztunnel::inpod::netns::Netns;

/// A namespace; the kernel removes it, and all that is in it, with the last descriptor.
pub(crate) struct Namespace {
    pub(crate) netns: Netns,
    file: File,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        // A thread of its own: a namespace is entered for good by unshare(2).
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("these tests make network namespaces: run them as root (CAP_SYS_ADMIN, CAP_NET_ADMIN)");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let namespace = Self { netns: Netns::new(file.try_clone().unwrap().into()).unwrap(), file };
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Runs a script inside.
    pub(crate) fn sh(&self, script: &str) {
        self.feed("sh", &["-e"], script);
    }

    /// Runs a program inside, with `input` to read.
    pub(crate) fn feed(&self, program: &str, args: &[&str], input: &str) {
        let output = self
            .netns
            .run(|| {
                let mut child = Command::new(program)
                    .args(args)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
                child.wait_with_output().unwrap()
            })
            .unwrap();
        assert!(output.status.success(), "{input}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// A bridge that pods hang on.
pub(crate) struct Wire {
    namespace: Namespace,
}

/// A pod: one namespace, two addresses.
pub(crate) struct TestPod {
    pub(crate) namespace: Namespace,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

impl Wire {
    pub(crate) fn new() -> Self {
        let namespace = Namespace::new();
        namespace.sh("ip link add br0 type bridge\nip link set br0 up");
        Self { namespace }
    }

    /// Plugs in pod `n`, 198.18.0.n and fd00::n.
    pub(crate) fn pod(&self, n: u8) -> TestPod {
        let namespace = Namespace::new();
        self.namespace.sh(&format!(
            "ip link add v{n} type veth peer name eth0 netns {}\nip link set v{n} master br0 up",
            namespace.path()
        ));
        namespace.sh(&format!(
            "ip addr add 198.18.0.{n}/24 dev eth0\nip addr add fd00::{n:x}/64 dev eth0 nodad\nip link set eth0 up\n\
             ip route add default via 198.18.0.254\nip -6 route add default via fd00::fe\n\
             for f in all default eth0 lo; do echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter; done\n\
             echo 1 > /proc/sys/net/ipv4/tcp_migrate_req"
        ));
        TestPod {
            namespace,
            v4: IpAddr::from([198, 18, 0, n]),
            v6: IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
        }
    }
}

/// What the node agent lays in a pod.
pub(crate) const RULES: &str = "
table inet istio-ambient-mangle {
  chain prerouting { type filter hook prerouting priority mangle;
    meta mark & 0xfff == 0x539 ct mark set 0x111; }
  chain output { type route hook output priority mangle;
    ct mark & 0xfff == 0x111 meta mark set ct mark; }
}
table inet istio-ambient-nat {
  chain prerouting { type nat hook prerouting priority dstnat;
    meta l4proto != tcp return
    ip daddr 127.0.0.1 return
    ip6 daddr ::1 return
    tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006; }
  chain output { type nat hook output priority -100;
    meta l4proto != tcp return
    meta mark & 0xfff == 0x111 accept
    ip daddr 127.0.0.1 return
    ip6 daddr ::1 return
    oifname lo accept
    meta mark & 0xfff != 0x539 meta l4proto tcp redirect to :15001; }
}
";

impl TestPod {
    pub(crate) fn redirect(&self) {
        self.namespace.feed("nft", &["-f", "-"], RULES);
        self.namespace.sh("for v in -4 -6; do ip $v rule add fwmark 0x111/0xfff pref 32764 lookup 100; done\n\
             ip route add local 0.0.0.0/0 dev lo table 100\nip -6 route add local ::/0 dev lo table 100");
    }

    /// A server's socket in the pod.
    pub(crate) fn listen(&self, ip: IpAddr, port: u16) -> TcpListener {
        let addr = SocketAddr::new(ip, port);
        let listener = self.namespace.netns.run(|| {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.bind(&addr.into()).unwrap();
            socket.listen(4096).unwrap();
            std::net::TcpListener::from(socket)
        });
        TcpListener::from_std(listener.unwrap()).unwrap()
    }

    /// A client's connection from the pod.
    pub(crate) async fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = self.namespace.netns.run(|| if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() });
        tokio::time::timeout(Duration::from_secs(20), socket.unwrap()?.connect(to)).await?
    }
}

//! Network namespaces of a test's own: a wire with a bridge, pods on it, and the redirection of section 1.2 in them.
//!
//! ```text
//!   wire: br0 198.18.1.254, fd00:18:1::fe ── p<n> ═ eth0 198.18.1.<n>, fd00:18:1::<n> (pod n)
//! ```
//! A namespace lives as long as its file is open: nothing is named, nothing remains.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace.
#[derive(Debug, Clone)]
pub(crate) struct Netns(Arc<File>);

impl Netns {
    fn new() -> Result<Self> {
        let thread = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace: run the tests as root")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let file = thread.join().map_err(|_| anyhow!("the thread panicked"))??;
        Ok(Self(Arc::new(file)))
    }

    /// One that is named by a file.
    pub(crate) fn open(path: &std::path::Path) -> Result<Self> {
        Ok(Self(Arc::new(File::open(path).with_context(|| path.display().to_string())?)))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// A path by which `ip` finds it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs a closure on a thread that is in the namespace. Sockets made there stay there.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let file = Arc::clone(&self.0);
        let thread = std::thread::spawn(move || -> Result<T> {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
            Ok(work())
        });
        thread.join().map_err(|_| anyhow!("the thread in the namespace panicked"))?
    }

    /// Runs a program in the namespace with this on its stdin; its stdout.
    pub(crate) fn command(&self, args: &[&str], stdin: &str) -> Result<String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let stdin = stdin.to_owned();
        self.run(move || {
            let mut command = Command::new(&args[0]);
            command.args(&args[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().with_context(|| format!("starting {}", args[0]))?;
            child.stdin.take().context("its stdin")?.write_all(stdin.as_bytes())?;
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })?
    }

    pub(crate) fn listen(&self, to: impl Into<SocketAddr>) -> Result<tokio::net::TcpListener> {
        let to = to.into();
        let listener = self.run(move || TcpListener::bind(to))?.with_context(|| format!("listening on {to}"))?;
        listener.set_nonblocking(true)?;
        Ok(tokio::net::TcpListener::from_std(listener)?)
    }

    /// Connects; the kernel's answer comes within the deadline.
    pub(crate) async fn connect(&self, to: SocketAddr) -> Result<tokio::net::TcpStream> {
        let netns = self.clone();
        let stream = tokio::task::spawn_blocking(move || {
            netns.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(20)))
        });
        let stream = stream.await??.with_context(|| format!("connecting to {to}"))?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(tokio::net::TcpStream::from_std(stream)?)
    }

    pub(crate) fn udp(&self, bind: SocketAddr) -> Result<tokio::net::UdpSocket> {
        let socket = self.run(move || UdpSocket::bind(bind))??;
        socket.set_nonblocking(true)?;
        Ok(tokio::net::UdpSocket::from_std(socket)?)
    }
}

/// The wire of one test.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) netns: Netns,
}

impl Wire {
    pub(crate) fn new() -> Result<Self> {
        let netns = Netns::new()?;
        let script = "link set lo up\nlink add br0 type bridge\nlink set br0 up\n\
                      addr add 198.18.1.254/24 dev br0\naddr add fd00:18:1::fe/64 dev br0 nodad\n\
                      addr add 198.18.9.9/32 dev lo\naddr add fd00:18:9::9/128 dev lo nodad\n";
        netns.command(&["ip", "-batch", "-"], script)?;
        Ok(Self { netns })
    }

    /// A namespace on the wire.
    pub(crate) fn pod(&self, number: u8) -> Result<Netns> {
        let pod = Netns::new()?;
        let link = format!("link add p{number} type veth peer name eth0 netns {}\n", pod.path());
        let script = format!("{link}link set p{number} master br0\nlink set p{number} up\n");
        self.netns.command(&["ip", "-batch", "-"], &script)?;
        let script = format!(
            "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
             route add default via 198.18.1.254\nroute add default via fd00:18:1::fe\n",
            ipv4(number),
            ipv6(number)
        );
        pod.command(&["ip", "-batch", "-"], &script)?;
        Ok(pod)
    }
}

/// The address of the wire's own end, outside every mesh.
pub(crate) const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 9, 9));
pub(crate) const OUTSIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x18, 9, 0, 0, 0, 0, 9));

pub(crate) fn ipv4(pod: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 18, 1, pod))
}

pub(crate) fn ipv6(pod: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x18, 1, 0, 0, 0, 0, pod.into()))
}

/// A Service address by its number.
pub(crate) fn vip(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 19, 0, number))
}

/// The rules of 1.2 in their iptables form, and the policy route of 1.1.
pub(crate) fn redirect(pod: &Netns) -> Result<()> {
    let rules = |probe: &str, loopback: &str| {
        format!(
            "*mangle\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
             -A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n\
             -A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n\
             -A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
             COMMIT\n*nat\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
             -A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n\
             -A ISTIO_PRERT -s {probe} -p tcp -j ACCEPT\n\
             -A ISTIO_PRERT ! -d {loopback} -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006\n\
             -A ISTIO_OUTPUT -d {probe} -p tcp -j ACCEPT\n\
             -A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n\
             -A ISTIO_OUTPUT ! -d {loopback} -o lo -j ACCEPT\n\
             -A ISTIO_OUTPUT ! -d {loopback} -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001\n\
             COMMIT\n"
        )
    };
    pod.command(&["iptables-nft-restore"], &rules("169.254.7.127/32", "127.0.0.1/32"))?;
    pod.command(&["ip6tables-nft-restore"], &rules("fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128", "::1/128"))?;
    let route = |all: &str| {
        format!("rule add fwmark 0x111/0xfff pref 32764 lookup 100\nroute add local {all} dev lo table 100\n")
    };
    pod.command(&["ip", "-batch", "-"], &route("0.0.0.0/0"))?;
    pod.command(&["ip", "-6", "-batch", "-"], &route("::/0"))?;
    Ok(())
}

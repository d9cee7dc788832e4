//! The listeners in a pod's namespace, one set per worker; DNS is served by one worker alone.
//!
//! As many sockets as workers share a port (`SO_REUSEPORT`), one each. Where ports aren't shared, or the process before
//! us handed its sockets over, workers share sockets, or have several: every queue must be somebody's.

use std::io;
use std::net::TcpListener;

use aquifer_core::inbound::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};

use crate::config;
use crate::dns::Dns;
use crate::dns::server::Sockets;
use crate::inpod::handover::{Handed, Kind};
use crate::inpod::netns::Netns;
use crate::socket::{self, TcpOptions};

/// One worker's listeners of a pod.
#[derive(Debug)]
pub struct Listeners<L = TcpListener> {
    /// 15001; not for our own pod.
    pub outbound: Vec<L>,
    /// 15006; not for our own pod.
    pub plaintext: Vec<L>,
    /// 15008.
    pub hbone: Vec<L>,
    /// 15053; on one worker only.
    pub dns: Option<Sockets>,
}

impl Listeners {
    /// A set for each worker, all or none, from sockets that were handed over and new ones. Blocks for some system calls
    /// only.
    pub fn open(
        netns: &Netns,
        config: &config::Proxy,
        dns: Option<&Dns>,
        sets: usize,
        handed: Handed,
    ) -> io::Result<Vec<Self>> {
        let (mut outbound, mut plaintext, mut hbone) = (Vec::new(), Vec::new(), Vec::new());
        let (mut dns_udp, mut dns_tcp) = (Vec::new(), Vec::new());
        for (kind, fd) in handed {
            match kind {
                Kind::Outbound => outbound.push(fd.into()),
                Kind::Plaintext => plaintext.push(fd.into()),
                Kind::Hbone => hbone.push(fd.into()),
                Kind::DnsUdp => dns_udp.push(fd.into()),
                Kind::DnsTcp => dns_tcp.push(fd.into()),
            }
        }
        let [outbound, plaintext, hbone] = netns.run(|| {
            let spread = |port, handed| spread(config, port, handed, sets);
            io::Result::Ok([
                spread(OUTBOUND_PORT, outbound)?,
                spread(INBOUND_PLAINTEXT_PORT, plaintext)?,
                spread(HBONE_PORT, hbone)?,
            ])
        })??;
        let mut opened: Vec<Self> = outbound
            .into_iter()
            .zip(plaintext)
            .zip(hbone)
            .map(|((outbound, plaintext), hbone)| Self { outbound, plaintext, hbone, dns: None })
            .collect();
        // Pods are spread over the workers by the number of their namespace.
        let chosen = netns.id().spread(sets);
        if let (Some(dns), Some(set)) = (dns, opened.get_mut(chosen)) {
            let handed = Sockets { udp: dns_udp, tcp: dns_tcp };
            set.dns = Some(Sockets::open_with(netns, dns.listen, &config.tcp, config.reuse_port, handed)?);
        }
        Ok(opened)
    }

    /// Only HBONE: our own pod, whose other traffic isn't captured.
    pub fn open_hbone_only(netns: &Netns, config: &config::Proxy) -> io::Result<Self> {
        let hbone = netns.run(|| listen(config, HBONE_PORT))??;
        Ok(Self { outbound: Vec::new(), plaintext: Vec::new(), hbone: vec![hbone], dns: None })
    }

    /// Hands the sockets to the current runtime.
    pub fn into_tokio(self) -> io::Result<Listeners<tokio::net::TcpListener>> {
        let tokio =
            |list: Vec<TcpListener>| list.into_iter().map(tokio::net::TcpListener::from_std).collect::<io::Result<_>>();
        Ok(Listeners {
            outbound: tokio(self.outbound)?,
            plaintext: tokio(self.plaintext)?,
            hbone: tokio(self.hbone)?,
            dns: self.dns,
        })
    }
}

/// A port's listeners, by worker.
fn spread(
    config: &config::Proxy,
    port: u16,
    handed: Vec<TcpListener>,
    sets: usize,
) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut sockets = Vec::with_capacity(sets);
    for listener in handed {
        match socket::adopt(&listener, port, &options(config, port)) {
            Ok(()) => sockets.push(listener),
            Err(error) => tracing::warn!(port, %error, "a socket that was handed over is of no use"),
        }
    }
    if sockets.is_empty() {
        let count = if config.reuse_port { sets } else { 1 };
        for _ in 0..count {
            sockets.push(listen(config, port)?);
        }
    }
    for next in sockets.len()..sets {
        sockets.push(sockets[next % sockets.len()].try_clone()?);
    }
    let mut spread: Vec<Vec<_>> = (0..sets).map(|_| Vec::new()).collect();
    for (number, listener) in sockets.into_iter().enumerate() {
        spread[number % sets].push(listener);
    }
    Ok(spread)
}

fn listen(config: &config::Proxy, port: u16) -> io::Result<TcpListener> {
    socket::listen_wildcard(port, config.ipv6, &options(config, port), config.original_source, config.reuse_port)
        .map_err(|e| io::Error::new(e.kind(), format!("port {port}: {e}")))
}

fn options(config: &config::Proxy, port: u16) -> TcpOptions {
    // Who comes here is the pod's own application; elsewhere anybody may.
    if port == OUTBOUND_PORT { config.tcp.within_pod() } else { config.tcp }
}

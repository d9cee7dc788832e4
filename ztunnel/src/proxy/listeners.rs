//! The listeners in a pod's namespace, one set per worker; DNS is served by one worker alone.

use std::io;
use std::net::TcpListener;

use aquifer_core::inbound::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};

use crate::config;
use crate::dns::Dns;
use crate::dns::server::Sockets;
use crate::inpod::netns::Netns;
use crate::socket;

/// One worker's listeners of a pod.
#[derive(Debug)]
pub struct Listeners<L = TcpListener> {
    /// 15001; not for our own pod.
    pub outbound: Option<L>,
    /// 15006; not for our own pod.
    pub plaintext: Option<L>,
    /// 15008.
    pub hbone: L,
    /// 15053; on one worker only.
    pub dns: Option<Sockets>,
}

impl Listeners {
    /// Opens a set for each worker, all or none. Blocks for some system calls only.
    pub fn open(netns: &Netns, config: &config::Proxy, dns: Option<&Dns>, sets: usize) -> io::Result<Vec<Self>> {
        let mut opened: Vec<Self> = netns.run(|| {
            (0..sets)
                .map(|_| {
                    Ok(Self {
                        outbound: Some(listen(config, OUTBOUND_PORT)?),
                        plaintext: Some(listen(config, INBOUND_PLAINTEXT_PORT)?),
                        hbone: listen(config, HBONE_PORT)?,
                        dns: None,
                    })
                })
                .collect::<io::Result<_>>()
        })??;
        // Pods are spread over the workers by the number of their namespace.
        let chosen = netns.id().spread(sets);
        if let (Some(dns), Some(set)) = (dns, opened.get_mut(chosen)) {
            set.dns = Some(Sockets::open(netns, dns.listen, &config.tcp, config.reuse_port)?);
        }
        Ok(opened)
    }

    /// Only HBONE: our own pod, whose other traffic isn't captured.
    pub fn open_hbone_only(netns: &Netns, config: &config::Proxy) -> io::Result<Self> {
        let hbone = netns.run(|| listen(config, HBONE_PORT))??;
        Ok(Self { outbound: None, plaintext: None, hbone, dns: None })
    }

    /// Hands the sockets to the current runtime.
    pub fn into_tokio(self) -> io::Result<Listeners<tokio::net::TcpListener>> {
        let tokio = tokio::net::TcpListener::from_std;
        Ok(Listeners {
            outbound: self.outbound.map(tokio).transpose()?,
            plaintext: self.plaintext.map(tokio).transpose()?,
            hbone: tokio(self.hbone)?,
            dns: self.dns,
        })
    }
}

fn listen(config: &config::Proxy, port: u16) -> io::Result<TcpListener> {
    socket::listen_wildcard(port, config.ipv6, &config.tcp, config.original_source, config.reuse_port)
        .map_err(|e| io::Error::new(e.kind(), format!("port {port}: {e}")))
}

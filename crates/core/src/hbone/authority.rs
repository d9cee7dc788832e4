//! What a CONNECT asks for: `ip:port`, `[v6]:port` or `hostname:port`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use super::HeaderError;

/// A DNS name, a colon and five digits; longer than any address.
const MAX_LEN: usize = 253 + 6;

/// An address, or a name of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    Ip(SocketAddr),
    /// In lower case.
    Hostname {
        host: Arc<str>,
        port: u16,
    },
}

impl Authority {
    /// The port in either form.
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(addr) => addr.port(),
            Self::Hostname { port, .. } => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => write!(f, "{addr}"),
            Self::Hostname { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for Authority {
    type Err = HeaderError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LEN {
            return Err(HeaderError::TooLong(MAX_LEN));
        }
        parse(text).ok_or(HeaderError::Malformed)
    }
}

fn parse(text: &str) -> Option<Authority> {
    let (host, port) = text.rsplit_once(':')?;
    let port = parse_port(port)?;
    if let Some(v6) = host.strip_prefix('[') {
        let ip: Ipv6Addr = v6.strip_suffix(']')?.parse().ok()?;
        return Some(Authority::Ip(SocketAddr::new(IpAddr::V6(ip).to_canonical(), port)));
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Some(Authority::Ip(SocketAddr::new(ip.into(), port)));
    }
    is_hostname(host).then(|| Authority::Hostname { host: host.to_ascii_lowercase().into(), port })
}

/// 1 to 65535, digits only: `u16` alone would take a sign.
fn parse_port(text: &str) -> Option<u16> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

/// Labels of letters, digits, `-` and `_`. The last one is not a number: that would be a broken IPv4 address.
fn is_hostname(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253 && host.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_addresses_and_hostnames_and_nothing_else() {
        for (text, printed) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[2001:db8::1]:8080", "[2001:db8::1]:8080"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("Web.Shop.svc.cluster.local:443", "web.shop.svc.cluster.local:443"),
            ("localhost:65535", "localhost:65535"),
        ] {
            assert_eq!(text.parse::<Authority>().map(|a| a.to_string()), Ok(printed.to_owned()), "{text}");
        }
        let long = format!("{}:80", "a.".repeat(140));
        for text in [
            "",
            ":",
            ":80",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:+80",
            "10.0.0.1:-1",
            "10.0.0.256:80",
            "10.0.0:80",
            "2001:db8::1:80",
            "[2001:db8::1]",
            "[2001:db8::1:80",
            "2001:db8::1]:80",
            "[fe80::1%eth0]:80",
            "[10.0.0.1]:80",
            "a b:80",
            "user@host:80",
            "http://host:80",
            "host/:80",
            "a..b:80",
            ".a:80",
            "a.:80",
            "hôst:80",
            " host:80",
            "host:80 ",
            &long,
        ] {
            assert!(text.parse::<Authority>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,300}") {
            let _ = text.parse::<Authority>();
        }

        #[test]
        fn round_trips(text in "([a-z0-9.:\\[\\]-]{0,20}|[0-9]{1,3}(\\.[0-9]{1,3}){3}|\\[[0-9a-f:]{2,20}\\]):[0-9]{1,5}") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
            }
        }

        #[test]
        fn every_address_round_trips(ip: u128, v4: u32, port in 1u16..) {
            for ip in [IpAddr::V6(ip.into()), IpAddr::V4(v4.into())] {
                let authority = Authority::Ip(SocketAddr::new(ip.to_canonical(), port));
                prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
            }
        }
    }
}

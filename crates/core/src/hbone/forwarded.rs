//! Who called, and which service: RFC 7239, of which `for` and `host` are used.

use std::{fmt, net::SocketAddr, str::FromStr};

use super::{HeaderError, authority::Authority};

const MAX_LEN: usize = 1024;

/// `for="<ip>:<port>";host=<hostname>`. Only telemetry may believe it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forwarded {
    /// None if absent, or an obfuscated name.
    pub for_addr: Option<SocketAddr>,
    /// The service that was addressed.
    pub host: Option<String>,
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(addr) = self.for_addr {
            write!(f, "for=\"{addr}\"")?;
            separator = ";";
        }
        if let Some(host) = &self.host {
            if is_token(host) {
                write!(f, "{separator}host={host}")?;
            } else {
                write!(f, "{separator}host=\"{}\"", host.replace('\\', "\\\\").replace('"', "\\\""))?;
            }
        }
        Ok(())
    }
}

/// Of several elements the first, which is the nearest to the client.
impl FromStr for Forwarded {
    type Err = HeaderError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LEN {
            return Err(HeaderError::TooLong(MAX_LEN));
        }
        parse(text).ok_or(HeaderError::Malformed)
    }
}

fn parse(mut rest: &str) -> Option<Forwarded> {
    let mut forwarded = Forwarded::default();
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() || rest.starts_with(',') {
            return Some(forwarded);
        }
        let (name, after) = rest.split_once('=')?;
        if !is_token(name) {
            return None;
        }
        let (value, after) = value(after)?;
        if name.eq_ignore_ascii_case("for") {
            forwarded.for_addr = match value.parse() {
                Ok(Authority::Ip(addr)) => Some(addr),
                _ => None,
            };
        } else if name.eq_ignore_ascii_case("host") && !value.is_empty() {
            forwarded.host = Some(value);
        }
        rest = after.trim_start_matches([' ', '\t']);
        match rest.strip_prefix(';') {
            Some(after) => rest = after,
            None if rest.is_empty() || rest.starts_with(',') => return Some(forwarded),
            None => return None,
        }
    }
}

/// A token or a quoted string, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',', ' ', '\t']).unwrap_or(text.len());
        let (token, rest) = text.split_at(end);
        // A bare `ip:port` is not a token by the letter; peers send it all the same.
        let plain = token.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
        return plain.then(|| (token.to_owned(), rest));
    };
    let mut unquoted = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((unquoted, &quoted[at + 1..])),
            '\\' => unquoted.push(chars.next().map(|(_, c)| c).filter(|c| !c.is_control())?),
            c if c.is_control() => return None,
            c => unquoted.push(c),
        }
    }
    None
}

/// RFC 9110 `token`.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_reference_proxy_writes_and_the_standard_allows() {
        let text = "for=\"10.244.0.31:37192\";host=fake.example";
        let forwarded: Forwarded = text.parse().unwrap();
        assert_eq!(forwarded.for_addr, Some("10.244.0.31:37192".parse().unwrap()));
        assert_eq!(forwarded.host.as_deref(), Some("fake.example"));
        assert_eq!(forwarded.to_string(), text);
        for (text, addr, host) in [
            ("", None, None),
            ("for=unknown", None, None),
            (
                "For=\"[2001:db8::1]:4711\"; Host=\"a\\\"b\" ;proto=http, for=1.1.1.1:1",
                Some("[2001:db8::1]:4711"),
                Some("a\"b"),
            ),
            ("host=a, host=b", None, Some("a")),
            ("for=10.0.0.1:80", Some("10.0.0.1:80"), None),
        ] {
            let read: Forwarded = text.parse().unwrap();
            assert_eq!(read.for_addr, addr.map(|a| a.parse().unwrap()), "{text}");
            assert_eq!(read.host.as_deref(), host, "{text}");
        }
        for bad in ["for", "=x", "f r=x", "host=\"a", "host=a b", "host=\"a\nb\"", "host=\"a\"b"] {
            assert!(bad.parse::<Forwarded>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,100}") {
            let _ = text.parse::<Forwarded>();
        }

        #[test]
        fn round_trips(ip: u32, port in 1u16.., host in proptest::option::of("[^\\p{Cc}]{1,20}")) {
            let for_addr = Some(SocketAddr::new(std::net::Ipv4Addr::from(ip).into(), port));
            let forwarded = Forwarded { for_addr, host };
            prop_assert_eq!(forwarded.to_string().parse::<Forwarded>(), Ok(forwarded));
        }
    }
}

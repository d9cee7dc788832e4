//! Values that fields hold as text. Validation and whoever translates the field read them by the same rules.

use std::net::IpAddr;

/// A port from 1 to 65535.
pub fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// An IP address, or a CIDR block: the address and the length of its prefix, which is all of it for an address alone.
pub fn ip_block(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
    let ip: IpAddr = ip.parse().ok()?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Some(longest), |length| length.parse().ok()).filter(|length| *length <= longest)?;
    Some((ip, length))
}

/// `<namespace>/<name>`, or `<name>` alone. There are no patterns of accounts: `*` would be a name that nobody has.
pub fn service_account(text: &str) -> Option<(Option<&str>, &str)> {
    let (namespace, name) = text.split_once('/').map_or((None, text), |(namespace, name)| (Some(namespace), name));
    let is_good = !text.contains('*') && !name.is_empty() && !name.contains('/') && namespace != Some("");
    is_good.then_some((namespace, name))
}

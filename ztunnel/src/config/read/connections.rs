//! The settings of connections, held to what sockets and HTTP/2 take.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use aquifer_runtime::env::Vars;

use super::non_empty;
use crate::config::{Node, Proxy};
use crate::mesh::grace;
use crate::socket::{Keepalive, OriginalSource, TcpOptions};

/// What a frame may hold (RFC 9113, 4.2).
const FRAMES: RangeInclusive<u32> = 1 << 14..=(1 << 24) - 1;

/// From one smallest frame to what HTTP/2 can say (RFC 9113, 6.9.1).
const WINDOWS: RangeInclusive<u32> = 1 << 14..=(1 << 31) - 1;

/// A connection begins with this much, and cannot take it back (RFC 9113, 6.9.2).
const CONNECTION_WINDOWS: RangeInclusive<u32> = (1 << 16) - 1..=(1 << 31) - 1;

/// What the kernel takes (tcp(7), `do_tcp_setsockopt`): otherwise no pod could be listened in.
const KEEPALIVE_TIMES: RangeInclusive<u64> = 1..=32767;
const KEEPALIVE_RETRIES: RangeInclusive<u32> = 1..=127;
const USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

pub(super) fn proxy(vars: &mut Vars<'_>, node: &Node) -> Proxy {
    let keepalive = vars.bool("KEEPALIVE_ENABLED", true).then(|| keepalive(vars));
    let user_timeout = vars.bool("USER_TIMEOUT_ENABLED", false);
    if user_timeout && keepalive.is_some_and(|keepalive| keepalive.timeout() > USER_TIMEOUT) {
        let longest = USER_TIMEOUT.as_secs();
        vars.error(
            "USER_TIMEOUT_ENABLED",
            format!("KEEPALIVE_TIME and KEEPALIVE_INTERVAL x KEEPALIVE_RETRIES must be at most {longest} s together"),
        );
    }
    let original_source = match non_empty(vars, "ENABLE_ORIG_SRC") {
        None => OriginalSource::Auto,
        Some(_) if vars.bool("ENABLE_ORIG_SRC", true) => OriginalSource::Required,
        Some(_) => OriginalSource::Off,
    };
    Proxy {
        node: node.name.clone(),
        trust_domain: node.trust_domain.clone(),
        network: node.network.as_str().into(),
        preferred_service_namespace: non_empty(vars, "PREFERED_SERVICE_NAMESPACE").map(Into::into),
        ipv6: vars.bool("IPV6_ENABLED", true),
        original_source,
        reuse_port: vars.bool("INPOD_PORT_REUSE", true),
        tcp: TcpOptions { mark: Some(vars.parsed("PACKET_MARK", 1337)), keepalive, user_timeout, within_pod: false },
        connect_timeout: Duration::from_secs(10),
        handshake_timeout: Duration::from_secs(10),
        stream_window: within(vars, "HTTP2_STREAM_WINDOW_SIZE", &WINDOWS),
        connection_window: within(vars, "HTTP2_CONNECTION_WINDOW_SIZE", &CONNECTION_WINDOWS),
        pod_window: within(vars, "HTTP2_POD_WINDOW_SIZE", &(1 << 16..=u64::MAX)).unwrap_or(aquifer_hbone::POD_BUDGET),
        frame_size: within(vars, "HTTP2_FRAME_SIZE", &FRAMES).unwrap_or(1 << 20),
        pool_max_streams: within(vars, "POOL_MAX_STREAMS_PER_CONNECTION", &(1..=usize::MAX)).unwrap_or(100),
        pool_spare: vars.parsed("POOL_SPARE_CONNECTIONS", 3),
        pool_idle: vars.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300)),
        response_baggage: vars.bool("ENABLE_RESPONSE_BAGGAGE", true),
        authz_info_logging: vars.bool("AUTHZ_POLICY_INFO_LOGGING", false),
        unknown_policies: unknown_policies(vars),
        localhost_app_tunnel: vars.bool("LOCALHOST_APP_TUNNEL", true),
        same_node: vars.bool("SAME_NODE_FAST_PATH", true),
    }
}

fn keepalive(vars: &mut Vars<'_>) -> Keepalive {
    let usual = Duration::from_secs(180);
    let mut time = |key| {
        let time = vars.duration(key, usual);
        if !KEEPALIVE_TIMES.contains(&time.as_secs()) {
            let (least, most) = (KEEPALIVE_TIMES.start(), KEEPALIVE_TIMES.end());
            vars.error(key, format!("{time:?} is not within {least} and {most} s"));
            return usual;
        }
        time
    };
    let (time, interval) = (time("KEEPALIVE_TIME"), time("KEEPALIVE_INTERVAL"));
    Keepalive { time, interval, retries: within(vars, "KEEPALIVE_RETRIES", &KEEPALIVE_RETRIES).unwrap_or(9) }
}

/// A number within limits, if it is set.
fn within<T>(vars: &mut Vars<'_>, key: &str, limits: &RangeInclusive<T>) -> Option<T>
where
    T: FromStr<Err: Display> + PartialOrd + Display,
{
    vars.with(key, |text| match text.parse() {
        Ok(number) if limits.contains(&number) => Ok(number),
        Ok(number) => Err(format!("{number} is not within {} and {}", limits.start(), limits.end())),
        Err(e) => Err(format!("{text:?}: {e}")),
    })
}

fn unknown_policies(vars: &mut Vars<'_>) -> grace::Settings {
    let skip = vars.with("AUTHZ_UNKNOWN_POLICY", |text| match text {
        "" | "deny" => Ok(false),
        "skip" => Ok(true),
        _ => Err(format!("{text:?} is neither deny nor skip")),
    });
    let default = grace::Settings::default();
    grace::Settings { wait: vars.duration("AUTHZ_POLICY_GRACE", default.wait), skip: skip.unwrap_or(default.skip) }
}

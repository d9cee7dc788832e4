//! wrk: closed-loop HTTP/1.1.

use anyhow::{Context, Result, bail};

use super::{Latency, Outcome};

/// wrk's arguments for connections that are kept, or for one request a connection.
pub(crate) fn args(url: &str, connections: u32, threads: u32, seconds: u32, keep_alive: bool) -> Vec<String> {
    let mut args = vec![
        "wrk".to_owned(),
        format!("-t{}", threads.min(connections)),
        format!("-c{connections}"),
        format!("-d{seconds}s"),
        "--latency".to_owned(),
    ];
    if !keep_alive {
        args.extend(["-H".to_owned(), "Connection: close".to_owned()]);
    }
    args.push(url.to_owned());
    args
}

/// What wrk printed.
pub(crate) fn parse(text: &str) -> Result<Outcome> {
    let lines = || text.lines().map(str::trim);
    let quantile = |name: &str| -> Result<f64> {
        let mut values = lines().filter_map(|line| line.strip_prefix(name));
        let value = values.next().and_then(|value| micros(value.trim()));
        value.with_context(|| format!("wrk reported no {name}: {text}"))
    };
    let done = lines().find_map(|line| {
        let (requests, rest) = line.split_once(" requests in ")?;
        let (took, rest) = rest.split_once(", ")?;
        Some((requests.parse::<u64>().ok()?, micros(took)? / 1e6, bytes(rest.strip_suffix(" read")?)?))
    });
    let Some((requests, seconds, bytes)) = done else { bail!("wrk did not say how many requests it made: {text}") };
    let max = lines().find_map(|line| line.strip_prefix("Latency  ")?.split_whitespace().nth(2).and_then(micros));
    let socket_errors: u64 = lines()
        .filter_map(|line| line.strip_prefix("Socket errors:"))
        .flat_map(|line| line.split(','))
        .filter_map(|part| part.split_whitespace().last()?.parse::<u64>().ok())
        .sum();
    let refused: u64 =
        lines().filter_map(|line| line.strip_prefix("Non-2xx or 3xx responses:")?.trim().parse::<u64>().ok()).sum();
    let latency = Latency {
        p50: quantile("50%")?,
        p90: quantile("90%")?,
        p99: quantile("99%")?,
        max: max.with_context(|| format!("wrk reported no longest latency: {text}"))?,
    };
    Ok(Outcome { requests, bytes, errors: socket_errors + refused, seconds, latency: Some(latency) })
}

/// `1.23ms`, `456.00us`, `1.00s`, `1.10m`, in microseconds.
fn micros(text: &str) -> Option<f64> {
    let (value, unit) = split_unit(text)?;
    let scale = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        "h" => 3600e6,
        _ => return None,
    };
    Some(value * scale)
}

/// `35.98MB`: wrk's units are powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let (value, unit) = split_unit(text)?;
    let power = match unit {
        "B" => 0,
        "KB" => 1,
        "MB" => 2,
        "GB" => 3,
        "TB" => 4,
        _ => return None,
    };
    Some((value * 1024f64.powi(power)) as u64)
}

fn split_unit(text: &str) -> Option<(f64, &str)> {
    let (value, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    Some((value.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
Running 3s test @ http://198.18.18.2:8080/
  2 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   613.92us  437.09us  12.57ms   91.68%
    Req/Sec    26.98k     1.79k   30.04k    66.67%
  Latency Distribution
     50%  530.00us
     75%  680.00us
     90%    1.01ms
     99%    2.25ms
  161236 requests in 3.01s, 36.00MB read
Requests/sec:  53601.16
Transfer/sec:     11.96MB
";

    #[test]
    fn reads_what_wrk_prints() {
        let outcome = parse(OUTPUT).unwrap();
        assert_eq!((outcome.requests, outcome.bytes, outcome.errors), (161_236, 36 << 20, 0));
        assert!((outcome.seconds - 3.01).abs() < 1e-9);
        let latency = outcome.latency.unwrap();
        assert_eq!((latency.p50, latency.p90, latency.p99, latency.max), (530.0, 1010.0, 2250.0, 12570.0));
    }

    #[test]
    fn errors_are_counted() {
        let failed = OUTPUT.replace(
            "Requests/sec",
            "  Socket errors: connect 1, read 2, write 0, timeout 4\n  Non-2xx or 3xx responses: 8\nRequests/sec",
        );
        assert_eq!(parse(&failed).unwrap().errors, 15);
    }

    #[test]
    fn anything_else_is_refused_with_its_text() {
        let error = parse("unable to connect to 198.18.18.2:8080 Connection refused\n").unwrap_err();
        assert!(error.to_string().contains("unable to connect"), "{error}");
    }

    #[test]
    fn no_more_threads_than_connections() {
        assert_eq!(args("http://x/", 1, 2, 3, true)[1..4], ["-t1", "-c1", "-d3s"]);
        assert!(args("http://x/", 4, 2, 3, false).contains(&"Connection: close".to_owned()));
    }
}

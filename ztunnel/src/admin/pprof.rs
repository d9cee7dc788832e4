//! `/debug/pprof`: where time and memory go, in the gzipped protobuf that `go tool pprof` and its like read.
//!
//! CPU: a timer's signal samples stacks for as long as the request lasts; one request at a time. Heap: jemalloc samples
//! allocations once `/debug/pprof/heap/profiling?activate=true` was asked for.

mod profile;

use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

use aquifer_runtime::http::{Request, Response, text, with_type};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use prost::Message;

use self::profile::Profile;

const SECONDS: u64 = 10;
const SECONDS_MAX: u64 = 300;
const FREQUENCY: i32 = 100;
const FREQUENCY_MAX: i32 = 1000;

/// Unwinding may not begin inside these: a lock of theirs could be held by the very thread that was interrupted.
const NOT_IN: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// `GET /debug/pprof/profile?seconds=&frequency=`
pub(super) async fn cpu(request: Request) -> Response {
    let seconds = number(&request, "seconds", SECONDS, SECONDS_MAX);
    let frequency = number(&request, "frequency", FREQUENCY, FREQUENCY_MAX);
    let (Some(seconds), Some(frequency)) = (seconds, frequency) else {
        let limits = format!("seconds is 1 to {SECONDS_MAX}, frequency is 1 to {FREQUENCY_MAX}\n");
        return text(StatusCode::BAD_REQUEST, limits);
    };
    let sampling = pprof::ProfilerGuardBuilder::default().frequency(frequency).blocklist(&NOT_IN).build();
    let sampling = match sampling {
        Ok(sampling) => sampling,
        // The timer and its signal exist once in a process.
        Err(pprof::Error::Running) => return text(StatusCode::CONFLICT, "a profile is being taken already\n"),
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    };
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    // Names of functions are looked up only now, and it takes a while.
    let encode = move || sampling.report().build().map(|report| Profile::of(&report, frequency).encode_to_vec());
    match tokio::task::spawn_blocking(encode).await {
        Ok(Ok(profile)) => gzipped(profile),
        Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// `GET /debug/pprof/heap`
#[cfg(feature = "jemalloc")]
pub(super) async fn heap() -> Response {
    let Some(ctl) = jemalloc_pprof::PROF_CTL.as_ref() else { return no_heap() };
    let mut ctl = ctl.lock().await;
    if !ctl.activated() {
        let how = "heap profiling is off: POST /debug/pprof/heap/profiling?activate=true\n";
        return text(StatusCode::FORBIDDEN, how);
    }
    match ctl.dump_pprof() {
        Ok(profile) => gzipped(profile),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
    }
}

/// `POST /debug/pprof/heap/profiling?activate=`
#[cfg(feature = "jemalloc")]
pub(super) async fn switch_heap(request: Request) -> Response {
    let Some(ctl) = jemalloc_pprof::PROF_CTL.as_ref() else { return no_heap() };
    let mut ctl = ctl.lock().await;
    let (done, answer) = match request.query.get("activate").map(String::as_str) {
        Some("true" | "") => (ctl.activate(), "heap profiling is on\n"),
        Some("false") => (ctl.deactivate(), "heap profiling is off\n"),
        Some(_) | None => return text(StatusCode::BAD_REQUEST, "activate is true or false\n"),
    };
    match done {
        Ok(()) => text(StatusCode::OK, answer),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

#[cfg(not(feature = "jemalloc"))]
pub(super) async fn heap() -> Response {
    no_heap()
}

#[cfg(not(feature = "jemalloc"))]
pub(super) async fn switch_heap(_: Request) -> Response {
    no_heap()
}

fn no_heap() -> Response {
    text(StatusCode::NOT_IMPLEMENTED, "this build's allocator has no heap profiles\n")
}

fn gzipped(profile: Vec<u8>) -> Response {
    // jemalloc's comes compressed.
    if profile.starts_with(&[0x1f, 0x8b]) {
        return with_type(StatusCode::OK, "application/octet-stream", profile);
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    match encoder.write_all(&profile).and_then(|()| encoder.finish()) {
        Ok(body) => with_type(StatusCode::OK, "application/octet-stream", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// A number of the query, if it is in bounds.
fn number<T: FromStr + PartialOrd + From<u8>>(request: &Request, key: &str, default: T, max: T) -> Option<T> {
    let Some(text) = request.query.get(key) else { return Some(default) };
    text.parse().ok().filter(|n| (T::from(1)..=max).contains(n))
}

#[cfg(test)]
mod tests;

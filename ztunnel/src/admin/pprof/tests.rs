//! Real profiles, as far as a test's own allocator goes.

use std::collections::BTreeMap;
use std::io::Read;

use http::{HeaderMap, Method};
use http_body_util::BodyExt;

use super::profile::Profile;
use super::*;

fn request(query: &[(&str, &str)]) -> Request {
    Request {
        method: Method::GET,
        path: String::new(),
        query: query.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect::<BTreeMap<_, _>>(),
        headers: HeaderMap::new(),
        peer: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cpu_profile_names_what_ran() {
    let busy = tokio::task::spawn_blocking(|| {
        let since = std::time::Instant::now();
        while since.elapsed() < Duration::from_millis(1500) {
            std::hint::black_box(since);
        }
    });
    let profiling = cpu(request(&[("seconds", "1"), ("frequency", "200")]));
    // The first has begun when it waits for the first time, which is before the second is looked at.
    let (answer, second) = tokio::join!(profiling, cpu(request(&[("seconds", "1")])));
    busy.await.unwrap();
    assert_eq!(second.status(), StatusCode::CONFLICT);
    assert_eq!(answer.status(), StatusCode::OK);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
    let profile = Profile::decode(&plain[..]).unwrap();
    assert_eq!(profile.period, 5_000_000);
    assert!(!profile.sample.is_empty(), "a thread was busy all the time");
    assert_eq!(profile.string_table[0], "");
    assert!(profile.string_table.iter().any(|name| name.contains("a_cpu_profile_names_what_ran")), "{profile:?}");
}

#[tokio::test]
async fn nonsense_is_refused() {
    for query in [[("seconds", "0")], [("seconds", "301")], [("frequency", "x")], [("frequency", "-1")]] {
        assert_eq!(cpu(request(&query)).await.status(), StatusCode::BAD_REQUEST, "{query:?}");
    }
}

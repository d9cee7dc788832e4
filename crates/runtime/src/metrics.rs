//! The metrics registry and its page, `/metrics` and `/stats/prometheus`.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, VARY};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::HeaderName};

use crate::http::{Handler, Request, Response, Server, handler, text, with_type};
use crate::{Cancel, Tracker};

pub use prometheus_client::registry::Registry;

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";

/// Everything in the registry, as OpenMetrics text (which readers of the plain format take as well).
pub fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut out, registry) {
        // Only a collector of ours can fail; the page stays readable up to it.
        tracing::error!(%error, "metrics are incomplete");
    }
    out
}

/// Serves the registry's page. Complete the registry first: it is shared from here on.
pub fn serve(server: Server, registry: Arc<Registry>, tracker: &Tracker, cancel: Cancel) {
    server.serve(page(registry), tracker, cancel);
}

/// The handler behind [`serve`], for processes that share the port with other pages.
pub fn page(registry: Arc<Registry>) -> Handler {
    handler(move |request: Request| {
        let registry = registry.clone();
        async move {
            match (&request.method, request.path.as_str()) {
                (&Method::GET, "/metrics" | "/stats/prometheus") => answer(&registry, &request.headers),
                (_, "/metrics" | "/stats/prometheus") => text(StatusCode::METHOD_NOT_ALLOWED, "Invalid HTTP method\n"),
                _ => text(StatusCode::NOT_FOUND, "Not found\n"),
            }
        }
    })
}

fn answer(registry: &Registry, headers: &HeaderMap) -> Response {
    let body = encode(registry);
    let open_metrics = accepts(headers, ACCEPT, "application/openmetrics-text");
    let content_type = if open_metrics { OPEN_METRICS } else { TEXT };
    let zipped = if accepts(headers, ACCEPT_ENCODING, "gzip") { gzip(body.as_bytes()) } else { None };
    let is_zipped = zipped.is_some();
    let body = zipped.unwrap_or_else(|| Bytes::from(body));
    let mut response = with_type(StatusCode::OK, content_type, body);
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    if is_zipped {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Whether a list header names `value` with a weight other than zero.
fn accepts(headers: &HeaderMap, name: HeaderName, value: &str) -> bool {
    headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).any(|list| {
        list.split(',').any(|item| {
            let mut parts = item.split(';').map(str::trim);
            let named = parts.next().is_some_and(|v| v.eq_ignore_ascii_case(value));
            let refused = parts.any(|p| p.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0)));
            named && !refused
        })
    })
}

fn gzip(body: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::{ask, loopback};
    use prometheus_client::metrics::counter::Counter;
    use std::io::Read;

    #[tokio::test]
    async fn content_types_and_gzip() {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        registry.register("istio_things", "Things", counter.clone());
        counter.inc_by(3);
        let (tracker, cancel) = (Tracker::new(), Cancel::new());
        let server = Server::bind("metrics", loopback()).await.unwrap();
        let address = server.local_addr().unwrap();
        serve(server, Arc::new(registry), &tracker, cancel);

        let (head, body) = ask(address, "GET /stats/prometheus", &[]).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("content-type: text/plain; charset=utf-8\r\n"), "{head}");
        assert!(head.contains("vary: accept-encoding\r\n"), "{head}");
        assert!(!head.contains("content-encoding"), "{head}");
        let body = String::from_utf8(body).unwrap();
        assert!(body.contains("# TYPE istio_things counter\nistio_things_total 3\n"), "{body}");

        let accept = "accept: application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1";
        let (head, again) = ask(address, "GET /metrics", &[accept, "accept-encoding: deflate, gzip"]).await;
        assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
        assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
        let mut unzipped = String::new();
        flate2::read::GzDecoder::new(&again[..]).read_to_string(&mut unzipped).unwrap();
        assert_eq!(unzipped, body);

        let (head, _) = ask(address, "GET /metrics", &["accept-encoding: gzip;q=0"]).await;
        assert!(!head.contains("content-encoding"), "{head}");
        let (head, _) = ask(address, "POST /metrics", &[]).await;
        assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
        let (head, _) = ask(address, "GET /", &[]).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    }
}

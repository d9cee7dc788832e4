//! The admin port: `localhost:15000`.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::sync::Notify;

use crate::http::{Handler, Request, Response, Server, handler, text};
use crate::telemetry::LogLevel;
use crate::{Cancel, Tracker};

/// Routes by path and method, served together.
#[derive(Clone, Default)]
pub struct AdminServer {
    routes: BTreeMap<&'static str, BTreeMap<String, Handler>>,
}

impl AdminServer {
    /// No routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers `GET path`.
    pub fn get<H, F>(self, path: &'static str, handle: H) -> Self
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        self.route(Method::GET, path, handler(handle))
    }

    /// Answers `POST path`.
    pub fn post<H, F>(self, path: &'static str, handle: H) -> Self
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        self.route(Method::POST, path, handler(handle))
    }

    /// Answers `method path`. Other methods on that path get 405.
    pub fn route(mut self, method: Method, path: &'static str, handler: Handler) -> Self {
        self.routes.entry(path).or_default().insert(method.to_string(), handler);
        self
    }

    /// `POST /logging` tells or changes the log level (`?level=debug`, `?level=a::b:trace,info`, `?reset`).
    pub fn with_logging(self, level: LogLevel) -> Self {
        let usage = handler(|_| async {
            text(StatusCode::METHOD_NOT_ALLOWED, format!("Invalid HTTP method\n{LOGGING_USAGE}"))
        });
        self.route(Method::GET, "/logging", usage).post("/logging", move |request| {
            let level = level.clone();
            async move { logging(&level, &request) }
        })
    }

    /// `POST /quitquitquit` wakes whoever waits on `quit`, to end the process as a signal would.
    pub fn with_quit(self, quit: Arc<Notify>) -> Self {
        self.post("/quitquitquit", move |_| {
            let quit = quit.clone();
            async move {
                quit.notify_one();
                text(StatusCode::OK, "shutdown now\n")
            }
        })
    }

    /// Serves the routes on tasks of `tracker` until the drain.
    pub fn serve(self, server: Server, tracker: &Tracker, cancel: Cancel) {
        server.serve(self.into_handler(), tracker, cancel);
    }

    /// All routes as one handler.
    pub fn into_handler(self) -> Handler {
        let routes = Arc::new(self.routes);
        Arc::new(move |request: Request| {
            let found = routes.get(request.path.as_str()).map(|m| m.get(request.method.as_str()));
            match found {
                Some(Some(handle)) => handle(request),
                Some(None) => {
                    Box::pin(std::future::ready(text(StatusCode::METHOD_NOT_ALLOWED, "Invalid HTTP method\n")))
                }
                None => Box::pin(std::future::ready(text(StatusCode::NOT_FOUND, "Not found\n"))),
            }
        })
    }
}

const LOGGING_USAGE: &str = "
usage: POST /logging                                      (tells the current level)
usage: POST /logging?level=<level>                        (changes the level of everything)
usage: POST /logging?level={mod1}:{level1},{mod2}:{level2}  (changes the level of these modules)
usage: POST /logging?reset                                (back to the level of the start)

hint: a level is one of error, warn, info, debug, trace, off
hint: a module is a path such as aquifer_xds::client
";

fn logging(level: &LogLevel, request: &Request) -> Response {
    let wanted = request.query.get("level");
    let reset = request.query.contains_key("reset");
    if wanted.is_none() && !reset && !request.query.is_empty() {
        return text(StatusCode::BAD_REQUEST, format!("Invalid request\n{LOGGING_USAGE}"));
    }
    if wanted.is_some() || reset {
        let wanted = wanted.map_or("", String::as_str);
        if let Err(error) = level.change(wanted, reset) {
            let body = format!("Invalid level specified: {wanted}: {error}\n{LOGGING_USAGE}");
            return text(StatusCode::BAD_REQUEST, body);
        }
    }
    text(StatusCode::OK, format!("current log level is {}\n", level.current()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::{ask, loopback};

    #[tokio::test]
    async fn routes_405_404_and_logging() {
        let (tracker, cancel) = (Tracker::new(), Cancel::new());
        let server = Server::bind("admin", loopback()).await.unwrap();
        let address = server.local_addr().unwrap();
        let quit = Arc::new(Notify::new());
        let (_filter, level) = crate::telemetry::LogLevel::layer("info").unwrap();
        AdminServer::new()
            .get("/config_dump", |_| async { text(StatusCode::OK, "{}") })
            .with_logging(level)
            .with_quit(quit.clone())
            .serve(server, &tracker, cancel);

        let table: &[(&str, &str, &str)] = &[
            ("GET /config_dump", "200", "{}"),
            ("POST /config_dump", "405", "Invalid HTTP method"),
            ("DELETE /config_dump", "405", "Invalid HTTP method"),
            ("GET /elsewhere", "404", "Not found"),
            ("GET /quitquitquit", "405", "Invalid HTTP method"),
            ("GET /logging", "405", "Invalid HTTP method\n\nusage: POST /logging"),
            ("POST /logging", "200", "current log level is info\n"),
            ("POST /logging?level=warn", "200", "current log level is warn\n"),
            ("POST /logging?level=aquifer_xds::client:trace", "200", "aquifer_xds::client=trace"),
            ("POST /logging?level=aquifer_xds%3Adebug,error", "200", "aquifer_xds=debug"),
            ("POST /logging?level=loud", "400", "Invalid level specified: loud"),
            ("POST /logging?level=x:loud", "400", "Invalid level specified: x:loud"),
            ("POST /logging?volume=11", "400", "Invalid request"),
            ("POST /logging?reset", "200", "current log level is info\n"),
            ("POST /logging?reset&level=debug", "200", "current log level is debug\n"),
            ("POST /quitquitquit", "200", "shutdown now\n"),
        ];
        for (line, status, expect) in table {
            let (head, body) = ask(address, line, &[]).await;
            let body = String::from_utf8(body).unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {head}");
            assert!(body.contains(expect), "{line}: {body}");
        }
        quit.notified().await;
    }
}

//! HTTP: the probes `/healthz`, whether the run loop turns, and `/readyz`, whether pods can have a network; beside them what
//! [`super::observe`] makes: `/metrics`, `/api/status` and a page at `/`. All of it can only be read.
//!
//! Ready is said once: when the maps are filled, the programs attached and `LOCAL` published, by this agent. From then on
//! the node does not need it, and nothing that goes wrong makes it less ready.

use std::{
    convert::Infallible,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, info};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};

use super::observe::{Observed, PAGE, Readiness};

/// The run loop turns at least every few seconds; a pass over thousands of nodes takes less than one.
const STALLED: Duration = Duration::from_mins(1);

/// Connections at a time, and how long a request may take to come.
const CONNECTIONS: usize = 16;
const REQUEST: Duration = Duration::from_secs(5);

const PLAIN: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

/// What the run loop tells, and the probes read. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Health {
    state: Arc<Mutex<State>>,
    observed: Observed,
}

#[derive(Debug)]
struct State {
    turned: Instant,
    /// Why it is not ready.
    waiting: Option<String>,
}

impl Health {
    /// Not ready.
    pub(super) fn new(observed: Observed) -> Self {
        let state = State { turned: Instant::now(), waiting: Some("starting".into()) };
        Self { state: Arc::new(Mutex::new(state)), observed }
    }

    /// What can be seen beside the probes.
    pub(super) fn observed(&self) -> &Observed {
        &self.observed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No holder leaves it half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run loop turns.
    pub(super) fn turn(&self) {
        self.state().turned = Instant::now();
    }

    /// It is ready from now on.
    pub(super) fn ready(&self) {
        self.state().waiting = None;
    }

    /// What it waits for, if it is not ready yet.
    pub(super) fn waits_for(&self, what: &str) {
        if let Some(waiting) = &mut self.state().waiting {
            what.clone_into(waiting);
        }
    }

    fn answer(&self, method: &Method, path: &str, now: Instant) -> Answer {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Answer::plain(StatusCode::METHOD_NOT_ALLOWED, "only GET");
        }
        let (turned, waiting) = {
            let state = self.state();
            (state.turned, state.waiting.clone())
        };
        let ok = |kind, body| Answer { status: StatusCode::OK, kind, body, nonce: None };
        let readiness = Readiness { waiting };
        match path {
            "/healthz" => match now.saturating_duration_since(turned) {
                late if late > STALLED => Answer::plain(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("the run loop has not turned for {} s", late.as_secs()),
                ),
                _ => Answer::plain(StatusCode::OK, "ok"),
            },
            "/readyz" => match readiness.waiting {
                Some(why) => Answer::plain(StatusCode::SERVICE_UNAVAILABLE, why),
                None => Answer::plain(StatusCode::OK, "ok"),
            },
            "/metrics" => ok(METRICS, self.observed.metrics(&readiness)),
            "/api/status" => ok(JSON, self.observed.status(&readiness)),
            "/" => {
                let nonce = format!("{:016x}", RandomState::new().hash_one(now));
                Answer { nonce: Some(nonce.clone()), ..ok(HTML, PAGE.replace("@NONCE@", &nonce)) }
            }
            _ => Answer::plain(
                StatusCode::NOT_FOUND,
                "there are /, /api/status, /metrics, /healthz and /readyz",
            ),
        }
    }

    /// Answers probes on `address` from now on. Needs a tokio runtime.
    pub(super) fn serve(&self, address: SocketAddr) -> anyhow::Result<()> {
        let listen = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let listener = listen().with_context(|| {
            format!("answer probes on {address}: choose another address with agent.health or --health")
        })?;
        info!("metrics and a page are on http://{address}/, probes on /healthz and /readyz");
        tokio::spawn(accept(listener, self.clone()));
        Ok(())
    }
}

/// What a request gets.
struct Answer {
    status: StatusCode,
    kind: &'static str,
    body: String,
    /// Of the page: what its scripts and styles are recognised by.
    nonce: Option<String>,
}

impl Answer {
    fn plain(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, kind: PLAIN, body: text.into() + "\n", nonce: None }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let Self { status, kind, body, nonce } = self;
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(nonce) = nonce {
            let policy = format!(
                "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
                 base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            );
            if let Ok(policy) = HeaderValue::from_str(&policy) {
                headers.insert(CONTENT_SECURITY_POLICY, policy);
            }
        }
        response
    }
}

async fn accept(listener: TcpListener, health: Health) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Closed only with the last owner.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let health = health.clone();
                tokio::spawn(async move {
                    converse(stream, health).await;
                    drop(place);
                });
            }
            Err(error) => {
                // No descriptors left, say.
                debug!("accept a probe: {error}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, health: Health) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = health.answer(request.method(), request.uri().path(), Instant::now());
        std::future::ready(Ok::<_, Infallible>(answer.into_response()))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST).keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        debug!("answer a probe: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::pins::Pins;

    fn health() -> Health {
        Health::new(Observed::new(Pins::new("/nowhere"), None))
    }

    #[track_caller]
    fn get(health: &Health, path: &str, after: Duration) -> (u16, String) {
        let answer = health.answer(&Method::GET, path, Instant::now() + after);
        (answer.status.as_u16(), answer.body.trim_end().to_owned())
    }

    #[test]
    fn ready_is_said_once_and_for_all() {
        let health = health();
        assert_eq!(get(&health, "/readyz", Duration::ZERO), (503, "starting".into()));
        health.waits_for("a podCIDR");
        assert_eq!(get(&health, "/readyz", Duration::ZERO), (503, "a podCIDR".into()));
        assert_eq!(get(&health, "/healthz", Duration::ZERO), (200, "ok".into()));
        health.ready();
        health.waits_for("nothing any more");
        assert_eq!(get(&health, "/readyz", Duration::ZERO), (200, "ok".into()));
    }

    #[test]
    fn a_loop_that_does_not_turn_is_not_healthy() {
        let health = health();
        health.turn();
        let (status, text) = get(&health, "/healthz", STALLED * 2);
        assert_eq!(status, 503);
        assert!(text.contains("has not turned"), "{text}");
    }

    #[test]
    fn other_requests_are_told_so() {
        let health = health();
        assert_eq!(get(&health, "/etc/passwd", Duration::ZERO).0, 404);
        let answer = health.answer(&Method::POST, "/readyz", Instant::now());
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    }

    #[test]
    fn before_there_are_pins_metrics_and_status_say_what_there_is() {
        let health = health();
        let (status, text) = get(&health, "/metrics", Duration::ZERO);
        assert_eq!(status, 200);
        assert!(text.contains("\noverlay_ready 0\n"), "{text}");
        assert!(!text.contains("overlay_nodes"), "{text}");
        let (_, text) = get(&health, "/api/status", Duration::ZERO);
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&object["ready"], &object["waiting"]), (&false.into(), &"starting".into()));
        assert!(object["error"].as_str().unwrap().contains("agent"), "{text}");
    }

    #[test]
    fn the_page_runs_its_own_script_and_no_other() {
        let pages = [(); 2].map(|()| health().answer(&Method::GET, "/", Instant::now()).into_response());
        let policies = pages.each_ref().map(|page| page.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap());
        assert_ne!(policies[0], policies[1]);
        assert!(policies[0].starts_with("default-src 'none'; script-src 'nonce-"), "{}", policies[0]);
        for (at, _) in PAGE.match_indices("<script").chain(PAGE.match_indices("<style")) {
            let tag = PAGE[at..].split_once('>').unwrap().0;
            assert!(tag.ends_with(" nonce=\"@NONCE@\""), "{tag}");
        }
        for (at, _) in PAGE.match_indices("://") {
            assert!(
                PAGE[..at].ends_with("http") && PAGE[at..].starts_with("://www.w3.org/"),
                "an external resource"
            );
        }
        for never in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", " style=\""] {
            assert!(!PAGE.contains(never), "{never}");
        }
    }
}

//! Probes over HTTP: `/healthz`, whether the run loop turns, and `/readyz`, whether pods can have a network.
//!
//! Ready is said once: when the maps are filled, the programs attached and `LOCAL` published, by this agent. From then on
//! the node does not need it, and nothing that goes wrong makes it less ready.

use std::{
    convert::Infallible,
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
    header::{CONTENT_TYPE, HeaderValue},
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

/// The run loop turns at least every few seconds; a pass over thousands of nodes takes less than one.
const STALLED: Duration = Duration::from_mins(1);

/// Connections at a time, and how long a request may take to come.
const CONNECTIONS: usize = 16;
const REQUEST: Duration = Duration::from_secs(5);

/// What the run loop tells, and the probes read. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Health {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    turned: Instant,
    /// Why it is not ready.
    waiting: Option<String>,
}

impl Health {
    /// Not ready.
    pub(super) fn new() -> Self {
        let state = State { turned: Instant::now(), waiting: Some("starting".into()) };
        Self { state: Arc::new(Mutex::new(state)) }
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

    fn answer(&self, method: &Method, path: &str, now: Instant) -> (StatusCode, String) {
        let state = self.state();
        if !matches!(*method, Method::GET | Method::HEAD) {
            return (StatusCode::METHOD_NOT_ALLOWED, "only GET".into());
        }
        match path {
            "/healthz" => match now.saturating_duration_since(state.turned) {
                late if late > STALLED => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("the run loop has not turned for {} s", late.as_secs()),
                ),
                _ => (StatusCode::OK, "ok".into()),
            },
            "/readyz" => match &state.waiting {
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why.clone()),
                None => (StatusCode::OK, "ok".into()),
            },
            _ => (StatusCode::NOT_FOUND, "there are /healthz and /readyz".into()),
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
        info!("probes are answered on http://{address}/healthz and /readyz");
        tokio::spawn(accept(listener, self.clone()));
        Ok(())
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
        let (status, text) = health.answer(request.method(), request.uri().path(), Instant::now());
        let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        std::future::ready(Ok::<_, Infallible>(response))
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

    #[track_caller]
    fn get(health: &Health, path: &str, after: Duration) -> (u16, String) {
        let (status, text) = health.answer(&Method::GET, path, Instant::now() + after);
        (status.as_u16(), text)
    }

    #[test]
    fn ready_is_said_once_and_for_all() {
        let health = Health::new();
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
        let health = Health::new();
        health.turn();
        let (status, text) = get(&health, "/healthz", STALLED * 2);
        assert_eq!(status, 503);
        assert!(text.contains("has not turned"), "{text}");
    }

    #[test]
    fn other_requests_are_told_so() {
        let health = Health::new();
        assert_eq!(get(&health, "/", Duration::ZERO).0, 404);
        assert_eq!(health.answer(&Method::POST, "/readyz", Instant::now()).0, StatusCode::METHOD_NOT_ALLOWED);
    }
}

//! The watch of Nodes, as a task of its own: what it knows is the state of a channel, so that a reader gets the newest
//! whole state however many events have led to it.
//!
//! It never ends by itself. A list that is no longer valid (410 Gone), a connection that drops, a server that is slow or
//! says nonsense: each is tried again, later and later, with some randomness so that many agents do not come at once.
//! Until a new list is complete, the one before holds.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use backon::ExponentialBuilder;
use futures_util::{Stream, StreamExt as _};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        utils::{Backoff, ResetTimerBackoff},
        watcher::{self, Error, Event, ExponentialBackoff, watcher},
    },
};
use log::{debug, info, warn};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    node::{KubeNode, Object},
    survey::Nodes,
};

/// Nodes that are asked for at once: bounds the memory, and the time that one answer takes.
const PAGE: u32 = 500;

/// Until the list is complete, the next piece of it has to come within this.
const PIECE: Duration = Duration::from_mins(1);

/// Between two tries, before up to as much again is added at random.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Between two streams, so that nothing makes the agent busy.
const PAUSE: Duration = Duration::from_secs(1);

const BEHIND: &str = "the watch of Nodes is too far behind: listing them again";

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// The Nodes by name.
    pub(crate) nodes: Nodes,
    /// Whether a list has been complete once.
    pub(crate) listed: bool,
    /// Why the API server cannot be asked at the moment.
    pub(crate) outage: Option<String>,
    /// When it last answered or told something. A watch on which nothing happens is ended by the server after 290 s, and
    /// asked for anew.
    pub(crate) heard: Option<Instant>,
}

/// Watches until nobody reads any more.
pub(super) async fn run(client: Client, answered: Arc<Notify>, state: watch::Sender<Observed>) {
    while !state.is_closed() {
        let config = watcher::Config::default().page_size(PAGE);
        let events = watcher(Api::<Object>::all(client.clone()), config).backoff(backoff());
        follow(pin!(events), &answered, &state).await;
        sleep(PAUSE).await;
    }
}

/// Between tries of a server that does not answer. As others do, but not for as long: what changed in an outage is known
/// soon after it.
fn backoff() -> impl Backoff {
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(800))
        .with_max_delay(LONGEST_PAUSE)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter();
    ResetTimerBackoff::new(ExponentialBackoff::from(pauses), Duration::from_mins(2))
}

/// Follows one stream of events until it stalls.
async fn follow(
    mut events: impl Stream<Item = Result<Event<Object>, Error>> + Unpin,
    answered: &Notify,
    state: &watch::Sender<Observed>,
) {
    // What has come of a list that is not complete.
    let mut coming: Option<BTreeMap<String, KubeNode>> = Some(BTreeMap::new());
    loop {
        let patience = if coming.is_some() { PIECE } else { Duration::MAX };
        let event = tokio::select! {
            event = timeout(patience, events.next()) => event,
            () = answered.notified() => {
                heard(state);
                // Of a list, what matters is that it is complete.
                if coming.is_none() {
                    over(state);
                }
                continue;
            }
            () = state.closed() => return,
        };
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(_elapsed) => {
                outage(state, format!("a list of Nodes has stalled for {} s", PIECE.as_secs()));
                return;
            }
        };
        if event.is_ok() {
            heard(state);
        }
        match event {
            Ok(Event::Init) => coming = Some(BTreeMap::new()),
            Ok(Event::InitApply(object)) => {
                if let Some(nodes) = &mut coming {
                    nodes.extend(KubeNode::from(object));
                }
            }
            Ok(Event::InitDone) => {
                over(state);
                let nodes = coming.take().unwrap_or_default();
                debug!("the list of Nodes is complete: {}", nodes.len());
                state.send_if_modified(|known| {
                    let news = !known.listed || known.nodes != nodes;
                    known.listed = true;
                    known.nodes = nodes;
                    news
                });
            }
            Ok(Event::Apply(object)) => {
                let Some((name, node)) = KubeNode::from(object) else { continue };
                // Most changes of a Node are its heartbeat.
                state
                    .send_if_modified(|known| known.nodes.insert(name, node.clone()).as_ref() != Some(&node));
            }
            Ok(Event::Delete(object)) => {
                let Some((name, _)) = KubeNode::from(object) else { continue };
                state.send_if_modified(|known| known.nodes.remove(&name).is_some());
            }
            // Not an outage: what has changed too long ago cannot be told one by one any more.
            Err(Error::WatchError(status)) if status.code == 410 => info!("{BEHIND}"),
            // The same, by the status of the answer: the library would try the same again for ever.
            Err(Error::WatchStartFailed(kube::Error::Api(status))) if status.code == 410 => {
                info!("{BEHIND}");
                return;
            }
            Err(error) => outage(state, describe(&error)),
        }
    }
}

/// Notes that the API server cannot be asked, and says so the first time.
fn outage(state: &watch::Sender<Observed>, what: String) {
    state.send_if_modified(|known| {
        let begins = known.outage.is_none();
        if begins {
            let held = if known.listed {
                format!("; the {} nodes known before stay", known.nodes.len())
            } else {
                String::new()
            };
            warn!("no Nodes from the API server: {what}{held}");
        } else {
            debug!("no Nodes from the API server: {what}");
        }
        known.outage = Some(what);
        begins
    });
}

/// No news that anybody waits for.
fn heard(state: &watch::Sender<Observed>) {
    state.send_if_modified(|known| {
        known.heard = Some(Instant::now());
        false
    });
}

fn over(state: &watch::Sender<Observed>) {
    state.send_if_modified(|known| {
        let ends = known.outage.take().is_some();
        if ends {
            info!("the API server answers again");
        }
        ends
    });
}

/// The chain of causes on one line.
fn describe(error: &Error) -> String {
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
            if status.is_forbidden() =>
        {
            format!("{}: the agent needs the rights get, list and watch on nodes", status.message)
        }
        _ => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                let next = error.to_string();
                if !text.contains(&next) {
                    text = format!("{text}: {next}");
                }
                cause = error.source();
            }
            text.replace('\n', " ")
        }
    }
}

//! What this node's agent writes to the API: Events about its own Node, and, where it is told to, the Node's condition
//! `NetworkUnavailable`. A task of its own, so that an API server that is away holds nothing up.
//!
//! An agent writes about its own Node only: with five thousand agents, one conflict makes two Events. Each is written
//! when something changes, and not more than [`BURST`] at once and one per [`REFILL`] after that; what is left out is in
//! the log.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Node, ObjectReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use log::{debug, info, warn};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

/// Events that are written as fast as they come, and the time after which there may be one more.
const BURST: u32 = 5;
const REFILL: Duration = Duration::from_secs(30);

/// Attempts to write, each after twice the time of the one before: four minutes in all.
const ATTEMPTS: u32 = 8;
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Longer ones the API refuses.
const NOTE_MAX: usize = 1024;

/// Something to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// An Event about the own Node.
    Event {
        /// Whether it is a warning.
        warning: bool,
        /// `OverlayNode…`.
        reason: &'static str,
        /// The agent was doing this.
        action: &'static str,
        /// For people.
        note: String,
        /// The Node's uid, where it is known.
        uid: Option<String>,
    },
    /// The Node's network is there.
    NetworkAvailable,
}

/// Writes what comes until nobody sends any more.
pub(super) async fn run(client: Client, node: String, mut reports: mpsc::Receiver<Report>) {
    let reporter = Reporter { controller: "overlay.network/agent".into(), instance: Some(node.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut bucket = Bucket::new(Instant::now());
    while let Some(report) = reports.recv().await {
        if matches!(report, Report::Event { .. }) && !bucket.take(Instant::now()) {
            debug!("too many Events about {node}: left one out: {report:?}");
            continue;
        }
        let mut wait = FIRST_WAIT;
        for attempt in 1..=ATTEMPTS {
            let error = match write(&client, &recorder, &node, &report).await {
                Ok(()) => break,
                Err(error) => error,
            };
            let refused = matches!(&error, kube::Error::Api(status) if (400..429).contains(&status.code));
            if refused || attempt == ATTEMPTS {
                let what = match report {
                    Report::Event { .. } => {
                        "write an Event (it takes the rights create and patch on events.k8s.io)"
                    }
                    Report::NetworkAvailable => {
                        "set the condition NetworkUnavailable (it takes the right patch on nodes/status)"
                    }
                };
                warn!("{what}: {error}");
                break;
            }
            debug!("write to the API: {error}; again in {wait:?}");
            sleep(wait).await;
            wait *= 2;
        }
    }
}

async fn write(client: &Client, recorder: &Recorder, node: &str, report: &Report) -> Result<(), kube::Error> {
    match report {
        Report::Event { warning, reason, action, note, uid } => {
            let event = Event {
                type_: if *warning { EventType::Warning } else { EventType::Normal },
                reason: (*reason).to_owned(),
                action: (*action).to_owned(),
                note: Some(shortened(note)),
                secondary: None,
            };
            let regarding = ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                // What is known of a Node that is not there is its name, which the kubelet uses for this too.
                uid: Some(uid.as_deref().unwrap_or(node).to_owned()),
                ..ObjectReference::default()
            };
            recorder.publish(&event, &regarding).await
        }
        Report::NetworkAvailable => {
            let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let patch = json!({"status": {"conditions": [{
                "type": "NetworkUnavailable",
                "status": "False",
                "reason": "OverlayIsUp",
                "message": "overlay has set up the network of this node",
                "lastTransitionTime": now,
                "lastHeartbeatTime": now,
            }]}});
            let api = Api::<Node>::all(client.clone());
            api.patch_status(node, &PatchParams::default(), &Patch::Strategic(patch)).await?;
            info!("set the condition NetworkUnavailable of node {node} to False");
            Ok(())
        }
    }
}

fn shortened(note: &str) -> String {
    let end = note.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= NOTE_MAX).last();
    note[..end.unwrap_or_default()].to_owned()
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    const fn new(now: Instant) -> Self {
        Self { tokens: BURST, filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        while self.tokens < BURST && now.saturating_duration_since(self.filled) >= REFILL {
            self.filled += REFILL;
            self.tokens += 1;
        }
        if self.tokens == BURST {
            self.filled = now;
        }
        let some = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_at_a_time() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let passed = (0..20).filter(|_| bucket.take(start)).count();
        assert_eq!(passed, BURST as usize);
        assert!(!bucket.take(start + REFILL / 2));
        assert!(bucket.take(start + REFILL));
        assert!(!bucket.take(start + REFILL));
        let later = start + REFILL * 100;
        assert_eq!((0..20).filter(|_| bucket.take(later)).count(), BURST as usize);
    }

    #[test]
    fn notes_fit_and_stay_text() {
        assert_eq!(shortened("short"), "short");
        let long = "ü".repeat(NOTE_MAX);
        assert_eq!(shortened(&long).len(), NOTE_MAX);
        assert_eq!(shortened(&format!("x{long}")).len(), NOTE_MAX - 1);
    }
}

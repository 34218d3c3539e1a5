//! The `kubernetes` source: the Nodes of an API server, watched.
//!
//! - `client`: the connection
//! - `node`: what is decoded and kept of a Node
//! - `watch`: the task that keeps the newest whole state
//! - `survey`: from Nodes to one consistent list
//! - `report`: the task that writes Events and the node's condition
//!
//! Called by the agent, which reads the state when it is about to make a pass: five thousand events make a handful of
//! passes. The API server is asked for Nodes only, and asked to change nothing but Events and, where that is switched
//! on, one condition of the own Node.

use std::time::Duration;

use log::{info, warn};
use tokio::{
    sync::{mpsc, watch as channel},
    task::JoinHandle,
    time::Instant,
};

use crate::config::Kubernetes;

mod client;
mod node;
pub(crate) mod report;
pub(crate) mod survey;
mod watch;

pub use node::{TUNNEL_ADDRESS, VTEP_MAC};
use report::Report;
use survey::{Finding, Nodes};
use watch::Observed;

/// Reports that wait for the API server; more than that are left out.
const BACKLOG: usize = 16;

/// When the condition still says otherwise after this, it is set again.
const ASK_AGAIN: Duration = Duration::from_mins(1);

/// New findings that are logged one by one.
const FINDINGS_LOGGED: usize = 20;

/// The source; its tasks end with it.
pub(crate) struct Source {
    node: String,
    observed: channel::Receiver<Observed>,
    reports: mpsc::Sender<Report>,
    tasks: [JoinHandle<()>; 2],
    findings: Vec<Finding>,
    /// When the condition was last asked for.
    asked: Option<Instant>,
}

impl Drop for Source {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Source {
    /// Begins to watch on behalf of the node of this name. Needs a tokio runtime.
    pub(crate) async fn open(settings: &Kubernetes, node: &str) -> anyhow::Result<Self> {
        let (client, answered) = client::connect(settings).await?;
        let (sender, observed) = channel::channel(Observed::default());
        let (reports, receiver) = mpsc::channel(BACKLOG);
        let watch = tokio::spawn(watch::run(client.clone(), answered, sender));
        let report = tokio::spawn(report::run(client, node.to_owned(), receiver));
        Ok(Self {
            node: node.to_owned(),
            observed,
            reports,
            tasks: [watch, report],
            findings: Vec::new(),
            asked: None,
        })
    }

    /// Waits until something has changed. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        if self.observed.changed().await.is_err() {
            // The task does not end before this does.
            std::future::pending::<()>().await;
        }
    }

    /// The Nodes, when a list of them has been complete.
    pub(crate) fn with_nodes<T>(&self, look: impl FnOnce(&Nodes) -> T) -> Option<T> {
        let observed = self.observed.borrow();
        observed.listed.then(|| look(&observed.nodes))
    }

    /// Why the API server does not answer, if it does not.
    pub(crate) fn outage(&self) -> Option<String> {
        self.observed.borrow().outage.clone()
    }

    /// How long ago the API server last answered or told something, if it ever has.
    pub(crate) fn heard(&self) -> Option<Duration> {
        self.observed.borrow().heard.map(|at| at.elapsed())
    }

    /// Says what is new among the findings, and what is over; writes Events about this node's.
    pub(crate) fn note(&mut self, findings: Vec<Finding>) {
        if findings == self.findings {
            return;
        }
        let new: Vec<_> = findings.iter().filter(|finding| !self.findings.contains(finding)).collect();
        for finding in new.iter().take(FINDINGS_LOGGED) {
            match finding.kind {
                survey::Kind::Waiting => info!("{finding}"),
                survey::Kind::Invalid | survey::Kind::Conflict => warn!("{finding}"),
            }
        }
        if let Some(more) = new.len().checked_sub(FINDINGS_LOGGED).filter(|more| *more > 0) {
            warn!("and {more} more nodes that are left out");
        }
        for finding in new.iter().filter(|finding| finding.concerns(&self.node)) {
            self.event(true, finding.kind.reason(), "Surveying", finding.text.clone());
        }
        let over = self.findings.iter().filter(|finding| !findings.contains(finding));
        for finding in over.take(FINDINGS_LOGGED) {
            info!("over: {finding}");
        }
        self.findings = findings;
    }

    /// Writes an Event about this node, sooner or later or, if there are too many, never.
    pub(crate) fn event(&self, warning: bool, reason: &'static str, action: &'static str, note: String) {
        let uid = self.observed.borrow().nodes.get(&self.node).map(|node| node.uid.clone());
        let uid = uid.filter(|uid| !uid.is_empty());
        let _ = self.reports.try_send(Report::Event { warning, reason, action, note, uid });
    }

    /// Sets the condition of this node, unless it says so already.
    pub(crate) fn network_is_available(&mut self) {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
            return;
        }
        let said =
            self.observed.borrow().nodes.get(&self.node).is_some_and(|node| node.unavailable == Some(false));
        if !said {
            self.asked = Some(Instant::now());
            let _ = self.reports.try_send(Report::NetworkAvailable);
        }
    }
}

//! What a node's programs drop on purpose: the counters that `overlay status` shows, and the records that `overlay
//! monitor` prints.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::STEP_LIMIT;
use crate::lab::{Node, exec};

/// Packets dropped so far, by reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drops(BTreeMap<String, u64>);

impl Drops {
    /// Reads the counters of `node`.
    #[track_caller]
    pub fn read(node: &Node) -> Self {
        Self(packets(node, "drops"))
    }

    /// The reasons that were counted since `before`, and how often; reasons that were not are left out.
    #[track_caller]
    pub fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        difference(&self.0, &before.0)
    }
}

/// Packets that went each way so far, by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths(BTreeMap<String, u64>);

impl Paths {
    /// Reads the counters of `node`.
    #[track_caller]
    pub fn read(node: &Node) -> Self {
        Self(packets(node, "paths"))
    }

    /// The paths that were counted since `before`, and how often; paths that were not are left out.
    #[track_caller]
    pub fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        difference(&self.0, &before.0)
    }
}

#[track_caller]
fn packets(node: &Node, what: &str) -> BTreeMap<String, u64> {
    let status = node.status().unwrap_or_else(|| panic!("overlay status fails on {}", node.name()));
    let counters = status[what].as_object().unwrap_or_else(|| panic!("status has no {what}: {status}"));
    let packets = |counter: &Value| counter["packets"].as_u64().expect("a counter has packets");
    counters.iter().map(|(name, counter)| (name.clone(), packets(counter))).collect()
}

#[track_caller]
fn difference(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let moved = now.iter().map(|(name, packets)| (name.clone(), packets - before[name]));
    moved.filter(|(_, packets)| *packets > 0).collect()
}

/// A running `overlay monitor -o json`. Dropping it ends it.
///
/// A record is handed out once: at most one per node. The first records are those that nobody has read before.
#[derive(Debug)]
pub struct Monitor {
    node: String,
    child: Child,
    records: Arc<Mutex<Vec<Value>>>,
    reader: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Starts it on `node`, whose agent has run before.
    #[track_caller]
    pub fn start(node: &Node) -> Self {
        let mut command = node.overlay(&["monitor", "-o", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = exec::spawn_tied(command);
        let mut child =
            child.unwrap_or_else(|error| panic!("cannot run overlay monitor on {}: {error}", node.name()));
        let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        let records = Arc::new(Mutex::new(Vec::new()));
        let own = Arc::clone(&records);
        let reader = thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let record = serde_json::from_str(&line);
                let record = record.unwrap_or_else(|error| Value::String(format!("{error}: {line}")));
                own.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            }
        });
        Self { node: node.name().to_owned(), child, records, reader: Some(reader) }
    }

    /// Waits for `count` records and hands them out, and whatever else has come. Panics if fewer come in time.
    #[track_caller]
    pub fn take(&self, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + STEP_LIMIT;
        loop {
            let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
            if records.len() >= count {
                return std::mem::take(&mut records);
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "overlay monitor on {} printed {records:?}, not {count} records", self.node);
            drop(records);
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

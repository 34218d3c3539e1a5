//! What a node's programs drop on purpose: the counters that `overlay status` shows, and the records that `overlay
//! monitor` prints.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::step_limit;
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
#[derive(Debug)]
pub struct Monitor {
    node: String,
    child: Child,
    records: Arc<Mutex<Vec<Value>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Monitor {
    /// Starts it on `node`, whose agent has run before; shows what is dropped from now on.
    #[track_caller]
    pub fn start(node: &Node) -> Self {
        Self::start_with(node, &[])
    }

    /// As [`Monitor::start`], with more arguments.
    #[track_caller]
    pub fn start_with(node: &Node, arguments: &[&str]) -> Self {
        let mut command = node.overlay(&["monitor", "-o", "json"]);
        command.args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = exec::spawn_tied(command);
        let mut child =
            child.unwrap_or_else(|error| panic!("cannot run overlay monitor on {}: {error}", node.name()));
        let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        let errors = BufReader::new(child.stderr.take().expect("standard error is a pipe"));
        let records = Arc::new(Mutex::new(Vec::new()));
        let own = Arc::clone(&records);
        let reader = thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let record = serde_json::from_str(&line);
                let record = record.unwrap_or_else(|error| Value::String(format!("{error}: {line}")));
                own.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            }
        });
        let (said, lines) = mpsc::channel();
        let teller = thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                let _ = said.send(line);
            }
        });
        let monitor = Self { node: node.name().to_owned(), child, records, readers: vec![reader, teller] };
        match lines.recv_timeout(step_limit()) {
            Ok(line) if line.contains("listening") => monitor,
            said => panic!("overlay monitor {arguments:?} on {} does not listen: {said:?}", monitor.node),
        }
    }

    /// Waits for `count` records and hands them out, and whatever else has come. Panics if fewer come in time.
    #[track_caller]
    pub fn take(&self, count: usize) -> Vec<Value> {
        self.take_until(&format!("{count} records"), |records| records.len() >= count)
    }

    /// As [`Monitor::take`], until `enough` says yes.
    #[track_caller]
    pub fn take_until(&self, what: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let deadline = Instant::now() + step_limit();
        loop {
            let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
            if enough(&records) {
                return std::mem::take(&mut records);
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "overlay monitor on {} printed {records:?}, not {what}", self.node);
            drop(records);
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Ends it as Ctrl-C does, which must succeed; gives what has not been taken.
    #[track_caller]
    pub fn interrupt(mut self) -> Vec<Value> {
        kill(self.pid(), Signal::SIGINT).expect("it runs");
        let status = exec::wait_until(&mut self.child, Instant::now() + step_limit()).expect("wait for it");
        let status =
            status.unwrap_or_else(|| panic!("overlay monitor on {} goes on after SIGINT", self.node));
        assert!(status.success(), "overlay monitor on {}: {status}", self.node);
        self.readers.drain(..).for_each(|reader| reader.join().expect("a reader does not panic"));
        std::mem::take(&mut self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

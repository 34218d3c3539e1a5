//! Waiting for what an agent does by itself: until a state holds, until the log says it.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::{Node, exec, interrupt};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `holds` says so; gives the time that it took. `what` is for the message when it does not within `limit`.
#[track_caller]
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let (start, limit) = (Instant::now(), exec::patient(limit));
    loop {
        interrupt::check();
        if holds() {
            return start.elapsed();
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(PAUSE);
    }
}

/// The log of an agent from a moment on.
#[derive(Debug, Clone)]
pub struct LogMark {
    path: PathBuf,
    offset: usize,
}

impl Node {
    /// Marks this moment in the agent's log.
    pub fn log_mark(&self) -> LogMark {
        LogMark { path: self.log_path(), offset: self.log().len() }
    }
}

impl LogMark {
    /// The lines since then.
    pub fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        text.get(self.offset..).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Waits for a line with `text` in it.
    #[track_caller]
    pub fn wait_for(&self, text: &str, limit: Duration) -> Duration {
        let start = Instant::now();
        while !self.lines().iter().any(|line| line.contains(text)) {
            interrupt::check();
            let lines = self.lines().join("\n");
            assert!(start.elapsed() < limit, "the log does not say {text:?} within {limit:?}:\n{lines}");
            thread::sleep(PAUSE);
        }
        start.elapsed()
    }
}

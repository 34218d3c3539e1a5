//! The `overlay` binary on a node: where it is, and the agent's process from start to end.

use std::env;
use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlay_common::maps::{SCHEMA, v1};

use super::exec::patient;
use super::sweep::{self, Process};
use super::{Node, exec, interrupt};

/// How long an agent may take to become ready, and to stop.
const LIMIT: Duration = Duration::from_secs(15);

/// How much of an agent's log an error message quotes, in lines.
const LOG_TAIL: usize = 25;

/// How an agent is started where it differs from the lab's default.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// Its cluster file instead of the lab's.
    pub config: Option<PathBuf>,
    /// Takes part in the health mesh. Without that the wire is quiet, and what is counted is the tests'.
    pub mesh: bool,
    /// More arguments after those that the lab passes.
    pub args: Vec<String>,
    /// More environment variables.
    pub env: Vec<(String, String)>,
}

impl AgentOptions {
    /// The port of [`AgentOptions::seen`].
    pub const HTTP_PORT: u16 = 9879;

    /// As agents run outside of labs: in the health mesh, with metrics and the page on the node's own address.
    #[must_use]
    pub fn seen(node: &Node) -> Self {
        let health = format!("--health={}", SocketAddr::new(node.primary_address(), Self::HTTP_PORT));
        Self { mesh: true, args: vec![health], ..Self::default() }
    }
}

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    record: PathBuf,
    /// Length of the log when it was started, in bytes.
    log_before: usize,
}

/// What an agent logs once it is ready.
const READY: &str = " is ready";

impl Agent {
    /// Starts `command` with its outputs appended to `log`; `lab` is the lab's directory.
    #[track_caller]
    pub(super) fn spawn(mut command: Command, node: &str, lab: &Path, log: &Path) -> Self {
        interrupt::check();
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.unwrap_or_else(|error| panic!("cannot open {}: {error}", log.display()));
        let log_before = read(log).len();
        command.stdin(std::process::Stdio::null());
        command.stdout(file.try_clone().expect("duplicate log descriptor")).stderr(file);
        let child = exec::spawn_tied(command);
        let child = child.unwrap_or_else(|error| panic!("cannot start the agent of {node}: {error}"));
        let record = sweep::processes_dir(lab).join(format!("agent-{node}"));
        // An agent that is gone already needs no record.
        if let Some(process) = Process::of(child.id().cast_signed()) {
            process
                .record(&record)
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", record.display()));
        }
        Self { child, record, log_before }
    }

    /// Polls `ready` until it says yes and this agent has logged that it is: what is pinned says so of an earlier one
    /// as well. Gives the time that it took.
    #[track_caller]
    pub(super) fn wait_ready(&mut self, node: &str, log: &Path, mut ready: impl FnMut() -> bool) -> Duration {
        let (start, limit) = (Instant::now(), patient(LIMIT));
        loop {
            interrupt::check();
            if read(log)[self.log_before..].contains(READY) && ready() {
                return start.elapsed();
            }
            if let Some(status) = self.child.try_wait().expect("wait for agent") {
                panic!("the agent of {node} ended ({status}) before it was ready; its log:\n{}", tail(log));
            }
            assert!(
                start.elapsed() < limit,
                "the agent of {node} is not ready after {limit:?}; its log:\n{}",
                tail(log)
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends `signal` and waits for the end.
    #[track_caller]
    pub(super) fn end(mut self, signal: Signal) -> ExitStatus {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("cannot send {signal} to the agent: {error}"));
        let status =
            exec::wait_until(&mut self.child, Instant::now() + patient(LIMIT)).expect("wait for agent");
        status.unwrap_or_else(|| panic!("the agent still runs {LIMIT:?} after {signal}"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Fails only for a process that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.record);
    }
}

/// Whether `status` is what a process shows that ended because of `signal` itself.
pub(super) fn killed_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal as i32)
}

fn read(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = read(log);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
}

/// Which build of overlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Build {
    /// The one under test.
    #[default]
    Own,
    /// The one with the rehearsal of the next schema.
    Next,
    /// One of the first schema, which `OVERLAY_OLD_BIN` names.
    Older,
}

impl Build {
    /// The number of its schema.
    pub fn schema(self) -> u32 {
        match self {
            Self::Own => SCHEMA,
            Self::Next => SCHEMA + 1,
            Self::Older => v1::SCHEMA,
        }
    }

    /// Its binary.
    #[track_caller]
    pub fn binary(self) -> PathBuf {
        match self {
            Self::Own => overlay_binary(),
            Self::Next => next_binary(),
            Self::Older => {
                let path = env::var_os("OVERLAY_OLD_BIN").map(PathBuf::from).filter(|path| path.is_file());
                path.expect("OVERLAY_OLD_BIN names a build of the first schema")
            }
        }
    }
}

/// `$OVERLAY_NEXT_BIN`, else `next/overlay` in the target directory.
#[track_caller]
fn next_binary() -> PathBuf {
    let named = env::var_os("OVERLAY_NEXT_BIN").map(PathBuf::from);
    let own = env::current_exe().expect("find own executable");
    let mut places = own.ancestors().map(|dir| dir.join("next/overlay"));
    let found = named.or_else(|| places.find(|path| path.is_file())).filter(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no overlay binary of the next schema: cargo xtask build --next-schema"))
}

/// The `overlay` binary under test: `$OVERLAY_BIN`, else `overlay` in the profile directory that this program was
/// built into, else the one of the other profile.
#[track_caller]
pub fn overlay_binary() -> PathBuf {
    if let Some(path) = env::var_os("OVERLAY_BIN").map(PathBuf::from) {
        assert!(path.is_file(), "OVERLAY_BIN={} is not a file", path.display());
        return path;
    }
    let own = env::current_exe().expect("find own executable");
    // target/<profile>/lab, or target/<profile>/deps/<test>-<hash>.
    let profile = own.ancestors().skip(1).find(|dir| !dir.ends_with("deps")).unwrap_or(&own);
    let target = profile.parent().unwrap_or(profile);
    let places = [profile.to_owned(), target.join("release"), target.join("debug")];
    let found = places.iter().map(|dir| dir.join("overlay")).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "no overlay binary in {} or beside it: build it with `cargo build --package overlay-userspace`, \
             or name it in OVERLAY_BIN",
            profile.display()
        )
    })
}

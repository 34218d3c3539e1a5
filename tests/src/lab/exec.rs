//! Running programs: always with a deadline, always with both outputs, never leaving a child behind.
//!
//! Also the thread that starts long-lived children, see [`spawn_tied`].

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::interrupt;

/// How long a configuration command (`ip`, `ethtool`, …) may take; they need milliseconds.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// What makes a machine patient that is slow by itself: by how much all limits here are longer, as a whole number.
pub const PATIENCE: &str = "OVERLAY_LAB_PATIENCE";

/// By how much all limits are longer on this machine; traffic that goes on beside a test is as much thinner.
pub fn patience() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let set = std::env::var(PATIENCE).ok();
        set.map_or(1, |set| set.parse().unwrap_or_else(|_| panic!("{PATIENCE}={set} is no whole number")))
    })
}

/// A limit that fits this machine.
pub fn patient(limit: Duration) -> Duration {
    limit * patience()
}

/// What a program left: exit status and both outputs, as text.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `command` with `stdin` as its input.
///
/// Errors: it cannot be started, or is not done within `limit` ([`patient`]; `TimedOut`, and it is killed).
pub fn output(command: &mut Command, stdin: &[u8], limit: Duration) -> io::Result<Output> {
    interrupt::check();
    let limit = patient(limit);
    let deadline = Instant::now() + limit;
    command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
    // A group of its own: can be killed with all that it started, and Ctrl-C is the lab's business alone.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
    let (input, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || {
            // A program that does not read its input has a reason, and says so by its status.
            let _ = input.map(|mut pipe| pipe.write_all(stdin));
        });
        let reader = |pipe: Option<Box<dyn io::Read + Send>>| {
            scope.spawn(move || {
                let mut text = Vec::new();
                let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut text));
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let stdout = reader(out.map(|pipe| Box::new(pipe) as Box<dyn io::Read + Send>));
        let stderr = reader(err.map(|pipe| Box::new(pipe) as Box<dyn io::Read + Send>));
        let Some(status) = wait_until(&mut child, deadline)? else {
            killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL)?;
            child.wait()?;
            let message = format!("still running after {limit:?}: {}", line_of(command));
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        };
        let join = |thread: thread::ScopedJoinHandle<'_, String>| thread.join().unwrap_or_default();
        Ok(Output { status, stdout: join(stdout), stderr: join(stderr) })
    })
}

/// Waits for `child` until `deadline`; `None` if it is still running then.
pub fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    // Most children here live for 2 ms, agents for minutes: start short, grow.
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Runs a configuration command that has to succeed; gives its standard output.
#[track_caller]
pub fn must(command: &mut Command, stdin: &str) -> String {
    match output(command, stdin.as_bytes(), COMMAND_LIMIT) {
        Ok(out) if out.status.success() => out.stdout,
        Ok(out) => {
            let (line, status, error) = (line_of(command), out.status, out.stderr.trim_end());
            panic!("command failed ({status}): {line}\n{stdin}{error}")
        }
        Err(error) => panic!("cannot run {}: {error}", line_of(command)),
    }
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts a child that dies (SIGKILL) together with this process, even if this process is itself killed.
///
/// `PR_SET_PDEATHSIG` fires when the *thread* that forked ends, not the process. Tests run on threads that come
/// and go, so all such children are forked by one thread that lives as long as the process.
pub fn spawn_tied(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only prctl and getppid are called: async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the call above.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let work = move || {
            for (mut command, reply) in jobs {
                let _ = reply.send(command.spawn());
            }
        };
        thread::Builder::new().name("spawner".into()).spawn(work).expect("start spawner thread");
        sender
    });
    let (reply, child) = mpsc::channel();
    let gone = |_| io::Error::other("spawner thread is gone");
    spawner.send((command, reply)).map_err(|_| io::Error::other("spawner thread is gone"))?;
    child.recv().map_err(gone)?
}

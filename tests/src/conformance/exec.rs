//! Runs one program to its end: with input, a deadline, both outputs, and the exact time from fork to exit.
//!
//! The end is taken from a pidfd, not from the end of the outputs: a daemon that a plugin has left behind may hold
//! those open. Invariant: no child outlives the call.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// What a program left.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    /// Exit status.
    pub(crate) status: ExitStatus,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
    /// From just before the fork until the exit.
    pub(crate) elapsed: Duration,
}

/// Runs `command` with `stdin` as its input.
///
/// Errors: it cannot be started, or has not ended within `limit` (`TimedOut`; it and all that it started are killed).
pub(crate) fn run(command: &mut Command, stdin: &[u8], limit: Duration) -> io::Result<Finished> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: can be killed as a whole, and Ctrl-C is for this program alone.
        .process_group(0)
        .spawn()?;
    let result = attend(&mut child, stdin, start, limit);
    if result.is_err() {
        // ESRCH: the whole group has ended already.
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        child.wait()?;
    }
    result
}

fn attend(child: &mut Child, stdin: &[u8], start: Instant, limit: Duration) -> io::Result<Finished> {
    let pidfd = pidfd_open(child.id())?;
    let (mut input, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    if let Some(pipe) = &input {
        set_nonblocking(pipe)?;
    }
    let (mut out, mut err) = (Drain::new(out)?, Drain::new(err)?);
    let mut left = stdin;
    loop {
        if let Some(pipe) = &mut input {
            match pipe.write(left) {
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It does not read its input; that is its right.
                Err(_) => left = &[],
            }
            if left.is_empty() {
                input = None;
            }
        }
        let ended = wait(&pidfd, input.as_ref(), [&out, &err], limit.saturating_sub(start.elapsed()))?;
        let elapsed = start.elapsed();
        out.read_available()?;
        err.read_available()?;
        if ended {
            let status = child.wait()?;
            return Ok(Finished { status, stdout: out.into_text(), stderr: err.into_text(), elapsed });
        }
        if elapsed >= limit {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("still running after {limit:?}")));
        }
    }
}

/// Waits for anything to happen; gives whether the process has ended.
fn wait<I: AsFd>(
    pidfd: &OwnedFd,
    input: Option<&I>,
    outputs: [&Drain; 2],
    limit: Duration,
) -> io::Result<bool> {
    let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    fds.extend(input.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
    let open = outputs.into_iter().filter_map(|drain| drain.pipe.as_ref());
    fds.extend(open.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
    // Rounded up: with a timeout of 0 the last millisecond would be spent spinning.
    let limit = limit.saturating_add(Duration::from_millis(1));
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    Ok(fds.first().is_some_and(|fd| fd.any() == Some(true)))
}

/// One output of a child, read as far as there is something.
struct Drain {
    pipe: Option<Box<dyn Output>>,
    seen: Vec<u8>,
}

trait Output: io::Read + AsFd {}
impl<T: io::Read + AsFd> Output for T {}

impl Drain {
    fn new(pipe: Option<impl Output + 'static>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            set_nonblocking(pipe)?;
        }
        Ok(Self { pipe: pipe.map(|pipe| Box::new(pipe) as Box<dyn Output>), seen: Vec::new() })
    }

    fn read_available(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        match pipe.read_to_end(&mut self.seen) {
            Ok(_) => self.pipe = None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn into_text(self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}

fn set_nonblocking(pipe: impl AsFd) -> nix::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// A descriptor that becomes readable when the process ends; Linux 5.3, pidfd_open(2).
fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, stdin: &[u8], limit: Duration) -> io::Result<Finished> {
        run(Command::new("sh").args(["-c", script]), stdin, limit)
    }

    #[test]
    fn both_outputs_and_the_status_are_reported() {
        let done = shell("cat; echo bad >&2; exit 3", b"input", Duration::from_secs(5)).unwrap();
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("input", "bad\n"));
        assert_eq!(done.status.code(), Some(3));
        assert!(done.elapsed < Duration::from_secs(5));
    }

    #[test]
    fn more_than_a_pipe_holds_goes_in_and_out() {
        let input = vec![b'x'; 1 << 20];
        let done = shell("cat", &input, Duration::from_secs(10)).unwrap();
        assert_eq!(done.stdout.len(), input.len());
    }

    #[test]
    fn input_that_nobody_reads_is_no_error() {
        let done = shell("exit 0", &vec![b'x'; 1 << 20], Duration::from_secs(5)).unwrap();
        assert!(done.status.success());
    }

    #[test]
    fn the_end_of_the_process_counts_not_that_of_its_outputs() {
        let done = shell("sleep 2 & echo on", b"", Duration::from_secs(5)).unwrap();
        assert_eq!(done.stdout, "on\n");
        assert!(done.elapsed < Duration::from_secs(1), "{:?}", done.elapsed);
    }

    #[test]
    fn what_does_not_end_is_killed() {
        let error = shell("sleep 60", b"", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

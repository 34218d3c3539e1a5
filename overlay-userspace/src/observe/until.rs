//! Until when a command runs that could run for ever: a number of packets, a time, a signal, or a reader of its output that
//! goes away. Each of them ends it as if it were done.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

/// The end, and waiting for it.
pub struct Until {
    signals: SignalFd,
    deadline: Option<Instant>,
}

/// Why a wait was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The time is up, or somebody wants it to end.
    End,
    /// Something can be read, or the pause is over.
    GoOn,
}

impl Until {
    /// From now on SIGINT and SIGTERM end the command in an orderly way; `timeout` does so as well.
    pub fn new(timeout: Option<Duration>) -> anyhow::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGINT);
        mask.add(Signal::SIGTERM);
        mask.thread_block().context("block signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        let signals = signals.context("wait for signals")?;
        Ok(Self { signals, deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)) })
    }

    /// Waits for `input`, for at most `pause`.
    pub fn wait(&self, input: Option<BorrowedFd<'_>>, pause: Duration) -> anyhow::Result<Wake> {
        let left = self
            .deadline
            .map_or(pause, |deadline| deadline.saturating_duration_since(Instant::now()).min(pause));
        let stdout = io::stdout();
        // Without a wish only that its other end is gone is reported of standard output.
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdout.as_fd(), PollFlags::empty()),
        ];
        fds.extend(input.map(|input| PollFd::new(input, PollFlags::POLLIN)));
        let millis = left.as_micros().div_ceil(1000);
        match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e).context("wait for packets"),
        }
        let asked = fds[..2].iter().any(|fd| fd.any().unwrap_or(false));
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        Ok(if asked || late { Wake::End } else { Wake::GoOn })
    }
}

/// A write that failed because its reader has gone is the end, not an error.
pub fn unless_closed(result: io::Result<()>) -> anyhow::Result<Wake> {
    match result {
        Ok(()) => Ok(Wake::GoOn),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Wake::End),
        Err(e) => Err(e).context("write to standard output"),
    }
}

/// Reads a duration such as 500ms, 30s, 5m, or a number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "is no duration: use 500ms, 30s or 5m".to_owned())?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{unit:?} is no unit of time: use ms, s, m or h")),
    };
    Ok(Duration::from_millis(number.saturating_mul(millis)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, millis) in
            [("250ms", 250), ("3", 3000), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "3 s", "1d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}

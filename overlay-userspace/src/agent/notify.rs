//! What the agent tells a service manager (sd_notify(3)): that it is ready, how it is, that its run loop turns, and that it
//! stops. Nothing where none listens (`NOTIFY_SOCKET`).
//!
//! The watchdog is fed by the run loop itself, each time that it turns, and by nothing else: a loop that is held up feeds
//! it no more, and the manager starts the agent anew. Pods do not notice.

use std::{
    io,
    time::{Duration, Instant},
};

use log::warn;
use sd_notify::NotifyState;

/// Sends, one message at a time: `sd_notify::notify`, but for tests.
type Send = fn(&[NotifyState<'_>]) -> io::Result<()>;

/// What the manager has been told.
pub(super) struct Notify {
    send: Send,
    /// How often it wants to hear of the loop: a third of what it has patience for, so that one may be late.
    every: Option<Duration>,
    fed: Option<Instant>,
    ready: bool,
    status: String,
    failed: bool,
}

impl Notify {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub(super) fn from_environment() -> Self {
        Self::new(sd_notify::notify, sd_notify::watchdog_enabled())
    }

    fn new(send: Send, patience: Option<Duration>) -> Self {
        let every = patience.map(|patience| patience / 3).filter(|every| !every.is_zero());
        Self { send, every, fed: None, ready: false, status: String::new(), failed: false }
    }

    fn tell(&mut self, what: &[NotifyState<'_>]) {
        if let Err(error) = (self.send)(what)
            && !std::mem::replace(&mut self.failed, true)
        {
            warn!("cannot tell the service manager: {error}");
        }
    }

    /// The first pass has succeeded.
    pub(super) fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            self.tell(&[NotifyState::Ready]);
        }
    }

    /// How it is, on one line; said when it changes.
    pub(super) fn status(&mut self, status: &str) {
        if self.status != status {
            status.clone_into(&mut self.status);
            self.tell(&[NotifyState::Status(status)]);
        }
    }

    /// It ends by itself.
    pub(super) fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// The run loop turns, at `now`.
    pub(super) fn turn(&mut self, now: Instant) {
        if let Some(every) = self.every
            && self.fed.is_none_or(|fed| now.saturating_duration_since(fed) >= every)
        {
            self.fed = Some(now);
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// How long the loop may rest at most; `None` where nobody waits for it.
    pub(super) fn rest(&self) -> Option<Duration> {
        let (every, fed) = (self.every?, self.fed?);
        Some(every.saturating_sub(fed.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static TOLD: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    #[expect(clippy::unnecessary_wraps, reason = "it stands in for one that can fail")]
    fn note(what: &[NotifyState<'_>]) -> io::Result<()> {
        TOLD.with_borrow_mut(|told| told.extend(what.iter().map(ToString::to_string)));
        Ok(())
    }

    fn told() -> Vec<String> {
        TOLD.take()
    }

    #[test]
    fn the_watchdog_is_fed_thrice_in_its_time_and_only_by_turns() {
        let mut notify = Notify::new(note, Some(Duration::from_secs(3)));
        let start = Instant::now();
        for late in [0, 100, 999, 1000, 1500, 2000] {
            notify.turn(start + Duration::from_millis(late));
        }
        assert_eq!(told(), ["WATCHDOG=1"; 3]);
        assert_eq!(notify.rest(), Some(Duration::from_secs(1)));
        let mut nobody = Notify::new(note, None);
        nobody.turn(start);
        assert_eq!((told(), nobody.rest()), (Vec::new(), None));
    }

    #[test]
    fn ready_is_said_once_and_a_status_when_it_changes() {
        let mut notify = Notify::new(note, None);
        for status in ["a", "a", "b"] {
            notify.status(status);
        }
        notify.ready();
        notify.ready();
        notify.stopping();
        assert_eq!(told(), ["STATUS=a", "STATUS=b", "READY=1", "STOPPING=1"]);
    }
}

//! Locks that an agent holds as long as it lives: two on one node, or on the same pins, would undo each other's work. The
//! kernel releases them with the process, however that ends.

use std::{fs::File, path::Path};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

use crate::datapath::pins::Pins;

/// The lock of the calling thread's network namespace; `None` when somebody holds it.
pub(crate) fn namespace() -> anyhow::Result<Option<Flock<File>>> {
    exclusive(Path::new("/proc/thread-self/ns/net"))
}

/// The lock of the pins, whose root has to be there; `None` when somebody holds it.
pub(crate) fn pins(pins: &Pins) -> anyhow::Result<Option<Flock<File>>> {
    exclusive(pins.root())
}

fn exclusive(path: &Path) -> anyhow::Result<Option<Flock<File>>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e).with_context(|| format!("lock {}", path.display())),
    }
}

//! The agent: brings this node into the state that the configuration and the list of nodes describe, and keeps it there.
//!
//! It is not on the path of any packet. Everything it makes stays when it ends, however it ends; a new one finds it,
//! compares and changes only what differs. It reconciles at start, when the file changes, when the kernel reports a
//! change of links, addresses or routes, and periodically.
//!
//! Start-up is all or nothing: what a failed first start has made is taken back.

use std::{fs::File, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use log::{error, info, warn};
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior},
};

use crate::{
    cluster::file::Watch,
    config::Config,
    datapath::{kernel, pins::Pins},
    host::monitor::Monitor,
};

mod anchor;
mod nodes;
mod pods;
mod reconcile;

use reconcile::{Reconciler, Scope};

/// What the command line decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// This node's name, instead of the file's.
    pub node: Option<String>,
    /// Where to pin.
    pub pins: Pins,
    /// Level of the programs' own log, 0 (off) to 5 (trace).
    pub program_log: u8,
}

/// Everything is looked at this often, whatever happens or does not.
const RESYNC: Duration = Duration::from_secs(10);

/// Changes come in bursts; one pass serves them all.
const SETTLE: Duration = Duration::from_millis(50);

/// A pass that failed is tried again, soon and then less so.
const RETRY: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

/// Runs until SIGTERM or SIGINT.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let config = Config::load(&options.config, options.node.as_deref())?;
    kernel::check_version()?;
    kernel::check_privileges()?;
    options.pins.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the asynchronous runtime")?;
    runtime.block_on(serve(options, config))
}

async fn serve(options: &Options, config: Config) -> anyhow::Result<()> {
    // Subscribed before the first look at the state, so that nothing that changes in between is missed.
    let mut file = Watch::new(&options.config)?;
    let mut monitor = Monitor::open()?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;

    let node = config.node.clone();
    let mut reconciler = Reconciler::new(options, config);
    let made = options.pins.create()?;
    let _lock = match start(options, &mut reconciler) {
        Ok(lock) => lock,
        Err(error) => {
            reconciler.take_back(made.as_deref());
            return Err(error);
        }
    };
    info!("node {node} is ready; pins are in {}", options.pins.root().display());

    let mut tick = tokio::time::interval_at(Instant::now() + RESYNC, RESYNC);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = 0_usize;
    let mut next = Next::default();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = file.changed() => {
                changed.context("watch the configuration file")?;
                match Config::load(&options.config, options.node.as_deref()) {
                    Ok(config) => if reconciler.set_config(config) {
                        next.want(Duration::ZERO, Scope::Everything);
                    },
                    Err(error) => error!("{error}; the configuration read before stays in force"),
                }
            }
            change = monitor.changed() => {
                let change = change.context("watch the network of the node")?;
                if Reconciler::concerns(&change) {
                    next.want(SETTLE, Scope::Network);
                }
            }
            () = reconciler.program_log() => {}
            _ = tick.tick() => next.want(Duration::ZERO, Scope::Everything),
            scope = next.due() => match reconciler.run(scope) {
                Ok(()) => failures = 0,
                Err(error) => {
                    warn!("{error:#}");
                    next.want(RETRY.get(failures).copied().unwrap_or(RESYNC), Scope::Everything);
                    failures += 1;
                }
            }
        }
    }
    info!("stopping; pods keep their network");
    Ok(())
}

/// When the next pass is due, and how much it has to look at.
#[derive(Default)]
struct Next(Option<(Instant, Scope)>);

impl Next {
    /// Asks for a pass; the earliest time and the widest scope of all that ask win.
    fn want(&mut self, after: Duration, scope: Scope) {
        let at = Instant::now() + after;
        self.0 = Some(self.0.map_or((at, scope), |(old, other)| (old.min(at), other.max(scope))));
    }

    /// Waits for it; for ever when nobody has asked.
    async fn due(&mut self) -> Scope {
        let Some((at, scope)) = self.0 else { return std::future::pending().await };
        tokio::time::sleep_until(at).await;
        self.0 = None;
        scope
    }
}

fn start(options: &Options, reconciler: &mut Reconciler) -> anyhow::Result<Flock<File>> {
    let lock = lock(&options.pins)?;
    reconciler.run(Scope::Everything)?;
    Ok(lock)
}

/// A lock on the pin root: two agents on the same pins would undo each other's work. Held as long as the agent lives;
/// the kernel releases it with the process, however that ends.
fn lock(pins: &Pins) -> anyhow::Result<Flock<File>> {
    let root = pins.root();
    let directory = File::open(root).with_context(|| format!("open {}", root.display()))?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::Error::EWOULDBLOCK)) => {
            bail!("another overlay agent is running with the pins in {}: stop it first", root.display())
        }
        Err((_, e)) => Err(e).with_context(|| format!("lock {}", root.display())),
    }
}

//! The agent: brings this node into the state that the configuration and the list of nodes describe, and keeps it there.
//!
//! It is not on the path of any packet. Everything it makes stays when it ends, however it ends; a new one finds it,
//! compares and changes only what differs. It reconciles at start, when the file changes, when the kernel reports a
//! change of links, addresses or routes, and periodically.
//!
//! Start-up is all or nothing: what a failed first start has made is taken back.

use std::{fs::File, path::PathBuf};

use anyhow::{Context as _, anyhow, bail};
use log::{Level, info, log};
use nix::fcntl::Flock;
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
mod filter;
mod flows;
mod forwarding;
mod local;
pub(crate) mod lock;
mod news;
mod node_routes;
mod nodes;
mod pods;
mod reconcile;
mod schedule;
mod undo;
mod wire;

pub(crate) use anchor::is_anchor;
use reconcile::{Reconciler, Scope};
use schedule::{RESYNC, Schedule};
use undo::Before;

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

impl Options {
    fn load(&self) -> Result<Config, crate::config::ConfigError> {
        Config::load(&self.config, self.node.as_deref())
    }
}

/// Runs until SIGTERM or SIGINT.
pub fn run(options: &Options) -> anyhow::Result<()> {
    kernel::check_version()?;
    kernel::check_privileges()?;
    options.pins.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the asynchronous runtime")?;
    runtime.block_on(serve(options))
}

async fn serve(options: &Options) -> anyhow::Result<()> {
    // Subscribed before the first look at the state, so that nothing that changes in between is missed.
    let file = Watch::new(&options.config);
    // Where there is no file, this says so better than the watch.
    let config = options.load()?;
    let mut file = file?;
    let mut monitor = Monitor::open()?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;

    let mut trouble = Trouble::new(Level::Warn);
    let mut bad_file = Trouble::new(Level::Error);
    let mut schedule = Schedule::default();
    let node = config.node.clone();
    let mut reconciler = Reconciler::new(options, config);
    let (_locks, problems) = start(options, &mut reconciler)?;
    info!("node {node} is ready; pins are in {}", options.pins.root().display());
    settle(&mut schedule, &mut trouble, Ok(problems));

    let mut tick = tokio::time::interval_at(Instant::now() + RESYNC, RESYNC);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = file.changed() => {
                changed.context("watch the configuration file")?;
                match options.load() {
                    Ok(config) => {
                        bad_file.over();
                        if reconciler.set_config(config) {
                            schedule.now(Scope::Everything);
                        }
                    }
                    Err(error) => {
                        bad_file.is(format!("{error}; the configuration read before stays in force"));
                    }
                }
            }
            change = monitor.changed() => {
                let change = change.context("watch the network of the node")?;
                if let Some(scope) = reconciler.concerns(&change) {
                    schedule.event(scope);
                }
            }
            () = reconciler.program_log() => {}
            _ = tick.tick() => {
                file.renew();
                schedule.now(Scope::Everything);
            }
            scope = schedule.due() => settle(&mut schedule, &mut trouble, reconciler.run(scope)),
        }
    }
    info!("stopping; pods keep their network");
    Ok(())
}

/// Notes how a pass went.
fn settle(schedule: &mut Schedule, trouble: &mut Trouble, result: anyhow::Result<Vec<anyhow::Error>>) {
    let problems = result.unwrap_or_else(|error| vec![error]);
    if problems.is_empty() {
        schedule.succeeded();
        trouble.over();
    } else {
        schedule.failed();
        trouble.is(problems.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; "));
    }
}

/// Says what is wrong once, however often it is met, and when it is over.
struct Trouble {
    level: Level,
    what: Option<String>,
}

impl Trouble {
    fn new(level: Level) -> Self {
        Self { level, what: None }
    }

    fn is(&mut self, what: String) {
        if self.what.as_ref() != Some(&what) {
            log!(self.level, "{what}");
            self.what = Some(what);
        }
    }

    fn over(&mut self) {
        if let Some(what) = self.what.take() {
            info!("over: {what}");
        }
    }
}

type Locks = [Flock<File>; 2];

/// The first pass. When it fails, what it has made is taken back.
fn start(options: &Options, reconciler: &mut Reconciler) -> anyhow::Result<(Locks, Vec<anyhow::Error>)> {
    let pins = &options.pins;
    let namespace = lock::namespace()?.ok_or_else(|| {
        anyhow!("another overlay agent is running in this network namespace: stop it first")
    })?;
    let before = Before::read(pins)?;
    pins.create()?;
    let Some(root) = lock::pins(pins)? else {
        bail!("another overlay agent is running with the pins in {}: stop it first", pins.root().display());
    };
    match reconciler.run(Scope::Everything) {
        Ok(problems) => Ok(([namespace, root], problems)),
        Err(error) => {
            before.restore(&reconciler.anchor_name());
            reconciler.take_back_filter();
            Err(error)
        }
    }
}

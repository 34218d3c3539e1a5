//! The agent: brings this node into the state that the configuration and the list of nodes describe, and keeps it there.
//!
//! It is not on the path of any packet. Everything it makes stays when it ends, however it ends; a new one finds it,
//! compares and changes only what differs. It reconciles at start, when the file or the nodes change, when the kernel
//! reports a change of links, addresses or routes, and periodically.
//!
//! Start-up is all or nothing: what a failed first start has made is taken back. With the `file` source that is the end of
//! the agent; with `kubernetes` it waits and tries again, because what is missing there comes by itself.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use log::{Level, info, log};
use nix::fcntl::Flock;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior},
};

use crate::{
    cluster::file::Watch,
    config::{Config, Overrides, Settings},
    datapath::{kernel, pins::Pins, settings},
    host::monitor::Monitor,
};

mod anchor;
pub(crate) mod drift;
pub(crate) mod families;
mod filter;
pub(crate) mod flannel;
mod flows;
pub(crate) mod forwarding;
mod health;
mod host_ports;
mod life;
pub(crate) mod local;
pub(crate) mod lock;
mod mesh;
pub(crate) mod migration;
mod names;
mod news;
mod node_routes;
mod nodes;
mod notify;
mod observe;
mod pods;
pub(crate) mod process;
pub(crate) mod recall;
mod reconcile;
mod schedule;
mod undo;
mod wire;
mod xdp;

pub(crate) use anchor::{ipv6_settings, is_anchor};
use life::Life;
use migration::Migration;
use reconcile::{Reconciler, Scope};
use schedule::RESYNC;
use undo::Before;

/// What the command line decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// What it says in place of the file.
    pub overrides: Overrides,
    /// Where to pin.
    pub pins: Pins,
    /// A newer build of this binary, to come back from its schema; the installed CNI plugin where it is not named.
    pub newer_build: Option<PathBuf>,
    /// Level of the programs' own log, 0 (off) to 5 (trace).
    pub program_log: u8,
}

impl Options {
    fn load(&self) -> Result<Settings, crate::config::ConfigError> {
        Settings::load(&self.config, &self.overrides)
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
    let settings = options.load()?;
    let mut file = file?;
    let mut monitor = Monitor::open()?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;

    let mut bad_file = Trouble::new(Level::Error);
    let mut life = Life::begin(options, settings).await?;
    let mut tick = tokio::time::interval_at(Instant::now() + RESYNC, RESYNC);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        life.turn();
        let sign = life.next_sign();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = file.changed() => {
                changed.context("watch the configuration file")?;
                match options.load() {
                    Ok(settings) => {
                        bad_file.over();
                        life.set(settings);
                    }
                    Err(error) => {
                        bad_file.is(format!("{error}; the configuration read before stays in force"));
                    }
                }
            }
            change = monitor.changed() => {
                let change = change.context("watch the network of the node")?;
                if let Some(scope) = life.concerns(&change) {
                    life.schedule.event(scope);
                }
            }
            _ = tick.tick() => {
                file.renew();
                life.schedule.now(Scope::Everything);
            }
            () = life::nodes_changed(&mut life.source) => life.schedule.event(Scope::Everything),
            () = life::sleep_until(life.patience) => life.recall(),
            () = life::sleep_until(sign) => {}
            () = life::program_log(&mut life.running) => {}
            scope = life.schedule.due() => life.pass(scope),
        }
    }
    life.stopping();
    info!("stopping; pods keep their network");
    Ok(())
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

    /// Whether that is news.
    fn is(&mut self, what: String) -> bool {
        let news = self.what.as_ref() != Some(&what);
        if news {
            log!(self.level, "{what}");
            self.what = Some(what);
        }
        news
    }

    fn over(&mut self) {
        if let Some(what) = self.what.take() {
            info!("over: {what}");
        }
    }
}

type Locks = [Flock<File>; 2];

/// One pass by the calling process, for a node on which no agent runs; returns what could not be done.
pub(crate) fn pass(pins: &Pins, config: Config) -> anyhow::Result<Vec<anyhow::Error>> {
    let options = Options {
        config: PathBuf::new(),
        overrides: Overrides::default(),
        pins: pins.clone(),
        newer_build: None,
        program_log: 0,
    };
    let mut reconciler = Reconciler::new(&options, config);
    start(&options, Path::new(""), &mut reconciler).map(|(_, problems)| problems)
}

/// The first pass. When it fails, what it has made is taken back. `newer` is where a newer build may be, for a node that is
/// to come back from its schema.
fn start(
    options: &Options,
    newer: &Path,
    reconciler: &mut Reconciler,
) -> anyhow::Result<(Locks, Vec<anyhow::Error>)> {
    let pins = &options.pins;
    let namespace = lock::namespace()?.ok_or_else(|| {
        anyhow!("another overlay agent is running in this network namespace: stop it first")
    })?;
    let before = Before::read(pins)?;
    let first = !settings::pin(pins).exists();
    let mut attempt = || {
        reconciler.migrate(Migration::begin(pins, newer)?);
        pins.create()?;
        let Some(root) = lock::pins(pins)? else {
            bail!(
                "another overlay agent is running with the pins in {}: stop it first",
                pins.root().display()
            );
        };
        Ok((root, reconciler.run(Scope::Everything)?))
    };
    match attempt() {
        Ok((root, mut problems)) => {
            problems.extend(migration::tidy(pins, newer).err());
            Ok(([namespace, root], problems))
        }
        Err(error) => {
            reconciler.take_back_programs();
            if first {
                forwarding::put_back(settings::remembered(pins).unwrap_or_default());
                // Goes with its directory, where that is new.
                let _ = settings::forget(pins);
            }
            before.restore(&reconciler.anchor_name());
            migration::forget(pins);
            reconciler.take_back_filter();
            Err(error)
        }
    }
}

//! From waiting for nodes to keeping a node: what the agent knows between two turns of its loop.
//!
//! The order of a start: nodes, then maps, programs and `LOCAL` (one pass), then ready, then the CNI configuration, which
//! is what makes a runtime start pods. Nothing of a later step is done before an earlier one has succeeded.

use std::{path::Path, time::Duration};

use log::{Level, info, warn};
use tokio::time::Instant;

use super::{
    Locks, Options, Trouble, flannel,
    health::Health,
    mesh::Mesh,
    notify::Notify,
    observe::Observed,
    recall,
    reconcile::{Reconciler, Scope},
    schedule::Schedule,
    start,
};
use crate::{
    cluster::{
        Snapshot,
        kubernetes::{self, survey::Survey},
    },
    cni::install::{self, Install},
    config::{Config, Settings, Source},
    datapath::{kernel, schema},
    host::monitor::Change,
};

/// A restarted agent waits this long for the API server before it goes by what is pinned. Packets wait for nothing.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the agent knows.
pub(super) struct Life<'a> {
    options: &'a Options,
    settings: Settings,
    health: Health,
    notify: Notify,
    pub(super) schedule: Schedule,
    /// The API; `None` where the file lists the nodes.
    pub(super) source: Option<kubernetes::Source>,
    /// When to stop waiting for it.
    pub(super) patience: Option<Instant>,
    /// What to start with, once it is known.
    wanted: Option<Config>,
    pub(super) running: Option<Running>,
    trouble: Trouble,
    waiting: Trouble,
    uninstalled: Trouble,
    /// What the last installation has warned of.
    earlier: Vec<std::path::PathBuf>,
    installed: bool,
}

/// A node that is set up.
pub(super) struct Running {
    reconciler: Reconciler,
    _locks: Locks,
    /// The nodes are those that were pinned: the API server has not been heard yet.
    recalled: bool,
}

impl<'a> Life<'a> {
    /// With the `file` source, the whole start.
    pub(super) async fn begin(options: &'a Options, settings: Settings) -> anyhow::Result<Self> {
        let mesh = settings.mesh.enabled.then(|| Mesh::spawn(settings.mesh.clone()));
        let health = Health::new(Observed::new(options.pins.clone(), mesh));
        if let Some(address) = settings.health {
            health.serve(address)?;
        }
        let mut life = Self {
            options,
            health,
            notify: Notify::from_environment(),
            schedule: Schedule::default(),
            source: None,
            patience: None,
            wanted: None,
            running: None,
            trouble: Trouble::new(Level::Warn),
            waiting: Trouble::new(Level::Info),
            uninstalled: Trouble::new(Level::Error),
            earlier: Vec::new(),
            installed: false,
            settings,
        };
        match &life.settings.source {
            Source::File(nodes) => {
                let config = life.settings.with(nodes.clone());
                life.start(config, false)?;
            }
            Source::Kubernetes(kubernetes) => {
                life.source = Some(kubernetes::Source::open(kubernetes, &life.settings.node).await?);
                life.patience = Some(Instant::now() + PATIENCE);
                life.waits_for("waiting for the nodes from the API server");
            }
        }
        Ok(life)
    }

    /// The run loop turns.
    pub(super) fn turn(&mut self) {
        self.health.turn();
        if let Some(source) = &self.source {
            self.health.observed().activity().source(source.outage().map_or(Ok(()), Err), source.heard());
        }
        self.notify.turn(Instant::now().into_std());
    }

    /// When it has to turn again at the latest; `None` where no service manager waits for that.
    pub(super) fn next_sign(&self) -> Option<Instant> {
        self.notify.rest().map(|rest| Instant::now() + rest)
    }

    /// It ends by itself.
    pub(super) fn stopping(&mut self) {
        self.notify.stopping();
    }

    /// Not ready yet, and why.
    fn waits_for(&mut self, what: &str) {
        self.health.waits_for(what);
        if self.running.is_none() {
            self.notify.status(what);
        }
    }

    /// What has to be looked at because of a change in the kernel.
    pub(super) fn concerns(&self, change: &Change) -> Option<Scope> {
        self.running.as_ref()?.reconciler.concerns(change)
    }

    /// Takes over a file that was read again.
    pub(super) fn set(&mut self, settings: Settings) {
        let same_source = match (&settings.source, &self.settings.source) {
            (Source::File(_), Source::File(_)) => true,
            (one, other) => one == other,
        };
        if !same_source
            || settings.health != self.settings.health
            || settings.mesh != self.settings.mesh
            || settings.cni != self.settings.cni
        {
            warn!("source, [kubernetes], [agent] and [cni] are read at the start only: restart the agent");
        }
        if same_source && let Source::File(nodes) = &settings.source {
            let config = settings.with(nodes.clone());
            if self.running.as_mut().is_some_and(|running| running.reconciler.set_config(config)) {
                self.schedule.now(Scope::Everything);
            }
        }
        let Settings { node, network, .. } = settings;
        match self.source {
            // Events and the list that was recalled are this node's.
            Some(_) if node != self.settings.node => {
                warn!("this node is {} until the agent is restarted, not {node}", self.settings.node);
            }
            _ => self.settings.node = node,
        }
        self.settings.network = network;
        if self.source.is_some() {
            self.schedule.now(Scope::Everything);
        }
    }

    /// A pass, or another attempt to start.
    pub(super) fn pass(&mut self, scope: Scope) {
        // Pods and devices do not change which nodes there are.
        if scope == Scope::Everything || self.running.is_none() {
            self.survey();
        }
        if let Some(running) = &mut self.running {
            let began = Instant::now();
            let result = running.reconciler.run(scope);
            self.health.observed().activity().pass(scope, began.elapsed());
            self.settle(result);
            if scope == Scope::Everything {
                self.install();
            }
        } else if let Some(config) = self.wanted.clone() {
            let recalled = self.source.as_ref().is_some_and(|source| source.with_nodes(|_| ()).is_none());
            if let Err(error) = self.start(config, recalled) {
                let text = format!("cannot start yet: {error:#}");
                if self.trouble.is(text.clone())
                    && let Some(source) = &self.source
                {
                    source.event(true, "OverlayStartFailed", "Starting", text.clone());
                }
                self.waits_for(&text);
                self.schedule.failed();
            }
        }
    }

    /// Looks at the newest list of the API, if there is one.
    fn survey(&mut self) {
        let Some(source) = &mut self.source else { return };
        let Settings { node, network, .. } = &self.settings;
        let last = match &self.running {
            Some(running) => Some(running.reconciler.nodes().own().clone()),
            None => recall::own(&self.options.pins, node),
        };
        let Some(survey) = source.with_nodes(|nodes| Survey::new(nodes, node, last.as_ref(), &network.cidrs))
        else {
            if self.running.is_none()
                && self.wanted.is_none()
                && let Some(outage) = source.outage()
            {
                self.waits_for(&format!("waiting for the nodes from the API server: {outage}"));
            }
            return;
        };
        source.note(survey.findings);
        self.patience = None;
        match survey.nodes {
            Ok(nodes) => {
                self.waiting.over();
                self.take_over(nodes);
            }
            Err(why) => {
                self.waiting.is(why.clone());
                self.waits_for(&why);
            }
        }
    }

    fn take_over(&mut self, nodes: Snapshot) {
        let Some(running) = &mut self.running else {
            self.wanted = Some(self.settings.with(nodes));
            return;
        };
        if running.recalled {
            info!("the API server answers: {} nodes", nodes.nodes().len());
            running.reconciler.name_nodes(&nodes);
            running.recalled = false;
        }
        let (before, now) = (running.reconciler.nodes().own().clone(), nodes.own().clone());
        running.reconciler.set_config(self.settings.with(nodes));
        // Another tunnel address that leaves the gateway's MAC as it was is nothing to pods.
        if (before.subnets != now.subnets || before.mac() != now.mac())
            && let Some(source) = &self.source
        {
            let note = format!(
                "this node is {} at {} now, was {} at {}: pods that run have to be made anew",
                now.subnets, now.addresses, before.subnets, before.addresses
            );
            source.event(true, "OverlayNodeChanged", "Reconciling", note);
        }
    }

    /// The API server has not answered for long enough: goes by what is pinned, if anything is.
    pub(super) fn recall(&mut self) {
        self.patience = None;
        let Settings { node, network, .. } = &self.settings;
        if self.running.is_some() || self.wanted.is_some() {
            return;
        }
        match recall::nodes(&self.options.pins, node, network) {
            Some(nodes) => {
                info!(
                    "the API server has not answered yet: carrying on with the {} nodes that are pinned",
                    nodes.nodes().len()
                );
                self.wanted = Some(self.settings.with(nodes));
                self.schedule.now(Scope::Everything);
            }
            None => {
                self.waiting
                    .is("waiting for the API server: nothing is pinned on this node that could do without"
                        .into());
            }
        }
    }

    fn start(&mut self, config: Config, recalled: bool) -> anyhow::Result<()> {
        flannel::check(&self.settings)?;
        self.install_ahead()?;
        let newer = self.options.newer_build.clone();
        let newer = newer.unwrap_or_else(|| install::binary_in(&self.settings.cni.bin));
        let mut reconciler = Reconciler::new(self.options, config);
        let began = Instant::now();
        let (locks, problems) = start(self.options, &newer, &mut reconciler)?;
        self.health.observed().activity().pass(Scope::Everything, began.elapsed());
        // Of no interest on a node that is refused for another reason.
        for lacking in kernel::features().iter().filter(|feature| !feature.present) {
            info!("Linux {} has no {}: {}", kernel::release(), lacking.name, lacking.without);
        }
        let Settings { node, .. } = &self.settings;
        info!("node {node} is ready; pins are in {}", self.options.pins.root().display());
        self.running = Some(Running { reconciler, _locks: locks, recalled });
        self.wanted = None;
        self.health.ready();
        self.notify.ready();
        self.settle(Ok(problems));
        self.install();
        Ok(())
    }

    /// Before an older schema gives way to this build's: the plugin of this build, which knows both, in place of the older
    /// one, which would have to refuse.
    fn install_ahead(&self) -> anyhow::Result<()> {
        let Options { pins, .. } = self.options;
        let older = schema::in_force(pins)?.is_some_and(|found| found.schema() < pins.schema());
        if older && self.settings.cni.install && install::replace_binary(&self.settings.cni.bin)? {
            info!("installed the CNI plugin of this build in {}", self.settings.cni.bin.display());
        }
        Ok(())
    }

    /// Notes how a pass went.
    fn settle(&mut self, result: anyhow::Result<Vec<anyhow::Error>>) {
        let observed = self.health.observed();
        if let (Some(mesh), Some(running)) = (&observed.mesh, &self.running) {
            mesh.set(running.reconciler.nodes(), &self.settings.network);
        }
        let problems = result.unwrap_or_else(|error| vec![error]);
        let problems: Vec<_> = problems.iter().map(|error| format!("{error:#}")).collect();
        let mut status = match &self.running {
            Some(running) => {
                let nodes = running.reconciler.nodes();
                format!("node {} is ready, {} nodes are known", self.settings.node, nodes.nodes().len())
            }
            None => "starting".to_owned(),
        };
        if problems.is_empty() {
            self.schedule.succeeded();
            self.trouble.over();
        } else {
            self.schedule.failed();
            let trouble = problems.join("; ");
            status = format!("{status}, but: {trouble}");
            self.trouble.is(trouble);
        }
        self.notify.status(&status);
        observed.activity().settled(problems, Instant::now().into_std());
        observed.sample();
    }

    /// What comes after the network is there: the plugin and its configuration, and the condition of the Node.
    fn install(&mut self) {
        if let (Some(source), Source::Kubernetes(kubernetes)) = (&mut self.source, &self.settings.source)
            && kubernetes.network_available
        {
            source.network_is_available();
        }
        let cni = &self.settings.cni;
        if !cni.install {
            return;
        }
        let install = Install::new(&cni.bin, &cni.conf, &cni.name, cni.version.as_deref(), &cni.chain);
        if self.installed && install.is_there() {
            return;
        }
        match install.apply(&self.options.pins) {
            Ok(done) => {
                self.uninstalled.over();
                self.installed = true;
                for path in done.written() {
                    info!("installed {}", path.display());
                }
                if self.earlier != done.earlier {
                    for path in &done.earlier {
                        warn!(
                            "{} comes before {}, so that the runtime takes that one: remove it, or choose an earlier \
                             cni.name",
                            path.display(),
                            Path::new(&cni.name).display()
                        );
                    }
                    self.earlier = done.earlier;
                }
            }
            Err(error) => {
                self.uninstalled.is(format!("install the CNI plugin: {error:#}"));
            }
        }
    }
}

/// Waits until the API has something new; for ever where the nodes are in the file. Cancel-safe.
pub(super) async fn nodes_changed(source: &mut Option<kubernetes::Source>) {
    match source {
        Some(source) => source.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits until then, or for ever.
pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Hands on what the programs have logged, once there are programs.
pub(super) async fn program_log(running: &mut Option<Running>) {
    match running {
        Some(running) => running.reconciler.program_log().await,
        None => std::future::pending().await,
    }
}

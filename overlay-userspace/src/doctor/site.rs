//! What all checks rest on, found out once: the configuration, the list of nodes, and whether overlay is here at all.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;
use overlay_common::maps::Local;

use crate::{
    agent::{families::Families, local, lock, recall},
    cluster::{
        Snapshot,
        kubernetes::{self, survey::Survey},
    },
    config::{Config, ConfigError, Overrides, Settings, Source},
    datapath::pins::Pins,
    family::ByFamily,
    host::nft::foreign::Carried,
};

/// How long the API server may take; people wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node.
pub(crate) struct Site {
    /// Where the pins are.
    pub(crate) pins: Pins,
    /// The configuration file.
    pub(super) file: PathBuf,
    /// What it says.
    pub(super) settings: Result<Settings, ConfigError>,
    /// The list of nodes.
    pub(super) listed: Listed,
    /// What the agent has published, if one has ever been ready.
    pub(super) local: Option<Local>,
    /// The process of the agent that runs, if one does.
    pub(super) agent: Option<u32>,
}

/// Where the list of nodes is from, or why there is none.
pub(super) enum Listed {
    /// The configuration file has it.
    File(Snapshot),
    /// The API server, with what it has that does not fit: each with its node.
    Api { nodes: Result<Snapshot, String>, findings: Vec<(String, String)> },
    /// The API server does not answer, for this reason; these nodes are pinned.
    Pinned { nodes: Option<Snapshot>, outage: String },
    /// There is no configuration that could say.
    Unknown,
}

impl Site {
    /// Looks.
    pub(crate) fn read(pins: Pins, file: PathBuf, overrides: &Overrides) -> anyhow::Result<Self> {
        let settings = Settings::load(&file, overrides);
        let listed = match &settings {
            Ok(settings) => listed(&pins, settings)?,
            Err(_) => Listed::Unknown,
        };
        let local = local::published(&pins);
        Ok(Self { file, settings, listed, local, agent: lock::holder()?, pins })
    }

    /// Looks again, after something was done.
    pub(crate) fn again(self, overrides: &Overrides) -> anyhow::Result<Self> {
        Self::read(self.pins, self.file, overrides)
    }

    /// What the node is to be like, where all of that is known.
    pub(super) fn config(&self) -> Option<Config> {
        let settings = self.settings.as_ref().ok()?;
        let nodes = match &self.listed {
            Listed::File(nodes) | Listed::Api { nodes: Ok(nodes), .. } => Some(nodes),
            Listed::Pinned { nodes, .. } => nodes.as_ref(),
            Listed::Api { nodes: Err(_), .. } | Listed::Unknown => None,
        };
        Some(settings.with(nodes?.clone()))
    }

    /// Overlay has been set up here once, and not been taken away since.
    pub(super) fn is_installed(&self) -> bool {
        self.local.is_some() || self.agent.is_some()
    }

    /// What has to pass the node's packet filter, from wherever it is known.
    pub(super) fn carried(&self) -> Option<Carried> {
        if let Some(config) = self.config() {
            return Some(Families::of(&config).carried(config.network.port));
        }
        match (&self.settings, &self.local) {
            (_, Some(local)) => {
                let nets = local.cluster.iter().filter_map(|net| {
                    let prefix = u8::try_from(net.prefix_len).ok().filter(|prefix| *prefix != 0)?;
                    IpNet::new(net.addr.to_ip(), prefix).ok()
                });
                Some(Carried {
                    clusters: ByFamily::from_values(nets).unwrap_or_default(),
                    vteps: ByFamily::from_values([local.vtep.to_ip()]).unwrap_or_default(),
                    port: u16::try_from(local.port).ok()?,
                })
            }
            // Which way the tunnel will go, the list of nodes would say.
            (Ok(settings), None) => Some(Carried {
                clusters: settings.network.cidrs.by_family(),
                vteps: settings.network.cidrs.by_family().map(|_, net| net.addr()),
                port: settings.network.port,
            }),
            (Err(_), None) => None,
        }
    }
}

fn listed(pins: &Pins, settings: &Settings) -> anyhow::Result<Listed> {
    let kubernetes = match &settings.source {
        Source::File(nodes) => return Ok(Listed::File(nodes.clone())),
        Source::Kubernetes(kubernetes) => kubernetes,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let pinned =
            |outage| Listed::Pinned { nodes: recall::nodes(pins, &settings.node, &settings.network), outage };
        let mut source = match kubernetes::Source::open(kubernetes, &settings.node).await {
            Ok(source) => source,
            Err(error) => return Ok(pinned(format!("{error:#}"))),
        };
        let heard = async {
            loop {
                source.changed().await;
                let last = recall::own(pins, &settings.node);
                let survey = source.with_nodes(|nodes| {
                    Survey::new(nodes, &settings.node, last.as_ref(), &settings.network.cidrs)
                });
                match (survey, source.outage()) {
                    (Some(survey), _) => return Ok(survey),
                    (None, Some(outage)) => return Err(outage),
                    (None, None) => {}
                }
            }
        };
        Ok(match tokio::time::timeout(PATIENCE, heard).await {
            Ok(Ok(Survey { nodes, findings })) => {
                let findings = findings.into_iter().map(|finding| (finding.node, finding.text)).collect();
                Listed::Api { nodes, findings }
            }
            Ok(Err(outage)) => pinned(outage),
            Err(_) => pinned(format!("no answer within {} s", PATIENCE.as_secs())),
        })
    })
}

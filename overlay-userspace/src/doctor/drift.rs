//! Drift: what is not as the configuration and the list of nodes want it, by the comparisons of the agent's own pass.

use std::{thread, time::Duration};

use super::{Check, Fix, Report, Site};
use crate::agent::drift;

pub(super) struct DriftCheck;

/// The agent, or a call of the CNI plugin, may be at work: what differs has to differ for so long.
const SETTLED: Duration = Duration::from_millis(700);

impl Check for DriftCheck {
    fn name(&self) -> &'static str {
        "drift"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        if !site.is_installed() && !site.pins.root().exists() {
            report.skip("overlay is not installed on this node");
            return Ok(());
        }
        let Some(config) = site.config() else {
            report.skip("the desired state is not known: see the check nodes");
            return Ok(());
        };
        let mut found = drift::look(&site.pins, &config)?;
        if !found.is_empty() {
            thread::sleep(SETTLED);
            let still = drift::look(&site.pins, &config)?;
            found.retain(|drift| still.contains(drift));
        }
        let evidence = match site.agent {
            Some(pid) => format!("seen twice; the agent (process {pid}) has not put it right yet"),
            None => "seen twice; no agent runs that would put it right".to_owned(),
        };
        for drift in found {
            report
                .error(drift.object, drift.what)
                .evidence(evidence.clone())
                .remedy("overlay doctor --only drift --fix")
                .fix(Fix::Pass);
        }
        report.saw(format!(
            "maps, programs, routes, rules and filters are those of {} nodes",
            config.nodes.nodes().len()
        ));
        Ok(())
    }
}

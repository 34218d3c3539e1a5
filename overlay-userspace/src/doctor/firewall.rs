//! Foreign chains that drop what the stack carries for pods.

use super::{Check, Fix, Report, Site};
use crate::host::nft::foreign::{self, Obstacle};

pub(super) struct Firewall;

impl Check for Firewall {
    fn name(&self) -> &'static str {
        "firewall"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let Some(carried) = site.carried() else {
            report.skip("the cluster's range is not known without a configuration");
            return Ok(());
        };
        let found = foreign::look(&carried)?;
        for chain in &found.chains {
            let nets: Vec<_> = chain.of(&carried.clusters).map(|net| net.to_string()).collect();
            let cluster = nets.join(" and ");
            if !chain.changed {
                report
                    .saw(format!("chain {chain} drops by default, and accepts what is from or to {cluster}"));
            } else if site.is_installed() {
                report
                    .error(
                        format!("chain {chain}"),
                        "drops what the stack forwards for pods: Services, host ports, the world",
                    )
                    .evidence(format!("it drops by default, and does not begin with accepts for {cluster}"))
                    .remedy(chain.commands(&carried.clusters).join(" && "))
                    .fix(Fix::Pass);
            } else {
                report.saw(format!(
                    "chain {chain} drops by default; the agent will insert accepts for {cluster}"
                ));
            }
        }
        for Obstacle { chain, what, remedy } in found.warnings {
            report
                .warning(format!("chain {chain}"), "drops by default, and is not overlay's to change")
                .evidence(what)
                .remedy(remedy.strip_prefix("run: ").unwrap_or(&remedy));
        }
        report.saw("no chain drops what is the pods'");
        Ok(())
    }
}

//! Where the list of nodes comes from: the configuration, the API server, and what they have that does not fit.

use super::{Check, Report, Site, site::Listed};

pub(super) struct Nodes;

impl Check for Nodes {
    fn name(&self) -> &'static str {
        "nodes"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let file = site.file.display();
        match &site.settings {
            Ok(_) => {}
            Err(error) if !site.is_installed() && !site.file.exists() => {
                report.skip(format!("there is no configuration yet: {error}"));
                return Ok(());
            }
            Err(error) => {
                report
                    .error(file.to_string(), "is not valid: an agent that runs goes by what it has read before, one that starts does not")
                    .evidence(error.to_string())
                    .remedy("correct the file");
                return Ok(());
            }
        }
        for peer in site.config().iter().flat_map(|config| config.nodes.unreachable()) {
            report
                .warning(
                    format!("node {}", peer.name),
                    "has no tunnel address of a family that this node has: their pods do not reach each other",
                )
                .evidence(format!("its addresses: {}", peer.addresses))
                .remedy("give one of the two an address of the other's family, in the list of nodes and on a device");
        }
        match &site.listed {
            Listed::File(nodes) => report.saw(format!("{file} lists {} nodes", nodes.nodes().len())),
            Listed::Pinned { outage, nodes } => {
                let pinned = nodes.as_ref().map_or_else(
                    || "nothing is pinned, so that no agent can start".to_owned(),
                    |nodes| format!("the {} nodes that are pinned stay in force", nodes.nodes().len()),
                );
                report
                    .error("API server", format!("does not answer: nodes that come, go or move are not taken over; {pinned}"))
                    .evidence(outage.clone())
                    .remedy("see whether the API server runs and is reached from this node (`kubernetes.api_server`), and that its certificate and the token are valid");
            }
            Listed::Api { nodes, findings } => {
                for (node, text) in findings {
                    report
                        .warning(format!("Node {node}"), text.clone())
                        .evidence("the API server's list of Nodes")
                        .remedy(format!("kubectl describe node {node}"));
                }
                match nodes {
                    Ok(nodes) => report.saw(format!("the API server lists {} nodes", nodes.nodes().len())),
                    Err(why) => {
                        report
                            .error("this node", "is no part of the network")
                            .evidence(why.clone())
                            .remedy("put right what the evidence says of this Node");
                    }
                }
            }
            Listed::Unknown => {}
        }
        Ok(())
    }
}

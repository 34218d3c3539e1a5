//! From the Nodes of an API to one consistent list: pure functions, no API here.
//!
//! A Node that does not fit never stops the others. One that is not complete yet is waited for, one that contradicts an
//! older one is left out, and each is a [`Finding`]. All agents come to the same result from the same Nodes, but for one
//! thing: a node keeps what its pods have their addresses from (`last`) when its own Node is gone, incomplete or in
//! conflict.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;

use super::node::{KubeNode, Unfit};
use crate::cluster::{NodeSpec, Snapshot, SnapshotError, check};

/// The Nodes by name.
pub(crate) type Nodes = BTreeMap<String, KubeNode>;

/// What kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Not complete yet: normal for a node that is new.
    Waiting,
    /// Cannot be used as it is.
    Invalid,
    /// Has what an older node has.
    Conflict,
}

impl Kind {
    /// The reason of an Event.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Waiting => "OverlayNodeWaiting",
            Self::Invalid => "OverlayNodeInvalid",
            Self::Conflict => "OverlayNodeConflict",
        }
    }
}

/// Something about a Node that an operator wants to know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    /// The Node that is left out.
    pub(crate) node: String,
    /// The Node that it is in conflict with.
    pub(crate) other: Option<String>,
    /// What is wrong, and what to do.
    pub(crate) text: String,
}

impl Finding {
    /// Whether it is this node's to report.
    pub(crate) fn concerns(&self, name: &str) -> bool {
        self.node == name || self.other.as_deref() == Some(name)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the Nodes say.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The nodes that are part of the network; or why there is no list, which is because of this node.
    pub(crate) nodes: Result<Snapshot, String>,
    /// What is left out, and why.
    pub(crate) findings: Vec<Finding>,
}

impl Survey {
    /// Looks at the Nodes from the node `own`, which was `last` when its pods got their addresses.
    pub(crate) fn new(nodes: &Nodes, own: &str, last: Option<&NodeSpec>, cidr: IpNet) -> Self {
        let (candidates, mut findings) = candidates(nodes, cidr);
        let mut accepted = Accepted::default();
        accepted.add_all(&candidates, &mut findings);
        if !accepted.has(own)
            && let Some(last) = last
            && check(last, cidr).is_ok()
        {
            // The pods that are here have their addresses, whatever became of the Node.
            let mut again = Vec::new();
            accepted = Accepted::default();
            accepted.add(last, &mut again);
            accepted.add_all(candidates.iter().filter(|spec| spec.name != own), &mut again);
            for finding in again {
                if !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
        }
        findings.sort();
        let nodes = if accepted.has(own) {
            Snapshot::new(accepted.nodes, own, cidr).map_err(|e| e.to_string())
        } else {
            Err(match findings.iter().find(|finding| finding.node == own) {
                Some(finding) => finding.text.clone(),
                None => format!(
                    "there is no Node {own}: waiting until the kubelet registers it; if it has another name, give it by \
                     NODE_NAME"
                ),
            })
        };
        Self { nodes, findings }
    }
}

/// The nodes that could be a part, the oldest first.
fn candidates(nodes: &Nodes, cidr: IpNet) -> (Vec<NodeSpec>, Vec<Finding>) {
    let (mut candidates, mut findings) = (Vec::new(), Vec::new());
    for (name, node) in nodes {
        let (kind, text) = match node.spec(name).map(|spec| check(&spec, cidr).map(|()| spec)) {
            Ok(Ok(spec)) => {
                candidates.push(spec);
                continue;
            }
            Err(Unfit::NoSubnet) => (Kind::Waiting, format!("node {name} has no IPv4 podCIDR yet")),
            Err(Unfit::NoAddress) => (Kind::Waiting, format!("node {name} has no IPv4 InternalIP yet")),
            Err(Unfit::Invalid(text)) => (Kind::Invalid, text),
            Ok(Err(error)) => (Kind::Invalid, in_terms_of_kubernetes(&error)),
        };
        findings.push(Finding { kind, node: name.clone(), other: None, text });
    }
    let age = |spec: &NodeSpec| nodes.get(&spec.name).map_or(i64::MAX, |node| node.created);
    candidates.sort_by(|a, b| (age(a), &a.name).cmp(&(age(b), &b.name)));
    (candidates, findings)
}

fn in_terms_of_kubernetes(error: &SnapshotError) -> String {
    match error {
        SnapshotError::OutsideNetwork(name, subnet, cidr) => format!(
            "node {name}: podCIDR {subnet} is not inside network.cidr {cidr}: set it to the controller manager's \
             --cluster-cidr"
        ),
        other => other.to_string(),
    }
}

/// A list that is consistent at any time.
#[derive(Default)]
struct Accepted {
    nodes: Vec<NodeSpec>,
    by_address: HashMap<IpAddr, usize>,
    /// Disjoint subnets by their first address.
    by_subnet: BTreeMap<IpAddr, usize>,
}

impl Accepted {
    fn has(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| node.name == name)
    }

    fn add_all<'a>(&mut self, nodes: impl IntoIterator<Item = &'a NodeSpec>, findings: &mut Vec<Finding>) {
        for node in nodes {
            self.add(node, findings);
        }
    }

    fn add(&mut self, node: &NodeSpec, findings: &mut Vec<Finding>) {
        let name = &node.name;
        let mut conflict = |other: &NodeSpec, text| {
            let other = Some(other.name.clone());
            findings.push(Finding { kind: Kind::Conflict, node: name.clone(), other, text });
        };
        if let Some(other) = self.overlapping(node.subnet) {
            let (subnet, whose, theirs) = (node.subnet, &other.name, other.subnet);
            return conflict(
                other,
                format!(
                    "node {name}: podCIDR {subnet} overlaps {theirs} of {whose}, which is older: {name} is left out until \
                     it has another one"
                ),
            );
        }
        match self.by_address.entry(node.address) {
            Entry::Occupied(entry) => {
                let Some(other) = self.nodes.get(*entry.get()) else { return };
                let (address, whose) = (node.address, &other.name);
                conflict(
                    other,
                    format!(
                        "node {name}: address {address} is that of {whose}, which is older: {name} is left out until one \
                         of them has another one"
                    ),
                );
            }
            Entry::Vacant(entry) => {
                entry.insert(self.nodes.len());
                self.by_subnet.insert(node.subnet.network(), self.nodes.len());
                self.nodes.push(node.clone());
            }
        }
    }

    /// The node whose subnet has addresses of this one.
    fn overlapping(&self, subnet: IpNet) -> Option<&NodeSpec> {
        // Disjoint, so that only the last one that begins within or before it can reach into it.
        let (_, index) = self.by_subnet.range(..=subnet.broadcast()).next_back()?;
        let node = self.nodes.get(*index)?;
        (node.subnet.broadcast() >= subnet.network()).then_some(node)
    }
}

#[cfg(test)]
mod tests;

//! From the Nodes of an API to one consistent list: pure functions, no API here.
//!
//! A Node that does not fit never stops the others. One that is not complete yet is waited for, one that contradicts an
//! older one is left out, and each is a [`Finding`]. All agents come to the same result from the same Nodes, but for one
//! thing: a node keeps what its pods have their addresses from (`last`) when its own Node is gone, incomplete or in
//! conflict.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;

use super::node::KubeNode;
use crate::{
    cluster::{Cidrs, NodeSpec, Snapshot, SnapshotError, check_address, check_subnet},
    family::ByFamily,
};

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
    pub(crate) fn new(nodes: &Nodes, own: &str, last: Option<&NodeSpec>, cidrs: &Cidrs) -> Self {
        let (candidates, mut findings) = candidates(nodes, cidrs);
        let mut accepted = Accepted::default();
        accepted.add_all(&candidates, &mut findings);
        if let Some(last) = last
            && let Some(kept) = kept(nodes.get(own), accepted.get(own), last, cidrs)
        {
            // The pods that are here have their addresses, whatever became of the Node.
            let mut again = Vec::new();
            accepted = Accepted::default();
            accepted.add(&kept, &mut again);
            accepted.add_all(candidates.iter().filter(|spec| spec.name != own), &mut again);
            for finding in again {
                if !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
        }
        findings.sort();
        let nodes = if accepted.get(own).is_some() {
            Snapshot::new(accepted.nodes, own, cidrs).map_err(|e| e.to_string())
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

/// The own node as it has to stay for its pods, where its Node does not say so (any more): `None` where nothing of `last`
/// is needed. A family that its Node has been given no podCIDR of, while it has one of the other, is not kept.
fn kept(node: Option<&KubeNode>, now: Option<&NodeSpec>, last: &NodeSpec, cidrs: &Cidrs) -> Option<NodeSpec> {
    let usable = |subnet: &IpNet| check_subnet(&last.name, *subnet, cidrs).is_ok();
    let dropped =
        |family| node.is_some_and(|node| !node.subnets.is_empty() && node.subnets.get(family).is_none());
    let lacks = |family| now.is_none_or(|now| now.subnets.get(family).is_none());
    let mut kept = now.unwrap_or(last).clone();
    let mut needed = false;
    for (family, subnet) in last.subnets.iter() {
        if !lacks(family) {
            continue;
        }
        if usable(subnet) && !dropped(family) {
            kept.subnets.set(family, *subnet);
            needed = true;
        } else {
            kept.subnets.take(family);
        }
    }
    if now.is_none() {
        for (family, address) in last.addresses.iter() {
            if check_address(&last.name, *address, cidrs).is_err() {
                kept.addresses.take(family);
            }
        }
    }
    (needed && !kept.addresses.is_empty()).then_some(kept)
}

/// The nodes that could be a part, the oldest first.
fn candidates(nodes: &Nodes, cidrs: &Cidrs) -> (Vec<NodeSpec>, Vec<Finding>) {
    let (mut candidates, mut findings) = (Vec::new(), Vec::new());
    for (name, node) in nodes {
        candidates.extend(candidate(name, node, cidrs, &mut findings));
    }
    let age = |spec: &NodeSpec| nodes.get(&spec.name).map_or(i64::MAX, |node| node.created);
    candidates.sort_by(|a, b| (age(a), &a.name).cmp(&(age(b), &b.name)));
    (candidates, findings)
}

/// What of a Node could be a part: a family that cannot be used leaves the other alone. Subnets matter only of the families
/// that the pod network has; the tunnel may be of any.
fn candidate(name: &str, node: &KubeNode, cidrs: &Cidrs, findings: &mut Vec<Finding>) -> Option<NodeSpec> {
    let mut find = |kind, text| findings.push(Finding { kind, node: name.to_owned(), other: None, text });
    let vtep_macs = match &node.vtep_macs {
        Ok(macs) => *macs,
        Err(nonsense) => {
            find(Kind::Invalid, format!("node {name}: {nonsense}"));
            return None;
        }
    };
    let (mut subnets, mut addresses) = (ByFamily::default(), ByFamily::default());
    let mut absent = Vec::new();
    for family in cidrs.by_family().iter().map(|(family, _)| family) {
        match node.subnets.get(family) {
            None => absent.push(family),
            Some(Err(nonsense)) => find(Kind::Invalid, format!("node {name}: {nonsense}")),
            Some(Ok(subnet)) => match check_subnet(name, *subnet, cidrs) {
                Ok(()) => drop(subnets.set(family, *subnet)),
                Err(error) => find(Kind::Invalid, in_terms_of_kubernetes(&error)),
            },
        }
    }
    for (family, address) in node.addresses.iter() {
        match address {
            Err(nonsense) => find(Kind::Invalid, format!("node {name}: {nonsense}")),
            Ok(address) => match check_address(name, *address, cidrs) {
                Ok(()) => drop(addresses.set(family, *address)),
                Err(error) => find(Kind::Invalid, in_terms_of_kubernetes(&error)),
            },
        }
    }
    // What is there and is wrong has been found already.
    if subnets.is_empty() && absent.len() == cidrs.iter().count() {
        let families = absent.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        find(Kind::Waiting, format!("node {name} has no {families} podCIDR yet"));
    } else if node.addresses.is_empty() {
        find(Kind::Waiting, format!("node {name} has no InternalIP yet"));
    }
    let vtep_macs = ByFamily {
        v4: vtep_macs.v4.filter(|_| addresses.v4.is_some()),
        v6: vtep_macs.v6.filter(|_| addresses.v6.is_some()),
    };
    let spec = NodeSpec { name: name.to_owned(), addresses, subnets, vtep_macs };
    (!subnets.is_empty() && !addresses.is_empty()).then_some(spec)
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
    /// Disjoint subnets by their first address; those of IPv4 come before those of IPv6.
    by_subnet: BTreeMap<IpAddr, (IpNet, usize)>,
}

impl Accepted {
    fn get(&self, name: &str) -> Option<&NodeSpec> {
        self.nodes.iter().find(|node| node.name == name)
    }

    fn add_all<'a>(&mut self, nodes: impl IntoIterator<Item = &'a NodeSpec>, findings: &mut Vec<Finding>) {
        for node in nodes {
            self.add(node, findings);
        }
    }

    /// Takes what of a node contradicts nothing.
    fn add(&mut self, node: &NodeSpec, findings: &mut Vec<Finding>) {
        let (mut left, mut conflicts) = (node.clone(), Vec::new());
        for (family, subnet) in node.subnets.iter() {
            if let Some((theirs, other)) = self.overlapping(*subnet) {
                left.subnets.take(family);
                conflicts.push((family, other, format!("podCIDR {subnet} overlaps {theirs} of {other}")));
            }
        }
        for (family, address) in node.addresses.iter() {
            if let Some(other) = self.by_address.get(address).and_then(|index| self.nodes.get(*index)) {
                left.addresses.take(family);
                left.vtep_macs.take(family);
                let other = other.name.as_str();
                conflicts.push((family, other, format!("address {address} is that of {other}")));
            }
        }
        let whole = left.subnets.is_empty() || left.addresses.is_empty();
        let name = &node.name;
        for (family, other, what) in conflicts {
            let out = if whole { name.clone() } else { format!("the {family} of {name}") };
            let other = Some(other.to_owned());
            let text = format!(
                "node {name}: {what}, which is older: {out} is left out until one of them has another one"
            );
            findings.push(Finding { kind: Kind::Conflict, node: name.clone(), other, text });
        }
        if whole {
            return;
        }
        let index = self.nodes.len();
        self.by_address.extend(left.addresses.values().map(|address| (*address, index)));
        self.by_subnet.extend(left.subnets.values().map(|subnet| (subnet.network(), (*subnet, index))));
        self.nodes.push(left);
    }

    /// The subnet that has addresses of this one, and the node whose it is.
    fn overlapping(&self, subnet: IpNet) -> Option<(IpNet, &str)> {
        // Disjoint, so that only the last one that begins within or before it can reach into it.
        let (_, (theirs, index)) = self.by_subnet.range(..=subnet.broadcast()).next_back()?;
        let node = self.nodes.get(*index)?;
        (theirs.broadcast() >= subnet.network()).then_some((*theirs, node.name.as_str()))
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

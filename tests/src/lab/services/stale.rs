//! Conntrack entries that kube-proxy deletes after a change: those of UDP flows that would go on to a backend that is gone,
//! or past one that has come.

use std::net::Ipv4Addr;

use super::{Protocol, ProxyNode, Service};
use crate::lab::exec;

/// Deletes on `node` what the change from `before` to `now` has made stale.
#[track_caller]
pub(super) fn forget(node: &ProxyNode, before: &[Service], now: &[Service]) {
    for old in before {
        let new = now.iter().find(|service| service.name == old.name);
        for port in old.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            let Some(new) = new else {
                delete(node, &["--orig-dst", &old.cluster_ip.to_string()]);
                continue;
            };
            // Without a backend a flow was let through untranslated, and would stay so.
            if old.backends.is_empty() && !new.backends.is_empty() {
                delete(node, &["--orig-dst", &old.cluster_ip.to_string()]);
            }
            for backend in old.backends.iter().filter(|backend| !new.backends.contains(backend)) {
                let gone = backend.addr.to_string();
                delete(node, &["--orig-dst", &old.cluster_ip.to_string(), "--dst-nat", &gone]);
                if let Some(node_port) = port.node_port {
                    delete(node, &["--dport", &node_port.to_string(), "--dst-nat", &gone]);
                }
            }
        }
    }
    // A node port that was nobody's may have flows to the node itself.
    let known = |address: Ipv4Addr| before.iter().any(|service| service.cluster_ip == address);
    for (_, port) in Service::ports_of(now).filter(|(service, _)| !known(service.cluster_ip)) {
        if let (Protocol::Udp, Some(node_port)) = (port.protocol, port.node_port) {
            delete(node, &["--dport", &node_port.to_string()]);
        }
    }
}

#[track_caller]
fn delete(node: &ProxyNode, filter: &[&str]) {
    let mut command = node.namespace.command("conntrack");
    command.args(["-D", "-p", "udp"]).args(filter);
    let out = exec::output(&mut command, b"", exec::COMMAND_LIMIT);
    let out = out.unwrap_or_else(|error| panic!("cannot run conntrack on {}: {error}", node.name));
    // It fails when there is nothing to delete.
    let nothing = out.stderr.contains("0 flow entries");
    assert!(out.status.success() || nothing, "conntrack -D on {}: {}", node.name, out.stderr);
}

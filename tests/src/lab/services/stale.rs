//! Conntrack entries that kube-proxy deletes after a change: those of UDP flows that would go on to a backend that is gone,
//! or past one that has come.

use std::net::IpAddr;

use super::{Protocol, ProxyNode, Service};
use crate::lab::exec;

/// Which entries, as arguments of conntrack(8).
type Filter = Vec<String>;

/// Deletes on `node` what the change from `before` to `now` has made stale.
#[track_caller]
pub(super) fn forget(node: &ProxyNode, before: &[Service], now: &[Service]) {
    for filter in stale(before, now).into_iter().chain(new_node_ports(before, now)) {
        // It fails when there is nothing to delete.
        let (success, _, errors) = conntrack(node, "-D", &filter);
        assert!(success || errors.contains("0 flow entries"), "conntrack -D on {}: {errors}", node.name);
    }
}

/// Whether somebody else has deleted it on `node`.
#[track_caller]
pub(super) fn is_forgotten(node: &ProxyNode, before: &[Service], now: &[Service]) -> bool {
    stale(before, now).iter().all(|filter| {
        let (success, entries, errors) = conntrack(node, "-L", filter);
        assert!(success, "conntrack -L on {}: {errors}", node.name);
        entries.is_empty()
    })
}

/// What a change makes stale.
fn stale(before: &[Service], now: &[Service]) -> Vec<Filter> {
    let mut filters = Vec::new();
    for (old, port) in Service::ports_of(before).filter(|(_, port)| port.protocol == Protocol::Udp) {
        let cluster_ip = ["--orig-dst".to_owned(), old.cluster_ip.to_string()];
        let Some(new) = now.iter().find(|service| service.name == old.name) else {
            filters.push(cluster_ip.to_vec());
            continue;
        };
        // Without a backend a flow was let through untranslated, and would stay so.
        if old.backends.is_empty() && !new.backends.is_empty() {
            filters.push(cluster_ip.to_vec());
        }
        for backend in old.backends.iter().filter(|backend| !new.backends.contains(backend)) {
            let gone = ["--dst-nat".to_owned(), backend.addr.to_string()];
            filters.push([&cluster_ip[..], &gone].concat());
            if let Some(node_port) = port.node_port {
                filters.push([&["--dport".to_owned(), node_port.to_string()][..], &gone].concat());
            }
        }
    }
    filters
}

/// A node port that was nobody's may have flows to the node itself.
fn new_node_ports(before: &[Service], now: &[Service]) -> Vec<Filter> {
    let known = |address: IpAddr| before.iter().any(|service| service.cluster_ip == address);
    let new = Service::ports_of(now).filter(|(service, _)| !known(service.cluster_ip));
    let udp = new.filter(|(_, port)| port.protocol == Protocol::Udp);
    udp.filter_map(|(_, port)| Some(vec!["--dport".to_owned(), port.node_port?.to_string()])).collect()
}

/// Runs conntrack for UDP entries; gives whether it succeeded, and both its outputs.
#[track_caller]
fn conntrack(node: &ProxyNode, verb: &str, filter: &Filter) -> (bool, String, String) {
    let mut command = node.namespace.command("conntrack");
    let family = if node.address.is_ipv4() { "ipv4" } else { "ipv6" };
    command.args([verb, "-f", family, "-p", "udp"]).args(filter);
    let out = exec::output(&mut command, b"", exec::COMMAND_LIMIT);
    let out = out.unwrap_or_else(|error| panic!("cannot run conntrack on {}: {error}", node.name));
    (out.status.success(), out.stdout, out.stderr)
}

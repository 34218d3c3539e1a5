//! Packets that arrive with a wrong checksum: damage on the way, or a device that promises checksums and does not keep
//! its word.
//!
//! The outer UDP checksum of a tunnel packet is zero, so that only the inner one can be wrong, and only who ends the
//! connection looks at it: a pod, or this node. Counters are compared over a second, because what they had before may
//! be of years ago.

use std::{collections::BTreeMap, fs, net::IpAddr, thread, time::Duration};

use anyhow::Context as _;

use super::{Check, Report, Site};
use crate::{
    datapath::tables::Endpoints,
    host::{netlink::Netlink, netns::NetNs, underlay::Underlay},
};

pub(super) struct Checksums;

const WINDOW: Duration = Duration::from_secs(1);
/// Where runtimes keep the namespaces of pods.
const NAMESPACES: &str = "/run/netns";

/// Wrong checksums by who has met them and protocol.
type Counts = BTreeMap<(String, String), u64>;

impl Check for Checksums {
    fn name(&self) -> &'static str {
        "checksums"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let places = places(site)?;
        let before = read(&places)?;
        thread::sleep(WINDOW);
        let after = read(&places)?;
        let device = site.config().and_then(|config| {
            let mut netlink = Netlink::open().ok()?;
            let interface = config.network.interface.as_deref();
            Some(Underlay::find(&mut netlink, config.vtep(), interface).ok()?.link.name)
        });
        let device = device.unwrap_or_else(|| "eth0".into());
        for ((place, protocol), now) in &after {
            let new = now - before.get(&(place.clone(), protocol.clone())).unwrap_or(now);
            if new > 0 {
                report
                    .error(place.clone(), format!("receives {protocol} packets with a wrong checksum"))
                    .evidence(format!("{new} within a second, {now} in all ({protocol}: InCsumErrors)"))
                    .remedy(format!(
                        "on the nodes that send to it: ethtool -K {device} tx-checksum-ip-generic off"
                    ));
            }
        }
        let earlier: u64 = before.values().sum();
        let pods = places.len() - 1;
        report.saw(format!(
            "no wrong checksum within a second on the node and {pods} of its pods, {earlier} before"
        ));
        Ok(())
    }
}

/// The node, and those of its pods whose namespaces can be found.
fn places(site: &Site) -> anyhow::Result<Vec<(String, NetNs)>> {
    let mut places = vec![("this node".to_owned(), NetNs::current()?)];
    if site.local.is_none() {
        return Ok(places);
    }
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let mut pods: BTreeMap<i32, IpAddr> = BTreeMap::new();
    for (address, endpoint) in Endpoints::open(&site.pins)?.entries()? {
        let link = links.iter().find(|link| link.index == endpoint.ifindex);
        if let Some(id) = link.and_then(|link| link.link_netnsid) {
            pods.insert(id, address.to_ip());
        }
    }
    for entry in fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let Ok(namespace) = NetNs::open(entry.path()) else { continue };
        let id = netlink.namespace_id(&namespace)?;
        if let Some(address) = id.and_then(|id| pods.get(&id)) {
            places.push((format!("pod {address}"), namespace));
        }
    }
    Ok(places)
}

fn read(places: &[(String, NetNs)]) -> anyhow::Result<Counts> {
    let mut counts = Counts::new();
    for (name, namespace) in places {
        let text = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp"));
        let text = text?.context("read /proc/net/snmp")?;
        counts.extend(wrong(&text).map(|(protocol, count)| ((name.clone(), protocol.to_owned()), count)));
        // A kernel without IPv6 has none.
        let text = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp6"))?.unwrap_or_default();
        counts.extend(wrong6(&text).map(|(protocol, count)| ((name.clone(), protocol.to_owned()), count)));
    }
    Ok(counts)
}

/// `InCsumErrors` of each protocol: a line of names, then one of values.
fn wrong(text: &str) -> impl Iterator<Item = (&str, u64)> {
    let lines: Vec<_> = text.lines().collect();
    lines
        .chunks_exact(2)
        .filter_map(|pair| {
            let (protocol, names) = pair.first()?.split_once(": ")?;
            let (_, values) = pair.get(1)?.split_once(": ")?;
            let at = names.split(' ').position(|name| name == "InCsumErrors")?;
            Some((protocol, values.split(' ').nth(at)?.parse().ok()?))
        })
        .collect::<Vec<_>>()
        .into_iter()
}

/// The same of IPv6: a line for each counter. TCP has one for both families.
fn wrong6(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        Some((name.strip_suffix("InCsumErrors")?, value.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn wrong_checksums_of_ipv6_are_found_by_protocol() {
        let text = "Ip6InReceives   \t12\nIcmp6InCsumErrors   \t1\nUdp6InCsumErrors                \t4\nUdp6NoPorts\t9\n";
        assert_eq!(super::wrong6(text).collect::<Vec<_>>(), [("Icmp6", 1), ("Udp6", 4)]);
    }

    #[test]
    fn wrong_checksums_are_found_by_protocol() {
        let text = "Tcp: InSegs InCsumErrors\nTcp: 70 3\nUdp: InCsumErrors NoPorts\nUdp: 4 9\nIp: Forwarding\nIp: 1\n";
        assert_eq!(super::wrong(text).collect::<Vec<_>>(), [("Tcp", 3), ("Udp", 4)]);
    }
}

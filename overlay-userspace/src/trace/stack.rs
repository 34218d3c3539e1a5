//! What the node's stack does with a packet that a program leaves to it, as far as that can be known without sending it:
//! translation by rules of others, the route, whether it is forwarded and masqueraded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use overlay_common::maps::{HostPort, PortProtocol};
use serde_json::json;

use super::{
    Outcome, Steps, TraceError, Verdict,
    packet::{Inner, at},
    site::Site,
};
use crate::{
    cni::owner_text,
    datapath::tables::HostPorts,
    family::OfFamily as _,
    host::{
        conntrack::{self, Tuple},
        netlink::{Traveller, Way},
        nft::{
            self,
            translation::{self, Addressed},
        },
        sysctl,
    },
};

/// Longest part of a rule that is shown to people.
const SHOWN: usize = 160;

/// Goes on from `device`, by which the packet came in.
pub(super) fn goes_on(
    site: &mut Site,
    steps: &mut Steps,
    inner: &Inner,
    device: &str,
    returns: bool,
) -> Result<Verdict, TraceError> {
    if returns {
        return Ok(connection(steps, inner, device));
    }
    let way = look(site, inner, device)?;
    let local = matches!(way, Way::Local(_));
    // Before the route, as in the kernel: a new destination has another one.
    if let Some(verdict) = host_port(site, steps, inner, local)? {
        return Ok(verdict);
    }
    if let Some(verdict) = service(site, steps, inner, local) {
        return Ok(verdict);
    }
    route(site, steps, inner, device, way)?;
    if inner.ttl <= 1 && !local {
        let text = if inner.dst.is_ipv4() {
            "the stack answers with \"time exceeded\" (ICMP 11): the TTL ends here"
        } else {
            "the stack answers with \"time exceeded\" (ICMPv6 3): the hop limit ends here"
        };
        return Ok(Verdict::new(Outcome::Refused, text).device(device).remedy("send with a larger TTL"));
    }
    Ok(match way {
        Way::Out { oif, gateway, mtu } => return out(site, steps, inner, device, (oif, gateway, mtu)),
        Way::Local(_) => Verdict::new(
            Outcome::Stack,
            format!("left to the stack: {} is an address of this node, whose sockets get it", inner.dst),
        ),
        Way::Refused(errno) => Verdict::new(
            Outcome::Refused,
            format!("left to the stack, which refuses it: {}", errno.desc().to_lowercase()),
        )
        .remedy(
            "look for the address with `overlay endpoints`, and at the node's routes with `ip route get`",
        ),
        Way::Other(kind) => {
            Verdict::new(Outcome::Stack, format!("left to the stack: its route is of type {kind}"))
        }
    }
    .device(device))
}

/// The route.
fn look(site: &mut Site, inner: &Inner, device: &str) -> Result<Way, TraceError> {
    let iif = site.netlink.link(device)?.map(|link| link.index);
    let transport = Some((inner.protocol, inner.ports.0, inner.ports.1)).filter(|_| inner.port().is_some());
    Ok(site.netlink.way(Traveller { src: Some(inner.src), dst: inner.dst, iif, transport })?)
}

/// Says what the route is.
fn route(
    site: &mut Site,
    steps: &mut Steps,
    inner: &Inner,
    device: &str,
    way: Way,
) -> Result<(), TraceError> {
    let (text, oif) = match way {
        Way::Local(index) => (format!("the route to {} ends on this node", inner.dst), index),
        Way::Out { oif, gateway, .. } => {
            let via = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            (format!("the route to {} leads{via} to {}", inner.dst, site.device(oif)?), Some(oif))
        }
        Way::Refused(errno) => {
            (format!("the route to {} refuses: {}", inner.dst, errno.desc().to_lowercase()), None)
        }
        Way::Other(kind) => (format!("the route to {} is of type {kind}", inner.dst), None),
    };
    let oif = oif.map(|index| site.device(index)).transpose()?;
    steps.add("route", text, json!({ "from": device, "device": oif, "way": format!("{way:?}") }));
    Ok(())
}

/// A packet that returns: conntrack knows what it was before.
fn connection(steps: &mut Steps, inner: &Inner, device: &str) -> Verdict {
    let Inner { src, dst, protocol, ports: (src_port, dst_port), .. } = *inner;
    let tuple = Tuple { src, dst, protocol, src_port, dst_port };
    let text = match conntrack::find(tuple) {
        Ok(Some(found)) => {
            let (o, r) = (found.original, found.reply);
            let text = format!(
                "conntrack: an answer of the connection {} -> {}, which goes back to {} as from {}",
                at(o.src, o.src_port),
                at(o.dst, o.dst_port),
                at(o.src, o.src_port),
                at(o.dst, o.dst_port)
            );
            let facts = json!({
                "original": { "src": o.src, "src_port": o.src_port, "dst": o.dst, "dst_port": o.dst_port },
                "reply": { "src": r.src, "src_port": r.src_port, "dst": r.dst, "dst_port": r.dst_port },
            });
            steps.add("conntrack", text, facts);
            format!("left to the stack, which takes the translation back: to {} as from {}", o.src, o.dst)
        }
        Ok(None) => {
            let text = "conntrack knows no such connection: the recorded flow is older than it";
            steps.add("conntrack", text, json!({ "original": null }));
            "left to the stack, because its flow is recorded; conntrack does not know it any more".to_owned()
        }
        Err(error) => {
            steps.add("conntrack", error.to_string(), json!(null));
            "left to the stack, because its flow is recorded".to_owned()
        }
    };
    Verdict::new(Outcome::Stack, text).device(device)
}

/// A port of this node that leads to a pod.
fn host_port(
    site: &Site,
    steps: &mut Steps,
    inner: &Inner,
    local: bool,
) -> Result<Option<Verdict>, TraceError> {
    let Some((name, port)) = inner.port().filter(|_| local) else { return Ok(None) };
    let protocol = if name == "tcp" { PortProtocol::Tcp } else { PortProtocol::Udp };
    let ports = HostPorts::open(&site.pins)?;
    let all = match inner.dst {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let ip = inner.dst.family().nft();
    for addr in [inner.dst, all] {
        let Some(target) =
            ports.get(HostPort { addr: addr.into(), port, protocol: protocol as u8, reserved: 0 })?
        else {
            continue;
        };
        let (container, _) = owner_text(&target.owner);
        let to = at(target.pod.to_ip(), target.port).to_string();
        let text = format!(
            "host port {port}/{name} belongs to container {container} (HOST_PORTS): table {ip} {} sends it to {to}",
            nft::ports::TABLE
        );
        steps.add("host port", text, json!({ "to": to, "container": container }));
        return Ok(Some(Verdict::new(
            Outcome::Stack,
            format!("left to the stack, which sends it to {to}, a host port"),
        )));
    }
    Ok(None)
}

/// Rules of kube-proxy, or of anybody's, for the destination.
fn service(site: &Site, steps: &mut Steps, inner: &Inner, local: bool) -> Option<Verdict> {
    let (protocol, port) = inner.port()?;
    let found = match translation::find(Addressed { dst: inner.dst, protocol, port, local }) {
        Ok(found) => found,
        Err(error) => {
            steps.add(
                "translation",
                format!("whether a Service is meant cannot be seen: {error}"),
                json!(null),
            );
            return None;
        }
    };
    let first = found.first()?;
    let mut targets = Vec::new();
    for translation in &found {
        let what = if translation.refuses {
            "refuses it".to_owned()
        } else {
            format!("sends it to one of {}", translation.targets.join(", "))
        };
        let rule: String = translation.rule.chars().take(SHOWN).collect();
        let text = format!("{} {what}: {rule}", translation.place);
        steps.add("translation", text, json!({ "place": translation.place, "rule": translation.rule, "targets": translation.targets, "refuses": translation.refuses }));
        targets.extend(translation.targets.iter().cloned());
    }
    if targets.is_empty() && first.refuses {
        let text = format!(
            "left to the stack, which refuses it: the Service at {}/{protocol} has no endpoints",
            at(inner.dst, port)
        );
        return Some(
            Verdict::new(Outcome::Refused, text).remedy("give the Service endpoints that are ready"),
        );
    }
    let cluster = site.local.cluster[inner.dst.family().index()];
    let anchor =
        targets.iter().any(|target| target.parse::<SocketAddr>().is_ok_and(|to| site.is_remote(to.ip())));
    let on = if anchor { "; to another node it then goes by from_host into the tunnel" } else { "" };
    let text = format!(
        "left to the stack, where {} translates the Service to one of {}{on}; ask `overlay trace` for one of these to see its way (pods are in {}/{})",
        first.place,
        targets.join(", "),
        cluster.addr.to_ip(),
        cluster.prefix_len
    );
    Some(Verdict::new(Outcome::Stack, text))
}

/// Sent on by the stack.
fn out(
    site: &mut Site,
    steps: &mut Steps,
    inner: &Inner,
    device: &str,
    (oif, gateway, mtu): (u32, Option<IpAddr>, Option<u32>),
) -> Result<Verdict, TraceError> {
    // Of IPv6 the kernel asks `all` alone.
    let family = inner.dst.family();
    let whose = if family == sysctl::Family::Ipv4 { device } else { "all" };
    let setting = sysctl::interface(family, whose, "forwarding");
    if sysctl::get(&setting).is_ok_and(|value| value == "0") {
        let text = format!("left to the stack, which does not forward: {setting} is 0");
        return Ok(Verdict::new(Outcome::Refused, text)
            .device(device)
            .remedy("the agent sets it within seconds: is it running?"));
    }
    let Some(link) = site.link(oif)? else {
        return Ok(
            Verdict::new(Outcome::Refused, format!("the device #{oif} of the route is gone")).device(device)
        );
    };
    let mtu = mtu.unwrap_or(link.mtu);
    if u32::from(inner.len) > mtu {
        let text = format!(
            "left to the stack, which answers {}: {} bytes are more than {mtu} towards {}",
            if inner.dst.is_ipv4() {
                "\"fragmentation needed\" (ICMP 3, code 4)"
            } else {
                "\"packet too big\" (ICMPv6 2)"
            },
            inner.len,
            inner.dst
        );
        return Ok(Verdict::new(Outcome::Refused, text)
            .device(&link.name)
            .remedy("senders that hear the answer send less; look for what drops ICMP if they do not"));
    }
    let via = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    let source = if oif == site.local.anchor_ifindex {
        "into the tunnel by from_host".to_owned()
    } else if site.is_of_pods(inner.src) {
        match nft::source_nat::rule_for(inner.dst) {
            Ok(Some(rule)) => {
                let rule: String = rule.chars().take(SHOWN).collect();
                steps.add(
                    "masquerade",
                    format!("table {} {} masquerades it: {rule}", family.nft(), nft::TABLE),
                    json!({ "rule": rule }),
                );
                "with the node's address".to_owned()
            }
            Ok(None) => {
                steps.add(
                    "masquerade",
                    format!("table {} {} does not masquerade it", family.nft(), nft::TABLE),
                    json!({ "rule": null }),
                );
                "with the pod's address".to_owned()
            }
            Err(error) => {
                steps.add("masquerade", format!("cannot be seen: {error}"), json!(null));
                "with the pod's or the node's address".to_owned()
            }
        }
    } else {
        "as it is".to_owned()
    };
    let text = format!("left to the stack, which sends it{via} by {} {source}", link.name);
    Ok(Verdict::new(Outcome::Stack, text).device(link.name))
}

//! Into the tunnel: the next hop, the outer headers, and the anchor device where a program does not encapsulate.

use std::net::Ipv4Addr;

use overlay_common::{
    counter::Path,
    reason::Hook,
    wire::{
        ETH_LEN, ETHERTYPE_IPV4, ecn,
        vxlan::{Encap, OVERHEAD, Tunnel},
    },
};
use serde_json::json;

use super::{
    Outcome, Steps, TraceError, Verdict, Wire,
    hook::{self, Expected, Programs},
    mac,
    packet::{Inner, hex},
    site::{Peer, Site},
};
use crate::{
    datapath::{
        replica::{Circumstances, Fib, FibAnswer, FibQuestion, Run},
        run::Verdict as Returned,
    },
    host::netlink::{Link, Traveller, Way},
};

/// The first of the outer source ports that a vxlan device may choose, here as an example.
const SOME_PORT: u16 = 49152;

/// What `from_pod` redirected: natively encapsulated, or to the anchor device.
pub(super) fn sent(
    site: &mut Site,
    steps: &mut Steps,
    wire: &mut Option<Wire>,
    mut programs: Programs,
    link: &Link,
    run: &Run,
    inner: &Inner,
) -> Result<Verdict, TraceError> {
    let Some(peer) = site.peer_of(programs.frozen(), inner.dst) else {
        return Ok(Verdict::new(
            Outcome::Refused,
            "the node of the destination has gone meanwhile: ask again",
        ));
    };
    if run.paths.contains(&Path::EncapNative) {
        let port =
            <Tunnel>::from_bytes(&run.packet).map_or(SOME_PORT, |t| u16::from_be_bytes(t.outer.udp.src));
        let fib = next_hop(site, steps, &programs, link.index, &peer, (port, inner.len))?;
        return native(site, steps, wire, &peer, fib, &run.packet);
    }
    let fib = next_hop(site, steps, &programs, link.index, &peer, (SOME_PORT, inner.len))?;
    let anchor = programs.frozen().anchor();
    let why = match fib.result {
        Fib::NextHop | Fib::NoNeighbour => "the program could not encapsulate it",
        _ => "without a native next hop the kernel's own path has the answer",
    };
    let name = site.device(anchor)?;
    steps.add("anchor", format!("{why}: redirected to {name}"), json!({ "device": name, "mark": run.mark }));
    by_anchor(site, steps, wire, &mut programs, &peer, run, fib)
}

/// Asks the FIB, and says what it knows of the way to the peer.
fn next_hop(
    site: &mut Site,
    steps: &mut Steps,
    programs: &Programs,
    ifindex: u32,
    peer: &Peer,
    (port, inner_len): (u16, u16),
) -> Result<FibAnswer, TraceError> {
    let frozen = programs.frozen();
    let len = inner_len.saturating_add(OVERHEAD as u16);
    let (src, dst) = (frozen.vtep(), peer.vtep());
    let question = FibQuestion { ifindex, src, dst, ports: (port, frozen.port()), len };
    let fib = programs.replica().fib(question)?;
    let device = site.device(fib.ifindex)?;
    let gateway = match site.netlink.way(Traveller {
        src: None,
        dst,
        iif: None,
        transport: Some((libc::IPPROTO_UDP as u8, port, frozen.port())),
    })? {
        Way::Out { gateway, .. } => gateway,
        _ => None,
    };
    let hop = gateway.map_or_else(|| dst.to_string(), |gateway| format!("{gateway}, the router to {dst}"));
    let neighbours = site.netlink.neighbours(Some(fib.ifindex))?;
    let next = gateway.unwrap_or(dst.into());
    let neighbour = neighbours.iter().find(|n| n.address == next);
    let state = neighbour.map_or("none", |n| {
        if n.permanent {
            "permanent"
        } else if n.mac.is_some() {
            "resolved"
        } else {
            "unresolved"
        }
    });
    let text = match fib.result {
        Fib::NextHop => format!(
            "next hop {hop} by {device}, MAC {}; {len} bytes fit the path's MTU {}",
            mac(fib.macs.1),
            fib.mtu
        ),
        Fib::NoNeighbour => {
            format!("next hop {hop} by {device}, whose MAC is not known yet: the packet waits for ARP")
        }
        Fib::TooLong => {
            format!("{len} bytes with the outer headers are more than the path's MTU {} to {dst}", fib.mtu)
        }
        Fib::Refused => format!("a route refuses what goes to {dst}"),
        Fib::NotForwarded => format!("there is no route to {dst}"),
        Fib::ForwardingOff => format!("the device #{ifindex} does not forward (net.ipv4.conf.*.forwarding)"),
        Fib::Encapsulating => format!("the route to {dst} encapsulates by itself"),
        Fib::Other(number) => format!("bpf_fib_lookup answers {number}"),
    };
    let facts = json!({
        "result": format!("{:?}", fib.result), "vtep": dst, "gateway": gateway, "device": device, "mtu": fib.mtu,
        "length": len, "smac": mac(fib.macs.0), "dmac": mac(fib.macs.1), "neighbour": state,
    });
    steps.add("fib", text, facts);
    Ok(fib)
}

/// What a program encapsulated.
fn native(
    site: &mut Site,
    steps: &mut Steps,
    wire: &mut Option<Wire>,
    peer: &Peer,
    fib: FibAnswer,
    packet: &[u8],
) -> Result<Verdict, TraceError> {
    let device = site.device(fib.ifindex)?;
    describe(steps, packet, "written by the program");
    *wire = Some(Wire { hex: hex(packet), to: peer.vtep(), by_anchor: false });
    if fib.result == Fib::NoNeighbour {
        let state = format!("it waits on {device} until ARP has an answer, and is lost if none comes");
        steps.add("neighbour", state, json!({ "device": device }));
    }
    leaves(site, peer, fib, device)
}

fn leaves(site: &mut Site, peer: &Peer, fib: FibAnswer, device: String) -> Result<Verdict, TraceError> {
    let node = site.node_text(peer.vtep());
    if let Some(link) = site.link(fib.ifindex)?.filter(|link| !link.running) {
        let text = format!("{}, by which {node} is reached, has no carrier", link.name);
        return Ok(Verdict::new(Outcome::Refused, text)
            .device(link.name)
            .remedy("look at the underlay's device and cable"));
    }
    let text = format!("sent to {node} by device {device}");
    Ok(Verdict { vtep: Some(peer.vtep().into()), ..Verdict::new(Outcome::Sent, text).device(device) })
}

/// Decodes the outer headers.
fn describe(steps: &mut Steps, packet: &[u8], by: &str) {
    let Some(Tunnel { eth, outer, .. }) = <Tunnel>::from_bytes(packet) else {
        steps.add("encap", "what came out is too short for a tunnel packet", json!(null));
        return;
    };
    let address = |bytes: [u8; 4]| Ipv4Addr::from(bytes);
    let port = |bytes: [u8; 2]| u16::from_be_bytes(bytes);
    let [v0, v1, v2] = outer.vxlan.vni;
    let vni = u32::from_be_bytes([0, v0, v1, v2]);
    let (src, dst) = (address(outer.ip.src_addr), address(outer.ip.dst_addr));
    let (sport, dport) = (port(outer.udp.src), port(outer.udp.dst));
    let text = format!(
        "outer headers {by}: {src}:{sport} -> {dst}:{dport}, VNI {vni}, TTL {}, TOS {:#04x}, {} bytes; inner MACs {} -> {}",
        outer.ip.ttl,
        outer.ip.tos,
        u16::from_be_bytes(outer.ip.tot_len),
        mac(outer.eth.src_addr),
        mac(outer.eth.dst_addr)
    );
    let facts = json!({
        "outer_src": src, "outer_dst": dst, "src_port": sport, "dst_port": dport, "vni": vni, "ttl": outer.ip.ttl,
        "tos": outer.ip.tos, "length": u16::from_be_bytes(outer.ip.tot_len),
        "smac": mac(eth.src_addr), "dmac": mac(eth.dst_addr),
        "inner_smac": mac(outer.eth.src_addr), "inner_dmac": mac(outer.eth.dst_addr),
    });
    steps.add("encap", text, facts);
}

/// What `from_host` and the anchor device do with a packet that `from_pod` sent there.
fn by_anchor(
    site: &mut Site,
    steps: &mut Steps,
    wire: &mut Option<Wire>,
    programs: &mut Programs,
    peer: &Peer,
    run: &Run,
    fib: FibAnswer,
) -> Result<Verdict, TraceError> {
    let index = programs.frozen().anchor();
    let Some(link) = site.link(index)?.filter(|link| link.up) else {
        let text = format!("the anchor device #{index} is gone or down: the redirect loses the packet");
        return Ok(Verdict::new(Outcome::Refused, text)
            .remedy("the agent makes it anew within seconds: is it running? (`overlay status`)"));
    };
    let attached = match hook::next(site, steps, programs, &link, Hook::FromHost)? {
        Ok(attached) => attached,
        Err(verdict) => return Ok(verdict),
    };
    let how = Circumstances { mark: run.mark, ..Circumstances::default() };
    let host = attached.ask(site, programs, &run.packet, how)?;
    let expected = match host.reason {
        Some(reason) => Expected::Drop(reason),
        None if host.verdict == Returned::Redirect => Expected::Path(Path::EncapNative),
        None => Expected::Path(Path::EncapAnchor),
    };
    hook::did(steps, Hook::FromHost, &host, &[expected]);
    match host.verdict {
        Returned::Drop => return Ok(hook::dropped(Hook::FromHost, host.reason).device(link.name)),
        Returned::Redirect => return native(site, steps, wire, peer, fib, &host.packet),
        Returned::Pass | Returned::Other(_) => {}
    }
    let Some(inner) = Inner::framed(&host.packet) else {
        return Ok(Verdict::new(Outcome::Refused, "what came out of from_host is no IPv4 packet"));
    };
    let outer_len = u32::from(inner.len) + OVERHEAD as u32;
    let text = format!(
        "from_host leaves it to {}, with the tunnel key {} VNI {}: the vxlan device encapsulates",
        link.name,
        peer.vtep(),
        programs.frozen().vni()
    );
    steps.add("anchor", text, json!({ "device": link.name, "mtu": link.mtu, "length": inner.len }));
    let device = site.device(fib.ifindex)?;
    let remedy = "set network.mtu to what the path carries less 50, and have pods made anew";
    let refused = match fib.result {
        Fib::TooLong => Some((
            format!(
                "{outer_len} bytes are more than the path's MTU {}, and outer headers forbid to fragment: the kernel drops it, and the pod hears nothing",
                fib.mtu
            ),
            remedy,
        )),
        Fib::Refused | Fib::NotForwarded => Some((
            format!("the kernel has no way to {}", peer.vtep()),
            "look at the node's routes: `ip route get` the VTEP",
        )),
        _ => None,
    };
    if let Some((text, remedy)) = refused {
        return Ok(Verdict::new(Outcome::Refused, text).device(link.name).remedy(remedy));
    }
    let packet = encapsulated(programs, peer, &inner, &host.packet, fib);
    describe(steps, &packet, "as the vxlan device writes them (the source port is an example)");
    *wire = Some(Wire { hex: hex(&packet), to: peer.vtep(), by_anchor: true });
    leaves(site, peer, fib, device)
}

/// The packet as the vxlan device sends it.
fn encapsulated(programs: &Programs, peer: &Peer, inner: &Inner, frame: &[u8], fib: FibAnswer) -> Vec<u8> {
    let frozen = programs.frozen();
    let outer = Encap {
        src: frozen.vtep().octets(),
        dst: peer.vtep().octets(),
        src_port: SOME_PORT,
        port: frozen.port(),
        vni: frozen.vni(),
        inner_len: inner.len,
        tos: ecn::outer_tos(inner.tos),
        inner_type: ETHERTYPE_IPV4,
        inner_src: frozen.anchor_mac(),
        inner_dst: peer.node.vtep_mac,
    }
    .to_bytes();
    let mut packet = Vec::new();
    packet.extend(fib.macs.1);
    packet.extend(fib.macs.0);
    packet.extend([0x08, 0x00]);
    packet.extend(outer);
    packet.extend(frame.get(ETH_LEN..).unwrap_or_default());
    packet
}

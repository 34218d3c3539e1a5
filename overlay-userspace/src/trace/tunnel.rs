//! Into the tunnel: the next hop, the outer headers, and the anchor device where a program does not encapsulate.

use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
    wire::{ETH_LEN, ecn},
};
use serde_json::json;

use super::{
    Outcome, Steps, TraceError, Verdict, Wire,
    hook::{self, Expected, Programs},
    mac,
    packet::{Inner, Outward, Tunnel, at, encapsulate, hex, overhead},
    site::{Peer, Site},
};
use crate::{
    datapath::{
        replica::{Circumstances, Fib, FibAnswer, FibQuestion, Run},
        run::Verdict as Returned,
    },
    family::OfFamily as _,
    host::{
        netlink::{Link, Traveller, Way},
        sysctl,
    },
};

/// The first of the outer source ports that a vxlan device may choose, here as an example.
const SOME_PORT: u16 = 49152;

/// TTL and hop limit of outer headers, the kernel's defaults.
const OUTER_TTL: u8 = 64;

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
        let port = Tunnel::parse(&run.packet).map_or(SOME_PORT, |tunnel| tunnel.outer.ports.0);
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

/// What `from_pod` has told the pod: it does not fit the path.
pub(super) fn told(
    site: &mut Site,
    steps: &mut Steps,
    programs: &Programs,
    link: &Link,
    inner: &Inner,
) -> Result<Verdict, TraceError> {
    if let Some(peer) = site.peer_of(programs.frozen(), inner.dst) {
        let fib = next_hop(site, steps, programs, link.index, &peer, (SOME_PORT, inner.len))?;
        let fits = fib.mtu.saturating_sub(overhead(peer.vtep().family()));
        let icmp = if inner.dst.is_ipv4() {
            "\"fragmentation needed\" (ICMP 3, code 4)"
        } else {
            "\"packet too big\" (ICMPv6 2)"
        };
        let text = format!("the pod is answered {icmp} by its gateway: {fits} bytes fit");
        steps.add("told", text, json!({ "mtu": fits }));
    }
    Ok(hook::dropped(Hook::FromPod, Some(Reason::PathMtu)).device(&link.name))
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
    let dst = peer.vtep();
    let src = frozen.vtep(dst.family());
    let len = inner_len.saturating_add(overhead(dst.family()));
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
    let next = gateway.unwrap_or(dst);
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
            let asks = if dst.is_ipv4() { "ARP" } else { "neighbour discovery" };
            format!("next hop {hop} by {device}, whose MAC is not known yet: the packet waits for {asks}")
        }
        Fib::TooLong => {
            format!("{len} bytes with the outer headers are more than the path's MTU {} to {dst}", fib.mtu)
        }
        Fib::Refused => format!("a route refuses what goes to {dst}"),
        Fib::NotForwarded => format!("there is no route to {dst}"),
        Fib::ForwardingOff => {
            let settings = sysctl::of_devices(dst.family());
            format!("the device #{ifindex} does not forward ({settings}*/forwarding)")
        }
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
        let state =
            format!("it waits on {device} until the neighbour has answered, and is lost if it does not");
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
    Ok(Verdict { vtep: Some(peer.vtep()), ..Verdict::new(Outcome::Sent, text).device(device) })
}

/// Decodes the outer headers.
fn describe(steps: &mut Steps, packet: &[u8], by: &str) {
    let Some(tunnel) = Tunnel::parse(packet) else {
        steps.add("encap", "what came out is too short for a tunnel packet", json!(null));
        return;
    };
    let Tunnel { macs, outer, vni, zero_checksum, .. } = tunnel;
    let Inner { src, dst, ports: (sport, dport), ttl, tos, len, .. } = outer;
    let inner = tunnel.inner_macs();
    let (hops, class) = if src.is_ipv4() { ("TTL", "TOS") } else { ("hop limit", "traffic class") };
    let text = format!(
        "outer headers {by}: {} -> {}, VNI {vni}, {hops} {ttl}, {class} {tos:#04x}, {len} bytes; inner MACs {} -> {}",
        at(src, sport),
        at(dst, dport),
        mac(inner.0),
        mac(inner.1)
    );
    let facts = json!({
        "outer_src": src, "outer_dst": dst, "src_port": sport, "dst_port": dport, "vni": vni, "ttl": ttl,
        "tos": tos, "length": len, "zero_checksum": zero_checksum,
        "smac": mac(macs.1), "dmac": mac(macs.0), "inner_smac": mac(inner.0), "inner_dmac": mac(inner.1),
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
        return Ok(Verdict::new(Outcome::Refused, "what came out of from_host is no IP packet"));
    };
    let added = overhead(peer.vtep().family());
    let outer_len = u32::from(inner.len) + u32::from(added);
    let text = format!(
        "from_host leaves it to {}, with the tunnel key {} VNI {}: the vxlan device encapsulates",
        link.name,
        peer.vtep(),
        programs.frozen().vni()
    );
    steps.add("anchor", text, json!({ "device": link.name, "mtu": link.mtu, "length": inner.len }));
    let device = site.device(fib.ifindex)?;
    let refused = match fib.result {
        Fib::Refused | Fib::NotForwarded => Some((
            format!("the kernel has no way to {}", peer.vtep()),
            "look at the node's routes: `ip route get` the VTEP",
        )),
        _ => None,
    };
    if let Some((text, remedy)) = refused {
        return Ok(Verdict::new(Outcome::Refused, text).device(link.name).remedy(remedy));
    }
    if fib.result == Fib::TooLong {
        let text = format!(
            "{outer_len} bytes are more than the path's MTU {}: the kernel sends it in fragments",
            fib.mtu
        );
        steps.add("fragments", text, json!({ "length": outer_len, "mtu": fib.mtu }));
    }
    let packet = encapsulated(programs, peer, &inner, &host.packet, fib)?;
    describe(steps, &packet, "as the vxlan device writes them (the source port is an example)");
    *wire = Some(Wire { hex: hex(&packet), to: peer.vtep(), by_anchor: true });
    leaves(site, peer, fib, device)
}

/// The packet as the vxlan device sends it.
fn encapsulated(
    programs: &Programs,
    peer: &Peer,
    inner: &Inner,
    frame: &[u8],
    fib: FibAnswer,
) -> Result<Vec<u8>, TraceError> {
    let frozen = programs.frozen();
    let dst = peer.vtep();
    let to = Outward {
        macs: fib.macs,
        inner_macs: (frozen.anchor_mac(), peer.node.vtep_mac),
        src: frozen.vtep(dst.family()),
        dst,
        ports: (SOME_PORT, frozen.port()),
        vni: frozen.vni(),
        ttl: OUTER_TTL,
        tos: ecn::outer_tos(inner.tos),
    };
    encapsulate(&to, frame.get(ETH_LEN..).unwrap_or_default())
}

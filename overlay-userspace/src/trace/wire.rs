//! The second half: a packet that comes in by the wire, up to the pod or the stack that gets it.

use std::net::Ipv4Addr;

use overlay_common::{
    counter::Path,
    maps::NODE_HOST,
    reason::{Hook, Reason},
    wire::{
        ETH_LEN, ecn,
        vxlan::{OVERHEAD, Tunnel, Vtep},
    },
};
use serde_json::json;

use super::{
    Half, Outcome, Report, Steps, TraceError, Traced, Verdict, deliver,
    hook::{self, Expected, Programs},
    mac,
    packet::{Inner, hex},
    site::Site,
    stack,
};
use crate::{
    datapath::{pins::Pins, replica::Circumstances, run::Verdict as Returned},
    host::netlink::Link,
};

/// The inner Ethernet header in a tunnel packet.
const INNER_ETH: usize = OVERHEAD;

/// Asks what becomes of a packet that comes in by the wire as the other half left it.
///
/// # Errors
///
/// A packet that is none, no pins, missing rights.
pub fn received(pins: &Pins, packet: &Traced) -> Result<Report, TraceError> {
    let mut site = Site::read(pins)?;
    let mut steps = Steps::default();
    let Traced(frame) = packet;
    let mut frame = frame.clone();
    let verdict = decide(&mut site, &mut steps, &mut frame)?;
    let text = match Inner::framed(&frame) {
        Some(outer) => match Inner::framed(frame.get(INNER_ETH..).unwrap_or_default())
            .filter(|_| is_tunnel(&site, &outer))
        {
            Some(inner) => format!("{} in {}", inner.text(), outer.text()),
            None => outer.text(),
        },
        None => format!("{} bytes that are not IPv4", frame.len()),
    };
    Ok(Report {
        node: site.name(),
        half: Half::FromWire,
        packet: text,
        frame: hex(&frame),
        steps: steps.0,
        verdict,
        wire: None,
    })
}

fn is_tunnel(site: &Site, outer: &Inner) -> bool {
    outer.port() == Some(("udp", site.local.port as u16))
}

fn decide(site: &mut Site, steps: &mut Steps, frame: &mut [u8]) -> Result<Verdict, TraceError> {
    let vtep = site.vtep();
    let Some(link) = site.holder(vtep)? else {
        let text = format!("no device of this node has its tunnel address {vtep}");
        return Ok(Verdict::new(Outcome::Refused, text).remedy("the address has moved: the agent looks for it within seconds; `overlay status` shows what it holds"));
    };
    // Routers between the nodes write the Ethernet header anew; what comes in is addressed to this device.
    if let (Some(dst), Some(own)) = (frame.first_chunk_mut::<6>(), link.mac) {
        *dst = own;
    }
    let facts = json!({ "device": link.name, "mac": link.mac.map(mac), "vtep": vtep });
    steps.add("wire", format!("comes in by {}, which has the tunnel address {vtep}; the Ethernet header is that of the last hop", link.name), facts);
    let (attached, mut programs) = match hook::first(site, steps, &link, Hook::FromWire)? {
        Ok(found) => found,
        Err(verdict) => return Ok(verdict),
    };
    if let Some(verdict) = hook::guard(steps, &mut programs, &link, frame)? {
        return Ok(verdict);
    }
    let frozen = programs.frozen();
    let own = Vtep { addr: frozen.vtep().octets(), port: frozen.port(), vni: frozen.vni() };
    let tunnel = Tunnel::from_bytes(frame);
    let plain = tunnel.filter(|tunnel| tunnel.is_plain(&own));
    let Some(tunnel) = plain else {
        return not_plain(site, steps, &mut programs, &attached, &link, frame, tunnel.as_ref());
    };
    let outer_src = Ipv4Addr::from(tunnel.outer.ip.src_addr);
    let Some(inner) = frame.get(INNER_ETH + ETH_LEN..).and_then(Inner::parse) else {
        return Ok(Verdict::new(Outcome::Refused, "the inner packet is no IPv4 packet"));
    };
    let text = format!("a tunnel packet from {outer_src} for this VTEP, VNI {}", own.vni);
    steps.add("tunnel", text, json!({ "outer_src": outer_src, "vni": own.vni, "inner": inner.text() }));
    let returns = hook::flows(steps, &mut programs, &inner)?;
    let run = attached.ask(site, &mut programs, frame, Circumstances::default())?;
    let expected = native(site, steps, &programs, &tunnel, &inner, outer_src, returns);
    hook::did(steps, Hook::FromWire, &run, &[expected]);
    match run.verdict {
        Returned::Drop => Ok(hook::dropped(Hook::FromWire, run.reason).device(link.name)),
        Returned::Redirect => deliver::to_address(site, steps, inner.dst, &run.packet),
        Returned::Pass | Returned::Other(_) => {
            by_kernel(site, steps, &mut programs, frame, &inner, outer_src, own.vni)
        }
    }
}

/// The decisions of `from_wire` on a plain tunnel packet, in its order.
fn native(
    site: &Site,
    steps: &mut Steps,
    programs: &Programs,
    tunnel: &Tunnel,
    inner: &Inner,
    outer_src: Ipv4Addr,
    returns: bool,
) -> Expected {
    if let Some(reason) = distrusted(site, steps, programs, outer_src, inner.src) {
        return Expected::Drop(reason);
    }
    let Some(pod) = site.pod_at(inner.dst).filter(|pod| pod.endpoint.ifindex != 0) else {
        let text = format!(
            "{} is no pod of this node (ENDPOINTS): left to the kernel, which decapsulates",
            inner.dst
        );
        steps.add("destination", text, json!({ "endpoint": null }));
        return Expected::Uncounted;
    };
    steps.add(
        "destination",
        format!("{} is {} (ENDPOINTS)", inner.dst, pod.text()),
        json!({ "endpoint": pod.facts() }),
    );
    if inner.ttl <= 1 {
        steps.add("ttl", "TTL 1 ends here: left to the kernel", json!({ "ttl": inner.ttl }));
        return Expected::Uncounted;
    }
    if returns {
        return Expected::Path(Path::ReturnsToStack);
    }
    let outer_tos = tunnel.outer.ip.tos;
    match ecn::decap(outer_tos, inner.tos) {
        ecn::Decap::Drop => {
            let text =
                "the outer header is marked \"congestion experienced\", the inner one is not ECN-capable";
            steps.add("ecn", text, json!({ "outer_tos": outer_tos, "inner_tos": inner.tos }));
            Expected::Drop(Reason::Ecn)
        }
        ecn::Decap::Keep | ecn::Decap::Set(_) => Expected::Path(Path::DecapNative),
    }
}

/// Is the outer source the node that the inner source belongs to?
fn distrusted(
    site: &Site,
    steps: &mut Steps,
    programs: &Programs,
    outer_src: Ipv4Addr,
    inner_src: Ipv4Addr,
) -> Option<Reason> {
    let owner = site.peer_of(programs.frozen(), inner_src);
    let facts =
        json!({ "outer_src": outer_src, "inner_src": inner_src, "node": owner.map(|peer| peer.facts()) });
    match owner {
        Some(peer) if peer.vtep() == outer_src && !peer.is_own() => {
            let text = format!(
                "the inner source {inner_src} belongs to {}, which is the outer source",
                site.node_text(outer_src)
            );
            steps.add("trust", text, facts);
            return None;
        }
        Some(peer) => {
            let text = format!(
                "the inner source {inner_src} belongs to {}, but the outer source is {outer_src}",
                site.node_text(peer.vtep())
            );
            steps.add("trust", text, facts);
        }
        None => {
            let text = format!(
                "the inner source {inner_src} belongs to no node (NODES); the outer source is {outer_src}"
            );
            steps.add("trust", text, facts);
        }
    }
    let known = site.peer_at(outer_src).is_some_and(|peer| peer.node.flags & NODE_HOST != 0);
    Some(if known { Reason::InnerSource } else { Reason::UnknownVtep })
}

/// What is no tunnel packet that a program takes apart.
fn not_plain(
    site: &mut Site,
    steps: &mut Steps,
    programs: &mut Programs,
    attached: &hook::Attached,
    link: &Link,
    frame: &[u8],
    tunnel: Option<&Tunnel>,
) -> Result<Verdict, TraceError> {
    let Some(outer) = Inner::framed(frame) else {
        return Ok(Verdict::new(Outcome::Stack, "left to the kernel: it is not IPv4").device(&link.name));
    };
    let for_socket = is_tunnel(site, &outer) && outer.dst == programs.frozen().vtep();
    let text = if for_socket {
        "to the tunnel's port, but not a packet that the program takes apart (another VNI, options, a fragment, or not IPv4 inside)".to_owned()
    } else {
        format!("no packet of this tunnel: {}", outer.text())
    };
    steps.add("tunnel", text, json!({ "outer_src": outer.src, "to_socket": for_socket }));
    let run = attached.ask(site, programs, frame, Circumstances::default())?;
    if run.verdict == Returned::Drop {
        if programs.frozen().in_cluster(outer.src) {
            let text = format!("the source {} is a pod's, outside of the tunnel", outer.src);
            steps.add("trust", text, json!({ "src": outer.src }));
        }
        hook::did(steps, Hook::FromWire, &run, &[Expected::Drop(Reason::PodAddressOnWire)]);
        return Ok(hook::dropped(Hook::FromWire, run.reason).device(&link.name));
    }
    hook::did(steps, Hook::FromWire, &run, &[Expected::Uncounted]);
    let inner = frame.get(INNER_ETH + ETH_LEN..).and_then(Inner::parse);
    if let (true, Some(inner), Some(tunnel)) = (for_socket, inner, tunnel) {
        let [v0, v1, v2] = tunnel.outer.vxlan.vni;
        return by_kernel(
            site,
            steps,
            programs,
            frame,
            &inner,
            outer.src,
            u32::from_be_bytes([0, v0, v1, v2]),
        );
    }
    stack::goes_on(site, steps, &outer, &link.name, false)
}

/// The kernel decapsulates: its UDP socket of the anchor device, then `from_tunnel`.
fn by_kernel(
    site: &mut Site,
    steps: &mut Steps,
    programs: &mut Programs,
    frame: &[u8],
    inner: &Inner,
    outer_src: Ipv4Addr,
    vni: u32,
) -> Result<Verdict, TraceError> {
    let index = programs.frozen().anchor();
    let Some(link) = site.link(index)?.filter(|link| link.up) else {
        let text = format!("the anchor device #{index} is gone or down: nobody decapsulates");
        return Ok(Verdict::new(Outcome::Refused, text)
            .remedy("the agent makes it anew within seconds: is it running? (`overlay status`)"));
    };
    let text =
        format!("left to the kernel: its tunnel socket decapsulates, and {} gets what was inside", link.name);
    steps.add("anchor", text, json!({ "device": link.name }));
    let attached = match hook::next(site, steps, programs, &link, Hook::FromTunnel)? {
        Ok(attached) => attached,
        Err(verdict) => return Ok(verdict),
    };
    let how = programs.frozen().decapsulated(outer_src, vni);
    let run = attached.ask(site, programs, frame.get(INNER_ETH..).unwrap_or_default(), how)?;
    if run.reason == Some(Reason::InnerDestination) {
        let text = format!("{} is neither a pod nor an address of this node", inner.dst);
        steps.add("destination", text, json!({ "dst": inner.dst }));
    }
    let expected = match (run.reason, run.verdict) {
        (Some(reason), _) => Expected::Drop(reason),
        (None, Returned::Redirect) => Expected::Path(Path::DecapAnchor),
        (None, _) => Expected::Path(Path::TunnelToStack),
    };
    hook::did(steps, Hook::FromTunnel, &run, &[expected]);
    match run.verdict {
        Returned::Drop => Ok(hook::dropped(Hook::FromTunnel, run.reason).device(link.name)),
        Returned::Redirect => deliver::to_address(site, steps, inner.dst, &run.packet),
        Returned::Pass | Returned::Other(_) => {
            stack::goes_on(site, steps, inner, &link.name, run.paths.contains(&Path::ReturnsToStack))
        }
    }
}

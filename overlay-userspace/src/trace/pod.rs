//! The first half: a packet that a pod sends, up to where it leaves the node or ends on it.

use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
    wire::PROTO_UDP,
};
use serde_json::json;

use super::{
    Asked, Half, Outcome, Report, Steps, TraceError, Verdict, Wire, deliver,
    hook::{self, Expected, Programs},
    mac,
    packet::{self, Inner},
    site::{Pod, Site},
    stack, tunnel,
};
use crate::{
    datapath::{pins::Pins, replica::Circumstances, run::Verdict as Returned},
    family::OfFamily as _,
};

/// Asks what becomes of the packet that the pod would send.
///
/// # Errors
///
/// An unknown pod, a packet that cannot be, no pins, missing rights.
pub fn from_pod(pins: &Pins, asked: &Asked) -> Result<Report, TraceError> {
    let mut site = Site::read(pins)?;
    let pod = site.pod_called(&asked.pod, asked.destination.family())?;
    let src = asked.from_address.unwrap_or(pod.addr);
    let frame = packet::craft(asked, (pod.endpoint.mac, pod.endpoint.gateway_mac), src)?;
    let inner =
        Inner::framed(&frame).ok_or_else(|| TraceError::Packet("the crafted packet is broken".into()))?;
    let mut steps = Steps::default();
    let mut wire = None;
    let verdict = decide(&mut site, &mut steps, &mut wire, &pod, &frame, &inner)?;
    Ok(Report {
        node: site.name(),
        half: Half::FromPod,
        packet: inner.text(),
        frame: packet::hex(&frame),
        steps: steps.0,
        verdict,
        wire,
    })
}

fn decide(
    site: &mut Site,
    steps: &mut Steps,
    wire: &mut Option<Wire>,
    pod: &Pod,
    frame: &[u8],
    inner: &Inner,
) -> Result<Verdict, TraceError> {
    let Some(link) = site.link(pod.endpoint.ifindex)? else {
        let text = if pod.endpoint.ifindex == 0 {
            format!("{} has its address, but no device yet", pod.text())
        } else {
            format!("the device #{} of {} is gone", pod.endpoint.ifindex, pod.text())
        };
        steps.add("sender", &text, pod.facts());
        return Ok(Verdict::new(Outcome::Refused, text)
            .remedy("wait for the runtime to finish the pod, or have it made anew"));
    };
    let facts = json!({ "endpoint": pod.facts(), "device": link.name, "mtu": link.mtu, "up": link.up });
    let own = format!("{} sends by {} with MAC {}", pod.text(), link.name, mac(pod.endpoint.mac));
    steps.add("sender", own, facts);
    if !link.up || !link.running {
        let state = if link.up { "has no carrier: its other end is gone or down" } else { "is down" };
        let text = format!("the device {} {state}: nothing comes from the pod", link.name);
        return Ok(Verdict::new(Outcome::Refused, text).device(&link.name).remedy("restart the pod"));
    }
    if u32::from(inner.len) > link.mtu {
        let text = format!(
            "{} bytes are more than the MTU {} of the pod's device: the pod's own kernel refuses the packet, which must not be fragmented",
            inner.len, link.mtu
        );
        steps.add("mtu", &text, json!({ "length": inner.len, "mtu": link.mtu }));
        return Ok(Verdict::new(Outcome::Refused, text).device(&link.name).remedy(
            "send no more than the MTU; what may be fragmented, the pod's kernel cuts before it sends",
        ));
    }
    let (attached, mut programs) = match hook::first(site, steps, &link, Hook::FromPod)? {
        Ok(found) => found,
        Err(verdict) => return Ok(verdict),
    };
    let expected = if spoofed(site, steps, pod, inner) {
        Expected::Drop(Reason::PodSourceAddress)
    } else {
        let returns = hook::flows(steps, &mut programs, inner)?;
        explain(site, steps, &programs, inner, returns)
    };
    let run = attached.ask(site, &mut programs, frame, Circumstances::default())?;
    // What cannot be encapsulated goes to the anchor device, which counts it; what does not fit is told so.
    let instead: &[_] = if expected == Expected::Path(Path::EncapNative) {
        &[Expected::Uncounted, Expected::Drop(Reason::PathMtu)]
    } else {
        &[]
    };
    let expected: Vec<_> = [expected].iter().chain(instead).copied().collect();
    hook::did(steps, Hook::FromPod, &run, &expected);
    match run.verdict {
        Returned::Redirect if run.reason == Some(Reason::PathMtu) => {
            tunnel::told(site, steps, &programs, &link, inner)
        }
        Returned::Drop => Ok(hook::dropped(Hook::FromPod, run.reason).device(link.name)),
        Returned::Pass | Returned::Other(_) => {
            stack::goes_on(site, steps, inner, &link.name, run.paths.contains(&Path::ReturnsToStack))
        }
        Returned::Redirect if run.paths.contains(&Path::Local) => {
            deliver::to_address(site, steps, inner.dst, &run.packet)
        }
        // Into the tunnel: by the program itself, or by way of the anchor device.
        Returned::Redirect => tunnel::sent(site, steps, wire, programs, &link, &run, inner),
    }
}

/// Is the source another's address?
fn spoofed(site: &Site, steps: &mut Steps, pod: &Pod, inner: &Inner) -> bool {
    let claimed = site.pod_at(inner.src);
    if claimed.as_ref().is_some_and(|claimed| claimed.endpoint.ifindex == pod.endpoint.ifindex) {
        let text = "source address and MAC are those of the sender's endpoint (ENDPOINTS)";
        steps.add("source", text, json!({ "endpoint": pod.facts() }));
        return false;
    }
    let whose =
        claimed.map_or_else(|| "of no pod here".to_owned(), |claimed| format!("that of {}", claimed.text()));
    let text = format!("the source {} is {whose}, and not the sender's {} (ENDPOINTS)", inner.src, pod.addr);
    steps.add("source", text, json!({ "claimed": inner.src, "own": pod.addr }));
    true
}

/// The further decisions of `from_pod`, in its order, on what they rest.
fn explain(site: &Site, steps: &mut Steps, programs: &Programs, inner: &Inner, returns: bool) -> Expected {
    let frozen = programs.frozen();
    let tunnel_port = inner.protocol == PROTO_UDP && inner.ports.1 == frozen.port();
    let to_stack = |steps: &mut Steps| {
        if tunnel_port {
            let text =
                format!("UDP port {} is the tunnel's, and the destination is no other pod", inner.ports.1);
            steps.add("tunnel port", text, json!({ "port": inner.ports.1 }));
            return Expected::Drop(Reason::PodTunnelPort);
        }
        Expected::Path(Path::PodToStack)
    };
    if returns {
        return to_stack(steps);
    }
    let dst = inner.dst;
    let expires = inner.ttl <= 1;
    if frozen.in_own_subnet(dst) {
        let Some(local) = site.pod_at(dst).filter(|local| local.endpoint.ifindex != 0) else {
            let text = format!("{dst} is in this node's subnet, but no pod has it (ENDPOINTS)");
            steps.add("destination", text, json!({ "own_subnet": true, "endpoint": null }));
            return to_stack(steps);
        };
        let text = format!("{dst} is {} on this node (ENDPOINTS)", local.text());
        steps.add("destination", text, json!({ "own_subnet": true, "endpoint": local.facts() }));
        if expires {
            steps.add("ttl", "TTL 1 ends here: the stack answers", json!({ "ttl": inner.ttl }));
            return Expected::Path(Path::PodToStack);
        }
        return Expected::Path(Path::Local);
    }
    let key = frozen.node_key(dst);
    let Some(peer) = site.peer_of(frozen, dst) else {
        if frozen.in_cluster(dst) {
            let nodes = site.node_count();
            let text = format!(
                "{dst} is in the cluster's range, but none of the {nodes} nodes has it (NODES has no {key})"
            );
            steps.add("destination", text, json!({ "in_cluster": true, "key": key, "node": null }));
            return Expected::Drop(Reason::NoNode);
        }
        let text = format!("{dst} is neither in the cluster's range nor a node (NODES has no {key})");
        steps.add("destination", text, json!({ "in_cluster": false, "key": key, "node": null }));
        return to_stack(steps);
    };
    let of = if frozen.in_cluster(dst) { "in the subnet of" } else { "an address of" };
    let text =
        format!("{dst} is {of} {} (NODES {key}/{})", site.node_text(peer.vtep()), peer.node.prefix_len);
    steps.add("destination", text, json!({ "in_cluster": frozen.in_cluster(dst), "node": peer.facts() }));
    if peer.is_own() {
        return to_stack(steps);
    }
    if !frozen.in_cluster(dst) {
        if tunnel_port {
            return to_stack(steps);
        }
        if frozen.nodes_masqueraded() {
            let text = "what pods send to nodes is masqueraded here (network.masquerade_to_nodes)";
            steps.add("masquerade", text, json!(null));
            return Expected::Path(Path::PodToStack);
        }
    }
    if expires {
        steps.add("ttl", "TTL 1 ends here: the stack answers", json!({ "ttl": inner.ttl }));
        return Expected::Path(Path::PodToStack);
    }
    Expected::Path(Path::EncapNative)
}

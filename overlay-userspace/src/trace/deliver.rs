//! A packet that a program puts into a pod's namespace.

use serde_json::json;

use super::{
    Outcome, Steps, TraceError, Verdict, mac,
    packet::Inner,
    site::{Pod, Site},
};

/// To the pod with this address, which was there a moment ago.
pub(super) fn to_address(
    site: &mut Site,
    steps: &mut Steps,
    addr: std::net::IpAddr,
    packet: &[u8],
) -> Result<Verdict, TraceError> {
    match site.pod_at(addr) {
        Some(pod) => to(site, steps, &pod, packet),
        None => Ok(Verdict::new(Outcome::Refused, "the destination has gone meanwhile: ask again")),
    }
}

/// Says to which pod, and whether its device is there and takes a packet of that length.
fn to(site: &mut Site, steps: &mut Steps, pod: &Pod, packet: &[u8]) -> Result<Verdict, TraceError> {
    let index = pod.endpoint.ifindex;
    let Some(link) = site.link(index)? else {
        let text = format!("the device #{index} of {} is gone: the redirect loses the packet", pod.text());
        steps.add("deliver", &text, pod.facts());
        return Ok(Verdict::new(Outcome::Refused, text).remedy(
            "the pod was not taken away in order: remove it with its runtime; `overlay status` of the agent reports leases without a device",
        ));
    };
    let len = Inner::framed(packet).map_or(0, |inner| u32::from(inner.len));
    let text = format!(
        "MACs {} -> {} for the last hop, TTL − 1, then bpf_redirect_peer through {} into the pod's namespace",
        mac(pod.endpoint.gateway_mac),
        mac(pod.endpoint.mac),
        link.name
    );
    let facts = json!({ "endpoint": pod.facts(), "device": link.name, "up": link.up, "running": link.running, "mtu": link.mtu, "length": len });
    steps.add("deliver", text, facts);
    if !link.up || !link.running {
        let state = if link.up { "has no carrier" } else { "is down" };
        return Ok(Verdict::new(
            Outcome::Refused,
            format!("the device {} of {} {state}", link.name, pod.text()),
        )
        .device(&link.name)
        .remedy("bring the device up, in the pod as well; or restart the pod"));
    }
    let text = format!("delivered to {} by device {}", pod.text(), link.name);
    Ok(Verdict { endpoint: Some(pod.addr), ..Verdict::new(Outcome::Delivered, text).device(link.name) })
}

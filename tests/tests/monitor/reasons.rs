//! Every reason for which the programs drop, produced for real: `monitor` says which, where, and of whom.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use overlay_common::reason::Reason;
use overlay_tests::lab::{Families, Node};
use overlay_tests::traffic::drops::Monitor;
use overlay_tests::traffic::inject::{inject, inject_refused, mac_of};
use overlay_tests::traffic::vxlan::{Tunnel, udp_frame};
use overlay_userspace::family::Family;
use serde_json::{Value, json};

use crate::bed::{Bed, NO_NODE, PORT, SOME_MAC, STRANGER, TUNNEL};

/// Not to be had without a kernel that runs out of memory, or a device that loses its mode: see the tests of the programs.
const OUT_OF_REACH: [Reason; 2] = [Reason::HeaderRoom, Reason::TunnelKey];

#[test]
#[expect(clippy::too_many_lines, reason = "a table of all reasons, each by what produces it")]
fn every_reason_is_seen_with_the_right_names() {
    let bed = Bed::of(Families::Dual);
    let (cp, w1, w2) = (bed.cp(), bed.w1(), bed.cluster.node("w2"));
    let (a, b, peer) = (bed.a.addr(), bed.b.addr(), bed.peer.addr());
    let (gateway, mac) = (bed.gateway_mac(), mac_of(bed.a.namespace(), "eth0"));
    let monitor = Monitor::start(cp);
    let mut seen = BTreeSet::new();

    let at = SocketAddrV4::new;
    let frame = |mac, from: Ipv4Addr, to: (Ipv4Addr, u16)| {
        udp_frame((mac, gateway), at(from, 4000), at(to.0, to.1), b"hello")
    };
    let of_type = |mut frame: Vec<u8>, ether_type: [u8; 2]| {
        frame[12..14].copy_from_slice(&ether_type);
        frame
    };
    let inner_arp = |tunnel: Tunnel| Tunnel { inner: of_type(tunnel.inner.clone(), [0x08, 0x06]), ..tunnel };
    let honest = || bed.tunnel(w1.address(), peer, a);

    // A path to `w2` that is narrower than the device; locked, or it would not count for what is forwarded.
    let far = w2.gateway_address();
    cp.namespace().ip(&format!("route add {}/32 via 192.0.2.1 mtu lock 1300", w2.address()));
    let [from, to] = [&bed.a, &bed.peer].map(|pod| match pod.addr_of(Family::Ipv6) {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => panic!("{address} is not IPv6"),
    });

    // From the pod: reason, frame, what the record says of it.
    let of_pod = |source: Ipv4Addr| json!({ "hook": "from_pod", "device_pod": "default/a", "source": source, "direction": "egress" });
    let spoofed =
        json!({ "source": b, "source_pod": "default/b", "device_pod": "default/a", "hook": "from_pod" });
    let nobodys =
        json!({ "hook": "from_pod", "device_pod": "default/a", "source": null, "source_pod": null });
    let to_no_node = json!({
        "hook": "from_pod", "source_pod": "default/a", "source_node": "cp", "source_port": 4000,
        "destination": NO_NODE, "destination_port": PORT, "destination_pod": null, "destination_node": null,
        "device": bed.a.host_device(), "protocol": 17, "summary": "UDP", "verdict": "DROPPED", "node": "cp",
    });
    for (reason, frame, said) in [
        (Reason::PodSourceAddress, frame(mac, b, (peer, PORT)), spoofed),
        (Reason::PodSourceMac, frame(SOME_MAC, a, (peer, PORT)), of_pod(a)),
        (Reason::PodTunnelPort, frame(mac, a, (cp.address(), TUNNEL)), json!({ "destination_node": "cp" })),
        (Reason::PodProtocol, of_type(frame(mac, a, (b, PORT)), [0x88, 0xcc]), nobodys),
        (
            Reason::Truncated,
            frame(mac, a, (b, PORT))[..30].to_vec(),
            json!({ "hook": "from_pod", "length": 30 }),
        ),
        (Reason::NoNode, frame(mac, a, (NO_NODE, PORT)), to_no_node),
        (
            Reason::PathMtu,
            udp_frame((mac, gateway), at(a, 4000), at(far, PORT), &[0; 1300]),
            json!({ "hook": "from_pod", "device_pod": "default/a", "destination": far, "destination_node": "w2" }),
        ),
        (
            Reason::PodRouter,
            ipv6_frame(mac, from, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 58, &[134; 16]),
            json!({ "hook": "from_pod", "device_pod": "default/a", "source": from }),
        ),
        (
            Reason::PodExtensions,
            ipv6_frame(
                mac,
                from,
                to,
                DESTINATION_OPTIONS,
                &[DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0].repeat(9),
            ),
            json!({ "hook": "from_pod", "device_pod": "default/a", "source": from }),
        ),
    ] {
        inject(bed.a.namespace(), "eth0", &[frame]);
        is_shown(&monitor, reason, &said);
        seen.insert(reason.name());
    }

    // From the wire.
    let by_w1 = |hook: &str| json!({ "hook": hook, "outer_source": w1.address(), "outer_source_node": "w1", "direction": "ingress" });
    let native = json!({
        "hook": "from_wire", "outer_source": STRANGER, "outer_source_node": null, "source_node": "w1",
        "destination_pod": "default/a", "device": Node::DEVICE, "device_pod": null, "source_port": 4000,
    });
    let plain =
        udp_frame((SOME_MAC, mac_of(cp.namespace(), Node::DEVICE)), at(peer, 4000), at(a, PORT), b"hello");
    for (reason, frame, said) in [
        (Reason::UnknownVtep, bed.tunnel(STRANGER, peer, a).encode(), native),
        (Reason::InnerSource, bed.tunnel(w1.address(), b, a).encode(), by_w1("from_wire")),
        (
            Reason::InnerDestination,
            bed.tunnel(w1.address(), peer, w2.gateway_address()).encode(),
            json!({ "hook": "from_tunnel", "device": Node::ANCHOR, "destination_node": "w2", "source_node": "w1" }),
        ),
        (Reason::InnerProtocol, inner_arp(honest()).encode(), by_w1("from_tunnel")),
        (Reason::Vni, Tunnel { vni: 2, ..honest() }.encode(), by_w1("from_tunnel")),
        (Reason::Ecn, Tunnel { tos: 3, ..honest() }.encode(), by_w1("from_wire")),
        (
            Reason::PodAddressOnWire,
            plain,
            json!({ "hook": "from_wire", "outer_source": null, "source_node": "w1" }),
        ),
    ] {
        inject(&bed.stranger, "eth0", &[frame]);
        is_shown(&monitor, reason, &said);
        seen.insert(reason.name());
    }

    // From the node itself.
    let free = Ipv4Addr::new(10, 244, 0, 200);
    for (reason, frame) in [
        (Reason::NoEndpoint, frame(gateway, cp.gateway_address(), (free, PORT))),
        (Reason::Multicast, frame(gateway, cp.gateway_address(), (Ipv4Addr::new(224, 0, 0, 1), PORT))),
        (Reason::HostProtocol, of_type(frame(gateway, cp.gateway_address(), (peer, PORT)), [0x88, 0xcc])),
    ] {
        inject_refused(cp.namespace(), Node::ANCHOR, &frame);
        is_shown(
            &monitor,
            reason,
            &json!({ "hook": "from_host", "device": Node::ANCHOR, "direction": "egress" }),
        );
        seen.insert(reason.name());
    }

    let all = Reason::ALL.into_iter().filter(|reason| !OUT_OF_REACH.contains(reason)).map(Reason::name);
    assert_eq!(seen, all.collect::<BTreeSet<_>>(), "a reason is not produced here");
}

/// The next header of an IPv6 header with destination options.
const DESTINATION_OPTIONS: u8 = 60;

/// An IPv6 packet to whoever hears it.
fn ipv6_frame(mac: [u8; 6], from: Ipv6Addr, to: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [[0x33, 0x33, 0, 0, 0, 1], mac].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, u8::try_from(payload.len()).unwrap(), next_header, 255]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(payload);
    frame
}

/// The next record is of this reason, and says all that.
#[track_caller]
fn is_shown(monitor: &Monitor, reason: Reason, said: &Value) {
    let records = monitor
        .take_until(reason.name(), |records| records.iter().any(|record| record["reason"] == reason.name()));
    let record = records.iter().find(|record| record["reason"] == reason.name()).expect("was found");
    assert_eq!(record["type"], "drop", "{record}");
    for (field, value) in said.as_object().expect("an object") {
        assert_eq!(&record[field], value, "{field} of {record}");
    }
}

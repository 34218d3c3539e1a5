//! Tunnel packets from the underlay, by every way into a node: natively, and through the anchor device, which gets
//! whatever `from_wire` leaves to the kernel or never sees.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use overlay_tests::lab::Node;
use overlay_tests::traffic::drops::{Drops, Paths};
use overlay_tests::traffic::forge::{fragmented, tagged, with_options};
use overlay_tests::traffic::inject::inject;
use overlay_tests::traffic::vxlan::Tunnel;
use overlay_tests::traffic::{ping, udp};

use crate::stage::{COUNT, DOCKER, MARK, NO_NODE, PORT, SECOND, SECOND_DEVICE, STRANGER, Stage, eventually};

/// How a tunnel packet comes into `cp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To the tunnel's address on the device with `from_wire`.
    Native,
    /// The same with IP options in the outer header.
    Options,
    /// The same in two fragments.
    Fragments,
    /// To another address of the node.
    SecondAddress,
    /// By a device without `from_wire`.
    SecondDevice,
}

impl Way {
    const ALL: [Self; 5] =
        [Self::Native, Self::Options, Self::Fragments, Self::SecondAddress, Self::SecondDevice];

    /// Sends a tunnel packet [`COUNT`] times.
    #[track_caller]
    fn send(self, stage: &Stage, tunnel: &Tunnel) {
        let mut tunnel = tunnel.clone();
        let mut device = "eth0";
        match self {
            Self::SecondAddress => tunnel.destination.set_ip(SECOND[0].into()),
            Self::SecondDevice => {
                device = SECOND_DEVICE;
                tunnel.macs.1 = stage.macs.second;
            }
            Self::Native | Self::Options | Self::Fragments => {}
        }
        let frame = tunnel.encode();
        let frames = match self {
            Self::Options => vec![with_options(&frame)],
            Self::Fragments => fragmented(&frame, 32).to_vec(),
            Self::Native | Self::SecondAddress | Self::SecondDevice => vec![frame],
        };
        inject(&stage.stranger, device, &vec![frames; COUNT].concat());
    }

    /// The program that sees to the sender first.
    fn hook(self, stage: &Stage) -> &'static str {
        if self == Self::Native { stage.first_hook() } else { "from_tunnel" }
    }

    /// The program that sees to what is in the tunnel.
    fn later_hook(self, stage: &Stage) -> &'static str {
        if self == Self::Native && stage.xdp.is_some() { "xdp_wire" } else { "from_tunnel" }
    }
}

/// What comes from `w1` as it should arrives, by the path that the way is about. Without this nothing below would
/// prove anything.
#[track_caller]
fn honest_packets_arrive(stage: &Stage, way: Way) {
    let (cp, pod) = (stage.cp(), &stage.pod);
    let w1 = stage.node("w1").address();
    let lookout = stage.watch();
    let drops = Drops::read(cp);
    let to_pod = if way == Way::Native { "decap_native" } else { "decap_anchor" };
    for (to, place, path) in [
        (pod.addr(), pod.namespace(), to_pod),
        (cp.address(), cp.namespace(), "tunnel_to_stack"),
        (cp.gateway_address(), cp.namespace(), "tunnel_to_stack"),
    ] {
        let paths = Paths::read(cp);
        for from in [stage.peer.addr(), w1] {
            let text = format!("honest from {from} to {to}");
            way.send(stage, &stage.tunnel(w1, from, to, &text));
            lookout.receives(place, &text, COUNT);
        }
        let expected = BTreeMap::from([(path.to_owned(), 2 * COUNT as u64)]);
        assert_eq!(Paths::read(cp).since(&paths), expected, "{way:?} to {to}");
    }
    lookout.saw_nothing();
    assert_eq!(Drops::read(cp).since(&drops), BTreeMap::new(), "{way:?}");
}

#[test]
fn forged_senders_are_refused_on_every_way_in() {
    forged_senders_are_refused(&Stage::new(), &Way::ALL);
}

/// Before there is an skb, counted and described as without XDP; what the guard does not see is refused as ever.
#[test]
fn forged_senders_are_refused_by_the_guard() {
    forged_senders_are_refused(&Stage::with(Some("guard")), &[Way::Native, Way::Options]);
}

#[track_caller]
fn forged_senders_are_refused(stage: &Stage, ways: &[Way]) {
    let (cp, w1, w2) = (stage.cp(), stage.node("w1"), stage.node("w2"));
    let (pod, peer, far, world) = (stage.pod.addr(), stage.peer.addr(), stage.far.addr(), stage.world());
    let router = Ipv4Addr::new(192, 0, 2, 1);
    let unknown = |outer, inner| (outer, inner, "unknown_vtep");
    let inner = |outer, inner| (outer, inner, "inner_source");
    let cases = [
        unknown(STRANGER, peer),
        unknown(STRANGER, STRANGER),
        unknown(STRANGER, w1.address()),
        unknown(STRANGER, pod),
        unknown(router, far),
        unknown(world, peer),
        // An address of a node, but not its tunnel's.
        unknown(SECOND[1], peer),
        // Another node's, this node's and its pods', nobody's, the world's.
        inner(w1.address(), far),
        inner(w1.address(), w2.address()),
        inner(w1.address(), w2.gateway_address()),
        inner(w1.address(), pod),
        inner(w1.address(), cp.address()),
        inner(w1.address(), cp.gateway_address()),
        inner(w1.address(), NO_NODE),
        inner(w1.address(), world),
        inner(w1.address(), STRANGER),
        inner(w1.address(), SECOND[1]),
        inner(w1.address(), Ipv4Addr::UNSPECIFIED),
        inner(w1.address(), Ipv4Addr::LOCALHOST),
        inner(w2.address(), peer),
        inner(cp.address(), pod),
        inner(cp.address(), cp.address()),
    ];
    let targets = [pod, cp.address(), cp.gateway_address()];
    for &way in ways {
        honest_packets_arrive(stage, way);
        let lookout = stage.watch();
        for (outer_source, inner_source, reason) in cases {
            // What claims to come from the node's own address the kernel itself drops as a martian.
            if outer_source == cp.address() && way != Way::Native {
                continue;
            }
            let what = format!("{MARK} {way:?} by {outer_source} in the name of {inner_source}");
            let send = || {
                for to in targets {
                    way.send(stage, &stage.tunnel(outer_source, inner_source, to, &what));
                }
            };
            let records = stage.dropped(&what, reason, targets.len() * COUNT, send);
            for (record, to) in records.iter().zip(targets.iter().flat_map(|to| [to; COUNT])) {
                assert_eq!(record["hook"], way.hook(stage), "{what}: {record}");
                assert_eq!(record["outer_source"], outer_source.to_string(), "{what}: {record}");
                assert_eq!(record["source"], inner_source.to_string(), "{what}: {record}");
                assert_eq!(record["destination"], to.to_string(), "{what}: {record}");
                assert_eq!(record["destination_port"], PORT, "{what}: {record}");
            }
        }
        lookout.saw_nothing();
    }
}

/// The inner frame with another EtherType and payload.
fn inner_of(stage: &Stage, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&stage.tunnel(STRANGER, STRANGER, STRANGER, "").inner[..12], &ether_type.to_be_bytes(), payload].concat()
}

#[test]
fn a_node_is_no_gateway_for_what_its_peers_send() {
    foreign_destinations_are_refused(&Stage::new(), &Way::ALL);
}

#[test]
fn the_guard_lets_nobody_through_to_somewhere_else() {
    foreign_destinations_are_refused(&Stage::with(Some("guard")), &[Way::Native, Way::Fragments]);
}

#[track_caller]
fn foreign_destinations_are_refused(stage: &Stage, ways: &[Way]) {
    let (w1, peer) = (stage.node("w1"), stage.peer.addr());
    let targets = [
        // Back to the sender, to a third node, to the world, to nobody.
        peer,
        w1.address(),
        stage.far.addr(),
        stage.node("w2").address(),
        stage.world(),
        STRANGER,
        NO_NODE,
        // Of the node, but not of the pod network.
        SECOND[0],
        DOCKER,
        Ipv4Addr::LOCALHOST,
        // To everybody.
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::UNSPECIFIED,
    ];
    for &way in ways {
        let lookout = stage.watch();
        for to in targets {
            let what = format!("{MARK} {way:?} to {to}");
            let tunnel = stage.tunnel(w1.address(), peer, to, &what);
            for record in stage.dropped(&what, "inner_destination", COUNT, || way.send(stage, &tunnel)) {
                assert_eq!(record["hook"], way.later_hook(stage), "{what}: {record}");
                assert_eq!(record["outer_source"], w1.address().to_string(), "{what}: {record}");
                assert_eq!(record["destination"], to.to_string(), "{what}: {record}");
            }
        }
        lookout.saw_nothing();
    }
}

#[test]
fn odd_tunnel_packets_are_refused_on_every_way_in() {
    odd_tunnel_packets_are_refused(&Stage::new(), &Way::ALL);
}

#[test]
fn odd_tunnel_packets_are_refused_by_the_guard() {
    odd_tunnel_packets_are_refused(&Stage::with(Some("guard")), &[Way::Native, Way::SecondAddress]);
}

#[track_caller]
fn odd_tunnel_packets_are_refused(stage: &Stage, ways: &[Way]) {
    let (w1, peer, pod) = (stage.node("w1").address(), stage.peer.addr(), stage.pod.addr());
    let honest = stage.tunnel(w1, peer, pod, &format!("{MARK} oddly"));
    let with_inner = |inner| Tunnel { inner, ..honest.clone() };
    let mut ipv6 = [0; 80];
    ipv6[0] = 0x60;
    let cases = [
        ("VNI 0", Tunnel { vni: 0, ..honest.clone() }, "vni"),
        ("VNI 2", Tunnel { vni: 2, ..honest.clone() }, "vni"),
        ("VNI 2^24-1", Tunnel { vni: 0xff_ffff, ..honest.clone() }, "vni"),
        ("ARP", with_inner(inner_of(stage, 0x0806, &[0; 28])), "inner_protocol"),
        ("IPv6", with_inner(inner_of(stage, 0x86dd, &ipv6)), "inner_protocol"),
        ("LLDP", with_inner(inner_of(stage, 0x88cc, &[0; 46])), "inner_protocol"),
        ("a VLAN", with_inner(tagged(&honest.inner, 7)), "inner_protocol"),
    ];
    for &way in ways {
        let lookout = stage.watch();
        for (what, tunnel, reason) in &cases {
            let what = format!("{way:?}: {what}");
            for record in stage.dropped(&what, reason, COUNT, || way.send(stage, tunnel)) {
                assert_eq!(record["hook"], way.later_hook(stage), "{what}: {record}");
                assert_eq!(record["outer_source"], w1.to_string(), "{what}: {record}");
            }
        }
        lookout.saw_nothing();
    }
}

/// Packets that the anchor device itself refuses, at `cp`, whatever their sender: it counts them as errors.
#[track_caller]
fn refused_by_the_kernel(stage: &Stage, what: &str, send: impl FnOnce()) {
    let cp = stage.cp();
    let errors = || {
        let link = cp.namespace().ip_json(&format!("-s link show dev {}", Node::ANCHOR));
        link[0]["stats64"]["rx"]["errors"].as_u64().expect("a device has statistics")
    };
    let (drops, expected) = (Drops::read(cp), errors() + COUNT as u64);
    send();
    assert_eq!(eventually(errors, |errors| *errors >= expected), expected, "{what}");
    assert_eq!(Drops::read(cp).since(&drops), BTreeMap::new(), "{what}");
}

#[test]
fn broken_tunnel_packets_are_refused_on_every_way_in() {
    const CE: u8 = 3;
    let stage = Stage::new();
    let w1 = stage.node("w1").address();
    let text = format!("{MARK} brokenly");
    let honest = stage.tunnel(w1, stage.peer.addr(), stage.pod.addr(), &text);
    // RFC 6040, 4.2: congestion was marked on what is not capable of it.
    let marked = Tunnel { tos: CE, ..honest.clone() };
    let short = Tunnel { inner: inner_of(&stage, 0x0800, &[0x45; 10]), ..honest };
    let lookout = stage.watch();
    for record in stage.dropped(&text, "ecn", COUNT, || Way::Native.send(&stage, &marked)) {
        assert_eq!(record["hook"], "from_wire", "{record}");
        assert_eq!(record["source"], stage.peer.addr().to_string(), "{record}");
    }
    for way in Way::ALL {
        if way != Way::Native {
            refused_by_the_kernel(&stage, &format!("{way:?}: congestion"), || way.send(&stage, &marked));
        }
        refused_by_the_kernel(&stage, &format!("{way:?}: half a header"), || way.send(&stage, &short));
    }
    lookout.saw_nothing();
}

#[test]
fn a_tunnel_packet_of_a_foreign_vlan_is_not_for_this_node() {
    let stage = Stage::new();
    let (w1, peer, pod) = (stage.node("w1").address(), &stage.peer, &stage.pod);
    let lookout = stage.watch();
    let foreign = stage.tunnel(w1, peer.addr(), pod.addr(), &format!("{MARK} in a VLAN"));
    let foreign = tagged(&foreign.encode(), 7);
    let own = stage.tunnel(w1, peer.addr(), pod.addr(), "honest without a VLAN").encode();
    let frames = [foreign.clone(), foreign, own];
    let before = Drops::read(stage.cp());
    inject(&stage.stranger, "eth0", &frames);
    // It was the last: the others have been seen to.
    lookout.receives(pod.namespace(), "honest without a VLAN", 1);
    lookout.saw_nothing();
    assert_eq!(Drops::read(stage.cp()).since(&before), BTreeMap::new());
}

#[test]
fn a_node_that_was_removed_is_refused_from_then_on() {
    let stage = Stage::new();
    let (cp, w1, pod, peer) = (stage.cp(), stage.node("w1"), &stage.pod, &stage.peer);
    let known = || {
        let nodes = cp.show("nodes");
        nodes.as_array().expect("a list").iter().any(|node| node["vtep"] == w1.address().to_string())
    };
    let all = stage.cluster.entries();
    let without: Vec<_> = all.iter().filter(|node| node.name != w1.name()).cloned().collect();
    // The node itself speaks to pods as their gateway does.
    let senders = [(peer.namespace(), peer.addr()), (w1.namespace(), w1.gateway_address())];
    for (place, address) in senders {
        let seen = udp::exchange(place, pod.namespace(), (pod.addr(), 0).into()).unwrap();
        assert_eq!(seen.server_saw.ip(), address);
    }

    stage.cluster.write_nodes(&without);
    assert!(!eventually(known, |known| !known), "cp knows w1 after it was removed");
    let lookout = stage.watch();
    for (place, address) in senders {
        // Without the mark: on the device of w1, which sends it, it may be seen.
        let text = format!("{address} is of a removed node");
        // w1 itself keeps the file's last version that it is in.
        let socket = udp::connected(place, (pod.addr(), PORT).into()).unwrap();
        let send = || (0..COUNT).for_each(|_| assert_eq!(socket.send(text.as_bytes()).unwrap(), text.len()));
        for record in stage.dropped(&text, "unknown_vtep", COUNT, send) {
            assert_eq!(record["outer_source"], w1.address().to_string(), "{record}");
            assert_eq!(record["source"], address.to_string(), "{record}");
        }
    }
    // Others are not touched.
    udp::exchange(stage.far.namespace(), pod.namespace(), (pod.addr(), 0).into()).unwrap();
    lookout.saw_nothing();

    stage.cluster.write_nodes(&all);
    assert!(eventually(known, |known| *known), "cp does not know w1 after it was added again");
    ping::ping(peer.namespace(), pod.addr().into()).unwrap();
}

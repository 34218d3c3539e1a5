//! The same refusals in the other family: IPv6 over IPv4, IPv4 over IPv6, IPv6 over IPv6; and pods that speak a family that they do not
//! have, or IPv6 in ways of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use overlay_tests::lab::{Cluster, Families, Namespace};
use overlay_tests::traffic::drops::Drops;
use overlay_tests::traffic::inject::{inject, mac_of};
use overlay_tests::traffic::vxlan::{Tunnel, udp_frame};
use overlay_tests::traffic::{any_port, ping, tcp, udp};
use overlay_userspace::family::Family;

use crate::stage::{COUNT, MARK, PORT, SOME_MAC, Stage, TUNNEL, eventually, no_node, stranger};

/// Inner and outer families of tunnel packets; the tests of [`crate::wire`] are about the fourth combination.
fn stages() -> impl Iterator<Item = (Stage, &'static [Family])> {
    [(Family::Ipv4, &[Family::Ipv6][..]), (Family::Ipv6, &Family::ALL)]
        .into_iter()
        .map(|(outer, inner)| (Stage::dual(outer, None), inner))
}

/// The family of the outer headers between nodes.
fn outer(stage: &Stage) -> Family {
    if stage.cluster.network().underlay.is_some() { Family::Ipv6 } else { Family::Ipv4 }
}

#[test]
fn forged_senders_are_refused_in_every_family() {
    for (stage, families) in stages() {
        let over = outer(&stage);
        let [w1, w2] = ["w1", "w2"].map(|node| stage.node(node).address_of(over));
        for &family in families {
            let [pod, peer, far] = [&stage.pod, &stage.peer, &stage.far].map(|pod| pod.addr_of(family));
            let lookout = stage.watch();
            let drops = Drops::read(stage.cp());
            for (to, place) in [
                (pod, stage.pod.namespace()),
                (stage.cp().gateway_of(family), stage.cp().namespace()),
                (stage.cp().address_of(family), stage.cp().namespace()),
            ] {
                let text = format!("honest {family} over {over} to {to}");
                let frame = stage.tunnel(w1, peer, to, &text).encode();
                inject(&stage.stranger, "eth0", &vec![frame; COUNT]);
                lookout.receives(place, &text, COUNT);
            }
            assert_eq!(Drops::read(stage.cp()).since(&drops), BTreeMap::new(), "{family} over {over}");

            let other_node = stage.node("w2").address_of(family);
            for (outer_source, inner_source, reason) in [
                (stranger(over), peer, "unknown_vtep"),
                (stranger(over), stranger(family), "unknown_vtep"),
                (w1, far, "inner_source"),
                (w1, pod, "inner_source"),
                (w1, other_node, "inner_source"),
                (w1, stage.node("w2").gateway_of(family), "inner_source"),
                (w1, stage.cp().gateway_of(family), "inner_source"),
                (w1, no_node(family), "inner_source"),
                (w1, stranger(family), "inner_source"),
                (w2, peer, "inner_source"),
            ] {
                let what = format!("{MARK} over {over} by {outer_source} in the name of {inner_source}");
                let frame = stage.tunnel(outer_source, inner_source, pod, &what).encode();
                let send = || inject(&stage.stranger, "eth0", &vec![frame; COUNT]);
                for record in stage.dropped(&what, reason, COUNT, send) {
                    assert_eq!(record["hook"], "from_wire", "{what}: {record}");
                    assert_eq!(record["outer_source"], outer_source.to_string(), "{what}: {record}");
                    assert_eq!(record["source"], inner_source.to_string(), "{what}: {record}");
                    assert_eq!(record["destination"], pod.to_string(), "{what}: {record}");
                    assert_eq!(record["destination_port"], PORT, "{what}: {record}");
                }
            }
            lookout.saw_nothing();
        }
    }
}

#[test]
fn a_node_is_no_gateway_in_any_family() {
    for (stage, families) in stages() {
        let w1 = stage.node("w1").address_of(outer(&stage));
        for &family in families {
            let peer = stage.peer.addr_of(family);
            let everybody: [IpAddr; 3] = match family {
                Family::Ipv4 => [[224, 0, 0, 1].into(), [255; 4].into(), [127, 0, 0, 1].into()],
                Family::Ipv6 => {
                    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                    [all_nodes, Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST].map(IpAddr::V6)
                }
            };
            let targets = [
                peer,
                stage.node("w1").address_of(family),
                stage.far.addr_of(family),
                stage.node("w2").address_of(family),
                stage.cluster.world().address_of(family),
                stranger(family),
                no_node(family),
            ];
            let lookout = stage.watch();
            for to in targets.into_iter().chain(everybody) {
                let what = format!("{MARK} to {to}");
                let frame = stage.tunnel(w1, peer, to, &what).encode();
                let send = || inject(&stage.stranger, "eth0", &vec![frame; COUNT]);
                stage.dropped(&what, "inner_destination", COUNT, send);
            }
            lookout.saw_nothing();
        }
    }
}

#[test]
fn a_pods_ipv6_address_is_refused_outside_of_the_tunnel() {
    for xdp in [None, Some("guard")] {
        let stage = Stage::dual(Family::Ipv4, xdp);
        let [pod, neighbour, peer] =
            [&stage.pod, &stage.neighbour, &stage.peer].map(|pod| pod.addr_of(Family::Ipv6));
        let lookout = stage.watch();
        for (from, to) in [
            (peer, pod),
            (peer, stage.cp().address_of(Family::Ipv6)),
            (peer, stage.cp().gateway_of(Family::Ipv6)),
            (neighbour, pod),
            (pod, peer),
            (pod, stage.cluster.world().address_of(Family::Ipv6)),
        ] {
            let what = format!("{MARK} from {from} to {to}");
            let (source, destination) = (SocketAddr::new(from, 1), SocketAddr::new(to, PORT));
            let frame = udp_frame((SOME_MAC, stage.macs.underlay), source, destination, what.as_bytes());
            let records = stage.dropped(&what, "pod_address_on_wire", COUNT, || {
                inject(&stage.stranger, "eth0", &vec![frame; COUNT]);
            });
            assert_eq!(records[0]["hook"], stage.first_hook());
            assert_eq!(records[0]["source"], from.to_string());
        }
        lookout.saw_nothing();
    }
}

/// The pod's link-local address.
#[track_caller]
fn link_local(namespace: &Namespace) -> Ipv6Addr {
    let devices = namespace.ip_json("-6 addr show dev eth0");
    let mut addresses = devices[0]["addr_info"].as_array().expect("a list of addresses").iter();
    let address =
        addresses.find(|address| address["scope"] == "link").expect("a pod has a link-local address");
    let address = address["local"].as_str().expect("an address");
    address.parse().expect("an address")
}

#[test]
fn a_pod_sends_ipv6_with_its_own_addresses_only() {
    let stage = Stage::dual(Family::Ipv6, None);
    let (namespace, family) = (stage.pod.namespace(), Family::Ipv6);
    let (own, mac) = (stage.pod.addr_of(family), mac_of(namespace, "eth0"));
    let lookout = stage.watch();
    let frame = |mac: [u8; 6], from: IpAddr, to: (IpAddr, u16), text: &str| {
        let (from, to) = (SocketAddr::new(from, 4000), SocketAddr::new(to.0, to.1));
        udp_frame((mac, stage.macs.gateway), from, to, text.as_bytes())
    };

    let before = Drops::read(stage.cp());
    for place in [&stage.neighbour, &stage.peer, &stage.far] {
        let text = format!("honest to {}", place.name());
        let honest = frame(mac, own, (place.addr_of(family), PORT), &text);
        inject(namespace, "eth0", &vec![honest; COUNT]);
        lookout.receives(place.namespace(), &text, COUNT);
    }
    assert_eq!(Drops::read(stage.cp()).since(&before), BTreeMap::new());

    let targets = [
        stage.neighbour.addr_of(family),
        stage.peer.addr_of(family),
        stage.far.addr_of(family),
        stage.cp().address_of(family),
        stage.cp().gateway_of(family),
        stage.node("w1").address_of(family),
        stage.cluster.world().address_of(family),
    ];
    let refused = |what: &str, reason: &str, frames: &[Vec<u8>]| {
        let send = || inject(namespace, "eth0", &[frames; COUNT].concat());
        for record in stage.dropped(what, reason, frames.len() * COUNT, send) {
            assert_eq!(record["hook"], "from_pod", "{what}: {record}");
        }
    };
    for source in [
        stage.neighbour.addr_of(family),
        stage.peer.addr_of(family),
        stage.cp().gateway_of(family),
        stage.cp().address_of(family),
        stage.node("w1").address_of(family),
        stage.cluster.world().address_of(family),
        stranger(family),
        no_node(family),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        // For neighbour discovery, not for traffic that is routed.
        IpAddr::V6(link_local(namespace)),
        IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99)),
    ] {
        let what = format!("{MARK} as {source}");
        refused(&what, "pod_source_address", &targets.map(|to| frame(mac, source, (to, PORT), &what)));
    }
    let theirs = mac_of(stage.neighbour.namespace(), "eth0");
    for foreign in [theirs, stage.macs.gateway, SOME_MAC] {
        let what = format!("{MARK} as {foreign:02x?}");
        refused(&what, "pod_source_mac", &targets.map(|to| frame(foreign, own, (to, PORT), &what)));
    }
    // This node's tunnel port, others', and anybody's behind the masquerade.
    for to in [
        stage.cp().address_of(family),
        stage.cp().gateway_of(family),
        stage.node("w1").address_of(family),
        stage.node("w2").address_of(family),
        stage.cluster.world().address_of(family),
        stranger(family),
    ] {
        let what = format!("{MARK} tunnel packet to {to}");
        refused(&what, "pod_tunnel_port", &[frame(mac, own, (to, TUNNEL), &what)]);
    }
    lookout.saw_nothing();
}

/// All nodes on a link (RFC 4291, 2.7.1), and their MAC.
const ALL_NODES: (Ipv6Addr, [u8; 6]) = (Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), [0x33, 0x33, 0, 0, 0, 1]);

/// A message of neighbour discovery in an Ethernet frame.
fn message(mac: [u8; 6], source: Ipv6Addr, to: (Ipv6Addr, [u8; 6]), kind: u8, rest: &[u8]) -> Vec<u8> {
    let (to, to_mac) = to;
    let header = etherparse::Icmpv6Type::Unknown { type_u8: kind, code_u8: 0, bytes5to8: [0; 4] };
    let header = etherparse::Icmpv6Header::with_checksum(header, source.octets(), to.octets(), rest);
    let header = header.expect("a short message");
    let ip = etherparse::Ipv6Header {
        // What neighbour discovery demands (RFC 4861, 6.1.2).
        hop_limit: 255,
        source: source.octets(),
        destination: to.octets(),
        payload_length: 8 + u16::try_from(rest.len()).expect("a short message"),
        next_header: etherparse::IpNumber::IPV6_ICMP,
        ..etherparse::Ipv6Header::default()
    };
    let mut frame = [&to_mac[..], &mac, &[0x86, 0xdd]].concat();
    ip.write(&mut frame).expect("a frame in memory can be written");
    header.write(&mut frame).expect("a frame in memory can be written");
    frame.extend_from_slice(rest);
    frame
}

#[test]
fn a_pod_is_no_router() {
    const ADVERTISEMENT: u8 = 134;
    const REDIRECT: u8 = 137;
    let stage = Stage::dual(Family::Ipv4, None);
    let (cp, namespace) = (stage.cp(), stage.pod.namespace());
    let (mac, source) = (mac_of(namespace, "eth0"), link_local(namespace));
    // A node that listens to everybody.
    let device = stage.pod.host_device();
    cp.namespace().sysctl(&format!("net/ipv6/conf/{device}/accept_ra"), "2");
    let routes = || cp.namespace().ip("-6 route show");
    let before = routes();
    // Reachable time and retransmission timer, which are not said; the prefix 2001:db8:bad::/64, for autoconfiguration.
    let mut advertisement = vec![0; 8];
    advertisement.extend([3, 4, 64, 0xc0, 0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    advertisement.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0).octets());
    for (what, kind, rest) in
        [("advertisement", ADVERTISEMENT, advertisement), ("redirect", REDIRECT, vec![0xfe; 32])]
    {
        let frame = message(mac, source, ALL_NODES, kind, &rest);
        stage.dropped(what, "pod_router", COUNT, || inject(namespace, "eth0", &vec![frame; COUNT]));
    }
    assert_eq!(routes(), before);
    // The node still answers.
    ping::ping(namespace, cp.gateway_of(Family::Ipv6)).unwrap();
}

/// A tunnel is no link: nodes know each other's MACs, and nobody asks or tells by it.
#[test]
fn neighbour_discovery_stays_out_of_the_tunnel() {
    const SOLICITATION: u8 = 135;
    const ADVERTISEMENT: u8 = 136;
    let family = Family::Ipv6;
    let v6 = |address: IpAddr| match address {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => panic!("{address} is not IPv6"),
    };
    for outer in Family::ALL {
        let stage = Stage::dual(outer, None);
        let w1 = stage.node("w1").address_of(outer);
        let [peer, pod, gateway] =
            [stage.peer.addr_of(family), stage.pod.addr_of(family), stage.cp().gateway_of(family)].map(v6);
        let on_link = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        let to_pod = (pod, stage.macs.gateway);
        let [.., a, b, c] = gateway.octets();
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
        let solicited = (group, [0x33, 0x33, 0xff, a, b, c]);
        let neighbours = || {
            let all = stage.pod.namespace().ip_json("-6 neigh show dev eth0");
            let all = all.as_array().expect("a list").iter();
            all.map(|entry| format!("{} {}", entry["dst"], entry["lladdr"])).collect::<BTreeSet<_>>()
        };
        let before = neighbours();
        for (what, source, to, kind, reason) in [
            ("asks a group", peer, solicited, SOLICITATION, "inner_destination"),
            ("asks whether it is taken", Ipv6Addr::UNSPECIFIED, solicited, SOLICITATION, "inner_source"),
            ("asks by its link", on_link, solicited, SOLICITATION, "inner_source"),
            ("tells everybody", peer, ALL_NODES, ADVERTISEMENT, "inner_destination"),
            ("tells a pod by its link", on_link, to_pod, ADVERTISEMENT, "inner_source"),
            ("tells a pod as its gateway", gateway, to_pod, ADVERTISEMENT, "inner_source"),
        ] {
            // The target, and the link-layer address of who says it.
            let option = [if kind == SOLICITATION { 1 } else { 2 }, 1];
            let rest = [&gateway.octets()[..], &option, &SOME_MAC].concat();
            let inner = message(SOME_MAC, source, to, kind, &rest);
            let frame = Tunnel { inner, ..stage.tunnel(w1, peer, pod, MARK) }.encode();
            let send = || inject(&stage.stranger, "eth0", &vec![frame; COUNT]);
            // What is for no pod may be for the node: that is decided behind the anchor device.
            let hook = if reason == "inner_source" { "from_wire" } else { "from_tunnel" };
            for record in stage.dropped(&format!("over {outer}: {what}"), reason, COUNT, send) {
                assert_eq!(record["hook"], hook, "over {outer}: {what}: {record}");
            }
        }
        assert_eq!(neighbours(), before, "over {outer}");
    }
}

#[test]
fn a_pod_without_ipv4_sends_neither_ipv4_nor_arp() {
    let cluster = Cluster::builder().families(Families::Ipv6).start();
    let [pod, other] = ["a", "b"].map(|name| cluster.add_pod("cp", name));
    let (cp, mac) = (cluster.node("cp"), mac_of(pod.namespace(), "eth0"));
    let gateway = mac_of(cp.namespace(), overlay_tests::lab::Node::ANCHOR);
    let (from, to): (SocketAddr, SocketAddr) =
        ("10.244.0.2:1".parse().unwrap(), "10.244.0.3:2".parse().unwrap());
    let mut arp = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac].concat();
    arp.extend([10, 244, 0, 2, 0, 0, 0, 0, 0, 0, 10, 244, 0, 1]);
    let drops = Drops::read(cp);
    for frame in [udp_frame((mac, gateway), from, to, b"of no family here"), arp] {
        inject(pod.namespace(), "eth0", &vec![frame; COUNT]);
    }
    let wanted = BTreeMap::from([("pod_protocol".to_owned(), 2 * COUNT as u64)]);
    let counted = eventually(|| Drops::read(cp).since(&drops), |counted| *counted == wanted);
    assert_eq!(counted, wanted);
    // IPv6 is what it has.
    let at = any_port(other.addr_of(Family::Ipv6));
    tcp::exchange(pod.namespace(), other.namespace(), at).unwrap();
    udp::exchange(pod.namespace(), other.namespace(), at).unwrap();
}

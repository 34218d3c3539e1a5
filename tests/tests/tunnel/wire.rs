//! What a tunnel packet looks like on the wire: to our own eyes, and to tcpdump's.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use overlay_tests::lab::{Cluster, Link, Network, Node, WireMode};
use overlay_tests::traffic::capture::{Capture, Frame};
use overlay_tests::traffic::inject::mac_of;
use overlay_tests::traffic::paths::Volumes;
use overlay_tests::traffic::vxlan::{FLAG_VNI, Tunnel};
use overlay_tests::traffic::{any_port, decode, ping, tcp, udp};
use overlay_userspace::cluster::vtep_mac;
use overlay_userspace::family::Family;

use crate::bed::{self, Bed};

/// The protocol number of UDP.
const UDP: u8 = 17;

/// TOS bytes, or traffic classes, that pings are sent with: none; EF with ECT(0); CS1 with ECT(1); CS5 with CE.
const TOS: [u8; 4] = [0, 0xba, 0x21, 0xa3];

/// ECN-capable and EF, as `tcpdump -v` writes it for each family.
const TOS_SEEN: [&str; 2] = ["tos 0xba,ECT(0)", "class 0xba"];

fn derived_mac(node: &Node) -> [u8; 6] {
    vtep_mac(node.addresses().values().copied().next().expect("a node has an address"))
}

/// TOS or traffic class of the IP packet in a frame.
fn tos_of(frame: &[u8]) -> u8 {
    match frame[14] >> 4 {
        4 => frame[15],
        _ => frame[14] << 4 | frame[15] >> 4,
    }
}

/// One end of the traffic: TCP, UDP, pings of every TOS, and, of IPv4, pings that only the kernel's path can carry, from the pod
/// on `cp` and from `cp` itself to the pod on `to`. Gives what arrives at `to` from `cp`.
#[track_caller]
fn frames_to(family: Family, bed: &Bed, to: &str) -> Vec<Frame> {
    let (cp, node, pod) = (bed.node("cp"), bed.node(to), bed.pod(to));
    let before = Volumes::read(cp);
    let capture = Capture::start(node.namespace(), Node::DEVICE);
    for from in [bed.pod("cp").namespace(), cp.namespace()] {
        tcp::exchange(from, pod.namespace(), any_port(pod.addr_of(family))).unwrap();
        udp::exchange(from, pod.namespace(), any_port(pod.addr_of(family))).unwrap();
        for tos in TOS.map(|tos| tos.to_string()) {
            // A packet with options is for the kernel to encapsulate.
            let arguments = [&["-Q", &tos][..], &["-Q", &tos, "-T", "tsonly"]];
            for arguments in arguments.iter().take(if family == Family::Ipv4 { 2 } else { 1 }) {
                let seen = ping::with(from, pod.addr_of(family), arguments).unwrap();
                assert!(matches!(seen, ping::Probe::Reply(_)), "{arguments:?}: {seen:?}");
            }
        }
    }
    let moved = Volumes::read(cp).since(&before);
    let paths = ["encap_native", "encap_anchor"];
    for path in paths.iter().take(if family == Family::Ipv4 { 2 } else { 1 }) {
        assert!(moved.get(path).packets >= 2 * TOS.len() as u64, "{path}: {moved:?}");
    }
    let frames = capture.stop().into_iter().filter(|frame| !frame.outgoing);
    // Besides them ARP or neighbour discovery, and nothing else.
    let ether_type = if bed.outer == Family::Ipv4 { [8, 0] } else { [0x86, 0xdd] };
    let frames = frames.filter(|frame| frame.bytes[12..14] == ether_type);
    frames.filter(|frame| bed.outer == Family::Ipv4 || frame.bytes[20] == UDP).collect()
}

/// Every frame is a tunnel packet from `cp` to `to`, as configured.
#[track_caller]
fn expect_tunnel(bed: &Bed, to: &str, frames: &[Frame]) {
    let Network { vni, port, .. } = *bed.cluster.network();
    let (cp, to) = (bed.node("cp"), bed.node(to));
    let mut tos_seen = BTreeSet::new();
    for frame in frames {
        let seen = Tunnel::decode(&frame.bytes).expect("a tunnel packet");
        let (version_and_length, inner_tos) = (seen.inner[14], tos_of(&seen.inner));
        // Options make it the kernel's packet, which does not copy CE but starts anew (RFC 3168, 9.1.1).
        let anew = version_and_length >> 4 == 4 && version_and_length != 0x45 && inner_tos & 3 == 3;
        let wanted = Tunnel {
            macs: (seen.macs.0, mac_of(to.namespace(), Node::DEVICE)),
            source: SocketAddr::new(cp.address_of(bed.outer), seen.source.port()),
            destination: SocketAddr::new(to.address_of(bed.outer), port),
            // The router takes one.
            ttl: if to.name() == "w1" { 64 } else { 63 },
            tos: if anew { inner_tos & !1 } else { inner_tos },
            dont_fragment: true,
            udp_checksum: 0,
            flags: FLAG_VNI,
            vni,
            inner: seen.inner.clone(),
        };
        assert_eq!(seen, wanted);
        assert_eq!(seen.inner[..6], derived_mac(to), "inner destination");
        assert_eq!(seen.inner[6..12], derived_mac(cp), "inner source");
        assert!(seen.source.port() >= 1024);
        tos_seen.insert(inner_tos);
    }
    assert!(TOS.iter().all(|tos| tos_seen.contains(tos)), "{tos_seen:x?}");
}

/// tcpdump, too, sees VXLAN, and inside of it what was sent.
#[track_caller]
fn expect_tcpdump_to_agree(family: Family, bed: &Bed, to: &str, frames: &[Frame]) {
    let Network { vni, port, .. } = *bed.cluster.network();
    let (cp, to) = (bed.node("cp"), bed.node(to));
    let lines = decode::vxlan(cp.namespace(), frames).unwrap();
    assert_eq!(lines.len(), frames.len(), "{lines:#?}");
    for line in &lines {
        let [from, to] = [cp, to].map(|node| node.address_of(bed.outer));
        let outer = (format!("{from}."), format!(" > {to}.{port}: "));
        assert!(line.contains(&outer.0) && line.contains(&outer.1), "{line}");
        assert!(line.contains(&format!("VXLAN, flags [I] (0x08), vni {vni} ")), "{line}");
        let header = ["flags [DF], proto UDP (17)", "next-header UDP (17)"][bed.outer.index()];
        assert!(line.contains(header), "{line}");
        assert!(!line.contains("bad cksum") && !line.contains("incorrect"), "{line}");
    }
    let seen = |line: &&String| {
        // The outer one is there in front of the inner one.
        let inner = line.rfind("vni").map_or("", |at| &line[at..]);
        line.contains(TOS_SEEN[bed.outer.index()]) && inner.contains(TOS_SEEN[family.index()])
    };
    // From pod and node, natively and, of IPv4, by the anchor.
    assert_eq!(lines.iter().filter(seen).count(), [4, 2][family.index()], "{lines:#?}");
    let echo = ["ICMP echo request", "ICMP6, echo request"][family.index()];
    for content in ["Flags [S]", echo] {
        assert!(lines.iter().any(|line| line.contains(content)), "no {content} in {lines:#?}");
    }
}

#[test]
fn wire_carries_vxlan_as_configured() {
    let _traffic = bed::quiet();
    for (vni, port) in [(1, 8472), (42, 4789)] {
        let network = Network { vni, port, ..Network::default() };
        // Without checksum offload: tcpdump checks what has to be on the wire.
        let link = Link { checksums: true, ..Link::default() };
        let bed = Bed::start(Cluster::builder().network(network).link(link));
        for node in bed.cluster.nodes() {
            let anchor = format!("overlay.{vni}");
            assert_eq!(mac_of(node.namespace(), &anchor), derived_mac(node), "{anchor} of {}", node.name());
        }
        for to in ["w1", "w2"] {
            let frames = frames_to(Family::Ipv4, &bed, to);
            expect_tunnel(&bed, to, &frames);
            expect_tcpdump_to_agree(Family::Ipv4, &bed, to, &frames);
        }
    }
}

#[test]
fn wire_carries_either_family_over_either_underlay() {
    let _traffic = bed::quiet();
    for (outer, families) in [(Family::Ipv4, &[Family::Ipv6][..]), (Family::Ipv6, &Family::ALL)] {
        let bed = Bed::dual(Link { checksums: true, ..Link::default() }, outer);
        for (family, to) in families.iter().flat_map(|family| ["w1", "w2"].map(|to| (*family, to))) {
            let frames = frames_to(family, &bed, to);
            expect_tunnel(&bed, to, &frames);
            expect_tcpdump_to_agree(family, &bed, to, &frames);
        }
    }
}

/// The outer source ports of the packets that arrive at `w1` while `send` runs.
#[track_caller]
fn source_ports(bed: &Bed, send: impl FnOnce(SocketAddr)) -> BTreeSet<u16> {
    let capture = Capture::start(bed.node("w1").namespace(), Node::DEVICE);
    send(any_port(bed.pod("w1").addr()));
    let frames = capture.stop().into_iter().filter(|frame| !frame.outgoing);
    frames.filter_map(|frame| Some(Tunnel::decode(&frame.bytes)?.source.port())).collect()
}

#[test]
fn flows_spread_over_dynamic_source_ports_and_each_keeps_its_own() {
    let _traffic = bed::quiet();
    for mode in WireMode::ALL {
        let bed = Bed::on(Link::new(mode));
        let (near, far) = (bed.pod("cp").namespace(), bed.pod("w1").namespace());
        let one = source_ports(&bed, |at| {
            assert!(tcp::bulk(near, far, at, 1).unwrap().intact());
        });
        assert_eq!(one.len(), 1, "{mode:?}: one flow has ports {one:?}");
        let many = source_ports(&bed, |at| {
            for _ in 0..32 {
                udp::exchange(near, far, at).unwrap();
            }
        });
        assert!(many.len() > 24, "{mode:?}: 32 flows have ports {many:?}");
        assert!(many.iter().chain(&one).all(|port| *port >= 49_152), "{many:?}");
    }
}

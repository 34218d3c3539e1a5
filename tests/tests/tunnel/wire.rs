//! What a tunnel packet looks like on the wire: to our own eyes, and to tcpdump's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use overlay_tests::lab::{Cluster, Link, Network, Node, WireMode};
use overlay_tests::traffic::capture::{Capture, Frame};
use overlay_tests::traffic::inject::mac_of;
use overlay_tests::traffic::paths::Volumes;
use overlay_tests::traffic::vxlan::{FLAG_VNI, Tunnel};
use overlay_tests::traffic::{decode, ping, tcp, udp};
use overlay_userspace::cluster::vtep_mac;

use crate::bed::{self, Bed, any_port};

/// TOS bytes that pings are sent with: none; EF with ECT(0); CS1 with ECT(1); CS5 with CE.
const TOS: [u8; 4] = [0, 0xba, 0x21, 0xa3];

/// ECN-capable and EF, as `tcpdump -v` writes it.
const TOS_SEEN: &str = "tos 0xba,ECT(0)";

fn derived_mac(node: &Node) -> [u8; 6] {
    vtep_mac(IpAddr::V4(node.address()))
}

/// One end of the traffic: TCP, UDP, pings of every TOS, and pings that only the kernel's path can carry, from the pod
/// on `cp` and from `cp` itself to the pod on `to`. Gives what arrives at `to` from `cp`.
#[track_caller]
fn frames_to(bed: &Bed, to: &str) -> Vec<Frame> {
    let (cp, node, pod) = (bed.node("cp"), bed.node(to), bed.pod(to));
    let before = Volumes::read(cp);
    let capture = Capture::start(node.namespace(), Node::DEVICE);
    for from in [bed.pod("cp").namespace(), cp.namespace()] {
        tcp::exchange(from, pod.namespace(), any_port(pod.addr())).unwrap();
        udp::exchange(from, pod.namespace(), any_port(pod.addr())).unwrap();
        for tos in TOS.map(|tos| tos.to_string()) {
            // A packet with options is for the kernel to encapsulate.
            for arguments in [&["-Q", &tos][..], &["-Q", &tos, "-T", "tsonly"]] {
                let seen = ping::with(from, IpAddr::V4(pod.addr()), arguments).unwrap();
                assert!(matches!(seen, ping::Probe::Reply(_)), "{arguments:?}: {seen:?}");
            }
        }
    }
    let moved = Volumes::read(cp).since(&before);
    for path in ["encap_native", "encap_anchor"] {
        assert!(moved.get(path).packets >= 2 * TOS.len() as u64, "{path}: {moved:?}");
    }
    let frames = capture.stop().into_iter().filter(|frame| !frame.outgoing);
    // Besides them ARP, and nothing else.
    frames.filter(|frame| frame.bytes[12..14] == [8, 0]).collect()
}

/// Every frame is a tunnel packet from `cp` to `to`, as configured.
#[track_caller]
fn expect_tunnel(bed: &Bed, to: &str, frames: &[Frame]) {
    let Network { vni, port, .. } = *bed.cluster.network();
    let (cp, to) = (bed.node("cp"), bed.node(to));
    let mut tos_seen = BTreeSet::new();
    for frame in frames {
        let seen = Tunnel::decode(&frame.bytes).expect("a tunnel packet");
        let [version_and_length, inner_tos] = [seen.inner[14], seen.inner[15]];
        // Options make it the kernel's packet, which does not copy CE but starts anew (RFC 3168, 9.1.1).
        let anew = version_and_length != 0x45 && inner_tos & 3 == 3;
        let wanted = Tunnel {
            macs: (seen.macs.0, mac_of(to.namespace(), Node::DEVICE)),
            source: std::net::SocketAddrV4::new(cp.address(), seen.source.port()),
            destination: std::net::SocketAddrV4::new(to.address(), port),
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
fn expect_tcpdump_to_agree(bed: &Bed, to: &str, frames: &[Frame]) {
    let Network { vni, port, .. } = *bed.cluster.network();
    let (cp, to) = (bed.node("cp"), bed.node(to));
    let lines = decode::vxlan(cp.namespace(), frames).unwrap();
    assert_eq!(lines.len(), frames.len(), "{lines:#?}");
    for line in &lines {
        let outer = (format!("{}.", cp.address()), format!(" > {}.{port}: ", to.address()));
        assert!(line.contains(&outer.0) && line.contains(&outer.1), "{line}");
        assert!(line.contains(&format!("VXLAN, flags [I] (0x08), vni {vni} ")), "{line}");
        assert!(line.contains("flags [DF], proto UDP (17)"), "{line}");
        assert!(!line.contains("bad cksum") && !line.contains("incorrect"), "{line}");
    }
    let marked = lines.iter().filter(|line| line.matches(TOS_SEEN).count() == 2);
    // From pod and node, natively and by the anchor.
    assert_eq!(marked.count(), 4, "{lines:#?}");
    for content in ["Flags [S]", "ICMP echo request"] {
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
            let frames = frames_to(&bed, to);
            expect_tunnel(&bed, to, &frames);
            expect_tcpdump_to_agree(&bed, to, &frames);
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

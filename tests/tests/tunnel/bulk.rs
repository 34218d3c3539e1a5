//! TCP bulk transfers between pods on different nodes. What makes them fast also is what breaks them: super-packets, and
//! checksums and segmentation left to somebody else.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::thread;

use etherparse::{SlicedPacket, TransportSlice};
use overlay_tests::lab::{Cluster, Link, Network, WireMode};
use overlay_tests::traffic::capture::{Capture, Frame};
use overlay_tests::traffic::paths::{Volume, Volumes};
use overlay_tests::traffic::vxlan::Tunnel;
use overlay_tests::traffic::{any_port, tcp};
use overlay_userspace::family::Family;

use crate::bed::{self, Bed};

/// The longest frame that the wire carries: MTU and Ethernet header.
const FULL_FRAME: usize = 1514;

/// The longest frame of a pod that fits into it: without what the tunnel adds.
fn full_inner_frame(bed: &Bed) -> u64 {
    FULL_FRAME as u64 - u64::from(bed.overhead())
}

/// What a transfer from the pod on `cp` to another pod has shown.
struct Transfer {
    /// What the two nodes' programs have counted: at the sender and at the receiver.
    sent: Volume,
    received: Volume,
    /// Length of each data frame as it crossed the router; none to `w1`, which is on the sender's LAN.
    wire: Vec<usize>,
}

/// Packets that are no part of any bulk transfer.
const FEW: u64 = 16;

/// As [`transfer_of`], of IPv4.
#[track_caller]
fn transfer(bed: &Bed, to: &str, mebibytes: u32) -> Transfer {
    transfer_of(Family::Ipv4, bed, to, mebibytes)
}

/// Moves `mebibytes` from the pod on `cp` to the one on `to`, and back. All has to arrive intact, and natively.
#[track_caller]
fn transfer_of(family: Family, bed: &Bed, to: &str, mebibytes: u32) -> Transfer {
    let nodes = [bed.node("cp"), bed.node(to)];
    let (near, far) = (bed.pod("cp"), bed.pod(to));
    let before = nodes.map(Volumes::read);
    let capture = Capture::start(bed.cluster.router(), "lan-a");
    let bulk =
        tcp::bulk(near.namespace(), far.namespace(), any_port(far.addr_of(family)), mebibytes).unwrap();
    assert!(bulk.intact(), "{bulk:?}");
    let frames = capture.stop();
    let [at_sender, at_receiver] = [0, 1].map(|end| Volumes::read(nodes[end]).since(&before[end]));

    let bulk =
        tcp::bulk(far.namespace(), near.namespace(), any_port(near.addr_of(family)), mebibytes).unwrap();
    assert!(bulk.intact(), "{bulk:?}");
    for (node, before) in nodes.into_iter().zip(&before) {
        let moved = Volumes::read(node).since(before);
        for path in ["encap_anchor", "decap_anchor", "pod_to_stack", "stack_to_pod", "tunnel_to_stack"] {
            let seen = moved.get(path);
            // Of IPv6 the kernels of pod and node tell each other now and then which groups they listen to (MLD).
            let groups = ["pod_to_stack", "stack_to_pod"].contains(&path) && near.addrs().v6.is_some();
            let allowed = if groups { FEW } else { 0 };
            assert!(seen.packets <= allowed, "{path} of {}: {seen:?}", node.name());
        }
        for path in ["encap_native", "decap_native"] {
            assert!(moved.get(path).bytes > u64::from(mebibytes) << 20, "{path}: {moved:?}");
        }
    }
    bed.expect_no_checksum_errors();
    Transfer {
        sent: at_sender.get("encap_native"),
        received: at_receiver.get("decap_native"),
        wire: frames
            .iter()
            .filter(|frame| !frame.outgoing && is_tcp_data(frame))
            .map(|f| f.bytes.len())
            .collect(),
    }
}

/// A tunnel packet with TCP payload.
fn is_tcp_data(frame: &Frame) -> bool {
    let Some(tunnel) = Tunnel::decode(&frame.bytes) else { return false };
    let packet = SlicedPacket::from_ethernet(&tunnel.inner);
    matches!(packet.map(|packet| packet.transport),
        Ok(Some(TransportSlice::Tcp(tcp))) if !tcp.payload().is_empty())
}

#[test]
fn veth_wire_carries_bulk_as_super_packets_encapsulated_and_decapsulated_natively() {
    let _traffic = bed::flood();
    let bed = Bed::on(Link::new(WireMode::Veth));
    let routed = transfer(&bed, "w2", 8);
    let longest = routed.wire.iter().max().copied().unwrap();
    assert!(longest > 8 * FULL_FRAME, "the longest of {} frames has {longest} bytes", routed.wire.len());
    for seen in [routed, transfer(&bed, "w1", 8)] {
        for volume in [seen.sent, seen.received] {
            assert!(volume.mean() > 8 * full_inner_frame(&bed), "{volume:?}");
        }
    }
}

/// On a wire like a NIC's: the sender's device cuts what the programs encapsulated, and GRO of the receiver's device puts
/// it together before the programs see it.
#[track_caller]
fn expect_segments_that_merge(bed: &Bed) {
    let routed = transfer(bed, "w2", 8);
    assert_eq!(routed.wire.iter().max(), Some(&FULL_FRAME));
    let (segments, merged) = (routed.wire.len() as u64, routed.received.packets);
    assert!(merged * 2 < segments, "{segments} segments became {merged} packets");
    for seen in [routed, transfer(bed, "w1", 8)] {
        for volume in [seen.sent, seen.received] {
            assert!(volume.mean() > 2 * full_inner_frame(bed), "{volume:?}");
        }
    }
}

#[test]
fn nic_wire_carries_bulk_as_segments_that_the_receiver_merges() {
    let _traffic = bed::flood();
    expect_segments_that_merge(&Bed::on(Link::new(WireMode::Nic)));
}

#[test]
fn nic_wire_without_checksum_offload_carries_bulk_with_right_checksums() {
    let _traffic = bed::flood();
    expect_segments_that_merge(&Bed::on(Link { checksums: true, ..Link::new(WireMode::Nic) }));
}

#[test]
fn veth_wire_without_checksum_offload_carries_bulk_with_right_checksums() {
    let _traffic = bed::flood();
    let bed = Bed::on(Link { checksums: true, ..Link::new(WireMode::Veth) });
    for to in ["w2", "w1"] {
        let seen = transfer(&bed, to, 8);
        // The programs see super-packets of the pod; without checksum offload its node's device has to cut them.
        assert!(seen.sent.mean() > 2 * full_inner_frame(&bed), "{:?}", seen.sent);
        let longest = seen.wire.iter().max().copied();
        assert_eq!(longest, (to == "w2").then_some(FULL_FRAME));
    }
}

/// What carries more than usual is used in full, in every family.
#[test]
fn jumbo_wire_carries_bulk_as_segments_that_fill_it() {
    let _traffic = bed::flood();
    let link = Link { mtu: 9000, ..Link::new(WireMode::Nic) };
    for outer in Family::ALL {
        let bed = Bed::dual(link, outer);
        for family in Family::ALL {
            let longest = transfer_of(family, &bed, "w2", 4).wire.into_iter().max();
            assert_eq!(longest, Some(9014), "{family} over {outer}");
        }
    }
}

/// With XDP, a veth's other end cuts super-packets, and the receiver merges only where GRO is on.
#[test]
fn bulk_arrives_intact_through_xdp() {
    let _traffic = bed::flood();
    let network = Network { xdp: Some("guard".into()), ..Network::default() };
    for link in [Link::new(WireMode::Veth), Link { checksums: true, ..Link::new(WireMode::Nic) }] {
        let bed = Bed::start(Cluster::builder().link(link).network(network.clone()));
        let seen = transfer(&bed, "w2", 4);
        match link.mode {
            WireMode::Veth => assert!(seen.received.mean() <= full_inner_frame(&bed), "{:?}", seen.received),
            WireMode::Nic => {
                let (segments, merged) = (seen.wire.len() as u64, seen.received.packets);
                assert!(merged * 2 < segments, "{segments} segments became {merged} packets");
            }
        }
    }
}

/// Both families over IPv6, and IPv6 over IPv4, as in the tests before.
#[test]
fn bulk_of_every_family_goes_over_an_underlay_of_either() {
    let _traffic = bed::flood();
    for (mode, outer, families) in [
        (WireMode::Veth, Family::Ipv6, &Family::ALL[..]),
        (WireMode::Nic, Family::Ipv6, &Family::ALL),
        (WireMode::Veth, Family::Ipv4, &[Family::Ipv6]),
        (WireMode::Nic, Family::Ipv4, &[Family::Ipv6]),
    ] {
        // On the wire like a NIC's all checksums are there, to be looked at.
        let bed = Bed::dual(Link { checksums: mode == WireMode::Nic, ..Link::new(mode) }, outer);
        for family in families {
            let what = format!("{family} over {outer}, {mode:?}");
            let seen = transfer_of(*family, &bed, "w2", 8);
            let longest = seen.wire.iter().max().copied().unwrap();
            let many = match mode {
                WireMode::Veth => {
                    assert!(longest > 8 * FULL_FRAME, "{what}: the longest frame has {longest} bytes");
                    8
                }
                WireMode::Nic => {
                    assert_eq!(longest, FULL_FRAME, "{what}");
                    let (segments, merged) = (seen.wire.len() as u64, seen.received.packets);
                    assert!(merged * 2 < segments, "{what}: {segments} segments became {merged} packets");
                    2
                }
            };
            for volume in [seen.sent, seen.received] {
                assert!(volume.mean() > many * full_inner_frame(&bed), "{what}: {volume:?}");
            }
        }
    }
}

/// What a TCP socket knows of its connection.
#[track_caller]
fn info(socket: &TcpStream) -> libc::tcp_info {
    // SAFETY: tcp_info is plain integers, for which all zeroes is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: the buffer is valid for the length given, during the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut info).cast(), &raw mut len) };
    assert_eq!(result, 0, "TCP_INFO: {}", std::io::Error::last_os_error());
    info
}

/// TCP measures the segments of what it receives by what the kernel has noted of a super-packet. That has to be the size
/// before the tunnel's headers came and after they went.
#[test]
fn receiver_measures_the_segments_that_the_sender_made() {
    let _traffic = bed::flood();
    for mode in WireMode::ALL {
        let bed = Bed::on(Link::new(mode));
        let (near, far) = (bed.pod("cp"), bed.pod("w1"));
        let at = any_port(far.addr());
        // Below what the receiver has offered, to which the kernel would limit its measure.
        let gateway = bed.node("cp").gateway_address();
        near.namespace().ip(&format!("route add {} via {gateway} dev eth0 onlink mtu 1200", far.addr()));
        let (near, far) = tcp::connect(near.namespace(), far.namespace(), at, at).unwrap();
        let payload = vec![0x5a; 1 << 20];
        let received = thread::scope(|scope| {
            scope.spawn(|| (&near).write_all(&payload).unwrap());
            let mut received = vec![0; payload.len()];
            (&far).read_exact(&mut received).unwrap();
            received
        });
        assert!(received == payload, "{mode:?}: the payload has changed");
        let (sent, measured) = (info(&near).tcpi_snd_mss, info(&far).tcpi_rcv_mss);
        // Less the headers of IPv4 and TCP and the time stamp option.
        assert_eq!((sent, measured), (1148, 1148), "{mode:?}");
    }
}

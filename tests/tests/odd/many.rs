//! Multicast and broadcast: a pod's link ends at its node, and the tunnel carries none of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use overlay_tests::lab::Node;
use overlay_tests::traffic::drops::{Drops, Paths};
use overlay_tests::traffic::inject::{inject, mac_of};
use overlay_tests::traffic::vxlan::{FLAG_VNI, Tunnel, udp_frame};
use overlay_tests::traffic::watch::Watch;
use overlay_tests::traffic::{any_port, udp};
use overlay_userspace::family::Family;

use crate::bed::{Bed, eventually};

const MARK: &str = "to many";

/// Groups and broadcast addresses, with the MAC of each (RFC 1112, 6.4; RFC 2464, 7).
fn groups(bed: &Bed) -> Vec<(IpAddr, [u8; 6])> {
    let [a, b, c, _] = bed.pod.addr_of(Family::Ipv4).to_string().parse::<Ipv4Addr>().unwrap().octets();
    let v4 = [[224, 0, 0, 1], [224, 0, 0, 251], [239, 1, 2, 3], [255, 255, 255, 255], [a, b, c, 255]];
    let v4 = v4.map(|octets| {
        let [_, b, c, d] = octets;
        let group = octets[0] & 0xf0 == 224;
        (Ipv4Addr::from(octets).into(), if group { [1, 0, 0x5e, b & 0x7f, c, d] } else { [0xff; 6] })
    });
    let v6 = ["ff02::1", "ff02::fb", "ff05::2", "ff0e::1:2:3"].map(|text| {
        let group: Ipv6Addr = text.parse().unwrap();
        let [.., a, b, c, d] = group.octets();
        (group.into(), [0x33, 0x33, a, b, c, d])
    });
    v4.into_iter().chain(v6).collect()
}

#[test]
fn what_a_pod_sends_to_many_stays_on_its_node() {
    const COUNT: usize = 3;
    let bed = Bed::new();
    let (source, gateway) = bed.macs();
    let mut watch = Watch::default().sent(bed.cp().namespace(), Node::DEVICE);
    watch = watch.sent(bed.cp().namespace(), Node::ANCHOR).received(bed.near.namespace(), "eth0");
    let (drops, paths) = (bed.drops(), Paths::read(bed.cp()));
    let groups = groups(&bed);
    for (group, mac) in &groups {
        // By the group's MAC, and to the gateway as if it were a host.
        for to in [*mac, gateway] {
            let mut packet = bed.datagram(SocketAddr::new(*group, 9), MARK.as_bytes());
            packet.macs = (source, to);
            bed.send(&vec![packet.frame(); COUNT]);
        }
    }
    let sent = (groups.len() * 2 * COUNT) as u64;
    let to_stack = || Paths::read(bed.cp()).since(&paths).get("pod_to_stack").copied().unwrap_or(0);
    assert!(eventually(to_stack, |count| *count >= sent) >= sent, "{} of {sent}", to_stack());
    udp::exchange(bed.pod.namespace(), bed.near.namespace(), any_port(bed.near.addr_of(Family::Ipv4)))
        .unwrap();
    assert_eq!(watch.seen(MARK), Vec::<String>::new());
    bed.expect_no_drops(&drops, "to many");
}

/// The broadcast address of the whole cluster range is an address of no node.
#[test]
fn an_address_of_no_node_is_dropped_under_its_reason() {
    let bed = Bed::new();
    let to = SocketAddr::new(Ipv4Addr::new(10, 244, 255, 255).into(), 9);
    let frame = bed.datagram(to, MARK.as_bytes()).frame();
    bed.dropped("the range's last address", "no_node", 3, || bed.send(&vec![frame; 3]));
}

#[test]
fn what_a_node_sends_to_many_into_the_tunnel_is_counted() {
    let bed = Bed::new();
    let cp = bed.cp();
    let anchor = cp.namespace().ip_json(&format!("link show dev {}", Node::ANCHOR))[0]["ifindex"].as_u64();
    let anchor = u32::try_from(anchor.unwrap()).unwrap();
    let socket = |local: IpAddr| {
        let socket = udp::bind(cp.namespace(), any_port(local)).unwrap();
        socket.set_broadcast(true).unwrap();
        setsockopt(&socket, BindToDevice, &Node::ANCHOR.into()).unwrap();
        socket
    };
    let (v4, v6) = (socket(cp.gateway_of(Family::Ipv4)), socket(Ipv6Addr::UNSPECIFIED.into()));
    for (group, _) in groups(&bed) {
        if cp.subnet_of(Family::Ipv4).contains(&group) {
            continue;
        }
        let before = Drops::read(cp);
        match group {
            IpAddr::V4(_) => v4.send_to(MARK.as_bytes(), (group, 9)).unwrap(),
            IpAddr::V6(group) => v6.send_to(MARK.as_bytes(), SocketAddrV6::new(group, 9, 0, anchor)).unwrap(),
        };
        // The kernel's own (listener reports) may add to that.
        let counted = || Drops::read(cp).since(&before).get("multicast").copied().unwrap_or(0);
        assert!(eventually(counted, |count| *count > 0) > 0, "{group}: {:?}", Drops::read(cp).since(&before));
    }
}

/// No peer may send to many by the tunnel either.
#[test]
fn what_comes_out_of_the_tunnel_is_for_one() {
    let bed = Bed::new();
    let (cp, w1) = (bed.cp(), bed.cluster.node("w1"));
    let macs = (mac_of(w1.namespace(), Node::DEVICE), mac_of(cp.namespace(), Node::DEVICE));
    let inner = (mac_of(w1.namespace(), Node::ANCHOR), mac_of(cp.namespace(), Node::ANCHOR));
    for family in Family::ALL {
        let groups =
            groups(&bed).into_iter().filter(|(group, _)| group.is_ipv4() == (family == Family::Ipv4));
        // The last address of the node's own subnet is like any other that no pod has.
        let groups = groups.filter(|(group, _)| !cp.subnet_of(family).contains(group));
        for (group, _) in groups {
            let source = SocketAddr::new(bed.peer.addr_of(family), 7);
            let frame = udp_frame(inner, source, SocketAddr::new(group, 9), MARK.as_bytes());
            let tunnel = Tunnel {
                macs,
                source: SocketAddr::new(w1.address().into(), 50_000),
                destination: SocketAddr::new(cp.address().into(), 8472),
                ttl: 64,
                tos: 0,
                dont_fragment: true,
                udp_checksum: 0,
                flags: FLAG_VNI,
                vni: 1,
                inner: frame,
            };
            let before = Drops::read(cp);
            inject(w1.namespace(), Node::DEVICE, &[tunnel.encode()]);
            let wanted = BTreeMap::from([("inner_destination".to_owned(), 1)]);
            let counted = eventually(|| Drops::read(cp).since(&before), |counted| *counted == wanted);
            assert_eq!(counted, wanted, "{group}");
        }
    }
}

//! Packets that a pod makes itself, with packet sockets of its own or with addresses that it gave itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};

use overlay_tests::lab::Namespace;
use overlay_tests::traffic::drops::Drops;
use overlay_tests::traffic::forge::{fragmented, tagged, with_options};
use overlay_tests::traffic::inject::{inject, mac_of};
use overlay_tests::traffic::vxlan::{FLAG_VNI, udp_frame};
use overlay_tests::traffic::{ping, tcp, udp};

use crate::stage::{
    COUNT, DOCKER, MARK, NO_NODE, PORT, SECOND, SOME_MAC, STRANGER, Stage, TUNNEL, eventually,
};

/// The device of a pod.
const DEVICE: &str = "eth0";

/// A pod on `cp` that means no good.
struct Attacker<'a> {
    stage: &'a Stage,
    namespace: &'a Namespace,
    address: Ipv4Addr,
    mac: [u8; 6],
}

impl<'a> Attacker<'a> {
    fn new(stage: &'a Stage) -> Self {
        let namespace = stage.pod.namespace();
        Self { stage, namespace, address: stage.pod.addr(), mac: mac_of(namespace, DEVICE) }
    }

    /// A datagram as its stack would send it, but for the source.
    fn frame(&self, source_mac: [u8; 6], source: Ipv4Addr, to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
        let (source, to) = (SocketAddrV4::new(source, 4000), SocketAddrV4::new(to.0, to.1));
        udp_frame((source_mac, self.stage.macs.gateway), source, to, payload)
    }

    /// Sends frames, each [`COUNT`] times.
    #[track_caller]
    fn inject(&self, frames: &[Vec<u8>]) {
        inject(self.namespace, DEVICE, &[frames; COUNT].concat());
    }

    /// One of each kind of place that a pod can send to.
    fn targets(&self) -> [Ipv4Addr; 7] {
        let stage = self.stage;
        [
            stage.neighbour.addr(),
            stage.peer.addr(),
            stage.far.addr(),
            stage.cp().address(),
            stage.cp().gateway_address(),
            stage.node("w1").address(),
            stage.world(),
        ]
    }

    /// Sends frames from `cp` that have to be dropped for `reason`; checks who is named in the records.
    #[track_caller]
    fn refused(&self, what: &str, reason: &str, source: Option<IpAddr>, frames: &[Vec<u8>]) {
        let records = self.stage.dropped(what, reason, frames.len() * COUNT, || self.inject(frames));
        let device = self.stage.pod.host_device();
        let link = self.stage.cp().namespace().ip_json(&format!("link show dev {device}"));
        for record in records {
            assert_eq!(record["hook"], "from_pod", "{what}: {record}");
            assert_eq!(record["ifindex"], link[0]["ifindex"], "{what}: {record}");
            let named = source.map_or(serde_json::Value::Null, |source| source.to_string().into());
            assert_eq!(record["source"], named, "{what}: {record}");
        }
    }
}

#[test]
fn a_pod_sends_with_its_own_addresses_only() {
    let stage = Stage::new();
    let attacker = Attacker::new(&stage);
    let lookout = stage.watch();

    // With its own it reaches everybody.
    let before = Drops::read(stage.cp());
    for (place, to) in [(&stage.neighbour, "neighbour"), (&stage.peer, "peer"), (&stage.far, "far")] {
        let text = format!("honest to {to}");
        let frame = attacker.frame(attacker.mac, attacker.address, (place.addr(), PORT), text.as_bytes());
        attacker.inject(&[frame]);
        lookout.receives(place.namespace(), &text, COUNT);
    }
    assert_eq!(Drops::read(stage.cp()).since(&before), BTreeMap::new());

    let foreign = [
        stage.neighbour.addr(),
        stage.peer.addr(),
        stage.cp().gateway_address(),
        stage.cp().address(),
        stage.node("w1").address(),
        stage.world(),
        STRANGER,
        NO_NODE,
        DOCKER,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::BROADCAST,
    ];
    for source in foreign {
        let what = format!("{MARK} as {source}");
        let frames =
            attacker.targets().map(|to| attacker.frame(attacker.mac, source, (to, PORT), what.as_bytes()));
        attacker.refused(&what, "pod_source_address", Some(source.into()), &frames);
    }
    let theirs = mac_of(stage.neighbour.namespace(), DEVICE);
    for mac in [theirs, stage.macs.gateway, SOME_MAC, [0; 6], [0xff; 6]] {
        let what = format!("{MARK} as {mac:02x?}");
        let frames =
            attacker.targets().map(|to| attacker.frame(mac, attacker.address, (to, PORT), what.as_bytes()));
        attacker.refused(&what, "pod_source_mac", Some(attacker.address.into()), &frames);
    }
    lookout.saw_nothing();
}

#[test]
fn an_address_that_a_pod_gives_itself_is_of_no_use() {
    let stage = Stage::new();
    let attacker = Attacker::new(&stage);
    let lookout = stage.watch();
    let targets = attacker.targets();
    let send = |from: Ipv4Addr, text: &str| {
        let socket = attacker.namespace.run(|| UdpSocket::bind((from, 0))).unwrap();
        // What it sends to an address that it has itself stays inside of the pod.
        for to in targets.into_iter().filter(|to| *to != from).flat_map(|to| [to; COUNT]) {
            assert_eq!(socket.send_to(text.as_bytes(), (to, PORT)).unwrap(), text.len());
        }
    };
    for foreign in [stage.world(), SECOND[1], Ipv4Addr::new(10, 244, 1, 200), Ipv4Addr::new(10, 244, 0, 200)]
    {
        attacker.namespace.ip(&format!("addr add {foreign}/32 dev {DEVICE}"));
        let what = format!("{MARK} as {foreign}");
        let count = targets.iter().filter(|to| **to != foreign).count() * COUNT;
        let records = stage.dropped(&what, "pod_source_address", count, || send(foreign, &what));
        assert!(records.iter().all(|record| record["source"] == foreign.to_string()), "{records:?}");
        attacker.namespace.ip(&format!("addr del {foreign}/32 dev {DEVICE}"));
    }

    attacker.namespace.ip(&format!("link set dev {DEVICE} address 02:00:00:00:00:99"));
    // The kernel forgets the neighbours of a device whose MAC changes.
    let gateway = stage.cp().gateway_address();
    attacker
        .namespace
        .ip(&format!("neigh replace {gateway} lladdr {} dev {DEVICE} nud permanent", stage.cp().vtep_mac()));
    let what = format!("{MARK} with another MAC");
    stage.dropped(&what, "pod_source_mac", targets.len() * COUNT, || send(attacker.address, &what));
    lookout.saw_nothing();

    // With its own MAC again it is welcome.
    let own = attacker.mac.map(|byte| format!("{byte:02x}")).join(":");
    attacker.namespace.ip(&format!("link set dev {DEVICE} address {own}"));
    attacker
        .namespace
        .ip(&format!("neigh replace {gateway} lladdr {} dev {DEVICE} nud permanent", stage.cp().vtep_mac()));
    ping::ping(attacker.namespace, stage.far.addr().into()).unwrap();
}

/// An Ethernet frame.
fn frame(source: [u8; 6], destination: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &ether_type.to_be_bytes(), payload].concat()
}

/// An ARP request for the gateway.
fn arp(attacker: &Attacker<'_>, ethernet: [u8; 6], mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let gateway = attacker.stage.cp().gateway_address().octets();
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let payload = [&head[..], &mac, &address.octets(), &[0; 6], &gateway].concat();
    frame(ethernet, [0xff; 6], 0x0806, &payload)
}

#[test]
fn a_pod_asks_by_arp_in_its_own_name_only() {
    let stage = Stage::new();
    let attacker = Attacker::new(&stage);
    let Attacker { namespace, address, mac, .. } = attacker;

    // In its own name it gets an answer.
    let gateway = stage.cp().gateway_address();
    let before = Drops::read(stage.cp());
    namespace.ip(&format!("neigh del {gateway} dev {DEVICE}"));
    ping::ping(namespace, stage.world().into()).unwrap();
    let neighbour = namespace.ip_json(&format!("neigh show {gateway} dev {DEVICE}"));
    assert_eq!(neighbour[0]["lladdr"], stage.cp().vtep_mac());
    assert_eq!(Drops::read(stage.cp()).since(&before), BTreeMap::new());

    for foreign in [stage.neighbour.addr(), stage.peer.addr(), gateway, Ipv4Addr::UNSPECIFIED] {
        let request = arp(&attacker, mac, mac, foreign);
        attacker.refused(&format!("ARP as {foreign}"), "pod_source_address", None, &[request]);
    }
    let theirs = mac_of(stage.neighbour.namespace(), DEVICE);
    for foreign in [theirs, stage.macs.gateway, SOME_MAC] {
        let request = arp(&attacker, mac, foreign, address);
        attacker.refused(&format!("ARP as {foreign:02x?}"), "pod_source_mac", None, &[request]);
        let request = arp(&attacker, foreign, mac, address);
        attacker.refused(&format!("ARP from {foreign:02x?}"), "pod_source_mac", None, &[request]);
    }
    // The node has learnt nothing of all that.
    let neighbours = stage.cp().namespace().ip_json("neigh show");
    let neighbour = |address: Ipv4Addr| {
        let all = neighbours.as_array().expect("a list").iter();
        all.filter(|entry| entry["dst"] == address.to_string()).cloned().collect::<Vec<_>>()
    };
    let entry = neighbour(address);
    assert_eq!(entry.len(), 1, "{entry:?}");
    assert_eq!(entry[0]["lladdr"], mac.map(|byte| format!("{byte:02x}")).join(":"));
    assert_eq!(neighbour(stage.peer.addr()), Vec::<serde_json::Value>::new());
}

#[test]
fn a_pod_sends_nothing_but_ipv4_and_arp() {
    let stage = Stage::new();
    let attacker = Attacker::new(&stage);
    let Attacker { address, mac, .. } = attacker;
    let lookout = stage.watch();
    let gateway = stage.macs.gateway;
    let mut ipv6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    ipv6.extend([0xfe; 40]);
    ipv6.extend(MARK.as_bytes());
    for (what, ether_type, payload, source) in [
        ("IPv6", 0x86dd, &ipv6[..], Some([0xfe; 16].into())),
        ("PPPoE", 0x8864, &[0; 46], None),
        ("EAPOL", 0x888e, &[0; 46], None),
    ] {
        let frame = frame(mac, gateway, ether_type, payload);
        attacker.refused(what, "pod_protocol", source, &[frame]);
    }
    let whole = |to| attacker.frame(mac, address, (to, PORT), format!("{MARK} for a VLAN").as_bytes());
    let tag = |frame: Vec<u8>| tagged(&frame, 7);
    attacker.refused("VLAN", "pod_protocol", Some(address.into()), &attacker.targets().map(whole).map(tag));

    for to in attacker.targets() {
        let short = attacker.frame(mac, address, (to, PORT), b"")[..30].to_vec();
        attacker.refused(&format!("30 bytes to {to}"), "truncated", None, &[short]);
    }
    // A whole IPv4 header, but not a whole UDP header, to where the port matters.
    for to in [stage.cp().address(), stage.node("w1").address(), stage.world()] {
        let short = attacker.frame(mac, address, (to, PORT), b"")[..38].to_vec();
        attacker.refused(&format!("38 bytes to {to}"), "truncated", Some(address.into()), &[short]);
    }
    lookout.saw_nothing();
}

/// What follows the UDP header of a tunnel packet from `cp`: a datagram from the attacker's node to `to`.
fn tunnelled(stage: &Stage, to: Ipv4Addr, text: &str) -> Vec<u8> {
    let inner = stage.tunnel(STRANGER, stage.pod.addr(), to, text).inner;
    [&[FLAG_VNI, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat()
}

#[test]
fn a_pod_reaches_no_tunnel_port() {
    let stage = Stage::new();
    let attacker = Attacker::new(&stage);
    let Attacker { namespace, address, mac, .. } = attacker;
    let (cp, w1, w2) = (stage.cp(), stage.node("w1"), stage.node("w2"));
    let lookout = stage.watch();

    // Whoever may send from the node itself is believed: what would become of the pod's packets were they let out.
    let believed = "honest as cp";
    let payload = tunnelled(&stage, stage.peer.addr(), believed);
    let socket = udp::connected(cp.namespace(), (SECOND[1], TUNNEL).into()).unwrap();
    (0..COUNT).for_each(|_| assert_eq!(socket.send(&payload).unwrap(), payload.len()));
    lookout.receives(stage.peer.namespace(), believed, COUNT);

    let targets = [
        // This node: its address, a second one, its gateway, docker0; an address of its subnet that no pod has.
        cp.address(),
        SECOND[0],
        cp.gateway_address(),
        DOCKER,
        Ipv4Addr::new(10, 244, 0, 200),
        // Others, near and far, and an address that this node does not know for a node's.
        w1.address(),
        w2.address(),
        SECOND[1],
        // Nobody of the cluster: behind the masquerade it would come from this node's address.
        stage.world(),
        STRANGER,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(192, 0, 2, 63),
    ];
    for to in targets {
        for pod in [stage.neighbour.addr(), stage.peer.addr(), stage.far.addr()] {
            let what = format!("{MARK} tunnel packet to {to} for {pod}");
            let frame = attacker.frame(mac, address, (to, TUNNEL), &tunnelled(&stage, pod, &what));
            let [first, _] = fragmented(&frame, 32);
            let frames = [with_options(&frame), first, frame];
            attacker.refused(&what, "pod_tunnel_port", Some(address.into()), &frames);
        }
    }
    // By the pod's own stack, as a program without privileges would.
    for to in [cp.address(), w1.address(), w2.address(), stage.world()] {
        let what = format!("{MARK} tunnel packet by a socket to {to}");
        let payload = tunnelled(&stage, stage.far.addr(), &what);
        let socket = udp::connected(namespace, (to, TUNNEL).into()).unwrap();
        let send = || (0..COUNT).for_each(|_| assert_eq!(socket.send(&payload).unwrap(), payload.len()));
        stage.dropped(&what, "pod_tunnel_port", COUNT, send);
    }

    // A remote gateway is reached by the tunnel, like a pod. The node there believes no VTEP that is a pod.
    let before = [cp, w1].map(Drops::read);
    let what = "sent to a remote gateway";
    let payload = tunnelled(&stage, stage.peer.addr(), what);
    let socket = udp::connected(namespace, (w1.gateway_address(), TUNNEL).into()).unwrap();
    (0..COUNT).for_each(|_| assert_eq!(socket.send(&payload).unwrap(), payload.len()));
    let refused = BTreeMap::from([("unknown_vtep".to_owned(), COUNT as u64)]);
    let counted = eventually(|| Drops::read(w1).since(&before[1]), |counted| *counted == refused);
    assert_eq!(counted, refused);
    assert_eq!(Drops::read(cp).since(&before[0]), BTreeMap::new());
    lookout.saw_nothing();
}

#[test]
fn the_tunnel_port_of_a_pod_is_a_port_like_any_other() {
    let stage = Stage::new();
    let before = stage.cluster.nodes().iter().map(Drops::read).collect::<Vec<_>>();
    let (pod, neighbour, peer, far) = (&stage.pod, &stage.neighbour, &stage.peer, &stage.far);
    for (from, to) in [(pod, neighbour), (pod, peer), (peer, pod), (pod, far), (far, pod)] {
        let at = (to.addr(), TUNNEL).into();
        let seen = udp::exchange(from.namespace(), to.namespace(), at).unwrap();
        assert_eq!(seen.server_saw.ip(), from.addr());
    }
    // The same number is free for TCP, to nodes and to the world as well.
    for (place, address) in [
        (stage.cp().namespace(), stage.cp().address()),
        (stage.node("w1").namespace(), stage.node("w1").address()),
        (stage.cluster.world().namespace(), stage.world()),
    ] {
        tcp::exchange(pod.namespace(), place, (address, TUNNEL).into()).unwrap();
    }
    for (node, before) in stage.cluster.nodes().iter().zip(&before) {
        assert_eq!(Drops::read(node).since(before), BTreeMap::new(), "{}", node.name());
    }
}

//! The traffic tools, proven on plain wires, where what they have to see is known.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use overlay_tests::lab::{Cluster, Families, Lab, Link, Namespace, WireMode, exec};
use overlay_tests::traffic::capture::Capture;
use overlay_tests::traffic::counters::Counters;
use overlay_tests::traffic::inject::{inject, mac_of};
use overlay_tests::traffic::stream::{Kind, RATE, Stream};
use overlay_tests::traffic::udp::{Sending, burst};
use overlay_tests::traffic::vxlan::{FLAG_VNI, Tunnel, udp_frame};
use overlay_tests::traffic::{any_port, ping, pmtu, tcp, udp};
use overlay_userspace::family::Family;

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The same ends in IPv6.
const A6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const B6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// `B` in both families.
const BOTH: [IpAddr; 2] = [IpAddr::V4(B), IpAddr::V6(B6)];

/// Two namespaces with a wire between their `eth0`.
struct Pair {
    a: Namespace,
    b: Namespace,
    _lab: Lab,
}

fn pair() -> Pair {
    let lab = Lab::new();
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    Link::default().connect(&a, "eth0", &b, "eth0");
    a.ip(&format!("addr add {A}/24 dev eth0"));
    b.ip(&format!("addr add {B}/24 dev eth0"));
    a.ip(&format!("addr add {A6}/64 dev eth0"));
    b.ip(&format!("addr add {B6}/64 dev eth0"));
    Pair { a, b, _lab: lab }
}

/// Loads rules into a namespace.
fn nft(namespace: &Namespace, rules: &str) {
    exec::must(namespace.command("nft").args(["-f", "-"]), rules);
}

#[test]
fn bulk_transfer_through_a_router_is_intact_in_both_wire_modes() {
    for mode in WireMode::ALL {
        let cluster = Cluster::builder().link(Link::new(mode)).families(Families::Dual).build();
        let (cp, w2) = (cluster.node("cp"), cluster.node("w2"));
        for (family, (from, to)) in
            Family::ALL.into_iter().flat_map(|family| [(family, (cp, w2)), (family, (w2, cp))])
        {
            let at = any_port(to.address_of(family));
            let bulk = tcp::bulk(from.namespace(), to.namespace(), at, 32).unwrap();
            assert!(bulk.intact(), "{mode:?} {family}: {bulk:?}");
            assert_eq!(bulk.bytes, 32 << 20);
        }
        for node in [cp, w2] {
            assert_eq!(Counters::read(node.namespace()).checksum_errors(), 0, "{mode:?}");
        }
    }
}

#[test]
fn bursts_through_a_router_arrive_complete_in_both_wire_modes() {
    for mode in WireMode::ALL {
        let cluster = Cluster::builder().link(Link::new(mode)).families(Families::Dual).build();
        let (cp, w2) = (cluster.node("cp"), cluster.node("w2"));
        for family in Family::ALL {
            for sending in [Sending::Plain, Sending::Segmented] {
                let at = any_port(w2.address_of(family));
                let seen = burst(cp.namespace(), w2.namespace(), at, 100, sending).unwrap();
                assert!(seen.complete() && seen.received == 100, "{mode:?} {family} {sending:?}: {seen:?}");
            }
        }
    }
}

#[test]
fn segmented_burst_leaves_as_super_packets() {
    let pair = pair();
    let capture = Capture::start(&pair.a, "eth0");
    burst(&pair.a, &pair.b, any_port(B), 100, Sending::Segmented).unwrap();
    let longest = capture.stop().iter().map(|frame| frame.bytes.len()).max();
    // Ethernet, IPv4 and UDP headers, and 48 datagrams.
    assert_eq!(longest, Some(14 + 20 + 8 + 48 * udp::SEGMENT));
}

#[test]
fn burst_tells_how_many_datagrams_were_lost() {
    let pair = pair();
    nft(
        &pair.b,
        "table ip t {
            chain c {
                type filter hook input priority 0
                meta l4proto udp limit rate 1/minute burst 30 packets accept
                meta l4proto udp drop
            }
        }",
    );
    let seen = burst(&pair.a, &pair.b, any_port(B), 100, Sending::Plain).unwrap();
    assert_eq!((seen.sent, seen.received, seen.complete()), (100, 30, false));
}

#[test]
fn exchange_tells_a_translated_address() {
    let pair = pair();
    nft(
        &pair.a,
        "table inet t {
            chain c {
                type nat hook postrouting priority srcnat
                meta l4proto { tcp, udp } masquerade to :40000-40009
            }
        }",
    );
    for at in BOTH.map(any_port) {
        for seen in [tcp::exchange(&pair.a, &pair.b, at), udp::exchange(&pair.a, &pair.b, at)] {
            let seen = seen.unwrap();
            assert!(!seen.same_address(), "{seen:?}");
            assert!((40000..=40009).contains(&seen.server_saw.port()), "{seen:?}");
        }
    }
}

#[test]
fn dead_path_is_an_error_in_time() {
    let pair = pair();
    pair.b.ip("link set dev eth0 down");
    let start = std::time::Instant::now();
    tcp::exchange(&pair.a, &pair.b, any_port(B)).unwrap_err();
    udp::exchange(&pair.a, &pair.b, any_port(B)).unwrap_err();
    ping::ping(&pair.a, IpAddr::V4(B)).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn largest_packet_passes_and_one_byte_more_is_refused() {
    let pair = pair();
    for to in BOTH {
        assert!(matches!(ping::unfragmented(&pair.a, to, 1500).unwrap(), ping::Probe::Reply(_)));
        let refused = ping::unfragmented(&pair.a, to, 1501).unwrap();
        assert_eq!(refused, ping::Probe::TooLong { mtu: 1500 });
        let datagram = |packet| pmtu::unfragmented(&pair.a, &pair.b, any_port(to), packet).unwrap();
        assert!(matches!(datagram(1500), ping::Probe::Reply(_)));
        assert_eq!(datagram(1501), ping::Probe::TooLong { mtu: 1500 });
    }
}

#[test]
fn streams_on_a_good_path_lose_nothing() {
    let pair = pair();
    for to in BOTH {
        let streams = Kind::ALL.map(|kind| Stream::start(kind, &pair.a, &pair.b, to, RATE).unwrap());
        thread::sleep(Duration::from_secs(1));
        for (kind, stream) in Kind::ALL.into_iter().zip(streams) {
            let outcome = stream.stop();
            assert_eq!((outcome.lost, &outcome.error), (0, &None), "{kind:?} to {to}: {outcome:?}");
            assert!(outcome.sent > u64::from(RATE) / 2, "{kind:?} to {to}: {outcome:?}");
        }
    }
}

#[test]
fn streams_tell_an_outage() {
    let pair = pair();
    let streams = Kind::ALL.map(|kind| Stream::start(kind, &pair.a, &pair.b, IpAddr::V4(B), RATE).unwrap());
    thread::sleep(Duration::from_millis(300));
    let outage = Duration::from_millis(400);
    // The carrier of a goes as well, but its address and route stay.
    pair.b.ip("link set dev eth0 down");
    thread::sleep(outage);
    pair.b.ip("link set dev eth0 up");
    thread::sleep(Duration::from_secs(1));
    for (kind, stream) in Kind::ALL.into_iter().zip(streams) {
        let outcome = stream.stop();
        assert!(outcome.max_gap >= outage, "{kind:?}: {outcome:?}");
        assert_eq!(outcome.lost > 0, kind != Kind::Tcp, "{kind:?}: {outcome:?}");
    }
}

#[test]
fn wrong_checksum_is_counted() {
    let pair = pair();
    let socket = udp::bind(&pair.b, any_port(B)).unwrap();
    let SocketAddr::V4(to) = socket.local_addr().unwrap() else { panic!("bound to an IPv4 address") };
    let macs = (mac_of(&pair.a, "eth0"), mac_of(&pair.b, "eth0"));
    let mut frame = udp_frame(macs, SocketAddrV4::new(A, 7), to, b"payload");
    *frame.last_mut().unwrap() ^= 1;
    let before = Counters::read(&pair.b);
    inject(&pair.a, "eth0", &[frame]);
    socket.recv(&mut [0; 64]).unwrap_err();
    let after = Counters::read(&pair.b);
    assert_eq!(after.get("Udp.InCsumErrors") - before.get("Udp.InCsumErrors"), 1);
    assert_eq!(after.checksum_errors() - before.checksum_errors(), 1);
}

#[test]
fn forged_tunnel_packet_is_captured_as_sent() {
    let pair = pair();
    let macs = (mac_of(&pair.a, "eth0"), mac_of(&pair.b, "eth0"));
    let inner_addresses =
        (SocketAddrV4::new([10, 244, 0, 2].into(), 1), SocketAddrV4::new([10, 244, 1, 2].into(), 2));
    let forged = Tunnel {
        macs,
        source: SocketAddr::new(A.into(), 55555),
        destination: SocketAddr::new(B.into(), 8472),
        ttl: 64,
        tos: 0,
        dont_fragment: false,
        udp_checksum: 0,
        flags: FLAG_VNI,
        vni: 1,
        inner: udp_frame(macs, inner_addresses.0, inner_addresses.1, b"inner payload"),
    };
    let capture = Capture::start(&pair.b, "eth0");
    let socket = udp::bind(&pair.b, forged.destination).unwrap();
    inject(&pair.a, "eth0", &[forged.encode()]);
    let mut payload = [0; 2048];
    let (len, from) = socket.recv_from(&mut payload).unwrap();
    assert_eq!(from, forged.source);
    assert!(payload[..len].ends_with(&forged.inner));
    let decoded: Vec<Tunnel> =
        capture.stop().iter().filter_map(|frame| Tunnel::decode(&frame.bytes)).collect();
    assert_eq!(decoded, [forged]);
}

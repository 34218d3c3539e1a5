//! The next hop of tunnel packets under changes of neighbours and routes, of which no agent takes notice: all agents are
//! dead here.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use overlay_tests::lab::{Link, Namespace, Node};
use overlay_tests::traffic::capture::{Capture, Frame};
use overlay_tests::traffic::inject::mac_of;
use overlay_tests::traffic::oneway::Oneway;
use overlay_tests::traffic::stream::{Kind, RATE, Stream};
use overlay_tests::traffic::vxlan::Tunnel;
use overlay_tests::traffic::{any_port, ping, tcp, udp};
use serde_json::Value;

use crate::bed::{self, Bed};

/// The neighbour timers of `eth0` (arp(7)) in these tests; the defaults are 30 s, 5 s and 1 s. The delay has to be shorter than
/// the time for which an entry is taken for reachable: otherwise the kernel takes the last verification itself for a
/// use, and verifies the entry for ever, whether it is used or not (`neigh_timer_handler`, net/core/neighbour.c).
const TIMERS: [(&str, &str); 3] =
    [("base_reachable_time_ms", "500"), ("delay_first_probe_time", "0"), ("retrans_time_ms", "100")];

/// With [`TIMERS`] an entry is taken for reachable for 0.25 to 0.75 s, used (256 jiffies) at most 1 s later on kernels of
/// 250 Hz and 2.6 s at 100 Hz, and fails after 3 probes of 0.1 s each.
const RECOVERY: Duration = Duration::from_secs(5);

/// Far below the first retransmission of any protocol (1 s).
const AT_ONCE: Duration = Duration::from_millis(500);

/// The router's address on LAN A, and that of the second one.
const ROUTERS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// A cluster whose agents are dead.
fn without_agents() -> Bed {
    let bed = Bed::on(Link::default());
    for node in bed.cluster.nodes() {
        node.kill_agent(Signal::SIGKILL);
    }
    bed
}

/// The MAC that the kernel believes a neighbour to have.
#[track_caller]
fn neighbour(namespace: &Namespace, address: &str) -> Option<String> {
    let entries = namespace.ip_json(&format!("neigh show dev {}", Node::DEVICE));
    let entries = entries.as_array().expect("a list of neighbours");
    let entry = entries.iter().find(|entry| entry["dst"] == address)?;
    entry["lladdr"].as_str().map(str::to_owned)
}

#[track_caller]
fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// Gives the router another MAC on LAN A, without a word to anybody.
#[track_caller]
fn change_router_mac(bed: &Bed) -> &'static str {
    const NEW_MAC: &str = "02:00:5e:10:00:01";
    let router = bed.cluster.router();
    for name in ["all", "lan-a"] {
        router.sysctl(&format!("net.ipv4.conf.{name}.arp_notify"), "0");
    }
    router.ip(&format!("link set dev lan-a address {NEW_MAC}"));
    NEW_MAC
}

#[track_caller]
fn quick_timers(node: &Node) {
    for (name, value) in TIMERS {
        node.namespace().sysctl(&format!("net.ipv4.neigh.{}.{name}", Node::DEVICE), value);
    }
}

#[test]
fn router_that_changed_its_mac_in_silence_is_found_again_by_the_sender_alone() {
    let _traffic = bed::quiet();
    let bed = without_agents();
    let cp = bed.node("cp");
    quick_timers(cp);
    let far = bed.pod("w2");
    let stream =
        Oneway::start(bed.pod("cp").namespace(), far.namespace(), IpAddr::V4(far.addr()), RATE).unwrap();
    // Long enough for the entry to be verified a few times.
    thread::sleep(Duration::from_secs(2));
    assert!(stream.received() > 100, "{} datagrams in 2 s", stream.received());

    let mac = change_router_mac(&bed);
    let changed = Instant::now();
    // What was under way has arrived.
    thread::sleep(Duration::from_millis(100));
    let stalled = stream.received();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(stream.received(), stalled, "nobody noticed the new MAC, and datagrams still arrive");
    wait_until(RECOVERY, "traffic takes the router's new MAC", || stream.received() > stalled);
    let outage = changed.elapsed();
    assert_eq!(neighbour(cp.namespace(), ROUTERS[0]).as_deref(), Some(mac));
    thread::sleep(Duration::from_millis(500));
    let (sent, arrivals) = stream.stop();
    let last = arrivals.last().expect("datagrams arrived").number;
    assert!(sent - last < u64::from(RATE) / 4, "the last of {sent} datagrams to arrive was {last}");
    eprintln!("one way: silent for {outage:?}");
}

/// Packets of the other side make the router ask for `cp` with its new MAC: no timer has to run out.
#[test]
fn router_with_another_mac_is_followed_as_soon_as_it_speaks() {
    let _traffic = bed::quiet();
    let bed = without_agents();
    let (near, far) = (bed.pod("cp"), bed.pod("w2"));
    let streams = Kind::ALL.map(|kind| {
        let at = IpAddr::V4(far.addr());
        Stream::start(kind, near.namespace(), far.namespace(), at, RATE).unwrap()
    });
    // The streams' answers would do only where one is under way while the MAC changes.
    let other_side = Oneway::start(far.namespace(), near.namespace(), IpAddr::V4(near.addr()), RATE).unwrap();
    thread::sleep(Duration::from_secs(1));
    change_router_mac(&bed);
    thread::sleep(Duration::from_millis(50));
    for (kind, stream) in Kind::ALL.into_iter().zip(&streams) {
        let before = stream.received();
        wait_until(RECOVERY, &format!("{kind:?} goes on"), || stream.received() > before + 10);
    }
    for (kind, stream) in Kind::ALL.into_iter().zip(streams) {
        let outcome = stream.stop();
        assert_eq!(outcome.error, None, "{kind:?}");
        // The kernel's timers would need 5 s at least.
        assert!(outcome.max_gap < Duration::from_secs(3), "{kind:?}: {outcome:?}");
        eprintln!("{kind:?}: silent for {:?}", outcome.max_gap);
    }
    drop(other_side);
}

/// Unicast ARP requests: with them the kernel verifies an entry that it has.
fn is_probe(frame: &Frame, to: [u8; 6]) -> bool {
    let (ethernet, arp) = frame.bytes.split_at(14);
    frame.outgoing && ethernet[..6] == to && ethernet[12..] == [8, 6] && arp[6..8] == [0, 1]
}

#[test]
fn neighbour_in_use_is_verified_again_and_again_without_loss() {
    let _traffic = bed::quiet();
    let bed = without_agents();
    let cp = bed.node("cp");
    quick_timers(cp);
    let (near, far) = (bed.pod("cp"), bed.pod("w1"));
    // Not TCP, whose progress the kernel takes for proof enough (sk_dst_confirm).
    let kinds = [Kind::Udp, Kind::Ping];
    let streams = kinds.map(|kind| {
        let at = IpAddr::V4(far.addr());
        Stream::start(kind, near.namespace(), far.namespace(), at, RATE).unwrap()
    });
    let capture = Capture::start(cp.namespace(), Node::DEVICE);
    thread::sleep(RECOVERY);
    let mac = mac_of(bed.node("w1").namespace(), Node::DEVICE);
    let probes = capture.stop().into_iter().filter(|frame| is_probe(frame, mac)).count();
    assert!(probes >= 2, "the kernel has sent {probes} probes in {RECOVERY:?}");
    for (kind, stream) in kinds.into_iter().zip(streams) {
        let outcome = stream.stop();
        assert_eq!((outcome.lost, &outcome.error), (0, &None), "{kind:?}: {outcome:?}");
    }
}

#[test]
fn new_route_to_a_peer_is_taken_by_the_next_packet() {
    let _traffic = bed::quiet();
    let bed = without_agents();
    let cp = bed.node("cp").namespace();
    let second = bed.cluster.lab().router("router2");
    for (lan, dev, address) in
        [(bed.cluster.lan_a(), "lan-a", "192.0.2.2/26"), (bed.cluster.lan_b(), "lan-b", "192.0.2.66/26")]
    {
        lan.attach(&second, dev);
        second.ip(&format!("addr add {address} dev {dev}"));
    }
    let macs = [bed.cluster.router(), &second].map(|router| mac_of(router, "lan-a"));
    let (near, far) = (bed.pod("cp"), bed.pod("w2"));
    let streams = Kind::ALL.map(|kind| {
        let at = IpAddr::V4(far.addr());
        Stream::start(kind, near.namespace(), far.namespace(), at, RATE).unwrap()
    });
    let capture = Capture::start(cp, Node::DEVICE);
    let moment = Duration::from_millis(400);
    thread::sleep(moment);
    assert_eq!(neighbour(cp, ROUTERS[1]), None);
    let route = format!("{} via {}", "192.0.2.64/26", ROUTERS[1]);
    cp.ip(&format!("route add {route}"));
    let added = Instant::now();
    thread::sleep(moment);
    cp.ip(&format!("route del {route}"));
    thread::sleep(moment);
    for (kind, stream) in Kind::ALL.into_iter().zip(streams) {
        let outcome = stream.stop();
        assert_eq!((outcome.lost, &outcome.error), (0, &None), "{kind:?}: {outcome:?}");
    }
    let frames = capture.stop();
    let hops: Vec<(usize, Instant)> = frames
        .iter()
        .filter(|frame| frame.outgoing)
        .filter_map(|frame| {
            let hop = Tunnel::decode(&frame.bytes)?.macs.1;
            Some((macs.iter().position(|mac| *mac == hop).expect("one of the routers"), frame.at))
        })
        .collect();
    let mut order: Vec<usize> = hops.iter().map(|(hop, _)| *hop).collect();
    order.dedup();
    assert_eq!(order, [0, 1, 0], "the first packet after each change, and all after it, take the new way");
    let switched = hops.iter().find(|(hop, _)| *hop == 1).expect("some took the second router").1;
    let late = switched.saturating_duration_since(added);
    assert!(late < Duration::from_millis(100), "{late:?}");
}

/// Makes every kernel forget its neighbours on the underlay.
#[track_caller]
fn forget_neighbours(bed: &Bed) {
    for node in bed.cluster.nodes() {
        node.namespace().ip(&format!("neigh flush dev {}", Node::DEVICE));
        let known = node.namespace().ip_json(&format!("neigh show dev {}", Node::DEVICE));
        let known = known.as_array().expect("a list of neighbours");
        assert!(known.iter().all(|entry| entry["lladdr"] == Value::Null), "{known:?}");
    }
    for dev in ["lan-a", "lan-b"] {
        bed.cluster.router().ip(&format!("neigh flush dev {dev}"));
    }
}

#[test]
fn first_packet_to_an_unresolved_neighbour_is_not_lost() {
    let _traffic = bed::quiet();
    let bed = without_agents();
    for to in ["w1", "w2"] {
        let (far, far_node) = (bed.pod(to), bed.node(to));
        for near in [bed.pod("cp").namespace(), bed.node("cp").namespace()] {
            let targets = [(far.namespace(), far.addr()), (far_node.namespace(), far_node.address())];
            for (server, address) in targets {
                let what = format!("{} to {}", near.name(), server.name());
                forget_neighbours(&bed);
                let time = ping::ping(near, IpAddr::V4(address)).unwrap();
                assert!(time < AT_ONCE, "{what}: ping took {time:?}");
                forget_neighbours(&bed);
                udp::exchange(near, server, any_port(address))
                    .unwrap_or_else(|error| panic!("{what}: {error:#}"));
                forget_neighbours(&bed);
                let start = Instant::now();
                tcp::exchange(near, server, any_port(address))
                    .unwrap_or_else(|error| panic!("{what}: {error:#}"));
                assert!(start.elapsed() < AT_ONCE, "{what}: tcp took {:?}", start.elapsed());
            }
        }
    }
}

//! The largest packet that needs no fragments, and one byte more.

use std::thread;
use std::time::Duration;

use overlay_tests::lab::{Cluster, Link, Namespace, Network, Node, Pod, WireMode, within};
use overlay_tests::traffic::ping::{self, Probe};
use overlay_tests::traffic::{any_port, pmtu, tcp, udp};
use overlay_userspace::family::Family;

use crate::bed::{self, Bed};

/// On one LAN and across the router, both directions.
const PAIRS: [(&str, &str); 4] = [("cp", "w1"), ("w1", "cp"), ("cp", "w2"), ("w2", "cp")];

/// Packets of `mtu` bytes pass from pods and nodes to pods, in every family of the pods; one byte more is refused at the sender,
/// which names `mtu`.
#[track_caller]
fn expect_mtu(bed: &Bed, mtu: u32) {
    let senders = PAIRS.iter().flat_map(|(from, to)| {
        [bed.pod(from).namespace(), bed.node(from).namespace()].map(|near| (near, bed.pod(to)))
    });
    // At once: ping takes a second to see that it has nothing to wait for.
    thread::scope(|scope| {
        for (near, far) in senders {
            for (family, _) in far.addrs().iter() {
                scope.spawn(move || expect_mtu_between(family, near, far, mtu));
            }
        }
    });
}

fn expect_mtu_between(family: Family, near: &Namespace, far: &Pod, mtu: u32) {
    let what = format!("{family} from {} to {}", near.name(), far.namespace().name());
    let echo = |packet| ping::unfragmented(near, far.addr_of(family), packet).unwrap();
    let datagram = |packet: u32| {
        let at = any_port(far.addr_of(family));
        pmtu::unfragmented(near, far.namespace(), at, packet as usize).unwrap()
    };
    assert!(matches!(echo(mtu), Probe::Reply(_)), "{what}");
    assert!(matches!(datagram(mtu), Probe::Reply(_)), "{what}");
    assert_eq!(echo(mtu + 1), Probe::TooLong { mtu }, "{what}");
    assert_eq!(datagram(mtu + 1), Probe::TooLong { mtu }, "{what}");
}

#[test]
fn largest_packet_passes_and_one_byte_more_is_refused_at_the_sender() {
    let _traffic = bed::quiet();
    for mode in WireMode::ALL {
        expect_mtu(&Bed::on(Link::new(mode)), 1450);
    }
}

#[test]
fn jumbo_underlay_gives_jumbo_pods() {
    let _traffic = bed::quiet();
    expect_mtu(&Bed::on(Link { mtu: 9000, ..Link::default() }), 8950);
}

#[test]
fn configured_mtu_holds_for_pods_and_nodes() {
    let _traffic = bed::quiet();
    let network = Network { mtu: Some(1400), ..Network::default() };
    expect_mtu(&Bed::start(Cluster::builder().network(network)), 1400);
}

#[test]
fn overhead_is_that_of_the_underlay_whatever_the_family_of_the_pods() {
    let _traffic = bed::quiet();
    for outer in Family::ALL {
        let bed = Bed::dual(Link::default(), outer);
        expect_mtu(&bed, 1500 - bed.overhead());
    }
    let bed = Bed::ipv6(Link { mtu: 9000, ..Link::default() });
    expect_mtu(&bed, 8930);
}

/// The underlay's devices get another MTU on all nodes, and the agents notice.
#[track_caller]
fn change_underlay(bed: &Bed, mtu: u32) {
    for node in bed.cluster.nodes() {
        node.namespace().ip(&format!("link set dev {} mtu {mtu}", Node::DEVICE));
    }
    let pods = mtu - bed.overhead();
    for node in bed.cluster.nodes() {
        within(Duration::from_secs(20), &format!("MTU {pods} on {}", node.name()), || {
            node.status().is_some_and(|status| status["mtu"] == pods)
        });
    }
}

#[test]
fn pods_mtu_follows_the_underlays_and_pods_of_before_are_told() {
    let _traffic = bed::quiet();
    for outer in Family::ALL {
        // The router carries more all the time.
        let bed = Bed::dual(Link { mtu: 9000, ..Link::default() }, outer);
        let [jumbo, usual] = [9000, 1500].map(|mtu| mtu - bed.overhead());
        expect_mtu(&bed, jumbo);

        change_underlay(&bed, 1500);
        let near = bed.cluster.add_pod("cp", "usual");
        for family in Family::ALL {
            let what = format!("{family} over {outer}");
            let (old, far) = (bed.pod("cp"), bed.pod("w2"));
            expect_mtu_between(family, near.namespace(), far, usual);
            // A device of before carries what the underlay does not carry any more.
            let at = any_port(far.addr_of(family));
            let server = udp::bind(far.namespace(), at).unwrap();
            let client = udp::connected(old.namespace(), server.local_addr().unwrap()).unwrap();
            assert_eq!(pmtu::told_mtu(&client, jumbo as usize).unwrap(), usual, "{what}");
            for (from, to) in [(old, far), (far, old)] {
                let at = any_port(to.addr_of(family));
                let bulk = tcp::bulk(from.namespace(), to.namespace(), at, 2);
                assert!(bulk.unwrap_or_else(|error| panic!("{what}: {error:?}")).intact(), "{what}");
            }
        }

        change_underlay(&bed, 9000);
        let [near, far] = ["cp", "w2"].map(|node| bed.cluster.add_pod(node, "jumbo"));
        for family in Family::ALL {
            expect_mtu_between(family, near.namespace(), &far, jumbo);
        }
    }
}

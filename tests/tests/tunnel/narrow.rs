//! A path between two nodes that carries less than their own devices: its router says so to the sending node, whose programs
//! tell the pods. In every family of the pods, over an underlay of either.

use std::net::IpAddr;
use std::time::Duration;

use overlay_tests::lab::{Link, Namespace, WireMode, within};
use overlay_tests::traffic::drops::Drops;
use overlay_tests::traffic::ping::{self, Probe};
use overlay_tests::traffic::{any_port, pmtu, tcp, udp};
use overlay_userspace::family::Family;

use crate::bed::{self, Bed};

/// What the router between the LANs carries, in bytes; the nodes' devices have 1500.
const PATH: u32 = 1400;

/// How long pods may take to find out what fits.
const SOON: Duration = Duration::from_secs(20);

/// Makes the router between `w2` and the other nodes of `bed` carry [`PATH`] bytes, either way.
fn narrow(bed: Bed) -> Bed {
    let router = bed.cluster.router();
    for dev in ["lan-a", "lan-b"] {
        for option in ["-4", "-6"] {
            let routes = router.ip(&format!("{option} route show dev {dev} proto kernel"));
            for net in routes.lines().filter_map(|route| route.split_whitespace().next()) {
                if net.starts_with("fe80:") {
                    continue;
                }
                let metric = if option == "-6" { "metric 256 " } else { "" };
                // Locked: a router goes by the device's MTU otherwise (ip-route(8)).
                router.ip(&format!(
                    "{option} route replace {net} dev {dev} proto kernel scope link {metric}mtu lock {PATH}"
                ));
            }
        }
    }
    bed
}

/// Sends packets of `longest` bytes until somebody says that they are too long, by UDP.
#[track_caller]
fn told(from: &Namespace, to: (&Namespace, IpAddr), longest: u32) -> u32 {
    let far = udp::bind(to.0, any_port(to.1)).unwrap();
    let near = udp::connected(from, far.local_addr().unwrap()).unwrap();
    pmtu::told_mtu(&near, longest as usize).unwrap()
}

#[track_caller]
fn expect_told(bed: &Bed, family: Family, from: &str, to: &str) {
    let (longest, fits) = (1500 - bed.overhead(), PATH - bed.overhead());
    let what = format!("{family} over {} from {from} to {to}", bed.outer);
    let (near, far) = (bed.pod(from), bed.pod(to));
    let at = far.addr_of(family);
    let before = Drops::read(bed.node(from));
    assert_eq!(told(near.namespace(), (far.namespace(), at), longest), fits, "{what}");
    let drops = Drops::read(bed.node(from)).since(&before);
    assert!(drops.get("path_mtu").is_some_and(|count| *count > 0), "{what}: {drops:?}");

    // What fits arrives. The pod has an exception for this peer now, which others do not have.
    let datagram = |packet| {
        pmtu::unfragmented(near.namespace(), far.namespace(), any_port(at), packet as usize).unwrap()
    };
    assert!(matches!(datagram(fits), Probe::Reply(_)), "{what}");
    assert_eq!(datagram(fits + 1), Probe::TooLong { mtu: fits }, "{what}");

    // A pod that has never sent is told by its gateway at once: the node knows.
    let other = bed.cluster.add_pod(from, "b");
    let echo = |to, packet| ping::unfragmented(other.namespace(), to, packet).unwrap();
    assert_eq!(echo(at, fits + 1), Probe::TooLong { mtu: fits }, "{what}");
    assert!(matches!(echo(at, fits), Probe::Reply(_)), "{what}");
    // As is one that sends to the node itself.
    assert_eq!(echo(bed.node(to).address_of(family), longest), Probe::TooLong { mtu: fits }, "{what}");
}

/// Both nodes know what the path carries.
#[track_caller]
fn expect_fragments_to_arrive(bed: &Bed, family: Family) {
    let at = bed.pod("w2").addr_of(family);
    // As long as the pod's device carries, and a datagram of which each fragment has as many bytes.
    for payload in [1500 - bed.overhead() - ping::overhead(at), 4000] {
        let what = format!("{payload} bytes, {family} over {}", bed.outer);
        let pod = bed.cluster.add_pod("cp", &format!("p{payload}"));
        let arguments = ["-M", "dont", "-s", &payload.to_string()];
        let arrives = || matches!(ping::with(pod.namespace(), at, &arguments), Ok(Probe::Reply(_)));
        if (family, bed.outer) == (Family::Ipv4, Family::Ipv4) {
            // The tunnel packets are fragmented.
            assert!(arrives(), "{what}");
        } else {
            within(SOON, &what, arrives);
        }
    }
}

#[test]
fn pods_are_told_what_the_path_carries_and_no_packet_is_lost_without_a_word() {
    let _traffic = bed::quiet();
    for outer in Family::ALL {
        let bed = narrow(Bed::dual(Link::default(), outer));
        for family in Family::ALL {
            expect_told(&bed, family, "cp", "w2");
            expect_told(&bed, family, "w2", "cp");
        }
        for family in Family::ALL {
            expect_fragments_to_arrive(&bed, family);
            // The other peer's path is as wide as ever.
            let (near, far) = (bed.pod("cp"), bed.pod("w1").addr_of(family));
            let echo = ping::unfragmented(near.namespace(), far, 1500 - bed.overhead()).unwrap();
            assert!(matches!(echo, Probe::Reply(_)), "{family} over {outer}: {echo:?}");
        }
        bed.expect_no_checksum_errors();
    }
}

#[track_caller]
fn expect_bulk(bed: &Bed, mode: WireMode) {
    let (near, far) = (bed.pod("cp"), bed.pod("w2"));
    for (family, at) in far.addrs().iter() {
        for (from, to, at) in [
            (near.namespace(), far.namespace(), *at),
            (far.namespace(), near.namespace(), near.addr_of(family)),
            (bed.node("cp").namespace(), far.namespace(), *at),
            (near.namespace(), bed.node("w2").namespace(), bed.node("w2").address_of(family)),
        ] {
            let what = format!("{mode:?}, {family} over {}: {} to {}", bed.outer, from.name(), to.name());
            let bulk =
                tcp::bulk(from, to, any_port(at), 2).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            assert!(bulk.intact(), "{what}: {bulk:?}");
        }
    }
    bed.expect_no_checksum_errors();
}

#[test]
fn bulk_transfers_find_their_segment_size() {
    let _traffic = bed::flood();
    for mode in WireMode::ALL {
        expect_bulk(&narrow(Bed::on(Link::new(mode))), mode);
    }
}

#[test]
fn bulk_transfers_find_their_segment_size_in_both_families() {
    let _traffic = bed::flood();
    expect_bulk(&narrow(Bed::ipv6(Link::new(WireMode::Nic))), WireMode::Nic);
    for outer in Family::ALL {
        expect_bulk(&narrow(Bed::dual(Link::new(WireMode::Veth), outer)), WireMode::Veth);
    }
}

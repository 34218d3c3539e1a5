//! Pods that have a tunnel of their own: super-packets that are encapsulated already. The kernel makes no GSO packets of two tunnels, so
//! the programs leave them to the anchor device, which segments first.

use std::net::{IpAddr, Ipv4Addr};

use overlay_tests::lab::Pod;
use overlay_tests::traffic::counters::Counters;
use overlay_tests::traffic::{any_port, tcp};
use overlay_userspace::family::Family;

use crate::bed::Bed;

/// A VXLAN device between two pods; the address of its far end.
#[track_caller]
fn connect(one: &Pod, other: &Pod, family: Family) -> IpAddr {
    let ends = [(one, other, "172.31.0.1/30"), (other, one, "172.31.0.2/30")];
    for (pod, peer, address) in ends {
        let (local, remote) = (pod.addr_of(family), peer.addr_of(family));
        let checksums = if family == Family::Ipv6 { "udp6zerocsumtx udp6zerocsumrx" } else { "" };
        pod.namespace().ip_batch(&format!(
            "link add nested type vxlan id 7 local {local} remote {remote} dstport 4789 dev eth0 {checksums}\n\
             addr add {address} dev nested\nlink set nested up\n"
        ));
    }
    Ipv4Addr::new(172, 31, 0, 2).into()
}

#[test]
fn a_tunnel_inside_of_the_tunnel_carries_bulk_transfers() {
    let bed = Bed::new();
    for (to, place) in [(&bed.near, "same node"), (&bed.peer, "other node"), (&bed.far, "behind a router")] {
        for family in Family::ALL {
            let far = connect(&bed.pod, to, family);
            for (from, to, at) in [
                (bed.pod.namespace(), to.namespace(), far),
                (to.namespace(), bed.pod.namespace(), Ipv4Addr::new(172, 31, 0, 1).into()),
            ] {
                let bulk = tcp::bulk(from, to, any_port(at), 4).unwrap();
                assert!(bulk.intact(), "{family}, {place}: {bulk:?}");
            }
            for pod in [&bed.pod, to] {
                // Those of UDP have some without harm: what comes before the other end's device is there.
                let errors = Counters::read(pod.namespace()).get("Tcp.InCsumErrors");
                assert_eq!(errors, 0, "{family}, {place}");
                pod.namespace().ip("link del nested");
            }
        }
    }
}

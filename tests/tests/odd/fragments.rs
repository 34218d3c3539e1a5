//! Fragments. The programs look at no port of those that have none, and so treat all fragments of a packet alike.

use overlay_tests::traffic::counters::Counters;
use overlay_tests::traffic::{any_port, udp};
use overlay_userspace::family::Family;

use crate::bed::{Bed, eventually};

#[test]
fn datagrams_larger_than_any_packet_arrive_both_ways() {
    let bed = Bed::new();
    let before = bed.drops();
    for way in bed.ways() {
        for family in Family::ALL {
            let at = any_port(way.to.address(family));
            let (client, server) = (way.from.namespace(), way.to.namespace());
            // Two fragments, and as many as there can be.
            for len in [1500_usize, 4000, 60_000] {
                let payload: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
                udp::exchange_unconnected(client, server, at, at, &payload)
                    .unwrap_or_else(|error| panic!("{family}, {len} bytes, {}: {error:#}", way.name));
            }
        }
    }
    bed.expect_no_drops(&before, "fragments");
}

#[test]
fn fragments_are_put_together_whichever_comes_first() {
    let bed = Bed::new();
    for (to, name) in [(&bed.near, "same node"), (&bed.peer, "other node")] {
        for family in Family::ALL {
            let socket = udp::bind(to.namespace(), any_port(to.addr_of(family))).unwrap();
            let whole = bed.datagram(socket.local_addr().unwrap(), &[0x5a; 100]);
            let [first, later] = whole.cut(48).map(|packet| packet.frame());
            for (frames, order) in [([&first, &later], "in order"), ([&later, &first], "the later first")] {
                bed.send(&frames.map(Clone::clone));
                let mut got = [0; 200];
                let len = socket.recv(&mut got);
                let len = len.unwrap_or_else(|error| panic!("{family}, {name}, {order}: {error}"));
                assert_eq!(got[..len], [0x5a; 100], "{family}, {name}, {order}");
            }
        }
    }
}

#[test]
fn a_later_fragment_alone_reaches_whoever_has_to_wait_for_the_rest() {
    const COUNT: usize = 5;
    let bed = Bed::new();
    let drops = bed.drops();
    let counter = |family| if family == Family::Ipv4 { "Ip.ReasmReqds" } else { "Ip6ReasmReqds" };
    for to in [&bed.near, &bed.peer] {
        for family in Family::ALL {
            let read = || Counters::read(to.namespace()).get(counter(family));
            let before = read();
            let [_, later] = bed.datagram(any_port(to.addr_of(family)), &[1; 64]).cut(16);
            bed.send(&vec![later.frame(); COUNT]);
            let arrived = eventually(|| read() - before, |count| *count >= COUNT as i64);
            assert_eq!(arrived, COUNT as i64, "{family} to {}", to.name());
        }
    }
    bed.expect_no_drops(&drops, "later fragments");
}

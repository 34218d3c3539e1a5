//! Protocols other than TCP, UDP and ICMP: SCTP and whatever else runs over IP. The programs know none of them, and carry them all.

use overlay_tests::traffic::packet::raw;
use overlay_tests::traffic::paths::Volumes;
use overlay_userspace::family::Family;

use crate::bed::Bed;

/// SCTP, GRE, ESP, UDP-Lite, OSPF, VRRP, L2TP, and one for experiments (RFC 3692).
const PROTOCOLS: [u8; 8] = [132, 47, 50, 136, 89, 112, 115, 253];

#[test]
fn every_protocol_arrives_unchanged_with_the_senders_address() {
    let bed = Bed::new();
    let before = bed.drops();
    let volumes = Volumes::read(bed.cp());
    for way in bed.ways() {
        for family in Family::ALL {
            for protocol in PROTOCOLS {
                let what = format!("{family}, protocol {protocol}, {}", way.name);
                let to = way.to.address(family);
                let far = raw(way.to.namespace(), to, protocol).unwrap();
                let near = raw(way.from.namespace(), to, protocol).unwrap();
                // What looks like no header of any of them.
                let payload: Vec<u8> =
                    (0..700_u16).map(|index| (index ^ u16::from(protocol)) as u8).collect();
                near.send_to(&payload, (to, 0)).unwrap_or_else(|error| panic!("{what}: {error}"));
                let mut got = [0; 2048];
                let (len, from) = far.recv_from(&mut got).unwrap_or_else(|error| panic!("{what}: {error}"));
                let header = if family == Family::Ipv4 { 20 } else { 0 };
                assert_eq!(got[header..len], payload, "{what}");
                // A node calls its own pods from its gateway address as well.
                assert_eq!(from.ip(), way.from.seen(family), "{what}");
            }
        }
    }
    bed.expect_no_drops(&before, "every protocol");
    // Nothing of it is an exception: between pods all of it is encapsulated at once.
    let native = Volumes::read(bed.cp()).since(&volumes).get("encap_native").packets;
    let least = 3 * Family::ALL.len() * PROTOCOLS.len();
    assert!(native >= least as u64, "{native} of {least} packets were encapsulated natively");
}

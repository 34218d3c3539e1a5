//! What a pod says to its link alone: neighbour discovery, listener reports, and what only routers may say.

use std::net::Ipv6Addr;

use overlay_common::reason::Reason;

use super::{
    bed::{ALL_NODES, FAR_POD6, GATEWAY6, Inner as _, Ip6, LINK_LOCAL, OTHER_POD6, POD6, VTEP6, with},
    pod::{case, dropped},
};

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT: u8 = 143;

fn addr(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// About this address.
fn message(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, about: Ipv6Addr) -> Ip6 {
    Ip6::icmp(src, dst, kind, [0; 4], &about.octets())
}

#[test]
fn neighbour_discovery_is_the_stacks_to_answer() {
    with(|bed| {
        let solicited = addr("ff02::1:ff00:1");
        let ok = |name, ip: &Ip6| case(bed, name, ip.of_pod());
        bed.check(vec![
            ok("who has the gateway", &message(POD6, solicited, NEIGHBOUR_SOLICITATION, GATEWAY6)),
            ok(
                "the same, asked of the gateway itself",
                &message(POD6, GATEWAY6, NEIGHBOUR_SOLICITATION, GATEWAY6),
            ),
            ok(
                "from the link-local address",
                &message(LINK_LOCAL, solicited, NEIGHBOUR_SOLICITATION, GATEWAY6),
            ),
            ok(
                "does anybody have my address",
                &message(Ipv6Addr::UNSPECIFIED, addr("ff02::1:fff4:105"), NEIGHBOUR_SOLICITATION, LINK_LOCAL),
            ),
            ok("I have it", &message(POD6, GATEWAY6, NEIGHBOUR_ADVERTISEMENT, POD6)),
            ok(
                "I have it, to the link",
                &message(LINK_LOCAL, addr("fe80::1"), NEIGHBOUR_ADVERTISEMENT, LINK_LOCAL),
            ),
            ok(
                "is there a router",
                &Ip6::icmp(LINK_LOCAL, addr("ff02::2"), ROUTER_SOLICITATION, [0; 4], &[]),
            ),
            ok(
                "what I listen to",
                &Ip6::icmp(Ipv6Addr::UNSPECIFIED, addr("ff02::16"), LISTENER_REPORT, [0; 4], &[0; 20])
                    .extended(0, 0),
            ),
            ok("any protocol between link-local addresses", &Ip6::udp(LINK_LOCAL, addr("fe80::1"), 53)),
        ]);
    });
}

#[test]
fn an_address_of_the_link_reaches_nothing_else() {
    with(|bed| {
        for (name, dst) in [
            ("the gateway", GATEWAY6),
            ("the node", VTEP6),
            ("a local pod", OTHER_POD6),
            ("a remote pod", FAR_POD6),
            ("the loopback address", Ipv6Addr::LOCALHOST),
        ] {
            bed.check(vec![
                dropped(bed, name, &Ip6::udp(LINK_LOCAL, dst, 53), Reason::PodSourceAddress),
                dropped(bed, name, &Ip6::udp(Ipv6Addr::UNSPECIFIED, dst, 53), Reason::PodSourceAddress),
            ]);
        }
    });
}

#[test]
fn a_pod_is_no_router() {
    with(|bed| {
        let no = |name, ip: &Ip6| dropped(bed, name, ip, Reason::PodRouter);
        let advertisement = Ip6::icmp(LINK_LOCAL, ALL_NODES, ROUTER_ADVERTISEMENT, [64, 0, 7, 8], &[0; 8]);
        bed.check(vec![
            no("an advertisement", &advertisement),
            no("to the other end alone", &Ip6 { dst: addr("fe80::1"), ..advertisement.clone() }),
            no("from its own address", &Ip6 { src: POD6, ..advertisement.clone() }),
            no("to a local pod", &Ip6 { src: POD6, dst: OTHER_POD6, ..advertisement.clone() }),
            no("to a remote pod", &Ip6 { src: POD6, dst: FAR_POD6, ..advertisement.clone() }),
            no("behind hop-by-hop options", &advertisement.extended(0, 0)),
            no("behind destination options", &advertisement.extended(60, 2)),
            no("in a first fragment", &advertisement.fragment(0, true)),
            no("in an atomic fragment", &advertisement.fragment(0, false)),
            no("a redirect", &message(LINK_LOCAL, addr("fe80::1"), REDIRECT, VTEP6)),
            dropped(
                bed,
                "a message without a type",
                &Ip6 { payload: vec![], ..advertisement },
                Reason::Truncated,
            ),
        ]);
    });
}

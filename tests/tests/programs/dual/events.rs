//! Records of packets in IPv6.

use overlay_common::{
    counter::Path,
    maps::{Event, EventKind, TraceFilter},
    reason::{Hook, Reason},
};
use overlay_userspace::datapath::tracing::Request;

use super::bed::{
    FAR_POD, FAR_POD6, Inner as _, Ip6, OTHER_POD6, PEER6, POD6, REMOTE_POD6, STRANGER6, Tunnel, WORLD6, with,
};
use crate::bed::{Bed, Ip, PEER, POD, STRANGER};

/// The only record of running this packet.
fn record(bed: &Bed, hook: Hook, device: u32, packet: &[u8]) -> Event {
    let mut events = bed.events();
    bed.run(hook, packet, device);
    let batch = events.read();
    let [event] = batch.events[..] else { panic!("{} records", batch.events.len()) };
    assert_eq!(event.len as usize, packet.len());
    assert_eq!(event.head[..usize::from(event.head_len)], packet[..usize::from(event.head_len)]);
    event
}

#[test]
fn a_drop_of_an_ipv6_packet_is_described() {
    with(|bed| {
        let (hook, device) = (Hook::FromPod, bed.devices.pod);
        let spoofed = Ip6::udp(OTHER_POD6, WORLD6, 53);
        for (packet, ports) in [
            (spoofed.clone(), (40_000, 53)),
            (spoofed.extended(60, 1), (40_000, 53)),
            (spoofed.fragment(0, true), (40_000, 53)),
            (spoofed.fragment(185, false), (0, 0)),
        ] {
            let event = record(bed, hook, device, &packet.of_pod());
            assert_eq!((event.kind, event.code), (EventKind::Drop as u8, Reason::PodSourceAddress as u8));
            assert_eq!((event.src.to_ip(), event.dst.to_ip()), (OTHER_POD6.into(), WORLD6.into()));
            assert_eq!(((event.src_port, event.dst_port), event.protocol), (ports, 17), "{packet:?}");
            assert_eq!(event.ether_type, 0x86dd);
            assert!(event.outer_src.is_unspecified());
        }
    });
}

#[test]
fn a_dropped_tunnel_packet_is_described_with_its_outer_source_in_all_four_ways() {
    with(|bed| {
        let (v4, v6) = (Ip::udp(FAR_POD, POD, 53), Ip6::udp(FAR_POD6, POD6, 53));
        let over4 = [Tunnel::arriving(PEER.into(), &v4), Tunnel::arriving(PEER.into(), &v6)];
        let over6 = [Tunnel::arriving(PEER6.into(), &v4), Tunnel::arriving(PEER6.into(), &v6)];
        for (tunnels, from, ether_type) in
            [(over4, STRANGER.into(), 0x0800), (over6, std::net::IpAddr::from(STRANGER6), 0x86dd)]
        {
            let ends: [(std::net::IpAddr, std::net::IpAddr); 2] =
                [(FAR_POD.into(), POD.into()), (FAR_POD6.into(), POD6.into())];
            for (tunnel, ends) in tunnels.into_iter().zip(ends) {
                let packet = tunnel.from(from).bytes();
                for hook in [Hook::FromWire, Hook::XdpWire] {
                    let mut events = bed.events();
                    bed.run(hook, &packet, bed.devices.wire);
                    let event = events.read().events.pop().expect("a record");
                    assert_eq!(event.code, Reason::UnknownVtep as u8);
                    assert_eq!(event.outer_src.to_ip(), from);
                    assert_eq!((event.src.to_ip(), event.dst.to_ip()), ends);
                    assert_eq!((event.src_port, event.dst_port, event.protocol), (40_000, 53, 17));
                    assert_eq!(event.ether_type, ether_type);
                }
            }
        }
    });
}

#[test]
fn traces_are_of_the_family_that_was_asked_for() {
    with(|bed| {
        let mut events = bed.events();
        let filter = TraceFilter { dst: FAR_POD6.into(), ..TraceFilter::default() };
        let request = Request::new(bed.pins(), filter).unwrap();
        for packet in [
            Ip::udp(POD, FAR_POD, 53).of_pod(),
            Ip6::udp(POD6, REMOTE_POD6, 53).of_pod(),
            Ip6::udp(POD6, FAR_POD6, 53).of_pod(),
        ] {
            bed.run(Hook::FromPod, &packet, bed.devices.pod);
        }
        drop(request);
        let [event] = events.read().events[..] else { panic!("one was asked for") };
        assert_eq!((event.kind, event.code), (EventKind::Trace as u8, Path::EncapNative as u8));
        assert_eq!((event.src.to_ip(), event.dst.to_ip()), (POD6.into(), FAR_POD6.into()));
        assert_eq!(event.outer_src.to_ip(), std::net::IpAddr::from(super::bed::VTEP6));
    });
}

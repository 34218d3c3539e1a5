//! What the programs write down: drops within their budget, and traces while somebody asks.

use std::collections::HashMap;

use aya::maps::{Array, Map, MapData};
use overlay_common::{
    counter::Path,
    maps::{DROP_SLOTS, Event, EventKind, HEAD, REASON_BUDGET, TRACE_REQUESTS, TraceFilter, TraceSwitch},
    reason::{Hook, Reason},
};
use overlay_userspace::datapath::{
    events::{Events, Suppressed},
    run::{Context, Runner, Verdict},
    tables,
    tracing::{self, Request, TraceError},
};

use crate::bed::{Bed, Ip, OTHER_POD, POD, REMOTE_POD, STRANGER, Tunnel, WORLD, from_pod};

fn drop_of(reason: Reason, event: &Event) -> bool {
    event.kind == EventKind::Drop as u8 && u32::from(event.code) == reason as u32
}

/// Runs a packet that is dropped, because its source is another pod's.
fn run_dropped(bed: &Bed) -> Vec<u8> {
    let packet = from_pod(&Ip::udp(OTHER_POD, WORLD, 53));
    bed.run(Hook::FromPod, &packet, bed.devices.pod);
    packet
}

/// Runs a packet that goes to the world `times` times, as fast as the machine can.
fn run_often(bed: &Bed, times: u32) {
    let runner = Runner::open(bed.pins(), Hook::FromPod).unwrap();
    let packet = from_pod(&Ip::udp(POD, WORLD, 53));
    for _ in 0..times {
        let (verdict, _) = runner.run(&packet, Context { ifindex: bed.devices.pod, gso: None }).unwrap();
        assert_eq!(verdict, Verdict::Pass);
    }
}

#[test]
fn a_drop_is_described_in_a_record() {
    Bed::with(|bed| {
        let mut events = bed.events();
        let packet = run_dropped(bed);
        let batch = events.read();
        let [event] = batch.events[..] else { panic!("one drop, {} records", batch.events.len()) };
        assert!(drop_of(Reason::PodSourceAddress, &event), "{event:?}");
        assert_eq!(event.hook, Hook::FromPod as u8);
        assert_eq!((event.src.to_ip(), event.dst.to_ip()), (OTHER_POD.into(), WORLD.into()));
        assert_eq!((event.src_port, event.dst_port, event.protocol), (40_000, 53, 17));
        assert_eq!(
            (event.ifindex, event.len as usize, event.ether_type),
            (bed.devices.pod, packet.len(), 0x0800)
        );
        assert!(event.outer_src.is_unspecified() && event.time_ns > 0);
        assert_eq!(&event.head[..usize::from(event.head_len)], packet);
        assert_eq!(batch.missed, 0);
        assert!(events.read().events.is_empty(), "one drop, one record");
    });
}

#[test]
fn a_dropped_tunnel_packet_is_described_with_its_outer_source() {
    Bed::with(|bed| {
        let mut events = bed.events();
        let inner = Ip::udp(REMOTE_POD, POD, 53);
        let arriving = Tunnel::arriving(&inner);
        let tunnel = Tunnel { outer: Ip { src: STRANGER, ..arriving.outer.clone() }, ..arriving };
        bed.run(Hook::FromWire, &tunnel.bytes(), bed.devices.wire);
        let event = events.read().events.pop().expect("a record");
        assert!(drop_of(Reason::UnknownVtep, &event), "{event:?}");
        assert_eq!(event.outer_src.to_ip(), STRANGER);
        assert_eq!((event.src.to_ip(), event.dst.to_ip()), (REMOTE_POD.into(), POD.into()));
        assert_eq!((event.src_port, event.dst_port), (40_000, 53));
    });
}

#[test]
fn of_a_long_packet_the_head_is_kept() {
    Bed::with(|bed| {
        let mut events = bed.events();
        let packet = from_pod(&Ip::tcp(OTHER_POD, WORLD, 1000));
        bed.run(Hook::FromPod, &packet, bed.devices.pod);
        let event = events.read().events.pop().expect("a record");
        assert_eq!((usize::from(event.head_len), event.len as usize), (HEAD, packet.len()));
        assert_eq!(event.head, packet[..HEAD]);
        // And of one that is shorter than that no more than there is.
        let packet = from_pod(&Ip::udp(OTHER_POD, WORLD, 53));
        bed.run(Hook::FromPod, &packet, bed.devices.pod);
        let event = events.read().events.pop().expect("a record");
        assert_eq!(usize::from(event.head_len), packet.len());
    });
}

fn suppressed(events: &Events, before: &Suppressed) -> u64 {
    let now = events.suppressed();
    now.drops.iter().zip(&before.drops).map(|(now, before)| now - before).sum()
}

/// Packets that are dropped, more than any budget.
const FLOOD: u64 = 3000;

#[test]
fn what_is_recorded_and_what_is_not_is_what_was_dropped() {
    Bed::with(|bed| {
        let mut events = bed.events();
        let before = events.suppressed();
        let dropped =
            || tables::drops(bed.pins()).unwrap().iter().map(|(_, counter)| counter.packets).sum::<u64>();
        let already = dropped();
        let mut recorded = 0;
        for round in 0..FLOOD {
            run_dropped(bed);
            if round % 64 == 0 {
                let batch = events.read();
                assert_eq!(batch.missed, 0);
                recorded += batch.events.len() as u64;
            }
        }
        recorded += events.read().events.len() as u64;
        assert_eq!(dropped() - already, FLOOD);
        assert_eq!(recorded + suppressed(&events, &before), FLOOD);
        assert!(recorded >= u64::from(REASON_BUDGET).min(FLOOD), "{recorded} records");
    });
}

#[test]
fn a_flood_of_one_reason_hides_no_other() {
    Bed::with(|bed| {
        let mut events = bed.events();
        let before = events.suppressed();
        // Until the budget of this window is used up; each CPU has its own.
        while events.suppressed() == before {
            run_dropped(bed);
        }
        let other = Ip::udp(POD, REMOTE_POD, 53);
        let mut odd = from_pod(&other);
        odd[12..14].copy_from_slice(&[0x88, 0xcc]);
        bed.run(Hook::FromPod, &odd, bed.devices.pod);
        let batch = events.read();
        assert!(
            batch.events.iter().any(|event| drop_of(Reason::PodProtocol, event)),
            "{}",
            batch.events.len()
        );
    });
}

#[test]
fn every_reader_gets_every_record() {
    Bed::with(|bed| {
        let mut readers = [bed.events(), bed.events(), bed.events()];
        for _ in 0..5 {
            run_dropped(bed);
        }
        for reader in &mut readers {
            assert_eq!(reader.read().events.len(), 5);
        }
        // One that comes later finds what is kept.
        let mut late = Events::open(bed.pins()).unwrap();
        assert_eq!(late.read().events.len(), 5);
    });
}

#[test]
fn a_reader_that_is_too_slow_knows_how_much_it_missed() {
    Bed::with(|bed| {
        let mut slow = bed.events();
        let before = slow.suppressed();
        let mut count = 0_u64;
        // More than a CPU keeps, whichever the packets run on; the budget makes it last a few windows.
        while count - suppressed(&slow, &before) < 5 * DROP_SLOTS as u64 {
            run_dropped(bed);
            count += 1;
        }
        let batch = slow.read();
        assert!(batch.missed > 0);
        assert_eq!(batch.events.len() as u64 + batch.missed + suppressed(&slow, &before), count);
        assert!(batch.events.is_sorted_by_key(|event| event.time_ns));
    });
}

/// A packet by each way that the programs know, and the path that it is counted under.
fn ways(bed: &Bed) -> Vec<(Hook, Vec<u8>, u32, Path)> {
    let to_remote = Ip::udp(POD, REMOTE_POD, 53);
    let from_remote = Ip::udp(REMOTE_POD, POD, 53);
    vec![
        (Hook::FromPod, from_pod(&Ip::udp(POD, OTHER_POD, 53)), bed.devices.pod, Path::Local),
        (Hook::FromPod, from_pod(&to_remote), bed.devices.pod, Path::EncapNative),
        (Hook::FromPod, from_pod(&Ip::udp(POD, WORLD, 53)), bed.devices.pod, Path::PodToStack),
        (Hook::FromWire, Tunnel::arriving(&from_remote).bytes(), bed.devices.wire, Path::DecapNative),
        (Hook::ToPod, from_pod(&Ip::udp(WORLD, POD, 53)), bed.devices.pod, Path::StackToPod),
    ]
}

#[test]
fn nothing_is_traced_unless_somebody_asks() {
    Bed::with(|bed| {
        let mut events = bed.events();
        assert!(!tracing::is_on(bed.pins()).unwrap());
        for (hook, packet, device, _) in ways(bed) {
            bed.run(hook, &packet, device);
        }
        assert!(events.read().events.is_empty());
    });
}

#[test]
fn each_step_of_a_packet_is_traced_while_somebody_asks() {
    Bed::with(|bed| {
        let mut events = bed.events();
        let request = Request::new(bed.pins(), TraceFilter::default()).unwrap();
        assert!(tracing::is_on(bed.pins()).unwrap());
        for (hook, packet, device, path) in ways(bed) {
            bed.run(hook, &packet, device);
            let found = events.read().events;
            let [event] = found[..] else { panic!("{path:?}: {} records", found.len()) };
            assert_eq!((event.kind, event.code), (EventKind::Trace as u8, path as u8), "{path:?}");
            assert_eq!(event.hook, hook as u8, "{path:?}");
            assert_eq!((event.dst_port, event.protocol), (53, 17), "{path:?}");
            let inside = [event.src.to_ip(), event.dst.to_ip()];
            assert!(inside.contains(&POD.into()), "{path:?}: {inside:?}");
        }
        drop(request);
        assert!(!tracing::is_on(bed.pins()).unwrap());
        for (hook, packet, device, _) in ways(bed) {
            bed.run(hook, &packet, device);
        }
        assert!(events.read().events.is_empty());
    });
}

#[test]
fn packets_that_nobody_asked_for_use_up_nothing() {
    Bed::with(|bed| {
        let mut events = bed.events();
        let wanted =
            TraceFilter { either: REMOTE_POD.into(), port: 53, protocol: 17, ..TraceFilter::default() };
        let mut request = Request::new(bed.pins(), wanted).unwrap();
        run_often(bed, 1000);
        // A slow machine may need longer for those than a request lasts.
        request.renew().unwrap();
        bed.run(Hook::FromPod, &from_pod(&Ip::udp(POD, REMOTE_POD, 53)), bed.devices.pod);
        bed.run(Hook::FromPod, &from_pod(&Ip::udp(POD, REMOTE_POD, 54)), bed.devices.pod);
        let found = events.read().events;
        assert_eq!(found.iter().map(|event| event.dst.to_ip()).collect::<Vec<_>>(), [REMOTE_POD]);
        assert_eq!(events.suppressed().traces, 0);
    });
}

#[test]
fn several_may_ask_and_each_gets_what_it_asked_for() {
    Bed::with(|bed| {
        let port = |port| TraceFilter { port, ..TraceFilter::default() };
        let mut requests: Vec<_> =
            (0..TRACE_REQUESTS as u16).map(|n| Request::new(bed.pins(), port(1000 + n)).unwrap()).collect();
        assert!(matches!(Request::new(bed.pins(), port(1)), Err(TraceError::Busy)));
        let mut events = bed.events();
        let mut traced = |bed: &Bed| {
            for dst_port in 999..1006 {
                bed.run(Hook::FromPod, &from_pod(&Ip::udp(POD, WORLD, dst_port)), bed.devices.pod);
            }
            events.read().events.iter().map(|event| event.dst_port).collect::<Vec<_>>()
        };
        assert_eq!(traced(bed), [1000, 1001, 1002, 1003]);
        // One that has gone leaves its place to another, and the rest alone.
        drop(requests.remove(1));
        assert_eq!(traced(bed), [1000, 1002, 1003]);
        requests.push(Request::new(bed.pins(), port(1005)).unwrap());
        for request in &mut requests {
            request.renew().unwrap();
        }
        assert_eq!(traced(bed), [1000, 1002, 1003, 1005]);
    });
}

fn switch(bed: &Bed) -> Array<MapData, TraceSwitch> {
    let map = MapData::from_pin(bed.pins().map("TRACE_SWITCH")).unwrap();
    Array::try_from(Map::Array(map)).unwrap()
}

#[test]
fn whoever_is_killed_leaves_a_request_that_runs_out() {
    Bed::with(|bed| {
        let mut events = bed.events();
        // What SIGKILL does: nobody takes it back.
        std::mem::forget(Request::new(bed.pins(), TraceFilter::default()).unwrap());
        let mut left = switch(bed).get(&0, 0).unwrap();
        let lease = std::time::Duration::from_nanos(left.until_ns - tracing::now().unwrap());
        assert!(lease <= tracing::LEASE, "{lease:?}");
        // Its time has come.
        left.until_ns = 1;
        left.requests[0].until_ns = 1;
        switch(bed).set(0, left, 0).unwrap();
        bed.run(Hook::FromPod, &from_pod(&Ip::udp(POD, WORLD, 53)), bed.devices.pod);
        assert!(events.read().events.is_empty());
        assert_eq!(switch(bed).get(&0, 0).unwrap().until_ns, 0, "the first packet turns it off");
        // And the place is free.
        let places: Vec<_> =
            (0..TRACE_REQUESTS).map(|_| Request::new(bed.pins(), TraceFilter::default())).collect();
        assert!(places.iter().all(Result::is_ok));
    });
}

#[test]
fn what_is_kept_of_drops_is_not_pushed_out_by_traces() {
    Bed::with(|bed| {
        run_dropped(bed);
        let mut request = Request::new(bed.pins(), TraceFilter::default()).unwrap();
        let before = bed.events().suppressed().traces;
        // The budget is one of time: a slow machine needs more packets to go beyond it.
        let beyond = (0..200).any(|_| {
            request.renew().unwrap();
            run_often(bed, 1000);
            bed.events().suppressed().traces >= before + 100
        });
        assert!(beyond, "200 000 packets were within the budget");
        let kept = Events::open(bed.pins()).unwrap().read().events;
        let mut kinds: HashMap<u8, usize> = HashMap::new();
        for event in &kept {
            *kinds.entry(event.kind).or_default() += 1;
        }
        assert_eq!(kinds[&(EventKind::Drop as u8)], 1);
        assert!(kinds[&(EventKind::Trace as u8)] >= 100);
    });
}

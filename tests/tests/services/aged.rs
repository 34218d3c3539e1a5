//! A connection that was idle while the table of flows was filled, more than once over, by flows that are gone.
//!
//! Half an hour in seconds: what conntrack would forget by then is deleted, and what the table has of it is given an older date.

use std::net::UdpSocket;
use std::time::Duration;

use overlay_common::maps::{Flow, FlowKey};
use overlay_tests::lab::services::{Protocol, ProxyMode};
use overlay_tests::lab::{Network, Node, within};
use overlay_tests::traffic::serve::Server;
use overlay_tests::traffic::{conntrack, udp};
use overlay_userspace::datapath::flows::StackFlows;
use overlay_userspace::datapath::pins::Pins;

use crate::bed::{Bed, Ground, Kind};
use crate::matrix;
use crate::scenarios::flows::{FIRST, LAST};

/// Room in the table.
const CAPACITY: u32 = 4096;

/// Flows of a round: more than the quarter of the table after which it is swept.
const ROUND: u32 = 1500;

/// Together more than there is room for.
const ROUNDS: u32 = 3;

/// How long a sweep may take to come, and to be done.
const SOON: Duration = Duration::from_secs(15);

/// The table of a node.
#[track_caller]
fn table(node: &Node) -> StackFlows {
    StackFlows::open(&Pins::new(node.pins())).unwrap()
}

/// Gives entries a date of long ago.
#[track_caller]
fn age(table: &mut StackFlows, keys: impl IntoIterator<Item = FlowKey>) {
    for key in keys {
        table.record(&key, Flow { recorded_ns: 1 }).unwrap();
    }
}

#[test]
fn connection_outlives_a_table_full_of_other_flows() {
    let network = Network { stack_flows: Some(CAPACITY), ..Network::default() };
    let mut bed = Bed::start(Ground::Overlay(Box::new(network)), &ProxyMode::Nft, Kind::PLAIN);
    let opened = matrix::run(&mut bed, FIRST);
    assert!(opened[0].error.is_none(), "{:?}", opened[0].error);
    let cp = &bed.overlay_nodes()[0];
    let mut table = table(cp);
    let idle = table.keys().unwrap();
    assert!(idle.len() >= 4, "connections through Services are in the table: {idle:?}");
    age(&mut table, idle.clone());

    let (server, listen) = bed.backend("w1", Protocol::Udp);
    let _server = Server::udp(&server.namespace, listen, "").unwrap();
    let dial = bed.cluster_ip("w1", Protocol::Udp);
    let client = bed.pod("cp", "a");
    for round in 0..ROUNDS {
        // All at once: each has a port of its own.
        let sockets: Vec<UdpSocket> =
            (0..ROUND).map(|_| udp::unbound(&client.namespace, dial.ip()).unwrap()).collect();
        for socket in &sockets {
            socket.send_to(b"a question", dial).unwrap();
            socket.recv_from(&mut [0; 64]).unwrap();
        }
        let keys = table.keys().unwrap();
        let flows = keys.iter().filter(|key| !idle.contains(key)).count();
        assert!(flows >= ROUND as usize, "{flows} flows of round {round} are in the table");
        conntrack::forget(cp.namespace(), "udp");
        age(&mut table, keys.into_iter().filter(|key| !idle.contains(key)));
        within(SOON, "the table is swept", || table.keys().unwrap().len() < idle.len() + 100);
    }
    let left = table.keys().unwrap();
    let gone: Vec<&FlowKey> = idle.iter().filter(|key| !left.contains(key)).collect();
    assert!(gone.is_empty(), "gone although their connections are tracked: {gone:?}");
    let spoken = matrix::run(&mut bed, LAST);
    assert!(spoken[0].error.is_none(), "{:?}", spoken[0].error);
}

//! What the table of flows costs a packet that has nothing to do with it. A measurement, run on demand and not judged:
//! `cargo test -p overlay-tests --test cost -- --ignored --nocapture`.
//!
//! Requests and answers of 64 bytes between two pods of two nodes, everything on one CPU, so that their rate is the inverse
//! of what a packet costs in all. The contenders take turns in short rounds; what counts is the median of the ratios within
//! a round.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests panic, to keep the line number"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use overlay_common::maps::{Flow, FlowKey};
use overlay_tests::lab::{ClusterFile, Lab, Lan, Link, Network, Node};
use overlay_tests::traffic::udp;
use overlay_userspace::datapath::{flows::StackFlows, pins::Pins};

const ROUNDS: usize = 41;
const TURN: Duration = Duration::from_millis(150);
/// Recorded flows of the contenders; the first one has the mechanism switched off.
const FLOWS: [Option<u32>; 4] = [None, Some(0), Some(1), Some(100_000)];

fn on_one_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// Round trips in a turn.
fn turn(client: &UdpSocket) -> f64 {
    let mut buffer = [0_u8; 64];
    let start = Instant::now();
    let mut done = 0_u32;
    while start.elapsed() < TURN {
        client.send(&buffer).unwrap();
        client.recv(&mut buffer).unwrap();
        done += 1;
    }
    f64::from(done) / start.elapsed().as_secs_f64()
}

/// Makes the table of a node hold this many flows that are not those of the pods.
fn record(node: &Node, flows: u32) {
    let mut table = StackFlows::open(&Pins::new(node.pins())).unwrap();
    for key in table.keys().unwrap() {
        table.remove(&key).unwrap();
    }
    table.switch(flows > 0).unwrap();
    for flow in 0..flows {
        let [_, a, b, c] = flow.to_be_bytes();
        let key = FlowKey {
            src: Ipv4Addr::new(10, 244, 200 + a, b).into(),
            dst: Ipv4Addr::new(10, 244, 1, c).into(),
            src_port: 80,
            dst_port: 40_000,
            protocol: 17,
            ..FlowKey::default()
        };
        table.record(&key, Flow { recorded_ns: u64::MAX }).unwrap();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement"]
fn direct_packets_beside_recorded_flows() {
    on_one_cpu();
    let lab = Lab::new();
    let lan = Lan::new(&lab, "lan", Link::default());
    let node = |name: &str, number: u8| {
        let subnet = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24);
        Node::builder(name, Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, number), 24), subnet)
            .on_lan(&lab, &lan)
    };
    // One pair of nodes for each contender: nothing has to be changed between the turns.
    let pairs: Vec<_> = FLOWS
        .into_iter()
        .zip(1..)
        .map(|(flows, i)| (flows, node(&format!("a{i}"), 2 * i), node(&format!("b{i}"), 2 * i + 1)))
        .collect();
    let nodes: Vec<_> = pairs.iter().flat_map(|(_, a, b)| [a.entry(), b.entry()]).collect();
    let mut pods = Vec::new();
    let mut clients = Vec::new();
    for (flows, a, b) in &pairs {
        let network = Network { stack_flows: flows.is_none().then_some(0), ..Network::default() };
        lab.write_cluster(&ClusterFile { network, nodes: nodes.clone() });
        for node in [a, b] {
            node.start_agent();
        }
        let (client, server) = (a.add_pod(&lab, "client"), b.add_pod(&lab, "server"));
        let echo = udp::bind(server.namespace(), SocketAddr::new(IpAddr::V4(server.addr()), 0)).unwrap();
        clients.push(udp::connected(client.namespace(), echo.local_addr().unwrap()).unwrap());
        echo.set_read_timeout(None).unwrap();
        thread::spawn(move || {
            on_one_cpu();
            let mut buffer = [0; 64];
            while let Ok((len, from)) = echo.recv_from(&mut buffer) {
                if echo.send_to(&buffer[..len], from).is_err() {
                    break;
                }
            }
        });
        // The agents are not on the path, and are not to be measured.
        for node in [a, b] {
            node.stop_agent();
            record(node, flows.unwrap_or(0));
        }
        pods.push((client, server));
    }
    let mut ratios = vec![Vec::new(); FLOWS.len()];
    for round in 0..ROUNDS {
        let mut rates = vec![0.0; FLOWS.len()];
        for turn_of in 0..FLOWS.len() {
            let contender = (round + turn_of) % FLOWS.len();
            rates[contender] = turn(&clients[contender]);
        }
        for (ratios, rate) in ratios.iter_mut().zip(&rates) {
            ratios.push(rate / rates[0]);
        }
    }
    for (flows, ratios) in FLOWS.into_iter().zip(ratios) {
        let what = flows.map_or_else(|| "switched off".into(), |flows| format!("{flows} recorded flows"));
        println!("{what:>21}: {:.3}", median(ratios));
    }
    drop(pods);
}

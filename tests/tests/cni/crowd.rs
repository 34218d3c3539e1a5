//! Many pods at once.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use overlay_tests::lab::{Families, Namespace};
use overlay_tests::traffic::ping;
use serde_json::{Value, json};

use crate::bed::{Bed, GATEWAY, expect_same};

const PODS: usize = 200;
const WORKERS: usize = 8;

/// Does `work` for each number below [`PODS`], by [`WORKERS`] threads; results in any order.
fn by_workers<T: Send>(work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let worker = || {
            let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
            numbers.take_while(|number| *number < PODS).map(&work).collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

#[test]
fn two_hundred_pods_come_and_go_over_eight_workers_and_the_node_is_as_before() {
    expect_all_to_come_and_go(Families::Ipv4);
}

#[test]
fn two_hundred_pods_of_both_families_come_and_go_over_eight_workers_and_the_node_is_as_before() {
    expect_all_to_come_and_go(Families::Dual);
}

#[track_caller]
fn expect_all_to_come_and_go(families: Families) {
    let bed = Bed::start_with(families);
    let mut pods: Vec<Namespace> = by_workers(|number| bed.sandbox(&format!("p{number}")));
    pods.sort_by_key(|pod| pod.name().to_owned());
    let before = bed.snapshot();

    let added: Vec<Value> = by_workers(|number| bed.must("ADD", &pods[number], json!({})));
    let all = added.iter().flat_map(|result| result["ips"].as_array().unwrap());
    let addresses: HashSet<_> = all.map(|ip| ip["address"].to_string()).collect();
    let count = PODS * families.iter().count();
    assert_eq!(addresses.len(), count, "addresses are unique");
    assert_eq!(bed.holders(), count);
    let status = bed.must("STATUS", &bed.beside, json!({}));
    assert_eq!(status, Value::Null);
    for (pod, other) in [(0, 1), (99, 100), (198, 199)] {
        ping::ping(&pods[pod], GATEWAY.parse::<IpAddr>().unwrap()).unwrap();
        let link = pods[other].ip_json("address show dev eth0");
        for held in link[0]["addr_info"].as_array().unwrap().iter().filter(|held| held["scope"] == "global") {
            let address: IpAddr = held["local"].as_str().unwrap().parse().unwrap();
            ping::ping(&pods[pod], address).unwrap();
        }
    }

    by_workers(|number| drop(bed.must("DEL", &pods[number], json!({}))));
    expect_same(&bed.snapshot(), &before, "after all are gone");
    assert_eq!(bed.holders(), 0);
}

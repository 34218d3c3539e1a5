//! Both address families on a node with a real agent.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use nix::sys::signal::Signal;
use overlay_tests::lab::{Families, Listed, Namespace, within};
use overlay_tests::traffic::{ping, tcp};
use serde_json::{Value, json};

use crate::bed::{Bed, GATEWAY, GATEWAY6};

/// How long an agent may take to put something right; it looks at everything every five seconds.
const HEALED: Duration = Duration::from_secs(20);

/// The addresses in a result, in its order.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let parse = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    result["ips"].as_array().unwrap().iter().map(parse).collect()
}

fn reaches(pod: &Namespace, address: &str) -> bool {
    ping::ping(pod, address.parse().unwrap()).is_ok()
}

#[test]
fn a_pod_has_all_of_its_addresses_at_once_and_needs_no_agent_for_it() {
    let bed = Bed::start_with(Families::Dual);
    bed.node.kill_agent(Signal::SIGKILL);
    let (one, two) = (bed.sandbox("one"), bed.sandbox("two"));
    let result = bed.must("ADD", &one, json!({}));
    let found: Vec<_> = addresses(&result).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.244.1.2", "fd00:10:244:1::2"]);
    // No waiting: what cannot be used yet cannot be bound.
    for address in addresses(&result) {
        one.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    }
    assert_eq!(one.ip("-o address show tentative"), "");
    bed.must("ADD", &two, json!({}));
    for address in addresses(&result) {
        let seen = tcp::exchange(&two, &one, SocketAddr::new(address, 80)).unwrap();
        assert!(seen.same_address(), "{seen:?}");
        let seen = tcp::exchange(bed.node.namespace(), &one, SocketAddr::new(address, 80)).unwrap();
        assert_eq!(seen.server_saw.ip().to_string(), if address.is_ipv4() { GATEWAY } else { GATEWAY6 });
    }
    bed.must("CHECK", &one, json!({ "prevResult": result }));
    bed.must("DEL", &one, json!({}));
    bed.must("DEL", &two, json!({}));
    assert_eq!(bed.holders(), 0);
}

#[test]
fn who_forgets_his_gateways_mac_is_told_again() {
    let bed = Bed::start_with(Families::Dual);
    let pod = bed.sandbox("pod");
    bed.must("ADD", &pod, json!({}));
    for gateway in [GATEWAY, GATEWAY6] {
        pod.ip(&format!("neighbour delete {gateway} dev eth0"));
        within(HEALED, gateway, || reaches(&pod, gateway));
        let entries = pod.ip_json(&format!("neighbour show {gateway}"));
        assert_ne!(entries[0]["state"], json!(["PERMANENT"]), "it was asked for");
    }
}

#[test]
fn a_pod_stays_sound_when_its_node_gets_another_family() {
    let bed = Bed::start_with(Families::Dual);
    let both = bed.node.entry();
    let mut four = both.clone();
    four.subnet = Listed::new(both.subnet.all().iter().copied().filter(|net| net.addr().is_ipv4()));
    bed.carry(Families::Ipv4, vec![four]);
    let carries = |count: usize| {
        let probe = bed.sandbox(&format!("probe{count}"));
        within(HEALED, "the node carries other families", || {
            // At no moment of the change a call fails.
            let found = addresses(&bed.must("ADD", &probe, json!({}))).len();
            bed.must("DEL", &probe, json!({}));
            found == count
        });
    };
    carries(1);
    let (old, new) = (bed.sandbox("old"), bed.sandbox("new"));
    let result = bed.must("ADD", &old, json!({}));
    assert_eq!(addresses(&result).len(), 1);
    bed.carry(Families::Dual, vec![both]);
    carries(2);
    bed.must("CHECK", &old, json!({ "prevResult": result }));
    assert!(reaches(&old, GATEWAY));
    let result = bed.must("ADD", &new, json!({}));
    for address in addresses(&result) {
        ping::ping(bed.node.namespace(), address).unwrap();
    }
    assert!(reaches(&old, &addresses(&result)[0].to_string()));
    for pod in [&old, &new] {
        bed.must("DEL", pod, json!({}));
    }
    assert_eq!(bed.holders(), 0);
}

#[test]
fn what_others_break_of_a_pods_ipv6_comes_back() {
    let bed = Bed::start_with(Families::Dual);
    let (host, pod) = (bed.node.namespace(), bed.sandbox("pod"));
    let result = bed.must("ADD", &pod, json!({}));
    let device = result["interfaces"][0]["name"].as_str().unwrap();
    let address = addresses(&result)[1];
    let sound = || {
        let route = host.ip_json(&format!("-6 route show {address}"));
        let neighbour = host.ip_json(&format!("-6 neighbour show {address} dev {device} nud permanent"));
        let proxy = host.ip("-6 neighbour show proxy");
        route[0]["dev"] == device
            && route[0]["prefsrc"] == GATEWAY6
            && neighbour.as_array().is_some_and(|list| list.len() == 1)
            && proxy.contains(&format!("{GATEWAY6} dev {device}"))
            && ping::ping(host, address).is_ok()
    };
    assert!(sound());
    for command in
        [format!("-6 route delete {address}"), format!("-6 neighbour delete {address} dev {device}")]
    {
        host.ip(&command);
        within(HEALED, &command, sound);
    }
    // The kernel forgets all of it.
    host.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1");
    within(HEALED, "IPv6 is on again", sound);
    bed.must("CHECK", &pod, json!({ "prevResult": result }));
}

//! Thousands of ports.

use overlay_tests::lab::{Cluster, Families};
use overlay_userspace::family::Family;
use serde_json::{Value, json};

use crate::bed::{POD_PORT, Protocol, has_table, held};

const FIRST: u16 = 20_000;
const COUNT: u16 = 2000;

#[test]
fn a_pod_takes_two_thousand_ports_at_once_and_gives_them_back() {
    let cluster = Cluster::builder().families(Families::Dual).start();
    let node = cluster.node("w1");
    let mapping = |port: u16| {
        json!({
            "hostPort": port, "containerPort": POD_PORT,
            "protocol": if port.is_multiple_of(2) { "tcp" } else { "udp" },
        })
    };
    let list: Vec<Value> = (FIRST..FIRST + COUNT).map(mapping).collect();
    let pod = node.add_pod_with_ports(cluster.lab(), "many", &json!(list));
    // Of both families.
    assert_eq!(held(node), 2 * usize::from(COUNT));
    for (protocol, port) in
        [(Protocol::Tcp, FIRST), (Protocol::Tcp, FIRST + 998), (Protocol::Udp, FIRST + COUNT - 1)]
    {
        let world = cluster.world();
        for family in Family::ALL {
            let seen = protocol.exchange(world.namespace(), &pod, node.address_of(family), port).unwrap();
            assert_eq!(seen.server_saw.ip(), world.address_of(family));
        }
    }
    // One that overlaps with the last of them gets none.
    let refused = node.try_add_pod_with(
        cluster.lab(),
        "other",
        &json!({"portMappings": (FIRST - 9..=FIRST).map(mapping).collect::<Vec<_>>()}),
    );
    let error = refused.expect_err("a port of another pod");
    assert_eq!(error.code, 107, "{error}");
    assert_eq!(held(node), 2 * usize::from(COUNT));
    pod.del();
    assert_eq!(held(node), 0);
    assert!(Family::ALL.iter().all(|family| !has_table(node, *family)));
}

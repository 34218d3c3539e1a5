//! Names of pods and nodes: there when their holder is, and gone with it.

use serde_json::{Value, json};

use crate::bed::{Bed, run};

fn endpoint(bed: &Bed, address: &str) -> Option<Value> {
    let endpoints = bed.cp().show("endpoints");
    endpoints.as_array().expect("a list").iter().find(|row| row["address"] == address).cloned()
}

#[test]
fn a_pod_has_its_name_from_add_to_del() {
    let bed = Bed::new();
    let address = bed.a.addr().to_string();
    let row = endpoint(&bed, &address).expect("the pod");
    assert_eq!((&row["namespace"], &row["pod"]), (&json!("default"), &json!("a")));

    bed.a.del();
    assert_eq!(endpoint(&bed, &address), None);
    // Who gets the address next has another name, or none.
    let namespace = bed.cluster.lab().namespace("cp-plain");
    let mut call = bed.cp().cni_call("ADD", &namespace, "plain");
    call.args = format!("IgnoreUnknown=1;IP={address}");
    bed.cp().cni(&call).unwrap();
    let row = endpoint(&bed, &address).expect("the pod");
    assert_eq!((&row["namespace"], &row["pod"]), (&Value::Null, &Value::Null));
    let out = run(bed.cp(), &["monitor", "--pod", "a", "--last", "1"]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
}

#[test]
fn nodes_have_their_names() {
    let bed = Bed::new();
    let nodes = bed.cp().show("nodes");
    let name = |address: String| {
        let row = nodes.as_array().expect("a list").iter().find(|row| row["address"] == address);
        row.map(|row| row["name"].clone())
    };
    for node in bed.cluster.nodes() {
        assert_eq!(name(node.address().to_string()), Some(json!(node.name())));
        assert_eq!(name(node.subnet().network().to_string()), Some(json!(node.name())));
    }
}

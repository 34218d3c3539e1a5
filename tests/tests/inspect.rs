//! What people see of a node: the pinned maps by bpftool, and what the commands of `overlay` print. Each view says the
//! same.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::{Child, Stdio};

use overlay_tests::lab::{Cluster, Node, exec};
use overlay_tests::traffic::tcp;
use serde_json::{Value, json};

/// `bpftool <arguments> map dump pinned <map>`.
#[track_caller]
fn dump(node: &Node, arguments: &[&str], map: &str) -> String {
    let mut bpftool = node.namespace().command("bpftool");
    bpftool.args(arguments).args(["map", "dump", "pinned"]).arg(node.pins().join("maps").join(map));
    exec::must(&mut bpftool, "")
}

/// The entries of a map with the names of their fields.
#[track_caller]
fn entries(node: &Node, map: &str) -> Vec<(Value, Value)> {
    let dump: Value = serde_json::from_str(&dump(node, &["-j"], map)).unwrap();
    let entry = |entry: &Value| (entry["formatted"]["key"].clone(), entry["formatted"]["value"].clone());
    dump.as_array().expect("a list").iter().map(entry).collect()
}

#[track_caller]
fn bytes(value: &Value) -> Vec<u8> {
    let byte = |value: &Value| value.as_u64().and_then(|byte| u8::try_from(byte).ok());
    let bytes = value.as_array().and_then(|bytes| bytes.iter().map(byte).collect());
    bytes.unwrap_or_else(|| panic!("not a list of bytes: {value}"))
}

/// An address of a map as people write it.
#[track_caller]
fn address(value: &Value) -> String {
    let octets: [u8; 16] = bytes(&value["bytes"]).try_into().expect("an address has 16 bytes");
    Ipv6Addr::from(octets).to_canonical().to_string()
}

#[track_caller]
fn mac(value: &Value) -> String {
    bytes(value).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// A name of a map, NUL-padded.
#[track_caller]
fn text(value: &Value) -> String {
    String::from_utf8(bytes(value)).unwrap().trim_end_matches('\0').to_owned()
}

/// Rows of `overlay <what> -o json` by address.
#[track_caller]
fn by_address(rows: &Value) -> BTreeMap<String, Value> {
    let rows = rows.as_array().expect("a list").iter();
    rows.map(|row| (row["address"].as_str().expect("an address").to_owned(), row.clone())).collect()
}

#[test]
fn bpftool_shows_the_nodes_with_field_names_and_readable_addresses() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    let plain = dump(cp, &[], "NODES");
    for field in ["\"vtep\": {", "\"vtep_mac\": [", "\"prefix_len\": ", "\"flags\": ", "\"neigh_epoch\": "] {
        assert_eq!(plain.matches(field).count(), 6, "{field} in {plain}");
    }
    for node in cluster.nodes() {
        let [a, b, c, d] = node.address().octets();
        assert!(plain.contains(&format!("255,255,{a},{b},{c},{d}\n")), "{} in {plain}", node.address());
    }

    let flag = |set: bool, flag: u64| if set { flag } else { 0 };
    let shown: BTreeMap<String, Value> = entries(cp, "NODES")
        .iter()
        .map(|(key, value)| {
            (
                address(key),
                json!([
                    address(&value["vtep"]),
                    mac(&value["vtep_mac"]),
                    value["prefix_len"],
                    value["flags"]
                ]),
            )
        })
        .collect();
    let listed = by_address(&cp.show("nodes"));
    let listed: BTreeMap<String, Value> = listed
        .into_iter()
        .map(|(key, row)| {
            let flags = flag(row["self"] == true, 1) | flag(row["host"] == true, 2);
            (key, json!([row["vtep"], row["vtep_mac"], row["prefix_len"], flags]))
        })
        .collect();
    assert_eq!(shown, listed);

    // Both are right: a subnet and an address for each node.
    let mut expected = BTreeMap::new();
    for node in cluster.nodes() {
        let (vtep, own) = (node.address().to_string(), u64::from(node.name() == "cp"));
        let subnet = json!([vtep, node.vtep_mac(), node.subnet().prefix_len(), own]);
        expected.insert(node.subnet().network().to_string(), subnet);
        expected.insert(vtep.clone(), json!([vtep, node.vtep_mac(), 32, own | 2]));
    }
    assert_eq!(shown, expected);
}

#[test]
fn bpftool_shows_the_endpoints_with_field_names_and_readable_addresses() {
    let cluster = Cluster::builder().start();
    let w1 = cluster.node("w1");
    let pods = ["a", "b"].map(|name| cluster.add_pod("w1", name));
    let plain = dump(w1, &[], "ENDPOINTS");
    for field in [
        "\"ifindex\": ",
        "\"mac\": [",
        "\"gateway_mac\": [",
        "\"owner\": {",
        "\"container\": [",
        "\"ifname\": [",
    ] {
        assert_eq!(plain.matches(field).count(), pods.len(), "{field} in {plain}");
    }

    let shown: BTreeMap<String, Value> = entries(w1, "ENDPOINTS")
        .iter()
        .map(|(key, value)| {
            let owner = &value["owner"];
            assert_eq!(mac(&value["gateway_mac"]), w1.vtep_mac());
            (
                address(key),
                json!([
                    value["ifindex"],
                    mac(&value["mac"]),
                    text(&owner["container"]),
                    text(&owner["ifname"])
                ]),
            )
        })
        .collect();
    let listed = by_address(&w1.show("endpoints"));
    let listed: BTreeMap<String, Value> = listed
        .into_iter()
        .map(|(key, row)| (key, json!([row["ifindex"], row["mac"], row["container"], row["ifname"]])))
        .collect();
    assert_eq!(shown, listed);

    let expected: BTreeMap<String, Value> = pods
        .iter()
        .map(|pod| {
            let host = w1.namespace().ip_json(&format!("link show dev {}", pod.host_device()));
            let own = pod.namespace().ip_json("link show dev eth0");
            let row = json!([host[0]["ifindex"], own[0]["address"], pod.namespace().name(), "eth0"]);
            (pod.addr().to_string(), row)
        })
        .collect();
    assert_eq!(shown, expected);
}

/// What `overlay <what>` prints for people, cell by cell; columns are two spaces or more apart.
#[track_caller]
fn table(node: &Node, what: &str) -> Vec<Vec<String>> {
    let text = exec::must(&mut node.overlay(&[what]), "");
    let cells = |line: &str| {
        let cells = line.split("  ").map(|cell| cell.trim().to_owned());
        cells.filter(|cell| !cell.is_empty()).collect()
    };
    text.lines().map(cells).collect()
}

/// A row of the cells of a table.
fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[test]
fn tables_say_what_json_says() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    let pod = cluster.add_pod("cp", "a");
    let far = cluster.add_pod("w2", "a");
    tcp::exchange(pod.namespace(), far.namespace(), (far.addr(), 0).into()).unwrap();

    let status = table(cp, "status");
    let vtep = cp.address().to_string();
    for fact in [
        row(["node", "cp (ready)"]),
        row(["tunnel", &format!("{vtep} port 8472 VNI 1")]),
        row(["pods", "1 in 10.244.0.0/24, gateway 10.244.0.1, MTU 1450"]),
        row(["agent", &format!("running, process {}, nodes from file", cp.agent_pid().unwrap())]),
        row(["cluster", "3 nodes in 10.244.0.0/16"]),
        row(["peers", "2"]),
        row(["attached", &format!("by tcx, pods by clsact, pins in {}", cp.pins().display())]),
        row(["PATH", "PACKETS", "BYTES"]),
    ] {
        assert!(status.contains(&fact), "{fact:?} in {status:#?}");
    }
    let counted = |path: &str| {
        let row = status.iter().find(|row| row[..].first().is_some_and(|name| name == path));
        row.unwrap_or_else(|| panic!("no {path} in {status:#?}"))[1].parse::<u64>().unwrap()
    };
    assert!(counted("encap_native") > 0 && counted("decap_native") > 0, "{status:#?}");
    assert!(!status.iter().flatten().any(|cell| cell == "DROPPED"), "{status:#?}");

    let nodes = table(cp, "nodes");
    assert_eq!(nodes[0], row(["ADDRESS", "NODE", "VTEP", "VTEP MAC", "OF"]));
    assert_eq!(nodes.len(), 1 + 6, "{nodes:#?}");
    let w2 = cluster.node("w2");
    let (w2_vtep, w2_mac) = (w2.address().to_string(), w2.vtep_mac());
    for line in [
        row(["10.244.0.0/24", "cp", &vtep, &cp.vtep_mac(), "pods, this node"]),
        row(["10.244.2.0/24", "w2", &w2_vtep, &w2_mac, "pods"]),
        row([&format!("{w2_vtep}/32"), "w2", &w2_vtep, &w2_mac, "node"]),
    ] {
        assert!(nodes.contains(&line), "{line:?} in {nodes:#?}");
    }

    let listed = &cp.show("endpoints")[0];
    let (mac, index) = (listed["mac"].as_str().expect("a MAC"), listed["ifindex"].to_string());
    let endpoints = [
        row(["ADDRESS", "POD", "IFINDEX", "MAC", "CONTAINER", "INTERFACE"]),
        row([&pod.addr().to_string(), "default/a", &index, mac, pod.namespace().name(), "eth0"]),
    ];
    assert_eq!(table(cp, "endpoints"), endpoints);

    let mapping = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}]);
    let server = cp.add_pod_with_ports(cluster.lab(), "server", &mapping);
    let ports = [
        row(["PORT", "POD", "CONTAINER", "INTERFACE"]),
        row(["127.0.0.1:8080/udp", &format!("{}:80", server.addr()), server.namespace().name(), "eth0"]),
    ];
    assert_eq!(table(cp, "ports"), ports);
    let listed = &cp.show("ports")[0];
    assert_eq!((&listed["address"], &listed["port"]), (&json!("127.0.0.1"), &json!(8080)));
    assert_eq!((&listed["pod"], &listed["protocol"]), (&json!(server.addr()), &json!("udp")));

    let shown = table(cp, "programs");
    assert_eq!(shown[0], row(["PROGRAM", "DEVICE", "BY", "LINK", "ID", "TAG", "LOADED"]));
    let listed = cp.show("programs");
    let listed = listed.as_array().expect("a list");
    assert_eq!(shown.len(), 1 + listed.len());
    for (cells, program) in shown[1..].iter().zip(listed) {
        let text = |key: &str| program[key].as_str().unwrap().to_owned();
        let link = program["link_id"].as_u64().map_or("-".to_owned(), |id| id.to_string());
        let id = program["program_id"].to_string();
        assert_eq!(
            *cells,
            [text("program"), text("device"), text("by"), link, id, text("tag"), text("loaded_at")]
        );
    }
}

#[test]
fn every_program_is_listed_where_the_kernel_has_it() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    let pods = ["a", "b"].map(|name| cluster.add_pod("cp", name));
    let listed = cp.show("programs");
    let listed = listed.as_array().expect("a list");
    let mut expected = vec![
        ("from_host".to_owned(), Node::ANCHOR.to_owned(), "tcx"),
        ("from_tunnel".to_owned(), Node::ANCHOR.to_owned(), "tcx"),
        ("from_wire".to_owned(), Node::DEVICE.to_owned(), "tcx"),
    ];
    for pod in &pods {
        expected.push(("from_pod".to_owned(), pod.host_device(), "clsact"));
        expected.push(("to_pod".to_owned(), pod.host_device(), "clsact"));
    }
    let text =
        |row: &Value, key: &str| row[key].as_str().unwrap_or_else(|| panic!("{key}: {row}")).to_owned();
    let mut shown: Vec<_> =
        listed.iter().map(|row| (text(row, "program"), text(row, "device"), text(row, "by"))).collect();
    shown.sort();
    expected.sort();
    let expected: Vec<_> =
        expected.into_iter().map(|(program, device, by)| (program, device, by.to_owned())).collect();
    assert_eq!(shown, expected);

    let boot = std::fs::read_to_string("/proc/stat").unwrap();
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")).unwrap().parse::<i64>().unwrap();
    for row in listed {
        let mut bpftool = cp.namespace().command("bpftool");
        let program =
            exec::must(bpftool.args(["-j", "prog", "show", "id", &row["program_id"].to_string()]), "");
        let program: Value = serde_json::from_str(&program).unwrap();
        assert_eq!((&program["name"], &program["tag"]), (&row["program"], &row["tag"]), "{row}");
        let loaded =
            exec::must(std::process::Command::new("date").args(["+%s", "-d", &text(row, "loaded_at")]), "");
        let loaded: i64 = loaded.trim().parse().unwrap();
        assert!(
            loaded > boot && (loaded - program["loaded_at"].as_i64().unwrap()).abs() <= 2,
            "{row} {program}"
        );
        assert_eq!(row["current"], true);
        let device = cp.namespace().ip_json(&format!("link show dev {}", text(row, "device")));
        assert_eq!(device[0]["ifindex"], row["ifindex"]);
        if row["by"] == "tcx" {
            assert!(cp.pins().join("links").join(text(row, "name")).exists(), "{row}");
            assert!(row["link_id"].is_u64(), "{row}");
        } else {
            assert!(row["name"].is_null() && row["link_id"].is_null(), "{row}");
        }
    }
}

#[test]
fn statistics_are_those_of_the_time_that_was_asked_for() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    let (pod, far) = (cluster.add_pod("cp", "a"), cluster.add_pod("w2", "a"));
    let mut command = cp.overlay(&["programs", "--stats=2", "-o", "json"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut measuring = Running(exec::spawn_tied(command).unwrap());
    let out = measuring.0.stdout.take().expect("a pipe");
    let (done, ended) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let text = std::io::read_to_string(out).unwrap();
        done.send(()).unwrap();
        text
    });
    // Until it has ended: whatever part of this it measured, there was traffic.
    while ended.try_recv().is_err() {
        tcp::exchange(pod.namespace(), far.namespace(), (far.addr(), 0).into()).unwrap();
    }
    let rows: Value = serde_json::from_str(&reader.join().unwrap()).unwrap();
    for program in ["from_pod", "from_wire"] {
        let row = rows.as_array().unwrap().iter().find(|row| row["program"] == program).unwrap();
        let (runs, time) = (row["run_count"].as_u64().unwrap(), row["run_time_ns"].as_u64().unwrap());
        assert!(runs > 0 && time > runs, "{row}");
        assert!(row["seconds"].as_f64().unwrap() >= 2.0 && row["devices"] == 1, "{row}");
    }
}

/// The section of docs/cli.md about a command.
fn documented(command: &str) -> String {
    let page = include_str!("../../docs/cli.md");
    let (_, rest) = page.split_once(&format!("## `overlay {command}`")).expect("a section");
    rest.split("\n## ").next().unwrap().to_owned()
}

#[test]
fn json_and_yaml_have_the_fields_that_are_documented() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    let mapping = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let pod = cp.add_pod_with_ports(cluster.lab(), "server", &mapping);
    for command in ["status", "nodes", "endpoints", "ports", "flows", "programs", "version"] {
        let json = cp.show(command);
        let yaml = exec::must(&mut cp.overlay(&[command, "-o", "yaml"]), "");
        let yaml: Value = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}: {yaml}"));
        let shape = |value: &Value| match value {
            Value::Array(rows) => rows.first().cloned(),
            one => Some(one.clone()),
        };
        let page = documented(command);
        let fields = page.split("Fields: ").nth(1).unwrap_or_else(|| panic!("no fields of {command}"));
        if command == "flows" {
            assert_eq!((json, yaml), (json!([]), json!([])));
            continue;
        }
        let (json, yaml) = (shape(&json).unwrap(), shape(&yaml).unwrap());
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&json), keys(&yaml), "{command}");
        for key in keys(&json) {
            assert!(fields.contains(&format!("`{key}`")), "docs/cli.md does not name {key} of {command}");
        }
        // Those that are named: without what is in brackets, which is deeper or explains.
        let mut depth = 0;
        let flat: String = fields
            .split_inclusive(['(', ')'])
            .map(|part| {
                let shown = if depth == 0 { part } else { "" };
                depth += i32::from(part.ends_with('(')) - i32::from(part.ends_with(')'));
                shown
            })
            .collect();
        let named = flat.split(['.']).next().unwrap().split('`').skip(1).step_by(2);
        for field in named {
            assert!(json.get(field).is_some(), "{command} has no {field}: {json}");
        }
    }
    drop(pod);
}

#[test]
fn status_names_what_is_wrong_and_exits_with_3_with_and_without_the_agent() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    let pod = cluster.add_pod("cp", "a");
    cp.stop_agent();
    let status = |code: i32| {
        let out = exec::output(&mut cp.overlay(&["status", "-o", "json"]), b"", exec::COMMAND_LIMIT).unwrap();
        assert_eq!(out.status.code(), Some(code), "{}{}", out.stdout, out.stderr);
        serde_json::from_str::<Value>(&out.stdout).unwrap()
    };
    let well = status(0);
    assert_eq!((&well["ready"], &well["problems"]), (&json!(true), &json!([])));
    assert_eq!(well["agent"]["running"], false);

    let device = pod.host_device();
    exec::must(cp.namespace().command("tc").args(["filter", "del", "dev", &device, "ingress"]), "");
    let problems = status(3);
    assert_eq!(problems["ready"], true, "one pod is not the node: {problems}");
    let expected = format!("pod {}: from_pod is not attached to {device}", pod.addr());
    assert!(problems["problems"][0].as_str().unwrap().starts_with(&expected), "{problems}");

    cp.namespace().ip(&format!("link set dev {} down", Node::ANCHOR));
    std::fs::remove_file(cp.pins().join("programs/from_wire")).unwrap();
    let broken = status(3);
    assert_eq!(broken["ready"], false);
    let said = broken["problems"].to_string();
    for what in ["the anchor device overlay.1 is down", "the program from_wire is not pinned"] {
        assert!(said.contains(what), "{what} in {said}");
    }
    cp.namespace().ip(&format!("link del dev {}", Node::ANCHOR));
    assert!(status(3)["problems"].to_string().contains("the anchor device (index"), "{said}");

    cp.start_agent();
    let healed = status(0);
    assert_eq!(healed["agent"]["pid"], cp.agent_pid().unwrap());
    assert_eq!(healed["agent"]["source"], "file");
}

/// A program that is killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn monitor_prints_a_line_for_each_drop_and_status_the_reason() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    let pod = cluster.add_pod("cp", "a");
    let mut monitor = cp.overlay(&["monitor"]);
    monitor.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut monitor = Running(exec::spawn_tied(monitor).unwrap());
    let mut said = BufReader::new(monitor.0.stderr.take().expect("a pipe")).lines();
    let said = said.next().expect("a word when it listens").unwrap();
    assert!(said.contains("dropped packets on cp"), "{said}");
    let mut lines = BufReader::new(monitor.0.stdout.take().expect("a pipe")).lines();

    let nobody = Ipv4Addr::new(10, 244, 99, 9);
    let socket = pod.namespace().run(|| UdpSocket::bind((pod.addr(), 4000))).unwrap();
    for port in [5001, 5002, 5003] {
        socket.send_to(b"anybody there", (nobody, port)).unwrap();
        let line = lines.next().expect("a line for each").unwrap();
        let said = [
            format!(
                ": {}:4000 (default/a) -> {nobody}:{port} no_node DROPPED (UDP; from_pod on ",
                pod.addr()
            ),
            "; 55 bytes)".to_owned(),
        ];
        assert!(said.iter().all(|part| line.contains(part)), "{said:?} in {line}");
    }
    let status = table(cp, "status");
    let dropped = status.iter().find(|row| row.first().is_some_and(|name| name == "no_node"));
    let dropped = dropped.unwrap_or_else(|| panic!("no_node in {status:#?}"));
    // Ethernet, IPv4, UDP and the text.
    assert_eq!(dropped[1..3], row(["3", &(3 * (14 + 20 + 8 + 13)).to_string()]));
    assert!(dropped[3].contains("in no node's subnet"), "{dropped:?}");
}

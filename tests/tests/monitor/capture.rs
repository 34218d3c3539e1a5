//! `overlay capture`: what a pod really sends and gets, both directions of flows that never pass the device on the node
//! included.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use overlay_tests::lab::{Node, Pod, exec};
use overlay_tests::traffic::tcp;
use serde_json::Value;

use crate::bed::{Bed, tcpdump};

/// A running `overlay capture`; killed when this is dropped.
struct Capture(Child);

impl Capture {
    #[track_caller]
    fn start(node: &Node, arguments: &[&str]) -> Self {
        let mut command = node.overlay(&["capture"]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut capture = Self(exec::spawn_tied(command).unwrap());
        let line = BufReader::new(capture.0.stderr.take().unwrap()).lines().next().unwrap().unwrap();
        assert!(line.contains("listening to eth0"), "{line}");
        capture
    }

    /// What it has printed when it ends by itself.
    #[track_caller]
    fn end(mut self) -> String {
        let status = exec::wait_until(&mut self.0, Instant::now() + Duration::from_secs(10)).unwrap();
        assert!(status.expect("it ends").success());
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Directions and flags of the records, of one connection.
fn steps(text: &str, client: Ipv4Addr, server: Ipv4Addr) -> Vec<(String, String)> {
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let step = |record: Value| {
        let text = |field: &str| record[field].as_str().unwrap_or_default().to_owned();
        let ends = [text("source"), text("destination")];
        assert!(ends.contains(&client.to_string()) && ends.contains(&server.to_string()), "{record}");
        assert_eq!(record["device"], "eth0");
        (text("direction"), text("summary"))
    };
    records.map(step).collect()
}

#[track_caller]
fn both_directions(bed: &Bed, server: &Pod) {
    let capture = Capture::start(bed.cp(), &["default/a", "-o", "json", "-n", "3", "--protocol", "tcp"]);
    tcp::exchange(bed.a.namespace(), server.namespace(), (server.addr(), 0).into()).unwrap();
    let steps = steps(&capture.end(), bed.a.addr(), server.addr());
    let step = |direction: &str, what: &str| (direction.to_owned(), format!("TCP Flags: {what}"));
    assert_eq!(steps, [step("sent", "SYN"), step("received", "SYN, ACK"), step("sent", "ACK")]);
}

#[test]
fn both_directions_of_a_redirected_flow_are_seen() {
    let bed = Bed::new();
    // Delivered by redirection into the pod, past the device on the node.
    both_directions(&bed, &bed.b);
    both_directions(&bed, &bed.peer);
}

#[test]
fn a_capture_of_a_pod_opens_in_tcpdump() {
    let bed = Bed::new();
    let file = bed.cluster.lab().dir().join("pod.pcapng");
    let path = file.display().to_string();
    let arguments = [
        &bed.a.addr().to_string()[..],
        "-o",
        "pcap",
        "-w",
        &path,
        "-n",
        "40",
        "--timeout",
        "3s",
        "--snaplen",
        "96",
    ];
    let capture = Capture::start(bed.cp(), &arguments);
    // More than one segment at once: super-packets are kept as what they are, and cut.
    tcp::bulk(bed.a.namespace(), bed.peer.namespace(), (bed.peer.addr(), 0).into(), 4).unwrap();
    capture.end();
    let text = tcpdump(&file);
    assert!(text.contains(&format!("{}.", bed.a.addr())) && text.contains("Flags [S]"), "{text}");
    let longest = text
        .lines()
        .filter_map(|line| line.split("length ").nth(1)?.split([')', ',', ':']).next()?.parse().ok());
    assert!(longest.max() > Some(1450_u32), "no super-packet in {text}");
}

#[test]
fn lines_name_both_ends() {
    let bed = Bed::new();
    let capture = Capture::start(
        bed.cp(),
        &["a", "-o", "text", "-n", "1", "--from", "a", "--to", &bed.peer.addr().to_string()],
    );
    tcp::exchange(bed.a.namespace(), bed.peer.namespace(), (bed.peer.addr(), 0).into()).unwrap();
    let line = capture.end();
    for part in [
        format!("{}:", bed.a.addr()),
        "(default/a) -> ".to_owned(),
        "(on w1) SENT (TCP Flags: SYN; ".to_owned(),
    ] {
        assert!(line.contains(&part), "{part} in {line}");
    }
}

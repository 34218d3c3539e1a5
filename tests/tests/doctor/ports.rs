//! Ports that somebody else has.

use std::process::{Child, Stdio};
use std::time::Duration;

use overlay_tests::lab::{Docker, Lab, Lan, Network, Node, within};

use crate::bed::{configure, doctor, follow, lan, node};

fn bed(more: &str) -> (Node, Lan, Lab) {
    let (lab, lan) = lan();
    let host = node(&lab, &lan, "a", 1, Docker::Absent);
    configure(&lab, &[&host], Network::default(), more);
    (host, lan, lab)
}

/// A process that holds a port; killed with the value.
struct Holder(Child);

impl Holder {
    #[track_caller]
    fn start(node: &Node, address: &str) -> Self {
        let mut socat = node.namespace().command("socat");
        socat.args(["-u", address, "STDOUT"]).stdin(Stdio::null()).stdout(Stdio::null());
        let holder = Self(socat.spawn().unwrap());
        let port = address.split([':', ',']).nth(1).unwrap().to_owned();
        within(Duration::from_secs(10), "the port is held", || {
            let ss = overlay_tests::lab::exec::must(node.namespace().command("ss").args(["-Hlnut"]), "");
            ss.contains(&format!(":{port} "))
        });
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
pub(crate) fn a_process_that_has_the_tunnels_port_is_named_and_killed_by_the_remedy() {
    let (host, _lan, lab) = bed("");
    let mut holder = Holder::start(&host, "UDP4-RECV:8472");
    let seen = doctor(&lab, &host, &[]);
    let finding = &seen.expect(&[("ports", "UDP port 8472")])[0];
    assert!(finding.what.contains(&format!("socat (process {})", holder.0.id())), "{finding:?}");
    follow(&lab, &host, finding);
    holder.0.wait().unwrap();
    doctor(&lab, &host, &[]).expect_fine();
    host.start_agent();
    doctor(&lab, &host, &[]).expect_fine();
}

#[test]
pub(crate) fn a_vxlan_device_that_has_the_tunnels_port_is_named_and_removed_by_the_remedy() {
    let (host, _lan, lab) = bed("");
    host.namespace().ip("link add name cilium_vxlan type vxlan external dstport 8472");
    let seen = doctor(&lab, &host, &[]);
    let finding = &seen.expect(&[("ports", "UDP port 8472")])[0];
    assert!(finding.what.contains("cilium_vxlan"), "{finding:?}");
    assert_eq!(finding.fix, None, "it is somebody else's");
    follow(&lab, &host, finding);
    doctor(&lab, &host, &[]).expect_fine();
}

#[test]
pub(crate) fn a_process_that_has_the_port_for_probes_is_named_and_killed_by_the_remedy() {
    let (host, _lan, lab) = bed("[agent]\nhealth = \"127.0.0.1:9879\"\n");
    host.namespace().ip("link set lo up");
    let mut holder = Holder::start(&host, "TCP4-LISTEN:9879,fork");
    let seen = doctor(&lab, &host, &[]);
    let finding = &seen.expect(&[("ports", "TCP 127.0.0.1:9879")])[0];
    assert!(finding.what.contains("socat"), "{finding:?}");
    follow(&lab, &host, finding);
    holder.0.wait().unwrap();
    doctor(&lab, &host, &[]).expect_fine();
    host.start_agent();
    doctor(&lab, &host, &[]).expect_fine();
}

//! `network.xdp`: switched while traffic goes on, kept by the kernel without an agent, put back where somebody takes it
//! away, and left alone where the device is not to have it.

use nix::sys::signal::Signal;
use overlay_tests::lab::{Network, Node, exec, within};
use serde_json::Value;

use crate::bed::{A_SECOND, Bed, PERIOD, SOON, expect_idle, expect_nothing_lost};

impl Bed {
    #[track_caller]
    fn write_xdp(&self, xdp: &str) {
        let network = Network { xdp: Some(xdp.into()), ..Network::default() };
        self.write(&network, &[self.a.entry(), self.b.entry()]);
    }

    /// Starts it, `xdp_wire` attached on both nodes.
    #[track_caller]
    fn guarded() -> Self {
        let bed = Self::start();
        bed.write_xdp("guard");
        for node in [&bed.a, &bed.b] {
            within(SOON, "attached", || program(node).is_some() && link(node).is_some());
        }
        bed
    }
}

/// What runs on the underlay device, as `ip -d link` has it: the name and the id of the program. Native mode, or a
/// failure.
#[track_caller]
fn program(node: &Node) -> Option<(String, u64)> {
    let shown = node.namespace().ip_json(&format!("-d link show dev {}", Node::DEVICE));
    let xdp = &shown[0]["xdp"];
    let id = xdp["prog"]["id"].as_u64()?;
    assert_eq!(xdp["mode"], 1, "not the driver's: {xdp}");
    Some((xdp["prog"]["name"].as_str().unwrap_or_default().to_owned(), id))
}

/// The ids of the link and of its program, as `overlay links` shows them.
#[track_caller]
fn link(node: &Node) -> Option<(u64, u64)> {
    let links = node.show("links");
    let ours = |link: &&Value| link["name"].as_str().is_some_and(|name| name.ends_with("_xdp_wire"));
    let found: Vec<_> = links.as_array().unwrap().iter().filter(ours).collect();
    assert!(found.len() <= 1, "{found:?}");
    found.first().map(|link| (link["link_id"].as_u64().unwrap(), link["program_id"].as_u64().unwrap()))
}

/// The link's program is the device's.
#[track_caller]
fn attached(node: &Node) -> bool {
    let on_device = program(node).filter(|(name, _)| name == "xdp_wire").map(|(_, id)| id);
    on_device.is_some() && on_device == link(node).map(|(_, id)| id)
}

#[track_caller]
fn nothing_is_left(node: &Node) -> bool {
    program(node).is_none() && link(node).is_none() && !node.pins().join("programs/xdp_wire").exists()
}

#[test]
fn the_setting_changes_while_traffic_goes_on() {
    let bed = Bed::start();
    assert!(nothing_is_left(&bed.a), "on without having been asked for");
    let streams = bed.streams();
    for (xdp, said) in [
        ("guard", "attached xdp_wire to eth0 (index "),
        ("auto", "network.xdp is auto now, was guard"),
        ("guard", "attached xdp_wire to eth0 (index "),
        ("off", "network.xdp is off now, was guard"),
    ] {
        let log = bed.a.log_mark();
        bed.write_xdp(xdp);
        log.wait_for(said, SOON);
        for node in [&bed.a, &bed.b] {
            // Automatic on a veth is off.
            let holds = || if xdp == "guard" { attached(node) } else { nothing_is_left(node) };
            within(SOON, xdp, holds);
        }
        bed.expect_traffic();
    }
    expect_nothing_lost(streams);
    expect_idle(&bed.a);
}

#[test]
fn the_link_needs_no_agent_and_is_adopted_by_the_next() {
    let bed = Bed::guarded();
    let (id, program) = link(&bed.a).unwrap();
    let streams = bed.streams();
    bed.a.kill_agent(Signal::SIGKILL);
    assert!(attached(&bed.a));
    bed.expect_traffic();
    bed.a.start_agent();
    let (same, newer) = link(&bed.a).unwrap();
    assert_eq!(same, id, "the link is kept");
    assert_ne!(newer, program, "it runs the program of this load");
    assert!(attached(&bed.a));
    bed.expect_traffic();
    expect_nothing_lost(streams);
    expect_idle(&bed.a);
}

#[test]
fn what_somebody_detaches_is_attached_again() {
    let bed = Bed::guarded();
    let detach = || {
        let (id, _) = link(&bed.a).unwrap();
        let mut bpftool = bed.a.namespace().command("bpftool");
        exec::must(bpftool.args(["link", "detach", "id", &id.to_string()]), "");
    };
    bed.heals_after(PERIOD, "the link detached", detach);
    let unpin = || {
        let links = std::fs::read_dir(bed.a.pins().join("links")).unwrap();
        let ours = |path: &std::path::PathBuf| path.to_string_lossy().ends_with("_xdp_wire");
        let pin = links.map(|entry| entry.unwrap().path()).find(ours).unwrap();
        std::fs::remove_file(pin).unwrap();
    };
    bed.heals_after(PERIOD, "the pin of the link removed", unpin);
    let unload = || std::fs::remove_file(bed.a.pins().join("programs/xdp_wire")).unwrap();
    let before = link(&bed.a);
    unload();
    within(PERIOD, "the pin of the program removed", || link(&bed.a) != before && attached(&bed.a));
    bed.expect_traffic();
    expect_idle(&bed.a);
}

impl Bed {
    #[track_caller]
    fn heals_after(&self, limit: std::time::Duration, what: &str, break_it: impl FnOnce()) {
        self.heals(limit, what, break_it, || attached(&self.a), "attached xdp_wire to eth0");
    }
}

#[test]
fn the_next_underlay_device_gets_it_with_its_own_address() {
    let bed = Bed::guarded();
    let host = bed.a.namespace();
    let before = link(&bed.a);
    let log = bed.a.log_mark();
    host.ip("link del dev eth0");
    log.wait_for("no interface holds the node's address 192.0.2.1", SOON);
    bed.lan.attach(host, "eth0");
    host.ip(&format!("addr add {} dev eth0", crate::bed::on_lan(1)));
    within(SOON, "attached", || link(&bed.a) != before && attached(&bed.a));
    bed.expect_traffic();
    // What is addressed to another MAC than the one that it knows it would let pass.
    let log = bed.a.log_mark();
    host.ip("link set dev eth0 address 02:00:00:00:77:01");
    log.wait_for("loaded the programs anew", SOON);
    bed.expect_traffic();
    expect_idle(&bed.a);
}

#[test]
fn a_foreign_program_stays_and_is_named() {
    let bed = Bed::start();
    let foreign = foreign_program(&bed.lab);
    let host = bed.a.namespace();
    host.ip(&format!("link set dev eth0 xdpdrv pinned {}", foreign.display()));
    let theirs = program(&bed.a).unwrap();

    let log = bed.a.log_mark();
    bed.write_xdp("guard");
    let said = format!(
        "network.xdp is guard, but eth0 does without xdp_wire: somebody else's XDP program (id {}) is there and stays: \
         detach it with `ip link set dev eth0 xdp off`, or set network.xdp = \"off\"",
        theirs.1
    );
    log.wait_for(&said, SOON);
    bed.expect_traffic();
    expect_idle(&bed.a);
    assert_eq!(program(&bed.a), Some(theirs));
    assert_eq!(log.lines().iter().filter(|line| line.contains("somebody else's")).count(), 1);
    assert_eq!(link(&bed.a), None);

    host.ip("link set dev eth0 xdpdrv off");
    within(PERIOD, "attached when the other has gone", || attached(&bed.a));
    bed.expect_traffic();
}

/// A program that passes everything, pinned where nothing of overlay is.
#[track_caller]
fn foreign_program(lab: &overlay_tests::lab::Lab) -> std::path::PathBuf {
    let (source, object) = (lab.dir().join("pass.c"), lab.dir().join("pass.o"));
    let text = "__attribute__((section(\"xdp\"), used)) int pass(void *ctx) { return 2; }\n\
                char LICENSE[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";
    std::fs::write(&source, text).unwrap();
    let mut clang = std::process::Command::new("clang");
    exec::must(clang.args(["-O2", "-g", "-target", "bpf", "-c", "-o"]).arg(&object).arg(&source), "");
    let pin = lab.dir().join("bpf").join("foreign");
    let mut bpftool = std::process::Command::new("bpftool");
    exec::must(bpftool.args(["prog", "load"]).arg(&object).arg(&pin), "");
    pin
}

#[test]
fn automatic_gives_up_nothing_for_it_and_says_why_once() {
    let bed = Bed::start();
    let log = bed.a.log_mark();
    bed.write_xdp("auto");
    let said = "network.xdp is auto, but eth0 does without xdp_wire: with XDP on veth the other end of the pair sends \
                without segmentation offload";
    log.wait_for(said, SOON);
    bed.expect_traffic();
    expect_idle(&bed.a);
    assert_eq!(log.lines().iter().filter(|line| line.contains("does without xdp_wire")).count(), 1);
    assert!(nothing_is_left(&bed.a));
}

#[test]
fn a_device_without_native_xdp_does_without() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    // The node's address moves to a bridge.
    host.ip("link add name br0 type bridge stp_state 0");
    host.ip("link set dev br0 up");
    host.ip("link set dev eth0 master br0");
    host.ip(&format!("addr del {} dev eth0", crate::bed::on_lan(1)));
    let log = bed.a.log_mark();
    host.ip(&format!("addr add {} dev br0", crate::bed::on_lan(1)));
    log.wait_for("the underlay is br0", SOON);
    bed.write_xdp("guard");
    log.wait_for(
        "network.xdp is guard, but br0 does without xdp_wire: its driver bridge has no native XDP",
        SOON,
    );
    bed.expect_traffic();
    expect_idle(&bed.a);
    assert_eq!(log.lines().iter().filter(|line| line.contains("does without xdp_wire")).count(), 1);
    assert!(link(&bed.a).is_none() && attached(&bed.b));
    let shown = host.ip_json("-d link show dev br0");
    assert!(shown[0]["xdp"]["prog"].is_null(), "generic mode: {shown}");
}

#[test]
fn a_device_with_vlans_does_without_while_they_are_there() {
    let bed = Bed::guarded();
    let host = bed.a.namespace();
    let log = bed.a.log_mark();
    let mut ip = host.command("ip");
    ip.args("link add link eth0 name eth0.7 type vlan id 7".split(' '));
    let added = exec::output(&mut ip, b"", exec::COMMAND_LIMIT).unwrap();
    if !added.status.success() {
        assert!(added.stderr.contains("Unknown device type"), "{added:?}");
        println!("this kernel has no VLANs: what is decided is shown by the agent's own tests");
        return;
    }
    log.wait_for("it carries the VLAN device eth0.7", SOON);
    within(A_SECOND, "detached", || program(&bed.a).is_none());
    bed.expect_traffic();
    host.ip("link del dev eth0.7");
    within(SOON, "attached again", || attached(&bed.a));
    bed.expect_traffic();
}

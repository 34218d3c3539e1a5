//! The lab itself: the default cluster's underlay, the wire modes, and that nothing is left behind.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlay_tests::lab::sweep::{LABS_DIR, sweep};
use overlay_tests::lab::{
    Cluster, ClusterBuilder, Docker, Families, FlannelNode, FlannelWire, Lab, Lan, Link, NETNS_DIR, WireMode,
    device_feature, exec, nets,
};
use overlay_tests::traffic::capture::{Capture, Frame};
use overlay_tests::traffic::{any_port, ping, tcp, udp};
use overlay_userspace::family::Family;

#[test]
fn nodes_and_world_reach_each_other_over_lan_and_router() {
    for families in Families::ALL {
        let cluster = Cluster::builder().families(families).build();
        let pairs = families.iter().flat_map(|family| cluster.nodes().iter().map(move |from| (family, from)));
        for (family, from) in pairs {
            let world = cluster.world();
            let to_world = (world.namespace(), world.address_of(family));
            let to_nodes = cluster.nodes().iter().map(|to| (to.namespace(), to.address_of(family)));
            for (namespace, address) in to_nodes.chain([to_world]) {
                let seen = tcp::exchange(from.namespace(), namespace, any_port(address)).unwrap();
                assert!(seen.same_address(), "{seen:?}");
                let seen = udp::exchange(from.namespace(), namespace, any_port(address)).unwrap();
                assert!(seen.same_address(), "{seen:?}");
                ping::ping(from.namespace(), address).unwrap();
            }
        }
    }
}

/// Every address of a family but those of loopback and link-local ones, in any namespace of the cluster.
#[track_caller]
fn global_addresses(cluster: &Cluster, option: &str) -> Vec<String> {
    let nodes = cluster.nodes().iter().map(overlay_tests::lab::Node::namespace);
    let mut found = Vec::new();
    for namespace in nodes.chain([cluster.router(), cluster.world().namespace()]) {
        let devices = namespace.ip_json(&format!("{option} addr show scope global"));
        let infos =
            devices.as_array().into_iter().flatten().filter_map(|device| device["addr_info"].as_array());
        found.extend(infos.flatten().map(|info| info["local"].to_string()));
    }
    found
}

#[test]
fn lab_of_one_family_has_no_address_of_the_other() {
    for (families, other) in [(Families::Ipv4, "-6"), (Families::Ipv6, "-4")] {
        let cluster = Cluster::builder().families(families).docker(Docker::Idle).build();
        assert_eq!(global_addresses(&cluster, other), Vec::<String>::new(), "{families:?}");
    }
    let both =
        Cluster::builder().families(Families::Ipv4).underlay(Families::Ipv6).docker(Docker::Absent).build();
    assert_eq!(global_addresses(&both, "-4"), Vec::<String>::new());
    assert!(both.node("w2").subnets().v6.is_none() && both.node("w2").addresses().v4.is_none());
}

#[test]
fn node_of_a_mixed_cluster_lacks_what_it_is_told_to() {
    let builder = Cluster::builder().families(Families::Dual).mixed("w1", Families::Ipv6, Families::Ipv4);
    let cluster = builder.build();
    let text = fs::read_to_string(cluster.lab().cluster_file()).unwrap();
    for line in [
        r#"cidr = ["10.244.0.0/16", "fd00:10:244::/56"]"#,
        r#"address = ["192.0.2.11", "2001:db8:a::11"]"#,
        r#"subnet = ["10.244.0.0/24", "fd00:10:244::/64"]"#,
        r#"address = "192.0.2.12""#,
        r#"subnet = "fd00:10:244:1::/64""#,
        r#"address = ["192.0.2.75", "2001:db8:b::11"]"#,
        r#"subnet = ["10.244.2.0/24", "fd00:10:244:2::/64"]"#,
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn neither_world_nor_router_has_a_route_to_pods() {
    let cluster = Cluster::builder().families(Families::Dual).build();
    for namespace in [cluster.world().namespace(), cluster.router()] {
        for pod in ["10.244.0.2", "fd00:10:244::2"] {
            let mut route = namespace.command("ip");
            let out = exec::output(route.args(["route", "get", pod]), b"", exec::COMMAND_LIMIT).unwrap();
            assert!(!out.status.success(), "{}", out.stdout);
        }
    }
}

#[test]
fn docker_is_down_and_drops_what_a_node_would_forward() {
    for (docker, bridge) in
        [(Docker::Down, Some("DOWN")), (Docker::Idle, Some("DOWN")), (Docker::Absent, None)]
    {
        let cluster = Cluster::builder().families(Families::Dual).docker(docker).build();
        let state = cluster.node("w1").docker_state();
        assert_eq!(state.bridge.as_deref(), bridge, "{docker:?}");
        let drops = docker != Docker::Absent;
        for (family, policy) in state.forward_policy.iter() {
            assert_eq!(policy == "DROP", drops, "{docker:?} {family}");
        }

        // A packet that w1 would have to forward: from cp to w2, by way of w1.
        let (cp, w1, w2) = (cluster.node("cp"), cluster.node("w1"), cluster.node("w2"));
        // Without this w1 tells cp the shorter way.
        w1.namespace().sysctl("net.ipv4.conf.all.send_redirects", "0");
        w1.namespace().sysctl("net.ipv4.conf.eth0.send_redirects", "0");
        w1.namespace().sysctl("net.ipv6.conf.all.forwarding", "1");
        for family in Family::ALL {
            let [to, via] = [w2, w1].map(|node| node.address_of(family));
            cp.namespace().ip(&format!("route add {to} via {via}"));
            let passes = ping::ping(cp.namespace(), to).is_ok();
            assert_eq!(passes, !drops, "{docker:?} {family}");
        }
    }
}

#[test]
fn nic_wire_sets_every_underlay_device() {
    let cluster = Cluster::builder().link(Link::new(WireMode::Nic)).build();
    let nodes = cluster.nodes().iter().map(|node| (node.namespace(), "eth0"));
    let others =
        [(cluster.world().namespace(), "eth0"), (cluster.router(), "lan-a"), (cluster.router(), "lan-b")];
    for (namespace, dev) in nodes.chain(others) {
        let is = |feature| device_feature(namespace, dev, feature).unwrap();
        assert_eq!(is("tcp-segmentation-offload"), "off");
        assert_eq!(is("generic-segmentation-offload"), "off");
        assert_eq!(is("tx-udp_tnl-segmentation"), "off");
        assert_eq!(is("tx-udp_tnl-csum-segmentation"), "off");
        assert_eq!(is("tx-udp-segmentation"), "off");
        assert_eq!(is("generic-receive-offload"), "on");
    }
}

/// The TCP frames of a bulk transfer: as the sender's switch port gets them, and as the receiver's device does.
fn bulk_frames(link: Link) -> (Vec<Frame>, Vec<Frame>) {
    let lab = Lab::new();
    let lan = Lan::new(&lab, "lan", link);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    let port = lan.attach(&a, "eth0");
    lan.attach(&b, "eth0");
    a.ip("addr add 192.0.2.1/24 dev eth0");
    b.ip("addr add 192.0.2.2/24 dev eth0");
    let (wire, receiver) = (Capture::start(lan.switch(), &port), Capture::start(&b, "eth0"));
    let bulk = tcp::bulk(&a, &b, "192.0.2.2:0".parse().unwrap(), 16).unwrap();
    assert!(bulk.intact());
    [wire, receiver]
        .map(|capture| {
            let frames = capture.stop();
            frames
                .into_iter()
                .filter(|frame| !frame.outgoing && tcp_checksum_is_right(frame).is_some())
                .collect()
        })
        .into()
}

/// Whether the TCP checksum of a frame is right; `None` if it carries no TCP payload over IPv4.
fn tcp_checksum_is_right(frame: &Frame) -> Option<bool> {
    let packet = SlicedPacket::from_ethernet(&frame.bytes).ok()?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else {
        return None;
    };
    let computed = tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).ok()?;
    (!tcp.payload().is_empty()).then_some(computed == tcp.checksum())
}

fn longest(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| frame.bytes.len()).max().expect("frames were captured")
}

/// MTU 1500 and the Ethernet header.
const FULL_FRAME: usize = 1514;

#[test]
fn veth_wire_carries_super_packets() {
    let (wire, receiver) = bulk_frames(Link::new(WireMode::Veth));
    assert!(longest(&wire) > FULL_FRAME && longest(&receiver) > FULL_FRAME);
}

#[test]
fn nic_wire_segments_at_the_sender_and_merges_at_the_receiver() {
    let (wire, receiver) = bulk_frames(Link::new(WireMode::Nic));
    assert_eq!(longest(&wire), FULL_FRAME);
    assert!(longest(&receiver) > FULL_FRAME, "{}", longest(&receiver));
}

#[test]
fn wire_carries_complete_checksums_where_asked() {
    let link = Link { checksums: true, ..Link::new(WireMode::Nic) };
    let (wire, receiver) = bulk_frames(link);
    assert!(wire.iter().all(|frame| tcp_checksum_is_right(frame) == Some(true)));
    // GRO works as well.
    assert!(longest(&receiver) > FULL_FRAME, "{}", longest(&receiver));
    // Without it they are not there: what makes the switch necessary.
    let (wire, _) = bulk_frames(Link::new(WireMode::Nic));
    assert!(wire.iter().any(|frame| tcp_checksum_is_right(frame) == Some(false)));
}

#[test]
fn mtu_of_the_underlay_is_as_asked() {
    let cluster = Cluster::builder().link(Link { mtu: 1400, ..Link::default() }).build();
    let (cp, w2) = (cluster.node("cp").namespace(), IpAddr::V4(cluster.node("w2").address()));
    assert!(matches!(ping::unfragmented(cp, w2, 1400).unwrap(), ping::Probe::Reply(_)));
    assert_eq!(ping::unfragmented(cp, w2, 1401).unwrap(), ping::Probe::TooLong { mtu: 1400 });
}

#[test]
fn flannel_nodes_reach_each_others_pods() {
    let lab = Lab::new();
    let lan = Lan::new(&lab, "lan", Link::default());
    let node = |name, number: u8| {
        let underlay = [format!("192.0.2.{number}/24"), format!("2001:db8:a::{number}/64")];
        let subnets = [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")];
        let [underlay, subnets] = [underlay, subnets].map(|both| nets(&both.each_ref().map(String::as_str)));
        FlannelNode::new(&lab, &lan, name, underlay, subnets, FlannelWire::default())
    };
    let (mut one, mut two) = (node("one", 1), node("two", 2));
    one.add_peer(&two.entry(), &two.vtep_macs());
    two.add_peer(&one.entry(), &one.vtep_macs());
    let (a, b) = (one.add_pod(&lab, "a"), two.add_pod(&lab, "b"));
    for (family, largest) in [(Family::Ipv4, 1450), (Family::Ipv6, 1430)] {
        for (from, to) in [(&a, &b), (&b, &a)] {
            let at = any_port(to.addr_of(family));
            let seen = tcp::exchange(from.namespace(), to.namespace(), at).unwrap();
            assert_eq!((seen.client.ip(), seen.same_address()), (from.addr_of(family), true));
        }
        let largest = ping::unfragmented(a.namespace(), b.addr_of(family), largest).unwrap();
        assert!(matches!(largest, ping::Probe::Reply(_)), "{largest:?}");
    }
}

/// Everything on this machine that carries the id of a lab.
fn traces(id: &str) -> Vec<String> {
    let names = |dir: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mounts");
    let mounts = mounts.lines().map(str::to_owned);
    let all = names(NETNS_DIR).into_iter().chain(names(LABS_DIR)).chain(mounts);
    all.filter(|trace| trace.contains(id)).collect()
}

/// The links of the namespace that the tests run in.
fn own_links() -> BTreeSet<String> {
    let links = fs::read_dir("/sys/class/net").expect("list links").flatten();
    links.map(|link| link.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn dropped_lab_leaves_nothing() {
    let links = own_links();
    let cluster = Cluster::builder().build();
    let id = cluster.lab().id().to_owned();
    // lan-a, lan-b, router, world, three nodes; directory; bpffs, and a mount or two for each namespace.
    let while_up = traces(&id);
    assert!(while_up.len() >= 7 + 1 + 1 + 7, "{while_up:#?}");
    drop(cluster);
    assert_eq!(traces(&id), Vec::<String>::new());
    assert_eq!(own_links(), links);
}

#[test]
fn panic_inside_a_lab_leaves_nothing() {
    let mut id = String::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let cluster = Cluster::builder().build();
        cluster.lab().id().clone_into(&mut id);
        cluster.node("cp").namespace().ip("link show dev no-such-device");
    }));
    let message = *result.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("ip link show dev no-such-device"), "{message}");
    assert_eq!(traces(&id), Vec::<String>::new());
}

#[test]
fn labs_live_beside_each_other() {
    let (one, two) = (Lab::new(), Lab::new());
    let (a, b) = (one.namespace("same-name"), two.namespace("same-name"));
    assert_ne!(a.name(), b.name());
    drop((one, a));
    assert!(b.path().exists());
}

#[test]
fn tied_child_outlives_the_thread_that_asked_for_it() {
    let spawn = || {
        let mut command = Command::new("sleep");
        command.arg("1000");
        exec::spawn_tied(command).unwrap()
    };
    let mut child = thread::spawn(spawn).join().unwrap();
    thread::sleep(Duration::from_millis(100));
    let alive = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(alive);
}

/// A program in place of `overlay`, for what the lab does with an agent's process, whatever the agent does.
struct FakeOverlay {
    dir: PathBuf,
}

impl FakeOverlay {
    /// `agent` is what the agent does, in shell; `status` says that it is not ready.
    fn new(name: &str, agent: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("overlay-lab-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("make directory");
        let script = format!(
            "#!/bin/sh\ncase $1 in\nagent) {agent} ;;\nstatus) echo '{{\"ready\": false}}' ;;\nesac\n"
        );
        let fake = Self { dir };
        fs::write(fake.path(), script).expect("write script");
        fs::set_permissions(fake.path(), fs::Permissions::from_mode(0o755)).expect("make script executable");
        fake
    }

    fn path(&self) -> PathBuf {
        self.dir.join("overlay")
    }

    fn lab_run(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.args(["run", "--once"]).env("OVERLAY_BIN", self.path());
        command
    }
}

impl Drop for FakeOverlay {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A child that does not outlive a failed test.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The id of the lab that a process owns, and the ids of its agents, once it has started three.
fn lab_of(Owned(child): &Owned) -> (String, Vec<Pid>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let first_word = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split(' ').next().and_then(|word| word.parse::<i32>().ok())
    };
    while Instant::now() < deadline {
        for lab in fs::read_dir(LABS_DIR).into_iter().flatten().flatten() {
            let records = fs::read_dir(lab.path().join("processes")).into_iter().flatten().flatten();
            let agents: Vec<Pid> =
                records.filter_map(|record| first_word(&record.path())).map(Pid::from_raw).collect();
            let owner = first_word(&lab.path().join("owner"));
            if owner == Some(child.id().cast_signed()) && agents.len() == 3 {
                return (lab.file_name().to_string_lossy().into_owned(), agents);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("the lab did not start its agents");
}

fn is_gone(process: Pid) -> bool {
    kill(process, None).is_err()
}

#[test]
fn sweep_removes_a_killed_lab() {
    let fake = FakeOverlay::new("killed", "exec sleep 1000");
    let mut child = Owned(fake.lab_run().stderr(Stdio::null()).spawn().unwrap());
    let (id, agents) = lab_of(&child);
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    assert_ne!(traces(&id), Vec::<String>::new());
    // Another test may be sweeping it at this moment.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline && !(traces(&id).is_empty() && agents.iter().copied().all(is_gone)) {
        sweep();
    }
    assert_eq!(traces(&id), Vec::<String>::new());
    assert!(agents.iter().copied().all(is_gone), "agents {agents:?} still run");
}

#[test]
fn terminated_lab_cleans_up_after_itself() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let fake = FakeOverlay::new("terminated", "exec sleep 1000");
        let mut child = Owned(fake.lab_run().stderr(Stdio::null()).spawn().unwrap());
        let (id, agents) = lab_of(&child);
        kill(Pid::from_raw(child.0.id().cast_signed()), signal).unwrap();
        let status = exec::wait_until(&mut child.0, Instant::now() + Duration::from_secs(10)).unwrap();
        assert_eq!(status.and_then(|status| status.code()), Some(130));
        assert_eq!(traces(&id), Vec::<String>::new());
        assert!(agents.iter().copied().all(is_gone), "agents {agents:?} still run");
    }
}

#[test]
fn agent_that_refuses_to_start_is_reported_with_its_log() {
    let fake = FakeOverlay::new("refusing", "echo 'cannot load programs: no bpffs' >&2; exit 3");
    let out = exec::output(&mut fake.lab_run(), b"", Duration::from_secs(30)).unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", out.stderr);
    assert_eq!(out.stdout, "");
    let error = out.stderr.split_once("error: ").map(|(_, error)| error).unwrap_or_default();
    assert!(error.contains("the agent of cp ended (exit status: 3)"), "{}", out.stderr);
    assert!(error.contains("cannot load programs: no bpffs"), "{}", out.stderr);
}

#[test]
fn cluster_file_is_replaced_whole() {
    let cluster = ClusterBuilder::default().build();
    let path = cluster.lab().cluster_file();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let before = inode(&path);
    cluster.write_nodes(&cluster.entries()[..2]);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("name = \"w1\"") && !text.contains("name = \"w2\""), "{text}");
    // A file written in place would be the same file, and seen half-written.
    assert_ne!(inode(&path), before);
}

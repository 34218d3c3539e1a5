//! What a run of a program costs, without any wire: `BPF_PROG_TEST_RUN` on the pinned programs of a node, with its live maps.
//!
//! Where a run leaves the packet as it was, the kernel runs the program many times in one call and divides (`repeat`). A packet that was
//! encapsulated is another one for the next run; there each run has a call and a fresh packet (`single`), and the time contains two
//! looks at the clock. Those are measured with a packet of the first kind, and subtracted.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use aya::TestRunOptions;
use aya::programs::{SchedClassifier, TestRun as _};
use overlay_common::reason::Hook;
use overlay_tests::lab::Node;
use overlay_tests::traffic::vxlan::{FLAG_VNI, Tunnel, udp_frame};
use overlay_userspace::datapath::{pins::Pins, tables};

use crate::contenders::Pair;
use crate::perf::Instructions;
use crate::placement::{Placement, Role};
use crate::results::Program;
use crate::statistics::{Estimate, estimate, median};

/// Runs in one call, where the packet stays what it is.
const REPEAT: u32 = 20_000;
/// Calls, each a value of the estimate.
const CALLS: usize = 15;
/// Calls of one run each, for one value of the estimate.
const SINGLES: usize = 400;

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT` (include/uapi/linux/pkt_cls.h).
const PASS: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

type Mac = [u8; 6];

/// Offset of `ifindex` in `struct __sk_buff`, and the length of that (include/uapi/linux/bpf.h).
const IFINDEX: usize = 40;
const SK_BUFF: usize = 192;

/// A kind of packet.
struct Kind {
    hook: Hook,
    what: &'static str,
    device: u32,
    packet: Vec<u8>,
    verdict: i32,
    /// Whether it leaves the program as it came.
    unchanged: bool,
}

/// Runs every kind of packet on the programs of the pair's first node.
pub(crate) fn measure(pair: &Pair, notes: &mut Vec<String>) -> Result<Vec<Program>> {
    let node = &pair.nodes[0];
    let kinds = kinds(pair)?;
    // The devices are named by index, which is the namespace's.
    node.namespace().run(|| {
        Placement::One.pin(Role::Client)?;
        let mut counter = match Instructions::start() {
            Ok(counter) => Some(counter),
            Err(error) => {
                notes.push(format!("instructions cannot be counted (perf_event_open: {error})"));
                None
            }
        };
        let pins = Pins::new(node.pins());
        let first = kinds.iter().find(|kind| kind.unchanged).context("no packet that stays what it is")?;
        let clock = Runner::new(&pins, first)?.clock()?;
        let program = |kind: &Kind| {
            let runner = Runner::new(&pins, kind)?;
            let nanoseconds = if kind.unchanged { runner.repeated()? } else { less(runner.single()?, clock) };
            let instructions = match &mut counter {
                Some(counter) if kind.unchanged => Some(runner.instructions(counter)?),
                _ => None,
            };
            Ok(Program {
                name: kind.hook.name(),
                packet: kind.what.to_owned(),
                method: if kind.unchanged { "repeat" } else { "single" },
                nanoseconds,
                instructions,
            })
        };
        kinds.iter().map(program).collect()
    })
}

/// The nanoseconds of an encapsulation for each of these packets in turn, each value the median of many: for maps that are
/// large, with another entry in each run.
pub(crate) fn spread(node: &Node, device: u32, packets: &[Vec<u8>]) -> Result<f64> {
    node.namespace().run(|| {
        Placement::One.pin(Role::Client)?;
        let pins = Pins::new(node.pins());
        let packet = packets.first().context("no packet")?.clone();
        let runner = Runner::new(
            &pins,
            &Kind { hook: Hook::FromPod, what: "", device, packet, verdict: REDIRECT, unchanged: false },
        )?;
        let times = packets.iter().map(|packet| runner.run(packet, 1)).collect::<Result<Vec<_>>>()?;
        Ok(median(&times))
    })
}

fn less(Estimate { median, low, high, coverage, rounds }: Estimate, by: f64) -> Estimate {
    Estimate { median: median - by, low: low - by, high: high - by, coverage, rounds }
}

/// A program, and a packet for it.
struct Runner {
    program: SchedClassifier,
    name: &'static str,
    context: [u8; SK_BUFF],
    packet: Vec<u8>,
    verdict: i32,
}

impl Runner {
    fn new(pins: &Pins, kind: &Kind) -> Result<Self> {
        let name = kind.hook.name();
        let path = pins.program(name);
        let program = SchedClassifier::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        let mut context = [0; SK_BUFF];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&kind.device.to_ne_bytes());
        Ok(Self { program, name, context, packet: kind.packet.clone(), verdict: kind.verdict })
    }

    /// The nanoseconds of a run, as the kernel measures them.
    fn run(&self, packet: &[u8], repeat: u32) -> Result<f64> {
        let mut out = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&self.context),
            repeat,
            ..TestRunOptions::default()
        };
        let result = self.program.test_run(options).with_context(|| format!("run {}", self.name))?;
        let verdict = result.return_value.cast_signed();
        ensure!(verdict == self.verdict, "{} returned {verdict} instead of {}", self.name, self.verdict);
        Ok(result.duration.as_nanos() as f64)
    }

    fn repeated(&self) -> Result<Estimate> {
        let times = (0..CALLS).map(|_| self.run(&self.packet, REPEAT)).collect::<Result<Vec<_>>>()?;
        estimate(&times).context("no run")
    }

    fn single(&self) -> Result<Estimate> {
        let one = |_| {
            let times = (0..SINGLES).map(|_| self.run(&self.packet, 1)).collect::<Result<Vec<_>>>()?;
            Ok(median(&times))
        };
        let times = (0..CALLS).map(one).collect::<Result<Vec<_>>>()?;
        estimate(&times).context("no run")
    }

    /// What a measurement of a single run adds to it.
    fn clock(&self) -> Result<f64> {
        Ok(self.single()?.median - self.repeated()?.median)
    }

    /// The instructions of a run: those of a call with many runs, less those of a call with one.
    fn instructions(&self, counter: &mut Instructions) -> Result<f64> {
        let mut count = |repeat| -> Result<u64> {
            let before = counter.count().context("read the counter of instructions")?;
            self.run(&self.packet, repeat)?;
            Ok(counter.count().context("read the counter of instructions")? - before)
        };
        let (one, many) = (count(1)?, count(REPEAT)?);
        Ok(many.saturating_sub(one) as f64 / f64::from(REPEAT - 1))
    }
}

/// The interface index of a device of a node.
pub(crate) fn ifindex(node: &Node, device: &str) -> Result<u32> {
    let index = node.namespace().run(|| nix::net::if_::if_nametoindex(device));
    index.with_context(|| format!("find {device} on {}", node.name()))
}

/// The MAC of the underlay device of a node: packets for another one are not the node's.
fn wire_mac(node: &Node) -> Result<Mac> {
    let link = node.namespace().ip_json(&format!("link show dev {}", Node::DEVICE));
    let text = link[0]["address"].as_str().unwrap_or_default();
    let bytes: Vec<u8> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.try_into().ok().with_context(|| format!("read the MAC of {} on {}", Node::DEVICE, node.name()))
}

/// The two MACs of a frame that a pod sends: its own, and its gateway's.
pub(crate) fn pod_macs(node: &Node, pod: Ipv4Addr) -> Result<(Mac, Mac)> {
    let endpoint = tables::Endpoints::open(&Pins::new(node.pins()))?.get(pod.into())?;
    let endpoint = endpoint.with_context(|| format!("find the endpoint of {pod}"))?;
    Ok((endpoint.mac, endpoint.gateway_mac))
}

fn kinds(pair: &Pair) -> Result<Vec<Kind>> {
    let [node, peer] = &pair.nodes;
    let [client, server, neighbour] = &pair.pods;
    let device = ifindex(node, &client.host_device())?;
    let (wire, anchor) = (ifindex(node, Node::DEVICE)?, ifindex(node, Node::ANCHOR)?);
    let macs = pod_macs(node, client.addr())?;
    let gateway = (macs.1, macs.1);
    let arriving = (wire_mac(peer)?, wire_mac(node)?);
    let world = Ipv4Addr::new(198, 51, 100, 7);
    let at = |addr| SocketAddrV4::new(addr, 7000);
    let frame = |macs, from, to| udp_frame(macs, at(from), at(to), &[0; 64]);
    let inner = frame(gateway, server.addr(), client.addr());
    let tunnel = |from: Ipv4Addr| {
        let tunnel = Tunnel {
            macs: arriving,
            source: SocketAddrV4::new(from, 50_000).into(),
            destination: SocketAddrV4::new(node.address(), 8472).into(),
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            udp_checksum: 0,
            flags: FLAG_VNI,
            vni: 1,
            inner: inner.clone(),
        };
        tunnel.encode()
    };
    let kind = |hook, what, device, packet, verdict, unchanged| Kind {
        hook,
        what,
        device,
        packet,
        verdict,
        unchanged,
    };
    let (from, to) = (client.addr(), server.addr());
    Ok(vec![
        kind(Hook::FromPod, "to the world: stack", device, frame(macs, from, world), PASS, true),
        kind(Hook::FromPod, "to a remote pod: encap", device, frame(macs, from, to), REDIRECT, false),
        kind(
            Hook::FromPod,
            "to a local pod: redirect",
            device,
            frame(macs, from, neighbour.addr()),
            REDIRECT,
            false,
        ),
        kind(Hook::FromPod, "forged source: drop", device, frame(macs, world, to), DROP, true),
        kind(
            Hook::FromHost,
            "to a remote pod: encap",
            anchor,
            frame(gateway, node.gateway_address(), to),
            REDIRECT,
            false,
        ),
        kind(Hook::FromWire, "for a pod: decap", wire, tunnel(peer.address()), REDIRECT, false),
        kind(
            Hook::FromWire,
            "no tunnel packet: stack",
            wire,
            frame(arriving, peer.address(), node.address()),
            PASS,
            true,
        ),
        kind(Hook::FromWire, "unknown node: drop", wire, tunnel(world), DROP, true),
        kind(Hook::ToPod, "from the world: pass", device, frame(macs, world, from), PASS, true),
    ])
}

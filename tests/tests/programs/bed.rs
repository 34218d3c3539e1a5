//! The test bed: a namespace with the devices and neighbours that the programs look up, the loaded programs on a bpffs
//! of its own, and filled maps. One for each test, nothing shared.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
};

use etherparse::{EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, TcpHeader, UdpHeader};
use nix::sched::{CloneFlags, unshare};
use overlay_common::{
    counter::Path,
    maps::{Addr, Endpoint, NODE_HOST, NODE_SELF, Node, Owner},
    reason::{Hook, Reason},
};
use overlay_tests::lab::Lab;
use overlay_userspace::datapath::{
    events::Events,
    flows::StackFlows,
    object::{self, Constants, Loaded},
    pins::Pins,
    run::{Context, Verdict, run},
    tables::{self, Endpoints, Nodes},
};

pub(crate) type Mac = [u8; 6];

/// This node, a peer on the same subnet, and a third whose neighbour is not resolved.
pub(crate) const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const UNRESOLVED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
pub(crate) const ANCHOR_MAC: Mac = [0x0a, 0x6f, 192, 0, 2, 1];
pub(crate) const PEER_MAC: Mac = [0x0a, 0x6f, 192, 0, 2, 2];
pub(crate) const UNRESOLVED_MAC: Mac = [0x0a, 0x6f, 192, 0, 2, 3];
/// MACs of the wire's two ends.
pub(crate) const WIRE_MAC: Mac = [0x02, 0, 0, 0, 0, 0x11];
pub(crate) const NEXT_HOP_MAC: Mac = [0x02, 0, 0, 0, 0, 0x22];

/// Two local pods, one at a device of each test bed, and a remote one.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
pub(crate) const POD_MAC: Mac = [0x0a, 0x58, 10, 244, 1, 5];
pub(crate) const OTHER_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
pub(crate) const OTHER_POD_MAC: Mac = [0x0a, 0x58, 10, 244, 1, 6];
/// Leased, but its devices are not complete.
pub(crate) const UNREADY_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
pub(crate) const REMOTE_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
pub(crate) const UNRESOLVED_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 9);
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

pub(crate) const PORT: u16 = 8472;
pub(crate) const VNI: u32 = 1;

/// Devices of the bed, by interface index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    pub(crate) pod: u32,
    pub(crate) other_pod: u32,
    pub(crate) wire: u32,
    pub(crate) anchor: u32,
}

pub(crate) struct Bed {
    pub(crate) devices: Devices,
    pub(crate) loaded: Loaded,
    pins: Pins,
    /// With the bpffs, also of a test that is killed: the next one sweeps it.
    _lab: Lab,
}

/// Which counter a packet has to move, by one and by its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    As(Path),
    /// Two of them, each by one: in the order of the counters.
    Both(Path, Path),
    Dropped(Reason),
    Nowhere,
}

/// What has to come out.
#[derive(Clone, Debug)]
pub(crate) enum Out {
    Unchanged,
    /// These bytes.
    Packet(Vec<u8>),
    /// These bytes, but for the outer UDP source port, which must be dynamic.
    Tunnel(Vec<u8>),
}

/// A row of a table.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) hook: Hook,
    pub(crate) device: u32,
    pub(crate) packet: Vec<u8>,
    pub(crate) gso: Option<(u32, u32)>,
    pub(crate) verdict: Verdict,
    pub(crate) out: Out,
    pub(crate) counted: Counted,
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Bed {
    /// Runs a test in a bed of its own; takes everything away also when it panics.
    pub(crate) fn with(test: impl FnOnce(&mut Bed) + Send + 'static) {
        let result = std::thread::spawn(move || {
            // The namespace dies with this thread, and its devices with it.
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut bed = Bed::new();
            test(&mut bed);
        })
        .join();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    fn new() -> Self {
        let lab = Lab::new();
        ip("link set lo up");
        ip(&format!("link add wire address {} type veth peer name far", mac_text(WIRE_MAC)));
        ip("link add pod type veth peer name inside");
        ip("link add other type veth peer name inside2");
        ip(&format!(
            "link add overlay.1 address {} type vxlan external dstport {PORT}",
            mac_text(ANCHOR_MAC)
        ));
        for device in ["wire", "far", "pod", "inside", "other", "inside2", "overlay.1"] {
            ip(&format!("link set {device} up"));
        }
        ip(&format!("addr add {VTEP}/24 dev wire"));
        ip(&format!("neigh replace {PEER} lladdr {} dev wire nud permanent", mac_text(NEXT_HOP_MAC)));
        // Per namespace: /proc/sys/net shows that of the thread.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();

        let devices = Devices {
            pod: ifindex("pod"),
            other_pod: ifindex("other"),
            wire: ifindex("wire"),
            anchor: ifindex("overlay.1"),
        };
        let pins = Pins::new(lab.dir().join("bpf").join("v1"));
        let loaded = object::load(&pins, &constants(devices.anchor)).unwrap();
        let bed = Self { devices, loaded, pins, _lab: lab };
        bed.fill();
        bed
    }

    fn fill(&self) {
        let mut nodes = Nodes::open(&self.pins).unwrap();
        let mut set = |key: [u8; 4], vtep: Ipv4Addr, vtep_mac: Mac, prefix_len: u8, flags: u8| {
            let node = Node { vtep: vtep.into(), vtep_mac, prefix_len, flags, neigh_epoch: 0 };
            nodes.set(IpAddr::from(key).into(), node).unwrap();
        };
        set([10, 244, 1, 0], VTEP, ANCHOR_MAC, 24, NODE_SELF);
        set(VTEP.octets(), VTEP, ANCHOR_MAC, 32, NODE_SELF | NODE_HOST);
        set([10, 244, 2, 0], PEER, PEER_MAC, 24, 0);
        set(PEER.octets(), PEER, PEER_MAC, 32, NODE_HOST);
        set([10, 244, 3, 0], UNRESOLVED, UNRESOLVED_MAC, 24, 0);
        set(UNRESOLVED.octets(), UNRESOLVED, UNRESOLVED_MAC, 32, NODE_HOST);

        let mut endpoints = Endpoints::open(&self.pins).unwrap();
        let mut pod = |addr: Ipv4Addr, ifindex: u32, mac: Mac| {
            let owner = Owner { container: [0; 64], ifname: [0; 16] };
            let endpoint = Endpoint { ifindex, network: 0, mac, gateway_mac: ANCHOR_MAC, owner };
            assert!(endpoints.lease(addr.into(), endpoint).unwrap());
        };
        pod(POD, self.devices.pod, POD_MAC);
        pod(OTHER_POD, self.devices.other_pod, OTHER_POD_MAC);
        pod(UNREADY_POD, 0, [0; 6]);
    }

    pub(crate) fn node(&self, key: Ipv4Addr) -> Node {
        let key = Addr::from(key);
        Nodes::open(&self.pins).unwrap().entries().unwrap().into_iter().find(|(k, _)| *k == key).unwrap().1
    }

    pub(crate) fn flows(&self) -> StackFlows {
        StackFlows::open(&self.pins).unwrap()
    }

    /// Loads the programs with other constants; the maps stay.
    pub(crate) fn reload(&mut self, change: impl FnOnce(&mut Constants)) {
        let mut constants = constants(self.devices.anchor);
        change(&mut constants);
        self.loaded = object::load(&self.pins, &constants).unwrap();
    }

    pub(crate) fn program_pin(&self, name: &str) -> PathBuf {
        self.pins.program(name)
    }

    /// A reader of what is recorded from now on.
    pub(crate) fn events(&self) -> Events {
        let mut events = Events::open(&self.pins).unwrap();
        events.skip();
        events
    }

    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(crate) fn run(&self, hook: Hook, packet: &[u8], device: u32) -> (Verdict, Vec<u8>) {
        run(&self.pins, hook, packet, Context { ifindex: device, gso: None }).unwrap()
    }

    fn counters(&self) -> Vec<(Counted, u64)> {
        let paths = tables::paths(&self.pins).unwrap().into_iter().map(|(p, c)| (Counted::As(p), c.packets));
        let drops =
            tables::drops(&self.pins).unwrap().into_iter().map(|(r, c)| (Counted::Dropped(r), c.packets));
        paths.chain(drops).collect()
    }

    /// Runs the rows of a table and checks everything about each.
    pub(crate) fn check(&self, cases: Vec<Case>) {
        for case in cases {
            let Case { name, hook, device, packet, gso, verdict, out, counted } = case;
            let before = self.counters();
            let (got_verdict, got) = run(&self.pins, hook, &packet, Context { ifindex: device, gso })
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(got_verdict, verdict, "{name}: verdict");
            let expected = match out {
                Out::Unchanged => packet,
                Out::Packet(bytes) => bytes,
                Out::Tunnel(mut bytes) => {
                    let port = u16::from_be_bytes([got[34], got[35]]);
                    assert!(port >= 49152, "{name}: outer source port {port}");
                    bytes[34..36].copy_from_slice(&got[34..36]);
                    bytes
                }
            };
            if let Some(at) = first_difference(&got, &expected) {
                panic!(
                    "{name}: packet out, from byte {at}\n   got {}\nwanted {}",
                    hex(&got, at),
                    hex(&expected, at)
                );
            }
            let moved: Vec<_> = before
                .iter()
                .zip(self.counters())
                .filter(|((_, before), (_, after))| after != before)
                .map(|((what, before), (_, after))| (*what, after - before))
                .collect();
            let wanted = match counted {
                Counted::Nowhere => vec![],
                Counted::Both(one, other) => vec![(Counted::As(one), 1), (Counted::As(other), 1)],
                one => vec![(one, 1)],
            };
            assert_eq!(moved, wanted, "{name}: counters");
        }
    }
}

pub(crate) fn constants(anchor_ifindex: u32) -> Constants {
    Constants {
        vni: VNI,
        port: PORT,
        cluster: (Ipv4Addr::new(10, 244, 0, 0), 16),
        subnet: (Ipv4Addr::new(10, 244, 1, 0), 24),
        node_prefix: 24,
        vtep: VTEP,
        anchor_ifindex,
        anchor_mac: ANCHOR_MAC,
        plain_pods: false,
        stack_flows: true,
        flow_entries: 4096,
        main_table_only: true,
        nodes_masqueraded: false,
        xdp_wire: Some(WIRE_MAC),
        log_level: 0,
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let at = a.iter().zip(b).position(|(a, b)| a != b);
    at.or_else(|| (a.len() != b.len()).then_some(a.len().min(b.len())))
}

/// A hundred bytes around a place.
fn hex(bytes: &[u8], at: usize) -> String {
    let text: Vec<String> =
        bytes.iter().skip(at.saturating_sub(50)).take(100).map(|b| format!("{b:02x}")).collect();
    format!("{} ({} bytes in all)", text.join(" "), bytes.len())
}

/// An IPv4 packet to be built; every field that a program looks at or changes.
#[derive(Clone, Debug)]
pub(crate) struct Ip {
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) dont_fragment: bool,
    /// Offset in units of 8 bytes, and whether more follow.
    pub(crate) fragment: (u16, bool),
    pub(crate) options: Vec<u8>,
    pub(crate) protocol: IpNumber,
    /// Transport header and data.
    pub(crate) payload: Vec<u8>,
}

impl Ip {
    /// A UDP datagram of 18 bytes of data.
    pub(crate) fn udp(src: Ipv4Addr, dst: Ipv4Addr, dst_port: u16) -> Self {
        let data = b"eighteen bytes ok!";
        let ip = Ipv4Header::new(0, 64, IpNumber::UDP, src.octets(), dst.octets()).unwrap();
        let header = UdpHeader::with_ipv4_checksum(40_000, dst_port, &ip, data).unwrap();
        let payload = [&header.to_bytes()[..], data].concat();
        Self {
            src,
            dst,
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            fragment: (0, false),
            options: vec![],
            protocol: IpNumber::UDP,
            payload,
        }
    }

    /// A TCP segment with `len` bytes of data.
    pub(crate) fn tcp(src: Ipv4Addr, dst: Ipv4Addr, len: usize) -> Self {
        let header = TcpHeader::new(40_000, 80, 1, 1024);
        let payload = [header.to_bytes().to_vec(), vec![0x5a; len]].concat();
        Self { protocol: IpNumber::TCP, payload, ..Self::udp(src, dst, 80) }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut header = Ipv4Header::new(
            self.payload.len() as u16,
            self.ttl,
            self.protocol,
            self.src.octets(),
            self.dst.octets(),
        )
        .unwrap();
        header.options = self.options.as_slice().try_into().unwrap();
        header.total_len = (header.header_len() + self.payload.len()) as u16;
        header.dscp = IpDscp::try_new(self.tos >> 2).unwrap();
        header.ecn = IpEcn::try_new(self.tos & 3).unwrap();
        header.dont_fragment = self.dont_fragment;
        header.more_fragments = self.fragment.1;
        header.fragment_offset = self.fragment.0.try_into().unwrap();
        header.header_checksum = header.calc_header_checksum();
        [&header.to_bytes()[..], &self.payload].concat()
    }

    /// One hop further.
    pub(crate) fn hop(&self) -> Self {
        Self { ttl: self.ttl - 1, ..self.clone() }
    }
}

/// A frame of any type.
pub(crate) fn frame(dst: Mac, src: Mac, ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: src, destination: dst, ether_type };
    [&header.to_bytes()[..], payload].concat()
}

/// A frame that carries an IPv4 packet.
pub(crate) fn ipv4_frame(dst: Mac, src: Mac, ip: &Ip) -> Vec<u8> {
    frame(dst, src, EtherType::IPV4, &ip.bytes())
}

/// What a pod sends: from its MAC to its gateway's.
pub(crate) fn from_pod(ip: &Ip) -> Vec<u8> {
    ipv4_frame(ANCHOR_MAC, POD_MAC, ip)
}

/// A tunnel packet on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    pub(crate) outer: Ip,
    pub(crate) src_port: u16,
    pub(crate) port: u16,
    pub(crate) flags: u8,
    pub(crate) vni: u32,
    pub(crate) inner_type: EtherType,
    pub(crate) inner_dst: Mac,
    pub(crate) inner_src: Mac,
    pub(crate) inner: Vec<u8>,
    pub(crate) eth_dst: Mac,
    pub(crate) eth_src: Mac,
}

impl Tunnel {
    /// From the peer to this node, as another overlay node sends it.
    pub(crate) fn arriving(inner: &Ip) -> Self {
        Self {
            outer: Ip { tos: inner.tos, ..Ip::udp(PEER, VTEP, PORT) },
            src_port: 50_000,
            port: PORT,
            flags: 0x08,
            vni: VNI,
            inner_type: EtherType::IPV4,
            inner_dst: ANCHOR_MAC,
            inner_src: PEER_MAC,
            inner: inner.bytes(),
            eth_dst: WIRE_MAC,
            eth_src: NEXT_HOP_MAC,
        }
    }

    /// From this node to the peer.
    pub(crate) fn leaving(inner: &Ip) -> Self {
        Self {
            outer: Ip { src: VTEP, dst: PEER, ..Self::arriving(inner).outer },
            inner_dst: PEER_MAC,
            inner_src: ANCHOR_MAC,
            eth_dst: NEXT_HOP_MAC,
            eth_src: WIRE_MAC,
            ..Self::arriving(inner)
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let vni = self.vni.to_be_bytes();
        let vxlan = [self.flags, 0, 0, 0, vni[1], vni[2], vni[3], 0];
        let inner = frame(self.inner_dst, self.inner_src, self.inner_type, &self.inner);
        let len = (8 + vxlan.len() + inner.len()) as u16;
        let udp =
            UdpHeader { source_port: self.src_port, destination_port: self.port, length: len, checksum: 0 };
        let payload = [&udp.to_bytes()[..], &vxlan, &inner].concat();
        ipv4_frame(self.eth_dst, self.eth_src, &Ip { payload, ..self.outer.clone() })
    }
}

//! The underlay: veth pairs between namespaces, and LANs (a bridge in a namespace of its own).
//!
//! Two wire modes, because a veth pair as it comes hands super-packets across unsegmented and never merges: with
//! it alone, segmentation, checksumming and GRO of tunnel packets would never be exercised.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{Lab, Namespace, exec};

/// How the devices of a link are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WireMode {
    /// W1: a veth pair as the kernel makes it. GSO super-packets cross the wire whole.
    #[default]
    Veth,
    /// W2: like a NIC. The sender segments (TSO, GSO and the tunnel's offloads off), the receiver merges (GRO on).
    Nic,
}

impl WireMode {
    /// Both, for tests that have to hold in each.
    pub const ALL: [Self; 2] = [Self::Veth, Self::Nic];
}

/// Names and short names of the `ethtool -k` features that W2 turns off at a sender.
const SENDER_OFF: [(&str, &str); 5] = [
    ("tcp-segmentation-offload", "tso"),
    ("generic-segmentation-offload", "gso"),
    ("tx-udp_tnl-segmentation", "tx-udp_tnl-segmentation"),
    ("tx-udp_tnl-csum-segmentation", "tx-udp_tnl-csum-segmentation"),
    ("tx-udp-segmentation", "tx-udp-segmentation"),
];

/// The feature that W2 turns on at a receiver.
const RECEIVER_ON: (&str, &str) = ("generic-receive-offload", "gro");

/// How to make the links of a network.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// The wire mode of both ends.
    pub mode: WireMode,
    /// The MTU of both ends, in bytes.
    pub mtu: u32,
    /// Whether senders fill checksums in (`tx off`). Otherwise, in W1 and W2 alike, a packet of a local socket crosses
    /// the wire with its checksum not yet computed, the receiver takes it on trust, and no `InCsumErrors` can
    /// ever be counted. Without checksum offload there is no TSO: in W1 also TCP is segmented at the sender.
    pub checksums: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self { mode: WireMode::default(), mtu: 1500, checksums: false }
    }
}

impl Link {
    /// A link of 1500 bytes in this mode.
    pub fn new(mode: WireMode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Connects device `a_dev` in `a` with device `b_dev` in `b`: both new, both up, without addresses.
    #[track_caller]
    pub fn connect(self, a: &Namespace, a_dev: &str, b: &Namespace, b_dev: &str) {
        let Self { mode, mtu, checksums } = self;
        // A device gets as many queues as it is made with; one is what most virtual NICs have.
        a.ip(&format!(
            "link add name {a_dev} mtu {mtu} type veth peer name {b_dev} mtu {mtu} netns {}",
            b.name()
        ));
        if mode == WireMode::Nic {
            like_a_nic(a, a_dev);
            like_a_nic(b, b_dev);
        }
        if checksums {
            for (namespace, dev) in [(a, a_dev), (b, b_dev)] {
                exec::must(namespace.command("ethtool").args(["-K", dev, "tx", "off"]), "");
                expect_feature(namespace, dev, "tx-checksum-ip-generic", "off");
            }
        }
        a.ip(&format!("link set dev {a_dev} up"));
        b.ip(&format!("link set dev {b_dev} up"));
    }
}

/// Turns the W2 settings on, and makes sure that they took effect: ethtool ignores what a driver fixes.
#[track_caller]
fn like_a_nic(namespace: &Namespace, dev: &str) {
    segment_at_sender(namespace, dev);
    exec::must(namespace.command("ethtool").args(["-K", dev, RECEIVER_ON.1, "on"]), "");
    expect_feature(namespace, dev, RECEIVER_ON.0, "on");
}

#[track_caller]
fn segment_at_sender(namespace: &Namespace, dev: &str) {
    let mut command = namespace.command("ethtool");
    command.args(["-K", dev]);
    for (_, short) in SENDER_OFF {
        command.args([short, "off"]);
    }
    exec::must(&mut command, "");
    for (name, _) in SENDER_OFF {
        expect_feature(namespace, dev, name, "off");
    }
}

#[track_caller]
fn expect_feature(namespace: &Namespace, dev: &str, feature: &str, want: &str) {
    let is = device_feature(namespace, dev, feature);
    assert_eq!(is.as_deref(), Some(want), "ethtool feature {feature} of {dev} in {}", namespace.name());
}

/// The state (`on`, `off`) of a feature as `ethtool -k` names it, `None` if the device does not know it.
#[track_caller]
pub fn device_feature(namespace: &Namespace, dev: &str, feature: &str) -> Option<String> {
    let text = exec::must(namespace.command("ethtool").args(["-k", dev]), "");
    let value = text.lines().find_map(|line| line.trim().strip_prefix(feature)?.strip_prefix(": "))?;
    value.split_whitespace().next().map(str::to_owned)
}

/// A LAN: a bridge without spanning tree in a namespace of its own, with a port for each attached device.
#[derive(Debug)]
pub struct Lan {
    switch: Namespace,
    link: Link,
    ports: AtomicU32,
}

impl Lan {
    /// A LAN without ports. Its switch is the namespace `<lab>-<name>`.
    #[track_caller]
    pub fn new(lab: &Lab, name: &str, link: Link) -> Self {
        let switch = lab.namespace(name);
        // Snooping off: a switch that floods multicast, so that nothing depends on a querier.
        switch.ip(&format!("link add name br0 mtu {} type bridge stp_state 0 mcast_snooping 0", link.mtu));
        switch.ip("link set dev br0 up");
        Self { switch, link, ports: AtomicU32::new(0) }
    }

    /// Plugs a new device `dev` of `namespace` in; gives the name of the switch's port.
    #[track_caller]
    pub fn attach(&self, namespace: &Namespace, dev: &str) -> String {
        let port = format!("port{}", self.ports.fetch_add(1, Ordering::Relaxed));
        // The port is a forwarder, no host: in W2 it only must not merge. That is also what makes its peer use
        // GRO: veth offers a frame to GRO only if the sending device does no TSO (veth_skb_is_eligible_for_gro).
        self.link.connect(namespace, dev, &self.switch, &port);
        if self.link.mode == WireMode::Nic {
            exec::must(self.switch.command("ethtool").args(["-K", &port, RECEIVER_ON.1, "off"]), "");
        }
        self.switch.ip(&format!("link set dev {port} master br0"));
        port
    }

    /// The switch's namespace, the place to capture what crosses the wire.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }
}

//! What an installed Docker does to a node's network: a `docker0` bridge without ports and, in each family that it is set up
//! for, a filter table whose FORWARD policy is DROP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use overlay_userspace::family::{ByFamily, Family};

use super::families::{self, Families};
use super::{Lab, Namespace, exec};

/// The bridge that Docker makes.
const BRIDGE: &str = "docker0";

/// How long the kernel may take to see that a bridge without ports has no carrier.
const CARRIER_LIMIT: Duration = Duration::from_secs(3);

/// What Docker leaves behind on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Docker {
    /// Not installed.
    Absent,
    /// Installed, its bridge set down.
    #[default]
    Down,
    /// Installed, no container running any more: the bridge is administratively up but, without a port, has no
    /// carrier, which `ip` also shows as DOWN.
    Idle,
}

/// The addresses of the bridge and of the one container, and the prefix length.
const fn addresses(family: Family) -> (IpAddr, IpAddr, u8) {
    match family {
        Family::Ipv4 => {
            let (bridge, container) = (Ipv4Addr::new(172, 17, 0, 1), Ipv4Addr::new(172, 17, 0, 2));
            (IpAddr::V4(bridge), IpAddr::V4(container), 16)
        }
        Family::Ipv6 => {
            let bridge = Ipv6Addr::new(0xfd17, 0, 0, 0, 0, 0, 0, 1);
            let container = Ipv6Addr::new(0xfd17, 0, 0, 0, 0, 0, 0, 2);
            (IpAddr::V6(bridge), IpAddr::V6(container), 64)
        }
    }
}

/// The rules of dockerd with its iptables firewall back-end and no published port, `iptables-save` format. Those for IPv6
/// (`ip6tables`, on by default since Docker 27) are the same but for the addresses.
const RULES: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
";

impl Docker {
    /// Puts the bridge, with an address of each of `families`, and the rules into a node's namespace. (What the lab makes as a
    /// [`Node`](super::Node) has them already.)
    #[track_caller]
    pub fn install(self, namespace: &Namespace, families: Families) {
        if self == Self::Absent {
            return;
        }
        namespace.ip(&format!("link add name {BRIDGE} type bridge"));
        for family in families.iter() {
            let (bridge, _, prefix) = addresses(family);
            let nodad = if family == Family::Ipv6 { " nodad" } else { "" };
            namespace.ip(&format!("addr add {bridge}/{prefix} dev {BRIDGE}{nodad}"));
        }
        if self == Self::Idle {
            // A bridge says NO-CARRIER from when its last port goes, as the last container's did; before it ever
            // had one its state is unknown.
            namespace.ip_batch(&format!(
                "link set dev {BRIDGE} up\n\
                 link add name port type veth peer name pod\n\
                 link set dev pod up\n\
                 link set dev port master {BRIDGE} up\n\
                 link del dev port\n"
            ));
            // The kernel's link watch reports that up to a second later.
            let start = Instant::now();
            while DockerState::read(namespace).bridge.as_deref() != Some("DOWN") {
                assert!(start.elapsed() < CARRIER_LIMIT, "{BRIDGE} without ports has a carrier");
                thread::sleep(Duration::from_millis(20));
            }
        }
        for family in families.iter() {
            match family {
                Family::Ipv4 => exec::must(&mut namespace.command("iptables-nft-restore"), RULES),
                Family::Ipv6 => {
                    let rules = RULES.replace("127.0.0.0/8", "::1/128").replace("172.17.0.0/16", "fd17::/64");
                    exec::must(&mut namespace.command("ip6tables-nft-restore"), &rules)
                }
            };
        }
    }
}

/// A container on a node's `docker0`, as Docker connects one: behind a port of the bridge, with an address of its network and a
/// default route to the node.
#[derive(Debug)]
pub struct DockerContainer {
    namespace: Namespace,
    addrs: ByFamily<IpAddr>,
}

impl DockerContainer {
    /// Runs one on the node whose host namespace is `node`, with an address of each of `families`. `docker0` must be up
    /// ([`Docker::Idle`]) and without a container; it has a carrier from now on.
    #[track_caller]
    pub fn run(lab: &Lab, node: &Namespace, families: Families) -> Self {
        let name = node.name().strip_prefix(&format!("{}-", lab.id())).unwrap_or(node.name());
        let namespace = lab.namespace(&format!("{name}-docker"));
        node.ip_batch(&format!(
            "link add name vethdocker type veth peer name eth0 netns {}\n\
             link set dev vethdocker master {BRIDGE} up\n",
            namespace.name()
        ));
        namespace.ip("link set dev eth0 up");
        for family in families.iter() {
            let (bridge, own, prefix) = addresses(family);
            namespace.ip(&format!("addr add {own}/{prefix} dev eth0"));
            namespace.ip(&format!("{} route add default via {bridge}", families::option(family)));
        }
        Self { namespace, addrs: families.map(|family| addresses(family).1) }
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its addresses, which are the same on every node.
    pub fn addrs(&self) -> ByFamily<IpAddr> {
        self.addrs
    }
}

/// What is really there, read back from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerState {
    /// Operational state of `docker0` (`DOWN`, `UP`, …), `None` without such a device.
    pub bridge: Option<String>,
    /// Policy of the filter table's FORWARD chain (`DROP`, `ACCEPT`) in each family that has such a chain.
    pub forward_policy: ByFamily<String>,
}

impl DockerState {
    #[track_caller]
    pub(super) fn read(namespace: &Namespace) -> Self {
        let links = namespace.ip_json("link show");
        let links = links.as_array().map(Vec::as_slice).unwrap_or_default();
        let bridge = links.iter().find(|link| link["ifname"] == BRIDGE);
        let mut forward_policy = ByFamily::default();
        for (family, program) in [(Family::Ipv4, "iptables-nft"), (Family::Ipv6, "ip6tables-nft")] {
            let rules = exec::must(namespace.command(program).args(["-S", "FORWARD"]), "");
            if let Some(policy) = rules.lines().find_map(|line| line.strip_prefix("-P FORWARD ")) {
                forward_policy.set(family, policy.to_owned());
            }
        }
        let bridge = bridge.and_then(|link| link["operstate"].as_str()).map(str::to_owned);
        Self { bridge, forward_policy }
    }
}

//! What an installed Docker does to a node's network: a `docker0` bridge without ports and a filter table whose
//! FORWARD policy is DROP.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

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

/// The rules of dockerd with its iptables firewall back-end and no published port, `iptables-save` format.
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
    /// Puts the bridge and the rules into a node's namespace. (What the lab makes as a [`Node`](super::Node) has them already.)
    #[track_caller]
    pub fn install(self, namespace: &Namespace) {
        if self == Self::Absent {
            return;
        }
        namespace
            .ip_batch(&format!("link add name {BRIDGE} type bridge\naddr add 172.17.0.1/16 dev {BRIDGE}\n"));
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
        exec::must(&mut namespace.command("iptables-nft-restore"), RULES);
    }
}

/// A container on a node's `docker0`, as Docker connects one: behind a port of the bridge, with an address of its network and a
/// default route to the node.
#[derive(Debug)]
pub struct DockerContainer {
    namespace: Namespace,
    addr: Ipv4Addr,
}

impl DockerContainer {
    /// Runs one on the node whose host namespace is `node`. `docker0` must be up ([`Docker::Idle`]) and without a container; it has a
    /// carrier from now on.
    #[track_caller]
    pub fn run(lab: &Lab, node: &Namespace) -> Self {
        let name = node.name().strip_prefix(&format!("{}-", lab.id())).unwrap_or(node.name());
        let namespace = lab.namespace(&format!("{name}-docker"));
        let addr = Ipv4Addr::new(172, 17, 0, 2);
        node.ip_batch(&format!(
            "link add name vethdocker type veth peer name eth0 netns {}\n\
             link set dev vethdocker master {BRIDGE} up\n",
            namespace.name()
        ));
        namespace.ip_batch(&format!(
            "addr add {addr}/16 dev eth0\nlink set dev eth0 up\nroute add default via 172.17.0.1\n"
        ));
        Self { namespace, addr }
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address, which is the same on every node.
    pub fn addr(&self) -> Ipv4Addr {
        self.addr
    }
}

/// What is really there, read back from the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DockerState {
    /// Operational state of `docker0` (`DOWN`, `UP`, …), `None` without such a device.
    pub bridge: Option<String>,
    /// Policy of the filter table's FORWARD chain (`DROP`, `ACCEPT`), `None` without such a chain.
    pub forward_policy: Option<String>,
}

impl DockerState {
    #[track_caller]
    pub(super) fn read(namespace: &Namespace) -> Self {
        let links = namespace.ip_json("link show");
        let links = links.as_array().map(Vec::as_slice).unwrap_or_default();
        let bridge = links.iter().find(|link| link["ifname"] == BRIDGE);
        let rules = exec::must(namespace.command("iptables-nft").args(["-S", "FORWARD"]), "");
        let policy = rules.lines().find_map(|line| line.strip_prefix("-P FORWARD "));
        Self {
            bridge: bridge.and_then(|link| link["operstate"].as_str()).map(str::to_owned),
            forward_policy: policy.map(str::to_owned),
        }
    }
}

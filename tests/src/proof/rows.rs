//! The rows: for each a name and a function that sends the packets and says what was seen, line by line. Each row is about
//! every family that the places in question have in common.

use std::fmt::Display;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike as _};
use overlay_userspace::family::{ByFamily, Family};

use super::Stage;
use crate::lab::{Families, Namespace, Node, Pod, exec};
use crate::report::Report;
use crate::traffic::{Seen, any_port, ping, tcp, udp};

/// What was seen, as lines: `Ok` if it is what the row claims.
type Proven = Result<Vec<String>, Vec<String>>;

/// A row: its name and its proof.
type Proof = (&'static str, fn(&Stage) -> Proven);

/// The rows before [`DOCKER`].
pub(super) const ALL: [Proof; 9] = [
    ("pod → pod, same node", pod_to_pod_same_node),
    ("pod → pod, other node, every pair", pod_to_pod_other_node),
    ("pod → pod, across subnets", pod_to_pod_across_subnets),
    ("node → pod, local", node_to_pod_local),
    ("node → pod, remote", node_to_pod_remote),
    ("pod → node, local", pod_to_node_local),
    ("pod → node, remote", pod_to_node_remote),
    ("two processes of one pod meet on localhost", localhost),
    (WORLD, world),
];

/// The row about the world, which is for clusters whose pods have a family that reaches it; see [`can_leave`].
pub(super) const WORLD: &str = "pod → outside world, masqueraded";

/// Whether any node has an address of a family of its pods.
pub(super) fn can_leave(stage: &Stage) -> bool {
    let mut nodes = stage.cluster.nodes().iter();
    nodes.any(|node| node.families().iter().any(|family| node.addresses().get(family).is_some()))
}

/// The last row; see [`docker`].
pub(super) const DOCKER: &str = "docker0 is down, FORWARD drops, nothing minds";

/// A place that traffic comes from or goes to.
#[derive(Clone, Copy)]
struct Host<'a> {
    name: (&'a str, &'a str),
    namespace: &'a Namespace,
    addresses: ByFamily<IpAddr>,
}

impl<'a> From<&'a Pod> for Host<'a> {
    fn from(pod: &'a Pod) -> Self {
        Self { name: (pod.node(), pod.name()), namespace: pod.namespace(), addresses: pod.addrs() }
    }
}

/// A node as a client of pods: it speaks to them under the address of its gateway, of which it has one for each family of its
/// pods whatever the underlay has.
fn caller(node: &Node) -> Host<'_> {
    let addresses = node.subnets().map(|family, _| node.gateway_of(family));
    Host { name: (node.name(), ""), namespace: node.namespace(), addresses }
}

/// A node as pods call it: at its own address, in a family that the underlay has not at that of its gateway.
fn callee(node: &Node) -> Host<'_> {
    let own = node.addresses();
    let addresses =
        node.families().map(|family| own.get(family).copied().unwrap_or_else(|| node.gateway_of(family)));
    Host { name: (node.name(), ""), namespace: node.namespace(), addresses }
}

impl Display for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name {
            (node, "") => write!(f, "{node}"),
            (node, pod) => write!(f, "{node}/{pod}"),
        }
    }
}

/// TCP, UDP and ping from one to the other's address; TCP and UDP under an unchanged address, given as the client's own
/// (`getsockname`) = what the server saw (`getpeername`, `recvfrom`).
fn untranslated(from: Host<'_>, to: Host<'_>, address: IpAddr) -> Result<String> {
    let (tcp, udp, time) = all_protocols(from, to.namespace, address)?;
    for (protocol, seen) in [("tcp", tcp), ("udp", udp)] {
        let Seen { client, server_saw } = seen;
        ensure!(seen.same_address(), "{protocol} client is {client}, but the server saw {server_saw}");
    }
    Ok(format!(
        "tcp {} = {}  udp {} = {}  ping {}",
        tcp.client,
        tcp.server_saw,
        udp.client,
        udp.server_saw,
        milliseconds(time)
    ))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn all_protocols(from: Host<'_>, server: &Namespace, address: IpAddr) -> Result<(Seen, Seen, Duration)> {
    let at = any_port(address);
    let tcp = tcp::exchange(from.namespace, server, at).context("tcp")?;
    let udp = udp::exchange(from.namespace, server, at).context("udp")?;
    let time = ping::ping(from.namespace, address)?;
    Ok((tcp, udp, time))
}

/// Tries every pair in every family that it shares, whatever becomes of the others; one line for each.
fn each_pair<'a>(pairs: impl IntoIterator<Item = (Host<'a>, Host<'a>)>) -> Proven {
    let tries = pairs.into_iter().flat_map(|(from, to)| {
        let addresses =
            Families::of(&from.addresses).iter().filter_map(move |family| to.addresses.get(family).copied());
        addresses.map(move |address| (format!("{from} → {to}"), untranslated(from, to, address)))
    });
    lines(tries)
}

fn lines(results: impl IntoIterator<Item = (String, Result<String>)>) -> Proven {
    let (mut all, mut ok) = (Vec::new(), true);
    for (what, result) in results {
        ok &= result.is_ok();
        all.push(match result {
            Ok(seen) => format!("{what}  {seen}"),
            Err(error) => format!("{what}  FAILED: {error:#}"),
        });
    }
    // No pair at all would prove nothing.
    if ok && !all.is_empty() { Ok(all) } else { Err(all) }
}

fn pod_to_pod_same_node(stage: &Stage) -> Proven {
    let on_node = stage.cluster.nodes().iter().flat_map(|node| {
        let pods: Vec<&Pod> = stage.pods_on(node).collect();
        let pairs = pods.iter().flat_map(|from| pods.iter().map(move |to| (*from, *to)));
        pairs.filter(|(from, to)| from.name() != to.name()).collect::<Vec<_>>()
    });
    each_pair(on_node.map(|(from, to)| (from.into(), to.into())))
}

fn pod_to_pod_other_node(stage: &Stage) -> Proven {
    pods_of_node_pairs(stage, |_, _| true)
}

fn pod_to_pod_across_subnets(stage: &Stage) -> Proven {
    // Nodes in one subnet have a route to each other without a router.
    let routed = |from: &Node, to: &Node| {
        let mut common =
            Families::of(&from.addresses()).iter().filter_map(|family| to.addresses().get(family).copied());
        common.next().is_some_and(|address| {
            let route = from.namespace().ip_json(&format!("route get {address}"));
            route[0]["gateway"].is_string()
        })
    };
    pods_of_node_pairs(stage, routed)
}

fn pods_of_node_pairs(stage: &Stage, wanted: impl Fn(&Node, &Node) -> bool) -> Proven {
    let pairs = stage.node_pairs(wanted).into_iter().flat_map(|(from_node, to_node)| {
        let from = stage.pods_on(from_node);
        from.flat_map(move |from| stage.pods_on(to_node).map(move |to| (from.into(), to.into())))
    });
    each_pair(pairs)
}

fn node_to_pod_local(stage: &Stage) -> Proven {
    let pairs = stage.cluster.nodes().iter().flat_map(|node| stage.pods_on(node).map(move |pod| (node, pod)));
    each_pair(pairs.map(|(node, pod)| (caller(node), pod.into())))
}

fn node_to_pod_remote(stage: &Stage) -> Proven {
    let pairs = stage.node_pairs(|_, _| true).into_iter();
    each_pair(pairs.flat_map(|(from, to)| stage.pods_on(to).map(move |pod| (caller(from), pod.into()))))
}

fn pod_to_node_local(stage: &Stage) -> Proven {
    let pairs = stage.cluster.nodes().iter().flat_map(|node| stage.pods_on(node).map(move |pod| (pod, node)));
    each_pair(pairs.map(|(pod, node)| (pod.into(), callee(node))))
}

fn pod_to_node_remote(stage: &Stage) -> Proven {
    let pairs = stage.node_pairs(|_, _| true).into_iter();
    each_pair(pairs.flat_map(|(from, to)| stage.pods_on(from).map(move |pod| (pod.into(), callee(to)))))
}

fn localhost(stage: &Stage) -> Proven {
    let tries =
        stage.pods.iter().flat_map(|pod| Families::of(&pod.addrs()).iter().map(move |family| (pod, family)));
    lines(tries.map(|(pod, family)| (Host::from(pod).to_string(), meet_on_localhost(pod, family))))
}

/// One process, this one, listens in the pod; another one, a shell, connects to it there.
fn meet_on_localhost(pod: &Pod, family: Family) -> Result<String> {
    const REQUEST: &str = "is anybody there";
    let localhost = match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let listener = pod.namespace().run(|| TcpListener::bind((localhost, 0)))?;
    // accept(2) honours SO_RCVTIMEO, see socket(7).
    setsockopt(&listener, ReceiveTimeout, &TimeVal::seconds(3))?;
    let port = listener.local_addr()?.port();
    let script = format!("exec 3<>/dev/tcp/{localhost}/{port} && echo '{REQUEST}' >&3 && cat <&3");
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            let (mut stream, peer) = listener.accept().context("accept on localhost")?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            let mut request = vec![0; REQUEST.len() + 1];
            stream.read_exact(&mut request).context("read the request")?;
            ensure!(request == format!("{REQUEST}\n").into_bytes(), "the request was changed");
            write!(stream, "yes: process {}", std::process::id()).context("answer")?;
            Ok(peer)
        });
        let mut shell = pod.namespace().command("bash");
        let out = exec::output(shell.args(["-c", &script]), b"", Duration::from_secs(5))?;
        let peer = server.join().expect("the server does not panic")?;
        let expected = format!("yes: process {}", std::process::id());
        ensure!(out.stdout == expected, "the client got {:?} {}", out.stdout, out.stderr.trim_end());
        Ok(format!("the server saw {peer}, the client read \"{}\"", out.stdout))
    })
}

fn world(stage: &Stage) -> Proven {
    let pods = stage.cluster.nodes().iter().flat_map(|node| stage.pods_on(node).map(move |pod| (node, pod)));
    let tries = pods.flat_map(|(node, pod)| {
        // Who has no address in the world's family cannot go there.
        let families = Families::of(&pod.addrs()).iter();
        families.filter_map(move |family| Some((family, node, *node.addresses().get(family)?, pod)))
    });
    lines(tries.map(|(family, node, address, pod)| {
        (format!("{} → world", Host::from(pod)), masqueraded(stage, (node, address), pod, family))
    }))
}

fn masqueraded(stage: &Stage, (node, address): (&Node, IpAddr), pod: &Pod, family: Family) -> Result<String> {
    let (world, own) = (stage.cluster.world(), pod.addr_of(family));
    // Without this the answer could come back by a route, and the rest would prove nothing.
    let route = exec::output(
        world.namespace().command("ip").args(["route", "get", &own.to_string()]),
        b"",
        exec::COMMAND_LIMIT,
    )?;
    ensure!(!route.status.success(), "the world has a route to the pod: {}", route.stdout.trim_end());

    let (tcp, udp, time) = all_protocols(pod.into(), world.namespace(), world.address_of(family))?;
    for (protocol, seen) in [("tcp", tcp), ("udp", udp)] {
        let (client, server_saw) = (seen.client.ip(), seen.server_saw.ip());
        ensure!(client == own, "{protocol} client has {client}, not the pod's {own}");
        ensure!(
            server_saw == address,
            "{protocol} server saw {server_saw}, not {address} of {}",
            node.name()
        );
    }
    Ok(format!(
        "tcp {} seen as {}  udp {} seen as {}  ping {}",
        tcp.client,
        tcp.server_saw,
        udp.client,
        udp.server_saw,
        milliseconds(time)
    ))
}

/// What Docker left on every node, read back from the kernel, and that all of `before` holds nevertheless.
pub(super) fn docker(stage: &Stage, before: &Report) -> (bool, Vec<String>) {
    let mut ok = before.ok();
    let mut seen = Vec::new();
    for node in stage.cluster.nodes() {
        let docker = node.docker_state();
        ok &= docker.bridge.as_deref() == Some("DOWN");
        let policies = node.families().map(|family| {
            let policy = docker.forward_policy.get(family).map_or("absent", String::as_str);
            ok &= policy == "DROP";
            format!("{family} FORWARD policy {policy}")
        });
        let bridge = docker.bridge.as_deref().unwrap_or("absent");
        let policies: Vec<&str> = policies.values().map(String::as_str).collect();
        seen.push(format!("{}  docker0 {bridge}, {}", node.name(), policies.join(", ")));
    }
    let passed = before.rows.iter().filter(|row| row.ok).count();
    seen.push(format!("{passed} of {} rows above hold", before.rows.len()));
    (ok, seen)
}

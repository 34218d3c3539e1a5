//! The rows: for each a name and a function that sends the packets and says what was seen, line by line.

use std::fmt::Display;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::Stage;
use crate::lab::{Namespace, Node, Pod, exec};
use crate::report::Report;
use crate::traffic::{Seen, ping, tcp, udp};

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
    ("pod → outside world, masqueraded", world),
];

/// The last row; see [`docker`].
pub(super) const DOCKER: &str = "docker0 is down, FORWARD drops, nothing minds";

/// A place that traffic comes from or goes to.
#[derive(Clone, Copy)]
struct Host<'a> {
    name: (&'a str, &'a str),
    namespace: &'a Namespace,
    address: Ipv4Addr,
}

impl<'a> From<&'a Pod> for Host<'a> {
    fn from(pod: &'a Pod) -> Self {
        Self { name: (pod.node(), pod.name()), namespace: pod.namespace(), address: pod.addr() }
    }
}

impl<'a> From<&'a Node> for Host<'a> {
    fn from(node: &'a Node) -> Self {
        Self { name: (node.name(), ""), namespace: node.namespace(), address: node.address() }
    }
}

impl Display for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name {
            (node, "") => write!(f, "{node}"),
            (node, pod) => write!(f, "{node}/{pod}"),
        }
    }
}

/// TCP, UDP and ping from one to the other; TCP and UDP under an unchanged address, given as the client's own
/// (`getsockname`) = what the server saw (`getpeername`, `recvfrom`).
fn untranslated(from: Host<'_>, to: Host<'_>) -> Result<String> {
    let (tcp, udp, time) = all_protocols(from, to.namespace, to.address)?;
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

fn all_protocols(from: Host<'_>, server: &Namespace, address: Ipv4Addr) -> Result<(Seen, Seen, Duration)> {
    let at = SocketAddr::new(IpAddr::V4(address), 0);
    let tcp = tcp::exchange(from.namespace, server, at).context("tcp")?;
    let udp = udp::exchange(from.namespace, server, at).context("udp")?;
    let time = ping::ping(from.namespace, IpAddr::V4(address))?;
    Ok((tcp, udp, time))
}

/// Tries every pair, whatever becomes of the others; one line for each.
fn each_pair<'a>(pairs: impl IntoIterator<Item = (Host<'a>, Host<'a>)>) -> Proven {
    lines(pairs.into_iter().map(|(from, to)| (format!("{from} → {to}"), untranslated(from, to))))
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
        let route = from.namespace().ip_json(&format!("route get {}", to.address()));
        route[0]["gateway"].is_string()
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
    each_pair(pairs.map(|(node, pod)| (node.into(), pod.into())))
}

fn node_to_pod_remote(stage: &Stage) -> Proven {
    let pairs = stage.node_pairs(|_, _| true).into_iter();
    each_pair(pairs.flat_map(|(from, to)| stage.pods_on(to).map(move |pod| (from.into(), pod.into()))))
}

fn pod_to_node_local(stage: &Stage) -> Proven {
    let pairs = stage.cluster.nodes().iter().flat_map(|node| stage.pods_on(node).map(move |pod| (pod, node)));
    each_pair(pairs.map(|(pod, node)| (pod.into(), node.into())))
}

fn pod_to_node_remote(stage: &Stage) -> Proven {
    let pairs = stage.node_pairs(|_, _| true).into_iter();
    each_pair(pairs.flat_map(|(from, to)| stage.pods_on(from).map(move |pod| (pod.into(), to.into()))))
}

fn localhost(stage: &Stage) -> Proven {
    lines(stage.pods.iter().map(|pod| (Host::from(pod).to_string(), meet_on_localhost(pod))))
}

/// One process, this one, listens in the pod; another one, a shell, connects to it there.
fn meet_on_localhost(pod: &Pod) -> Result<String> {
    const REQUEST: &str = "is anybody there";
    let listener = pod.namespace().run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    // accept(2) honours SO_RCVTIMEO, see socket(7).
    setsockopt(&listener, ReceiveTimeout, &TimeVal::seconds(3))?;
    let port = listener.local_addr()?.port();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port} && echo '{REQUEST}' >&3 && cat <&3");
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
    let nodes = stage.cluster.nodes().iter();
    let pods = nodes.flat_map(|node| stage.pods_on(node).map(move |pod| (node, pod)));
    lines(pods.map(|(node, pod)| (format!("{} → world", Host::from(pod)), masqueraded(stage, node, pod))))
}

fn masqueraded(stage: &Stage, node: &Node, pod: &Pod) -> Result<String> {
    let world = stage.cluster.world();
    // Without this the answer could come back by a route, and the rest would prove nothing.
    let route = exec::output(
        world.namespace().command("ip").args(["route", "get", &pod.addr().to_string()]),
        b"",
        exec::COMMAND_LIMIT,
    )?;
    ensure!(!route.status.success(), "the world has a route to the pod: {}", route.stdout.trim_end());

    let (tcp, udp, time) = all_protocols(pod.into(), world.namespace(), world.address())?;
    for (protocol, seen) in [("tcp", tcp), ("udp", udp)] {
        let (client, server_saw) = (seen.client.ip(), seen.server_saw.ip());
        ensure!(client == pod.addr(), "{protocol} client has {client}, not the pod's {}", pod.addr());
        ensure!(server_saw == node.address(), "{protocol} server saw {server_saw}, not {}", node.address());
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
        ok &= docker.bridge.as_deref() == Some("DOWN") && docker.forward_policy.as_deref() == Some("DROP");
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "absent".to_owned());
        let (bridge, policy) = (or_none(docker.bridge), or_none(docker.forward_policy));
        seen.push(format!("{}  docker0 {bridge}, FORWARD policy {policy}", node.name()));
    }
    let passed = before.rows.iter().filter(|row| row.ok).count();
    seen.push(format!("{passed} of {} rows above hold", before.rows.len()));
    (ok, seen)
}

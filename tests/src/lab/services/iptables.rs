//! The rules of kube-proxy's iptables mode, as Kubernetes 1.20 writes them, by `iptables-restore --noflush` of one document.
//!
//! What is foreign stays: only chains named `KUBE-…` are declared, hence emptied, and jumps to them are inserted once.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use ipnet::IpNet;
use overlay_userspace::family::{Family, OfFamily as _};

use super::{Backend, External, ProxyNode, Service, ServicePort, hash};
use crate::lab::{Namespace, exec};

/// What the kubelet of that release writes, and kube-proxy's chains rely on: packets marked for dropping are dropped. For IPv6
/// without the second rule.
const KUBELET: &str = "\
*filter
:KUBE-FIREWALL - [0:0]
-A KUBE-FIREWALL -m comment --comment \"kubernetes firewall for dropping marked packets\" -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-I OUTPUT -j KUBE-FIREWALL
-I INPUT -j KUBE-FIREWALL
COMMIT
*nat
:KUBE-MARK-DROP - [0:0]
-A KUBE-MARK-DROP -j MARK --or-mark 0x8000
COMMIT
";

/// Jumps from the built-in chains of table filter, in the order in which they end up.
const FILTER_JUMPS: &str = "\
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
";

/// Rules of table filter that do not depend on any Service.
const FILTER_RULES: &str = "\
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack pod source rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack pod destination rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
";

/// The same of table nat.
const NAT_JUMPS: &str = "\
-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
";

/// Rules of table nat that do not depend on any Service.
const NAT_RULES: &str = "\
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
";

/// How the names of chains begin that choose among a node's own backends.
const LOCAL: &str = "KUBE-XLB-";

/// The chains of Services that a node has: those that are gone have to be removed. Empty before the first time.
#[derive(Debug, Clone, Default)]
pub(super) struct Chains(BTreeSet<String>);

/// Adds the kubelet's rules.
#[track_caller]
pub(super) fn kubelet(namespace: &Namespace, family: Family) {
    let lines = KUBELET.split_inclusive('\n');
    let rules = lines.filter(|line| family == Family::Ipv4 || !line.contains("127.0.0.0/8"));
    restore(namespace, family, &rules.collect::<String>());
}

/// Brings the rules of these Services about on `node`.
#[track_caller]
pub(super) fn apply(node: &ProxyNode, cluster: IpNet, services: &[Service], chains: &mut Chains) {
    let first = chains.0.is_empty();
    let document = Document::write(node, cluster, services);
    let mut text = String::from("*filter\n");
    for chain in ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD"] {
        declare(&mut text, chain);
    }
    text.push_str(if first { FILTER_JUMPS } else { "" });
    text.extend([&document.filter, FILTER_RULES, "COMMIT\n*nat\n"]);
    for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
        declare(&mut text, chain);
    }
    // Declaring a chain empties it; that is also what lets one that is gone be removed.
    for chain in document.chains.union(&chains.0) {
        declare(&mut text, chain);
    }
    text.push_str(if first { NAT_JUMPS } else { "" });
    text.extend([NAT_RULES, &document.nat]);
    for chain in chains.0.difference(&document.chains) {
        writeln!(text, "-X {chain}").expect("a string takes everything");
    }
    text.push_str("COMMIT\n");
    restore(&node.namespace, cluster.family(), &text);
    chains.0 = document.chains;
}

fn declare(text: &mut String, chain: &str) {
    text.extend([":", chain, " - [0:0]\n"]);
}

#[track_caller]
fn restore(namespace: &Namespace, family: Family, document: &str) {
    let program = match family {
        Family::Ipv4 => "iptables-nft-restore",
        Family::Ipv6 => "ip6tables-nft-restore",
    };
    exec::must(namespace.command(program).args(["--noflush", "--counters"]), document);
}

/// The addresses of a node that only it has.
const fn loopback(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "127.0.0.0/8",
        Family::Ipv6 => "::1/128",
    }
}

/// Rules and chains of Services on one node.
struct Document {
    filter: String,
    nat: String,
    chains: BTreeSet<String>,
}

impl Document {
    fn write(node: &ProxyNode, cluster: IpNet, services: &[Service]) -> Self {
        let mut document = Self { filter: String::new(), nat: String::new(), chains: BTreeSet::new() };
        for (service, port) in Service::ports_of(services) {
            if service.backends.is_empty() {
                document.reject(service, port);
            } else {
                document.port(node, cluster, service, port);
            }
        }
        document.rule(
            "KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this \
             chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        );
        document
    }

    fn rule(&mut self, rule: &str) {
        self.nat.extend(["-A ", rule, "\n"]);
    }

    fn chain(&mut self, name: &str) {
        self.chains.insert(name.to_owned());
    }

    fn reject(&mut self, service: &Service, ServicePort { protocol, port, node_port, .. }: ServicePort) {
        let comment = format!(
            "-m comment --comment \"default/{}:{protocol} has no endpoints\" -m {protocol} -p {protocol}",
            service.name
        );
        let write = &mut self.filter;
        let ip = IpNet::from(service.cluster_ip);
        writeln!(write, "-A KUBE-SERVICES {comment} -d {ip} --dport {port} -j REJECT").expect("a string");
        if let Some(node_port) = node_port {
            let rule = format!("{comment} -m addrtype --dst-type LOCAL --dport {node_port} -j REJECT");
            writeln!(write, "-A KUBE-EXTERNAL-SERVICES {rule}").expect("a string");
        }
    }

    fn port(&mut self, node: &ProxyNode, cluster: IpNet, service: &Service, port: ServicePort) {
        let ServicePort { protocol, port: number, node_port, .. } = port;
        let name = service.port_name(port);
        let svc = format!("KUBE-SVC-{}", hash(&name));
        self.chain(&svc);
        let matches = format!(
            "KUBE-SERVICES -m comment --comment \"{name} cluster IP\" -m {protocol} -p {protocol} -d {} --dport {number}",
            IpNet::from(service.cluster_ip)
        );
        self.rule(&format!("{matches} ! -s {cluster} -j KUBE-MARK-MASQ"));
        self.rule(&format!("{matches} -j {svc}"));

        let local = service.external == External::Local;
        let xlb = format!("{LOCAL}{}", hash(&name));
        if let Some(node_port) = node_port {
            let matches = format!(
                "KUBE-NODEPORTS -m comment --comment {name} -m {protocol} -p {protocol} --dport {node_port}"
            );
            let own = format!(" -s {}", loopback(cluster.family()));
            let (source, target) = if local { (own.as_str(), &xlb) } else { ("", &svc) };
            self.rule(&format!("{matches}{source} -j KUBE-MARK-MASQ"));
            self.rule(&format!("{matches} -j {target}"));
        }

        let all: Vec<&Backend> = service.backends.iter().collect();
        self.balance(&svc, service, port, &all);
        for backend in &all {
            self.endpoint(service, port, backend);
        }
        if local {
            self.chain(&xlb);
            let here: Vec<&Backend> = all.into_iter().filter(|backend| backend.node == node.name).collect();
            let comment = |text: &str| format!("{xlb} -m comment --comment \"{text}\"");
            let pods = comment("Redirect pods trying to reach external loadbalancer VIP to clusterIP");
            self.rule(&format!("{pods} -s {cluster} -j {svc}"));
            let own = comment(&format!("masquerade LOCAL traffic for {name} LB IP"));
            self.rule(&format!("{own} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"));
            let own = comment(&format!("route LOCAL traffic for {name} LB IP to service chain"));
            self.rule(&format!("{own} -m addrtype --src-type LOCAL -j {svc}"));
            if here.is_empty() {
                let empty = comment(&format!("{name} has no local endpoints"));
                self.rule(&format!("{empty} -j KUBE-MARK-DROP"));
            }
            self.balance(&xlb, service, port, &here);
        }
    }

    /// Rules that choose among `backends`: by affinity, then by chance.
    fn balance(&mut self, chain: &str, service: &Service, port: ServicePort, backends: &[&Backend]) {
        let name = service.port_name(port);
        let start = format!("{chain} -m comment --comment {name}");
        if let Some(seconds) = service.affinity.map(|time| time.as_secs()) {
            for backend in backends {
                let sep = endpoint_chain(service, port, backend);
                let recent = format!("-m recent --name {sep} --rcheck --seconds {seconds} --reap");
                self.rule(&format!("{start} {recent} -j {sep}"));
            }
        }
        for (index, backend) in backends.iter().enumerate() {
            let rest = backends.len() - index;
            let start = if chain.starts_with(LOCAL) {
                format!("{chain} -m comment --comment \"Balancing rule {index} for {name}\"")
            } else {
                start.clone()
            };
            let sep = endpoint_chain(service, port, backend);
            let chance = match u32::try_from(rest).expect("few backends") {
                1 => String::new(),
                rest => format!(" -m statistic --mode random --probability {:.10}", 1.0 / f64::from(rest)),
            };
            self.rule(&format!("{start}{chance} -j {sep}"));
        }
    }

    fn endpoint(&mut self, service: &Service, port: ServicePort, backend: &Backend) {
        let sep = endpoint_chain(service, port, backend);
        self.chain(&sep);
        let ServicePort { protocol, target, .. } = port;
        let start = format!("{sep} -m comment --comment {}", service.port_name(port));
        // The backend itself, through the Service: it has to answer somebody else.
        self.rule(&format!("{start} -s {} -j KUBE-MARK-MASQ", IpNet::from(backend.addr)));
        let recent =
            if service.affinity.is_some() { format!(" -m recent --name {sep} --set") } else { String::new() };
        let to = SocketAddr::new(backend.addr, target);
        let to = format!("-m {protocol} -p {protocol} -j DNAT --to-destination {to}");
        self.rule(&format!("{start}{recent} {to}"));
    }
}

fn endpoint_chain(service: &Service, port: ServicePort, backend: &Backend) -> String {
    format!("KUBE-SEP-{}", hash(&format!("{}{}:{}", service.port_name(port), backend.addr, port.target)))
}

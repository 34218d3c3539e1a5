//! The rules of kube-proxy's nftables mode: table `ip kube-proxy` or `ip6 kube-proxy`, replaced as a whole by one `nft -f`.
//!
//! The structure is the one that Kubernetes has written since 1.31. On top of it packets in state INVALID are dropped when they are forwarded,
//! as in the iptables mode.

use std::fmt::Write as _;
use std::net::SocketAddr;

use ipnet::IpNet;
use overlay_userspace::family::{Family, OfFamily as _};

use super::{Backend, External, NAMESPACE, ProxyNode, Service, ServicePort, hash, service_range};
use crate::lab::exec;

/// What is spelled otherwise for IPv6.
const IPV6: [(&str, &str); 4] = [
    (" ip kube-proxy", " ip6 kube-proxy"),
    ("ip daddr", "ip6 daddr"),
    ("ip saddr", "ip6 saddr"),
    ("type ipv4_addr", "type ipv6_addr"),
];

/// What does not depend on any Service.
const BASE: &str = r#"
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy masquerading
add chain ip kube-proxy reject-chain
add chain ip kube-proxy services
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy service-endpoints-check
add chain ip kube-proxy filter-forward { type filter hook forward priority 0 ; }
add chain ip kube-proxy filter-input { type filter hook input priority 0 ; }
add chain ip kube-proxy filter-output { type filter hook output priority 0 ; }
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add set ip kube-proxy cluster-ips { type ipv4_addr ; comment "Active ClusterIPs" ; }
add set ip kube-proxy nodeport-ips { type ipv4_addr ; comment "IPs that accept NodePort traffic" ; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict ; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; }
add rule ip kube-proxy filter-forward ct state invalid drop
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule ip kube-proxy reject-chain reject
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
"#;

/// Brings the rules of these Services about on `node`.
#[track_caller]
pub(super) fn apply(node: &ProxyNode, cluster: IpNet, services: &[Service]) {
    let mut script = Script(String::new());
    // Emptied rather than deleted: sets of affinity keep their elements where they stay the same.
    script.line("table ip kube-proxy", "");
    script.0.push_str("flush table ip kube-proxy\n");
    script.0.push_str(BASE);
    script.rule("cluster-ips-check", &format!("ip daddr {{ {} }} drop", service_range(cluster.family())));
    for set in ["cluster-ips", "nodeport-ips"] {
        script.0.extend(["flush set ip kube-proxy ", set, "\n"]);
    }
    for map in ["no-endpoint-nodeports", "no-endpoint-services", "service-ips", "service-nodeports"] {
        script.0.extend(["flush map ip kube-proxy ", map, "\n"]);
    }
    script.element("nodeport-ips", &node.address.to_string());
    for service in services {
        script.element("cluster-ips", &service.cluster_ip.to_string());
    }
    for (service, port) in Service::ports_of(services) {
        script.port(node, cluster, service, port);
    }
    if cluster.family() == Family::Ipv6 {
        script.0 = IPV6.iter().fold(script.0, |text, (v4, v6)| text.replace(v4, v6));
    }
    exec::must(node.namespace.command("nft").args(["-f", "-"]), &script.0);
}

/// An nft script for table `ip kube-proxy`.
struct Script(String);

impl Script {
    fn line(&mut self, what: &str, rest: &str) {
        writeln!(self.0, "add {what} {rest}").expect("a string takes everything");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        self.line("rule ip kube-proxy", &format!("{chain} {rule}"));
    }

    fn chain(&mut self, chain: &str) {
        self.line("chain ip kube-proxy", chain);
    }

    fn element(&mut self, set: &str, element: &str) {
        self.line("element ip kube-proxy", &format!("{set} {{ {element} }}"));
    }

    fn port(&mut self, node: &ProxyNode, cluster: IpNet, service: &Service, port: ServicePort) {
        let ServicePort { protocol, port: number, node_port, .. } = port;
        let (name, ip) = (chain_name(service, port), service.cluster_ip);
        if service.backends.is_empty() {
            self.element(
                "no-endpoint-services",
                &format!("{ip} . {protocol} . {number} : goto reject-chain"),
            );
            if let Some(node_port) = node_port {
                let element = format!("{protocol} . {node_port} : goto reject-chain");
                self.element("no-endpoint-nodeports", &element);
            }
            return;
        }
        for backend in &service.backends {
            self.endpoint(service, port, backend);
        }
        let inside = format!("service-{name}");
        self.chain(&inside);
        self.rule(&inside, &format!("ip daddr {ip} ip saddr != {cluster} jump mark-for-masquerade"));
        let all: Vec<&Backend> = service.backends.iter().collect();
        self.balance(&inside, service, port, &all);
        self.element("service-ips", &format!("{ip} . {protocol} . {number} : goto {inside}"));

        let Some(node_port) = node_port else { return };
        let outside = format!("external-{name}");
        self.chain(&outside);
        match service.external {
            External::Cluster => {
                self.rule(&outside, "jump mark-for-masquerade");
                self.rule(&outside, &format!("goto {inside}"));
            }
            External::Local => {
                self.rule(&outside, &format!("ip saddr {cluster} goto {inside}"));
                self.rule(&outside, "fib saddr type local jump mark-for-masquerade");
                self.rule(&outside, &format!("fib saddr type local goto {inside}"));
                let here: Vec<&Backend> =
                    all.into_iter().filter(|backend| backend.node == node.name).collect();
                if here.is_empty() {
                    self.element("no-endpoint-nodeports", &format!("{protocol} . {node_port} : drop"));
                } else {
                    self.balance(&outside, service, port, &here);
                }
            }
        }
        self.element("service-nodeports", &format!("{protocol} . {node_port} : goto {outside}"));
    }

    /// Rules that choose among `backends`: by affinity, then by chance.
    fn balance(&mut self, chain: &str, service: &Service, port: ServicePort, backends: &[&Backend]) {
        let names: Vec<String> =
            backends.iter().map(|backend| endpoint_name(service, port, backend)).collect();
        if service.affinity.is_some() {
            for name in &names {
                self.rule(chain, &format!("ip saddr @affinity-{name} goto endpoint-{name}"));
            }
        }
        let numbered = names.iter().enumerate();
        let goto: Vec<String> =
            numbered.map(|(index, name)| format!("{index} : goto endpoint-{name}")).collect();
        self.rule(chain, &format!("numgen random mod {} vmap {{ {} }}", goto.len(), goto.join(" , ")));
    }

    fn endpoint(&mut self, service: &Service, port: ServicePort, backend: &Backend) {
        let name = endpoint_name(service, port, backend);
        let chain = format!("endpoint-{name}");
        self.chain(&chain);
        // The backend itself, through the Service: it has to answer somebody else.
        self.rule(&chain, &format!("ip saddr {} jump mark-for-masquerade", backend.addr));
        if let Some(seconds) = service.affinity.map(|time| time.as_secs()) {
            let set = format!(
                "affinity-{name} {{ type ipv4_addr ; flags dynamic,timeout ; timeout {seconds}s ; }}"
            );
            self.line("set ip kube-proxy", &set);
            self.rule(&chain, &format!("update @affinity-{name} {{ ip saddr }}"));
        }
        let ServicePort { protocol, target, .. } = port;
        let to = SocketAddr::new(backend.addr, target);
        self.rule(&chain, &format!("meta l4proto {protocol} dnat to {to}"));
    }
}

fn chain_name(service: &Service, port: ServicePort) -> String {
    let hash = &hash(&service.port_name(port))[..8];
    format!("{hash}-{NAMESPACE}/{}/{1}/{1}", service.name, port.protocol)
}

fn endpoint_name(service: &Service, port: ServicePort, backend: &Backend) -> String {
    let text = format!("{}{}:{}", service.port_name(port), backend.addr, port.target);
    let hash = &hash(&text)[..8];
    // No colons in names.
    let addr = backend.addr.to_string().replace(':', ".");
    format!("{hash}-{NAMESPACE}/{}/{1}/{1}__{addr}/{2}", service.name, port.protocol, port.target)
}

//! `overlay sysdump`: one archive with all that somebody needs who cannot look at the node himself.
//!
//! What cannot be had does not keep the rest from being collected: a file `….error` says why. Nothing secret goes in:
//! configurations are taken apart and only what is known is written ([`Node::configuration`], [`conflists`]), and every file
//! passes [`secrets`].

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use clap::{Args, CommandFactory as _};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Cli, endpoints, flows, nodes, ports, programs, status::Status, told::Agent, version::Version};
use crate::{
    agent::process,
    config::{DEFAULT_PATH, Settings, Source},
    datapath::{dump, pins::Pins},
    host::{netlink::Netlink, sysctl},
};

mod archive;
mod secrets;
mod sources;

pub(super) use archive::{Archive, stamp, write_file};
pub(super) use secrets::Secrets;

#[derive(Debug, Args)]
pub(super) struct Sysdump {
    /// The archive; - is standard output [default: overlay-sysdump-<node>-<time>.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Settings of the kernel that matter to a pod network; all that there are of the first ones.
const SYSCTLS: [&str; 16] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/accept_local",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_no_pmtu_disc",
    "net/ipv4/fib_multipath_hash_policy",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/all/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/core/netdev_budget",
];

/// What the kernel counts for itself, and what it has loaded.
const PROC: [(&str, &str); 10] = [
    ("os-release", "/etc/os-release"),
    ("version", "/proc/version"),
    ("uptime", "/proc/uptime"),
    ("meminfo", "/proc/meminfo"),
    ("modules", "/proc/modules"),
    ("snmp", "/proc/self/net/snmp"),
    ("netstat", "/proc/self/net/netstat"),
    ("dev", "/proc/self/net/dev"),
    ("softnet_stat", "/proc/self/net/softnet_stat"),
    ("udp", "/proc/self/net/udp"),
];

/// Programs of iproute2, nftables and iptables: the image has the last two alone.
const PROGRAMS: [(&str, &str); 15] = [
    ("ip-link.json", "ip -j -d -s link show"),
    ("ip-address.json", "ip -j address show"),
    ("ip-route.json", "ip -j route show table all"),
    ("ip-rule.json", "ip -j rule show"),
    ("ip6-rule.json", "ip -j -6 rule show"),
    ("ip-neighbour.json", "ip -j neighbour show"),
    ("ip6-route.json", "ip -j -6 route show table all"),
    ("tc-qdisc.json", "tc -j -s qdisc show"),
    ("nft-ruleset.txt", "nft list ruleset"),
    ("iptables-legacy.txt", "iptables-legacy-save -c"),
    ("ip6tables-legacy.txt", "ip6tables-legacy-save -c"),
    ("bpftool-net.json", "bpftool -j net show"),
    ("bpftool-link.json", "bpftool -j link show"),
    ("bpftool-prog.json", "bpftool -j prog show"),
    ("bpftool-map.json", "bpftool -j map show"),
];

/// Commands of this binary that other versions of it have.
const FINDINGS: [&str; 1] = ["doctor"];

/// What the agent answers, where it answers anything.
const PAGES: [(&str, &str); 4] = [
    ("agent/healthz.txt", "/healthz"),
    ("agent/readyz.txt", "/readyz"),
    ("agent/metrics.txt", "/metrics"),
    ("agent/status.json", "/api/status"),
];

/// As text for the archive.
fn pretty(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).context("write as JSON")
}

/// The node that is dumped.
struct Node<'a> {
    pins: &'a Pins,
    agent: Agent,
    process: Option<process::Process>,
    settings: anyhow::Result<Settings>,
}

impl<'a> Node<'a> {
    fn find(pins: &'a Pins) -> Self {
        let (agent, process) = (Agent::find(pins), process::find(pins));
        let file = agent.config.as_deref().unwrap_or(DEFAULT_PATH);
        let path = process.map_or_else(|| PathBuf::from(file), |process| process.path(Path::new(file)));
        let overrides = process.and_then(super::told::overrides).unwrap_or_default();
        // The message of a file that cannot be read may quote it.
        let settings = Settings::load(&path, &overrides).map_err(|error| {
            anyhow!("{}", error.to_string().split(", in `").next().unwrap_or_default().to_owned())
        });
        Self { pins, agent, process, settings }
    }

    /// What a configuration says, not how: a comment, or a key that is not known, may be anything.
    fn configuration(&self) -> anyhow::Result<Value> {
        let settings = self.settings.as_ref().map_err(|error| anyhow!("{error}"))?;
        let network = &settings.network;
        let source = match &settings.source {
            Source::File(nodes) => json!({
                "kind": "file",
                "nodes": nodes.nodes().iter().map(|node| json!({
                    "name": node.name,
                    "address": node.addresses.values().collect::<Vec<_>>(),
                    "subnet": node.subnets.values().collect::<Vec<_>>(),
                })).collect::<Vec<_>>(),
            }),
            // A kubeconfig is named, never read.
            Source::Kubernetes(kubernetes) => json!({
                "kind": "kubernetes",
                "kubeconfig": kubernetes.kubeconfig,
                "api_server": kubernetes.api_server,
                "network_available": kubernetes.network_available,
            }),
        };
        Ok(json!({
            "node": settings.node,
            "source": source,
            "health": settings.health,
            "network": {
                "cidr": network.cidrs.iter().collect::<Vec<_>>(), "underlay": network.underlay.to_string(),
                "vni": network.vni, "port": network.port, "mtu": network.mtu,
                "interface": network.interface, "masquerade": network.masquerade,
                "no_masquerade": network.no_masquerade, "masquerade_to_nodes": network.masquerade_to_nodes,
                "attach": network.attach.to_string(), "stack_flows": network.stack_flows,
            },
            "cni": { "install": settings.cni.install, "bin": settings.cni.bin, "conf": settings.cni.conf, "name": settings.cni.name },
        }))
    }

    fn kubeconfigs(&self) -> Vec<PathBuf> {
        let of_settings = self.settings.as_ref().ok().and_then(|settings| match &settings.source {
            Source::Kubernetes(kubernetes) => kubernetes.kubeconfig.clone(),
            Source::File(_) => None,
        });
        let of_agent = self.process.and_then(|process| process.variable("KUBECONFIG"));
        let reach = |path: PathBuf| self.process.map_or(path.clone(), |process| process.path(&path));
        let own = std::env::var_os("KUBECONFIG").map(PathBuf::from);
        let own = own.iter().flat_map(|paths| std::env::split_paths(paths).collect::<Vec<_>>());
        let of_agent = of_agent.iter().flat_map(|paths| std::env::split_paths(paths).collect::<Vec<_>>());
        of_settings.into_iter().chain(of_agent).map(reach).chain(own).collect()
    }

    fn conf_dir(&self) -> PathBuf {
        let conf = self.settings.as_ref().map_or(Path::new("/etc/cni/net.d"), |settings| &settings.cni.conf);
        self.process.map_or(conf.to_owned(), |process| process.path(conf))
    }

    /// The agent's log: the journal's, or the file that it writes to.
    fn log(&self) -> anyhow::Result<Vec<u8>> {
        if let Some(process) = self.process {
            let path = PathBuf::from(format!("/proc/{}/fd/2", process.pid));
            if fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
                return sources::file(&path);
            }
        }
        let lines = ["--unit", "overlay.service", "--lines", "5000", "--no-pager", "--output", "short-iso"];
        let journal = sources::command("journalctl", &lines).context(
            "the agent writes to no file, and there is no journal; in Kubernetes: kubectl logs, or kubectl overlay sysdump",
        )?;
        let text = String::from_utf8_lossy(&journal);
        if text.contains("-- No entries --") {
            return Err(anyhow!(
                "the journal has nothing of overlay.service; in Kubernetes: kubectl overlay sysdump"
            ));
        }
        Ok(journal)
    }

    /// Everything, in an order in which it is read.
    fn collect<W: Write>(&self, archive: &mut Archive<W>) -> anyhow::Result<()> {
        let pins = self.pins;
        archive.add("version.json", pretty(&Version::own()))?;
        archive.add("agent.json", pretty(&self.agent))?;
        archive.add("configuration.json", self.configuration().and_then(|value| pretty(&value)))?;
        archive
            .add("status.json", Status::read(pins, crate::mesh::PORT).and_then(|status| pretty(&status)))?;
        archive.add("nodes.json", nodes::list(pins).map_err(Into::into).and_then(|rows| pretty(&rows)))?;
        archive.add(
            "endpoints.json",
            endpoints::list(pins).map_err(Into::into).and_then(|rows| pretty(&rows)),
        )?;
        archive.add("ports.json", ports::list(pins).map_err(Into::into).and_then(|rows| pretty(&rows)))?;
        archive.add("flows.json", flows::list(pins).and_then(|rows| pretty(&rows)))?;
        archive.add("programs.json", programs::list(pins).and_then(|rows| pretty(&rows)))?;
        for command in FINDINGS.iter().filter(|name| Cli::command().find_subcommand(name).is_some()) {
            let root = pins.root().display().to_string();
            let found = sources::command("/proc/self/exe", &[command, "-o", "json", "--pins", &root]);
            archive.add(&format!("{command}.json"), found)?;
        }
        archive.add("agent/log.txt", self.log())?;
        let health = self.agent.health.as_deref().and_then(|address| address.parse().ok());
        for (name, path) in PAGES {
            let answer = health
                .ok_or_else(|| anyhow!("no agent that says where it answers: agent.health"))
                .and_then(|address| sources::http(address, path));
            archive.add(name, answer)?;
        }
        archive.add("maps.json", dump::facts(pins).map_err(Into::into).and_then(|maps| pretty(&maps)))?;
        for name in dump::KNOWN {
            let entries = dump::entries(pins, name).map_err(Into::into).and_then(|entries| pretty(&entries));
            archive.add(&format!("maps/{name}.json"), entries)?;
        }
        archive
            .add("cni/configurations.json", conflists(&self.conf_dir()).and_then(|lists| pretty(&lists)))?;
        archive.add("kernel/sysctls.json", pretty(&sysctls()))?;
        for (name, path) in PROC {
            archive.add(&format!("kernel/{name}.txt"), sources::file(Path::new(path)))?;
        }
        archive.add("network/netlink.txt", netlink())?;
        for (name, line) in PROGRAMS {
            let words: Vec<_> = line.split(' ').collect();
            archive.add(&format!("network/{name}"), sources::command(words[0], &words[1..]))?;
        }
        Ok(())
    }
}

/// What each network configuration is, and nothing that it may hold: others' may have passwords.
fn conflists(dir: &Path) -> anyhow::Result<Value> {
    let failed = || format!("list {}", dir.display());
    let mut lists = Vec::new();
    for entry in fs::read_dir(dir).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let content =
            fs::read(entry.path()).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let content = content.unwrap_or_default();
        // A list, or a single configuration.
        let plugins = content["plugins"].as_array().cloned().unwrap_or_else(|| vec![content.clone()]);
        let types: Vec<_> = plugins.iter().filter_map(|plugin| plugin["type"].as_str()).collect();
        lists.push(json!({
            "file": entry.file_name().to_string_lossy(),
            "bytes": entry.metadata().map(|meta| meta.len()).ok(),
            "name": content["name"].as_str(),
            "cni_version": content["cniVersion"].as_str(),
            "types": types,
        }));
    }
    lists.sort_by_key(|list| list["file"].to_string());
    Ok(Value::Array(lists))
}

/// Values by path; `null` for what this kernel does not have.
fn sysctls() -> Value {
    let mut names: Vec<String> = SYSCTLS.iter().map(ToString::to_string).collect();
    for device in fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten() {
        let device = device.file_name().to_string_lossy().into_owned();
        for setting in ["forwarding", "rp_filter", "send_redirects"] {
            names.push(format!("net/ipv4/conf/{device}/{setting}"));
        }
        for setting in ["forwarding", "accept_ra", "disable_ipv6"] {
            names.push(format!("net/ipv6/conf/{device}/{setting}"));
        }
    }
    names.sort();
    names.dedup();
    names
        .into_iter()
        .map(|name| (name.clone(), json!(sysctl::get(&name).ok())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Links, addresses, routes and neighbours as this binary sees them; needs no program.
fn netlink() -> anyhow::Result<Vec<u8>> {
    let mut netlink = Netlink::open()?;
    let mut text = Vec::new();
    let mut section = |title: &str, lines: Vec<String>| {
        text.extend([format!("# {title}"), lines.join("\n"), String::new()]);
    };
    section("links", netlink.links()?.iter().map(|link| format!("{link:?}")).collect());
    section("addresses", netlink.addresses(None)?.iter().map(|one| format!("{one:?}")).collect());
    section("routes", netlink.routes(None)?.iter().map(ToString::to_string).collect());
    section("rules", netlink.source_rules()?.iter().map(|one| format!("{one:?}")).collect());
    section("neighbours", netlink.neighbours(None)?.iter().map(|one| format!("{one:?}")).collect());
    Ok(text.join("\n").into_bytes())
}

impl Sysdump {
    /// Collects it.
    pub(super) fn run(&self, pins: &Pins) -> anyhow::Result<()> {
        let node = Node::find(pins);
        let kubeconfigs = node.kubeconfigs();
        let secrets = Secrets::gather(kubeconfigs.iter().map(PathBuf::as_path));
        let name = match &node.settings {
            Ok(settings) => settings.node.clone(),
            Err(_) => fs::read_to_string("/proc/sys/kernel/hostname")
                .unwrap_or_else(|_| "node".into())
                .trim()
                .to_owned(),
        };
        let root = format!("overlay-sysdump-{name}-{}", stamp()?);
        let path = self.file.clone().unwrap_or_else(|| format!("{root}.tar.gz").into());
        if path == Path::new("-") {
            let mut archive = Archive::new(io::stdout().lock(), root, secrets);
            node.collect(&mut archive)?;
            return archive.finish()?.flush().context("write to standard output");
        }
        write_file(&path, root, secrets, |archive| node.collect(archive))
    }
}

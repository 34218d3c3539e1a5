//! What Flannel has left on a node: devices, files, rules. A list in the directory of the runtime that comes before overlay's
//! is the check `cni`'s, whoever has written it.

use std::{fmt, fs, path::Path, process::Command};

use anyhow::{Context as _, anyhow, bail, ensure};

use super::{Check, Fix, Report, Site, sockets};
use crate::{
    agent::flannel::{BRIDGE, SUBNET_ENV},
    host::{
        netlink::{Link, Netlink},
        nft::foreign_tables,
    },
};

pub(super) struct Flannel;

/// The process that is Flannel.
const DAEMON: &str = "flanneld";
/// Its tables, where it uses nft.
const TABLES: [(&str, &str); 2] = [("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")];
/// Its chains, where it uses iptables: table, chain that leads there, chain.
const CHAINS: [(&str, &str, &str); 2] =
    [("nat", "POSTROUTING", "FLANNEL-POSTRTG"), ("filter", "FORWARD", "FLANNEL-FWD")];
/// Both kinds of iptables, of both families.
const PROGRAMS: [&str; 4] = ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"];

/// One thing that is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// A device, by name.
    Device(String),
    /// A file.
    File(String),
    /// A table of nft: family and name.
    Table(&'static str, &'static str),
    /// A chain of iptables: the program, the table, the chain that leads there, and its name.
    Chain(&'static str, &'static str, &'static str, &'static str),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(name) => write!(f, "device {name}"),
            Self::File(path) => f.write_str(path),
            Self::Table(family, name) => write!(f, "nft table {family} {name}"),
            Self::Chain(program, table, _, name) => write!(f, "chain {name} of {program}'s table {table}"),
        }
    }
}

impl Leftover {
    /// The commands that remove it.
    fn commands(&self) -> Vec<String> {
        match self {
            Self::Device(name) => vec![format!("ip link del {name}")],
            Self::File(path) => vec![format!("rm {path}")],
            Self::Table(family, name) => vec![format!("nft delete table {family} {name}")],
            Self::Chain(program, table, from, name) => {
                // Rules are deleted as they are listed: with the comment that Flannel has given them.
                let list = list(program, table).unwrap_or_default();
                let jumps = list.lines().filter_map(|line| {
                    let rule = line.strip_prefix("-A ")?;
                    (rule.starts_with(&format!("{from} ")) && rule.ends_with(&format!("-j {name}")))
                        .then(|| format!("{program} -w -t {table} -D {rule}"))
                });
                let chain = ["-F", "-X"].map(|act| format!("{program} -w -t {table} {act} {name}"));
                jumps.chain(chain).collect()
            }
        }
    }

    /// Removes it; what is in use is not.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        if let Some(pid) = sockets::processes(DAEMON).first() {
            bail!("Flannel runs (process {pid}) and would make it again: remove its DaemonSet first");
        }
        if let Self::Device(name) = self {
            let mut netlink = Netlink::open()?;
            let ports = ports(&netlink.links()?, name);
            ensure!(
                ports == 0,
                "{ports} pods are still on {name}: delete them first, so that they are made anew"
            );
            netlink.delete_link(name)?;
            return Ok(());
        }
        for command in self.commands() {
            let output = Command::new("sh")
                .args(["-c", &command])
                .output()
                .with_context(|| format!("run {command}"))?;
            ensure!(
                output.status.success(),
                "{command}: {}",
                String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default()
            );
        }
        Ok(())
    }
}

impl Check for Flannel {
    fn name(&self) -> &'static str {
        "flannel"
    }

    fn run(&self, _: &Site, report: &mut Report) -> anyhow::Result<()> {
        if let Some(pid) = sockets::processes(DAEMON).first() {
            report
                .error(
                    DAEMON,
                    "runs on this node: overlay and Flannel want the same port and the same addresses",
                )
                .evidence(format!("process {pid}"))
                .remedy("kubectl delete daemonset -n kube-flannel kube-flannel-ds");
        }
        let links = Netlink::open()?.links()?;
        for link in links.iter().filter(|link| is_flannels(link)) {
            let ports = ports(&links, &link.name);
            let what = match ports {
                0 => "is left of Flannel".to_owned(),
                _ => {
                    format!("is left of Flannel, and {ports} pods are still on it, which reach no other node")
                }
            };
            let leftover = Leftover::Device(link.name.clone());
            let remedy = match ports {
                0 => leftover.commands().join(" && "),
                _ => {
                    format!("delete these pods, so that they are made anew; then: ip link del {}", link.name)
                }
            };
            let kind = link.kind.as_deref().unwrap_or("device");
            let finding = report.warning(link.name.clone(), what);
            finding.evidence(format!("a {kind} of Flannel's name")).remedy(remedy);
            if ports == 0 {
                finding.fix(Fix::Flannel(leftover));
            }
        }
        if Path::new(SUBNET_ENV).exists() {
            let leftover = Leftover::File(SUBNET_ENV.into());
            let first = fs::read_to_string(SUBNET_ENV).unwrap_or_default();
            let first = first.lines().next().unwrap_or_default().to_owned();
            found(
                report,
                leftover,
                "is left of Flannel: its CNI plugin would take pods' addresses from it",
                &first,
            );
        }
        for (family, name) in foreign_tables()? {
            if let Some(&(family, name)) = TABLES.iter().find(|table| **table == (&*family, &*name)) {
                let what = "is left of Flannel: it masquerades what pods send to other nodes";
                found(report, Leftover::Table(family, name), what, "the table exists");
            }
        }
        for program in PROGRAMS {
            for (table, from, name) in CHAINS {
                if list(program, table)
                    .is_ok_and(|list| list.lines().any(|line| line == format!("-N {name}")))
                {
                    let leftover = Leftover::Chain(program, table, from, name);
                    found(
                        report,
                        leftover,
                        "is left of Flannel",
                        &format!("{program} -t {table} -S lists it"),
                    );
                }
            }
        }
        report.saw("nothing of Flannel is left");
        Ok(())
    }
}

fn found(report: &mut Report, leftover: Leftover, what: &str, evidence: &str) {
    report
        .warning(leftover.to_string(), what)
        .evidence(evidence)
        .remedy(leftover.commands().join(" && "))
        .fix(Fix::Flannel(leftover));
}

/// By its name, and by what it is: a device called so may be somebody else's.
fn is_flannels(link: &Link) -> bool {
    let vxlan = link.name.starts_with("flannel") && link.vxlan.is_some();
    vxlan || link.name == BRIDGE && link.kind.as_deref() == Some("bridge")
}

/// How many devices hang on a bridge.
fn ports(links: &[Link], bridge: &str) -> usize {
    let Some(bridge) = links.iter().find(|link| link.name == bridge) else { return 0 };
    links.iter().filter(|link| link.master == Some(bridge.index)).count()
}

/// What a kind of iptables has in a table. An error where the program is missing or the kernel has no such table.
fn list(program: &str, table: &str) -> anyhow::Result<String> {
    // Asking legacy iptables loads its tables, which is not to be done to a node that does without.
    if program.ends_with("legacy") {
        let family = if program.starts_with("ip6") { "ip6" } else { "ip" };
        let names = format!("/proc/thread-self/net/{family}_tables_names");
        let loaded = fs::read_to_string(names).unwrap_or_default();
        ensure!(loaded.lines().any(|line| line == table), "not in use");
    }
    let output = Command::new(program).args(["-w", "-t", table, "-S"]).output()?;
    if !output.status.success() {
        return Err(anyhow!("{program} cannot list the table {table}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

//! The same for legacy iptables and ip6tables, whose chains nft does not show: `FORWARD` of their tables `filter`.
//!
//! Asked for only where that table is in use, since asking would load it. Where the program is missing, or refuses,
//! the remedy is said instead.

use std::fs;

use ipnet::IpNet;

use super::{
    super::{NftError, run},
    COMMENT, DropChain, Foreign, Obstacle,
    fate::{Fate, Step, fate},
};
use crate::family::{Family, OfFamily as _};

const CHAIN: &str = "FORWARD";

/// Where the kernel lists the tables of a family; absent where legacy iptables is not loaded.
///
/// Not `/proc/net`: that is the main thread's namespace, whichever thread reads.
const fn tables(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    }
}

/// What stands where the family of an nft table does.
const fn name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "legacy iptables",
        Family::Ipv6 => "legacy ip6tables",
    }
}

/// The program that lists, and the one that writes.
const fn programs(family: Family) -> [&'static str; 2] {
    match family {
        Family::Ipv4 => ["iptables-legacy", "iptables-legacy-restore"],
        Family::Ipv6 => ["ip6tables-legacy", "ip6tables-legacy-restore"],
    }
}

/// The family of a chain of legacy iptables, by what stands where that of an nft table does.
pub(super) fn family(text: &str) -> Option<Family> {
    Family::ALL.into_iter().find(|family| name(*family) == text)
}

/// Lets the cluster through the chain if it drops by default; takes the accepts back if it does not.
///
/// Without `write` it says what it would do, and does not.
pub(super) fn examine(cluster: IpNet, foreign: &mut Foreign, write: bool) {
    let family = cluster.family();
    if !in_use(family) {
        return;
    }
    let wanted = accepts(cluster);
    let iptables = name(family);
    let obstacle = |what, remedy| Obstacle { chain: chain(family, false).to_string(), what, remedy };
    match Table::read(family) {
        Ok(table) => {
            let drops = table.drops();
            let wanted = if drops { wanted.as_slice() } else { &[] };
            match if write { table.hold(wanted) } else { Ok(!table.holds(wanted)) } {
                Ok(changed) if drops => foreign.chains.push(chain(family, changed)),
                Ok(_) => {}
                Err(error) => foreign.warnings.push(obstacle(
                    format!(
                        "the chain {CHAIN} of {iptables} drops what the stack forwards for pods, and cannot be \
                         changed: {error}"
                    ),
                    format!("run: {}", commands(family, wanted).join("; ")),
                )),
            }
        }
        // Somebody had it, to load the table: in a container, say.
        Err(error @ NftError::Missing { .. }) => foreign.warnings.push(obstacle(
            format!(
                "{iptables} is in use: whether its chain {CHAIN} drops what the stack forwards for pods cannot be \
                 seen: {error}"
            ),
            format!("if it does, run: {}", commands(family, &wanted).join("; ")),
        )),
        Err(error) => foreign.warnings.push(obstacle(
            format!("the chain {CHAIN} of {iptables} cannot be read: {error}"),
            format!("see what {} -S says", programs(family)[0]),
        )),
    }
}

/// Takes every accept of ours away.
pub(super) fn remove(family: Family) -> Result<(), NftError> {
    Table::read(family)?.hold(&[]).map(drop)
}

/// The chain, if it holds accepts of ours.
pub(super) fn held(family: Family) -> Result<Option<DropChain>, NftError> {
    if !in_use(family) {
        return Ok(None);
    }
    match Table::read(family) {
        Ok(table) => Ok((!table.ours().is_empty()).then(|| chain(family, false))),
        // We need it to write there.
        Err(NftError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn in_use(family: Family) -> bool {
    fs::read_to_string(tables(family)).is_ok_and(|tables| tables.lines().any(|table| table == "filter"))
}

fn chain(family: Family, changed: bool) -> DropChain {
    DropChain { family: name(family).into(), table: "filter".into(), chain: CHAIN.into(), changed }
}

/// Our rules as `iptables -S` prints them, from top to bottom.
pub(super) fn accepts(cluster: IpNet) -> [String; 2] {
    ["-s", "-d"]
        .map(|side| format!("-A {CHAIN} {side} {} -m comment --comment {COMMENT} -j ACCEPT", cluster.trunc()))
}

/// What inserts rules, for people.
pub(super) fn commands(family: Family, rules: &[String]) -> Vec<String> {
    let [program, _] = programs(family);
    rules.iter().rev().map(|rule| format!("{program} {}", rule.replacen("-A", "-I", 1))).collect()
}

/// The whole table filter, as `iptables -S` prints it.
struct Table {
    family: Family,
    listed: String,
}

impl Table {
    fn read(family: Family) -> Result<Self, NftError> {
        let [program, _] = programs(family);
        let action = format!("read the table filter of {}", name(family));
        Ok(Self { family, listed: run(program, "iptables", &["-w", "-S"], "", &action)? })
    }

    fn rules<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a str> {
        let start = format!("-A {chain} ");
        self.listed.lines().map(str::trim).filter(move |line| line.starts_with(&start))
    }

    fn ours(&self) -> Vec<&str> {
        let marked = format!("--comment {COMMENT} ");
        self.rules(CHAIN).filter(|rule| rule.contains(&marked)).collect()
    }

    fn drops(&self) -> bool {
        let mut steps = |chain: &str| {
            let start = format!("-A {chain} ");
            let rules = self.rules(chain).filter_map(|rule| rule.strip_prefix(&start));
            Ok::<_, std::convert::Infallible>(rules.map(|rule| self.step(rule)).collect())
        };
        let Ok(end) = fate(CHAIN, &mut steps);
        match end {
            Fate::Dropped => true,
            Fate::Accepted => false,
            Fate::Returned => self.listed.lines().any(|line| line.trim() == format!("-P {CHAIN} DROP")),
        }
    }

    /// The step of a rule, without its chain.
    fn step(&self, rule: &str) -> Step {
        let words = without_comment(rule);
        let chain = |name: &str| self.listed.lines().any(|line| line.trim() == format!("-N {name}"));
        match words.as_slice() {
            ["-j", "ACCEPT"] => Step::Accept,
            ["-j", "DROP"] | ["-j", "REJECT", ..] => Step::Drop,
            ["-j", "RETURN"] => Step::Return,
            ["-j", target] if chain(target) => Step::Jump((*target).to_owned()),
            ["-g", target] => Step::Goto((*target).to_owned()),
            _ => Step::Next,
        }
    }

    /// Whether `wanted` are the only rules of ours, and the first of the chain.
    fn holds(&self, wanted: &[String]) -> bool {
        let on_top = self.rules(CHAIN).zip(wanted).filter(|(rule, wanted)| rule == wanted).count();
        on_top == wanted.len() && self.ours().len() == wanted.len()
    }

    /// Makes `wanted` the only rules of ours, and the first of the chain; true when they were not.
    fn hold(&self, wanted: &[String]) -> Result<bool, NftError> {
        if self.holds(wanted) {
            return Ok(false);
        }
        let ours = self.ours();
        // One transaction; each insert goes on top of the one before.
        let deletes = ours.iter().map(|rule| rule.replacen("-A", "-D", 1));
        let inserts = wanted.iter().rev().map(|rule| rule.replacen("-A", "-I", 1));
        let lines: Vec<_> = deletes.chain(inserts).collect();
        let script = format!("*filter\n{}\nCOMMIT\n", lines.join("\n"));
        let action = format!("set accepts in the chain {CHAIN} of {}", name(self.family));
        let [_, program] = programs(self.family);
        run(program, "iptables", &["-w", "--noflush"], &script, &action)?;
        Ok(true)
    }
}

/// The words of a rule but those of its comment, whose value is quoted if it has blanks.
fn without_comment(rule: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = rule.trim();
    while !rest.is_empty() {
        if let Some(value) = rest.strip_prefix("-m comment --comment ") {
            let end = match value.strip_prefix('"') {
                Some(quoted) => quoted.find("\" ").map(|end| end + 2),
                None => value.find(' '),
            };
            rest = end.and_then(|end| value.get(end..)).unwrap_or_default().trim_start();
        } else {
            let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
            words.push(word);
            rest = after.trim_start();
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drops(rules: &str) -> bool {
        Table { family: Family::Ipv4, listed: rules.to_owned() }.drops()
    }

    #[test]
    fn policy_and_final_rules_decide() {
        assert!(drops("-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n"));
        assert!(!drops("-P FORWARD ACCEPT\n-A FORWARD -i eth0 -j DROP\n"));
        assert!(drops("-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n"));
        assert!(drops("-P FORWARD ACCEPT\n-A FORWARD -m comment --comment \"no -j ACCEPT here\" -j DROP\n"));
        assert!(!drops("-P FORWARD DROP\n-A FORWARD -j LOG --log-prefix \"x \"\n-A FORWARD -j ACCEPT\n"));
        assert!(drops("-P FORWARD ACCEPT\n-N a\n-A FORWARD -j a\n-A a -j DROP\n"));
        assert!(!drops("-P FORWARD ACCEPT\n-N a\n-A FORWARD -g a\n-A FORWARD -j DROP\n-A a -i b -j DROP\n"));
        assert!(!drops("-P FORWARD ACCEPT\n-A INPUT -j DROP\n"));
    }

    #[test]
    fn the_remedy_inserts_the_accepts_in_their_order() {
        assert_eq!(
            commands(Family::Ipv4, &accepts("10.244.0.0/16".parse().unwrap())),
            [
                "iptables-legacy -I FORWARD -d 10.244.0.0/16 -m comment --comment overlay -j ACCEPT",
                "iptables-legacy -I FORWARD -s 10.244.0.0/16 -m comment --comment overlay -j ACCEPT"
            ]
        );
        assert_eq!(
            commands(Family::Ipv6, &accepts("fd00:244::/48".parse().unwrap()))[0],
            "ip6tables-legacy -I FORWARD -d fd00:244::/48 -m comment --comment overlay -j ACCEPT"
        );
    }
}

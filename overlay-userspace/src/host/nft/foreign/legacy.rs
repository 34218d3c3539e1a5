//! The same for legacy iptables, whose chains nft does not show: `FORWARD` of its table `filter`.
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

/// Where the kernel lists the tables of legacy iptables; absent where that is not loaded.
///
/// Not `/proc/net`: that is the main thread's namespace, whichever thread reads.
const TABLES: &str = "/proc/thread-self/net/ip_tables_names";

const CHAIN: &str = "FORWARD";

/// What stands where the family of an nft table does.
pub(super) const FAMILY: &str = "legacy iptables";

/// Lets the cluster through the chain if it drops by default; takes the accepts back if it does not.
///
/// Without `write` it says what it would do, and does not.
pub(super) fn examine(cluster: IpNet, foreign: &mut Foreign, write: bool) {
    if cluster.addr().is_ipv6() || !in_use() {
        return;
    }
    let wanted = accepts(cluster);
    match read() {
        Ok(table) => {
            let drops = table.drops();
            let wanted = if drops { wanted.as_slice() } else { &[] };
            match if write { table.hold(wanted) } else { Ok(!table.holds(wanted)) } {
                Ok(changed) if drops => foreign.chains.push(chain(changed)),
                Ok(_) => {}
                Err(error) => foreign.warnings.push(obstacle(
                    format!(
                        "the chain {CHAIN} of legacy iptables drops what the stack forwards for pods, and cannot be \
                         changed: {error}"
                    ),
                    format!("run: {}", commands(wanted).join("; ")),
                )),
            }
        }
        // Somebody had it, to load the table: in a container, say.
        Err(error @ NftError::Missing { .. }) => foreign.warnings.push(obstacle(
            format!(
                "legacy iptables is in use: whether its chain {CHAIN} drops what the stack forwards for pods cannot be \
                 seen: {error}"
            ),
            format!("if it does, run: {}", commands(&wanted).join("; ")),
        )),
        Err(error) => foreign.warnings.push(obstacle(
            format!("the chain {CHAIN} of legacy iptables cannot be read: {error}"),
            "see what iptables-legacy -S says".into(),
        )),
    }
}

fn obstacle(what: String, remedy: String) -> Obstacle {
    Obstacle { chain: chain(false).to_string(), what, remedy }
}

/// Takes every accept of ours away.
pub(super) fn remove() -> Result<(), NftError> {
    read()?.hold(&[]).map(drop)
}

/// The chain, if it holds accepts of ours.
pub(super) fn held() -> Result<Option<DropChain>, NftError> {
    if !in_use() {
        return Ok(None);
    }
    match read() {
        Ok(table) => Ok((!table.ours().is_empty()).then(|| chain(false))),
        // We need it to write there.
        Err(NftError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn in_use() -> bool {
    fs::read_to_string(TABLES).is_ok_and(|tables| tables.lines().any(|table| table == "filter"))
}

fn chain(changed: bool) -> DropChain {
    DropChain { family: FAMILY.into(), table: "filter".into(), chain: CHAIN.into(), changed }
}

/// Our rules as `iptables -S` prints them, from top to bottom.
pub(super) fn accepts(cluster: IpNet) -> [String; 2] {
    ["-s", "-d"]
        .map(|side| format!("-A {CHAIN} {side} {} -m comment --comment {COMMENT} -j ACCEPT", cluster.trunc()))
}

/// What inserts rules, for people.
pub(super) fn commands(rules: &[String]) -> Vec<String> {
    rules.iter().rev().map(|rule| format!("iptables-legacy {}", rule.replacen("-A", "-I", 1))).collect()
}

fn read() -> Result<Table, NftError> {
    let action = "read the table filter of legacy iptables";
    run("iptables-legacy", "iptables", &["-w", "-S"], "", action).map(Table)
}

/// The whole table filter, as `iptables -S` prints it.
struct Table(String);

impl Table {
    fn rules<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a str> {
        let start = format!("-A {chain} ");
        self.0.lines().map(str::trim).filter(move |line| line.starts_with(&start))
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
            Fate::Returned => self.0.lines().any(|line| line.trim() == format!("-P {CHAIN} DROP")),
        }
    }

    /// The step of a rule, without its chain.
    fn step(&self, rule: &str) -> Step {
        let words = without_comment(rule);
        let chain = |name: &str| self.0.lines().any(|line| line.trim() == format!("-N {name}"));
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
        let action = format!("set accepts in the chain {CHAIN} of legacy iptables");
        run("iptables-legacy-restore", "iptables", &["-w", "--noflush"], &script, &action)?;
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
        Table(rules.to_owned()).drops()
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
            commands(&accepts("10.244.0.0/16".parse().unwrap())),
            [
                "iptables-legacy -I FORWARD -d 10.244.0.0/16 -m comment --comment overlay -j ACCEPT",
                "iptables-legacy -I FORWARD -s 10.244.0.0/16 -m comment --comment overlay -j ACCEPT"
            ]
        );
    }
}

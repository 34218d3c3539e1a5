//! What becomes of a packet in a chain that none of the chain's conditions is about.
//!
//! Conditions are not interpreted: a rule with one is taken as not matching. What is left is decided soundly: rules
//! without any, the chains they lead to, and the policy.

use serde_json::Value;

/// The end of a packet's way through a chain and all that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Accepted,
    Dropped,
    /// Comes back to where the chain was called; from a base chain, to the policy.
    Returned,
}

/// What a rule does to every packet that gets to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Nothing, or it depends.
    Next,
}

/// The kernel allows as many jumps within each other (`NFT_JUMP_STACK_SIZE`, include/net/netfilter/nf_tables.h).
const DEPTH: usize = 16;

/// Follows a packet through `chain`; `steps` reads a chain.
pub(super) fn fate<E>(chain: &str, steps: &mut impl FnMut(&str) -> Result<Vec<Step>, E>) -> Result<Fate, E> {
    follow(chain, steps, DEPTH)
}

fn follow<E>(
    chain: &str,
    steps: &mut impl FnMut(&str) -> Result<Vec<Step>, E>,
    depth: usize,
) -> Result<Fate, E> {
    let Some(depth) = depth.checked_sub(1) else { return Ok(Fate::Returned) };
    for step in steps(chain)? {
        match step {
            Step::Accept => return Ok(Fate::Accepted),
            Step::Drop => return Ok(Fate::Dropped),
            Step::Return => return Ok(Fate::Returned),
            Step::Goto(target) => return follow(&target, steps, depth),
            Step::Jump(target) => match follow(&target, steps, depth)? {
                Fate::Returned => {}
                end => return Ok(end),
            },
            Step::Next => {}
        }
    }
    Ok(Fate::Returned)
}

/// The step of a rule in nft's JSON.
pub(super) fn step(rule: &Value) -> Step {
    let statements = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut rest = statements.iter().filter(|statement| !is_idle(statement));
    let (Some(statement), None) = (rest.next(), rest.next()) else { return Step::Next };
    let target = |kind: &str| statement[kind]["target"].as_str().map(str::to_owned);
    if statement.get("accept").is_some() {
        Step::Accept
    } else if statement.get("return").is_some() {
        Step::Return
    } else if statement.get("drop").is_some() || rejects(statement) {
        Step::Drop
    } else if let Some(target) = target("jump") {
        Step::Jump(target)
    } else if let Some(target) = target("goto") {
        Step::Goto(target)
    } else {
        Step::Next
    }
}

/// Neither a condition nor an end.
fn is_idle(statement: &Value) -> bool {
    let xt = &statement["xt"];
    statement.get("counter").is_some()
        || statement.get("log").is_some()
        || (xt["type"] == "match" && xt["name"] == "comment")
        || (xt["type"] == "target" && (xt["name"] == "LOG" || xt["name"] == "NFLOG"))
}

/// A `tcp reset` is for TCP only, but then nft writes that down as a condition.
fn rejects(statement: &Value) -> bool {
    let xt = &statement["xt"];
    statement.get("reject").is_some() || (xt["type"] == "target" && xt["name"] == "REJECT")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use serde_json::json;

    use super::*;

    fn end(chains: &[(&str, &[Step])]) -> Fate {
        let mut steps = |name: &str| {
            let chain = chains.iter().find(|(chain, _)| *chain == name);
            Ok::<_, Infallible>(chain.map(|(_, steps)| steps.to_vec()).unwrap_or_default())
        };
        fate("base", &mut steps).unwrap()
    }

    #[test]
    fn the_first_rule_without_condition_decides() {
        use Step::{Accept, Drop, Next, Return};
        assert_eq!(end(&[("base", &[Next, Drop, Accept])]), Fate::Dropped);
        assert_eq!(end(&[("base", &[Accept, Drop])]), Fate::Accepted);
        assert_eq!(end(&[("base", &[Return, Drop])]), Fate::Returned);
        assert_eq!(end(&[("base", &[Next])]), Fate::Returned);
    }

    #[test]
    fn jumps_come_back_and_gotos_do_not() {
        use Step::{Accept, Drop, Goto, Jump, Next};
        let to = |chain: &str| chain.to_owned();
        assert_eq!(end(&[("base", &[Jump(to("a")), Drop]), ("a", &[Next])]), Fate::Dropped);
        assert_eq!(end(&[("base", &[Jump(to("a")), Accept]), ("a", &[Drop])]), Fate::Dropped);
        assert_eq!(end(&[("base", &[Goto(to("a")), Drop]), ("a", &[Next])]), Fate::Returned);
        let nested: &[(&str, &[Step])] =
            &[("base", &[Jump(to("a")), Accept]), ("a", &[Goto(to("b")), Drop]), ("b", &[Next])];
        assert_eq!(end(nested), Fate::Accepted);
        assert_eq!(end(&[("base", &[Jump(to("base")), Drop])]), Fate::Dropped, "no loop without end");
    }

    #[test]
    fn rules_with_a_condition_are_passed_by() {
        let rule = |expr: Value| step(&json!({ "expr": expr }));
        let counter = json!({ "counter": { "packets": 0, "bytes": 0 } });
        let reject = json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } });
        let xt = |kind: &str, name: &str| json!({ "xt": { "type": kind, "name": name } });
        assert_eq!(rule(json!([{ "drop": null }])), Step::Drop);
        assert_eq!(rule(json!([counter, { "log": { "prefix": "x" } }, reject])), Step::Drop);
        assert_eq!(rule(json!([xt("match", "comment"), counter, xt("target", "REJECT")])), Step::Drop);
        assert_eq!(rule(json!([counter, { "jump": { "target": "a" } }])), Step::Jump("a".into()));
        assert_eq!(rule(json!([counter, { "goto": { "target": "a" } }])), Step::Goto("a".into()));
        assert_eq!(rule(json!([{ "return": null }])), Step::Return);
        assert_eq!(rule(json!([{ "match": {} }, { "accept": null }])), Step::Next);
        assert_eq!(rule(json!([{ "limit": { "rate": 3 } }, reject])), Step::Next);
        assert_eq!(rule(json!([xt("match", "conntrack"), { "drop": null }])), Step::Next);
        assert_eq!(rule(json!([counter, xt("target", "LOG")])), Step::Next);
        assert_eq!(rule(json!([xt("target", "MARK")])), Step::Next);
    }
}

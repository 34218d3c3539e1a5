//! `prevResult` on ADD (§2 "`ADD`", §5 "ADD Success").

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::case::{Case, Verdict, skip};
use crate::result;
use crate::suite::{IFNAME, Suite};
use crate::version::Version;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "add-hands-on-the-previous-result",
        "§2 ADD",
        "If the plugin was supplied a `prevResult` as part of its input configuration, it MUST handle `prevResult` by \
         either passing it through, or modifying it appropriately.",
        first_hands_on,
    )
    .each(),
    Case::must(
        "chained-plugins-keep-the-previous-result",
        "§5 ADD Success",
        "Plugins provided a `prevResult` key as part of their request configuration must output it as their result, \
         with any possible modifications made by that plugin included.",
        chained_keep,
    )
    .each(),
];

/// A plugin that comes first in its list may come later in another one: an interface on the host and an address on it
/// are nothing that it could have a reason to remove.
fn first_hands_on(suite: &Suite<'_>, version: Version) -> Verdict {
    let mut address = json!({ "address": "192.0.2.77/32", "interface": 0 });
    if version < Version::V1_0_0 {
        address["version"] = json!("4");
    }
    let previous = json!({
        "cniVersion": version.as_str(),
        "interfaces": [{ "name": "lo", "mac": "00:00:00:00:00:00" }],
        "ips": [address],
        "routes": [],
        "dns": { "nameservers": ["192.0.2.53"] },
    });
    let container = suite.container()?;
    let target = container.target(IFNAME);
    let call = suite.attachment_call("ADD", &target).conf(&suite.conf(0, version, Some(&previous))?);
    let answer = suite.call(0, &call)?;
    let judged = answer.accepted().and_then(|()| keeps(&previous, &answer.json()?));
    let _ = suite.del(version, &target, answer.json().ok().as_ref());
    judged
}

fn chained_keep(suite: &Suite<'_>, version: Version) -> Verdict {
    if suite.plugins.len() < 2 {
        return skip("the network has a single plugin");
    }
    let container = suite.container()?;
    let target = container.target(IFNAME);
    let judge = || {
        let mut previous: Option<Value> = None;
        for (index, plugin) in suite.plugins.iter().enumerate() {
            let conf = suite.conf(index, version, previous.as_ref())?;
            let answer = suite.call(index, &suite.attachment_call("ADD", &target).conf(&conf))?;
            answer.accepted()?;
            let result = answer.json()?;
            if let Some(previous) = &previous {
                keeps(previous, &result).with_context(|| plugin.kind.clone())?;
            }
            previous = Some(result);
        }
        Ok(previous)
    };
    let judged = judge();
    let _ = suite.del(version, &target, judged.as_ref().ok().and_then(Option::as_ref));
    judged.map(drop)
}

/// `result` must have what `previous` has: interfaces by name, addresses and routes; the same indexes.
fn keeps(previous: &Value, result: &Value) -> Verdict {
    let (old, new) = (result::interfaces(previous)?, result::interfaces(result)?);
    for interface in &old {
        let kept = new.iter().any(|one| one.name == interface.name && one.sandbox == interface.sandbox);
        ensure!(kept, "the result lacks interface {} of prevResult", interface.name);
    }
    let name = |interfaces: &[result::Interface], index: Option<usize>| {
        index.and_then(|index| interfaces.get(index)).map(|interface| interface.name.clone())
    };
    let ips = result::ips(result)?;
    for ip in result::ips(previous)? {
        let kept = ips.iter().find(|one| one.address == ip.address);
        let kept = kept.with_context(|| format!("the result lacks address {} of prevResult", ip.address))?;
        let (was, is) = (name(&old, ip.interface), name(&new, kept.interface));
        ensure!(was == is, "{} was on {was:?} in prevResult, is on {is:?} in the result", ip.address);
    }
    let routes = result::routes(result)?;
    for route in result::routes(previous)? {
        ensure!(routes.contains(&route), "the result lacks a route of prevResult: {route:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_keeps_what_was_there_under_any_index() {
        let previous = json!({
            "interfaces": [{"name": "a"}],
            "ips": [{"address": "10.0.0.1/32", "interface": 0}],
            "routes": [{"dst": "10.0.0.0/8"}],
        });
        let moved = json!({
            "interfaces": [{"name": "b"}, {"name": "a"}],
            "ips": [{"address": "10.0.0.2/32", "interface": 0}, {"address": "10.0.0.1/32", "interface": 1}],
            "routes": [{"dst": "10.0.0.0/8"}, {"dst": "0.0.0.0/0"}],
        });
        assert!(keeps(&previous, &moved).is_ok());
        for key in ["interfaces", "ips", "routes"] {
            let mut less = moved.clone();
            less[key] = json!([]);
            assert!(keeps(&previous, &less).is_err(), "{key}");
        }
        let mut wrong = moved;
        wrong["ips"][1]["interface"] = json!(0);
        assert!(keeps(&previous, &wrong).is_err());
    }
}

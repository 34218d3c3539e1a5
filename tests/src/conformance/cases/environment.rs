//! The environment (§2 "Parameters"): what is missing or invalid is refused, by each plugin of the list.
//!
//! Chained plugins get an empty `prevResult`, so that the environment is all that there is to complain about.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::case::{Case, Verdict};
use crate::plugin::{Answer, Call};
use crate::suite::{IFNAME, Suite, Target};
use crate::version::Version;

const INVALID: &str = "Invalid necessary environment variables, like CNI_COMMAND, CNI_CONTAINERID, etc. The error \
                       message must contain the names of invalid variables.";

/// Code for invalid environment variables.
const ENVIRONMENT: &[u64] = &[4];

pub(super) const CASES: &[Case] = &[
    Case::must("command-is-required", "§5 Error, code 4", INVALID, command_is_required),
    Case::must(
        "unknown-commands-are-errors",
        "§2 Parameters",
        "`CNI_COMMAND`: indicates the desired operation; `ADD`, `DEL`, `CHECK`, `GC`, or `VERSION`.",
        unknown_commands,
    ),
    Case::must("add-names-missing-variables", "§5 Error, code 4", INVALID, add_names_missing),
    Case::must("del-names-missing-variables", "§5 Error, code 4", INVALID, del_names_missing),
    Case::must("check-names-missing-variables", "§5 Error, code 4", INVALID, check_names_missing)
        .since(Version::V0_4_0),
    Case::must(
        "container-id-must-be-well-formed",
        "§2 Parameters",
        "Must start with an alphanumeric character, optionally followed by any combination of one or more \
         alphanumeric characters, underscore (), dot (.) or hyphen (-).",
        container_ids,
    ),
    Case::must(
        "impossible-interface-names-are-errors",
        "§2 Parameters",
        "`CNI_IFNAME`: Name of the interface to create inside the container; if the plugin is unable to use this \
         interface name it must return an error.",
        interface_names,
    ),
    Case::must(
        "add-without-a-namespace-at-the-path-is-an-error",
        "§2 Parameters",
        "`CNI_NETNS`: A reference to the container's \"isolation domain\". If using network namespaces, then a path \
         to the network namespace (e.g. `/run/netns/[nsname]`)",
        namespace_paths,
    ),
];

/// Calls every plugin with the environment that `change` makes of a complete one; all must refuse it, and say why.
fn refused_by_all(
    suite: &Suite<'_>,
    version: Version,
    command: &str,
    names: &str,
    change: impl Fn(Call) -> Call,
) -> Verdict {
    let container = suite.container()?;
    let target = container.target(IFNAME);
    let answer = |index, call: Call| call_with(suite, version, index, change(call));
    for index in 0..suite.plugins.len() {
        let answer = answer(index, suite.attachment_call(command, &target))?;
        let refusal = answer.refused(ENVIRONMENT)?;
        let text = &refusal.text;
        ensure!(text.contains(names), "{}: the message does not name {names}: {text}", answer.what);
    }
    Ok(())
}

fn call_with(suite: &Suite<'_>, version: Version, index: usize, call: Call) -> anyhow::Result<Answer> {
    let empty = json!({ "cniVersion": version.as_str(), "interfaces": [], "ips": [], "dns": {} });
    let previous: Option<&Value> = (index > 0).then_some(&empty);
    suite.call(index, &call.conf(&suite.conf(index, version, previous)?))
}

fn command_is_required(suite: &Suite<'_>, version: Version) -> Verdict {
    refused_by_all(suite, version, "ADD", "CNI_COMMAND", |call| call.without("CNI_COMMAND"))
}

fn unknown_commands(suite: &Suite<'_>, version: Version) -> Verdict {
    for command in ["UPDATE", "add", "ADD "] {
        refused_by_all(suite, version, command, "CNI_COMMAND", |call| call)?;
    }
    Ok(())
}

fn missing(suite: &Suite<'_>, version: Version, command: &str, required: &[&'static str]) -> Verdict {
    for &name in required {
        refused_by_all(suite, version, command, name, |call| call.without(name))?;
        refused_by_all(suite, version, command, name, |call| call.set(name, ""))?;
    }
    Ok(())
}

fn add_names_missing(suite: &Suite<'_>, version: Version) -> Verdict {
    missing(suite, version, "ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])
}

fn del_names_missing(suite: &Suite<'_>, version: Version) -> Verdict {
    missing(suite, version, "DEL", &["CNI_CONTAINERID", "CNI_IFNAME"])
}

fn check_names_missing(suite: &Suite<'_>, version: Version) -> Verdict {
    missing(suite, version, "CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])
}

fn container_ids(suite: &Suite<'_>, version: Version) -> Verdict {
    for id in ["-a", ".a", "_a", "a/b", "../a", "a b", "a\nb", "a:b"] {
        for command in ["ADD", "DEL"] {
            let answered =
                refused_by_all(suite, version, command, "", |call| call.set("CNI_CONTAINERID", id));
            answered.map_err(|error| error.context(format!("container id {id:?}")))?;
        }
    }
    Ok(())
}

fn interface_names(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    for ifname in [".", "..", "a/b", "a b", "a:b", "sixteen-bytes-xx"] {
        let target = container.target(ifname);
        for index in 0..suite.plugins.len() {
            let answer = call_with(suite, version, index, suite.attachment_call("ADD", &target))?;
            let refused = answer.refused(&[]);
            refused.map_err(|error| error.context(format!("interface name {ifname:?}")))?;
        }
    }
    Ok(())
}

fn namespace_paths(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let container = suite.container()?;
    for path in ["/run/netns/no-such-namespace", "/dev/null", "/", "relative"] {
        let target = Target { netns: Some(path.to_owned()), ..container.target(IFNAME) };
        let refused = suite.add_refused(version, &target).and_then(|answer| answer.refused(&[]));
        refused.map_err(|error| error.context(format!("CNI_NETNS {path}")))?;
        // Whether DEL takes such a path is another case; with or without, nothing may be left.
        let _ = suite.del(version, &target, None);
    }
    before.must_be_back(suite.host)
}

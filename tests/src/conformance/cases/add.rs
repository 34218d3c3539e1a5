//! ADD: the interface (§2 "`ADD`").

use anyhow::{Context as _, ensure};

use crate::case::{Case, Verdict, skip};
use crate::result;
use crate::suite::{IFNAME, Suite, Target};
use crate::version::Version;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "add-creates-the-interface",
        "§2 ADD",
        "create the interface defined by `CNI_IFNAME` inside the container at `CNI_NETNS`, or",
        creates_the_interface,
    )
    .each(),
    Case::must(
        "add-outputs-a-result-and-nothing-else",
        "§2 ADD",
        "If the CNI plugin is successful, it must output a [result structure](#Success) (see below) on standard out.",
        outputs_a_result,
    )
    .each(),
    Case::must(
        "add-takes-any-interface-name",
        "§2 Parameters",
        "`CNI_IFNAME`: Name of the interface to create inside the container; if the plugin is unable to use this \
         interface name it must return an error.",
        takes_any_name,
    ),
    Case::must(
        "add-takes-a-namespace-by-any-path",
        "§2 Parameters",
        "`CNI_NETNS`: A reference to the container's \"isolation domain\". If using network namespaces, then a path \
         to the network namespace (e.g. `/run/netns/[nsname]`)",
        takes_a_process_namespace,
    ),
    Case::must(
        "add-needs-no-optional-variable",
        "§2 ADD",
        "Optional environment parameters: `CNI_ARGS` `CNI_PATH`",
        needs_no_arguments,
    ),
    Case::practice(
        "add-leaves-loopback-alone",
        "§2 Overview",
        "\"Interface\" plugins, which create a network interface inside the container and ensure it has connectivity.",
        leaves_loopback,
    ),
    Case::should(
        "containers-of-a-network-can-communicate",
        "§ Overview",
        "_network_ refers to a group of endpoints that are uniquely addressable that can communicate amongst each \
         other.",
        can_communicate,
    ),
];

fn creates_the_interface(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    let attached = suite.attach(version, &container, IFNAME)?;
    attached.must_work(&container).map(drop)
}

fn outputs_a_result(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    let target = container.target(IFNAME);
    let call = suite.attachment_call("ADD", &target).conf(&suite.conf(0, version, None)?);
    let answer = suite.call(0, &call)?;
    let judged = answer.accepted().and_then(|()| answer.only_json());
    let _ = suite.del(version, &target, answer.json().ok().as_ref());
    let result = judged?;
    ensure!(result.is_object(), "the result is no object: {result}");
    Ok(())
}

fn takes_any_name(suite: &Suite<'_>, version: Version) -> Verdict {
    for ifname in ["net1", "a", "fifteen-bytes-x", "v.1_x"] {
        let container = suite.container()?;
        let attached = suite.attach(version, &container, ifname).with_context(|| ifname.to_owned())?;
        attached.must_work(&container)?;
    }
    Ok(())
}

fn takes_a_process_namespace(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    let process = container.process()?;
    let target = Target { netns: Some(process.netns()), ..container.target(IFNAME) };
    let (result, _) = suite.add(version, &target)?;
    let seen = container.link(IFNAME);
    let deleted = suite.del(version, &target, Some(&result));
    ensure!(seen?.up, "interface {IFNAME} is down");
    deleted.map(drop)
}

fn needs_no_arguments(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    let target = container.target(IFNAME);
    let call = suite.attachment_call("ADD", &target).without("CNI_ARGS");
    let answer = suite.call(0, &call.conf(&suite.conf(0, version, None)?))?;
    let _ = suite.del(version, &target, answer.json().ok().as_ref());
    answer.accepted()
}

fn leaves_loopback(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    let before = container.link("lo")?;
    let mut attached = suite.attach(version, &container, IFNAME)?;
    ensure!(container.link("lo")? == before, "ADD has changed lo: {:?}", container.link("lo")?);
    attached.del()?;
    ensure!(container.link("lo")? == before, "DEL has changed lo: {:?}", container.link("lo")?);
    Ok(())
}

fn can_communicate(suite: &Suite<'_>, version: Version) -> Verdict {
    let (one, other) = (suite.container()?, suite.container()?);
    let attached = [suite.attach(version, &one, IFNAME)?, suite.attach(version, &other, IFNAME)?];
    let [from, to] = &attached;
    if result::ips(&from.result)?.is_empty() {
        return skip("the plugins assign no address");
    }
    for address in to.addresses()? {
        one.ping(address.addr())?;
    }
    for address in from.addresses()? {
        other.ping(address.addr())?;
    }
    Ok(())
}

//! ADD more than once: names that are taken, a second interface, the same attachment anew (§2 "`ADD`").

use anyhow::{Context as _, ensure};

use crate::case::{Case, Verdict, skip};
use crate::suite::{IFNAME, Suite};
use crate::version::Version;

/// A name for another interface of a container.
const SECOND: &str = "net1";

const TAKEN: &str = "If an interface of the requested name already exists in the container, the CNI plugin MUST return with an error.";
const TWICE: &str = "A runtime should not call `ADD` twice (without an intervening DEL) for the same \
                     `(CNI_CONTAINERID, CNI_IFNAME)` tuple.";
const OTHER_NAME: &str = "This implies that a given container ID may be added to a specific network more than once \
                          only if each addition is done with a different interface name.";

pub(super) const CASES: &[Case] = &[
    Case::must("add-fails-if-the-interface-exists", "§2 ADD", TAKEN, interface_exists),
    Case::must("add-twice-is-an-error", "§2 ADD", TAKEN, twice_is_an_error),
    Case::must("add-twice-leaves-the-first-working", "§2 ADD", TWICE, first_goes_on),
    Case::must("add-twice-leaves-nothing-behind", "§2 ADD", TWICE, twice_leaves_nothing),
    Case::must("add-again-after-del", "§2 ADD", TWICE, again_after_del),
    Case::must("add-with-another-interface-name", "§2 ADD", OTHER_NAME, second_interface),
    Case::must("del-of-one-interface-leaves-the-other", "§2 ADD", OTHER_NAME, del_of_one),
    Case::must(
        "del-follows-a-failed-add",
        "§3 Lifecycle & Ordering",
        "A _delete_ must still be executed even if the _add_ fails.",
        del_after_failed_add,
    ),
];

fn interface_exists(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    container.view().ip(&format!("link add name {IFNAME} type veth peer name other"))?;
    let before = container.link(IFNAME)?;
    suite.add_refused(version, &container.target(IFNAME))?.refused(&[])?;
    let now = container.link(IFNAME).context("the interface that existed is gone")?;
    ensure!(now == before, "the interface that existed was changed: {before:?}, now {now:?}");
    Ok(())
}

fn twice_is_an_error(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    let attached = suite.attach(version, &container, IFNAME)?;
    let answer = suite.add_again_refused(version, &attached.target)?;
    answer.refused(&[]).map(drop)
}

fn first_goes_on(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    let attached = suite.attach(version, &container, IFNAME)?;
    let (link, routes) = (container.link(IFNAME)?, container.routes_by(IFNAME)?);
    suite.add_again_refused(version, &attached.target)?;
    ensure!(container.link(IFNAME)? == link, "the second ADD has changed {IFNAME}");
    ensure!(container.routes_by(IFNAME)? == routes, "the second ADD has changed the routes by {IFNAME}");
    if version >= Version::V0_4_0 && !suite.network.disable_check {
        attached.check().context("CHECK of the first ADD, after the second")?;
    }
    // If the second has released the address of the first, the next one gets it.
    let (next, mut seen) = (suite.container()?, Vec::new());
    seen.extend(suite.attach(version, &next, IFNAME)?.addresses()?);
    let twice = attached.addresses()?.into_iter().find(|address| seen.contains(address));
    ensure!(twice.is_none(), "after the second ADD, {twice:?} of the first is given away again");
    Ok(())
}

fn twice_leaves_nothing(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let container = suite.container()?;
    let mut attached = suite.attach(version, &container, IFNAME)?;
    let once = suite.state()?;
    suite.add_again_refused(version, &attached.target)?;
    once.must_be_back(suite.host).context("after the second ADD")?;
    attached.del()?;
    before.must_be_back(suite.host).context("after DEL")
}

fn again_after_del(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    for _ in 0..3 {
        let mut attached = suite.attach(version, &container, IFNAME)?;
        attached.must_work(&container)?;
        attached.del()?;
    }
    Ok(())
}

fn second_interface(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    let first = suite.attach(version, &container, IFNAME)?;
    let second = suite.attach(version, &container, SECOND)?;
    first.must_work(&container)?;
    second.must_work(&container)?;
    let (one, other) = (first.addresses()?, second.addresses()?);
    ensure!(one.iter().all(|address| !other.contains(address)), "both have {one:?}");
    Ok(())
}

fn del_of_one(suite: &Suite<'_>, version: Version) -> Verdict {
    for (goes, stays) in [(IFNAME, SECOND), (SECOND, IFNAME)] {
        let container = suite.container()?;
        let left = suite.attach(version, &container, stays)?;
        let mut attached = suite.attach(version, &container, goes)?;
        attached.del()?;
        ensure!(container.view().link(goes)?.is_none(), "{goes} is there after its DEL");
        left.must_work(&container).with_context(|| format!("{stays} after DEL of {goes}"))?;
        // And its address is still its own.
        let next = suite.container()?;
        let next = suite.attach(version, &next, IFNAME)?;
        let own = left.addresses()?;
        let twice = next.addresses()?.into_iter().find(|address| own.contains(address));
        ensure!(twice.is_none(), "after DEL of {goes}, {twice:?} of {stays} is given away again");
    }
    Ok(())
}

fn del_after_failed_add(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let container = suite.container()?;
    container.view().ip(&format!("link add name {IFNAME} type veth peer name other"))?;
    let target = container.target(IFNAME);
    if suite.add_refused(version, &target).is_err() {
        return skip("ADD does not fail; see add-fails-if-the-interface-exists");
    }
    suite.del(version, &target, None).context("DEL after the failed ADD")?;
    before.must_be_back(suite.host)
}

//! DEL of what is as ADD has left it (§2 "`DEL`").

use anyhow::{Context as _, ensure};

use crate::case::{Case, Verdict};
use crate::suite::{IFNAME, Suite, Target};
use crate::version::Version;

const MULTIPLE: &str = "Plugins MUST accept multiple `DEL` calls for the same (`CNI_CONTAINERID`, `CNI_IFNAME`) pair, \
                        and return success if the interface in question, or any modifications added, are missing.";

pub(super) const CASES: &[Case] = &[
    Case::must(
        "del-removes-the-interface",
        "§2 DEL",
        "delete the interface defined by `CNI_IFNAME` inside the container at `CNI_NETNS`, or",
        removes_the_interface,
    )
    .each(),
    Case::must(
        "del-undoes-what-add-did",
        "§2 DEL",
        "undo any modifications applied in the plugin's `ADD` functionality",
        undoes_add,
    ),
    Case::must("del-can-be-repeated", "§2 DEL", MULTIPLE, can_be_repeated),
    Case::must("del-of-the-unknown-succeeds", "§2 DEL", MULTIPLE, unknown_container),
    Case::should(
        "del-needs-no-previous-result",
        "§2 DEL",
        "Plugins should still return without error if `prevResult` is empty for a `DEL` command, however.",
        needs_no_result,
    )
    .each(),
    Case::must(
        "del-needs-no-namespace",
        "§2 DEL",
        "Optional environment parameters: `CNI_NETNS` `CNI_ARGS` `CNI_PATH`",
        needs_no_namespace,
    ),
    Case::must(
        "del-leaves-other-containers-alone",
        "§3 Execution of Network Configurations",
        "An attachment may be uniquely identified by the `(CNI_CONTAINERID, CNI_IFNAME)` tuple.",
        leaves_others,
    ),
];

fn removes_the_interface(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    suite.attach(version, &container, IFNAME)?.del()?;
    let links = container.view().links()?.into_iter().map(|link| link.name);
    let left: Vec<String> = links.filter(|name| name != "lo").collect();
    ensure!(left.is_empty(), "the container has {left:?} after DEL");
    Ok(())
}

fn undoes_add(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let container = suite.container()?;
    suite.attach(version, &container, IFNAME)?.del()?;
    // The container is still there: nothing of this is the kernel's work.
    before.must_be_back(suite.host)
}

fn can_be_repeated(suite: &Suite<'_>, version: Version) -> Verdict {
    let container = suite.container()?;
    let mut attached = suite.attach(version, &container, IFNAME)?;
    for time in ["first", "second", "third"] {
        attached.del().with_context(|| format!("{time} DEL"))?;
    }
    Ok(())
}

fn unknown_container(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let container = suite.container()?;
    suite.del(version, &container.target(IFNAME), None)?;
    let bare = Target { netns: None, ..container.target(IFNAME) };
    suite.del(version, &bare, None).context("without CNI_NETNS")?;
    before.must_be_back(suite.host)
}

fn needs_no_result(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let container = suite.container()?;
    let mut attached = suite.attach(version, &container, IFNAME)?;
    suite.del(version, &attached.target, None)?;
    attached.released();
    ensure!(container.view().link(IFNAME)?.is_none(), "{IFNAME} is there after DEL");
    before.must_be_back(suite.host)
}

fn needs_no_namespace(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let mut container = suite.container()?;
    let mut attached = suite.attach(version, &container, IFNAME)?;
    let bare = Target { netns: None, ..attached.target.clone() };
    suite.del(version, &bare, Some(&attached.result))?;
    attached.released();
    // What is in the container goes with it.
    container.vanish()?;
    before.must_be_back(suite.host)
}

fn leaves_others(suite: &Suite<'_>, version: Version) -> Verdict {
    let (stays, goes) = (suite.container()?, suite.container()?);
    let left = suite.attach(version, &stays, IFNAME)?;
    let (link, routes) = (stays.link(IFNAME)?, stays.routes_by(IFNAME)?);
    suite.attach(version, &goes, IFNAME)?.del()?;
    ensure!(stays.link(IFNAME)? == link, "DEL of another container has changed {IFNAME}");
    ensure!(
        stays.routes_by(IFNAME)? == routes,
        "DEL of another container has changed the routes by {IFNAME}"
    );
    if version >= Version::V0_4_0 && !suite.network.disable_check {
        left.check().context("CHECK after DEL of another container")?;
    }
    Ok(())
}

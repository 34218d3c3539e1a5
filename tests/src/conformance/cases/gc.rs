//! GC (§2 "`GC`"), since 1.1.0.
//!
//! A stale attachment is one whose DEL was lost, as when the node loses power: its namespace is gone, what the plugins
//! keep of it is not. That it was collected shows in the host's state, and in that the same attachment can be ADDed.

use anyhow::{Context as _, ensure};

use crate::case::{Case, Verdict, skip};
use crate::container::Attached;
use crate::plugin::Answer;
use crate::suite::{IFNAME, Suite, Target, VALID_ATTACHMENTS, VALID_ATTACHMENTS_OLD};
use crate::version::Version;

const REMOVE: &str = "A plugin SHOULD remove as many stale resources as possible.";
const VALID: &str = "`cni.dev/valid-attachments` (array of objects): The list of **still valid** attachments to this \
                     network:";

pub(super) const CASES: &[Case] = &[
    Case::must(
        "gc-needs-no-attachment",
        "§2 GC",
        "Required environment parameters: `CNI_COMMAND` `CNI_PATH`",
        needs_no_attachment,
    )
    .since(Version::V1_1_0),
    Case::must(
        "gc-prints-nothing",
        "§2 GC",
        "No output on success, [\"error\" result structure](#Error) on error.",
        prints_nothing,
    )
    .since(Version::V1_1_0),
    Case::must("gc-keeps-all-that-are-valid", "§2 GC", VALID, keeps_all).since(Version::V1_1_0),
    Case::should("gc-removes-the-stale-one-only", "§2 GC", REMOVE, removes_one).since(Version::V1_1_0),
    Case::should("gc-removes-all-if-none-is-valid", "§2 GC", REMOVE, removes_all).since(Version::V1_1_0),
    Case::must(
        "gc-tells-interfaces-of-a-container-apart",
        "§2 GC",
        "`ifname` (string): the value of CNI_IFNAME as provided during the CNI ADD operation",
        tells_interfaces_apart,
    )
    .since(Version::V1_1_0),
    Case::practice("gc-takes-libcnis-two-keys", "§2 GC", VALID, both_keys).since(Version::V1_1_0),
    Case::practice("gc-with-the-old-key-alone-is-safe", "§2 GC", VALID, old_key).since(Version::V1_1_0),
    Case::should(
        "gc-tolerates-attachments-that-it-does-not-know",
        "§2 GC",
        "Plugins should generally complete a `GC` action without error.",
        tolerates_unknown,
    )
    .since(Version::V1_1_0),
    Case::should(
        "gc-can-be-repeated",
        "§2 GC",
        "Plugins should generally complete a `GC` action without error.",
        can_be_repeated,
    )
    .since(Version::V1_1_0),
];

const KEYS: &[&str] = &[VALID_ATTACHMENTS];

/// GC with these attachments valid; gives the answers, which are all good.
fn collect(
    suite: &Suite<'_>,
    version: Version,
    keys: &[&str],
    valid: &[&Target],
) -> anyhow::Result<Vec<Answer>> {
    let answers = suite.gc(version, keys, valid)?;
    for answer in &answers {
        answer.accepted()?;
    }
    Ok(answers)
}

fn must_be_enabled(suite: &Suite<'_>) -> Verdict {
    if suite.network.disable_gc {
        return skip("the network configuration has `disableGC`");
    }
    if !suite.collect {
        return skip("GC removes every other attachment of the network on this host: allow it by --gc");
    }
    Ok(())
}

/// A container that is gone without DEL.
fn lose(suite: &Suite<'_>, version: Version) -> anyhow::Result<Target> {
    let mut container = suite.container()?;
    let mut attached = suite.attach(version, &container, IFNAME)?;
    attached.released();
    container.vanish()?;
    Ok(attached.target.clone())
}

/// The same attachment as a lost one can be made in a new namespace.
fn can_be_added(suite: &Suite<'_>, version: Version, lost: &Target) -> Verdict {
    let container = suite.container()?;
    let target = Target { netns: container.target(IFNAME).netns, ..lost.clone() };
    let added = Attached::add(suite, version, target).context("ADD of the collected attachment")?;
    added.must_work(&container).map(drop)
}

fn needs_no_attachment(suite: &Suite<'_>, version: Version) -> Verdict {
    must_be_enabled(suite)?;
    collect(suite, version, KEYS, &[]).map(drop)
}

fn prints_nothing(suite: &Suite<'_>, version: Version) -> Verdict {
    must_be_enabled(suite)?;
    for answer in collect(suite, version, KEYS, &[])? {
        let seen = answer.stdout();
        ensure!(seen.trim().is_empty(), "{} prints {seen:?}", answer.what);
    }
    Ok(())
}

/// Two attachments, GC with both listed under `keys`: both must be as before. GC itself may be refused.
fn keeps(suite: &Suite<'_>, version: Version, keys: &[&str], may_refuse: bool) -> Verdict {
    must_be_enabled(suite)?;
    let (one, other) = (suite.container()?, suite.container()?);
    let first = suite.attach(version, &one, IFNAME)?;
    let second = suite.attach(version, &other, IFNAME)?;
    let before = suite.state()?;
    let answers = suite.gc(version, keys, &[&first.target, &second.target])?;
    for answer in answers.iter().filter(|_| !may_refuse) {
        answer.accepted()?;
    }
    before.must_be_back(suite.host)?;
    for (container, attached) in [(&one, &first), (&other, &second)] {
        attached.must_work(container)?;
        if !suite.network.disable_check {
            attached.check().context("CHECK of a valid attachment after GC")?;
        }
    }
    Ok(())
}

fn keeps_all(suite: &Suite<'_>, version: Version) -> Verdict {
    keeps(suite, version, KEYS, false)
}

fn both_keys(suite: &Suite<'_>, version: Version) -> Verdict {
    keeps(suite, version, &[VALID_ATTACHMENTS, VALID_ATTACHMENTS_OLD], false)
}

/// The first libcni with GC wrote this key alone. A plugin may not know it; then it has no list of what is valid, and
/// must not take that for an empty one.
fn old_key(suite: &Suite<'_>, version: Version) -> Verdict {
    keeps(suite, version, &[VALID_ATTACHMENTS_OLD], true)
}

fn removes_one(suite: &Suite<'_>, version: Version) -> Verdict {
    must_be_enabled(suite)?;
    let container = suite.container()?;
    let valid = suite.attach(version, &container, IFNAME)?;
    let before = suite.state()?;
    let lost = lose(suite, version)?;
    collect(suite, version, KEYS, &[&valid.target])?;
    before.must_be_back(suite.host)?;
    valid.must_work(&container)?;
    if !suite.network.disable_check {
        valid.check().context("CHECK of the valid attachment after GC")?;
    }
    can_be_added(suite, version, &lost)
}

fn removes_all(suite: &Suite<'_>, version: Version) -> Verdict {
    must_be_enabled(suite)?;
    let before = suite.state()?;
    let lost = [lose(suite, version)?, lose(suite, version)?];
    collect(suite, version, KEYS, &[])?;
    before.must_be_back(suite.host)?;
    lost.iter().try_for_each(|lost| can_be_added(suite, version, lost))
}

fn tells_interfaces_apart(suite: &Suite<'_>, version: Version) -> Verdict {
    must_be_enabled(suite)?;
    let container = suite.container()?;
    let valid = suite.attach(version, &container, IFNAME)?;
    let before = suite.state()?;
    // Another attachment with the same container id, whose namespace is gone.
    let mut gone = suite.container()?;
    let target = Target { id: container.name().to_owned(), ..gone.target("net1") };
    let mut stale = Attached::add(suite, version, target)?;
    stale.released();
    gone.vanish()?;
    collect(suite, version, KEYS, &[&valid.target])?;
    before.must_be_back(suite.host)?;
    valid.must_work(&container).map(drop)
}

fn tolerates_unknown(suite: &Suite<'_>, version: Version) -> Verdict {
    must_be_enabled(suite)?;
    let container = suite.container()?;
    let valid = suite.attach(version, &container, IFNAME)?;
    let unknown = Target { id: "no-such-container".to_owned(), netns: None, ifname: "eth9".to_owned() };
    collect(suite, version, KEYS, &[&unknown, &valid.target])?;
    valid.must_work(&container).map(drop)
}

fn can_be_repeated(suite: &Suite<'_>, version: Version) -> Verdict {
    must_be_enabled(suite)?;
    lose(suite, version)?;
    for _ in 0..2 {
        collect(suite, version, KEYS, &[])?;
    }
    Ok(())
}

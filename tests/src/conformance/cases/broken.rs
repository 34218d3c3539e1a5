//! DEL of what is no longer as ADD has left it (§2 "`DEL`").

use anyhow::Context as _;

use crate::case::{Case, Verdict};
use crate::suite::{IFNAME, Suite};
use crate::version::Version;

const BEST_EFFORT: &str = "plugins should always complete a `DEL` action without error to the fullest extent \
                           possible, even if some resources or state are missing.";
const BRIDGE: &str = "the `bridge` plugin should delegate the DEL action to the IPAM plugin and clean up its own \
                      resources even if the container network namespace and/or container network interface no longer \
                      exist.";

pub(super) const CASES: &[Case] = &[
    Case::should("del-after-the-namespace-is-gone", "§2 DEL", BRIDGE, namespace_is_gone),
    Case::should("del-after-the-interface-is-gone", "§2 DEL", BRIDGE, interface_is_gone),
    Case::should("del-after-the-address-is-gone", "§2 DEL", BEST_EFFORT, address_is_gone),
    Case::should("del-with-a-path-that-is-no-namespace", "§2 DEL", BEST_EFFORT, path_is_no_namespace),
];

fn namespace_is_gone(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let mut container = suite.container()?;
    let mut attached = suite.attach(version, &container, IFNAME)?;
    container.vanish()?;
    attached.del()?;
    before.must_be_back(suite.host)
}

fn interface_is_gone(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let container = suite.container()?;
    let mut attached = suite.attach(version, &container, IFNAME)?;
    container.view().ip(&format!("link delete {IFNAME}"))?;
    attached.del()?;
    before.must_be_back(suite.host)
}

fn address_is_gone(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let container = suite.container()?;
    let mut attached = suite.attach(version, &container, IFNAME)?;
    container.view().ip(&format!("address flush dev {IFNAME}"))?;
    attached.del()?;
    before.must_be_back(suite.host)
}

/// A runtime that was killed while it made the namespace leaves an empty file.
fn path_is_no_namespace(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let mut container = suite.container()?;
    let mut attached = suite.attach(version, &container, IFNAME)?;
    container.vanish()?;
    let mut target = attached.target.clone();
    target.netns = Some("/dev/null".to_owned());
    suite.del(version, &target, Some(&attached.result)).context("CNI_NETNS is /dev/null")?;
    attached.released();
    before.must_be_back(suite.host)
}

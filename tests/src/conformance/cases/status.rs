//! STATUS (§2 "`STATUS`"), since 1.1.0.

use anyhow::Context as _;

use crate::case::{Case, Verdict};
use crate::plugin::Call;
use crate::suite::{IFNAME, Suite};
use crate::version::Version;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "status-succeeds-if-add-would",
        "§2 STATUS",
        "A plugin must exit with a zero (success) return code if the plugin is ready to service ADD requests.",
        succeeds,
    )
    .since(Version::V1_1_0),
    Case::must(
        "status-needs-no-optional-variable",
        "§2 STATUS",
        "Optional environment parameters: `CNI_PATH`",
        needs_no_path,
    )
    .since(Version::V1_1_0),
    Case::must(
        "status-changes-nothing",
        "§2 STATUS",
        "Status is purely informational.",
        changes_nothing,
    )
    .since(Version::V1_1_0),
];

fn succeeds(suite: &Suite<'_>, version: Version) -> Verdict {
    // STATUS is right to complain where ADD does not work.
    let container = suite.container()?;
    let attached = suite.attach(version, &container, IFNAME)?;
    attached.must_work(&container)?;
    for index in 0..suite.plugins.len() {
        let call = suite.network_call("STATUS").conf(&suite.conf(index, version, None)?);
        suite.call(index, &call)?.accepted()?;
    }
    Ok(())
}

fn needs_no_path(suite: &Suite<'_>, version: Version) -> Verdict {
    for index in 0..suite.plugins.len() {
        let call = Call::new("STATUS").conf(&suite.conf(index, version, None)?);
        suite.call(index, &call)?.accepted().context("without CNI_PATH")?;
    }
    Ok(())
}

fn changes_nothing(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    for index in 0..suite.plugins.len() {
        let call = suite.network_call("STATUS").conf(&suite.conf(index, version, None)?);
        suite.call(index, &call)?;
    }
    before.must_be_back(suite.host)
}

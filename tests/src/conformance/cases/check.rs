//! CHECK (§2 "`CHECK`"), since 0.4.0.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::case::{Case, Verdict, skip};
use crate::container::{Attached, Container};
use crate::plugin::Answer;
use crate::result;
use crate::suite::{IFNAME, Refusal, Suite};
use crate::version::Version;

const MISSING: &str = "The plugin should return an error if a resource included in the CNI Result type (interface, \
                       address or route) was created by the plugin, and is listed in `prevResult`, but is missing or \
                       in an invalid state.";
const CONSULT: &str =
    "The plugin must consult the `prevResult` to determine the expected interfaces and addresses.";
const CHAINED: &str = "The plugin must allow for a later chained plugin to have modified networking resources, e.g. \
                       routes, on `ADD`.";

pub(super) const CASES: &[Case] = &[
    Case::must(
        "check-succeeds-right-after-add",
        "§2 CHECK",
        "The plugin must handle `CHECK` being called immediately after an `ADD`, and therefore should allow a \
         reasonable convergence delay for any asynchronous resources.",
        right_after_add,
    )
    .since(Version::V0_4_0)
    .each(),
    Case::practice(
        "check-prints-nothing",
        "§ Check example",
        "Assuming the `bridge` plugin is satisfied, it produces no output on standard out and exits with a 0 return \
         code.",
        prints_nothing,
    )
    .since(Version::V0_4_0),
    Case::should("check-finds-a-missing-interface", "§2 CHECK", MISSING, interface).since(Version::V0_4_0),
    Case::should("check-finds-a-missing-address", "§2 CHECK", MISSING, address).since(Version::V0_4_0),
    Case::should("check-finds-a-missing-route", "§2 CHECK", MISSING, route).since(Version::V0_4_0),
    Case::should("check-finds-an-interface-that-is-down", "§2 CHECK", MISSING, down).since(Version::V0_4_0),
    Case::must("check-requires-the-previous-result", "§2 CHECK", CONSULT, requires_result)
        .since(Version::V0_4_0),
    Case::must("check-compares-with-the-previous-result", "§2 CHECK", CONSULT, compares)
        .since(Version::V0_4_0),
    Case::must("check-allows-more-than-was-added", "§2 CHECK", CHAINED, allows_more).since(Version::V0_4_0),
    Case::must(
        "check-allows-another-mac-from-a-later-plugin",
        "§ Check example",
        "including the `prevResult` field containing the final JSON response from the _Add_ operation, **including \
         the changed mac**.",
        allows_another_mac,
    )
    .since(Version::V0_4_0),
];

/// Runs `judge` on a fresh attachment, unless the network wants no CHECK.
fn with_attachment(
    suite: &Suite<'_>,
    version: Version,
    judge: impl FnOnce(&Container, &Attached<'_>) -> Verdict,
) -> Verdict {
    if suite.network.disable_check {
        return skip("the network configuration has `disableCheck`");
    }
    let container = suite.container()?;
    let attached = suite.attach(version, &container, IFNAME)?;
    judge(&container, &attached)
}

/// CHECK must be refused by one of the plugins.
fn refused(suite: &Suite<'_>, version: Version, attached: &Attached<'_>, previous: &Value) -> Result<Answer> {
    match suite.check(version, &attached.target, previous) {
        Ok(_) => bail!("CHECK succeeded, an error was expected"),
        Err(error) => {
            let Refusal { answer } = error.downcast::<Refusal>()?;
            answer.refused(&[])?;
            Ok(answer)
        }
    }
}

fn right_after_add(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |_, attached| attached.check())
}

fn prints_nothing(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |_, attached| {
        for answer in suite.check(version, &attached.target, &attached.result)? {
            let seen = answer.stdout();
            ensure!(seen.trim().is_empty(), "{} prints {seen:?}", answer.what);
        }
        Ok(())
    })
}

/// CHECK must notice what `ip <words>` does to the container.
fn notices(suite: &Suite<'_>, version: Version, words: &str) -> Verdict {
    with_attachment(suite, version, |container, attached| {
        attached.check().context("before anything is changed")?;
        container.view().ip(words)?;
        let answer = refused(suite, version, attached, &attached.result);
        answer.with_context(|| format!("after ip {words}")).map(drop)
    })
}

fn interface(suite: &Suite<'_>, version: Version) -> Verdict {
    notices(suite, version, &format!("link delete {IFNAME}"))
}

fn down(suite: &Suite<'_>, version: Version) -> Verdict {
    notices(suite, version, &format!("link set {IFNAME} down"))
}

fn address(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |container, attached| {
        let Some(address) = attached.addresses()?.into_iter().next() else {
            return skip("the plugins assign no address");
        };
        container.view().ip(&format!("address delete {address} dev {IFNAME}"))?;
        refused(suite, version, attached, &attached.result)
            .with_context(|| format!("without {address}"))
            .map(drop)
    })
}

fn route(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |container, attached| {
        let Some(route) = result::routes(&attached.result)?.into_iter().next() else {
            return skip("the plugins make no routes");
        };
        let destination = route.destination.trunc();
        let family = if destination.addr().is_ipv4() { "-4" } else { "-6" };
        container.view().ip(&format!("{family} route delete {destination}"))?;
        refused(suite, version, attached, &attached.result)
            .with_context(|| format!("without the route to {destination}"))
            .map(drop)
    })
}

fn requires_result(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |_, attached| {
        for index in 0..suite.plugins.len() {
            let conf = suite.conf(index, version, None)?;
            let call = suite.attachment_call("CHECK", &attached.target).conf(&conf);
            suite.call(index, &call)?.refused(&[])?;
        }
        Ok(())
    })
}

fn compares(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |_, attached| {
        if result::ips(&attached.result)?.is_empty() {
            return skip("the plugins assign no address");
        }
        let mut other = attached.result.clone();
        other["ips"][0]["address"] = json!("192.0.2.77/32");
        refused(suite, version, attached, &other)
            .context("prevResult has an address that is not there")
            .map(drop)
    })
}

fn allows_more(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |container, attached| {
        container.view().ip(&format!("address add 198.51.100.77/32 dev {IFNAME}"))?;
        container.view().ip(&format!("route add 203.0.113.0/24 dev {IFNAME}"))?;
        attached.check().context("with another address and another route on the interface")
    })
}

/// What the plugin `tuning` does after the one under test. Where the network does not carry packets of another MAC,
/// CHECK is right to say so: "The plugin should return an error if it is aware of a condition where the container is
/// generally unreachable."
fn allows_another_mac(suite: &Suite<'_>, version: Version) -> Verdict {
    const MAC: &str = "02:00:5e:00:53:01";
    with_attachment(suite, version, |container, attached| {
        container.view().ip(&format!("link set {IFNAME} address {MAC}"))?;
        let mut changed = attached.result.clone();
        let interfaces = changed["interfaces"].as_array_mut().into_iter().flatten();
        for interface in interfaces.filter(|interface| interface["name"] == IFNAME) {
            interface["mac"] = json!(MAC);
        }
        let Err(refused) = suite.check(version, &attached.target, &changed) else { return Ok(()) };
        let neighbour = suite.container()?;
        let other = suite.attach(version, &neighbour, IFNAME)?;
        for address in other.addresses()? {
            if container.ping(address.addr()).is_err() {
                return skip(
                    "the network carries no packets of a container with another MAC, and CHECK says so",
                );
            }
        }
        Err(refused.context("with the MAC changed in the container and in prevResult"))
    })
}

//! ADD: the result says what is there (§5 "ADD Success").

use std::collections::BTreeSet;

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use serde_json::Value;

use crate::case::{Case, Verdict, skip};
use crate::container::{Attached, Container};
use crate::kernel::View;
use crate::result::{self, Interface};
use crate::suite::{IFNAME, Suite};
use crate::version::Version;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "result-echoes-the-cniversion",
        "§5 ADD Success",
        "`cniVersion`: The same version supplied on input - the string \"1.1.0\"",
        echoes_the_version,
    )
    .each(),
    Case::must(
        "result-names-the-interface-and-its-sandbox",
        "§5 ADD Success",
        "For interfaces created inside the container, this should be the value passed via `CNI_NETNS`.",
        names_the_sandbox,
    )
    .each(),
    Case::must(
        "result-lists-interfaces-that-exist",
        "§5 ADD Success",
        "`interfaces`: An array of all interfaces created by the attachment, including any host-level interfaces:",
        interfaces_exist,
    ),
    Case::must(
        "result-has-the-interfaces-mac",
        "§5 ADD Success",
        "`mac` (string): The hardware address of the interface (if applicable).",
        macs,
    ),
    Case::must(
        "result-has-the-interfaces-mtu",
        "§5 ADD Success",
        "`mtu`: (uint) The MTU of the interface (if applicable).",
        mtus,
    )
    .since(Version::V1_1_0),
    Case::must(
        "result-ips-are-in-cidr-notation",
        "§5 ADD Success",
        "`address` (string): an IP address in CIDR notation (eg \"192.168.1.3/24\").",
        addresses,
    )
    .each(),
    Case::must(
        "result-ips-index-the-interfaces",
        "§5 ADD Success",
        "`interface` (uint): the index into the `interfaces` list for a [CNI Plugin Result](#result) indicating which \
         interface this IP configuration should be applied to.",
        indexes,
    )
    .each(),
    Case::must(
        "result-ips-say-their-version-before-1-0-0",
        "§ IPs of 0.4.0",
        "`version` (string): either \"4\" or \"6\" and corresponds to the IP version of the addresses in the entry.",
        ip_versions,
    )
    .each(),
    Case::must(
        "result-ips-are-on-the-interface",
        "§5 ADD Success",
        "`ips`: IPs assigned by this attachment.",
        addresses_are_there,
    ),
    Case::must(
        "result-gateways-are-of-the-same-family",
        "§5 ADD Success",
        "`gateway` (string): the default gateway for this subnet, if one exists.",
        gateways,
    ),
    Case::must(
        "result-routes-are-in-the-container",
        "§5 ADD Success",
        "`routes`: Routes created by this attachment:",
        routes_are_there,
    ),
    Case::must(
        "result-dns-is-a-dictionary",
        "§5 ADD Success",
        "`dns`: a dictionary consisting of DNS configuration information",
        dns,
    ),
];

/// Runs `judge` on a fresh attachment.
fn with_attachment(
    suite: &Suite<'_>,
    version: Version,
    judge: impl FnOnce(&Container, &Attached<'_>) -> Verdict,
) -> Verdict {
    let container = suite.container()?;
    let attached = suite.attach(version, &container, IFNAME)?;
    judge(&container, &attached)
}

/// Runs `judge` on each interface of a fresh attachment's result; one in the sandbox is looked for in the container.
fn with_interfaces(
    suite: &Suite<'_>,
    version: Version,
    judge: impl Fn(&Interface, View<'_>) -> Verdict,
) -> Verdict {
    with_attachment(suite, version, |container, attached| {
        for interface in result::interfaces(&attached.result)? {
            let view = if interface.sandbox.is_empty() { View::Host } else { container.view() };
            judge(&interface, view)?;
        }
        Ok(())
    })
}

fn echoes_the_version(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |_, attached| {
        let seen = &attached.result["cniVersion"];
        ensure!(seen == version.as_str(), "`cniVersion` of the result is {seen}, called with {version}");
        Ok(())
    })
}

fn names_the_sandbox(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |_, attached| {
        let interfaces = result::interfaces(&attached.result)?;
        let named: Vec<&Interface> = interfaces.iter().filter(|one| one.name == IFNAME).collect();
        let netns = attached.target.netns.as_deref().unwrap_or_default();
        ensure!(!named.is_empty(), "`interfaces` does not have {IFNAME}");
        ensure!(
            named.iter().any(|one| one.sandbox == netns),
            "the sandbox of {IFNAME} is not {netns}: {named:?}"
        );
        Ok(())
    })
}

fn interfaces_exist(suite: &Suite<'_>, version: Version) -> Verdict {
    with_interfaces(suite, version, |interface, view| {
        ensure!(view.link(&interface.name)?.is_some(), "there is no such interface: {interface:?}");
        Ok(())
    })
}

fn macs(suite: &Suite<'_>, version: Version) -> Verdict {
    with_interfaces(suite, version, |interface, view| {
        let link = view.link(&interface.name)?.context("there is no such interface")?;
        let stated = interface.mac.as_deref().unwrap_or_default();
        let same = stated.eq_ignore_ascii_case(&link.mac);
        ensure!(same, "{} has MAC {}, the result says {stated:?}", link.name, link.mac);
        Ok(())
    })
}

fn mtus(suite: &Suite<'_>, version: Version) -> Verdict {
    with_interfaces(suite, version, |interface, view| {
        let link = view.link(&interface.name)?.context("there is no such interface")?;
        let stated = interface.mtu.with_context(|| format!("no `mtu` of {}", link.name))?;
        ensure!(stated == link.mtu, "{} has MTU {}, the result says {stated}", link.name, link.mtu);
        Ok(())
    })
}

fn addresses(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |_, attached| result::ips(&attached.result).map(drop))
}

fn indexes(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |_, attached| {
        let interfaces = result::interfaces(&attached.result)?;
        for ip in result::ips(&attached.result)? {
            let index = ip.interface.with_context(|| format!("no `interface` of {}", ip.address))?;
            let Some(interface) = interfaces.get(index) else {
                bail!("`interface` of {} is {index}, there are {}", ip.address, interfaces.len());
            };
            ensure!(interface.name == IFNAME, "{} is said to be on {}", ip.address, interface.name);
        }
        Ok(())
    })
}

fn ip_versions(suite: &Suite<'_>, version: Version) -> Verdict {
    if version >= Version::V1_0_0 {
        return skip("gone since 1.0.0");
    }
    with_attachment(suite, version, |_, attached| {
        for ip in result::ips(&attached.result)? {
            let expected = if ip.address.addr().is_ipv4() { "4" } else { "6" };
            let seen = ip.version.as_deref();
            ensure!(seen == Some(expected), "`version` of {} is {seen:?}", ip.address);
        }
        Ok(())
    })
}

fn addresses_are_there(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |container, attached| {
        let stated: BTreeSet<IpNet> = attached.addresses()?.into_iter().collect();
        let there: BTreeSet<IpNet> = container.link(IFNAME)?.addresses.into_iter().collect();
        ensure!(stated == there, "the result says {stated:?}, the interface has {there:?}");
        Ok(())
    })
}

fn gateways(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |_, attached| {
        for ip in result::ips(&attached.result)? {
            let own = ip.address.addr();
            let fits = ip.gateway.is_none_or(|gateway| gateway.is_ipv4() == own.is_ipv4() && gateway != own);
            ensure!(fits, "gateway {:?} of {own}", ip.gateway);
        }
        Ok(())
    })
}

fn routes_are_there(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |container, attached| {
        let there = container.view().routes()?;
        for route in result::routes(&attached.result)? {
            let found = there.iter().any(|one| {
                one.destination.trunc() == route.destination.trunc()
                    && (route.gateway.is_none() || one.gateway == route.gateway)
            });
            ensure!(found, "the container has no route as in the result: {route:?}");
        }
        Ok(())
    })
}

fn dns(suite: &Suite<'_>, version: Version) -> Verdict {
    with_attachment(suite, version, |_, attached| {
        let dns = &attached.result["dns"];
        ensure!(dns.is_null() || dns.is_object(), "`dns` is no dictionary: {dns}");
        for key in ["nameservers", "search", "options"] {
            let strings = |list: &Vec<Value>| list.iter().all(Value::is_string);
            let fine = dns[key].is_null() || dns[key].as_array().is_some_and(strings);
            ensure!(fine, "`dns.{key}` is no list of strings: {}", dns[key]);
        }
        Ok(())
    })
}

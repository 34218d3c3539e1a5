//! What is on a node, in the words that `overlay cleanup` has for it, as other tools show it.

use std::collections::BTreeSet;

use overlay_tests::lab::{Namespace, exec};
use serde_json::Value;

use crate::bed::{Bed, files};

/// The things of a list that `overlay cleanup` has printed, each after the same words.
#[track_caller]
pub(crate) fn things(printed: &str, words: &str) -> Vec<String> {
    let thing = |line: &str| line.strip_prefix(words).map(str::to_owned);
    printed.lines().map(|line| thing(line).unwrap_or_else(|| panic!("{line:?} has no {words:?}"))).collect()
}

/// As a set; none is there twice.
#[track_caller]
pub(crate) fn sorted(things: &[String]) -> BTreeSet<String> {
    let set: BTreeSet<_> = things.iter().cloned().collect();
    assert_eq!(set.len(), things.len(), "{things:#?}");
    set
}

/// Settings that the agent writes here, but for those of devices that it makes. Forwarding of other devices follows the first.
const SETTINGS: [&str; 4] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/send_redirects",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/eth0/accept_ra",
];

pub(crate) struct Inventory {
    things: BTreeSet<String>,
    settings: Vec<String>,
}

impl Inventory {
    #[track_caller]
    pub(crate) fn read(bed: &Bed) -> Self {
        let host = bed.a.namespace();
        let mut things = BTreeSet::new();
        for link in rows(&host.ip_json("link show")) {
            let name = link["ifname"].as_str().unwrap();
            things.insert(format!("device {name}"));
            let filters = ["ingress", "egress"].map(|direction| {
                exec::must(host.command("tc").args(["filter", "show", "dev", name, direction]), "")
            });
            if filters.iter().any(|shown| shown.contains("bpf")) {
                things.insert(format!("tc filters of {name}"));
            }
        }
        for rule in ["-4", "-6"].iter().flat_map(|flag| rows(&host.ip_json(&format!("{flag} rule show")))) {
            if let (Some(source), Some(prefix)) = (rule["src"].as_str(), rule["srclen"].as_u64()) {
                things.insert(format!("rule from {source}/{prefix} to table {}", text(&rule["table"])));
            }
        }
        for flag in ["-4", "-6"] {
            for (table, place) in [("main", ""), ("79", " in table 79")] {
                for route in routes(host, flag, table) {
                    things.insert(format!("route {route}{place}"));
                }
            }
        }
        let listed = exec::must(host.command("nft").args(["list", "ruleset"]), "");
        let (mut table, mut chain) = (String::new(), String::new());
        for line in listed.lines().map(|line| line.trim().trim_end_matches(" {")) {
            if let Some(name) = line.strip_prefix("table ") {
                name.clone_into(&mut table);
                things.insert(format!("nft table {table}"));
            } else if let Some(name) = line.strip_prefix("chain ") {
                name.clone_into(&mut chain);
            } else if line.ends_with("comment \"overlay\"")
                && !table.starts_with("ip overlay")
                && !table.starts_with("ip6 overlay")
            {
                things.insert(format!("accepts in chain {table} {chain}"));
            }
        }
        for path in files(bed.a.pins().parent().unwrap()) {
            let kind = if path.is_dir() { "directory" } else { "pin" };
            things.insert(format!("{kind} {}", path.display()));
        }
        for path in files(&bed.cni()).iter().filter(|path| path.is_file()) {
            things.insert(path.display().to_string());
        }
        let settings = SETTINGS.map(|path| exec::must(host.command("sysctl").args(["-n", path]), ""));
        Self { things, settings: settings.map(|value| value.trim().to_owned()).to_vec() }
    }

    /// What has come since `before`, settings that have changed among it.
    pub(crate) fn since(&self, before: &Self) -> BTreeSet<String> {
        let new_devices: BTreeSet<_> = self.things.difference(&before.things).cloned().collect();
        // Filters go with the device that they are on.
        let stays = |thing: &String| {
            thing
                .strip_prefix("tc filters of ")
                .is_none_or(|device| before.things.contains(&format!("device {device}")))
        };
        let mut came: BTreeSet<_> = new_devices.into_iter().filter(stays).collect();
        let settings = SETTINGS.iter().zip(self.settings.iter().zip(&before.settings));
        for (path, (_, value)) in settings.filter(|(_, (now, value))| now != value) {
            came.insert(format!("setting {path}, back to {value}"));
        }
        came
    }
}

/// The elements of a list; ip(8) prints nothing for an empty one.
fn rows(list: &Value) -> Vec<Value> {
    list.as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The routes of overlay's protocol.
#[track_caller]
fn routes(host: &Namespace, flag: &str, table: &str) -> Vec<String> {
    let mut ip = host.command("ip");
    let shown = exec::output(
        ip.args([flag, "-json", "-details", "route", "show", "table", table, "proto", "79"]),
        b"",
        exec::COMMAND_LIMIT,
    );
    // ip(8) fails for a table that has never had a route.
    let list: Value = serde_json::from_str(&shown.unwrap().stdout).unwrap_or_default();
    let route = |row: &Value| {
        let dst = text(&row["dst"]);
        let whole = if flag == "-6" { 128 } else { 32 };
        let dst = if dst.contains('/') { dst } else { format!("{dst}/{whole}") };
        let metric = row["metric"].as_u64().map(|metric| format!(" metric {metric}")).unwrap_or_default();
        match row["type"].as_str() {
            None | Some("unicast") => format!("{dst}{metric}"),
            Some(kind) => format!("{kind} {dst}{metric}"),
        }
    };
    rows(&list).iter().map(route).collect()
}

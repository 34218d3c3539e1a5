//! Kernel settings: what the agent keeps, and which file of the node says otherwise.

use std::{fs, path::PathBuf};

use super::{Check, Fix, Report, Site};
use crate::{
    agent::{families::Families, forwarding, ipv6_settings, is_anchor},
    cni::is_pod_device,
    family::OfFamily as _,
    host::{
        netlink::Netlink,
        sysctl::{self, Family},
        underlay::Underlay,
    },
};

pub(super) struct Sysctls;

/// Where settings of a boot come from (sysctl.d(5)), the file that wins last.
const FILES: [&str; 4] = ["/usr/lib/sysctl.d", "/run/sysctl.d", "/etc/sysctl.d", "/etc/sysctl.conf"];

impl Check for Sysctls {
    fn name(&self) -> &'static str {
        "sysctls"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        if !site.is_installed() {
            report.skip("overlay is not installed: the agent sets what it needs");
            return Ok(());
        }
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        let Some(anchor) = links.iter().find(|link| is_anchor(link)) else {
            report.skip("the anchor device is missing");
            return Ok(());
        };
        let underlay = site.config().and_then(|config| {
            let interface = config.network.interface.as_deref();
            Underlay::find(&mut netlink, config.vtep(), interface).ok()
        });
        let pods = links.iter().filter(|link| is_pod_device(&link.name)).map(|link| &*link.name);
        let underlay = underlay.as_ref().map(|underlay| &*underlay.link.name);
        let devices = || std::iter::once(&*anchor.name).chain(underlay).chain(pods.clone());
        let (used, pods_have_ipv6) = families(site);
        let mut wanted = Vec::new();
        for family in used.iter().copied() {
            wanted.extend(forwarding::wanted(family, devices(), &anchor.name));
        }
        if used.contains(&Family::Ipv6) {
            wanted.extend(forwarding::advertised(&mut netlink, None)?);
        }
        wanted.extend(
            ipv6_settings(pods_have_ipv6)
                .iter()
                .map(|(setting, value)| (sysctl::interface(Family::Ipv6, &anchor.name, setting), *value)),
        );
        // Switched off as a whole it is off on each device, and switched on it is on again.
        let mut off = None;
        let count = wanted.len();
        for (path, value) in wanted {
            let found = match sysctl::get(&path) {
                // The kernel lacks it, or the device went away.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                found => found?,
            };
            let family = used.iter().find(|family| path.starts_with(sysctl::of_devices(**family)));
            if found == value || (off.is_some() && off == family && path.ends_with("/forwarding")) {
                continue;
            }
            let by = written_by(&path).map_or_else(String::new, |line| format!("; {line}"));
            report
                .error(path.clone(), format!("is {found} instead of {value}: {}", meaning(&path)))
                .evidence(format!("/proc/sys/{path} reads {found}{by}"))
                .remedy(format!("sysctl -w {path}={value}"))
                .fix(Fix::Setting { path: path.clone(), value });
            if forwarding::is_general(&path) {
                off = used.iter().find(|family| forwarding::general(**family) == path);
            }
        }
        report.saw(format!("{count} settings are as the agent keeps them"));
        Ok(())
    }
}

/// Families that the node uses, and whether pods have IPv6.
fn families(site: &Site) -> (Vec<Family>, bool) {
    match (site.config(), &site.local) {
        (Some(config), _) => {
            let families = Families::of(&config);
            (families.used().collect(), families.subnets.get(Family::Ipv6).is_some())
        }
        (None, Some(local)) => {
            let pods = Family::ALL.map(|family| local.subnet[family.index()].prefix_len != 0);
            let tunnel = local.vtep.to_ip().family();
            let used = Family::ALL.into_iter().filter(|family| pods[family.index()] || tunnel == *family);
            (used.collect(), pods[Family::Ipv6.index()])
        }
        (None, None) => (Vec::new(), false),
    }
}

fn meaning(path: &str) -> &'static str {
    if forwarding::is_general(path) {
        "the node forwards nothing, neither Services nor what pods send to the world"
    } else if path.ends_with("forwarding") {
        "what comes in by this device is not forwarded"
    } else if path.ends_with("send_redirects") {
        "pods are told of ways that do not exist"
    } else if path.ends_with("accept_ra") {
        "a node that forwards takes router advertisements only so: its routes from there end with their time"
    } else {
        "of IPv6 the device has to carry what pods have"
    }
}

/// The line of a file of settings that says this one, the last that does.
fn written_by(path: &str) -> Option<String> {
    let mut found = None;
    for place in FILES {
        let mut files: Vec<PathBuf> = match fs::read_dir(place) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(_) => vec![place.into()],
        };
        files.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
        files.sort();
        for file in files {
            let text = fs::read_to_string(&file).unwrap_or_default();
            for (number, line) in text.lines().enumerate() {
                if says(line, path) {
                    found =
                        Some(format!("{} says so in line {}: {}", file.display(), number + 1, line.trim()));
                }
            }
        }
    }
    found
}

/// Whether a line sets it; separators may be dots or slashes, a dot in a device's name then is a slash.
fn says(line: &str, path: &str) -> bool {
    let Some((key, _)) = line.trim().trim_start_matches('-').split_once('=') else { return false };
    let key = key.trim();
    let plain = if key.find(['/', '.']).is_some_and(|at| key.as_bytes()[at] == b'.') {
        key.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect()
    } else {
        key.to_owned()
    };
    !key.starts_with(['#', ';']) && plain == path
}

#[cfg(test)]
mod tests {
    use super::says;

    #[test]
    fn a_setting_is_known_in_both_spellings() {
        let path = "net/ipv4/conf/overlay.1/forwarding";
        assert!(says("net.ipv4.conf.overlay/1.forwarding = 0", path));
        assert!(says("-net/ipv4/conf/overlay.1/forwarding=0", path));
        assert!(!says("# net/ipv4/conf/overlay.1/forwarding=0", path));
        assert!(!says("net.ipv4.conf.all.forwarding = 0", path));
        assert!(says("net.ipv4.ip_forward=0", "net/ipv4/ip_forward"));
        assert!(!says("", "net/ipv4/ip_forward"));
    }
}

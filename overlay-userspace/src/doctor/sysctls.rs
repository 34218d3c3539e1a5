//! Kernel settings: what the agent keeps, and which file of the node says otherwise.

use std::{fs, path::PathBuf};

use super::{Check, Fix, Report, Site};
use crate::{
    agent::{forwarding, is_anchor},
    cni::is_pod_device,
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
        let devices = std::iter::once(&*anchor.name).chain(underlay).chain(pods);
        let mut wanted = forwarding::wanted(devices, &anchor.name);
        wanted.push((sysctl::interface(Family::Ipv6, &anchor.name, "disable_ipv6"), "1"));
        let count = wanted.len();
        for (path, value) in wanted {
            let found = match sysctl::get(&path) {
                // The kernel lacks it, or the device went away.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                found => found?,
            };
            if found == value {
                continue;
            }
            let by = written_by(&path).map_or_else(String::new, |line| format!("; {line}"));
            report
                .error(path.clone(), format!("is {found} instead of {value}: {}", meaning(&path)))
                .evidence(format!("/proc/sys/{path} reads {found}{by}"))
                .remedy(format!("sysctl -w {path}={value}"))
                .fix(Fix::Setting { path: path.clone(), value });
            // Switched off as a whole it is off on each device, and switched on it is on again.
            if path.ends_with("ip_forward") {
                return Ok(());
            }
        }
        report.saw(format!("{count} settings are as the agent keeps them"));
        Ok(())
    }
}

fn meaning(path: &str) -> &'static str {
    if path.ends_with("ip_forward") {
        "the node forwards nothing, neither Services nor what pods send to the world"
    } else if path.ends_with("forwarding") {
        "what comes in by this device is not forwarded"
    } else if path.ends_with("send_redirects") {
        "pods are told of ways that do not exist"
    } else {
        "the device carries IPv4 only"
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

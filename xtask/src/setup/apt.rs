//! Debian's package tools, non-interactively. Nothing is ever removed to make room.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    toolchain::{find_program, parse_release},
    workspace::execute,
};

/// What the package archive offers.
#[derive(Debug)]
pub(crate) enum Archive {
    /// No apt on this machine.
    Absent,
    /// apt, but no package lists (and no right to fetch them): anything may be available.
    Unknown,
    /// Version that would be installed, by package.
    Known(BTreeMap<String, String>),
}

impl Archive {
    /// Asks for candidates of `packages`.
    pub(crate) fn query(packages: &[String]) -> Self {
        if !is_present() {
            return Self::Absent;
        }
        if !has_lists() {
            return Self::Unknown;
        }
        let output = Command::new("apt-cache").env("LC_ALL", "C").arg("policy").args(packages).output();
        match output {
            Ok(output) if output.status.success() => {
                Self::Known(candidates(&String::from_utf8_lossy(&output.stdout)))
            }
            _ => Self::Unknown,
        }
    }

    /// Whether a package can be installed, in at least this release (major, minor) if one is given.
    pub(crate) fn has(&self, package: &str, release: Option<(u32, u32)>) -> bool {
        match self {
            Self::Absent => false,
            Self::Unknown => true,
            Self::Known(candidates) => candidates
                .get(package)
                .is_some_and(|version| release.is_none_or(|least| parse_release(version) >= Some(least))),
        }
    }
}

/// Whether apt-get is there.
pub(crate) fn is_present() -> bool {
    find_program("apt-get").is_some() && find_program("apt-cache").is_some()
}

/// `apt-get update`.
pub(crate) fn update() -> Result<()> {
    execute(apt_get().args(["-q", "update"])).context("fetch the package lists")
}

/// `apt-get install`, without recommended packages. Daemons among them (containerd, podman) are not started: tests
/// start their own, and systemctl leaves the machine's alone when told that it is offline.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    let mut command = apt_get();
    command.env("SYSTEMD_OFFLINE", "1");
    command.args(["-q", "-y", "--no-install-recommends", "--no-remove", "install"]).args(packages);
    execute(&mut command).with_context(|| {
        format!(
            "install {} (if a package is in the way, as Debian's rustc or rustup is for rustc-web, remove that first, or use rustup's nightly with rust-src)",
            packages.join(" ")
        )
    })
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

fn has_lists() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|lists| {
        lists.flatten().any(|file| file.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// Parses the output of `apt-cache policy`.
fn candidates(policy: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut package = "";
    for line in policy.lines() {
        if !line.starts_with(' ') {
            package = line.trim_end_matches(':');
        } else if let Some(version) = line.trim_start().strip_prefix("Candidate: ")
            && version != "(none)"
        {
            // An epoch is no part of the release.
            let version = version.split_once(':').map_or(version, |(_, version)| version);
            found.insert(package.to_owned(), version.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "\
rustc-web:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
     1.96.0+dfsg1-1~deb12u2 500
        500 http://mirror.example/debian-security bookworm-security/main amd64 Packages
bpftool:
  Installed: (none)
  Candidate: (none)
  Version table:
llvm-22-dev:
  Installed: 1:22.1.8-1~deb12u1
  Candidate: 1:22.1.8-1~deb12u1
";

    #[test]
    fn candidates_are_parsed() {
        let candidates = candidates(POLICY);
        assert_eq!(candidates["rustc-web"], "1.96.0+dfsg1-1~deb12u2");
        assert_eq!(candidates["llvm-22-dev"], "22.1.8-1~deb12u1");
        assert_eq!(candidates.len(), 2);
    }

    #[test]
    fn a_candidate_must_be_new_enough() {
        let archive = Archive::Known(candidates(POLICY));
        assert!(archive.has("rustc-web", None));
        assert!(archive.has("rustc-web", Some((1, 95))));
        assert!(!archive.has("rustc-web", Some((1, 97))));
        assert!(!archive.has("bpftool", None));
        assert!(!archive.has("unheard-of", None));
    }

    #[test]
    fn without_apt_nothing_is_available_and_without_lists_everything_may_be() {
        assert!(!Archive::Absent.has("gcc", None));
        assert!(Archive::Unknown.has("gcc", Some((1, 95))));
    }
}

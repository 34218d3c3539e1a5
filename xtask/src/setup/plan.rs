//! Decides how each need is met, from what this machine offers. No side effects.

use std::{fmt, path::PathBuf};

use super::{
    LINKER_VERSION,
    apt::Archive,
    need::{Need, Program},
};
use crate::toolchain::minimum_release;

/// Debian's compiler and its core library for the BPF targets.
const COMPILER_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
/// LLVM versions that this bpf-linker can be built with and that allow misaligned loads (from 22).
const LINKER_LLVMS: [u32; 2] = [22, 23];

/// What can be used to install things.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) root: bool,
    pub(crate) apt: Archive,
    pub(crate) rustup: bool,
    /// The user did not insist on another compiler than Debian's.
    pub(crate) debian_compiler: bool,
    /// LLVM versions whose library for development is installed.
    pub(crate) llvms: Vec<u32>,
}

/// One thing to do, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Packages(Vec<String>),
    RustComponents(Vec<&'static str>),
    /// Build bpf-linker against this LLVM.
    Linker {
        llvm: u32,
    },
    /// What the user has to do.
    ByHand(String),
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packages(packages) => write!(out, "apt-get install {}", packages.join(" ")),
            Self::RustComponents(names) => write!(out, "rustup component add {}", names.join(" ")),
            Self::Linker { llvm } => {
                write!(out, "cargo install bpf-linker (with LLVM {llvm}; takes a minute or two)")
            }
            Self::ByHand(text) => out.write_str(text),
        }
    }
}

/// Directory that holds Debian's LLVM of this version.
pub(crate) fn llvm_prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

/// LLVM versions that bpf-linker could be built with right away.
pub(crate) fn installed_llvms() -> Vec<u32> {
    LINKER_LLVMS.into_iter().filter(|llvm| llvm_prefix(*llvm).join("lib/libLLVM.so").exists()).collect()
}

/// Packages that may be of use: those to ask the archive about.
pub(crate) fn packages(needs: &[Need]) -> Vec<String> {
    let mut packages = Vec::new();
    for need in needs {
        match need {
            Need::Program(Program { packages: any, with, .. }) => {
                packages.extend(any.iter().chain(*with).map(ToString::to_string));
            }
            Need::BpfCompiler => packages.extend(COMPILER_PACKAGES.map(str::to_owned)),
            Need::BpfLinker { .. } => {
                packages.extend(LINKER_LLVMS.map(llvm_package));
                packages.extend(COMPILER_PACKAGES.map(str::to_owned));
            }
            Need::RustComponent(_) => {}
        }
    }
    packages
}

/// Steps to meet all needs: packages first, in one go.
pub(crate) fn plan(needs: &[Need], means: &Means) -> Vec<Step> {
    let mut packages = Vec::new();
    let mut components = Vec::new();
    let mut linker = None;
    let mut by_hand = Vec::new();
    for need in needs {
        match need {
            Need::Program(program) => match program.packages.iter().find(|name| means.apt.has(name, None)) {
                Some(package) => {
                    packages.extend([package].into_iter().chain(program.with).map(ToString::to_string));
                }
                None => by_hand.push(format!("# install the program {}", program.name)),
            },
            Need::RustComponent(name) if means.rustup => components.push(*name),
            Need::RustComponent(name) => {
                by_hand.push(format!("# install {name} of the Rust toolchain that cargo belongs to"));
            }
            Need::BpfCompiler => {
                if has_compiler(means) {
                    packages.extend(COMPILER_PACKAGES.map(str::to_owned));
                } else {
                    by_hand.push(nightly(means.rustup));
                }
            }
            Need::BpfLinker { llvm, .. } => match linker_llvm(*llvm, means) {
                Some(llvm) => {
                    if !means.llvms.contains(&llvm) {
                        packages.push(llvm_package(llvm));
                    }
                    linker = Some(llvm);
                }
                // A nightly may be ahead of every LLVM of the release; Debian's compiler never is.
                None if has_compiler(means) => packages.extend(COMPILER_PACKAGES.map(str::to_owned)),
                None => by_hand.push(prebuilt_linker(*llvm)),
            },
        }
    }

    let mut steps = Vec::new();
    if !packages.is_empty() {
        if means.root {
            steps.push(Step::Packages(packages));
        } else {
            // The linker is built against a library among them: first things first.
            linker = linker.filter(|llvm| means.llvms.contains(llvm));
            let line = packages.join(" ");
            let command =
                format!("sudo apt-get update && sudo apt-get install --no-install-recommends {line}");
            by_hand.insert(0, command);
        }
    }
    if !components.is_empty() {
        steps.push(Step::RustComponents(components));
    }
    steps.extend(linker.map(|llvm| Step::Linker { llvm }));
    steps.extend(by_hand.into_iter().map(Step::ByHand));
    steps
}

/// Whether Debian's compiler can be installed and is new enough for this workspace.
fn has_compiler(means: &Means) -> bool {
    let least = Some(minimum_release());
    means.debian_compiler && COMPILER_PACKAGES.iter().all(|package| means.apt.has(package, least))
}

/// The LLVM to build bpf-linker with for a compiler of LLVM `least`: one that is installed, else the oldest
/// that can be.
fn linker_llvm(least: u32, means: &Means) -> Option<u32> {
    let fits = |llvm: &u32| *llvm >= least;
    means.llvms.iter().copied().find(fits).or_else(|| {
        LINKER_LLVMS.into_iter().filter(fits).find(|llvm| means.apt.has(&llvm_package(*llvm), None))
    })
}

fn llvm_package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

fn nightly(rustup: bool) -> String {
    let install = "rustup toolchain install nightly --profile minimal --component rust-src";
    if rustup {
        install.to_owned()
    } else {
        format!("# install rustup (https://rustup.rs), then:\n  {install}")
    }
}

fn prebuilt_linker(llvm: u32) -> String {
    format!(
        "cargo install cargo-binstall && cargo binstall bpf-linker   # {LINKER_VERSION} or newer, with LLVM {llvm} or newer"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::setup::need::{Facts, Part};

    /// Debian 12 with its security archive.
    fn debian() -> Means {
        let offers = [
            ("rustc-web", "1.96.0+dfsg1-1~deb12u2"),
            ("libstd-rust-web-dev-bpf", "1.96.0+dfsg1-1~deb12u2"),
            ("llvm-22-dev", "22.1.8-1~deb12u1"),
            ("bpftool", "7.1.0+6.1.192-2"),
        ];
        let others =
            ["gcc", "libc6-dev", "nftables", "iproute2", "iptables", "ethtool", "procps", "iputils-ping"]
                .into_iter()
                .chain(["tcpdump", "conntrack", "iperf3", "socat"])
                .chain(["containernetworking-plugins", "podman", "conmon", "crun", "containerd", "g++"])
                .chain(["chromium", "fonts-dejavu-core", "prometheus", "qemu-system-x86", "kmod"])
                .map(|name| (name, "1"));
        let known = offers.into_iter().chain(others).map(|(name, version)| (name.into(), version.into()));
        Means {
            root: true,
            apt: Archive::Known(known.collect()),
            rustup: true,
            debian_compiler: true,
            llvms: Vec::new(),
        }
    }

    fn everything_missing() -> Vec<Need> {
        Facts::default().assess(Part::ALL).missing
    }

    fn by_hand(steps: &[Step]) -> String {
        let steps = steps.iter().filter(|step| matches!(step, Step::ByHand(_)));
        steps.map(Step::to_string).collect::<Vec<_>>().join(
            "
",
        )
    }

    #[test]
    fn a_fresh_debian_is_set_up_in_one_go_but_for_the_linker() {
        let steps = plan(&everything_missing(), &debian());
        let [Step::Packages(packages), Step::RustComponents(components)] = &steps[..] else {
            panic!("{steps:?}");
        };
        for package in [
            "gcc",
            "libc6-dev",
            "g++",
            "rustc-web",
            "libstd-rust-web-dev-bpf",
            "tcpdump",
            "bpftool",
            "podman",
            "containerd",
        ] {
            assert!(packages.iter().any(|name| name == package), "{package} is not among {packages:?}");
        }
        assert_eq!(components, &["rustfmt", "clippy"]);
    }

    #[test]
    fn the_linker_comes_after_its_llvm() {
        let needs = [Need::BpfLinker { llvm: 22, present: None }];
        let packages = Step::Packages(vec!["llvm-22-dev".into()]);
        assert_eq!(plan(&needs, &debian()), [packages, Step::Linker { llvm: 22 }]);
        let means = Means { llvms: vec![22, 23], ..debian() };
        assert_eq!(plan(&needs, &means), [Step::Linker { llvm: 22 }]);
    }

    #[test]
    fn a_newer_llvm_than_the_release_has_is_for_the_user_to_find() {
        let means = Means { debian_compiler: false, ..debian() };
        let steps = plan(&[Need::BpfLinker { llvm: 23, present: Some(22) }], &means);
        assert!(by_hand(&steps).contains("cargo binstall bpf-linker"), "{steps:?}");
        assert_eq!(steps.len(), 1);
    }

    #[test]
    fn a_nightly_ahead_of_the_release_gives_way_to_the_compiler_of_debian() {
        let steps = plan(&[Need::BpfLinker { llvm: 23, present: None }], &debian());
        assert_eq!(steps, [Step::Packages(COMPILER_PACKAGES.map(str::to_owned).to_vec())]);
    }

    #[test]
    fn whoever_insists_on_nightly_gets_no_other_compiler() {
        let means = Means { debian_compiler: false, ..debian() };
        assert!(by_hand(&plan(&[Need::BpfCompiler], &means)).starts_with("rustup toolchain install"));
    }

    #[test]
    fn where_rustc_web_is_too_old_nightly_is_advised() {
        let old =
            BTreeMap::from(COMPILER_PACKAGES.map(|name| (name.to_owned(), "1.85.0+dfsg3-1".to_owned())));
        let means = Means { apt: Archive::Known(old), ..debian() };
        let steps = plan(&[Need::BpfCompiler], &means);
        let advice = by_hand(&steps);
        assert!(advice.starts_with("rustup toolchain install nightly"), "{advice}");
        assert!(advice.contains("rust-src"), "{advice}");
        assert_eq!(steps.len(), 1);
    }

    #[test]
    fn without_apt_every_program_is_named() {
        let means = Means { apt: Archive::Absent, rustup: false, ..debian() };
        let steps = plan(&everything_missing(), &means);
        assert!(steps.iter().all(|step| matches!(step, Step::ByHand(_))), "{steps:?}");
        let advice = by_hand(&steps);
        for word in ["cc", "tcpdump", "clippy", "https://rustup.rs", "rust-src"] {
            assert!(advice.contains(word), "{word} is not in {advice}");
        }
    }

    #[test]
    fn without_root_the_sudo_command_is_told_and_the_rest_is_done() {
        let needs =
            [Need::BpfCompiler, Need::RustComponent("clippy"), Need::BpfLinker { llvm: 22, present: None }];
        let steps = plan(&needs, &Means { root: false, ..debian() });
        let [Step::RustComponents(_), Step::ByHand(advice)] = &steps[..] else { panic!("{steps:?}") };
        let expected = "sudo apt-get update && sudo apt-get install --no-install-recommends \
                        rustc-web libstd-rust-web-dev-bpf llvm-22-dev";
        assert_eq!(advice, expected);
    }

    #[test]
    fn the_second_package_is_taken_where_the_release_lacks_the_first() {
        let needs: Vec<_> = everything_missing()
            .into_iter()
            .filter(|need| matches!(need, Need::Program(Program { name: "bpftool", .. })))
            .collect();
        let ubuntu = BTreeMap::from([("linux-tools-generic".to_owned(), "6.8.0".to_owned())]);
        let means = Means { apt: Archive::Known(ubuntu), ..debian() };
        assert_eq!(plan(&needs, &means), [Step::Packages(vec!["linux-tools-generic".into()])]);
    }

    #[test]
    fn the_archive_is_asked_about_all_that_a_plan_can_use() {
        let asked = packages(&everything_missing());
        assert!(asked.contains(&"linux-tools-generic".to_owned()));
        assert!(asked.contains(&"libc6-dev".to_owned()));
        assert!(packages(&[Need::BpfLinker { llvm: 22, present: None }]).contains(&"llvm-23-dev".to_owned()));
        assert!(packages(&[Need::RustComponent("clippy")]).is_empty());
    }
}

//! What each part of the work needs, and what of it is on this machine.

use std::{collections::BTreeSet, env, path::PathBuf};

use crate::toolchain::{self, Found, find_program};

/// A part of the work that a verb does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Compile and link host crates.
    Host,
    /// Compile and link the eBPF object.
    Bpf,
    /// Run rustfmt and clippy.
    Lint,
    /// Run the agent on this node.
    Agent,
    /// Run the lab.
    Lab,
    /// Run the tests that need a real kernel: the lab, container runtimes, other plugins.
    Test,
    /// Build and run the fuzz targets.
    Fuzz,
    /// Make container images, which take programs from this machine.
    Image,
    /// Boot kernels in virtual machines.
    Vm,
}

impl Part {
    /// Everything a developer needs.
    pub(crate) const ALL: &'static [Self] = &[
        Self::Host,
        Self::Bpf,
        Self::Lint,
        Self::Agent,
        Self::Lab,
        Self::Test,
        Self::Fuzz,
        Self::Image,
        Self::Vm,
    ];
}

/// A program (its name, or its path where that is fixed) and the Debian packages that hold it: the first that the release has is taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) packages: &'static [&'static str],
    /// Packages that it is useless without and does not depend on.
    pub(crate) with: &'static [&'static str],
    parts: &'static [Part],
}

const fn program(name: &'static str, packages: &'static [&'static str], parts: &'static [Part]) -> Program {
    Program { name, packages, with: &[], parts }
}

/// Order as printed.
const PROGRAMS: &[Program] = &[
    Program { with: &["libc6-dev"], ..program("cc", &["gcc"], &[Part::Host]) },
    program("nft", &["nftables"], &[Part::Agent, Part::Lab, Part::Image]),
    program("ip", &["iproute2"], &[Part::Lab]),
    program("iptables", &["iptables"], &[Part::Lab]),
    program("iptables-legacy", &["iptables"], &[Part::Image]),
    program("ethtool", &["ethtool"], &[Part::Lab]),
    program("sysctl", &["procps"], &[Part::Lab]),
    program("ping", &["iputils-ping"], &[Part::Lab]),
    program("tcpdump", &["tcpdump"], &[Part::Lab]),
    // Ubuntu has it in the tools of its kernels.
    program("bpftool", &["bpftool", "linux-tools-generic"], &[Part::Lab]),
    program("conntrack", &["conntrack"], &[Part::Lab]),
    program("iperf3", &["iperf3"], &[Part::Lab]),
    program("socat", &["socat"], &[Part::Lab]),
    // Runtimes find plugins here, whatever PATH is.
    program("/usr/lib/cni/bridge", &["containernetworking-plugins"], &[Part::Test]),
    program("podman", &["podman"], &[Part::Test]),
    program("conmon", &["conmon"], &[Part::Test]),
    program("crun", &["crun"], &[Part::Test]),
    // With ctr. Docker's archive has another package of the same.
    program("containerd", &["containerd", "containerd.io"], &[Part::Test]),
    // The page, as a browser shows it; without fonts it would be empty boxes.
    Program { with: &["fonts-dejavu-core"], ..program("chromium", &["chromium"], &[Part::Test]) },
    // With promtool.
    program("prometheus", &["prometheus"], &[Part::Test]),
    // libFuzzer comes as source.
    program("c++", &["g++"], &[Part::Fuzz]),
    program("qemu-system-x86_64", &["qemu-system-x86"], &[Part::Vm]),
    // With modprobe, which the kernel starts.
    program("depmod", &["kmod"], &[Part::Vm]),
];

/// Components of the Rust toolchain: name and the program that shows its presence.
const COMPONENTS: &[(&str, &str)] = &[("rustfmt", "rustfmt"), ("clippy", "cargo-clippy")];

/// Something that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Program(&'static Program),
    RustComponent(&'static str),
    /// No compiler for the BPF target.
    BpfCompiler,
    /// No bpf-linker, or one that cannot read what the compiler emits (LLVM of this major version).
    BpfLinker {
        llvm: u32,
        present: Option<u32>,
    },
}

impl Need {
    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Program(program) => format!("{} (package {})", program.name, program.packages.join(" or ")),
            Self::RustComponent(name) => format!("{name} (component of the Rust toolchain)"),
            Self::BpfCompiler => format!("a compiler for {}", toolchain::TARGET),
            Self::BpfLinker { llvm, present: None } => format!("bpf-linker (for LLVM {llvm})"),
            Self::BpfLinker { llvm, present: Some(present) } => {
                format!("bpf-linker for LLVM {llvm} (the one installed reads only up to LLVM {present})")
            }
        }
    }
}

/// What is on this machine.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) programs: BTreeSet<&'static str>,
    pub(crate) components: BTreeSet<&'static str>,
    pub(crate) bpf: Found,
}

/// [`Facts`] held against what some parts need.
#[derive(Debug, Default)]
pub(crate) struct Assessment {
    pub(crate) have: Vec<String>,
    pub(crate) missing: Vec<Need>,
}

impl Facts {
    /// Looks at files, and asks the BPF compiler for its version.
    pub(crate) fn probe() -> Self {
        let programs = PROGRAMS.iter().map(|program| program.name);
        let components = COMPONENTS.iter().filter(|(_, program)| has_beside_cargo(program));
        Self {
            programs: programs.filter(|name| find_program(name).is_some()).collect(),
            components: components.map(|(name, _)| *name).collect(),
            bpf: toolchain::probe(),
        }
    }

    /// What of the needs of `parts` is there and what is missing.
    pub(crate) fn assess(&self, parts: &[Part]) -> Assessment {
        let mut result = Assessment::default();
        for program in PROGRAMS.iter().filter(|program| program.parts.iter().any(|part| parts.contains(part)))
        {
            if self.programs.contains(program.name) {
                result.have.push(program.name.to_owned());
            } else {
                result.missing.push(Need::Program(program));
            }
        }
        if parts.contains(&Part::Lint) {
            for (name, _) in COMPONENTS {
                if self.components.contains(name) {
                    result.have.push((*name).to_owned());
                } else {
                    result.missing.push(Need::RustComponent(name));
                }
            }
        }
        if parts.contains(&Part::Bpf) {
            self.assess_bpf(&mut result);
        }
        result
    }

    fn assess_bpf(&self, result: &mut Assessment) {
        let Found { toolchain, linker } = &self.bpf;
        let Some(toolchain) = toolchain else {
            // Which linker is needed shows once there is a compiler.
            result.missing.push(Need::BpfCompiler);
            return;
        };
        result.have.push(toolchain.describe());
        match linker {
            Some(linker) if linker.fits(toolchain) => {
                result.have.push(format!("bpf-linker ({})", linker.path.display()));
            }
            other => {
                let present = other.as_ref().and_then(|linker| linker.llvm);
                result.missing.push(Need::BpfLinker { llvm: toolchain.llvm, present });
            }
        }
    }
}

/// Whether the toolchain of the cargo that runs xtask has this program (rustup's proxies in PATH always
/// exist, even where the component does not).
fn has_beside_cargo(program: &str) -> bool {
    let cargo = env::var_os("CARGO").map(PathBuf::from);
    match cargo.as_deref().and_then(|cargo| cargo.parent()).filter(|dir| !dir.as_os_str().is_empty()) {
        Some(dir) => dir.join(program).is_file(),
        None => find_program(program).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toolchain::{Compiler, Linker, Toolchain};

    fn complete() -> Facts {
        Facts {
            programs: PROGRAMS.iter().map(|program| program.name).collect(),
            components: COMPONENTS.iter().map(|(name, _)| *name).collect(),
            bpf: Found {
                toolchain: Some(Toolchain {
                    compiler: Compiler::Prebuilt("/usr/bin/rustc".into()),
                    llvm: 22,
                }),
                linker: Some(Linker { path: "/bin/bpf-linker".into(), llvm: Some(22) }),
            },
        }
    }

    fn missing(facts: &Facts, parts: &[Part]) -> Vec<Need> {
        facts.assess(parts).missing
    }

    #[test]
    fn nothing_is_missing_on_a_complete_machine() {
        let assessment = complete().assess(Part::ALL);
        assert_eq!(assessment.missing, []);
        assert_eq!(assessment.have.len(), PROGRAMS.len() + COMPONENTS.len() + 2);
    }

    #[test]
    fn building_needs_no_test_tools() {
        let mut facts = complete();
        facts.programs = BTreeSet::from(["cc"]);
        facts.components.clear();
        assert_eq!(missing(&facts, &[Part::Host, Part::Bpf]), []);
        assert!(missing(&facts, &[Part::Lab]).len() > 5);
    }

    #[test]
    fn the_agent_needs_nft_only() {
        let facts = Facts::default();
        let needs = missing(&facts, &[Part::Agent]);
        assert!(matches!(needs[..], [Need::Program(Program { name: "nft", .. })]), "{needs:?}");
    }

    #[test]
    fn the_linker_is_asked_for_once_the_compiler_is_known() {
        let mut facts = complete();
        facts.bpf = Found::default();
        assert_eq!(missing(&facts, &[Part::Bpf]), [Need::BpfCompiler]);
        facts.bpf = Found { linker: None, ..complete().bpf };
        assert_eq!(missing(&facts, &[Part::Bpf]), [Need::BpfLinker { llvm: 22, present: None }]);
    }

    #[test]
    fn a_linker_that_is_too_old_is_missing() {
        let mut facts = complete();
        facts.bpf.linker = Some(Linker { path: "/bin/bpf-linker".into(), llvm: Some(21) });
        assert_eq!(missing(&facts, &[Part::Bpf]), [Need::BpfLinker { llvm: 22, present: Some(21) }]);
    }

    #[test]
    fn every_program_belongs_to_a_part_and_a_package() {
        for program in PROGRAMS {
            assert!(!program.parts.is_empty() && !program.packages.is_empty(), "{}", program.name);
        }
    }
}

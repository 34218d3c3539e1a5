//! Makes sure that what a verb needs is installed, and installs it where that can be done without asking.
//!
//! [`need`] looks and says what is missing, [`plan`] decides what to do about it (both pure but for the
//! looking), this file does it. Installing can bring to light further needs (which LLVM the linker must
//! have is known once the compiler is there), so look, plan and do are repeated until nothing is missing.
//!
//! Where nothing is missing neither apt nor rustup is called: [`ensure`] then costs little more than one
//! start of the compiler.

mod apt;
mod need;
mod plan;

use std::{env, ffi::OsString, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::need::Part;
use self::{
    need::{Facts, Need},
    plan::{Means, Step},
};
use crate::{
    toolchain,
    workspace::{self, execute},
};

/// Version that the lock file of this project was tested with.
const LINKER_VERSION: &str = "0.13.0";
/// Compiler first, then the linker that fits it, then nothing left; one to spare.
const ROUNDS: usize = 4;

/// Installs what `parts` need; says nothing if nothing is missing.
pub(crate) fn ensure(parts: &[Part]) -> Result<()> {
    let mut updated = false;
    let mut before = Vec::new();
    for _ in 0..ROUNDS {
        let needs = Facts::probe().assess(parts).missing;
        if needs.is_empty() {
            return Ok(());
        }
        if needs == before {
            break;
        }
        before.clone_from(&needs);
        act(&needs, &mut updated)?;
    }
    bail!("still missing after installing it: {}", list(&before))
}

/// Says what is there, installs the rest.
pub(crate) fn install(parts: &[Part]) -> Result<()> {
    let assessment = Facts::probe().assess(parts);
    for have in &assessment.have {
        eprintln!("have     {have}");
    }
    if assessment.missing.is_empty() {
        return Ok(());
    }
    ensure(parts)?;
    eprintln!("everything is installed");
    Ok(())
}

/// Says what is there and what is missing; fails if anything is.
pub(crate) fn check(parts: &[Part]) -> Result<()> {
    let assessment = Facts::probe().assess(parts);
    for have in &assessment.have {
        eprintln!("have     {have}");
    }
    for need in &assessment.missing {
        eprintln!("missing  {}", need.describe());
    }
    if assessment.missing.is_empty() {
        return Ok(());
    }
    bail!("{} missing: run cargo xtask setup", assessment.missing.len())
}

/// Does what can be done about `needs`; fails, with what to do by hand, when that is not all.
fn act(needs: &[Need], updated: &mut bool) -> Result<()> {
    for need in needs {
        eprintln!("missing  {}", need.describe());
    }
    let root = workspace::is_root();
    let packages = plan::packages(needs);
    let apt = if packages.is_empty() {
        apt::Archive::Absent
    } else {
        if root && !*updated && apt::is_present() {
            eprintln!("running  apt-get update");
            apt::update()?;
            *updated = true;
        }
        apt::Archive::query(&packages)
    };
    let means = Means {
        root,
        apt,
        rustup: toolchain::rustup().is_some(),
        debian_compiler: toolchain::wish().is_none_or(|wish| wish == toolchain::DEBIAN),
        llvms: plan::installed_llvms(),
    };
    let (by_hand, steps): (Vec<_>, Vec<_>) =
        plan::plan(needs, &means).into_iter().partition(|step| matches!(step, Step::ByHand(_)));
    // Said first where there is more to do: a step that fails must not hide it.
    for step in by_hand.iter().filter(|_| !steps.is_empty()) {
        eprintln!("by hand  {step}");
    }
    for step in &steps {
        eprintln!("running  {step}");
        match step {
            Step::Packages(packages) => apt::install(packages)?,
            Step::RustComponents(components) => add_components(components)?,
            Step::Linker { llvm } => install_linker(*llvm)?,
            Step::ByHand(_) => {}
        }
    }
    if by_hand.is_empty() {
        return Ok(());
    }
    let by_hand: Vec<_> = by_hand.iter().map(Step::to_string).collect();
    bail!("not everything can be installed from here; do by hand:\n  {}", by_hand.join("\n  "))
}

fn list(needs: &[Need]) -> String {
    needs.iter().map(Need::describe).collect::<Vec<_>>().join(", ")
}

fn add_components(components: &[&str]) -> Result<()> {
    let rustup = toolchain::rustup().context("rustup is not in PATH")?;
    let mut command = Command::new(rustup);
    command.args(["component", "add"]).args(components);
    if let Some(toolchain) = env::var_os("RUSTUP_TOOLCHAIN") {
        command.arg("--toolchain").arg(toolchain);
    }
    execute(&mut command)
}

/// Builds bpf-linker against Debian's LLVM, outside of this workspace and its settings.
fn install_linker(llvm: u32) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(env::temp_dir()).args(["install", "bpf-linker", "--locked", "--force"]);
    command.args([
        "--version",
        LINKER_VERSION,
        "--no-default-features",
        "--features",
        &format!("llvm-{llvm}"),
    ]);
    for variable in
        ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC"]
    {
        command.env_remove(variable);
    }
    // Its release profile has full debug information: fifteen times the size, and slower to build.
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "0").env("LLVM_PREFIX", plan::llvm_prefix(llvm));
    execute(&mut command)?;
    let installed = toolchain::cargo_home().join("bin/bpf-linker");
    if Path::new(&installed).is_file() || toolchain::find_program("bpf-linker").is_some() {
        return Ok(());
    }
    bail!("cargo install put bpf-linker neither into {} nor into PATH", installed.display())
}

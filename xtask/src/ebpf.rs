//! Builds the eBPF object: package overlay-ebpf, binary `overlay`, profile `bpf`, for the BPF target.
//!
//! It has a target directory of its own (`target/bpf`), because another compiler builds it: sharing one
//! would make both rebuild each other's host crates. The result is checked ([`object::check`]) and
//! copied to `target/bpf/overlay.o`, atomically and only when it changed, so that userspace, which embeds
//! it, is rebuilt only when it must be.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    object,
    toolchain::{self, Compiler, Linker, TARGET, Toolchain},
    workspace::{self, Workspace},
};

const PACKAGE: &str = "overlay-ebpf";
const BINARY: &str = "overlay";
const PROFILE: &str = "bpf";
/// The feature of [`Schema::Next`], of userspace as well.
pub(crate) const NEXT_SCHEMA: &str = "next-schema";
/// The same as arguments of cargo.
const SELECTION: [&str; 6] = ["--package", PACKAGE, "--bin", BINARY, "--profile", PROFILE];

/// Crates that need unstable features (inline BPF assembly), which a stable compiler has to be told.
/// By name: `1` would make cargo and build scripts believe that everything may be unstable.
const UNSTABLE_CRATES: &str = "aya_ebpf";

/// Variables of the build around xtask, or of its user, that must not reach a build with another compiler.
/// `cargo run` sets some of them for xtask itself.
const FOREIGN: &[&str] = &[
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_BOOTSTRAP",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
];

/// Which of the two objects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schema {
    /// What is delivered.
    Own,
    /// The rehearsal of the schema after it, for the tests of upgrades.
    Next,
}

/// Everything that the command depends on.
struct Plan<'a> {
    workspace: &'a Workspace,
    schema: Schema,
    toolchain: &'a Toolchain,
    linker: &'a Path,
}

/// Builds and checks the object; returns its path.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    build_schema(workspace, Schema::Own)
}

/// As [`build`], of another schema.
pub(crate) fn build_schema(workspace: &Workspace, schema: Schema) -> Result<PathBuf> {
    let (toolchain, linker) = tools()?;
    let plan = Plan { workspace, schema, toolchain: &toolchain, linker: &linker.path };
    let mut command = plan.command()?;
    workspace::execute(&mut command).with_context(|| {
        let linker = linker.path.display();
        format!("build the eBPF object with {} and {linker}", toolchain.describe())
    })?;

    let built = target_dir(workspace).join(TARGET).join(PROFILE).join(BINARY);
    let data = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    object::check(&data).with_context(|| format!("check {}", built.display()))?;
    let object = match schema {
        Schema::Own => workspace.object(),
        Schema::Next => workspace.object().with_file_name("overlay-next.o"),
    };
    publish(&data, &object).with_context(|| format!("write {}", object.display()))?;
    Ok(object)
}

/// Fails when the compiler has warnings about the eBPF programs. To be called after [`build`]: cargo then
/// only repeats what the compiler said, at no cost.
pub(crate) fn deny_warnings(workspace: &Workspace) -> Result<()> {
    let (toolchain, linker) = tools()?;
    let plan = Plan { workspace, schema: Schema::Own, toolchain: &toolchain, linker: &linker.path };
    let mut command = plan.command()?;
    let output = command.stdin(Stdio::null()).output().context("start cargo")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() && !text.lines().any(|line| line.starts_with("warning")) {
        return Ok(());
    }
    eprint!("{text}");
    bail!("{PACKAGE} has compiler warnings for {TARGET}")
}

/// clippy over the eBPF programs.
///
/// They are checked for the host, not for the BPF target: rustup's clippy has no core library for the
/// latter and cannot read that of another compiler. All code is the same but for what aya itself selects by
/// target; what the compiler says about the BPF target is covered by [`deny_warnings`].
pub(crate) fn clippy(workspace: &Workspace) -> Result<()> {
    workspace::execute(&mut host_command(workspace, "clippy"))
}

/// Documentation of the eBPF programs, for its warnings; for the host like [`clippy`].
pub(crate) fn document(workspace: &Workspace) -> Result<()> {
    workspace::execute(&mut host_command(workspace, "rustdoc"))
}

fn host_command(workspace: &Workspace, verb: &str) -> Command {
    let mut command = workspace.cargo();
    for variable in FOREIGN {
        command.env_remove(variable);
    }
    command.env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES).args([verb, "--quiet"]).args(SELECTION);
    command.arg("--target-dir").arg(target_dir(workspace)).args(["--", "-Dwarnings"]);
    command
}

fn tools() -> Result<(Toolchain, Linker)> {
    let found = toolchain::probe();
    let toolchain = found.toolchain.context("no compiler for the eBPF target: run cargo xtask setup")?;
    let linker = found.linker.context("bpf-linker is not installed: run cargo xtask setup")?;
    Ok((toolchain, linker))
}

fn target_dir(workspace: &Workspace) -> PathBuf {
    workspace.target().join("bpf")
}

impl Plan<'_> {
    fn command(&self) -> Result<Command> {
        let Self { workspace, schema, toolchain, linker } = self;
        let mut command = match &toolchain.compiler {
            Compiler::Prebuilt(_) => workspace.cargo(),
            Compiler::Nightly(dir) => {
                let mut command = Command::new(dir.join("bin/cargo"));
                command.current_dir(workspace.root());
                command
            }
        };
        for variable in FOREIGN {
            command.env_remove(variable);
        }
        command.arg("build").args(SELECTION).args(["--target", TARGET]);
        if *schema == Schema::Next {
            command.args(["--features", NEXT_SCHEMA]);
        }
        command.arg("--target-dir").arg(target_dir(workspace));
        match &toolchain.compiler {
            Compiler::Prebuilt(rustc) => {
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES);
            }
            Compiler::Nightly(dir) => {
                // By path: whichever rustc comes first in PATH, it may not be rustup's proxy.
                command.env("RUSTC", dir.join("bin/rustc"));
                command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
                command.args(["-Z", "build-std=core"]);
            }
        }
        let flags = rustflags(std::env::consts::ARCH, linker)?;
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        Ok(command)
    }
}

/// Flags for the BPF target on a machine of this architecture.
fn rustflags(arch: &str, linker: &Path) -> Result<Vec<String>> {
    let linker = linker.to_str().with_context(|| format!("{} is not UTF-8", linker.display()))?;
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("-Clinker={linker}"),
        // BTF needs both: type information in the bitcode, and the linker told to convert it.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    // Word loads from packet headers at any offset: half the instructions in header parsing. Only where
    // the kernel's verifier accepts it (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS).
    if matches!(arch, "x86_64" | "aarch64") {
        flags.push("-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned());
    }
    Ok(flags)
}

/// Writes `data` to `path` in one step, unless it is there already.
fn publish(data: &[u8], path: &Path) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == data) {
        return Ok(());
    }
    let temporary = path.with_extension(format!("o.{}", std::process::id()));
    let written = fs::write(&temporary, data).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // It may not exist; the first error says why.
        let _ = fs::remove_file(&temporary);
    }
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn command(compiler: Compiler) -> Command {
        let workspace = Workspace::locate().unwrap();
        let toolchain = Toolchain { compiler, llvm: 22 };
        let linker = Path::new("/x/bpf-linker");
        let plan = Plan { workspace: &workspace, schema: Schema::Own, toolchain: &toolchain, linker };
        plan.command().unwrap()
    }

    /// The value a command sets; None for a variable that it removes or leaves alone.
    fn variable(command: &Command, name: &str) -> Option<String> {
        let (_, value) = command.get_envs().find(|(key, _)| *key == OsStr::new(name))?;
        value.map(|value| value.to_string_lossy().into_owned())
    }

    fn removes(command: &Command, name: &str) -> bool {
        command.get_envs().any(|(key, value)| key == OsStr::new(name) && value.is_none())
    }

    #[test]
    fn the_prebuilt_compiler_is_run_by_the_same_cargo() {
        let command = command(Compiler::Prebuilt("/usr/bin/rustc".into()));
        assert!(workspace::line(&command).starts_with("cargo build --package overlay-ebpf --bin overlay "));
        assert_eq!(variable(&command, "RUSTC").as_deref(), Some("/usr/bin/rustc"));
        assert_eq!(variable(&command, "RUSTC_BOOTSTRAP").as_deref(), Some("aya_ebpf"));
        assert!(!workspace::line(&command).contains("build-std"));
        assert!(removes(&command, "CARGO_TARGET_DIR"));
    }

    #[test]
    fn nightly_builds_core_and_inherits_no_compiler() {
        let command = command(Compiler::Nightly("/toolchains/nightly-x86_64".into()));
        let line = workspace::line(&command);
        assert_eq!(command.get_program(), "/toolchains/nightly-x86_64/bin/cargo");
        assert!(line.contains("-Z build-std=core"), "{line}");
        assert_eq!(variable(&command, "RUSTC").as_deref(), Some("/toolchains/nightly-x86_64/bin/rustc"));
        for name in ["RUSTC_BOOTSTRAP", "RUSTUP_TOOLCHAIN", "CARGO", "RUSTFLAGS"] {
            assert!(removes(&command, name), "{name}");
        }
    }

    #[test]
    fn both_get_the_same_flags_and_a_target_directory_of_their_own() {
        let prebuilt = command(Compiler::Prebuilt("/usr/bin/rustc".into()));
        let flags = variable(&prebuilt, "CARGO_ENCODED_RUSTFLAGS").unwrap();
        assert!(flags.split('\x1f').any(|flag| flag == "-Clinker=/x/bpf-linker"), "{flags}");
        assert!(flags.contains("-Clink-arg=--btf"), "{flags}");
        let target_dir = target_dir(&Workspace::locate().unwrap());
        assert!(prebuilt.get_args().any(|argument| argument == target_dir.as_os_str()));
    }

    #[test]
    fn misaligned_loads_are_for_machines_that_can() {
        let misaligned = |arch: &str| {
            rustflags(arch, Path::new("l")).unwrap().iter().any(|flag| flag.contains("misaligned"))
        };
        assert!(misaligned("x86_64"));
        assert!(misaligned("aarch64"));
        assert!(!misaligned("riscv64"));
    }

    #[test]
    fn an_unchanged_object_keeps_its_time() {
        let path = std::env::temp_dir().join(format!("overlay-xtask-publish-{}.o", std::process::id()));
        publish(b"one", &path).unwrap();
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        publish(b"one", &path).unwrap();
        let unchanged = fs::metadata(&path).unwrap().modified().unwrap();
        publish(b"two", &path).unwrap();
        let content = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(time, unchanged);
        assert_eq!(content, b"two");
    }
}

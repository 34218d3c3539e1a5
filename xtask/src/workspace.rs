//! Where the workspace and its build results are, and how xtask calls cargo.
//!
//! Host crates are always built with the cargo that runs xtask and with `OVERLAY_BPF_OBJECT` naming the
//! eBPF object, so that overlay-userspace/build.rs never has to guess. Everything that a child prints goes
//! to standard error.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{ebpf, toolchain};

/// Environment variable that names the eBPF object for overlay-userspace/build.rs and for tests.
pub(crate) const OBJECT_VARIABLE: &str = "OVERLAY_BPF_OBJECT";

/// Cargo profile of a host build.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
    /// For processors that are emulated (Cargo.toml).
    Emulated,
}

impl Profile {
    /// Cargo's name of it.
    const fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
            Self::Emulated => "emulated",
        }
    }
}

/// The checkout that xtask belongs to.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    cargo: OsString,
}

impl Workspace {
    /// Finds the workspace from what `cargo run` tells its child.
    pub(crate) fn locate() -> Result<Self> {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = manifest_dir
            .parent()
            .filter(|root| root.join("Cargo.toml").is_file())
            .with_context(|| format!("no workspace above {}: run it as cargo xtask", manifest_dir.display()))?
            .to_path_buf();
        let executable = env::current_exe().context("find the path of xtask itself")?;
        let target = target_dir_of(&executable).unwrap_or_else(|| root.join("target"));
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Self { root, target, cargo })
    }

    /// Directory of the workspace's Cargo.toml.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target directory (of host builds).
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Where [`crate::ebpf::build`] puts the eBPF object.
    pub(crate) fn object(&self) -> PathBuf {
        self.target.join("bpf").join("overlay.o")
    }

    /// The cargo that runs xtask, started at the workspace root.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        command
    }

    /// Builds test programs of a package and returns their paths in the same order.
    pub(crate) fn build_tests(
        &self,
        profile: Profile,
        package: &str,
        tests: &[&str],
        object: &Path,
    ) -> Result<Vec<PathBuf>> {
        let mut command = self.host_cargo(object);
        command.args(["test", "--no-run", "--profile", profile.name(), "--package", package]);
        for test in tests {
            command.args(["--test", test]);
        }
        let built = produced(&mut command)?;
        let path = |test: &&str| {
            built
                .iter()
                .find(|path| is_tests(path, test))
                .cloned()
                .with_context(|| format!("find the tests {test} in what cargo built"))
        };
        tests.iter().map(path).collect()
    }

    /// `cargo` for host crates, which embed `object`.
    pub(crate) fn host_cargo(&self, object: &Path) -> Command {
        let mut command = self.cargo();
        command.env(OBJECT_VARIABLE, object);
        command
    }

    /// Builds binaries of the default members and returns their paths in the same order.
    pub(crate) fn build<const N: usize>(
        &self,
        profile: Profile,
        binaries: [&str; N],
        object: &Path,
    ) -> Result<[PathBuf; N]> {
        let mut command = self.host_cargo(object);
        command.args(["build", "--profile", profile.name()]);
        build(command, binaries)
    }

    /// Builds the overlay binary with the rehearsal of the next schema, `object` of which it embeds, and puts it aside:
    /// `target/next/overlay`. To be called before the delivered one is built, whose place it takes in the meantime; so
    /// both share all dependencies.
    pub(crate) fn build_next(&self, object: &Path) -> Result<PathBuf> {
        let mut command = self.host_cargo(object);
        command.args(["build", "--package", "overlay-userspace", "--features", ebpf::NEXT_SCHEMA]);
        let [built] = build(command, ["overlay"])?;
        self.put_aside(&built, "overlay")
    }

    /// Copies a build to the directory of the next schema.
    fn put_aside(&self, built: &Path, name: &str) -> Result<PathBuf> {
        let dir = self.target.join("next");
        let (path, fresh) = (dir.join(name), dir.join(format!("{name}.new")));
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        fs::copy(built, &fresh)
            .and_then(|_| fs::rename(&fresh, &path))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Builds binaries that need nothing of the system that they run on but its kernel: no shared library, no
    /// loader, no path of this machine inside. For musl, where that target is installed, else glibc.
    pub(crate) fn build_static<const N: usize>(
        &self,
        binaries: [&str; N],
        object: &Path,
    ) -> Result<[PathBuf; N]> {
        build(self.static_command(object)?, binaries)
    }

    /// As [`Self::build_next`], static: `target/next/overlay-static`.
    pub(crate) fn build_next_static(&self, object: &Path) -> Result<PathBuf> {
        let mut command = self.static_command(object)?;
        command.args(["--package", "overlay-userspace", "--features", ebpf::NEXT_SCHEMA]);
        let [built] = build(command, ["overlay"])?;
        self.put_aside(&built, "overlay-static")
    }

    fn static_command(&self, object: &Path) -> Result<Command> {
        let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
        let flags = [
            "-Ctarget-feature=+crt-static".to_owned(),
            remap(&self.root, "/overlay"),
            remap(&toolchain::cargo_home(), "/cargo"),
        ];
        let mut command = self.host_cargo(object);
        for variable in ["CARGO_BUILD_TARGET", "RUSTFLAGS"] {
            command.env_remove(variable);
        }
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        // With a target named, the flags are not for build scripts and macros, which must be dynamic.
        command.args(["build", "--profile", "image", "--target", &self.static_target()?]);
        Ok(command)
    }

    /// The host's musl target where its standard library is installed, else the host itself.
    fn static_target(&self) -> Result<String> {
        let host = self.host()?;
        let musl = host.replace("-gnu", "-musl");
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.current_dir(&self.root).args(["--print", "target-libdir", "--target", &musl]);
        let output =
            rustc.stderr(Stdio::null()).output().with_context(|| format!("start {}", line(&rustc)))?;
        let installed =
            output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir();
        Ok(if installed { musl } else { host })
    }

    /// The triple of the machine that cargo runs on.
    pub(crate) fn host(&self) -> Result<String> {
        let output = self.cargo().arg("-vV").output().context("start cargo -vV")?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.lines().find_map(|line| line.strip_prefix("host: ")) {
            Some(host) => Ok(host.to_owned()),
            None => bail!("cargo -vV does not name the host"),
        }
    }
}

/// Runs a `cargo build` of binaries of the default members and returns their paths in the same order.
fn build<const N: usize>(mut command: Command, binaries: [&str; N]) -> Result<[PathBuf; N]> {
    for binary in binaries {
        command.args(["--bin", binary]);
    }
    let built = produced(&mut command)?;
    let mut paths = [const { PathBuf::new() }; N];
    for (path, binary) in paths.iter_mut().zip(binaries) {
        let built = built.iter().find(|built| built.file_name() == Some(OsStr::new(binary)));
        path.clone_from(built.with_context(|| format!("find the binary {binary} in what cargo built"))?);
    }
    Ok(paths)
}

/// Whether cargo gave this name to the tests called `test`: it adds a hash, to tell them from the package's binaries, which
/// it builds beside them.
fn is_tests(path: &Path, test: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('-').is_some_and(|(name, hash)| {
        name == test && hash.len() == 16 && hash.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

/// Runs a cargo that builds; the paths of the executables that it has built.
fn produced(command: &mut Command) -> Result<Vec<PathBuf>> {
    command.arg("--message-format=json-render-diagnostics");
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {}", line(command)))?;
    if !output.status.success() {
        bail!("{} failed", line(command));
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// Runs a command with its output on standard error; fails when it does.
pub(crate) fn execute(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .with_context(|| format!("start {}", line(command)))?;
    if status.success() { Ok(()) } else { Err(anyhow!("{} failed ({status})", line(command))) }
}

/// Program and arguments as one would type them, for messages.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The target directory that holds a build result, known by the files that cargo keeps there. This
/// respects every way to configure it without asking cargo again.
fn target_dir_of(executable: &Path) -> Option<PathBuf> {
    let is_target =
        |dir: &&Path| [".rustc_info.json", "CACHEDIR.TAG"].iter().any(|file| dir.join(file).is_file());
    executable.ancestors().find(is_target).map(Path::to_path_buf)
}

/// Paths of the executables in cargo's JSON messages.
fn executables(messages: &str) -> Vec<PathBuf> {
    const KEY: &str = r#""executable":""#;
    messages
        .lines()
        .filter_map(|message| {
            let (_, rest) = message.split_once(KEY)?;
            let (path, _) = rest.split_once(r#"","#).or_else(|| rest.split_once(r#""}"#))?;
            Some(PathBuf::from(path.replace(r"\\", r"\")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_from_cargo_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","filenames":["/t/liba.rlib"],"executable":null,"fresh":true}"#,
            "\n",
            r#"{"reason":"compiler-artifact","filenames":["/t/debug/overlay"],"executable":"/t/debug/overlay","fresh":true}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executables(messages), [PathBuf::from("/t/debug/overlay")]);
    }

    #[test]
    fn tests_are_told_from_a_binary_whose_name_begins_alike() {
        assert!(is_tests(Path::new("/t/debug/deps/cni-31cf8cdf38bcaadc"), "cni"));
        for other in ["/t/debug/cni-conformance", "/t/debug/deps/cni_conformance-02cd7ac9d72421d7", "/t/cni"]
        {
            assert!(!is_tests(Path::new(other), "cni"), "{other}");
        }
    }

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["build", "--release"]);
        assert_eq!(line(&command), "cargo build --release");
    }

    #[test]
    fn xtask_itself_lies_in_the_target_directory() {
        let executable = env::current_exe().unwrap();
        let target = target_dir_of(&executable).unwrap();
        assert!(executable.starts_with(&target), "{}", target.display());
    }
}

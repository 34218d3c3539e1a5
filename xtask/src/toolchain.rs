//! Which compiler and linker build the eBPF object.
//!
//! Two compilers will do: Debian's `rustc-web` with its prebuilt core library for the BPF targets, or a
//! rustup nightly with `rust-src`, from which cargo builds core. Both emit LLVM bitcode that `bpf-linker`
//! turns into the object; it can only read bitcode of an LLVM not newer than its own.
//!
//! [`probe`] looks at files and asks at most the compilers themselves (no rustup, no dpkg: tens of
//! milliseconds); [`choose`] decides and is pure.

use std::{
    borrow::Cow,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Environment variable to insist on one compiler: `debian`, `nightly`, or the name of a rustup toolchain.
const WISH_VARIABLE: &str = "OVERLAY_BPF_TOOLCHAIN";

/// The wish for Debian's compiler.
pub(crate) const DEBIAN: &str = "debian";

/// Target of the eBPF object: the byte order of the machine that xtask runs on.
pub(crate) const TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Debian's compiler. The path is fixed: rustup's proxies come first in PATH.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler for the BPF target and the major version of its LLVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) llvm: u32,
}

/// How the compiler is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// rustc with a prebuilt core library for the BPF target (Debian's rustc-web).
    Prebuilt(PathBuf),
    /// Directory of a rustup toolchain with rust-src.
    Nightly(PathBuf),
}

impl Toolchain {
    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        let Self { compiler, llvm } = self;
        match compiler {
            Compiler::Prebuilt(rustc) => {
                format!("{} with a core library for {TARGET} (LLVM {llvm})", rustc.display())
            }
            Compiler::Nightly(dir) => format!("rustup's {} with rust-src (LLVM {llvm})", name_of(dir)),
        }
    }
}

/// An installed bpf-linker; `llvm` is the major version it was built against where cargo recorded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    pub(crate) llvm: Option<u32>,
}

impl Linker {
    /// Whether it can read what `toolchain` emits. Trusted where its LLVM is unknown (prebuilt releases).
    pub(crate) fn fits(&self, toolchain: &Toolchain) -> bool {
        self.llvm.is_none_or(|llvm| llvm >= toolchain.llvm)
    }
}

/// What [`probe`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) toolchain: Option<Toolchain>,
    pub(crate) linker: Option<Linker>,
}

/// Looks for a compiler and a linker on this machine.
pub(crate) fn probe() -> Found {
    let linker = find_linker();
    let wish = wish();
    let debian = || debian_toolchain(Path::new(DEBIAN_RUSTC), Path::new("/usr/lib/rustlib"));
    let nightlies = nightlies(&rustup_toolchains());
    let candidates = std::iter::once_with(debian)
        .chain(nightlies.iter().map(|dir| nightly_toolchain(dir)))
        .flatten()
        .filter(|candidate| wish.as_deref().is_none_or(|wish| is_wished(&candidate.compiler, wish)));
    Found { toolchain: choose(candidates, linker.as_ref()), linker }
}

/// The compiler that the user insists on.
pub(crate) fn wish() -> Option<String> {
    env::var(WISH_VARIABLE).ok().filter(|wish| !wish.is_empty())
}

/// The first candidate that works with the linker that is installed, else the first candidate.
///
/// `candidates` is asked lazily: each may cost the start of a compiler.
pub(crate) fn choose(
    candidates: impl IntoIterator<Item = Toolchain>,
    linker: Option<&Linker>,
) -> Option<Toolchain> {
    let mut first = None;
    for candidate in candidates {
        if linker.is_some_and(|linker| linker.fits(&candidate)) {
            return Some(candidate);
        }
        first.get_or_insert(candidate);
    }
    first
}

fn is_wished(compiler: &Compiler, wish: &str) -> bool {
    match compiler {
        Compiler::Prebuilt(_) => wish == DEBIAN,
        Compiler::Nightly(dir) => {
            let name = name_of(dir);
            name == wish || name.strip_prefix(wish).is_some_and(|rest| rest.starts_with('-'))
        }
    }
}

/// Debian's compiler, if it has core for the BPF target and is new enough for this workspace.
fn debian_toolchain(rustc: &Path, rustlib: &Path) -> Option<Toolchain> {
    let libraries = fs::read_dir(rustlib.join(TARGET).join("lib")).ok()?;
    libraries.flatten().find(|file| file.file_name().to_string_lossy().starts_with("libcore-"))?;
    let version = Version::of(rustc)?;
    (version.release >= minimum_release())
        .then(|| Toolchain { compiler: Compiler::Prebuilt(rustc.to_path_buf()), llvm: version.llvm })
}

fn nightly_toolchain(dir: &Path) -> Option<Toolchain> {
    let version = Version::of(&dir.join("bin/rustc"))?;
    Some(Toolchain { compiler: Compiler::Nightly(dir.to_path_buf()), llvm: version.llvm })
}

/// The name of a rustup toolchain is that of its directory.
fn name_of(dir: &Path) -> Cow<'_, str> {
    dir.file_name().unwrap_or_default().to_string_lossy()
}

/// Directories of the nightly toolchains that have rust-src: plain `nightly` first, then the newest date.
fn nightlies(toolchains: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(toolchains) else { return Vec::new() };
    let mut found: Vec<(bool, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let rest = name.strip_prefix("nightly")?;
            let dated = rest.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit());
            let path = entry.path();
            path.join("lib/rustlib/src/rust/library/core").is_dir().then_some((!dated, path))
        })
        .collect();
    found.sort();
    found.reverse();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Release (major, minor) and LLVM major version of a compiler.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    release: (u32, u32),
    llvm: u32,
}

impl Version {
    fn of(rustc: &Path) -> Option<Self> {
        let output = Command::new(rustc).arg("-vV").output().ok()?;
        Self::parse(std::str::from_utf8(&output.stdout).ok()?)
    }

    /// Parses the output of `rustc -vV`.
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
        Some(Self { release: parse_release(field("release: ")?)?, llvm })
    }
}

/// `1.96.0+dfsg1-1` → (1, 96).
pub(crate) fn parse_release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `rust-version` of the workspace.
pub(crate) fn minimum_release() -> (u32, u32) {
    parse_release(env!("CARGO_PKG_RUST_VERSION")).unwrap_or_default()
}

fn find_linker() -> Option<Linker> {
    let home = cargo_home();
    let own = home.join("bin/bpf-linker");
    if own.is_file() {
        let record = fs::read_to_string(home.join(".crates2.json")).unwrap_or_default();
        return Some(Linker { path: own, llvm: linker_llvm(&record) });
    }
    find_program("bpf-linker").map(|path| Linker { path, llvm: None })
}

/// The `llvm-N` feature of bpf-linker in cargo's record of installed crates (`.crates2.json`).
fn linker_llvm(record: &str) -> Option<u32> {
    let (_, entry) = record.split_once(r#""bpf-linker "#)?;
    let (_, features) = entry.split_once(r#""features":["#)?;
    let (features, _) = features.split_once(']')?;
    features.split(',').find_map(|feature| feature.trim_matches('"').strip_prefix("llvm-")?.parse().ok())
}

/// A program in PATH or in the directories for root's programs, which PATH of other users lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// `CARGO_HOME`, by default `~/.cargo`.
pub(crate) fn cargo_home() -> PathBuf {
    home_of("CARGO_HOME", ".cargo")
}

/// The rustup program, also where PATH lacks cargo's directory.
pub(crate) fn rustup() -> Option<PathBuf> {
    let own = cargo_home().join("bin/rustup");
    if own.is_file() { Some(own) } else { find_program("rustup") }
}

fn rustup_toolchains() -> PathBuf {
    home_of("RUSTUP_HOME", ".rustup").join("toolchains")
}

fn home_of(variable: &str, default: &str) -> PathBuf {
    env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map_or_else(|| env::home_dir().unwrap_or_default().join(default), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian(llvm: u32) -> Toolchain {
        Toolchain { compiler: Compiler::Prebuilt(DEBIAN_RUSTC.into()), llvm }
    }

    fn nightly(name: &str, llvm: u32) -> Toolchain {
        Toolchain { compiler: Compiler::Nightly(name.into()), llvm }
    }

    fn linker(llvm: Option<u32>) -> Linker {
        Linker { path: "/bin/bpf-linker".into(), llvm }
    }

    #[test]
    fn a_toolchain_that_works_with_the_installed_linker_is_preferred() {
        let candidates = [nightly("nightly", 23), debian(22)];
        assert_eq!(choose(candidates.clone(), Some(&linker(Some(22)))), Some(debian(22)));
        assert_eq!(choose(candidates, Some(&linker(None))), Some(nightly("nightly", 23)));
    }

    #[test]
    fn without_a_linker_the_first_toolchain_is_taken() {
        assert_eq!(choose([debian(22), nightly("nightly", 22)], None), Some(debian(22)));
        assert_eq!(choose([], None), None);
    }

    #[test]
    fn no_compiler_is_started_after_a_fitting_one() {
        let candidates = [22, 23].into_iter().inspect(|&llvm| assert_eq!(llvm, 22)).map(debian);
        assert_eq!(choose(candidates, Some(&linker(Some(22)))), Some(debian(22)));
    }

    #[test]
    fn a_linker_reads_bitcode_up_to_its_own_llvm() {
        assert!(linker(Some(23)).fits(&debian(22)));
        assert!(linker(Some(22)).fits(&debian(22)));
        assert!(!linker(Some(21)).fits(&debian(22)));
        assert!(linker(None).fits(&debian(22)));
    }

    #[test]
    fn a_wish_names_the_kind_or_the_toolchain() {
        let dated = Compiler::Nightly("nightly-2026-05-20-x86_64-unknown-linux-gnu".into());
        assert!(is_wished(&dated, "nightly"));
        assert!(is_wished(&dated, "nightly-2026-05-20"));
        assert!(!is_wished(&dated, "nightly-2026-05-2"));
        assert!(!is_wished(&dated, "debian"));
        assert!(is_wished(&Compiler::Prebuilt(DEBIAN_RUSTC.into()), "debian"));
    }

    #[test]
    fn compiler_versions_are_parsed() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(Version::parse(text), Some(Version { release: (1, 96), llvm: 22 }));
        assert_eq!(parse_release("1.97.0-nightly"), Some((1, 97)));
        assert_eq!(parse_release("1.85.0+dfsg3-1~deb12u3"), Some((1, 85)));
        assert_eq!(parse_release("(none)"), None);
    }

    #[test]
    fn the_llvm_of_the_linker_is_read_from_the_record_of_cargo() {
        let record = r#"{"installs":{"cargo-deny 0.20.2 (registry+x)":{"features":["llvm-1"]},"bpf-linker 0.13.0 (registry+x)":{"version_req":null,"bins":["bpf-linker"],"features":["llvm-22"],"all_features":false}}}"#;
        assert_eq!(linker_llvm(record), Some(22));
        assert_eq!(linker_llvm(r#"{"installs":{"bpf-linker 0.13.0 (x)":{"features":[]}}}"#), None);
        assert_eq!(linker_llvm(""), None);
    }

    #[test]
    fn nightlies_need_rust_src_and_the_plain_one_comes_first() {
        let dir = env::temp_dir().join(format!("overlay-xtask-nightlies-{}", std::process::id()));
        for name in
            ["nightly-2026-05-20-x86_64", "nightly-2026-06-01-x86_64", "nightly-x86_64", "stable-x86_64"]
        {
            fs::create_dir_all(dir.join(name).join("lib/rustlib/src/rust/library/core")).unwrap();
        }
        fs::create_dir_all(dir.join("nightly-2027-01-01-x86_64/bin")).unwrap();
        let found = nightlies(&dir);
        fs::remove_dir_all(&dir).unwrap();
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(names, ["nightly-x86_64", "nightly-2026-06-01-x86_64", "nightly-2026-05-20-x86_64"]);
    }

    #[test]
    fn a_rustc_without_core_for_the_target_does_not_count() {
        assert_eq!(debian_toolchain(Path::new("/nonexistent/rustc"), Path::new("/nonexistent")), None);
    }
}

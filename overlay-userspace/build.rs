//! Finds the eBPF object that the binary embeds, and hands its path on as `OVERLAY_BPF_OBJECT`.
//!
//! The object is built by `cargo xtask build`, not from here: it takes another compiler. Whoever brings an
//! object of their own (a packager, say) names it in the environment variable `OVERLAY_BPF_OBJECT`;
//! without it, it is looked for where xtask puts it, `bpf/overlay.o` in cargo's target directory.

use std::{
    env,
    path::{Path, PathBuf},
};

const VARIABLE: &str = "OVERLAY_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = named().unwrap_or_else(built);
    println!("cargo::rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo::rustc-env={VARIABLE}={}", object.display());
    } else {
        println!(
            "cargo::error=no eBPF object at {}: run `cargo xtask build`, or name one in {VARIABLE}",
            object.display()
        );
    }
}

/// The object named in the environment, relative to the workspace.
fn named() -> Option<PathBuf> {
    let object = env::var_os(VARIABLE).filter(|value| !value.is_empty())?;
    Some(workspace().join(object))
}

/// The object that xtask built.
fn built() -> PathBuf {
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    // Cargo keeps these files in its target directory, wherever it was told to put that.
    let is_target =
        |dir: &&Path| [".rustc_info.json", "CACHEDIR.TAG"].iter().any(|file| dir.join(file).is_file());
    let target = out.ancestors().find(is_target);
    target.map_or_else(|| workspace().join("target"), Path::to_path_buf).join("bpf/overlay.o")
}

fn workspace() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    package.parent().map(Path::to_path_buf).unwrap_or_default()
}

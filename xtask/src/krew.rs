//! `cargo xtask krew`: the kubectl plugin as krew installs it, an archive and the manifest that names it.
//!
//! The binary is the one of the image. Same sources give the same bytes: nothing in the archive tells when it was made.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};

use crate::{
    ebpf,
    setup::{self, Part},
    workspace::Workspace,
};

/// The manifest in the repository.
const TEMPLATE: &str = "deploy/krew/overlay.yaml";

#[derive(Args)]
pub(crate) struct Options {
    /// Where the archive will be found, without its name: `https://downloads.example/overlay/v0.1.0`
    #[arg(long, value_name = "URL")]
    base: String,
}

/// Makes both, in `krew/` of the target directory.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(&[Part::Host, Part::Bpf, Part::Image])?;
    let object = ebpf::build(workspace)?;
    let [binary] = workspace.build_static(["overlay"], &object)?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let license = read(&workspace.root().join("LICENSE"))?;
    let archive = pack(&[("kubectl-overlay", 0o755, &read(&binary)?), ("LICENSE", 0o644, &license)])?;
    let template = String::from_utf8(read(&workspace.root().join(TEMPLATE))?).context("read the manifest")?;
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let name = format!("kubectl-overlay-linux-{arch}.tar.gz");
    let manifest = manifest(&template, arch, &format!("{}/{name}", options.base), &archive)?;
    let dir = workspace.target().join("krew");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    for (name, content) in [(name.as_str(), archive.as_slice()), ("overlay.yaml", manifest.as_bytes())] {
        let path: PathBuf = dir.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

/// A compressed tar of these files: name, mode, content.
fn pack(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
    for (name, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        tar.append_data(&mut header, name, *content).with_context(|| format!("archive {name}"))?;
    }
    let mut gzip = tar.into_inner().context("complete the archive")?;
    gzip.flush().context("complete the archive")?;
    gzip.finish().context("complete the archive")
}

/// SHA-256 as krew writes it.
fn sum(archive: &[u8]) -> String {
    let sum = Sha256::digest(archive);
    sum.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// The manifest for this archive.
fn manifest(template: &str, arch: &str, uri: &str, archive: &[u8]) -> Result<String> {
    let sum = sum(archive);
    let mut text = template.to_owned();
    for (mark, value) in
        [("@VERSION@", env!("CARGO_PKG_VERSION")), ("@ARCH@", arch), ("@URI@", uri), ("@SHA256@", &sum)]
    {
        ensure!(text.contains(mark), "{TEMPLATE} has no {mark}");
        text = text.replace(mark, value);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_manifest_names_the_archive_and_its_sum() {
        let archive = pack(&[("kubectl-overlay", 0o755, b"program"), ("LICENSE", 0o644, b"text")]).unwrap();
        let template = include_str!("../../deploy/krew/overlay.yaml");
        let text = manifest(template, "amd64", "https://downloads.example/a.tar.gz", &archive).unwrap();
        let body: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(!body.join("\n").contains('@'), "{text}");
        let sum = sum(&archive);
        for line in [
            format!("      sha256: {sum}"),
            "      uri: https://downloads.example/a.tar.gz".to_owned(),
            format!("  version: v{}", env!("CARGO_PKG_VERSION")),
        ] {
            assert!(body.contains(&line.as_str()), "{line} in {text}");
        }
        assert!(manifest("no marks", "amd64", "", &archive).is_err());
    }

    #[test]
    fn the_archive_has_what_the_manifest_takes_from_it_and_is_the_same_each_time() {
        let files: [(&str, u32, &[u8]); 2] =
            [("kubectl-overlay", 0o755, b"program"), ("LICENSE", 0o644, b"text")];
        let archive = pack(&files).unwrap();
        assert_eq!(archive, pack(&files).unwrap());
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice()));
        let mut found = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let mode = entry.header().mode().unwrap();
            found.push((entry.path().unwrap().display().to_string(), mode, text));
        }
        let expected = files
            .map(|(name, mode, text)| (name.to_owned(), mode, String::from_utf8(text.to_vec()).unwrap()));
        assert_eq!(found, expected);
        let template = include_str!("../../deploy/krew/overlay.yaml");
        for (name, ..) in files {
            assert!(template.contains(&format!("- from: {name}\n")), "{name}");
        }
    }
}

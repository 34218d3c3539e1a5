//! The archive: files of text in a compressed tar, each one cleaned of secrets; what could not be had becomes a file that
//! says why.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};

use super::secrets::Secrets;

/// An archive that is being written.
pub(in crate::cli) struct Archive<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    /// The directory that all files are in.
    root: String,
    secrets: Secrets,
    /// Files that were not to be had.
    failures: usize,
    files: usize,
}

impl<W: Write> Archive<W> {
    pub(in crate::cli) fn new(out: W, root: String, secrets: Secrets) -> Self {
        let tar = tar::Builder::new(GzEncoder::new(out, Compression::default()));
        Self { tar, root, secrets, failures: 0, files: 0 }
    }

    /// Adds a file, or `<name>.error`. Fails only where the archive itself cannot be written.
    pub(in crate::cli) fn add(&mut self, name: &str, content: anyhow::Result<Vec<u8>>) -> anyhow::Result<()> {
        match content {
            Ok(content) => {
                self.files += 1;
                self.put(name, &String::from_utf8_lossy(&content))
            }
            Err(error) => {
                self.failures += 1;
                self.put(&format!("{name}.error"), &format!("{error:#}\n"))
            }
        }
    }

    /// Adds a file of another archive, as it is called there.
    pub(in crate::cli) fn take(&mut self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        match name.strip_suffix(".error") {
            Some(_) => self.failures += 1,
            None => self.files += 1,
        }
        self.put(name, &String::from_utf8_lossy(content))
    }

    fn put(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let text = self.secrets.remove(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
        let path = format!("{}/{name}", self.root);
        self.tar.append_data(&mut header, &path, text.as_bytes()).with_context(|| format!("archive {name}"))
    }

    /// Completes it.
    pub(in crate::cli) fn finish(self) -> anyhow::Result<W> {
        let gzip = self.tar.into_inner().context("complete the archive")?;
        gzip.finish().context("complete the archive")
    }
}

/// For names of archives: UTC, to the second.
pub(in crate::cli) fn stamp() -> anyhow::Result<String> {
    let now = jiff::Timestamp::try_from(SystemTime::now()).context("read the clock")?;
    Ok(now.strftime("%Y%m%dT%H%M%SZ").to_string())
}

/// Writes an archive at `path`, whole or not at all, and for its owner alone, whatever has slipped through the nets. Says
/// what it has made.
pub(in crate::cli) fn write_file(
    path: &Path,
    root: String,
    secrets: Secrets,
    collect: impl FnOnce(&mut Archive<io::BufWriter<File>>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut partial = path.to_owned().into_os_string();
    partial.push(".part");
    let partial = PathBuf::from(partial);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)
        .with_context(|| format!("create {}", partial.display()))?;
    let mut archive = Archive::new(io::BufWriter::new(file), root, secrets);
    let written = collect(&mut archive).and_then(|()| {
        let counts = (archive.files, archive.failures);
        archive.finish()?.flush().with_context(|| format!("write {}", partial.display()))?;
        fs::rename(&partial, path).with_context(|| format!("rename {}", partial.display()))?;
        Ok(counts)
    });
    let (files, failures) = written.inspect_err(|_| {
        // Nothing half-made; that it cannot be removed is the lesser trouble.
        let _ = fs::remove_file(&partial);
    })?;
    writeln!(
        io::stdout(),
        "{}: {files} files; {failures} could not be had, and say why in their place",
        path.display()
    )
    .context("write to standard output")
}

//! `overlay cni install` and `uninstall`: the plugin's binary and its network configuration list, where container runtimes
//! look for them.
//!
//! Invariant: a runtime sees the old or the new state of a file, never a part, and the list only when the binary that it
//! names is in place. Runtimes watch the directory of lists and read whatever ends in `.conf`, `.conflist` or `.json`, so
//! what is not whole yet has another name. Files of others are neither changed nor removed.
//!
//! Called by the command line, and by the agent where `cni.install` says so.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;

use crate::datapath::{DatapathError, pins::Pins, schema, tables::Endpoints};

mod conflist;

pub(crate) use conflist::VERSIONS;

/// What runtimes look for, by `type`.
const BINARY: &str = "overlay";

/// The running binary, also when its file has been replaced or removed since.
const SELF: &str = "/proc/self/exe";

/// What `overlay cni` does when it is not called as a plugin.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Put the plugin and its network configuration where container runtimes look for them
    Install(Install),
    /// Remove what `install` has put there
    Uninstall(Uninstall),
}

#[derive(Debug, Args)]
pub(crate) struct Places {
    /// Where the runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Where the runtime looks for network configurations; the first by name is the one that pods get
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// The name of the network configuration list
    #[arg(long, value_name = "FILE", default_value = "10-overlay.conflist", value_parser = file_name)]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Install {
    #[command(flatten)]
    places: Places,
    /// The newest CNI version to use [default: the newest that all plugins of the list speak]
    #[arg(long, value_name = "VERSION", value_parser = conflist::VERSIONS)]
    cni_version: Option<String>,
    /// Plugins of containernetworking after this one, in this order
    #[arg(long, value_name = "PLUGIN", value_delimiter = ',')]
    chain: Vec<Chained>,
}

#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    places: Places,
    /// Remove the plugin although pods are attached: the runtime will not be able to delete them
    #[arg(long)]
    force: bool,
}

/// A plugin that can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Chained {
    /// Ports of the node that lead to a pod
    Portmap,
    /// Limits of what a pod sends and receives
    Bandwidth,
    /// Rules that let a pod's traffic through iptables or firewalld
    Firewall,
    /// Settings inside of a pod
    Tuning,
}

impl Chained {
    const fn name(self) -> &'static str {
        match self {
            Self::Portmap => "portmap",
            Self::Bandwidth => "bandwidth",
            Self::Firewall => "firewall",
            Self::Tuning => "tuning",
        }
    }
}

/// A name that runtimes read, in no other directory.
pub(crate) fn file_name(text: &str) -> Result<String, String> {
    let path = Path::new(text);
    if path.file_name() != Some(path.as_os_str()) || text.starts_with('.') {
        return Err("is not the name of a file".to_owned());
    }
    if path.extension().is_none_or(|extension| extension != "conflist") {
        return Err("has to end in .conflist".to_owned());
    }
    Ok(text.to_owned())
}

/// Does it.
pub(crate) fn run(action: &Action, pins: &Pins) -> anyhow::Result<()> {
    match action {
        Action::Install(install) => install.run(pins),
        Action::Uninstall(uninstall) => {
            let force = uninstall.force;
            uninstall.places.uninstall(|| attached(pins), force, &mut |path| {
                remove(path)?;
                print(&format!("removed {}", path.display()))
            })
        }
    }
}

/// What an installation has done.
#[derive(Debug)]
pub(crate) struct Installed {
    binary: (Put, PathBuf),
    list: (Put, PathBuf),
    /// Configurations of others that come before the list, so that runtimes take those.
    pub(crate) earlier: Vec<PathBuf>,
}

impl Installed {
    /// What has been written.
    pub(crate) fn written(&self) -> impl Iterator<Item = &Path> {
        let both = [&self.binary, &self.list];
        both.into_iter().filter(|(put, _)| *put == Put::Written).map(|(_, path)| path.as_path())
    }
}

impl Install {
    /// An installation as the `[cni]` table describes it.
    pub(crate) fn new(bin: &Path, conf: &Path, name: &str, version: Option<&str>, chain: &[Chained]) -> Self {
        let places = Places { bin_dir: bin.to_owned(), conf_dir: conf.to_owned(), name: name.to_owned() };
        Self { places, cni_version: version.map(str::to_owned), chain: chain.to_vec() }
    }

    /// Whether both files are there, whatever is in them.
    pub(crate) fn is_there(&self) -> bool {
        let Places { bin_dir, conf_dir, name } = &self.places;
        bin_dir.join(BINARY).exists() && conf_dir.join(name).exists()
    }

    /// Both files.
    pub(crate) fn files(&self) -> [PathBuf; 2] {
        let Places { bin_dir, conf_dir, name } = &self.places;
        [bin_dir.join(BINARY), conf_dir.join(name)]
    }

    /// The configurations that the runtime takes before this one.
    pub(crate) fn earlier(&self) -> anyhow::Result<Vec<PathBuf>> {
        let Places { conf_dir, name, .. } = &self.places;
        let earlier = conflist::others(conf_dir)?.filter(|other| other.as_str() < name.as_str());
        Ok(earlier.map(|name| conf_dir.join(name)).collect())
    }

    /// Puts both files in place where they differ, the list last.
    pub(crate) fn apply(&self, pins: &Pins) -> anyhow::Result<Installed> {
        let Places { bin_dir, conf_dir, name } = &self.places;
        // All that can be refused is refused before anything is written.
        let list = conflist::compose(self, pins)?;
        let path = conf_dir.join(name);
        if let Ok(present) = fs::read(&path) {
            ensure!(
                conflist::is_ours(&present),
                "{} is not a configuration of overlay: choose another name, or remove it",
                path.display()
            );
        }
        for dir in [bin_dir, conf_dir] {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }

        let binary = bin_dir.join(BINARY);
        let source = || File::open(SELF).context("open the running binary");
        let put_binary = put(&binary, 0o755, source)?;
        // Last: from now on the runtime calls the plugin.
        let put_list = put(&path, 0o644, || Ok(list.as_bytes()))?;
        Ok(Installed { binary: (put_binary, binary), list: (put_list, path), earlier: self.earlier()? })
    }

    fn run(&self, pins: &Pins) -> anyhow::Result<()> {
        let Installed { binary, list, earlier } = self.apply(pins)?;
        for (put, path) in [binary, list] {
            say(put, &path)?;
        }
        for earlier in earlier {
            eprintln!(
                "overlay: warning: {} comes before {}, so that the runtime takes that one: remove it, or choose an \
                 earlier --name",
                earlier.display(),
                self.places.name
            );
        }
        Ok(())
    }
}

/// Where the plugin is in a directory of plugins.
pub(crate) fn binary_in(dir: &Path) -> PathBuf {
    dir.join(BINARY)
}

/// Puts this build's plugin in the place of another build's; where there is none, or another program, nothing is done.
pub(crate) fn replace_binary(dir: &Path) -> anyhow::Result<bool> {
    let path = binary_in(dir);
    if !path.exists() || !is_overlay(&path)? {
        return Ok(false);
    }
    let done = put(&path, 0o755, || File::open(SELF).context("open the running binary"))?;
    Ok(done == Put::Written)
}

impl Places {
    /// Files that an installation which was killed has left.
    pub(crate) fn unfinished(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = unfinished(&self.bin_dir)?;
        if self.conf_dir != self.bin_dir {
            found.append(&mut unfinished(&self.conf_dir)?);
        }
        Ok(found)
    }

    /// Has what `install` has put there removed by `remove`: all of it, or the configuration alone while pods are
    /// `attached` and nobody uses `force`.
    pub(crate) fn uninstall(
        &self,
        attached: impl FnOnce() -> anyhow::Result<usize>,
        force: bool,
        remove: &mut dyn FnMut(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Self { bin_dir, conf_dir, name } = self;
        // First: from now on the runtime adds no pod.
        let path = conf_dir.join(name);
        let mut gone = None;
        match fs::read(&path) {
            Ok(present) if conflist::is_ours(&present) => {
                remove(&path)?;
                gone = Some(name);
            }
            Ok(_) => leave(&path, "it is not a configuration of overlay")?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
        let mut needed = false;
        // Where nothing is really removed it is there still.
        for other in conflist::others(conf_dir)?.filter(|other| Some(other) != gone) {
            let path = conf_dir.join(other);
            if other_uses_us(&path) {
                needed = true;
                leave(&path, "it was not installed by this name, and uses overlay")?;
            }
        }

        let binary = bin_dir.join(BINARY);
        if !binary.exists() {
            return Ok(());
        }
        if !is_overlay(&binary)? {
            return leave(&binary, "it is not overlay's plugin");
        }
        if needed {
            return leave(&binary, "another configuration uses it");
        }
        let attached = attached()?;
        if attached > 0 && !force {
            leave(&binary, "the runtime needs it to delete pods")?;
            bail!("{attached} pods are attached: drain the node and repeat, or add --force");
        }
        remove(&binary)
    }
}

/// How many pods are on the node.
pub(crate) fn attached(pins: &Pins) -> anyhow::Result<usize> {
    match schema::readable(pins)
        .and_then(|pins| Endpoints::open(&pins))
        .and_then(|endpoints| endpoints.entries())
    {
        Ok(entries) => Ok(entries.len()),
        Err(DatapathError::NotPinned { .. }) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn other_uses_us(path: &Path) -> bool {
    fs::read(path).is_ok_and(|text| conflist::is_ours(&text))
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    Kept,
    Written,
}

fn say(put: Put, path: &Path) -> anyhow::Result<()> {
    let what = if put == Put::Kept { "unchanged" } else { "installed" };
    print(&format!("{what} {}", path.display()))
}

fn leave(path: &Path, why: &str) -> anyhow::Result<()> {
    print(&format!("left {}: {why}", path.display()))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))
}

pub(crate) fn print(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("print")
}

/// Puts content at `path`, whole and on disk, in place of what is there; nothing is written when it is there already. A
/// program that runs from `path` goes on with the old file.
fn put<R: Read>(path: &Path, mode: u32, source: impl Fn() -> anyhow::Result<R>) -> anyhow::Result<Put> {
    if let Ok(present) = File::open(path)
        && present.metadata().is_ok_and(|metadata| metadata.mode() & 0o7777 == mode)
        && equal(present, source()?).with_context(|| format!("compare {}", path.display()))?
    {
        return Ok(Put::Kept);
    }
    let dir = path.parent().context("find the directory")?;
    sweep(dir)?;
    // In the same directory, because a name moves within a file system only; hidden, and without a watched suffix.
    let fresh = Fresh(dir.join(format!("{FRESH}{}", std::process::id())));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh.0)?;
        // The umask has its say at creation.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        io::copy(&mut source().map_err(io::Error::other)?, &mut file)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&fresh.0, path)?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))?;
    Ok(Put::Written)
}

/// Names of files that are not whole yet; the process id follows.
const FRESH: &str = ".overlay-install-";

/// Removed when it does not get its final name.
struct Fresh(PathBuf);

impl Drop for Fresh {
    fn drop(&mut self) {
        // Gone when all went well.
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes what a killed call has left.
fn sweep(dir: &Path) -> anyhow::Result<()> {
    for path in unfinished(dir)? {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// What killed calls have left in a directory; nothing where there is none.
fn unfinished(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || format!("list {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.with_context(failed)?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(FRESH))
            && !Path::new("/proc").join(pid).exists()
        {
            found.push(dir.join(&name));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether both have the same content; at most one chunk of each is held.
fn equal(mut one: impl Read, mut other: impl Read) -> io::Result<bool> {
    const CHUNK: u64 = 1 << 20;
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        one.by_ref().take(CHUNK).read_to_end(&mut left)?;
        other.by_ref().take(CHUNK).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

/// In every build of the binary, so that an older one is known as well.
#[used]
static MARK: [u8; 32] = *b"\0overlay pod network CNI plugin\n";

/// Whether a file is a build of this binary.
fn is_overlay(path: &Path) -> anyhow::Result<bool> {
    let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(content.windows(MARK.len()).any(|window| window == MARK))
}

#[cfg(test)]
mod tests;

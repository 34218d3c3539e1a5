//! A kernel taken out of its packages: the image, and the modules that a node needs.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    archive::{Archive, Offer},
    bounded,
};

/// Modules are taken from these directories of `kernel/`, with all below.
const TREES: [&str; 21] = [
    "crypto/",
    "arch/x86/crypto/",
    "arch/x86/lib/",
    "lib/",
    "net/8021q/",
    "net/802/",
    "net/bridge/",
    "net/core/",
    "net/ipv4/",
    "net/ipv6/",
    "net/key/",
    "net/llc/",
    "net/netfilter/",
    "net/packet/",
    "net/sched/",
    "net/sctp/",
    "net/tls/",
    "net/unix/",
    "net/xfrm/",
    "drivers/net/bonding/",
    "drivers/net/vxlan/",
];
/// From this one without what is below: veth, dummy, vxlan (before 5.18), tun, …
const DRIVERS: &str = "drivers/net/";

const DEPMOD_LIMIT: Duration = Duration::from_mins(2);

/// An unpacked kernel.
pub(super) struct Kernel {
    /// `uname -r`.
    pub(super) release: String,
    pub(super) offer: Offer,
    /// Bootable.
    pub(super) image: PathBuf,
    /// What goes to `/lib/modules/<release>`.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// Downloads and unpacks a kernel below `dir`, unless it is there.
    pub(super) fn get(archive: &Archive, offer: &Offer, dir: &Path) -> Result<Self> {
        let (release, packages) = archive.packages(offer)?;
        // Unpacked anew where other modules are taken.
        let root = dir.join(format!("{release}_{}_{}", offer.version, TREES.len()));
        let kernel = Self {
            image: root.join("vmlinuz"),
            modules: root.join("lib/modules").join(&release),
            release,
            offer: offer.clone(),
        };
        if root.is_dir() {
            return Ok(kernel);
        }
        eprintln!("fetching Linux {} ({} of {})", kernel.release, offer.version, offer.suite);
        // Under its name only when it is whole.
        let partial = root.with_added_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).with_context(|| format!("make {}", partial.display()))?;
        for file in archive.download(&packages, &offer.version)? {
            unpack(&file, &partial).with_context(|| format!("unpack {}", file.display()))?;
            fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        }
        ensure!(partial.join("vmlinuz").is_file(), "the packages {} hold no kernel", packages.join(", "));
        let mut depmod = Command::new("depmod");
        depmod.arg("-b").arg(&partial).arg(&kernel.release);
        let done = bounded(&mut depmod, DEPMOD_LIMIT)?;
        ensure!(done.success, "list the modules of Linux {}: {}", kernel.release, done.text.trim_end());
        fs::rename(&partial, &root).with_context(|| format!("rename {}", partial.display()))?;
        Ok(kernel)
    }
}

/// Takes what [`place`] wants out of a Debian package.
fn unpack(package: &Path, root: &Path) -> Result<()> {
    let mut command = Command::new("dpkg-deb");
    command.arg("--fsys-tarfile").arg(package).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("start dpkg-deb")?;
    let unpacked = child.stdout.take().context("read from dpkg-deb").and_then(|pipe| {
        let mut archive = tar::Archive::new(pipe);
        for entry in archive.entries().context("read the package")? {
            let mut entry = entry.context("read the package")?;
            let path = entry.path().context("read the package")?.into_owned();
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let Some(place) = place(&path) else { continue };
            let place = root.join(place);
            let dir = place.parent().unwrap_or(root);
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
            let mut file = fs::File::create(&place).with_context(|| format!("make {}", place.display()))?;
            io::copy(&mut entry, &mut file).with_context(|| format!("write {}", place.display()))?;
        }
        Ok(())
    });
    if unpacked.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().context("wait for dpkg-deb")?;
    unpacked?;
    ensure!(status.success(), "dpkg-deb failed ({status})");
    Ok(())
}

/// Where a file of a package goes to, below the root of the kernel; `None`: it is not needed.
fn place(path: &Path) -> Option<PathBuf> {
    let plain = path.components().filter(|part| matches!(part, Component::Normal(_)));
    let path: PathBuf = plain.collect();
    let path = path.strip_prefix("usr").unwrap_or(&path);
    if path.file_name()?.to_str()?.starts_with("vmlinuz") {
        return Some("vmlinuz".into());
    }
    let mut within = path.strip_prefix("lib/modules").ok()?.components();
    // The release.
    within.next()?;
    let within = within.as_path();
    let wanted = match within.strip_prefix("kernel") {
        Ok(module) => {
            let direct = module.parent() == Some(Path::new(DRIVERS.trim_end_matches('/')));
            direct || TREES.iter().any(|tree| module.starts_with(tree.trim_end_matches('/')))
        }
        // For depmod: modules.builtin, modules.order.
        Err(_) => within.to_str()?.starts_with("modules."),
    };
    wanted.then(|| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(path: &str) -> Option<String> {
        place(Path::new(path)).map(|path| path.display().to_string())
    }

    #[test]
    fn image_and_modules_are_found_before_and_after_the_merge_of_usr() {
        assert_eq!(placed("./boot/vmlinuz-6.1.0-50-amd64").as_deref(), Some("vmlinuz"));
        assert_eq!(placed("./usr/lib/modules/7.3.4+deb13-amd64/vmlinuz").as_deref(), Some("vmlinuz"));
        for path in
            ["./lib/modules/r/kernel/net/sched/cls_bpf.ko", "./usr/lib/modules/r/kernel/net/sched/cls_bpf.ko"]
        {
            assert_eq!(placed(path).as_deref(), Some("lib/modules/r/kernel/net/sched/cls_bpf.ko"));
        }
        assert!(placed("./lib/modules/r/modules.builtin").is_some());
    }

    #[test]
    fn hardware_is_left_out() {
        assert!(placed("./lib/modules/r/kernel/drivers/net/veth.ko.xz").is_some());
        assert!(placed("./lib/modules/r/kernel/drivers/net/vxlan/vxlan.ko").is_some());
        assert!(placed("./lib/modules/r/kernel/drivers/net/ethernet/intel/e1000/e1000.ko").is_none());
        assert!(placed("./lib/modules/r/kernel/sound/core/snd.ko").is_none());
        assert!(placed("./usr/share/doc/linux-image/copyright").is_none());
    }
}

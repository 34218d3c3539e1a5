//! What a virtual machine runs on: programs of this machine, the tests, and the modules of its kernel.
//!
//! The kernel unpacks archives one after the other; the first part is the same for all kernels.

use std::{
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{bounded, kernel::Kernel, plan::Plan};
use crate::{
    image::{
        PROTOCOLS,
        programs::Programs,
        rootfs::{Node, RootFs},
    },
    toolchain::find_program,
};

/// What tests, lab and agent start, and what the kernel starts (modprobe).
const PROGRAMS: [&str; 37] = [
    "bash",
    "bpftool",
    "bridge",
    "cat",
    "conntrack",
    "date",
    "ethtool",
    "findmnt",
    "ip",
    "ip6tables-legacy",
    "ip6tables-nft",
    "iperf3",
    "iptables",
    "iptables-legacy",
    "iptables-legacy-restore",
    "iptables-legacy-save",
    "iptables-nft",
    "iptables-nft-restore",
    "iptables-nft-save",
    "ip6tables",
    "ip6tables-legacy-restore",
    "ip6tables-legacy-save",
    "ip6tables-nft-restore",
    "ip6tables-nft-save",
    "modprobe",
    "mount",
    "nft",
    "nsenter",
    "ping",
    "setpriv",
    "sh",
    "sleep",
    "socat",
    "ss",
    "sysctl",
    "tc",
    "tcpdump",
];
/// Taken where they are: the paths of the machine that runs it.
const MORE: [&str; 4] = ["setarch", "tar", "umount", "unshare"];

const STRIP_LIMIT: Duration = Duration::from_mins(2);

/// A program that is built here, and its name in `/tests`.
pub(super) struct Built {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// Everything but a kernel's modules, as an archive at `output`.
pub(super) fn base(init: &Path, built: &[Built], object: &Path, plan: &Plan, output: &Path) -> Result<()> {
    let mut root = RootFs::default();
    let mut programs = Programs::default();
    for name in PROGRAMS {
        programs.program(name)?;
    }
    for name in MORE.into_iter().filter(|name| find_program(name).is_some()) {
        programs.program(name)?;
    }
    let libraries = programs.directory_of("libxtables.so.").context("find where libxtables.so is")?;
    programs.plugins(&libraries.join("xtables"), &["libxt_", "libipt_", "libip6t_"])?;
    let scratch = output.with_added_extension("stripped");
    let mut add = |path: &str, binary: &Path| -> Result<()> {
        programs.libraries(binary)?;
        root.executable(path, stripped(binary, &scratch)?)
    };
    add("/init", init)?;
    for Built { name, path } in built {
        add(&format!("/tests/{name}"), path)?;
    }
    root.file("/tests/overlay.o", fs::read(object).with_context(|| format!("read {}", object.display()))?)?;
    programs.put_into(&mut root, "/usr/share/overlay/packages")?;
    root.file("/etc/protocols", PROTOCOLS)?;
    // tcpdump becomes this user.
    root.file("/etc/passwd", "root:x:0:0::/root:/bin/sh\ntcpdump:x:100:100::/:/bin/false\n")?;
    root.file("/etc/group", "root:x:0:\ntcpdump:x:100:\n")?;
    root.file("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    root.file("/etc/plan", plan.to_text())?;
    root.file("/etc/patience", plan.patience())?;
    root.link("/var/run", "/run")?;
    for dir in ["/proc", "/sys", "/dev", "/run", "/tmp", "/root"] {
        root.put(Path::new(dir), Node::Directory)?;
    }
    write(&root, output)
}

/// The archive for one kernel: `base` and its modules.
pub(super) fn with_modules(base: &Path, kernel: &Kernel, output: &Path) -> Result<()> {
    let mut root = RootFs::default();
    let place = Path::new("/usr/lib/modules").join(&kernel.release);
    let mut dirs = vec![kernel.modules.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let within = path.strip_prefix(&kernel.modules).context("name a module")?;
            let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            root.put(&place.join(within), Node::File { executable: false, content })?;
        }
    }
    write(&root, output)?;
    // In this order the directories of the first archive, and its link /lib, are there.
    let modules = fs::read(output).with_context(|| format!("read {}", output.display()))?;
    fs::copy(base, output).with_context(|| format!("write {}", output.display()))?;
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(output)
        .with_context(|| format!("open {}", output.display()))?;
    file.write_all(&modules).with_context(|| format!("write {}", output.display()))
}

/// The program without its debug information, which is most of it.
fn stripped(binary: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg("-o").arg(scratch).arg(binary);
    let done = bounded(&mut strip, STRIP_LIMIT)?;
    ensure!(done.success, "strip {}: {}", binary.display(), done.text.trim_end());
    let content = fs::read(scratch).with_context(|| format!("read {}", scratch.display()))?;
    fs::remove_file(scratch).with_context(|| format!("remove {}", scratch.display()))?;
    Ok(content)
}

fn write(root: &RootFs, output: &Path) -> Result<()> {
    let file = fs::File::create(output).with_context(|| format!("make {}", output.display()))?;
    let mut file = BufWriter::new(file);
    newc(root, &mut file).and_then(|()| file.flush()).with_context(|| format!("write {}", output.display()))
}

/// The tree as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst).
fn newc(root: &RootFs, out: &mut impl Write) -> io::Result<()> {
    let mut inode = 1;
    let mut entry = |path: &[u8], mode: u32, content: &[u8]| -> io::Result<()> {
        let (links, name_len, len) = (1, path.len() + 1, content.len());
        write!(out, "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{len:08x}", 0, 0, 0)?;
        write!(out, "{:08x}{:08x}{:08x}{:08x}{name_len:08x}{:08x}", 0, 0, 0, 0, 0)?;
        inode += 1;
        out.write_all(path)?;
        // The name ends with a zero; it and the content are filled up to words. The header is 110 bytes long.
        out.write_all(&[0; 4][..=(4 - (110 + name_len) % 4) % 4])?;
        out.write_all(content)?;
        out.write_all(&[0; 4][..(4 - len % 4) % 4])
    };
    for (path, node) in root.entries() {
        let path = path.as_os_str().as_encoded_bytes();
        match node {
            Node::Directory => entry(path, 0o040_755, &[])?,
            Node::File { executable: true, content } => entry(path, 0o100_755, content)?,
            Node::File { executable: false, content } => entry(path, 0o100_644, content)?,
            Node::Link(target) => entry(path, 0o120_777, target.as_os_str().as_encoded_bytes())?,
        }
    }
    entry(b"TRAILER!!!", 0, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut root = RootFs::default();
        root.executable("/init", "12345").unwrap();
        root.link("/var/run", "/run").unwrap();
        let mut bytes = Vec::new();
        newc(&root, &mut bytes).unwrap();
        let field = |at: usize, n: usize| {
            let text = std::str::from_utf8(&bytes[at + 6 + n * 8..at + 14 + n * 8]).unwrap();
            usize::from_str_radix(text, 16).unwrap()
        };
        let mut at = 0;
        let mut seen = Vec::new();
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701", "at {at}");
            let (mode, len, name_len) = (field(at, 1), field(at, 6), field(at, 11));
            let name = String::from_utf8(bytes[at + 110..at + 110 + name_len - 1].to_vec()).unwrap();
            let content = (at + 110 + name_len).next_multiple_of(4);
            seen.push((name, mode, bytes[content..content + len].to_vec()));
            at = (content + len).next_multiple_of(4);
        }
        let entry = |name: &str, mode, content: &[u8]| (name.to_owned(), mode, content.to_vec());
        let wanted = [
            entry("init", 0o100_755, b"12345"),
            entry("var", 0o040_755, b""),
            entry("var/run", 0o120_777, b"/run"),
            entry("TRAILER!!!", 0, b""),
        ];
        assert_eq!(seen, wanted);
    }
}

//! `cargo xtask image`: the container image, as a tar archive, with neither a registry nor a daemon.
//!
//! It holds the static binary with the eBPF object inside, which is also what is installed as the CNI plugin, and the
//! programs that the agent drives (`nft`, `iptables-legacy`), taken from this machine's packages. The Containerfile makes the same
//! on a machine that has a registry. Same sources and same packages give the same bytes.

mod oci;
mod programs;
mod rootfs;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;

pub(crate) use self::oci::Image;
use self::{programs::Programs, rootfs::RootFs};
use crate::{
    ebpf,
    setup::{self, Part},
    toolchain::find_program,
    workspace::Workspace,
};

/// What the manifests in deploy/ run.
pub(crate) const REFERENCE: &str = concat!("localhost/overlay:", env!("CARGO_PKG_VERSION"));

/// Where the image's programs are.
const PATH: &str = "PATH=/usr/sbin:/usr/bin";

/// Protocols by name, which `nft` and the iptables programs look up; the package that has them (netbase) is not needed for more.
const PROTOCOLS: &str = "ip 0 IP\nicmp 1 ICMP\nigmp 2 IGMP\nipencap 4 IP-ENCAP\ntcp 6 TCP\nudp 17 UDP\ndccp 33 DCCP\n\
                         ipv6 41 IPv6\ngre 47 GRE\nesp 50 IPSEC-ESP\nah 51 IPSEC-AH\nipv6-icmp 58 IPv6-ICMP\n\
                         vrrp 112 VRRP\nsctp 132 SCTP\nudplite 136 UDPLite\n";

/// What the agent drives. The name is that of the program that `cargo xtask setup` looks for.
const DRIVEN: [&str; 3] = ["nft", "iptables-legacy", "iptables-legacy-restore"];

/// For people who look at a node from inside of the debug image; the second has what is taken where it is installed.
const TOOLS: [&str; 3] = ["bpftool", "ip", "tc"];
const OPTIONAL_TOOLS: [&str; 3] = ["tcpdump", "ss", "ethtool"];

#[derive(Args)]
pub(crate) struct Options {
    /// Where to write it [default: images/overlay.tar, or overlay-debug.tar, in the target directory]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Add bpftool, ip, tc and a shell, and what is installed of tcpdump, ss and ethtool
    #[arg(long)]
    debug: bool,
    /// Write the image's file tree to this directory instead, as the Containerfile does
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "tag"])]
    rootfs: Option<PathBuf>,
    /// Name and tag of the image [default: what deploy/ uses, with -debug after it for the debug image]
    #[arg(long, value_name = "REF")]
    tag: Option<String>,
}

/// Builds the image and writes it.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(&[Part::Host, Part::Bpf, Part::Image])?;
    let object = ebpf::build(workspace)?;
    let [binary] = workspace.build_static(["overlay"], &object)?;
    let suffix = if options.debug { "-debug" } else { "" };
    let reference = options.tag.clone().unwrap_or_else(|| format!("{REFERENCE}{suffix}"));
    let output = options
        .output
        .clone()
        .unwrap_or_else(|| workspace.target().join("images").join(format!("overlay{suffix}.tar")));
    if let Some(dir) = &options.rootfs {
        return tree(&binary, options.debug)?.into_iter().try_for_each(|layer| layer.write_to(dir));
    }
    overlay(&binary, &reference, options.debug, &output)
}

/// The layers: what changes with every build is on top, so that the rest is stored and moved once.
fn tree(binary: &Path, debug: bool) -> Result<[RootFs; 2]> {
    let (mut base, mut top) = (RootFs::default(), RootFs::default());
    drive(&mut base)?;
    if debug {
        tools(&mut base)?;
    }
    top.executable("/overlay", static_binary(binary)?)?;
    Ok([base, top])
}

/// Writes the image of overlay, whose binary is `binary`.
pub(crate) fn overlay(binary: &Path, reference: &str, debug: bool, output: &Path) -> Result<()> {
    let [base, top] = tree(binary, debug)?;
    write(
        &Image {
            reference,
            architecture: architecture()?,
            layers: &[&base, &top],
            config: json!({
                "Entrypoint": ["/overlay"],
                "Cmd": ["agent"],
                "Env": [PATH],
                "Labels": {
                    "org.opencontainers.image.title": if debug { "overlay, with tools" } else { "overlay" },
                    "org.opencontainers.image.description": "Pod network for Kubernetes: VXLAN by eBPF programs",
                    "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                    "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
                },
            }),
        },
        output,
    )
}

/// Writes an image of one static program, which is its entry point.
pub(crate) fn single(binary: &Path, reference: &str, output: &Path) -> Result<()> {
    let name = binary.file_name().context("find the name of the program")?.to_string_lossy();
    let path = format!("/{name}");
    let mut root = RootFs::default();
    root.executable(&path, static_binary(binary)?)?;
    let config = json!({ "Entrypoint": [path] });
    write(&Image { reference, architecture: architecture()?, layers: &[&root], config }, output)
}

/// Writes an image of programs of this machine; the first is its entry point.
pub(crate) fn of_programs(names: &[&str], reference: &str, output: &Path) -> Result<()> {
    let mut root = RootFs::default();
    let mut programs = Programs::default();
    for name in names {
        programs.program(name)?;
    }
    programs.put_into(&mut root, "/usr/share/overlay/packages")?;
    let config = json!({ "Entrypoint": names.get(..1), "Env": [PATH] });
    write(&Image { reference, architecture: architecture()?, layers: &[&root], config }, output)
}

fn write(image: &Image<'_>, output: &Path) -> Result<()> {
    let (archive, digest) = oci::archive(image)?;
    let dir = output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    // Under its name only when it is whole.
    let partial = output.with_added_extension("partial");
    fs::write(&partial, &archive).with_context(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, output).with_context(|| format!("rename {}", partial.display()))?;
    let size = archive.len().div_ceil(1 << 10);
    eprintln!("wrote {} ({size} KiB): {} {digest}", output.display(), image.reference);
    Ok(())
}

/// The content of a program that runs wherever it is copied to: on a node it is the CNI plugin.
fn static_binary(path: &Path) -> Result<Vec<u8>> {
    let needed = programs::needed(path)?;
    ensure!(
        needed.is_empty(),
        "{} is not static, it needs {}",
        path.display(),
        needed.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    );
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// What the agent runs.
fn drive(root: &mut RootFs) -> Result<()> {
    let mut programs = Programs::default();
    for name in DRIVEN {
        programs.program(name)?;
    }
    // Matches and targets of iptables, without which foreign rules can be neither read nor written back.
    let libraries = programs.directory_of("libxtables.so.").context("find where libxtables.so is")?;
    programs.plugins(&libraries.join("xtables"), &["libxt_", "libipt_"])?;
    programs.put_into(root, "/usr/share/overlay/packages")?;
    root.file("/etc/protocols", PROTOCOLS)
}

/// What people run.
fn tools(root: &mut RootFs) -> Result<()> {
    let mut programs = Programs::default();
    for name in TOOLS {
        programs.program(name)?;
    }
    for name in OPTIONAL_TOOLS.into_iter().filter(|name| find_program(name).is_some()) {
        programs.program(name)?;
    }
    // Its shell, not that of busybox, which prefers its own ip to that of iproute2.
    programs.program("dash")?;
    programs.program("busybox")?;
    programs.put_into(root, "/usr/share/overlay/packages-debug")?;
    root.link("/usr/bin/sh", "dash")?;
    let applets = Command::new("busybox").arg("--list").stdin(Stdio::null()).output();
    let applets = applets.context("start busybox --list")?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
        if ["/usr/bin", "/usr/sbin"].iter().all(|dir| !root.contains(&format!("{dir}/{applet}"))) {
            root.link(&format!("/usr/bin/{applet}"), "busybox")?;
        }
    }
    Ok(())
}

/// This machine's architecture, as Go and therefore OCI calls it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        "riscv64" => Ok("riscv64"),
        other => bail!("images are made for x86_64, aarch64 and riscv64, and this is {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused_with_what_it_needs() {
        let error = static_binary(&std::env::current_exe().unwrap()).unwrap_err().to_string();
        assert!(error.contains("is not static") && error.contains("libc"), "{error}");
    }
}

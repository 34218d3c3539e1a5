//! The machine around the tests: file systems, devices, and its end.

use std::{
    fs::{self, OpenOptions},
    os::fd::AsRawFd as _,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
    },
};

/// Where the host listens.
const PORT: &str = "/dev/ttyS1";

/// Type and place of each file system, in order.
const FILE_SYSTEMS: [(&str, &str); 9] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Makes the machine one that tests can run on, and standard output the host's port.
pub(crate) fn prepare() -> Result<()> {
    for (kind, place) in FILE_SYSTEMS {
        fs::create_dir_all(place).with_context(|| format!("make {place}"))?;
        mount(Some(kind), Path::new(place), Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} on {place}"))?;
        if place == "/dev" {
            speak_to_host()?;
        }
    }
    for (link, target) in
        [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")]
    {
        std::os::unix::fs::symlink(target, Path::new("/dev").join(link))
            .with_context(|| format!("link {link}"))?;
    }
    nix::unistd::sethostname("vm").context("name the host")?;
    // What a distribution does at boot; nothing tests this machine's own network.
    let up = std::process::Command::new("/usr/sbin/ip").args(["link", "set", "lo", "up"]).status();
    let up = up.context("start ip")?;
    anyhow::ensure!(up.success(), "set lo up: ip failed ({up})");
    Ok(())
}

/// Standard input is nothing, both outputs are the port, byte by byte.
fn speak_to_host() -> Result<()> {
    let port =
        OpenOptions::new().read(true).write(true).open(PORT).with_context(|| format!("open {PORT}"))?;
    let mut settings = tcgetattr(&port).with_context(|| format!("look at {PORT}"))?;
    cfmakeraw(&mut settings);
    tcsetattr(&port, SetArg::TCSANOW, &settings).with_context(|| format!("set up {PORT}"))?;
    let nothing = OpenOptions::new().read(true).open("/dev/null").context("open /dev/null")?;
    for (from, to) in [(nothing.as_raw_fd(), 0), (port.as_raw_fd(), 1), (port.as_raw_fd(), 2)] {
        // SAFETY: both descriptors are open or, of the first process of an initramfs, free.
        if unsafe { libc::dup2(from, to) } < 0 {
            return Err(std::io::Error::last_os_error()).context("take the port as standard output");
        }
    }
    Ok(())
}

/// Switches the machine off. Without a way to do that it restarts, which ends it as well: QEMU is told not to.
pub(crate) fn off() -> ExitCode {
    // SAFETY: no arguments; waits for the port among others.
    unsafe { libc::sync() };
    if let Ok(port) = OpenOptions::new().write(true).open(PORT) {
        let _ = nix::sys::termios::tcdrain(&port);
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // The kernel panics when its first process ends, and that ends the machine too.
    ExitCode::FAILURE
}

//! Building labs: [`Cluster`] is the default one, [`Lab`] with [`Lan`], [`Link`], [`Node`] and
//! [`FlannelNode`] the parts for others.
//!
//! [`Lab`] owns the name and the directory of one lab and removes everything when it is dropped. Several labs,
//! of one or of several processes, live beside each other: all names start with the lab's id.

mod agent;
mod cluster;
mod config;
mod docker;
pub mod exec;
pub mod families;
mod flannel;
pub mod interrupt;
mod log;
mod namespace;
mod node;
mod pod;
pub mod runtime;
pub mod services;
pub mod sweep;
mod wire;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};

pub use agent::{AgentOptions, Build, overlay_binary};
pub use cluster::{Cluster, ClusterBuilder, World};
pub use config::{CIDR_V4, CIDR_V6, ClusterFile, Listed, Network, NodeEntry};
pub use docker::{Docker, DockerContainer, DockerState};
pub use families::{Families, nets};
pub use flannel::{FlannelNode, FlannelPod, FlannelWire};
pub use log::{LogMark, within};
pub use namespace::{NETNS_DIR, Namespace};
pub use node::{Node, NodeBuilder};
pub use pod::{CniCall, CniError, Pod};
pub use wire::{Lan, Link, WireMode, device_feature};

use sweep::{LABS_DIR, Process};

/// One lab: an id, a directory `/run/overlay-lab/<id>` with a bpffs of its own, and the duty to clean up.
///
/// Keep it alive for as long as anything in the lab is used: dropping it removes the lab, also while a panic
/// unwinds. See [`sweep`] for what that covers and for labs whose process is killed.
#[derive(Debug)]
pub struct Lab {
    id: String,
    dir: PathBuf,
}

impl Lab {
    /// Sweeps abandoned labs, then makes an empty one.
    #[track_caller]
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the lab makes network namespaces: run it as root");
        interrupt::check();
        for id in sweep::sweep() {
            eprintln!("lab: removed {id}, whose process is gone");
        }
        let dir = new_dir().unwrap_or_else(|error| panic!("cannot make a directory in {LABS_DIR}: {error}"));
        let id = dir.file_name().unwrap().to_string_lossy().into_owned();
        // From here on Drop cleans up.
        let lab = Self { id, dir };
        let owner = Process::of(std::process::id().cast_signed()).expect("read own /proc/<pid>/stat");
        owner.record(&sweep::owner_file(&lab.dir)).expect("write owner record");
        fs::create_dir(sweep::processes_dir(&lab.dir)).expect("make processes directory");
        let bpffs = lab.dir.join("bpf");
        fs::create_dir(&bpffs).expect("make bpf directory");
        mount(Some("bpffs"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .unwrap_or_else(|error| panic!("cannot mount bpffs on {}: {error}", bpffs.display()));
        lab
    }

    /// The id that every name of this lab starts with, such as `ov3f2a`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory for configuration files and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new namespace `/run/netns/<id>-<name>`.
    #[track_caller]
    pub fn namespace(&self, name: &str) -> Namespace {
        Namespace::create(&format!("{}-{name}", self.id))
    }

    /// A new namespace that forwards packets of both families between the links that it will get.
    #[track_caller]
    pub fn router(&self, name: &str) -> Namespace {
        let router = self.namespace(name);
        router.sysctl("net.ipv4.ip_forward", "1");
        router.sysctl("net.ipv6.conf.all.forwarding", "1");
        router
    }

    /// The cluster file that all nodes of the lab read unless told otherwise.
    pub fn cluster_file(&self) -> PathBuf {
        self.dir.join("overlay.toml")
    }

    /// Replaces the cluster file, atomically: an agent sees the old or the new one, never a part.
    #[track_caller]
    pub fn write_cluster(&self, file: &ClusterFile) {
        let path = self.cluster_file();
        file.write(&path).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        sweep::report(&self.id, &sweep::remove(&self.id));
    }
}

/// Makes `/run/overlay-lab/<id>` under an id that nobody has.
fn new_dir() -> io::Result<PathBuf> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    fs::create_dir_all(LABS_DIR)?;
    loop {
        // Spread by a multiplicative hash, so that labs of one moment are easy to tell apart; making the
        // directory is what makes the id unique.
        let seed = (std::process::id() << 8).wrapping_add(COUNTER.fetch_add(1, Ordering::Relaxed));
        let id = format!("ov{:04x}", seed.wrapping_mul(0x9e37_79b1) >> 16);
        let dir = Path::new(LABS_DIR).join(id);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|()| dir),
        }
    }
}

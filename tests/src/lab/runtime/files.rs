//! The files that a node's runtimes find: their configuration.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use super::{CONF_DIR, NETWORK};

/// Configuration of containerd.
pub(super) const CONTAINERD_CONF: &str = "/etc/containerd/overlay-lab.toml";

/// The OCI runtime of containerd, see [`CRUN_SCRIPT`].
pub(super) const CRUN: &str = "/opt/oci/crun";

/// podman can be told to do without cgroups, containerd cannot: it always passes the same arguments.
const CRUN_SCRIPT: &str = "#!/bin/sh\nexec crun --cgroup-manager=disabled \"$@\"\n";

/// Without the CRI, which wants an image registry; nothing but what `ctr run --rootfs` needs.
const CONTAINERD_TOML: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "/run/containerd/containerd.sock"
"#;

const STORAGE_CONF: &str = r#"[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"#;

fn containers_conf() -> String {
    format!(
        r#"[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "{CONF_DIR}"
default_network = "{NETWORK}"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
"#
    )
}

/// Writes all of it below `root`, which stands for `/`.
pub(super) fn lay_out(root: &Path, network: &Value) -> io::Result<()> {
    let file = |path: &str, content: &[u8], mode: u32| -> io::Result<()> {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))
    };
    // What libcni finds first, whatever podman's package brought.
    file(&format!("{CONF_DIR}/10-{NETWORK}.conflist"), network.to_string().as_bytes(), 0o644)?;
    file("/etc/containers/containers.conf", containers_conf().as_bytes(), 0o644)?;
    file("/etc/containers/storage.conf", STORAGE_CONF.as_bytes(), 0o644)?;
    file(CONTAINERD_CONF, CONTAINERD_TOML.as_bytes(), 0o644)?;
    file(CRUN, CRUN_SCRIPT.as_bytes(), 0o755)
}

//! Kernel settings under `/proc/sys`.
//!
//! Paths are given with slashes, as below `/proc/sys`: `net/ipv4/ip_forward`. That spares the dotted form's
//! ambiguity for interfaces with a dot in their name (`overlay.1`, `eth0.100`); see [`interface`]. Settings
//! below `net` are those of the calling thread's network namespace.
//!
//! The environment variable `OVERLAY_PROC_SYS` names another directory: a container that is not privileged has its own
//! `/proc/sys` read-only, and may be given the node's beside it.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

pub use crate::family::Family;

/// A setting that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{action} sysctl {path}: {cause}{}", self.remedy())]
pub struct SysctlError {
    action: String,
    path: String,
    cause: io::Error,
}

impl SysctlError {
    /// Why: `NotFound` when the kernel, or the interface, lacks the setting.
    pub fn kind(&self) -> io::ErrorKind {
        self.cause.kind()
    }

    fn remedy(&self) -> &'static str {
        match self.cause.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                "; mount /proc/sys writable (a privileged container does), or name another in OVERLAY_PROC_SYS"
            }
            io::ErrorKind::PermissionDenied => "; needs root in the network namespace's user namespace",
            _ => "",
        }
    }
}

/// The path of an interface's setting: `net/ipv4/conf/overlay.1/rp_filter`.
pub fn interface(family: Family, interface: &str, setting: &str) -> String {
    format!("{}{interface}/{setting}", of_devices(family))
}

/// What the settings of all interfaces begin with, of one family.
pub const fn of_devices(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "net/ipv4/conf/",
        Family::Ipv6 => "net/ipv6/conf/",
    }
}

/// Reads a setting, without the line end.
pub fn get(path: &str) -> Result<String, SysctlError> {
    file(path)
        .and_then(fs::read_to_string)
        .map(|text| text.trim_end().to_owned())
        .map_err(|cause| SysctlError { action: "read".into(), path: path.to_owned(), cause })
}

/// Writes a setting.
pub fn set(path: &str, value: &str) -> Result<(), SysctlError> {
    file(path)
        .and_then(|file| fs::OpenOptions::new().write(true).open(file))
        .and_then(|mut file| {
            // One write: the kernel takes each write as a whole value.
            io::Write::write_all(&mut file, value.as_bytes())
        })
        .map_err(|cause| SysctlError { action: format!("write {value} to"), path: path.to_owned(), cause })
}

/// Writes a setting if it differs; true when it did.
pub fn ensure(path: &str, value: &str) -> Result<bool, SysctlError> {
    // Settings of several numbers are read back with tabs between them.
    if get(path)?.split_whitespace().eq(value.split_whitespace()) {
        return Ok(false);
    }
    set(path, value)?;
    Ok(true)
}

fn file(path: &str) -> io::Result<PathBuf> {
    // An interface may be called anything without a slash, yet a path must stay below /proc/sys.
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path below /proc/sys"));
    }
    Ok(root().join(path))
}

fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| env::var_os("OVERLAY_PROC_SYS").unwrap_or_else(|| "/proc/sys".into()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip};

    #[test]
    fn ensure_writes_only_what_differs() {
        in_fresh_netns(|| {
            set("net/ipv4/ip_forward", "0").unwrap();
            assert!(ensure("net/ipv4/ip_forward", "1").unwrap());
            assert!(!ensure("net/ipv4/ip_forward", "1").unwrap());
            assert_eq!(get("net/ipv4/ip_forward").unwrap(), "1");
        });
    }

    #[test]
    fn several_numbers_compare_equal_whatever_parts_them() {
        in_fresh_netns(|| {
            let path = "net/ipv4/ip_local_port_range";
            ensure(path, "40000 50000").unwrap();
            assert_eq!(get(path).unwrap(), "40000\t50000");
            assert!(!ensure(path, "40000 50000").unwrap());
        });
    }

    #[test]
    fn a_dot_in_an_interface_name_is_no_separator() {
        in_fresh_netns(|| {
            ip("link add overlay.1 type veth peer name overlay.1p");
            let path = interface(Family::Ipv4, "overlay.1", "rp_filter");
            assert_eq!(path, "net/ipv4/conf/overlay.1/rp_filter");
            set(&path, "2").unwrap();
            assert_eq!(get(&path).unwrap(), "2");
            let path = interface(Family::Ipv6, "overlay.1", "accept_ra");
            assert!(ensure(&path, "0").unwrap());
        });
    }

    #[test]
    fn errors_name_the_setting_and_the_value() {
        let error = ensure("net/ipv4/conf/overlay-none/rp_filter", "1").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(
            error.to_string().starts_with("read sysctl net/ipv4/conf/overlay-none/rp_filter: "),
            "{error}"
        );
        in_fresh_netns(|| {
            let error = set("net/ipv4/ip_local_port_range", "many").unwrap_err();
            assert!(error.to_string().starts_with("write many to sysctl net/ipv4/ip_local_port_range: "));
        });
    }

    #[test]
    fn paths_cannot_leave_proc_sys() {
        for path in ["../self/oom_score_adj", "net/ipv4/conf/../ip_forward", "/etc/passwd", "", "net//x"] {
            assert_eq!(get(path).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }
}

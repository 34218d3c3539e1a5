//! The kernel side as userspace sees it: loads, pins, attaches and fills. Every call into aya is in this module, so that
//! a new aya release touches it only.
//!
//! - [`pins`]: where maps, programs and links are pinned
//! - [`object`]: the embedded object, its constants, loading
//! - `load`: one program, in spite of signals
//! - [`schema`]: which schema is in force, and what it takes to change to another
//! - [`settings`]: what kernel settings were before the agent
//! - [`attach`]: programs onto devices, by tcx links or clsact filters
//! - [`attached`]: which program is attached where
//! - [`tables`]: typed views of the pinned maps
//! - [`calls`]: what calls of the CNI plugin have counted
//! - [`usage`]: how full maps are, and how long programs ran
//! - [`flows`]: the table of flows that return through the stack
//! - [`dump`]: the maps byte by byte
//! - [`events`]: the records of dropped and traced packets
//! - [`tracing`]: asking for traces
//! - [`replica`]: a private instance of the attached programs, to be asked
//! - [`run`]: one program on one packet, without a wire
//! - [`kernel`]: what this kernel can do
//!
//! The agent loads and attaches; the CNI plugin opens what is pinned, attaches to the devices it makes and never loads;
//! the command line only reads.

use std::{io, path::PathBuf};

use aya::{
    maps::MapError,
    programs::{ProgramError, links::LinkError, tc::TcError},
    sys::SyscallError,
};

pub mod attach;
pub mod attached;
pub mod calls;
pub mod dump;
pub mod events;
pub mod flows;
pub mod kernel;
mod load;
mod mapped;
pub mod object;
pub mod pins;
pub mod replica;
pub mod run;
pub mod schema;
pub mod settings;
pub mod tables;
pub mod tracing;
pub mod usage;

/// What can go wrong between userspace and the kernel side.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The pin root is not on a bpffs.
    #[error("{path} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`")]
    NoBpffs {
        /// The pin root, or its nearest existing parent.
        path: PathBuf,
    },
    /// Nothing is pinned where it should be.
    #[error("{path} does not exist: has the overlay agent been started on this node?")]
    NotPinned {
        /// The pin.
        path: PathBuf,
    },
    /// A pinned map was made by something else, or by a build whose layout differs under the same schema number.
    #[error(
        "pinned map {path} has {field} {found}, this build needs {wanted}: stop the agent and remove {dir} (pods have to be restarted)"
    )]
    Incompatible {
        /// The pin.
        path: PathBuf,
        /// The directory to remove.
        dir: PathBuf,
        /// Which property differs.
        field: &'static str,
        /// As pinned.
        found: u32,
        /// As built.
        wanted: u32,
    },
    /// A newer build has set this node up.
    #[error(
        "{dir} is in force here, the pins of a newer overlay, and this build knows schema {own}: use the newer build, or start the \
         agent of this one, which takes the node back"
    )]
    Newer {
        /// The pins in force.
        dir: PathBuf,
        /// The schema of this build.
        own: u32,
    },
    /// Another schema is being put in force, or calls of the CNI plugin do not end.
    #[error("{path} is locked: the schema of this node is being changed; try again")]
    Busy {
        /// The locked directory.
        path: PathBuf,
    },
    /// The kernel lacks something that cannot be done without.
    #[error("{0}")]
    Unsupported(String),
    /// A call into the kernel failed.
    #[error("{action}: {cause}")]
    Kernel {
        /// What was tried, with the name of the object.
        action: String,
        /// The cause; the errno where there is one.
        cause: io::Error,
    },
    /// A tc filter could not be read, written or removed.
    #[error(transparent)]
    Filter(crate::host::netlink::NetlinkError),
    /// aya refused; no errno to tell more.
    #[error("{action}: {message}")]
    Aya {
        /// What was tried, with the name of the object.
        action: String,
        /// The cause as aya describes it.
        message: String,
    },
}

impl DatapathError {
    /// The errno behind this error.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { cause, .. } => cause.raw_os_error(),
            Self::Filter(error) => Some(error.errno() as i32),
            _ => None,
        }
    }

    fn new(action: impl Into<String>, error: impl Into<Cause>) -> Self {
        let action = action.into();
        match error.into() {
            Cause::Io(cause) => Self::Kernel { action, cause },
            Cause::Other(message) => Self::Aya { action, message },
        }
    }
}

/// aya's nested error enums, reduced to what a person or a caller needs.
enum Cause {
    Io(io::Error),
    Other(String),
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<SyscallError> for Cause {
    fn from(SyscallError { io_error, .. }: SyscallError) -> Self {
        Self::Io(io_error)
    }
}

impl From<MapError> for Cause {
    fn from(error: MapError) -> Self {
        match error {
            MapError::SyscallError(e) => e.into(),
            MapError::IoError(e) | MapError::CreateError { io_error: e, .. } => Self::Io(e),
            other => Self::Other(chain(&other)),
        }
    }
}

impl From<ProgramError> for Cause {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::SyscallError(e) => e.into(),
            ProgramError::LoadError { io_error, verifier_log } => {
                log::debug!("{verifier_log}");
                Self::Other(format!("{io_error}; the verifier says: {}", verdict(&verifier_log.to_string())))
            }
            ProgramError::IOError(e) | ProgramError::TcError(TcError::IoError(e)) => Self::Io(e),
            other => Self::Other(chain(&other)),
        }
    }
}

impl From<LinkError> for Cause {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::SyscallError(e) => e.into(),
            other => Self::Other(chain(&other)),
        }
    }
}

impl From<aya::pin::PinError> for Cause {
    fn from(error: aya::pin::PinError) -> Self {
        match error {
            aya::pin::PinError::SyscallError(e) => e.into(),
            other => Self::Other(chain(&other)),
        }
    }
}

impl From<aya::EbpfError> for Cause {
    fn from(error: aya::EbpfError) -> Self {
        match error {
            aya::EbpfError::MapError(e) => e.into(),
            aya::EbpfError::ProgramError(e) => e.into(),
            other => Self::Other(chain(&other)),
        }
    }
}

/// The line of a verifier log that says why: the last one before the statistics.
fn verdict(log: &str) -> &str {
    const STATISTICS: [&str; 4] = ["verification time", "stack depth", "processed ", "max_states"];
    log.lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty() && !STATISTICS.iter().any(|s| line.starts_with(s)))
        .unwrap_or("nothing")
}

/// An error with all its sources on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_reason_is_picked_from_a_verifier_log() {
        let log = "0: R1=ctx()\n; x @ a.rs:1\n309: (7b) *(u64 *)(r10 -76) = r2\nmisaligned stack access off -76 size 8\nverification time 12 usec\nstack depth 208\nprocessed 1586 insns (limit 1000000)\n";
        assert_eq!(super::verdict(log), "misaligned stack access off -76 size 8");
        assert_eq!(super::verdict(""), "nothing");
    }
}

//! What this kernel can do, found by asking it where that is possible and by its version where it is not.
//!
//! Kernels of distributions carry parts of newer ones; so what counts is what the running kernel says that it knows
//! (`kernel/btf.rs`). A kernel that lacks a [`Feature`] runs without it, as the feature says; one that lacks what the programs cannot do
//! without is refused ([`check_version`]).

use std::{fs, io, sync::OnceLock};

use aya::util::KernelVersion;
use overlay_common::maps::AttachMode;
use serde::Serialize;

use super::DatapathError;

mod btf;

use btf::Btf;

/// The oldest kernel with everything that the programs need: `BPF_F_ADJ_ROOM_ENCAP_L2_ETH` (5.13, d01b59c9ae94).
pub const MINIMUM: (u8, u8) = (5, 13);

/// Something that not every kernel has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// What it is called.
    pub name: &'static str,
    /// Whether this kernel has it.
    pub present: bool,
    /// The first kernel with it, where one has been released.
    pub since: Option<String>,
    /// What happens without it.
    pub without: &'static str,
}

/// The features, as indexes of [`KNOWN`].
#[derive(Clone, Copy)]
enum Id {
    Encap,
    XdpFrags,
    DecapAcrossFamilies,
    Tcx,
}

/// How a feature is recognised.
struct Known {
    name: &'static str,
    /// Part of the kernel's BTF exactly where the feature is.
    enumerator: &'static str,
    /// The first version with it, by which a kernel is judged that shows no BTF.
    since: Option<(u8, u8)>,
    without: &'static str,
}

/// By their age.
const KNOWN: [Known; 5] = [
    // d01b59c9ae94. What the programs cannot do without.
    Known {
        name: "tc programs that build VXLAN headers",
        enumerator: "BPF_F_ADJ_ROOM_ENCAP_L2_ETH",
        since: Some(MINIMUM),
        without: "overlay does not run",
    },
    // f45d5b6ce2e8: running on packets in several parts, and the helpers for them.
    Known {
        name: "XDP for packets in parts",
        enumerator: "BPF_FUNC_xdp_load_bytes",
        since: Some((5, 18)),
        without: "network.xdp has no effect",
    },
    // d219df60a70e: `bpf_skb_adjust_room` changes the protocol of what it takes a header off.
    Known {
        name: "native decapsulation of one address family out of the other",
        enumerator: "BPF_F_ADJ_ROOM_DECAP_L3_IPV4",
        since: Some((6, 3)),
        without: "the anchor device decapsulates it",
    },
    // e420bed02507.
    Known {
        name: "tcx links",
        enumerator: "BPF_TCX_INGRESS",
        since: Some((6, 6)),
        without: "programs are attached as filters on a clsact qdisc",
    },
    // `bpf_skb_adjust_room` clears the tunnel state of a super-packet.
    Known {
        name: "native decapsulation of GSO that is not TCP",
        enumerator: DECAP_GSO,
        since: None,
        without: "the anchor device decapsulates it",
    },
];

const DECAP_GSO: &str = "BPF_F_ADJ_ROOM_DECAP_L4_UDP";

/// What the running kernel has said.
struct Kernel {
    present: [bool; KNOWN.len()],
    decap_gso: Option<u64>,
}

impl Kernel {
    /// Asked once for each process: a kernel does not learn.
    fn running() -> &'static Self {
        static RUNNING: OnceLock<Kernel> = OnceLock::new();
        RUNNING.get_or_init(|| {
            let btf = Btf::read();
            let present = KNOWN.map(|known| match &btf {
                Some(btf) => btf.enumerator(known.enumerator).is_some(),
                None => known.since.is_some_and(at_least),
            });
            let decap_gso = btf.and_then(|btf| btf.enumerator(DECAP_GSO));
            Self { present, decap_gso: decap_gso.and_then(|value| u64::try_from(value).ok()) }
        })
    }

    const fn has(&self, id: Id) -> bool {
        self.present[id as usize]
    }
}

fn at_least((major, minor): (u8, u8)) -> bool {
    KernelVersion::current().is_ok_and(|running| running >= KernelVersion::new(major, minor, 0))
}

/// What distinguishes kernels, and which of it the running one has.
pub fn features() -> Vec<Feature> {
    let feature = |(known, present): (Known, bool)| {
        let since = known.since.map(|(major, minor)| format!("{major}.{minor}"));
        Feature { name: known.name, present, since, without: known.without }
    };
    KNOWN.into_iter().zip(Kernel::running().present).map(feature).collect()
}

/// Whether programs can take a packet of one address family out of one of the other.
pub fn has_decap_across_families() -> bool {
    Kernel::running().has(Id::DecapAcrossFamilies)
}

/// Whether programs can be attached by tcx links.
pub fn has_tcx() -> bool {
    Kernel::running().has(Id::Tcx)
}

/// Why this kernel cannot run `xdp_wire`, if it cannot.
pub fn lacks_xdp() -> Option<String> {
    (!Kernel::running().has(Id::XdpFrags))
        .then(|| "this kernel has no XDP for packets in parts (Linux 5.18)".to_owned())
}

/// Refuses kernels that cannot run the programs.
pub fn check_version() -> Result<(), DatapathError> {
    let (major, minor) = MINIMUM;
    if Kernel::running().has(Id::Encap) {
        return Ok(());
    }
    Err(DatapathError::Unsupported(format!(
        "kernel {} is too old: overlay needs Linux {major}.{minor} or newer (tc programs that build VXLAN headers)",
        release()
    )))
}

/// What the running kernel calls itself: `uname -r`.
pub fn release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |u| u.release().to_string_lossy().into_owned())
}

/// How to attach programs: what is asked for, or the best that the kernel has for each kind of device.
pub fn attach_mode(wanted: Option<AttachMode>) -> Result<AttachMode, DatapathError> {
    let tcx = Kernel::running().has(Id::Tcx);
    match wanted {
        Some(AttachMode::Tcx) if !tcx => Err(DatapathError::Unsupported(
            "attach = \"tcx\" needs Linux 6.6: use \"clsact\" or \"auto\"".into(),
        )),
        Some(mode) => Ok(mode),
        None if tcx => Ok(AttachMode::Auto),
        None => Ok(AttachMode::Clsact),
    }
}

/// `BPF_F_ADJ_ROOM_DECAP_L4_UDP` as this kernel defines it: `bpf_skb_adjust_room` then clears the tunnel state of a
/// super-packet, and every kind of GSO can be decapsulated natively. `None` before the kernel that has it.
pub fn decap_l4_udp_flag() -> Option<u64> {
    Kernel::running().decap_gso
}

/// Checks that the process may do what the agent does: BPF and network administration.
///
/// Reads the effective capabilities (capabilities(7)); `CAP_SYS_ADMIN` includes `CAP_BPF` and `CAP_PERFMON`.
pub fn check_privileges() -> Result<(), DatapathError> {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|e| DatapathError::new("read /proc/self/status", e))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| {
            DatapathError::new(
                "read /proc/self/status",
                io::Error::new(io::ErrorKind::InvalidData, "no CapEff line"),
            )
        })?;
    let bpf = effective & SYS_ADMIN != 0 || effective & (BPF | PERFMON) == BPF | PERFMON;
    if effective & NET_ADMIN != 0 && bpf {
        return Ok(());
    }
    Err(DatapathError::Unsupported(
        "missing privileges: run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN to enter the pods' namespaces)".into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_in_use_is_new_enough() {
        check_version().unwrap();
        check_privileges().unwrap();
    }

    #[test]
    fn what_a_kernel_says_of_itself_agrees_with_its_version() {
        // Of a kernel of kernel.org; distributions may add to theirs, but take nothing away.
        for (feature, known) in features().iter().zip(KNOWN) {
            let since = known.since.unwrap_or((u8::MAX, 0));
            assert!(feature.present || !at_least(since), "{feature:?}");
        }
    }
}

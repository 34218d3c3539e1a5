//! What this kernel can do, found by asking it where that is possible and by its version where it is not.

use std::{fs, io};

use aya::util::KernelVersion;
use overlay_common::maps::AttachMode;

use super::DatapathError;

/// The oldest kernel with everything that the programs need: `BPF_F_ADJ_ROOM_ENCAP_L2_ETH` (5.13, d01b59c9ae94).
pub const MINIMUM: (u8, u8) = (5, 13);

/// The first kernel with tcx links (6.6, e420bed02507).
const TCX: (u8, u8) = (6, 6);

/// The first kernel that runs XDP programs on packets in several parts, and has the helpers for them (5.18, f45d5b6ce2e8).
const XDP_FRAGS: (u8, u8) = (5, 18);

/// Why this kernel cannot run `xdp_wire`, if it cannot.
pub fn lacks_xdp() -> Option<String> {
    let (major, minor) = XDP_FRAGS;
    (!at_least(XDP_FRAGS))
        .then(|| format!("this kernel has no XDP for packets in parts (Linux {major}.{minor})"))
}

fn at_least((major, minor): (u8, u8)) -> bool {
    KernelVersion::current().is_ok_and(|running| running >= KernelVersion::new(major, minor, 0))
}

/// Refuses kernels that cannot run the programs.
pub fn check_version() -> Result<(), DatapathError> {
    let (major, minor) = MINIMUM;
    if at_least(MINIMUM) {
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
    let (major, minor) = TCX;
    let tcx = at_least(TCX);
    match wanted {
        Some(AttachMode::Tcx) if !tcx => Err(DatapathError::Unsupported(format!(
            "attach = \"tcx\" needs Linux {major}.{minor}: use \"clsact\" or \"auto\""
        ))),
        Some(mode) => Ok(mode),
        None if tcx => Ok(AttachMode::Auto),
        None => Ok(AttachMode::Clsact),
    }
}

/// `BPF_F_ADJ_ROOM_DECAP_L4_UDP` as this kernel defines it: `bpf_skb_adjust_room` then clears the tunnel state of a
/// super-packet, and every kind of GSO can be decapsulated natively. `None` before the kernel that has it.
///
/// The value is read from the kernel's own BTF, because that is where a running kernel says what it knows.
pub fn decap_l4_udp_flag() -> Option<u64> {
    let btf = fs::read("/sys/kernel/btf/vmlinux").ok()?;
    enumerator(&btf, b"BPF_F_ADJ_ROOM_DECAP_L4_UDP").and_then(|value| u64::try_from(value).ok())
}

/// The value of an enumerator in raw BTF (Documentation/bpf/btf.rst), native byte order.
fn enumerator(btf: &[u8], name: &[u8]) -> Option<i64> {
    const ENUM: u32 = 6;
    const ENUM64: u32 = 19;
    let word = |offset: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(btf.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
    };
    if btf.get(..2)? != 0xeb9f_u16.to_ne_bytes() {
        return None;
    }
    let header_len = word(4)? as usize;
    let types = header_len + word(8)? as usize;
    let types_end = types + word(12)? as usize;
    let strings = header_len + word(16)? as usize;
    let has_name = |offset: u32| {
        let start = strings + offset as usize;
        btf.get(start..).is_some_and(|s| s.starts_with(name) && s.get(name.len()) == Some(&0))
    };

    let mut at = types;
    while at < types_end {
        let info = word(at + 4)?;
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        at += 12;
        match kind {
            ENUM => {
                for i in 0..count {
                    if has_name(word(at + i * 8)?) {
                        return Some(i64::from(word(at + i * 8 + 4)?));
                    }
                }
                at += count * 8;
            }
            ENUM64 => {
                for i in 0..count {
                    if has_name(word(at + i * 12)?) {
                        let (low, high) = (word(at + i * 12 + 4)?, word(at + i * 12 + 8)?);
                        return Some((u64::from(high) << 32 | u64::from(low)).cast_signed());
                    }
                }
                at += count * 12;
            }
            // INT, VAR and DECL_TAG carry one word more.
            1 | 14 | 17 => at += 4,
            // ARRAY
            3 => at += 12,
            // STRUCT, UNION, DATASEC
            4 | 5 | 15 => at += count * 12,
            // FUNC_PROTO
            13 => at += count * 8,
            _ => {}
        }
    }
    None
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
    fn enumerators_are_found_in_the_running_kernel() {
        let btf = fs::read("/sys/kernel/btf/vmlinux").unwrap();
        // Stable API since 4.1: include/uapi/linux/bpf.h and pkt_cls.h.
        assert_eq!(enumerator(&btf, b"BPF_PROG_TYPE_SCHED_CLS"), Some(3));
        assert_eq!(enumerator(&btf, b"BPF_F_ADJ_ROOM_ENCAP_L2_ETH"), Some(64));
        assert_eq!(enumerator(&btf, b"BPF_PROG_TYPE_SCHED"), None, "a prefix is not a name");
    }

    #[test]
    fn damaged_btf_is_no_answer_and_no_panic() {
        let btf = fs::read("/sys/kernel/btf/vmlinux").unwrap();
        for len in [0, 1, 23, 24, 100, 5000] {
            assert_eq!(enumerator(&btf[..len], b"BPF_PROG_TYPE_SCHED_CLS"), None);
        }
    }

    #[test]
    fn the_kernel_in_use_is_new_enough() {
        check_version().unwrap();
        check_privileges().unwrap();
    }
}

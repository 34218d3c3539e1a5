//! The kernel's description of its own types (`/sys/kernel/btf/vmlinux`, Linux 5.4), in which it says what it knows.

use std::fs;

const FILE: &str = "/sys/kernel/btf/vmlinux";

/// The description, read once for any number of questions.
pub(super) struct Btf(Vec<u8>);

impl Btf {
    /// `None` where the kernel does not show it (`CONFIG_DEBUG_INFO_BTF`).
    pub(super) fn read() -> Option<Self> {
        fs::read(FILE).ok().map(Self)
    }

    /// The value of an enumerator, whatever enum it is of.
    pub(super) fn enumerator(&self, name: &str) -> Option<i64> {
        enumerator(&self.0, name.as_bytes())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enumerators_are_found_in_the_running_kernel() {
        let btf = Btf::read().unwrap();
        // Stable API since 4.1: include/uapi/linux/bpf.h and pkt_cls.h.
        assert_eq!(btf.enumerator("BPF_PROG_TYPE_SCHED_CLS"), Some(3));
        assert_eq!(btf.enumerator("BPF_F_ADJ_ROOM_ENCAP_L2_ETH"), Some(64));
        assert_eq!(btf.enumerator("BPF_PROG_TYPE_SCHED"), None, "a prefix is not a name");
    }

    #[test]
    fn damaged_btf_is_no_answer_and_no_panic() {
        let Btf(btf) = Btf::read().unwrap();
        for len in [0, 1, 23, 24, 100, 5000] {
            assert_eq!(enumerator(&btf[..len], b"BPF_PROG_TYPE_SCHED_CLS"), None);
        }
    }
}

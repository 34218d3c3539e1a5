//! Who holds an address, and what that attachment's device on the node is called.
//!
//! Both derive from the container id and the interface name alone, so that DEL finds everything of an attachment without
//! a result, a namespace or a file. Invariant: both are part of the schema; a build that derives them otherwise would not
//! find the pods of the build before. Called by the verbs, and by the command line to print owners.

use overlay_common::maps::Owner;

use super::env::Attachment;

/// Stands between the head of an abbreviated container id and its hash; no container id has it.
const ABBREVIATION: u8 = b'~';
/// Bytes of a long container id that are kept: enough to find it in a runtime's list.
const HEAD: usize = 40;
/// Host side devices begin with this.
const DEVICE_PREFIX: &str = "ov";

/// The owner that an attachment's lease carries.
///
/// A container id longer than the 64 bytes of the field is stored as its first 40 bytes, `~`, and 16 hex digits of the
/// hash of the whole. The interface name is at most 15 bytes long ([`Attachment`] guarantees it); more is cut.
pub(super) fn owner(attachment: &Attachment) -> Owner {
    let Attachment { container, ifname } = attachment;
    let container = container.as_bytes();
    let mut owner = Owner { container: [0; 64], ifname: [0; 16] };
    if container.len() <= owner.container.len() {
        fill(&mut owner.container, container);
    } else {
        let hash = format!("{:016x}", fnv1a(&[container]));
        let head = container.iter().take(HEAD).copied();
        let bytes = head.chain([ABBREVIATION]).chain(hash.bytes());
        owner.container.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
    fill(&mut owner.ifname, ifname.as_bytes());
    owner
}

/// Container id and interface name of an owner, the id abbreviated where it is stored so.
pub fn owner_text(owner: &Owner) -> (String, String) {
    (text(&owner.container), text(&owner.ifname))
}

/// The name of the host side device of an attachment: `ov` and 11 hex digits of a hash of its owner.
///
/// 44 bits: with 250 pods on a node, two share a name once in 5·10⁸ nodes; ADD and DEL then refuse to touch the other
/// pod's device.
pub fn device_name(owner: &Owner) -> String {
    let hash = fnv1a(&[bytes(&owner.container), bytes(&owner.ifname)]);
    // Folded, not cut: that is how FNV is shortened without losing its spread (draft-eastlake-fnv, section 3).
    let folded = (hash >> 44) ^ (hash & ((1 << 44) - 1));
    format!("{DEVICE_PREFIX}{folded:011x}")
}

/// Whether a link of this name may be the host side of a pod, as the plugin names them.
pub fn is_pod_device(name: &str) -> bool {
    name.strip_prefix(DEVICE_PREFIX)
        .is_some_and(|hash| hash.len() == 11 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// What a lease remembers of the network that it was made for; never 0. Two names of networks on one node that share a
/// tag (once in 4·10⁹) would be collected as one.
pub(super) fn network_tag(name: &str) -> u32 {
    let hash = fnv1a(&[name.as_bytes()]);
    ((hash >> 32) as u32 ^ hash as u32).max(1)
}

/// FNV-1a, 64 bits, of the parts with a NUL between them, which no part contains. Stable across builds, unlike the
/// standard library's hashers; it need not resist an attacker, because container ids are the runtime's own.
fn fnv1a(parts: &[&[u8]]) -> u64 {
    parts
        .join(&0)
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// NUL-padded; what does not fit is cut.
fn fill(field: &mut [u8], bytes: &[u8]) {
    field.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
}

fn bytes(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(bytes(field)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str, ifname: &str) -> Attachment {
        Attachment { container: container.into(), ifname: ifname.into() }
    }

    fn device(attachment: &Attachment) -> String {
        device_name(&owner(attachment))
    }

    #[test]
    fn names_of_pods_devices_are_known_from_others() {
        let owner = owner(&Attachment::new("c".into(), "eth0".into()).unwrap());
        assert!(is_pod_device(&device_name(&owner)));
        for other in ["overlay.1", "ov", "ov0123456789", "ov0123456789ag", "ovs-system", "eth0"] {
            assert!(!is_pod_device(other), "{other}");
        }
    }

    #[test]
    fn container_ids_up_to_64_bytes_are_stored_verbatim() {
        for length in [1, 63, 64] {
            let id = "a".repeat(length);
            let owner = owner(&attachment(&id, "eth0"));
            assert_eq!(owner_text(&owner), (id, "eth0".to_owned()));
            assert!(owner.container[length..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn longer_container_ids_keep_their_head_and_stay_distinct() {
        let head = "b".repeat(64);
        let one = owner(&attachment(&format!("{head}1"), "eth0"));
        let two = owner(&attachment(&format!("{head}2"), "eth0"));
        assert_ne!(one, two);
        let (text, _) = owner_text(&one);
        assert_eq!(text.len(), 40 + 1 + 16);
        assert!(text.starts_with(&format!("{}~", &head[..40])), "{text}");
        assert!(text[41..].bytes().all(|byte| byte.is_ascii_hexdigit()), "{text}");
    }

    #[test]
    fn interfaces_of_one_container_are_different_owners_with_different_devices() {
        let (eth0, net1) = (attachment("c1", "eth0"), attachment("c1", "net1"));
        assert_ne!(owner(&eth0), owner(&net1));
        assert_ne!(device(&eth0), device(&net1));
        // Where the id ends and the name begins matters.
        assert_ne!(device(&attachment("c1e", "th0")), device(&attachment("c1", "eth0")));
    }

    #[test]
    fn a_device_name_fits_the_kernel() {
        let name = device(&attachment(&"c".repeat(200), "eth0"));
        assert_eq!(name.len(), 13);
        assert!(name.len() < libc::IFNAMSIZ);
        assert!(name.starts_with("ov"));
    }

    /// Pods that run while the binary is replaced depend on these values, computed by another implementation.
    #[test]
    fn names_and_owners_are_those_of_schema_1() {
        assert_eq!(fnv1a(&[b""]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(&[b"foobar"]), 0x8594_4171_f739_67e8);
        assert_eq!(device(&attachment("pod", "eth0")), "ov7d625fa7942");
        let long = owner(&attachment(&"0123456789".repeat(7), "eth0"));
        assert_eq!(owner_text(&long).0, "0123456789012345678901234567890123456789~be3cee88845bf57a");
        // From the hashes that FNV's authors publish for these texts.
        assert_eq!(network_tag("foobar"), 0x8594_4171 ^ 0xf739_67e8);
        assert_ne!(network_tag("overlay"), network_tag("overlay2"));
    }

    #[test]
    fn what_is_no_text_is_still_printed() {
        let owner = Owner { container: [0xff; 64], ifname: [b'x'; 16] };
        let (container, ifname) = owner_text(&owner);
        assert_eq!((container.chars().count(), ifname), (64, "x".repeat(16)));
    }
}

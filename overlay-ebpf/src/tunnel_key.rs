//! The tunnel key of a packet: what the anchor device, in external mode, is told of the outer headers and tells of them.
//!
//! Kept as words: the verifier wants the stack accessed aligned, and an IPv6 address in there is aligned to words alone.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_TUNINFO_IPV6, bpf_tunnel_key},
    helpers::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use overlay_common::{maps::Addr, wire::ip::IpHeader};

use crate::packet;

const WORDS: usize = size_of::<bpf_tunnel_key>() / 4;
const _: () = assert!(size_of::<bpf_tunnel_key>() == 44);

/// Places of words in `struct bpf_tunnel_key` (include/uapi/linux/bpf.h): `tunnel_id`, `remote_ipv6`, `tunnel_tos` with
/// `tunnel_ttl`, `tunnel_label`, `local_ipv6`.
const ID: usize = 0;
const REMOTE: usize = 1;
const TOS_TTL: usize = 5;
const LABEL: usize = 6;
const LOCAL: usize = 7;

/// Addresses of one family, as the kernel keeps them in a key: IPv6 as in a packet; IPv4, unlike all other addresses of the
/// programs, in host order (bpf-helpers(7)).
pub(crate) trait Outside: IpHeader {
    /// The flag that says so.
    const FLAG: u32;
    /// An address as four words.
    fn words(bytes: Self::Bytes) -> [u32; 4];
    /// Four words as an address.
    fn addr(words: [u32; 4]) -> Addr;
}

impl Outside for Ipv4Hdr {
    const FLAG: u32 = 0;

    #[inline(always)]
    fn words(bytes: [u8; 4]) -> [u32; 4] {
        [u32::from_be_bytes(bytes), 0, 0, 0]
    }

    #[inline(always)]
    fn addr([word, ..]: [u32; 4]) -> Addr {
        Addr::v4(word.to_be_bytes())
    }
}

impl Outside for Ipv6Hdr {
    const FLAG: u32 = BPF_F_TUNINFO_IPV6;

    #[inline(always)]
    fn words(bytes: [u8; 16]) -> [u32; 4] {
        packet::words_of_bytes(bytes)
    }

    #[inline(always)]
    fn addr(words: [u32; 4]) -> Addr {
        // SAFETY: as many bytes, any of which are valid.
        Addr { bytes: unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) } }
    }
}

/// The outer headers that a packet is to get.
pub(crate) struct Wanted<B> {
    pub(crate) vni: u32,
    pub(crate) local: B,
    pub(crate) remote: B,
    pub(crate) traffic_class: u8,
    pub(crate) ttl: u8,
    /// Of `bpf_skb_set_tunnel_key`, beside that of the family.
    pub(crate) flags: u32,
}

#[repr(C, align(8))]
struct Key([MaybeUninit<u32>; WORDS]);

impl Key {
    /// Sets a word. Volatile: plain stores become calls to loops over bytes, or are merged and then misaligned.
    #[inline(always)]
    fn set(&mut self, at: usize, word: u32) {
        if let Some(place) = self.0.get_mut(at) {
            // SAFETY: a place of the array.
            unsafe { place.as_mut_ptr().write_volatile(word) };
        }
    }

    #[inline(always)]
    fn get(&self, at: usize) -> u32 {
        // SAFETY: a place of the array, which the helper has filled.
        self.0.get(at).map_or(0, |place| unsafe { place.as_ptr().read_volatile() })
    }

    #[inline(always)]
    fn set_address(&mut self, at: usize, [a, b, c, d]: [u32; 4]) {
        self.set(at, a);
        self.set(at + 1, b);
        self.set(at + 2, c);
        self.set(at + 3, d);
    }
}

/// Sets the key; `false` where the kernel refuses it.
#[inline(always)]
pub(crate) fn set<O: Outside>(skb: *mut __sk_buff, wanted: &Wanted<O::Bytes>) -> bool {
    let mut key = Key([MaybeUninit::uninit(); WORDS]);
    key.set(ID, wanted.vni);
    key.set_address(REMOTE, O::words(wanted.remote));
    key.set(TOS_TTL, u32::from_ne_bytes([wanted.traffic_class, wanted.ttl, 0, 0]));
    key.set(LABEL, 0);
    key.set_address(LOCAL, O::words(wanted.local));
    // SAFETY: the helper reads the given number of bytes of `key`, all of which are set.
    let rc = unsafe {
        bpf_skb_set_tunnel_key(
            skb,
            core::ptr::from_mut(&mut key).cast(),
            size_of::<bpf_tunnel_key>() as u32,
            u64::from(wanted.flags | O::FLAG),
        )
    };
    rc == 0
}

/// Whom a packet came from, as the key says.
pub(crate) struct Sender {
    pub(crate) vni: u32,
    /// Outer source.
    pub(crate) src: Addr,
}

/// The sender, if the packet came out of a tunnel over the family `O`: the kernel gives the key of one family alone.
#[inline(always)]
pub(crate) fn sender<O: Outside>(skb: *mut __sk_buff) -> Option<Sender> {
    let mut key = Key([MaybeUninit::uninit(); WORDS]);
    // SAFETY: the helper writes the given number of bytes of `key`, also where it fails.
    let rc = unsafe {
        bpf_skb_get_tunnel_key(
            skb,
            core::ptr::from_mut(&mut key).cast(),
            size_of::<bpf_tunnel_key>() as u32,
            u64::from(O::FLAG),
        )
    };
    if rc != 0 {
        return None;
    }
    let words = [key.get(REMOTE), key.get(REMOTE + 1), key.get(REMOTE + 2), key.get(REMOTE + 3)];
    Some(Sender { vni: key.get(ID), src: O::addr(words) })
}

//! Where a packet's transport header is, behind the options of an IPv4 header or the extension headers of an IPv6 one.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use overlay_common::wire::{
    ipv4,
    ipv6::{self, Chain, Fragment, NotFound},
};

use crate::{config::Family, frame, packet};

/// A header whose transport header can be found.
pub(crate) trait Transport: Family {
    /// The transport header of the packet whose IP header this is, at `offset` of `packet`.
    fn transport(&self, packet: impl Walk, offset: usize) -> Result<Chain, NotFound>;
}

impl Transport for Ipv4Hdr {
    #[inline(always)]
    fn transport(&self, _: impl Walk, offset: usize) -> Result<Chain, NotFound> {
        let fragment = if ipv4::is_later_fragment(self) {
            Fragment::Later
        } else if ipv4::is_fragment(self) {
            Fragment::First
        } else {
            Fragment::No
        };
        Ok(Chain { protocol: self.proto, offset: offset + ipv4::header_len(self), fragment })
    }
}

impl Transport for Ipv6Hdr {
    #[inline(always)]
    fn transport(&self, packet: impl Walk, offset: usize) -> Result<Chain, NotFound> {
        let (protocol, offset) = (self.next_hdr, offset + Self::LEN);
        if !ipv6::is_extension(protocol) {
            return Ok(Chain { protocol, offset, fragment: Fragment::No });
        }
        unpack(packet.walk(protocol.into(), offset as u32))
    }
}

/// What extension headers are walked through in: a packet of tc or a frame of XDP. The result is one number, see [`pack`].
pub(crate) trait Walk {
    /// From the header of this number at `offset`.
    fn walk(self, protocol: u32, offset: u32) -> u64;
}

impl Walk for *mut __sk_buff {
    #[inline(always)]
    fn walk(self, protocol: u32, offset: u32) -> u64 {
        walk_packet(self, protocol, offset)
    }
}

impl Walk for *mut xdp_md {
    #[inline(always)]
    fn walk(self, protocol: u32, offset: u32) -> u64 {
        walk_frame(self, protocol, offset)
    }
}

/// A global function, as `drop::record_drop`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_packet(skb: *mut __sk_buff, protocol: u32, offset: u32) -> u64 {
    pack(ipv6::walk(protocol as u8, offset as usize, |at| {
        packet::load(skb, at, 0_u32).map(|bytes| bytes.0.to_ne_bytes())
    }))
}

/// A global function, as `drop::record_drop`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_frame(ctx: *mut xdp_md, protocol: u32, offset: u32) -> u64 {
    pack(ipv6::walk(protocol as u8, offset as usize, |at| {
        frame::load(ctx, at, 0_u32).map(|bytes| bytes.0.to_ne_bytes())
    }))
}

/// Values of the third byte of a packed result.
const TRUNCATED: u64 = 1 << 16;
const TOO_LONG: u64 = 2 << 16;

/// As a subprogram returns it: protocol, kind of fragment, what went wrong, offset.
#[inline(always)]
fn pack(end: Result<Chain, NotFound>) -> u64 {
    match end {
        Ok(Chain { protocol, offset, fragment }) => {
            let fragment = match fragment {
                Fragment::No => 0,
                Fragment::First => 1 << 8,
                Fragment::Later => 2 << 8,
            };
            u64::from(protocol) | fragment | (offset as u64) << 32
        }
        Err(NotFound::Truncated) => TRUNCATED,
        Err(NotFound::TooLong) => TOO_LONG,
    }
}

#[inline(always)]
fn unpack(packed: u64) -> Result<Chain, NotFound> {
    match packed & 0xff_0000 {
        TRUNCATED => return Err(NotFound::Truncated),
        TOO_LONG => return Err(NotFound::TooLong),
        _ => {}
    }
    let fragment = match packed >> 8 & 0xff {
        0 => Fragment::No,
        1 => Fragment::First,
        _ => Fragment::Later,
    };
    Ok(Chain { protocol: packed as u8, offset: (packed >> 32) as usize, fragment })
}

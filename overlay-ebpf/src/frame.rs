//! Access to a packet before there is an skb: what [`crate::packet`] is for tc, for XDP.
//!
//! A frame may have fragments (`xdp.frags`); its
//! headers are in the first part, or it is not understood.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::XdpContext,
};

use crate::packet::Aligned;

/// On to the driver, which makes an skb of it.
pub(crate) const PASS: u32 = xdp_action::XDP_PASS;

/// A pointer to a `T` at `offset` of the first part, `None` where it does not fit.
#[inline(always)]
pub(crate) fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

/// Bytes of the whole frame, its fragments included (Linux 5.18).
#[inline(always)]
pub(crate) fn len(ctx: &XdpContext) -> u32 {
    // SAFETY: a helper on the context.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as u32 }
}

/// A copy of the `T` at `offset`, wherever in the frame that is; `None` where it does not fit (Linux 5.18).
#[inline(always)]
pub(crate) fn load<T: Copy>(ctx: *mut xdp_md, offset: usize, zero: T) -> Option<Aligned<T>> {
    let mut value = Aligned(zero);
    // SAFETY: `value` is a plain struct of `size_of::<T>()` writable bytes.
    let rc = unsafe {
        bpf_xdp_load_bytes(
            ctx,
            offset as u32,
            core::ptr::from_mut(&mut value.0).cast(),
            size_of::<T>() as u32,
        )
    };
    (rc == 0).then_some(value)
}

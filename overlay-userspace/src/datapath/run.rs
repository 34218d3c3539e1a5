//! Runs a pinned program on a packet without a wire (`BPF_PROG_TEST_RUN`, bpf(2)): verdict and packet as it left the
//! program. The live maps are used and counted in; a redirect is reported, not made.

use aya::{
    TestRunOptions,
    programs::{SchedClassifier, TestRun as _, Xdp},
};
use overlay_common::reason::Hook;

use super::{DatapathError, attach::xdp, pins::Pins};

/// The circumstances of a packet that are not in its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// The device whose hook runs, in the calling thread's network namespace.
    pub ifindex: u32,
    /// Segment size and number of segments of a GSO packet.
    pub gso: Option<(u32, u32)>,
}

/// What a program returned (include/uapi/linux/pkt_cls.h; of XDP include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `TC_ACT_UNSPEC`, `TCX_NEXT`: on to the next program and the kernel. `XDP_PASS`.
    Pass,
    /// `TC_ACT_SHOT`. `XDP_DROP`.
    Drop,
    /// `TC_ACT_REDIRECT`.
    Redirect,
    /// Anything else.
    Other(i32),
}

/// Offsets in `struct __sk_buff` (include/uapi/linux/bpf.h), stable API.
const IFINDEX: usize = 40;
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;
const SK_BUFF: usize = 192;

/// Room for what a program adds.
const HEADROOM: usize = 256;

/// Runs `hook` on `packet`, which begins with an Ethernet header. Of XDP nothing of the context is used, and what comes
/// out begins with the metadata.
pub fn run(
    pins: &Pins,
    hook: Hook,
    packet: &[u8],
    context: Context,
) -> Result<(Verdict, Vec<u8>), DatapathError> {
    Runner::open(pins, hook)?.run(packet, context)
}

/// A pinned program that is opened once for any number of packets.
pub struct Runner(Opened);

enum Opened {
    Tc(Hook, SchedClassifier),
    Xdp(Xdp),
}

impl Runner {
    /// Opens the program that is pinned now.
    pub fn open(pins: &Pins, hook: Hook) -> Result<Self, DatapathError> {
        if hook == Hook::XdpWire {
            return Ok(Self(Opened::Xdp(xdp::open(pins)?)));
        }
        let path = pins.program(hook.name());
        let program = SchedClassifier::from_pin(&path)
            .map_err(|e| DatapathError::new(format!("open {}", path.display()), e))?;
        Ok(Self(Opened::Tc(hook, program)))
    }

    /// As [`run`].
    pub fn run(&self, packet: &[u8], context: Context) -> Result<(Verdict, Vec<u8>), DatapathError> {
        match &self.0 {
            Opened::Tc(hook, program) => run_tc(program, *hook, packet, context),
            Opened::Xdp(program) => run_xdp(program, packet),
        }
    }
}

fn run_tc(
    program: &SchedClassifier,
    hook: Hook,
    packet: &[u8],
    context: Context,
) -> Result<(Verdict, Vec<u8>), DatapathError> {
    let mut skb = [0_u8; SK_BUFF];
    let mut put = |offset: usize, value: u32| {
        if let Some(field) = skb.get_mut(offset..offset + 4) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
    };
    put(IFINDEX, context.ifindex);
    if let Some((size, segments)) = context.gso {
        put(GSO_SIZE, size);
        put(GSO_SEGS, segments);
    }
    let mut out = vec![0; packet.len() + HEADROOM];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&skb),
            ..TestRunOptions::default()
        })
        .map_err(|e| DatapathError::new(format!("run {}", hook.name()), e))?;
    out.truncate(result.data_size_out as usize);
    Ok((Verdict::of(result.return_value.cast_signed()), out))
}

impl Verdict {
    /// The verdict with this number.
    pub(super) const fn of(returned: i32) -> Self {
        match returned {
            -1 => Self::Pass,
            2 => Self::Drop,
            7 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

fn run_xdp(program: &Xdp, packet: &[u8]) -> Result<(Verdict, Vec<u8>), DatapathError> {
    let mut out = vec![0; packet.len() + HEADROOM];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })
        .map_err(|e| DatapathError::new(format!("run {}", Hook::XdpWire.name()), e))?;
    out.truncate(result.data_size_out as usize);
    let verdict = match result.return_value {
        1 => Verdict::Drop,
        2 => Verdict::Pass,
        other => Verdict::Other(other.cast_signed()),
    };
    Ok((verdict, out))
}

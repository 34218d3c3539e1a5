//! Two programs of a few instructions, for what a test run alone cannot give: a packet that came out of a tunnel, and the
//! FIB's answer to a program.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::programs::ProgramFd;

use super::{
    Circumstances, Frozen,
    syscall::{self, Instruction},
};
use crate::datapath::DatapathError;

/// Helpers (include/uapi/linux/bpf.h).
const STORE_BYTES: i32 = 9;
const TAIL_CALL: i32 = 12;
const SET_TUNNEL_KEY: i32 = 21;
const LOAD_BYTES: i32 = 26;
const FIB_LOOKUP: i32 = 69;

/// Opcodes (Documentation/bpf/standardization/instruction-set.rst).
const MOV_IMM: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const ADD_IMM: u8 = 0x07;
const STORE_WORD_IMM: u8 = 0x62;
const LOAD_IMM64: u8 = 0x18;
const JUMP_NE_IMM: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// The immediate of [`LOAD_IMM64`] is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;
/// The frame pointer.
const FP: u8 = 10;

fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    // The registers are bit fields, whose order follows that of the bytes.
    let registers = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
    u64::from_ne_bytes([code, registers, o0, o1, i0, i1, i2, i3])
}

fn set(register: u8, value: i32) -> Instruction {
    instruction(MOV_IMM, register, 0, 0, value)
}

fn copy(to: u8, from: u8) -> Instruction {
    instruction(MOV_REG, to, from, 0, 0)
}

fn call(helper: i32) -> Instruction {
    instruction(CALL, 0, 0, 0, helper)
}

fn exit() -> Instruction {
    instruction(EXIT, 0, 0, 0, 0)
}

/// `register` = frame pointer − `below`.
fn stack(register: u8, below: i32) -> [Instruction; 2] {
    [copy(register, FP), instruction(ADD_IMM, register, 0, 0, -below)]
}

/// `BPF_F_TUNINFO_IPV6` (include/uapi/linux/bpf.h).
const TUNINFO_IPV6: i32 = 1;

/// A program that gives a packet the tunnel metadata of a vxlan device, then goes on as `from_tunnel`.
///
/// What is set for sending is what `bpf_skb_get_tunnel_key` reads back with the ends exchanged: it takes no direction into
/// account (net/core/filter.c).
pub(super) struct Decapsulated {
    program: OwnedFd,
    _table: OwnedFd,
}

impl Decapsulated {
    pub(super) fn new(
        program: &ProgramFd,
        outer_src: IpAddr,
        own: IpAddr,
        vni: u32,
    ) -> Result<Self, DatapathError> {
        /// Bytes of `struct bpf_tunnel_key`, on the stack rounded up.
        const KEY: i32 = 44;
        const ROOM: i32 = 48;
        let table = syscall::jump_table(program)?;
        let word = |offset: i32, value: u32| {
            instruction(STORE_WORD_IMM, FP, 0, (offset - ROOM) as i16, value.cast_signed())
        };
        let mut instructions = vec![copy(6, 1)];
        instructions.extend((0..ROOM / 4).map(|index| word(index * 4, 0)));
        // tunnel_id, remote, tunnel_tos and _ttl, local; IPv4 addresses in host order (bpf-helpers(7)), IPv6 ones in the
        // order of the wire.
        instructions.push(word(0, vni));
        for (offset, address) in [(4, own), (28, outer_src)] {
            match address {
                IpAddr::V4(address) => instructions.push(word(offset, address.to_bits())),
                IpAddr::V6(address) => {
                    let words = address.octets();
                    for (index, bytes) in (0..).zip(words.chunks_exact(4)) {
                        let value = bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
                        instructions.push(word(offset + index * 4, value));
                    }
                }
            }
        }
        let flags = if own.is_ipv6() { TUNINFO_IPV6 } else { 0 };
        instructions.push(copy(1, 6));
        instructions.extend(stack(2, ROOM));
        instructions.extend([set(3, KEY), set(4, flags), call(SET_TUNNEL_KEY)]);
        instructions.extend([
            copy(1, 6),
            instruction(LOAD_IMM64, 2, PSEUDO_MAP_FD, 0, table.as_raw_fd()),
            0,
            set(3, 0),
            call(TAIL_CALL),
            // Not reached: the slot is filled.
            set(0, 0),
            exit(),
        ]);
        Ok(Self { program: syscall::load("from_tunnel with a tunnel key", &instructions)?, _table: table })
    }
}

impl AsFd for Decapsulated {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// What a program asks the FIB for a tunnel packet.
#[derive(Clone, Copy, Debug)]
pub struct FibQuestion {
    /// The device whose hook runs.
    pub ifindex: u32,
    /// Outer source.
    pub src: IpAddr,
    /// Outer destination, of the same family.
    pub dst: IpAddr,
    /// UDP ports, host order.
    pub ports: (u16, u16),
    /// Bytes of the tunnel packet from its outer IP header on.
    pub len: u16,
}

/// What `bpf_fib_lookup` returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fib {
    /// `BPF_FIB_LKUP_RET_SUCCESS`.
    NextHop,
    /// `…_BLACKHOLE`, `…_UNREACHABLE`, `…_PROHIBIT`: a route that refuses.
    Refused,
    /// `…_NOT_FWDED`: no route, or a local destination.
    NotForwarded,
    /// `…_FWD_DISABLED`: the device that it came in by does not forward.
    ForwardingOff,
    /// `…_UNSUPP_LWT`: the route encapsulates by itself.
    Encapsulating,
    /// `…_NO_NEIGH`: the neighbour is not resolved.
    NoNeighbour,
    /// `…_FRAG_NEEDED`: longer than the path's MTU.
    TooLong,
    /// Another number.
    Other(i32),
}

/// The FIB's answer.
#[derive(Clone, Copy, Debug)]
pub struct FibAnswer {
    /// The result.
    pub result: Fib,
    /// The outgoing device, where there is a next hop.
    pub ifindex: u32,
    /// The path's MTU in bytes, where the kernel says it (Linux 5.13); else the length asked about.
    pub mtu: u16,
    /// MAC of the outgoing device and of the next hop.
    pub macs: ([u8; 6], [u8; 6]),
}

/// Bytes of `struct bpf_fib_lookup`, and of the Ethernet header before it.
const FIB: u8 = 64;
const ETH_LEN: u8 = 14;
/// An EtherType for local experiments (IEEE 802): no protocol handler of a test run looks at the rest.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
/// Address families as `bpf_fib_lookup` takes them: IPv4, IPv6.
const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];
/// What the program returns where it could not ask.
const NOT_ASKED: i32 = 0xffff;

/// Asks the FIB as a program does, in the network namespace of the calling thread.
pub(super) fn fib(question: FibQuestion, flags: u32) -> Result<FibAnswer, DatapathError> {
    let (size, offset) = (i32::from(FIB), i32::from(ETH_LEN));
    let mut instructions = vec![copy(6, 1), set(2, offset)];
    instructions.extend(stack(3, size));
    instructions.extend([set(4, size), call(LOAD_BYTES), set(7, NOT_ASKED)]);
    let lookup = [
        &[copy(1, 6)][..],
        &stack(2, size),
        &[set(3, size), set(4, flags.cast_signed()), call(FIB_LOOKUP), copy(7, 0)],
        &[copy(1, 6), set(2, offset)],
        &stack(3, size),
        &[set(4, size), set(5, 0), call(STORE_BYTES)],
    ]
    .concat();
    // Past the lookup where the parameters could not be read.
    let past = i16::try_from(lookup.len()).unwrap_or(i16::MAX);
    instructions.push(instruction(JUMP_NE_IMM, 0, 0, past, 0));
    instructions.extend(lookup);
    instructions.extend([copy(0, 7), exit()]);
    let program = syscall::load("that asks the FIB", &instructions)?;

    let FibQuestion { ifindex, src, dst, ports, len } = question;
    let mut packet = vec![0; 12];
    packet.extend(EXPERIMENTAL);
    packet.extend([FAMILIES[usize::from(dst.is_ipv6())], libc::IPPROTO_UDP as u8]);
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.extend(len.to_ne_bytes());
    packet.extend(ifindex.to_ne_bytes());
    packet.extend([0; 4]);
    // Room for an address of either family.
    for address in [src, dst] {
        match address {
            IpAddr::V4(address) => {
                packet.extend(address.octets());
                packet.extend([0; 12]);
            }
            IpAddr::V6(address) => packet.extend(address.octets()),
        }
    }
    packet.resize(usize::from(ETH_LEN + FIB), 0);
    let tested = syscall::test_run(
        &program,
        "a FIB lookup",
        &packet,
        Circumstances { ifindex, ..Circumstances::default() },
    )?;
    let answer = tested.packet.get(usize::from(ETH_LEN)..).unwrap_or_default();
    let at = |offset: usize| answer.get(offset..).unwrap_or_default();
    let mac = |offset: usize| at(offset).first_chunk().copied().unwrap_or_default();
    Ok(FibAnswer {
        result: match tested.returned {
            0 => Fib::NextHop,
            1..=3 => Fib::Refused,
            4 => Fib::NotForwarded,
            5 => Fib::ForwardingOff,
            6 => Fib::Encapsulating,
            7 => Fib::NoNeighbour,
            8 => Fib::TooLong,
            number => Fib::Other(number),
        },
        ifindex: at(8).first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)),
        mtu: at(6).first_chunk().map_or(0, |bytes| u16::from_ne_bytes(*bytes)),
        macs: (mac(52), mac(58)),
    })
}

impl Frozen {
    /// The circumstances under which `from_tunnel` sees what the anchor device took out of a tunnel packet.
    pub fn decapsulated(&self, outer_src: IpAddr, vni: u32) -> Circumstances {
        Circumstances { ifindex: self.anchor(), mark: 0, tunnel: Some((outer_src, vni)) }
    }
}

//! Explicit Congestion Notification across the tunnel (RFC 6040) and the DSCP of the outer header.

/// The ECN field's bits of a TOS byte.
const MASK: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// The outer TOS byte for an inner one.
///
/// ECN: RFC 6040, 4.1, normal mode: copied. DSCP: RFC 2983's uniform model, also copied, so that the underlay
/// treats a pod's packet as if there were no tunnel.
#[inline(always)]
pub const fn outer_tos(inner: u8) -> u8 {
    inner
}

/// What decapsulation does to the inner TOS byte (RFC 6040, 4.2, figure 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decap {
    /// The inner byte stays as it is.
    Keep,
    /// The inner byte becomes this one.
    Set(u8),
    /// Congestion was marked on a packet whose transport cannot hear of it: drop.
    Drop,
}

/// Combines the ECN fields of the arriving outer and inner headers; the inner DSCP is never touched.
#[inline(always)]
pub const fn decap(outer: u8, inner: u8) -> Decap {
    match (outer & MASK, inner & MASK) {
        (CE, NOT_ECT) => Decap::Drop,
        (CE, ECT_0 | ECT_1) => Decap::Set(inner | CE),
        (ECT_1, ECT_0) => Decap::Set((inner & !MASK) | ECT_1),
        _ => Decap::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figure 4 of RFC 6040, row by row: inner, then the outgoing field for outer Not-ECT, ECT(0), ECT(1), CE.
    const FIGURE_4: [(u8, [Option<u8>; 4]); 4] = [
        (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
        (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
        (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];

    #[test]
    fn decapsulation_follows_figure_4_for_every_dscp() {
        for (inner_ecn, row) in FIGURE_4 {
            for (outer_ecn, wanted) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                for dscp in 0..64_u8 {
                    let inner = dscp << 2 | inner_ecn;
                    for outer_dscp in [0, 46 << 2] {
                        let got = match decap(outer_dscp | outer_ecn, inner) {
                            Decap::Keep => Some(inner),
                            Decap::Set(tos) => Some(tos),
                            Decap::Drop => None,
                        };
                        assert_eq!(
                            got,
                            wanted.map(|ecn| dscp << 2 | ecn),
                            "outer {outer_ecn:02b} inner {inner_ecn:02b}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn encapsulation_copies_dscp_and_ecn() {
        for tos in 0..=255 {
            assert_eq!(outer_tos(tos), tos);
        }
    }
}

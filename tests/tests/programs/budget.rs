//! What the programs may cost: the verifier's work and the stack. ARCHITECTURE.md states the measured values; these are
//! the limits, with some room, so that growth is a decision and not an accident.

use crate::bed::Bed;

/// Instructions that the verifier may walk through, for each program.
const VERIFIED: [(&str, u32); 6] = [
    ("from_pod", 14_000),
    ("to_pod", 2_500),
    ("from_host", 10_500),
    ("from_tunnel", 9_500),
    ("from_wire", 10_000),
    ("xdp_wire", 10_500),
];

#[test]
fn programs_stay_within_their_budget_of_verified_instructions() {
    Bed::with(|bed| {
        for facts in &bed.loaded.facts {
            let (_, limit) = VERIFIED.iter().find(|(name, _)| *name == facts.name).unwrap();
            println!(
                "{}: {} instructions verified, {} bytes of machine code",
                facts.name, facts.verified_instructions, facts.jited_bytes
            );
            assert!(facts.verified_instructions > 0, "{}: the kernel does not say", facts.name);
            assert!(
                facts.verified_instructions <= *limit,
                "{}: {} instructions verified, the budget is {limit}",
                facts.name,
                facts.verified_instructions
            );
        }
        assert_eq!(bed.loaded.facts.len(), VERIFIED.len());
    });
}

/// Bytes of stack that the whole call chain of a program may use; the kernel's limit is 512.
const STACK: usize = 400;

/// The deepest use of the frame pointer in a listing of `bpftool prog dump xlated`, for each function: accesses such as
/// `*(u64 *)(r10 -8)`, and addresses made by `r2 = r10` and `r2 += -16`.
fn frames(listing: &str) -> Vec<usize> {
    let mut frames = Vec::new();
    let mut derived: Option<&str> = None;
    for line in listing.lines().map(str::trim) {
        // `  12: (bf) r2 = r10`; anything else opens a function.
        let Some((_, code)) = line.split_once(": (").and_then(|(_, rest)| rest.split_once(") ")) else {
            if line.ends_with(':') {
                frames.push(0);
            }
            continue;
        };
        if frames.is_empty() {
            frames.push(0);
        }
        let depth: Option<usize> = if let Some((_, rest)) = code.split_once("(r10 -") {
            rest.split(')').next().and_then(|n| n.parse().ok())
        } else if let (Some(register), Some((left, n))) = (derived, code.split_once(" += -")) {
            (left == register).then(|| n.parse().ok()).flatten()
        } else {
            None
        };
        if let (Some(depth), Some(deepest)) = (depth, frames.last_mut()) {
            *deepest = depth.max(*deepest);
        }
        derived = code.strip_suffix(" = r10");
    }
    frames
}

#[test]
fn programs_stay_within_their_budget_of_stack() {
    Bed::with(|bed| {
        for facts in &bed.loaded.facts {
            let output = std::process::Command::new("bpftool")
                .args(["prog", "dump", "xlated", "pinned"])
                .arg(bed.program_pin(facts.name))
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let frames = frames(&String::from_utf8_lossy(&output.stdout));
            // Subprograms call none of their own but `memcpy` and its like, which use no stack: the chain is the program
            // and the deepest of them.
            let (own, rest) = frames.split_first().unwrap();
            let deepest = rest.iter().max().copied().unwrap_or(0);
            println!("{}: stack {own} + {deepest} bytes", facts.name);
            assert!(
                own + deepest <= STACK,
                "{}: {own} + {deepest} bytes of stack, the budget is {STACK}",
                facts.name
            );
        }
    });
}

#[test]
fn a_listing_is_measured_by_function() {
    let listing = "int a(struct __sk_buff * ctx):\n; x = 1\n   0: (bf) r2 = r10\n   1: (07) r2 += -16\n   2: (7b) *(u64 *)(r10 -8) = r1\nvoid b():\n   3: (63) *(u32 *)(r10 -40) = r1\n";
    assert_eq!(frames(listing), [16, 40]);
}

//! What the programs may cost: the verifier's work and the stack. ARCHITECTURE.md states the measured values; these are
//! the limits, with some room, so that growth is a decision and not an accident.

use overlay_userspace::datapath::kernel;

use crate::dual;

/// Instructions that the verifier may walk through, for each program with both families in use. Of current kernels: those before
/// 6.6 tell fewer states apart as equal, and walk through more.
const VERIFIED: [(&str, u32); 6] = [
    ("from_pod", 16_000),
    ("to_pod", 8_500),
    ("from_host", 13_000),
    ("from_tunnel", 11_500),
    ("from_wire", 13_500),
    ("xdp_wire", 8_000),
];

/// How much more that may be on older kernels, in percent.
const OLDER: u32 = 150;

#[test]
fn programs_stay_within_their_budget_of_verified_instructions() {
    dual::with(|bed| {
        for facts in &bed.loaded.facts {
            let (_, limit) = VERIFIED.iter().find(|(name, _)| *name == facts.name).unwrap();
            let limit = if kernel::has_tcx() { *limit } else { limit * OLDER / 100 };
            println!(
                "{}: {} instructions verified, {} bytes of machine code",
                facts.name, facts.verified_instructions, facts.jited_bytes
            );
            assert!(facts.verified_instructions > 0, "{}: the kernel does not say", facts.name);
            assert!(
                facts.verified_instructions <= limit,
                "{}: {} instructions verified, the budget is {limit}",
                facts.name,
                facts.verified_instructions
            );
        }
        assert_eq!(bed.loaded.facts.len(), VERIFIED.len());
    });
}

/// Bytes of stack that the whole call chain of a program may use, each frame rounded up as the verifier does (to 32 without
/// the JIT, to 16 on some kernels with it); the kernel's limit is 512.
const STACK: usize = 480;
const ROUNDED: usize = 32;

/// A function in a listing.
#[derive(Debug, Default, PartialEq, Eq)]
struct Function {
    /// The deepest use of the frame pointer.
    frame: usize,
    /// Indices of the functions that it calls.
    calls: Vec<usize>,
}

/// The functions of a listing of `bpftool prog dump xlated`. Of the frame pointer accesses count such as
/// `*(u64 *)(r10 -8)`, and addresses made by `r2 = r10` and `r2 += -16`.
fn functions(listing: &str) -> Vec<Function> {
    let (mut functions, mut starts, mut targets) = (Vec::<Function>::new(), Vec::new(), Vec::new());
    let mut derived: Option<&str> = None;
    let mut opened = true;
    for line in listing.lines().map(str::trim) {
        // `  12: (bf) r2 = r10`; anything else opens a function.
        let Some((at, code)) = line
            .split_once(": (")
            .and_then(|(at, rest)| Some((at.parse::<i64>().ok()?, rest.split_once(") ")?.1)))
        else {
            opened |= line.ends_with(':');
            continue;
        };
        if opened {
            functions.push(Function::default());
            starts.push(at);
            opened = false;
        }
        let depth: Option<usize> = if let Some((_, rest)) = code.split_once("(r10 -") {
            rest.split(')').next().and_then(|n| n.parse().ok())
        } else if let (Some(register), Some((left, n))) = (derived, code.split_once(" += -")) {
            (left == register).then(|| n.parse().ok()).flatten()
        } else {
            None
        };
        if let (Some(depth), Some(function)) = (depth, functions.last_mut()) {
            function.frame = depth.max(function.frame);
        }
        // `call pc+39#…`: that many after the next.
        if let Some(distance) = code.strip_prefix("call pc").and_then(|rest| rest.split('#').next()) {
            targets.push((functions.len() - 1, at + 1 + distance.parse::<i64>().unwrap()));
        }
        derived = code.strip_suffix(" = r10");
    }
    for (caller, target) in targets {
        let called = starts.iter().position(|start| *start == target).unwrap();
        functions[caller].calls.push(called);
    }
    functions
}

/// Bytes of stack of a function and the deepest chain of those that it calls, each frame rounded up to a multiple. The
/// verifier lets none call itself.
fn deepest(functions: &[Function], index: usize, multiple: usize) -> usize {
    let Function { frame, calls } = &functions[index];
    frame.next_multiple_of(multiple)
        + calls.iter().map(|called| deepest(functions, *called, multiple)).max().unwrap_or(0)
}

#[test]
fn programs_stay_within_their_budget_of_stack() {
    dual::with(|bed| {
        for facts in &bed.loaded.facts {
            let output = std::process::Command::new("bpftool")
                .args(["prog", "dump", "xlated", "pinned"])
                .arg(bed.program_pin(facts.name))
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let functions = functions(&String::from_utf8_lossy(&output.stdout));
            let own = functions[0].frame;
            println!("{}: stack {own} + {} bytes", facts.name, deepest(&functions, 0, 1) - own);
            let all = deepest(&functions, 0, ROUNDED);
            assert!(all <= STACK, "{}: {all} bytes of stack, the budget is {STACK}", facts.name);
        }
    });
}

#[test]
fn a_listing_is_measured_by_function() {
    let listing = "int a(struct __sk_buff * ctx):\n; x = 1\n   0: (bf) r2 = r10\n   1: (07) r2 += -16\n   2: (7b) *(u64 *)(r10 -8) = r1\n   3: (85) call pc+1#bpf_prog_1_b\n   4: (95) exit\nu32 b():\n   5: (63) *(u32 *)(r10 -40) = r1\n   6: (85) call bpf_ktime_get_ns#2\n";
    let found = functions(listing);
    assert_eq!(found, [Function { frame: 16, calls: vec![1] }, Function { frame: 40, calls: vec![] }]);
    assert_eq!((deepest(&found, 0, 1), deepest(&found, 0, 32)), (56, 96));
}

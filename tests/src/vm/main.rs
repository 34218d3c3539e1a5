//! `vm-init`: the first process of a virtual machine that `cargo xtask test --vm` boots.
//!
//! It owns the whole machine: mounts what the kernel offers, asks overlay what the kernel can do, runs the [`plan`] step by
//! step, each within its limit, reaps whatever loses its parent, and switches the machine off, whatever happens. What it says goes to
//! the second serial port in lines that begin with `@vm` (xtask/src/vm/outcome.rs reads them), between them the output of the
//! steps; the first one is the kernel's.

mod machine;
mod plan;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("error: vm-init is the first process of a virtual machine: run cargo xtask test --vm");
        return ExitCode::FAILURE;
    }
    if let Err(error) = machine::prepare().and_then(|()| plan::run()) {
        println!("@vm trouble {error:#}");
    }
    machine::off()
}

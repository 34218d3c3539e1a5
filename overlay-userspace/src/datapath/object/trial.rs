//! Whether this kernel takes the programs: they are loaded once more, with maps of their own, and let go of.

use aya::EbpfLoader;
use overlay_common::reason::Hook;

use super::{DatapathError, OBJECT, ProgramFacts, facts};

/// Loads all programs and pins nothing. Costs tens of milliseconds.
pub fn verify() -> Result<Vec<ProgramFacts>, DatapathError> {
    let mut loader = EbpfLoader::new();
    // Nobody is to pay for the memory of a real one.
    loader.map_max_entries("STACK_FLOWS", 1024);
    let mut ebpf = loader.load(OBJECT).map_err(|e| DatapathError::new("load the eBPF object", e))?;
    Hook::ALL.into_iter().map(|hook| facts(&mut ebpf, hook.name())).collect()
}

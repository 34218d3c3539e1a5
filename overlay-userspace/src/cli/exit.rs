//! How a command ends: the one list of exit statuses, as docs/cli.md has it.
//!
//! 2 is clap's, for a command line that makes no sense.

use std::process::ExitCode;

/// How a command ended that could do what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All is well: 0.
    Fine,
    /// It looked, and something is wrong with the node: 3. What, it has printed.
    Wrong,
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Fine => Self::SUCCESS,
            Verdict::Wrong => Self::from(3),
        }
    }
}

//! The host, after everything (§2 "`DEL`").

use crate::case::{Case, Verdict};
use crate::suite::Suite;
use crate::version::Version;

pub(super) const CASES: &[Case] = &[Case::practice(
    "nothing-is-left-after-the-last-del",
    "§2 DEL",
    "undo any modifications applied in the plugin's `ADD` functionality",
    nothing_is_left,
)];

/// Unlike the cases for DEL, this one counts what is made once for all containers.
fn nothing_is_left(suite: &Suite<'_>, _: Version) -> Verdict {
    suite.untouched.must_be_back(suite.host)
}

//! Flows that last: idle ones, ones that stay with a backend, ones beside direct ones.
use super::Scenario;
pub(super) const ALL: &[Scenario] = &[];

use super::Scenario;
pub(super) const ALL: &[Scenario] = &[];

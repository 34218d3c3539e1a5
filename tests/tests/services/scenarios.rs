//! The scenarios, by name. A scenario that returns has shown what its name says; [`crate::matrix`] then looks at the counters.

mod call;
pub(crate) mod crowd;
mod datagrams;
mod errors;
mod flows;
mod inside;
mod outside;

use anyhow::Result;

use crate::bed::Bed;

/// One thing that has to work.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Bed) -> Result<()>,
    /// Somebody is refused on purpose: resets and unwanted datagrams are part of it.
    pub(crate) refusals: bool,
}

impl Scenario {
    const fn new(name: &'static str, run: fn(&mut Bed) -> Result<()>) -> Self {
        Self { name, run, refusals: false }
    }

    const fn with_refusals(name: &'static str, run: fn(&mut Bed) -> Result<()>) -> Self {
        Self { name, run, refusals: true }
    }
}

/// All of them, for a bed with or without Docker.
pub(crate) fn all(docker: bool) -> impl Iterator<Item = &'static Scenario> {
    let lists = [flows::FIRST, inside::ALL, outside::ALL, flows::ALL, datagrams::ALL, errors::ALL, crowd::ALL];
    let container: &[Scenario] = if docker { outside::CONTAINER } else { &[] };
    lists.into_iter().flatten().chain(container).chain(flows::LAST)
}

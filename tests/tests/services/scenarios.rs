//! The scenarios, by name. A scenario that returns has shown what its name says; [`crate::matrix`] then looks at the counters.

mod call;
pub(crate) mod crowd;
mod datagrams;
mod errors;
pub(crate) mod flows;
mod inside;
mod outside;

use anyhow::Result;

use crate::bed::Bed;

/// One thing that has to work.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Bed) -> Result<()>,
    /// Protocol counters and reasons of drops that it may move: [`crate::health`].
    pub(crate) moves: &'static [&'static str],
}

impl Scenario {
    const fn new(name: &'static str, run: fn(&mut Bed) -> Result<()>) -> Self {
        Self { name, run, moves: &[] }
    }

    /// Somebody is refused on purpose.
    const fn with_refusals(name: &'static str, run: fn(&mut Bed) -> Result<()>) -> Self {
        Self { name, run, moves: &["Tcp.OutRsts", "Tcp.EstabResets", "Udp.NoPorts"] }
    }

    /// Very many connections end at once, on all CPUs: an acknowledgement may overtake another, find its connection closed, and be
    /// answered by a reset that nobody is there to hear.
    const fn of_many(name: &'static str, run: fn(&mut Bed) -> Result<()>) -> Self {
        Self { name, run, moves: &["Tcp.OutRsts"] }
    }
}

/// All of them, for a bed with or without Docker.
pub(crate) fn all(docker: bool) -> impl Iterator<Item = &'static Scenario> {
    let container: &[Scenario] = if docker { outside::CONTAINER } else { &[] };
    let lists = [
        flows::FIRST,
        inside::ALL,
        outside::ALL,
        flows::ALL,
        datagrams::ALL,
        errors::ALL,
        crowd::ALL,
        container,
        flows::LAST,
    ];
    lists.into_iter().flatten()
}

/// The same without Docker, as groups that need nothing of each other.
pub(crate) fn groups() -> [Vec<&'static Scenario>; 4] {
    let group = |lists: &[&'static [Scenario]]| lists.iter().copied().flatten().collect();
    [
        group(&[flows::FIRST, inside::ALL, crowd::ALL, flows::LAST]),
        group(&[outside::ALL]),
        group(&[flows::ALL]),
        group(&[datagrams::ALL, errors::ALL]),
    ]
}

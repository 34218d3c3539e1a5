//! `overlay migrate`: one step of a change of the schema, for an agent of an older build that takes the node back.
//!
//! That agent drives the change and knows only its own schema; this build knows both. See [`crate::agent::migration`].

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::{
    agent::migration::Step,
    datapath::{pins::Pins, schema},
};

#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// What to do
    step: Step,
    /// The schema to take from
    #[arg(long, value_name = "SCHEMA")]
    from: u32,
    /// The schema to give to, whose maps are there
    #[arg(long, value_name = "SCHEMA")]
    to: u32,
}

impl Migrate {
    pub(super) fn run(&self, pins: &Pins) -> anyhow::Result<()> {
        let own = pins.schema();
        ensure!(
            self.from.max(self.to) <= own,
            "this build knows schemas up to {own}: use the one that has set the node up"
        );
        let (from, to) = (pins.of_schema(self.from), pins.of_schema(self.to));
        let pointer = schema::pointer(pins).context("these pins have no other schemas beside them")?;
        ensure!(
            pointer.is_symlink() && to.root().exists(),
            "no change to schema {} is under way: start the agent of the build that has it, which calls this",
            self.to
        );
        self.step.run(&from, &to)
    }
}

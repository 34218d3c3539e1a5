//! `overlay programs`: the links that attach programs to devices.

use super::output::{Cell, OutputArgs, Row, print_list};
use crate::datapath::{
    attach::{self, LinkInfo},
    pins::Pins,
    tables::LocalTable,
};

impl Row for LinkInfo {
    const COLUMNS: &'static [&'static str] = &["LINK", "ID", "PROGRAM"];

    fn cells(&self) -> Vec<Cell> {
        vec![(&self.name).into(), self.link_id.into(), self.program_id.into()]
    }
}

/// Prints them.
pub(super) fn run(pins: &Pins, args: OutputArgs) -> anyhow::Result<()> {
    // No link is pinned also where no agent has ever been; this tells them apart.
    LocalTable::open(pins)?;
    print_list(args, &attach::links(pins)?)
}

//! `overlay programs`: every program, where it is attached and by what, and what it costs where the kernel counts that.
//!
//! Debian 12's bpftool does not know tcx links, and none knows which filter is whose.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use serde::Serialize;

use super::output::{Cell, OutputArgs, Row, print_list};
use crate::datapath::{
    attached::{Inventory, Program, Statistics},
    pins::Pins,
    tables::LocalTable,
};

#[derive(Debug, Args)]
pub(super) struct Programs {
    #[command(flatten)]
    output: OutputArgs,
    /// Have the kernel count for so many seconds, and show what each program did meanwhile; costs time in each of them
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", require_equals = true,
          value_parser = clap::value_parser!(u16).range(1..=3600))]
    stats: Option<u16>,
}

/// A program on a device, or one that is on none.
#[derive(Debug, Serialize)]
pub(super) struct ProgramRow {
    program: String,
    program_id: u32,
    device: Option<String>,
    ifindex: Option<u32>,
    /// `tcx`, `xdp`, `clsact` or `link`; `null` where it is attached nowhere.
    by: Option<&'static str>,
    /// Of the pin.
    name: Option<String>,
    link_id: Option<u32>,
    tag: Option<String>,
    loaded_at: Option<String>,
    /// It is the program that is pinned, not one from before an upgrade.
    current: bool,
    /// Of all devices together, and only where `kernel.bpf_stats_enabled` is 1.
    run_count: Option<u64>,
    run_time_ns: Option<u64>,
}

impl Row for ProgramRow {
    const COLUMNS: &'static [&'static str] = &["PROGRAM", "DEVICE", "BY", "LINK", "ID", "TAG", "LOADED"];
    const WIDE: &'static [&'static str] = &["RUNS", "NS/RUN", "PIN"];

    fn cells(&self) -> Vec<Cell> {
        let device = match (&self.device, self.by) {
            (Some(device), _) => device.into(),
            (None, Some(_)) => Cell::bad("gone"),
            (None, None) => Cell::bad("none"),
        };
        let tag = self.tag.as_deref().unwrap_or("-");
        vec![
            (&self.program).into(),
            device,
            self.by.unwrap_or("-").into(),
            self.link_id.map_or("-".into(), Cell::from),
            self.program_id.into(),
            if self.current { tag.into() } else { Cell::bad(format_args!("{tag} (old)")) },
            self.loaded_at.as_deref().unwrap_or("-").into(),
        ]
    }

    fn wide_cells(&self) -> Vec<Cell> {
        let mut cells = runs(self.run_count, self.run_time_ns);
        cells.push(self.name.as_deref().unwrap_or("-").into());
        cells
    }
}

/// Runs, and the mean of their time in nanoseconds.
fn runs(count: Option<u64>, time_ns: Option<u64>) -> Vec<Cell> {
    let mean = count.zip(time_ns).and_then(|(count, time)| time.checked_div(count));
    [count, mean].into_iter().map(|number| number.map_or("-".into(), Cell::from)).collect()
}

/// What a program did while the kernel counted.
#[derive(Debug, Serialize)]
struct MeasuredRow {
    program: String,
    program_id: u32,
    devices: usize,
    seconds: f64,
    run_count: u64,
    run_time_ns: u64,
}

impl Row for MeasuredRow {
    const COLUMNS: &'static [&'static str] = &["PROGRAM", "ID", "DEVICES", "RUNS", "NS/RUN", "CPU"];

    fn cells(&self) -> Vec<Cell> {
        let share = Duration::from_nanos(self.run_time_ns).as_secs_f64() / self.seconds * 100.0;
        let mut cells = vec![(&self.program).into(), self.program_id.into(), self.devices.into()];
        cells.extend(runs(Some(self.run_count), Some(self.run_time_ns)));
        cells.push(format!("{share:.2} %").into());
        cells
    }
}

fn seconds_of(time: SystemTime) -> Option<String> {
    let time = jiff::Timestamp::try_from(time).ok()?;
    jiff::Timestamp::from_second(time.as_second()).ok().map(|time| time.to_string())
}

/// All programs: links by name of their pin, then filters by device, then what is attached nowhere.
pub(super) fn list(pins: &Pins) -> anyhow::Result<Vec<ProgramRow>> {
    // Nothing is attached also where no agent has ever been; this tells them apart.
    LocalTable::open(pins)?;
    let counts = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|on| on.trim() != "0");
    let Inventory { programs, attachments } = Inventory::read(pins)?;
    let describe = |row: ProgramRow, program: Option<&Program>| ProgramRow {
        tag: program.map(|program| format!("{:016x}", program.tag)),
        loaded_at: program.and_then(|program| program.loaded_at).and_then(seconds_of),
        current: program.is_some_and(|program| program.pinned),
        run_count: program.filter(|_| counts).map(|program| program.run_count),
        run_time_ns: program.filter(|_| counts).map(|program| nanoseconds(program.run_time)),
        ..row
    };
    let blank = |program: String, program_id| ProgramRow {
        program,
        program_id,
        device: None,
        ifindex: None,
        by: None,
        name: None,
        link_id: None,
        tag: None,
        loaded_at: None,
        current: false,
        run_count: None,
        run_time_ns: None,
    };
    let mut idle: BTreeMap<u32, &Program> = programs.iter().map(|(id, program)| (*id, program)).collect();
    let mut rows = Vec::new();
    for one in attachments {
        idle.remove(&one.program_id);
        let (name, link_id) = one.link.unzip();
        let row = ProgramRow {
            device: one.device,
            ifindex: one.ifindex,
            by: Some(one.by.name()),
            name,
            link_id,
            ..blank(one.program, one.program_id)
        };
        rows.push(describe(row, programs.get(&one.program_id)));
    }
    rows.extend(
        idle.values().map(|program| describe(blank(program.name.clone(), program.id), Some(program))),
    );
    Ok(rows)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What each program did in so many seconds.
fn measure(pins: &Pins, seconds: u16) -> anyhow::Result<Vec<MeasuredRow>> {
    LocalTable::open(pins)?;
    let statistics = Statistics::enable()?;
    let (start, before) = (Instant::now(), Inventory::read(pins)?.programs);
    std::thread::sleep(Duration::from_secs(seconds.into()));
    let after = Inventory::read(pins)?;
    let seconds = start.elapsed().as_secs_f64();
    drop(statistics);
    let mut devices: HashMap<u32, usize> = HashMap::new();
    for one in &after.attachments {
        *devices.entry(one.program_id).or_default() += 1;
    }
    let mut rows: Vec<_> = after
        .programs
        .into_values()
        .map(|now| {
            let (count, time) =
                before.get(&now.id).map_or((0, Duration::ZERO), |then| (then.run_count, then.run_time));
            MeasuredRow {
                devices: devices.get(&now.id).copied().unwrap_or(0),
                seconds,
                run_count: now.run_count.saturating_sub(count),
                run_time_ns: nanoseconds(now.run_time.saturating_sub(time)),
                program: now.name,
                program_id: now.id,
            }
        })
        .collect();
    rows.sort_by(|a, b| (&a.program, a.program_id).cmp(&(&b.program, b.program_id)));
    Ok(rows)
}

/// Prints them.
pub(super) fn run(pins: &Pins, args: &Programs) -> anyhow::Result<()> {
    match args.stats {
        None => print_list(args.output, &list(pins)?),
        Some(seconds) => print_list(args.output, &measure(pins, seconds)?),
    }
}

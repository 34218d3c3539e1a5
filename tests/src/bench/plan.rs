//! What a run measures and how long it may take, and the run itself.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use overlay_tests::lab::{Lab, WireMode};

use crate::Options;
use crate::contenders::{self, Contender, Pair, Site, wire_name};
use crate::far::Far;
use crate::machine::{CpuTime, Machine};
use crate::placement::Placement;
use crate::programs;
use crate::results::{Cell, Results, rows};
use crate::rounds::{self, Limits};
use crate::scaling;
use crate::sockets::Sockets;
use crate::workloads::{Turn, Workload};

/// `--wire`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wire {
    /// A veth pair as the kernel makes it
    W1,
    /// Like a network card: segmentation at the sender, GRO at the receiver
    W2,
}

/// What `--only` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A workload, of all contenders.
    Workload(Workload),
    /// What growth costs.
    Scaling,
    /// What a run of a program costs.
    Programs,
}

impl Subject {
    /// From the command line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "scaling" => Ok(Self::Scaling),
            "programs" => Ok(Self::Programs),
            _ => Workload::from_str(text, false).map(Self::Workload).map_err(|_| {
                let names = Workload::ALL.map(Workload::name).join(", ");
                format!("choose one of {names}, scaling, programs")
            }),
        }
    }
}

/// When, from the beginning, the last round of each part has to be over. Programs come last and take a second or two.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    contenders: Duration,
    maps: Duration,
    flows: Duration,
    turn: Duration,
}

const QUICK: Schedule = Schedule {
    contenders: Duration::from_secs(70),
    maps: Duration::from_secs(90),
    flows: Duration::from_secs(105),
    turn: Duration::from_millis(50),
};
const FULL: Schedule = Schedule {
    contenders: Duration::from_mins(20),
    maps: Duration::from_mins(24),
    flows: Duration::from_mins(28),
    turn: Duration::from_millis(200),
};

/// What a run measures.
pub(crate) struct Plan {
    schedule: Schedule,
    rounds: usize,
    cells: Vec<Cell>,
    scaling: bool,
    programs: bool,
}

impl Plan {
    /// As the command line asks.
    pub(crate) fn new(options: &Options) -> Self {
        let mut schedule = if options.quick { QUICK } else { FULL };
        if let Some(turn) = options.turn {
            schedule.turn = Duration::from_millis(turn);
        }
        let all = options.only.is_empty();
        let wanted = |subject: Subject| all || options.only.contains(&subject);
        let wires = match options.wire {
            None => vec![false, true],
            Some(wire) => vec![wire == Wire::W2],
        };
        let placements = match options.cpus {
            Some(placement) => vec![placement],
            None if options.quick => vec![Placement::One],
            None => Placement::ALL.to_vec(),
        };
        let workloads: Vec<_> =
            Workload::ALL.into_iter().filter(|workload| wanted(Subject::Workload(*workload))).collect();
        let mut cells = Vec::new();
        for nic in wires {
            for &cpus in &placements {
                cells.extend(workloads.iter().map(|&workload| Cell { nic, cpus, workload }));
            }
        }
        Self {
            schedule,
            rounds: options.rounds.map_or(1000, |rounds| rounds as usize),
            cells,
            scaling: wanted(Subject::Scaling),
            programs: wanted(Subject::Programs),
        }
    }

    /// Wire modes whose contenders are needed: growth and programs are measured on W1.
    fn modes(&self) -> Vec<WireMode> {
        let needed = |mode: &WireMode| {
            self.cells.iter().any(|cell| cell.mode() == *mode)
                || *mode == WireMode::Veth && (self.scaling || self.programs)
        };
        WireMode::ALL.into_iter().filter(needed).collect()
    }

    /// Builds what is needed, measures, and takes everything away.
    pub(crate) fn execute(&self) -> Result<Results> {
        let start = Instant::now();
        let mut machine = Machine::examine()?;
        let cpu_time = CpuTime::now();
        for doubt in machine.doubts() {
            eprintln!("bench: {doubt}");
        }
        let limits = |until| Limits { until: start + until, rounds: self.rounds };
        let mut notes = Vec::new();

        let lab = Lab::new();
        let far = Rc::new(Far::start()?);
        let stage = Stage::build(&far, &lab, &self.modes())?;
        eprintln!("bench: everybody is ready after {:.1?}", start.elapsed());
        let turn_length = self.schedule.turn;
        let samples = rounds::run(
            limits(self.schedule.contenders),
            &self.cells,
            &Contender::ALL,
            |cell, contender| {
                let turn = Turn { length: turn_length, placement: cell.cpus };
                let sample = cell.workload.run(stage.sockets(cell, contender)?, turn);
                sample.with_context(|| format!("measure {} on {}", contender.name(), wire_name(cell.mode())))
            },
        )?;
        let rows = self.cells.iter().flat_map(|cell| rows(*cell, &samples)).collect();

        let mut growth = Vec::new();
        if self.scaling {
            growth = scaling::maps(&far, &lab, limits(self.schedule.maps), turn_length)?;
            let sites: Vec<&Site> = stage.sites(WireMode::Veth);
            match raise_descriptors(scaling::DESCRIPTORS) {
                Ok(()) => {
                    growth.extend(scaling::flows(&far, &sites, limits(self.schedule.flows), turn_length)?);
                }
                Err(error) => notes.push(format!("many flows were not measured: {error:#}")),
            }
        }
        let programs = match stage.pair() {
            Some(pair) if self.programs => programs::measure(pair, &mut notes)?,
            _ => Vec::new(),
        };
        machine.finish(cpu_time);
        eprintln!("bench: done after {:.1?}", start.elapsed());
        Ok(Results { machine, turn_ms: turn_length.as_millis(), rows, scaling: growth, programs, notes })
    }
}

/// All contenders on all wires, with their sockets.
struct Stage {
    entries: Vec<(WireMode, Site, [Sockets; 2], Option<Pair>)>,
}

impl Stage {
    fn build(far: &Rc<Far>, lab: &Lab, modes: &[WireMode]) -> Result<Self> {
        let mut entries = Vec::new();
        for &mode in modes {
            for contender in Contender::ALL {
                let (site, pair) = contenders::build(lab, mode, contender)?;
                let open = |way| {
                    Sockets::open(far, way).with_context(|| {
                        format!("connect the two ends of {} on {}", contender.name(), wire_name(mode))
                    })
                };
                let sockets = [open(&site.far)?, open(&site.near)?];
                entries.push((mode, site, sockets, pair));
            }
        }
        Ok(Self { entries })
    }

    fn sockets(&self, cell: Cell, contender: Contender) -> Result<&Sockets> {
        let found =
            self.entries.iter().find(|(mode, site, ..)| (*mode, site.contender) == (cell.mode(), contender));
        let (_, _, sockets, _) = found.context("a contender was not built")?;
        Ok(&sockets[usize::from(cell.workload.is_local())])
    }

    fn sites(&self, wanted: WireMode) -> Vec<&Site> {
        self.entries.iter().filter(|(mode, ..)| *mode == wanted).map(|(_, site, ..)| site).collect()
    }

    fn pair(&self) -> Option<&Pair> {
        self.entries.iter().find_map(|(.., pair)| pair.as_ref())
    }
}

/// Lets this process have this many more descriptors than it needs for anything else.
fn raise_descriptors(more: usize) -> Result<()> {
    let want = more as u64 + 4096;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of descriptors")?;
    if soft >= want {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, want, hard.max(want))
        .with_context(|| format!("raise the limit of descriptors to {want}"))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    fn plan(arguments: &[&str]) -> Plan {
        Plan::new(&Options::try_parse_from(["bench"].iter().chain(arguments)).unwrap())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
        assert!(Options::try_parse_from(["bench", "--only", "nothing"]).is_err());
        assert!(Options::try_parse_from(["bench", "--turn", "501"]).is_err());
    }

    #[test]
    fn everything_is_measured_unless_told_otherwise() {
        let full = plan(&[]);
        assert_eq!(full.cells.len(), 2 * 3 * Workload::ALL.len());
        assert!(full.scaling && full.programs);
        assert_eq!(plan(&["--quick"]).cells.len(), 2 * Workload::ALL.len());
        let mut unique = full.cells.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), full.cells.len());
    }

    #[test]
    fn only_what_is_named_is_measured_and_built() {
        let one = plan(&["--only", "udp_rr", "--wire", "w2", "--cpus", "two"]);
        assert_eq!(one.cells, [Cell { nic: true, cpus: Placement::Two, workload: Workload::UdpRr }]);
        assert!(!one.scaling && !one.programs);
        assert_eq!(one.modes(), [WireMode::Nic]);
        let programs = plan(&["--only", "programs"]);
        assert!(programs.cells.is_empty() && programs.programs);
        assert_eq!(programs.modes(), [WireMode::Veth]);
    }

    #[test]
    fn schedules_keep_what_the_flags_promise() {
        // Programs and the removal of the lab come after the last round.
        assert!(QUICK.flows <= Duration::from_secs(110));
        assert!(FULL.flows <= Duration::from_mins(29));
        // A round of everything must fit several times.
        let round = |schedule: Schedule, cells: u32| schedule.turn * cells * Contender::ALL.len() as u32;
        assert!(round(QUICK, 22) * 8 < QUICK.contenders);
        assert!(round(FULL, 66) * 10 < FULL.contenders);
    }
}

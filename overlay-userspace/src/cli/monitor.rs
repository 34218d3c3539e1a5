//! `overlay monitor`: packets as the programs drop them or, while this asks for it, let them go on. Needs no agent.

use std::{
    collections::VecDeque,
    io::{self, Write},
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use overlay_common::maps::{Event, EventKind, HEAD};
use serde_json::Value;

use crate::{
    datapath::{
        events::{Events, Suppressed},
        pins::Pins,
        tracing::{RENEW, Request},
    },
    observe::{
        filter::Filter,
        names::Names,
        pcapng::{Packet, PcapNg},
        record::{self, Clock, Lost},
        sink::{Show, Sink, SinkArgs},
        until::{self, Until, Wake},
    },
};

/// How often the records are looked at: more than twice in a window of the programs' budget, so that none is overwritten
/// unread.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is said what is not shown.
const LOST_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Monitor {
    /// Which packets: those that are dropped, those that go on, or both
    #[arg(short = 't', long = "type", value_name = "TYPE", default_value = "drop")]
    kind: Kind,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    sink: SinkArgs,
    /// End after this many packets
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    /// End after this time, such as 30s
    #[arg(long, value_name = "TIME", value_parser = until::duration)]
    timeout: Option<Duration>,
    /// Begin with the last COUNT drops that are still kept, and end after them
    #[arg(long, value_name = "COUNT")]
    last: Option<usize>,
    /// With --last, go on with what happens from now on
    #[arg(short, long, requires = "last")]
    follow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Packets that are dropped
    Drop,
    /// Packets that go on, at each program that they pass
    Trace,
    /// Both
    All,
}

impl Kind {
    const fn includes(self, kind: u8) -> bool {
        match self {
            Self::Drop => kind == EventKind::Drop as u8,
            Self::Trace => kind == EventKind::Trace as u8,
            Self::All => true,
        }
    }
}

impl Monitor {
    pub(super) fn run(&self, pins: &Pins) -> anyhow::Result<()> {
        let names = Names::read(pins)?;
        self.filter.check(&names)?;
        let mut events = Events::open(pins)?;
        let until = Until::new(self.timeout)?;
        let mut shown = Shown { sink: self.sink.open(HEAD as u32)?, names, left: self.count };
        let traces = self.kind != Kind::Drop;
        // Those that are there already were for others.
        events.skip_traces();
        if let Some(last) = self.last {
            let mut kept: VecDeque<Event> = VecDeque::new();
            for event in events.read().events.into_iter().filter(|event| self.wants(event, &shown.names)) {
                if kept.len() == last {
                    kept.pop_front();
                }
                kept.push_back(event);
            }
            if shown.print(kept.make_contiguous())? == Wake::End || !self.follow {
                return Ok(());
            }
        } else {
            events.skip();
        }
        let mut before = events.suppressed();
        let mut request =
            if traces { Some(Request::new(pins, self.filter.in_kernel(&shown.names))?) } else { None };
        self.announce(&shown.names);

        let (mut renewed, mut told) = (Instant::now(), Instant::now());
        let mut missed = 0;
        loop {
            let wake = until.wait(None, PAUSE)?;
            let batch = events.read();
            missed += batch.missed;
            let mut wanted = Vec::new();
            for event in batch.events.into_iter().filter(|event| self.kind.includes(event.kind)) {
                shown.names.refresh(event.ifindex)?;
                if self.wants(&event, &shown.names) {
                    wanted.push(event);
                }
            }
            let end = shown.print(&wanted)? == Wake::End || wake == Wake::End;
            if end || told.elapsed() >= LOST_EVERY {
                told = Instant::now();
                let now = events.suppressed();
                let lost = self.lost(&before, &now, std::mem::take(&mut missed));
                before = now;
                if (shown.tell(&lost)? == Wake::End) || end {
                    return Ok(());
                }
            }
            if let Some(request) = &mut request
                && renewed.elapsed() >= RENEW
            {
                request.renew()?;
                renewed = Instant::now();
            }
        }
    }

    fn wants(&self, event: &Event, names: &Names) -> bool {
        self.kind.includes(event.kind) && self.filter.matches(event, names)
    }

    /// Of what there are no records, what was asked for. Addresses are not known of it.
    fn lost(&self, before: &Suppressed, now: &Suppressed, missed: u64) -> Lost {
        let mut lost = Lost { missed, ..Lost::between(before, now) };
        let reasons = &self.filter.reason;
        lost.drops.retain(|(reason, _)| {
            self.kind != Kind::Trace
                && (reasons.is_empty() || reasons.iter().any(|wanted| wanted.0 == *reason))
        });
        if self.kind == Kind::Drop {
            lost.traces = 0;
        }
        lost
    }

    fn announce(&self, names: &Names) {
        let what = match self.kind {
            Kind::Drop => "dropped packets",
            Kind::Trace => "packets",
            Kind::All => "all packets",
        };
        // Not of interest to who has closed it.
        let _ = writeln!(io::stderr(), "overlay: listening for {what} on {}; Ctrl-C ends it", names.own());
    }
}

/// What has been printed, and with what.
struct Shown {
    sink: Sink,
    names: Names,
    /// How many there may still be.
    left: Option<u64>,
}

impl Shown {
    fn print(&mut self, events: &[Event]) -> anyhow::Result<Wake> {
        let clock = Clock::read()?;
        let Self { sink, names, left } = self;
        for event in events {
            if *left == Some(0) {
                break;
            }
            *left = left.map(|left| left - 1);
            if until::unless_closed(sink.show(&One { event, clock, names }))? == Wake::End {
                return Ok(Wake::End);
            }
        }
        if !events.is_empty() && until::unless_closed(sink.flush())? == Wake::End {
            return Ok(Wake::End);
        }
        Ok(if *left == Some(0) { Wake::End } else { Wake::GoOn })
    }

    fn tell(&mut self, lost: &Lost) -> anyhow::Result<Wake> {
        if lost.is_empty() {
            return Ok(Wake::GoOn);
        }
        let now = Timestamp::now();
        until::unless_closed(
            self.sink.remark(&lost.line(now), &lost.json(now)).and_then(|()| self.sink.flush()),
        )
    }
}

/// A record that is to be shown.
struct One<'a> {
    event: &'a Event,
    clock: Clock,
    names: &'a Names,
}

impl Show for One<'_> {
    fn line(&self) -> String {
        record::line(self.event, self.clock, self.names)
    }

    fn json(&self) -> Value {
        record::json(self.event, self.clock, self.names)
    }

    fn write(&self, file: &mut PcapNg<Box<dyn Write>>) -> io::Result<()> {
        let Self { event, clock, names } = self;
        let device = names.device(event.ifindex).map_or_else(|| format!("#{}", event.ifindex), str::to_owned);
        let bytes = event.head.get(..usize::from(event.head_len)).unwrap_or_default();
        file.write(&Packet {
            time: clock.since_epoch(event.time_ns),
            interface: &device,
            outbound: record::is_egress(event),
            bytes,
            len: event.len,
            comment: &record::comment(event),
        })
    }
}

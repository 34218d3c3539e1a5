//! One record of the programs as a line for people, which has hubble's columns (TIME SRC -> DST WHY VERDICT), and as JSON.

use std::{net::IpAddr, time::Duration};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use overlay_common::{
    counter::Path,
    maps::{Event, EventKind},
    reason::{Hook, Reason},
};
use serde_json::{Map, Value, json};

use super::{
    decode::{self, Flow},
    names::Names,
};
use crate::datapath::{DatapathError, events::Suppressed, tracing};

/// From the programs' clock to that on the wall.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Timestamp, u64);

impl Clock {
    /// Both clocks now: the one on the wall may be set at any time.
    pub fn read() -> Result<Self, DatapathError> {
        Ok(Self(Timestamp::now(), tracing::now()?))
    }

    /// The time of a record.
    pub fn time(self, time_ns: u64) -> Timestamp {
        let Self(wall, monotonic) = self;
        let ago = SignedDuration::from_nanos(monotonic.cast_signed() - time_ns.cast_signed());
        wall.checked_sub(ago).unwrap_or(wall)
    }

    /// The same since 1970.
    pub fn since_epoch(self, time_ns: u64) -> Duration {
        self.time(time_ns).as_duration().try_into().unwrap_or_default()
    }
}

/// The reason of a drop, or the path of a packet that goes on.
pub fn why(event: &Event) -> &'static str {
    let code = u32::from(event.code);
    let name = if event.kind == EventKind::Drop as u8 {
        Reason::from_index(code).map(Reason::name)
    } else {
        Path::ALL.get(code as usize).map(|path| path.name())
    };
    name.unwrap_or("unknown")
}

/// `DROPPED` or `FORWARDED`.
pub fn verdict(event: &Event) -> &'static str {
    if event.kind == EventKind::Drop as u8 { "DROPPED" } else { "FORWARDED" }
}

/// The name of the program.
pub fn hook(event: &Event) -> &'static str {
    Hook::from_index(event.hook).map_or("unknown", Hook::name)
}

/// Away from the pods and the node, or towards them?
pub fn is_egress(event: &Event) -> bool {
    matches!(Hook::from_index(event.hook), Some(Hook::FromPod | Hook::FromHost))
}

/// As hubble prints times.
pub fn local_time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%b %e %H:%M:%S%.6f").to_string()
}

/// One end: address, port, and whose that is.
pub fn end(address: Option<IpAddr>, port: u16, names: &Names) -> String {
    let Some(address) = address else { return "?".to_owned() };
    let port = if port == 0 { String::new() } else { format!(":{port}") };
    let name = match names.pod(address) {
        Some(pod) => pod.full_name(),
        None => names.node(address).map(|node| format!("on {node}")),
    };
    match name {
        Some(name) => printable(&format!("{address}{port} ({name})")),
        None => format!("{address}{port}"),
    }
}

/// Names come from outside: none of them moves the cursor.
pub fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// For people.
pub fn line(event: &Event, clock: Clock, names: &Names) -> String {
    let flow = Flow::of(event);
    let device = names.device(event.ifindex).map_or_else(|| format!("#{}", event.ifindex), printable);
    let mut by = String::new();
    if event.kind == EventKind::Drop as u8
        && let Some(pod) = names.pod_of(event.ifindex)
        && Some(pod.address) != flow.src
        && Some(pod.address) != flow.dst
    {
        by = format!(" of {}", end(Some(pod.address), 0, names));
    }
    if !event.outer_src.is_unspecified() {
        by = format!("{by} from VTEP {}", end(Some(event.outer_src.to_ip()), 0, names));
    }
    format!(
        "{}: {} -> {} {} {} ({}; {} on {device}{by}; {} bytes)",
        local_time(clock.time(event.time_ns)),
        end(flow.src, flow.src_port, names),
        end(flow.dst, flow.dst_port, names),
        why(event),
        verdict(event),
        decode::what(event),
        hook(event),
        event.len,
    )
}

/// For a comment in a capture file.
pub fn comment(event: &Event) -> String {
    let verb = if event.kind == EventKind::Drop as u8 { "dropped" } else { "forwarded" };
    let what = if event.kind == EventKind::Drop as u8 {
        Reason::from_index(event.code.into()).map(|reason| format!(" ({})", reason.describe()))
    } else {
        None
    };
    format!("{verb}: {} at {}{}", why(event), hook(event), what.unwrap_or_default())
}

/// For machines.
pub fn json(event: &Event, clock: Clock, names: &Names) -> Value {
    let flow = Flow::of(event);
    let is_drop = event.kind == EventKind::Drop as u8;
    let pod =
        |address: Option<IpAddr>| address.and_then(|a| names.pod(a)).and_then(super::names::Pod::full_name);
    let node = |address: Option<IpAddr>| address.and_then(|a| names.node(a));
    let outer = (!event.outer_src.is_unspecified()).then(|| event.outer_src.to_ip());
    json!({
        "type": if is_drop { "drop" } else { "trace" },
        "time": clock.time(event.time_ns).to_string(),
        "node": names.own(),
        "verdict": verdict(event),
        if is_drop { "reason" } else { "path" }: why(event),
        "direction": if is_egress(event) { "egress" } else { "ingress" },
        "hook": hook(event),
        "ifindex": event.ifindex,
        "device": names.device(event.ifindex),
        "device_pod": names.pod_of(event.ifindex).and_then(super::names::Pod::full_name),
        "length": event.len,
        "ether_type": event.ether_type,
        "protocol": event.protocol,
        "summary": decode::what(event),
        "source": flow.src,
        "source_port": event.src_port,
        "source_pod": pod(flow.src),
        "source_node": node(flow.src),
        "destination": flow.dst,
        "destination_port": event.dst_port,
        "destination_pod": pod(flow.dst),
        "destination_node": node(flow.dst),
        "outer_source": outer,
        "outer_source_node": node(outer),
    })
}

/// What there are no records of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Drops beyond the budget, by reason.
    pub drops: Vec<(Reason, u64)>,
    /// Traces beyond the budget.
    pub traces: u64,
    /// Records that were overwritten before they were read.
    pub missed: u64,
}

impl Lost {
    /// The difference of two looks at the counters.
    pub fn between(before: &Suppressed, now: &Suppressed) -> Self {
        let drops = Reason::ALL.into_iter().zip(before.drops.iter().zip(&now.drops));
        let drops = drops.map(|(reason, (before, now))| (reason, now.saturating_sub(*before)));
        Self {
            drops: drops.filter(|(_, count)| *count > 0).collect(),
            traces: now.traces.saturating_sub(before.traces),
            missed: 0,
        }
    }

    /// Nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.drops.is_empty() && self.traces == 0 && self.missed == 0
    }

    /// For people.
    pub fn line(&self, now: Timestamp) -> String {
        let mut parts = Vec::new();
        let drops: u64 = self.drops.iter().map(|(_, count)| count).sum();
        if drops > 0 {
            let by: Vec<_> =
                self.drops.iter().map(|(reason, count)| format!("{} {count}", reason.name())).collect();
            parts.push(format!("{drops} more drops not shown ({})", by.join(", ")));
        }
        if self.traces > 0 {
            parts.push(format!("{} more traces not shown", self.traces));
        }
        if self.missed > 0 {
            parts.push(format!("{} records overwritten before they were read", self.missed));
        }
        format!("{}: {}", local_time(now), parts.join("; "))
    }

    /// For machines.
    pub fn json(&self, now: Timestamp) -> Value {
        let drops: Map<_, _> =
            self.drops.iter().map(|(reason, count)| (reason.name().to_owned(), json!(count))).collect();
        json!({
            "type": "lost",
            "time": now.to_string(),
            "drops": drops,
            "traces": self.traces,
            "missed": self.missed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_on_the_wall_is_as_far_away_as_the_programs_clock() {
        let wall: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let clock = Clock(wall, 10_000_000_000);
        assert_eq!(clock.time(9_999_000_000).to_string(), "2026-01-02T03:04:04.999Z");
        assert_eq!(clock.since_epoch(10_000_000_000).as_secs(), wall.as_second().unsigned_abs());
    }

    #[test]
    fn what_is_lost_is_told_by_reason() {
        let before = Suppressed::default();
        let mut now = before.clone();
        now.drops[Reason::NoNode as usize] = 5;
        now.drops[Reason::Vni as usize] = 2;
        let mut lost = Lost::between(&before, &now);
        assert!(!lost.is_empty());
        let time: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let line = lost.line(time);
        assert!(line.ends_with(": 7 more drops not shown (vni 2, no_node 5)"), "{line}");
        lost.missed = 3;
        assert!(lost.line(time).ends_with("; 3 records overwritten before they were read"));
        assert_eq!(lost.json(time)["drops"], json!({ "no_node": 5, "vni": 2 }));
        assert!(Lost::between(&now, &now).is_empty());
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}

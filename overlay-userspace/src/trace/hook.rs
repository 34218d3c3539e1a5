//! Asking the program of a hook: the private instance where the attached program is of this build, else the attached one.

use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
};
use serde_json::json;

use super::{Outcome, Steps, TraceError, Verdict, packet::Inner, remedy, site::Site};
use crate::{
    datapath::{
        attach::{Device, Running, running, xdp_program},
        replica::{Circumstances, Frozen, Replica, Run, run_attached},
        run::Verdict as Returned,
    },
    host::netlink::Link,
};

/// The programs to ask, once something of overlay is found attached.
pub(super) struct Programs {
    replica: Replica,
}

impl Programs {
    pub(super) fn frozen(&self) -> &Frozen {
        self.replica.frozen()
    }

    pub(super) fn replica(&self) -> &Replica {
        &self.replica
    }
}

/// A program of overlay at a hook of a device.
pub(super) struct Attached {
    hook: Hook,
    program: Running,
    same_build: bool,
    ifindex: u32,
}

/// Finds the first program on the way, and loads the instance that is asked. `Err`: nothing of overlay is attached, which
/// is the verdict.
pub(super) fn first(
    site: &mut Site,
    steps: &mut Steps,
    link: &Link,
    hook: Hook,
) -> Result<Result<(Attached, Programs), Verdict>, TraceError> {
    let all = running(&mut site.netlink, Device { name: &link.name, ifindex: link.index }, hook)?;
    let Some(program) = all.iter().find(|program| program.name == hook.name()).cloned() else {
        return Ok(Err(absent(steps, link, hook, &all)));
    };
    let mut programs = Programs { replica: Replica::load(&site.pins, &program)? };
    let attached = found(steps, &mut programs, link, hook, &all, program)?;
    Ok(Ok((attached, programs)))
}

/// As [`first`], for a further program.
pub(super) fn next(
    site: &mut Site,
    steps: &mut Steps,
    programs: &mut Programs,
    link: &Link,
    hook: Hook,
) -> Result<Result<Attached, Verdict>, TraceError> {
    let all = running(&mut site.netlink, Device { name: &link.name, ifindex: link.index }, hook)?;
    match all.iter().find(|program| program.name == hook.name()).cloned() {
        Some(program) => found(steps, programs, link, hook, &all, program).map(Ok),
        None => Ok(Err(absent(steps, link, hook, &all))),
    }
}

/// `xdp_wire`, which has a packet before [`Hook::FromWire`] where it is attached: the verdict if it drops it.
pub(super) fn guard(
    steps: &mut Steps,
    programs: &mut Programs,
    link: &Link,
    packet: &[u8],
) -> Result<Option<Verdict>, TraceError> {
    let hook = Hook::XdpWire;
    let Some(attached) = link.xdp.map(xdp_program).transpose()?.flatten() else { return Ok(None) };
    let facts = facts(link, hook, std::slice::from_ref(&attached), None);
    let Running { id, name, .. } = &attached;
    if name != hook.name() {
        let text =
            format!("somebody else's XDP program {name} ({id}) runs first on {}: not asked", link.name);
        steps.add("guard", text, facts);
        return Ok(None);
    }
    let Some(run) = programs.replica.run_guard(&attached, packet)? else {
        let text = format!(
            "{name} ({id}) runs first on {}, of another build: not asked; it drops nothing that from_wire does not",
            link.name
        );
        steps.add("guard", text, facts);
        return Ok(None);
    };
    let drops = run.verdict == Returned::Drop;
    let text = if drops { "" } else { ", and passes it on" };
    steps.add("guard", format!("{name} ({id}) runs first on {}{text}", link.name), facts);
    if !drops {
        return Ok(None);
    }
    let expected: Vec<_> = run.reason.map(Expected::Drop).into_iter().collect();
    did(steps, hook, &run, &expected);
    Ok(Some(dropped(hook, run.reason).device(&link.name)))
}

fn facts(link: &Link, hook: Hook, all: &[Running], same: Option<bool>) -> serde_json::Value {
    let programs = all
        .iter()
        .map(|p| json!({ "id": p.id, "name": p.name, "tag": format!("{:016x}", p.tag), "by": p.by }));
    json!({ "hook": hook.name(), "device": link.name, "attached": programs.collect::<Vec<_>>(), "same_build": same })
}

fn absent(steps: &mut Steps, link: &Link, hook: Hook, all: &[Running]) -> Verdict {
    let text = format!(
        "{} is not attached to {}: the kernel goes on with the packet, unchecked",
        hook.name(),
        link.name
    );
    steps.add("program", &text, facts(link, hook, all, None));
    Verdict::new(Outcome::Refused, text)
        .device(&link.name)
        .remedy("the agent attaches what is missing within seconds: is it running? (`overlay status`)")
}

fn found(
    steps: &mut Steps,
    programs: &mut Programs,
    link: &Link,
    hook: Hook,
    all: &[Running],
    program: Running,
) -> Result<Attached, TraceError> {
    let same_build = programs.replica.stands_for(&program)?;
    let Running { id, tag, by, .. } = &program;
    let how = if same_build {
        "asked in a private instance of the same instructions"
    } else {
        "it is of ANOTHER BUILD than this binary: the attached one itself was asked, which has counted the packet; the steps may not be quite its own"
    };
    let mut text =
        format!("{} runs on {} (program {id}, tag {tag:016x}, by {by}); {how}", hook.name(), link.name);
    let others: Vec<_> = all.iter().filter(|p| p.id != *id).map(|p| p.name.as_str()).collect();
    if !others.is_empty() {
        text = format!("{text}; beside it run programs of others: {}", others.join(", "));
    }
    steps.add("program", text, facts(link, hook, all, Some(same_build)));
    Ok(Attached { hook, program, same_build, ifindex: link.index })
}

impl Attached {
    /// What the program does with the packet.
    pub(super) fn ask(
        &self,
        site: &Site,
        programs: &mut Programs,
        packet: &[u8],
        how: Circumstances,
    ) -> Result<Run, TraceError> {
        let how = Circumstances { ifindex: self.ifindex, ..how };
        if self.same_build {
            return Ok(programs.replica.run(self.hook, packet, how)?);
        }
        Ok(run_attached(&site.pins, &self.program, packet, how)?)
    }
}

/// Lets the instance know the recorded flows that a packet may match, and says which there are.
pub(super) fn flows(steps: &mut Steps, programs: &mut Programs, inner: &Inner) -> Result<bool, TraceError> {
    if !programs.frozen().stack_flows() {
        steps.add(
            "flow",
            "flows through the stack are not recorded on this node (network.stack_flows = 0)",
            json!(null),
        );
        return Ok(false);
    }
    let mut found = Vec::new();
    let mut matches = false;
    for key in inner.keys() {
        let Some(recorded) = programs.replica.know_flow(&key)? else { continue };
        // The pair of addresses counts for fragments only, which this packet is not.
        let whole = key.protocol != 0;
        matches |= whole;
        let ago = now().saturating_sub(recorded) / 1_000_000_000;
        let kind = if whole { "this flow" } else { "fragments between these addresses" };
        found.push((
            format!("{kind} was recorded {ago} s ago"),
            json!({ "whole": whole, "recorded_ns": recorded }),
        ));
    }
    let facts = json!({ "recorded": found.iter().map(|(_, fact)| fact).collect::<Vec<_>>() });
    let said: Vec<_> = found.into_iter().map(|(text, _)| text).collect();
    let text = if matches {
        format!("{}: it left through the stack, and so returns through it", said.join(", "))
    } else if said.is_empty() {
        "no recorded flow of the stack is like this packet (STACK_FLOWS)".to_owned()
    } else {
        format!("{}; whole packets do not match", said.join(", "))
    };
    steps.add("flow", text, facts);
    Ok(matches)
}

/// `CLOCK_MONOTONIC` in nanoseconds.
fn now() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let part = |value: i64| u64::try_from(value).unwrap_or(0);
        part(time.tv_sec()) * 1_000_000_000 + part(time.tv_nsec())
    })
}

/// The verdict on a packet that a program drops.
pub(super) fn dropped(hook: Hook, reason: Option<Reason>) -> Verdict {
    let Some(reason) = reason else {
        return Verdict::new(
            Outcome::Dropped,
            format!("dropped by {}, for a reason that this binary does not know", hook.name()),
        );
    };
    let text = format!("dropped by {}: {} ({})", hook.name(), reason.describe(), reason.name());
    Verdict {
        reason: Some(reason.name().to_owned()),
        ..Verdict::new(Outcome::Dropped, text).remedy(remedy::of(reason))
    }
}

/// Says what the program did, and where that is none of what the steps lead to.
pub(super) fn did(steps: &mut Steps, hook: Hook, run: &Run, expected: &[Expected]) {
    let returned = match run.verdict {
        Returned::Pass => "passes it on".to_owned(),
        Returned::Drop => "drops it".to_owned(),
        Returned::Redirect => "redirects it".to_owned(),
        Returned::Other(number) => format!("returns {number}, which no program of this build does"),
    };
    let paths: Vec<_> = run.paths.iter().map(|path| path.name()).collect();
    let reason = run.reason.map(Reason::name);
    let counted: Vec<_> = paths.iter().copied().chain(reason).collect();
    let counted =
        if counted.is_empty() { "nowhere".to_owned() } else { format!("under {}", counted.join(" and ")) };
    let facts = json!({ "hook": hook.name(), "returned": format!("{:?}", run.verdict), "paths": paths, "reason": reason });
    steps.add(super::DID, format!("{} {returned}, and counts it {counted}", hook.name()), facts);
    let leads_there = |expected: &Expected| match expected {
        Expected::Drop(reason) => run.reason == Some(*reason),
        Expected::Path(path) => run.paths.contains(path) && run.reason.is_none(),
        Expected::Uncounted => run.paths.is_empty() && run.reason.is_none(),
    };
    if !expected.iter().any(leads_there) {
        steps.add(super::DIFFERS, format!("the steps above lead elsewhere: {expected:?}"), json!(null));
    }
}

/// What the steps lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Drop(Reason),
    Path(Path),
    /// On, without being counted.
    Uncounted,
}

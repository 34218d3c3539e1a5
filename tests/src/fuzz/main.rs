//! `fuzz-programs`: the loaded programs, fed with packets that nobody sends (`BPF_PROG_TEST_RUN`). `cargo xtask fuzz --programs`
//! runs it.
//!
//! [`make`] puts packets together and damages them, [`judge`] says of each whether what became of it may be, [`campaign`]
//! adds up the counters and makes findings small. The same seed gives the same packets. What a run without a wire cannot have, tunnel
//! metadata and the redirect itself, is left to the lab: of `from_tunnel` only the refusal is reached.

mod bed;
mod campaign;
mod judge;
mod kernel_log;
mod make;
mod random;

use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Parser;
use overlay_common::reason::Hook;

use crate::{
    bed::Bed,
    campaign::{BATCH, Campaign},
    kernel_log::KernelLog,
    make::{Maker, Packet},
    random::Random,
};

/// Feed the loaded programs with packets that nobody sends.
#[derive(Parser)]
#[command(name = "fuzz-programs")]
struct Options {
    /// How long
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    seconds: u64,
    /// How many packets at most
    #[arg(long, value_name = "NUMBER")]
    packets: Option<u64>,
    /// What packets are made from: the same seed makes the same ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One program alone, such as from_pod
    #[arg(long, value_parser = hook)]
    hook: Option<Hook>,
    /// Run this packet and say what becomes of it
    #[arg(long, value_name = "HEX", requires = "hook")]
    packet: Option<String>,
    /// Its segments
    #[arg(long, value_name = "SIZE,NUMBER", requires = "packet")]
    gso: Option<String>,
}

fn hook(name: &str) -> Result<Hook, String> {
    let names = Hook::ALL.map(Hook::name).join(", ");
    Hook::ALL.into_iter().find(|hook| hook.name() == name).ok_or(format!("programs are {names}"))
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let mut log = KernelLog::from_now()?;
    let bed = Bed::new()?;
    if let (Some(hex), Some(hook)) = (&options.packet, options.hook) {
        return replay(&bed, hook, hex, options.gso.as_deref());
    }
    let hooks = options.hook.map_or_else(|| Hook::ALL.to_vec(), |hook| vec![hook]);
    let mut campaigns = hooks
        .into_iter()
        .map(|hook| {
            // So that a program's packets are the same alone.
            let random = Random::new(options.seed.wrapping_mul(0x100).wrapping_add(hook as u64));
            Ok((hook, Campaign::new(&bed, hook)?, Maker { random, devices: bed.devices }))
        })
        .collect::<Result<Vec<_>>>()?;
    eprintln!("seed {}", options.seed);
    let (start, limit) = (Instant::now(), Duration::from_secs(options.seconds));
    let mut packets = 0;
    while start.elapsed() < limit && options.packets.is_none_or(|most| packets < most) {
        for (_, campaign, maker) in &mut campaigns {
            if let Some(finding) = campaign.batch(maker)? {
                bail!("found with seed {} after {packets} packets\n{finding}", options.seed);
            }
            packets += BATCH as u64;
        }
        let alarms = log.alarms()?;
        if !alarms.is_empty() {
            bail!(
                "with seed {}, after {packets} packets the kernel says:\n{}",
                options.seed,
                alarms.join("\n")
            );
        }
    }
    for (hook, campaign, _) in &campaigns {
        println!("{}", summary(*hook, &campaign.seen));
    }
    println!("{packets} packets in {} s, nothing found", start.elapsed().as_secs());
    Ok(())
}

/// What has become of the packets of a program.
fn summary(hook: Hook, seen: &BTreeMap<&'static str, u64>) -> String {
    let all =
        seen.iter().filter(|(_, packets)| **packets > 0).map(|(what, packets)| format!(" {what}={packets}"));
    format!("{}:{}", hook.name(), all.collect::<String>())
}

fn replay(bed: &Bed, hook: Hook, hex: &str, gso: Option<&str>) -> Result<()> {
    let bytes = (0..hex.len())
        .step_by(2)
        .map(|at| hex.get(at..at + 2).and_then(|byte| u8::from_str_radix(byte, 16).ok()))
        .collect::<Option<Vec<_>>>()
        .context("a packet is an even number of hexadecimal digits")?;
    let gso = gso
        .map(|gso| {
            let (size, segments) = gso.split_once(',')?;
            Some((size.parse().ok()?, segments.parse().ok()?))
        })
        .map(|gso| gso.context("segments are two numbers"))
        .transpose()?;
    let device = match hook {
        Hook::FromPod | Hook::ToPod => bed.devices.pod,
        Hook::FromHost | Hook::FromTunnel => bed.devices.anchor,
        Hook::FromWire | Hook::XdpWire => bed.devices.wire,
    };
    let fate = Campaign::new(bed, hook)?.alone(&Packet { hook, device, bytes, gso })?;
    println!("{:?}", fate.map_err(|what| anyhow!(what))?);
    Ok(())
}

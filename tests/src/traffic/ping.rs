//! ICMP echo by the `ping` of iputils: one packet, of a given size if wanted. (A sequence: [`super::stream`].)

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::exec::patient;
use crate::lab::{Namespace, exec};

/// IP header without options and ICMP echo header (8): what a packet has beyond ping's payload, in bytes.
pub const fn overhead(to: IpAddr) -> u32 {
    match to {
        IpAddr::V4(_) => 28,
        IpAddr::V6(_) => 48,
    }
}

/// Sends one echo request; gives the round-trip time.
///
/// Errors: no answer within 2 s.
pub fn ping(from: &Namespace, to: IpAddr) -> Result<Duration> {
    match run(from, to, &[])? {
        Probe::Reply(time) => Ok(time),
        Probe::TooLong { mtu } => bail!("ping {to} from {}: too long for MTU {mtu}", from.name()),
        Probe::Silence => bail!("ping {to} from {}: no answer", from.name()),
    }
}

/// What became of one sized echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// It was answered, after this time.
    Reply(Duration),
    /// It was refused, at the sender or by a router on the way, because it exceeds this MTU.
    TooLong {
        /// The MTU that was named.
        mtu: u32,
    },
    /// Neither.
    Silence,
}

/// Sends one echo request whose whole IP packet has `packet` bytes, never to be fragmented (over IPv4: DF).
///
/// Errors: ping cannot be run, or says something that is none of [`Probe`].
pub fn unfragmented(from: &Namespace, to: IpAddr, packet: u32) -> Result<Probe> {
    let payload = packet.checked_sub(overhead(to)).context("packet is too small for an echo request")?;
    run(from, to, &["-M", "do", "-s", &payload.to_string()])
}

/// Sends one echo request with more arguments for ping: `["-Q", "0xb8"]`, say.
///
/// Errors: ping cannot be run, or says something that is none of [`Probe`].
pub fn with(from: &Namespace, to: IpAddr, arguments: &[&str]) -> Result<Probe> {
    run(from, to, arguments)
}

/// Sends one echo request with this TTL and more arguments for ping; gives the router that reports it expired,
/// `None` if the echo request was answered.
///
/// Errors: neither of both within 2 s.
pub fn expired_at(from: &Namespace, to: IpAddr, ttl: u8, arguments: &[&str]) -> Result<Option<IpAddr>> {
    let text = output(from, to, &[&["-t", &ttl.to_string()], arguments].concat())?;
    if number_after(&text, " time=").is_some() {
        return Ok(None);
    }
    // "From 10.244.0.1 icmp_seq=1 Time to live exceeded", "From fd00:10:244::1 icmp_seq=1 Time exceeded: Hop limit"
    let line = text.lines().find(|line| EXPIRED.iter().any(|expired| line.contains(expired)));
    let router = line.and_then(|line| line.strip_prefix("From ")?.split_whitespace().next());
    let router = router.with_context(|| format!("ping -t {ttl} {to} from {}: {text}", from.name()))?;
    Ok(Some(router.parse().with_context(|| format!("parse address {router}"))?))
}

/// What ping says of a router that reports an expired packet, by family.
const EXPIRED: [&str; 2] = ["Time to live exceeded", "Time exceeded: Hop limit"];

/// How ping introduces the MTU that a packet was too long for: its own socket says so, or a router, by family.
const TOO_LONG: [&str; 3] = ["mtu=", "mtu = ", "mtu: "];

/// Who has not answered by then will not.
const SILENCE: Duration = Duration::from_secs(2);

fn output(from: &Namespace, to: IpAddr, arguments: &[&str]) -> Result<String> {
    let mut command = from.command("ping");
    command
        .env("LC_ALL", "C")
        .args(["-n", "-c", "1", "-W"])
        .arg(patient(SILENCE).as_secs().to_string())
        .args(arguments)
        .arg(to.to_string());
    let out = exec::output(&mut command, b"", Duration::from_secs(5)).context("run ping")?;
    Ok(out.stdout + &out.stderr)
}

fn run(from: &Namespace, to: IpAddr, arguments: &[&str]) -> Result<Probe> {
    let text = output(from, to, arguments)?;
    // "ping: local error: message too long, mtu=1450" or "Frag needed and DF set (mtu = 1450)";
    // "ping: local error: message too long, mtu: 1430" or "Packet too big: mtu=1430"
    if let Some(mtu) = TOO_LONG.iter().find_map(|mark| number_after(&text, mark)) {
        return Ok(Probe::TooLong { mtu: mtu.parse().with_context(|| format!("parse MTU {mtu}"))? });
    }
    if let Some(time) = number_after(&text, " time=") {
        let milliseconds: f64 = time.parse().with_context(|| format!("parse time {time}"))?;
        return Ok(Probe::Reply(Duration::from_secs_f64(milliseconds / 1e3)));
    }
    ensure!(text.contains("packets transmitted"), "ping {to} from {}: {}", from.name(), text.trim_end());
    Ok(Probe::Silence)
}

fn number_after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(mark)?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    Some(&rest[..end])
}

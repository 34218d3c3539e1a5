//! What is pinned, for people and as JSON. Needs no agent: everything is read from the pins.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlay_common::{
    maps::{Addr, AttachMode, DropEvent, FAMILY_V4, NODE_HOST, NODE_SELF},
    reason::{Hook, Reason},
};
use serde_json::{Value, json};

use super::Output;
use crate::{
    cni::owner_text,
    datapath::{
        attach,
        events::Events,
        pins::Pins,
        tables::{self, Endpoints, LocalTable, Nodes},
    },
};

mod flows;

pub(super) use flows::flows;

/// Rows of text under a heading, columns as wide as their widest cell.
fn table(heading: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut out = io::stdout().lock();
    let heading: Vec<String> = heading.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&heading).chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn print_json(value: &Value) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).context("write to standard output")?;
    writeln!(out).context("write to standard output")
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// `overlay status`.
pub(super) fn status(pins: &Pins, output: Output) -> anyhow::Result<()> {
    let local = LocalTable::open(pins)?.get()?;
    let nodes = Nodes::open(pins)?.entries()?;
    let peers = nodes.iter().filter(|(_, n)| n.flags & (NODE_HOST | NODE_SELF) == NODE_HOST).count();
    let pods = Endpoints::open(pins)?.entries()?.len();
    let subnet = local.subnet[FAMILY_V4];
    let subnet = format!("{}/{}", subnet.addr.to_ip(), subnet.prefix_len);
    let pressure = flows::Pressure::read(pins)?;
    let paths = tables::paths(pins)?;
    let drops = tables::drops(pins)?;
    let attach = match AttachMode::from_index(local.attach_mode) {
        Some(AttachMode::Tcx) => "tcx",
        Some(AttachMode::Clsact) => "clsact",
        Some(AttachMode::Auto) => "auto",
        None => "unknown",
    };
    if output == Output::Json {
        let counters = |list: Vec<(&'static str, overlay_common::counter::Counter)>| -> Value {
            list.into_iter()
                .map(|(name, c)| (name.to_owned(), json!({ "packets": c.packets, "bytes": c.bytes })))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        return print_json(&json!({
            "ready": local.ready == 1,
            "node": text(&local.node_name),
            "vtep": local.vtep.to_ip(),
            "vni": local.vni,
            "port": local.port,
            "mtu": local.mtu,
            "subnet": subnet,
            "gateway": local.gateway[FAMILY_V4].to_ip(),
            "attach": attach,
            "peers": peers,
            "endpoints": pods,
            "pins": pins.root(),
            "stack_flows": pressure.json(),
            "paths": counters(paths.into_iter().map(|(p, c)| (p.name(), c)).collect()),
            "drops": counters(drops.into_iter().map(|(r, c)| (r.name(), c)).collect()),
        }));
    }
    let by = if attach == "auto" { "by tcx, pods by clsact".to_owned() } else { format!("by {attach}") };
    let ready = if local.ready == 1 { "ready" } else { "not ready" };
    let facts = [
        ("node", format!("{} ({ready})", text(&local.node_name))),
        ("tunnel", format!("{} port {} VNI {}", local.vtep.to_ip(), local.port, local.vni)),
        (
            "pods",
            format!("{pods} in {subnet}, gateway {}, MTU {}", local.gateway[FAMILY_V4].to_ip(), local.mtu),
        ),
        ("peers", peers.to_string()),
        ("flows", pressure.text()),
        ("attached", format!("{by}, pins in {}", pins.root().display())),
    ];
    table(&["", ""], &facts.map(|(key, value)| vec![key.to_owned(), value]))?;
    println!();
    let row = |name: &str, c: overlay_common::counter::Counter, what: &str| {
        vec![name.to_owned(), c.packets.to_string(), c.bytes.to_string(), what.to_owned()]
    };
    let rows: Vec<_> = paths.into_iter().map(|(path, c)| row(path.name(), c, "")).collect();
    table(&["PATH", "PACKETS", "BYTES"], &rows)?;
    let rows: Vec<_> = drops
        .into_iter()
        .filter(|(_, c)| c.packets > 0)
        .map(|(reason, c)| row(reason.name(), c, reason.describe()))
        .collect();
    if !rows.is_empty() {
        println!();
        table(&["DROPPED", "PACKETS", "BYTES", "WHY"], &rows)?;
    }
    Ok(())
}

/// `overlay nodes`.
pub(super) fn nodes(pins: &Pins, output: Output) -> anyhow::Result<()> {
    let mut entries = Nodes::open(pins)?.entries()?;
    entries.sort_by_key(|(key, _)| *key);
    if output == Output::Json {
        let rows = entries.iter().map(|(key, node)| {
            json!({
                "address": key.to_ip(),
                "prefix_len": node.prefix_len,
                "vtep": node.vtep.to_ip(),
                "vtep_mac": mac(node.vtep_mac),
                "self": node.flags & NODE_SELF != 0,
                "host": node.flags & NODE_HOST != 0,
            })
        });
        return print_json(&rows.collect());
    }
    let rows: Vec<_> = entries
        .iter()
        .map(|(key, node)| {
            let what = if node.flags & NODE_HOST != 0 { "node" } else { "pods" };
            let own = if node.flags & NODE_SELF != 0 { ", this node" } else { "" };
            let address = format!("{}/{}", key.to_ip(), node.prefix_len);
            vec![address, node.vtep.to_ip().to_string(), mac(node.vtep_mac), format!("{what}{own}")]
        })
        .collect();
    table(&["ADDRESS", "VTEP", "VTEP MAC", "OF"], &rows)?;
    Ok(())
}

/// `overlay endpoints`.
pub(super) fn endpoints(pins: &Pins, output: Output) -> anyhow::Result<()> {
    let mut entries = Endpoints::open(pins)?.entries()?;
    entries.sort_by_key(|(key, _)| *key);
    if output == Output::Json {
        let rows = entries.iter().map(|(key, endpoint)| {
            let (container, ifname) = owner_text(&endpoint.owner);
            json!({
                "address": key.to_ip(),
                "ifindex": endpoint.ifindex,
                "mac": mac(endpoint.mac),
                "container": container,
                "ifname": ifname,
                "ready": endpoint.ifindex != 0,
            })
        });
        return print_json(&rows.collect());
    }
    let rows: Vec<_> = entries
        .iter()
        .map(|(key, endpoint)| {
            let (container, ifname) = owner_text(&endpoint.owner);
            vec![key.to_ip().to_string(), endpoint.ifindex.to_string(), mac(endpoint.mac), container, ifname]
        })
        .collect();
    table(&["ADDRESS", "IFINDEX", "MAC", "CONTAINER", "INTERFACE"], &rows)?;
    Ok(())
}

/// `overlay links`.
pub(super) fn links(pins: &Pins, output: Output) -> anyhow::Result<()> {
    // No link is pinned also where no agent has ever been; this tells them apart.
    LocalTable::open(pins)?;
    let links = attach::links(pins)?;
    if output == Output::Json {
        return print_json(&serde_json::to_value(links).context("describe the links")?);
    }
    let rows: Vec<_> =
        links.into_iter().map(|l| vec![l.name, l.link_id.to_string(), l.program_id.to_string()]).collect();
    table(&["LINK", "ID", "PROGRAM"], &rows)?;
    Ok(())
}

/// `overlay monitor`: until it is interrupted.
pub(super) fn monitor(pins: &Pins, output: Output) -> anyhow::Result<()> {
    let mut events = Events::open(pins)?;
    loop {
        while let Some(event) = events.next_event() {
            let mut out = io::stdout().lock();
            let written = match output {
                Output::Json => writeln!(out, "{}", event_json(&event)),
                Output::Table => writeln!(out, "{}", event_line(&event)),
            };
            match written.and_then(|()| out.flush()) {
                // The reader of the pipe has gone: that is how it ends this command.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other.context("write to standard output")?,
            }
        }
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e).context("wait for records"),
        }
    }
}

fn names(event: &DropEvent) -> (&'static str, &'static str) {
    (
        Reason::from_index(event.reason).map_or("unknown", Reason::name),
        Hook::from_index(event.hook).map_or("unknown", Hook::name),
    )
}

fn event_json(event: &DropEvent) -> Value {
    let (reason, hook) = names(event);
    let address = |addr: Addr| if addr.is_unspecified() { Value::Null } else { json!(addr.to_ip()) };
    json!({
        "time_ns": event.time_ns,
        "reason": reason,
        "hook": hook,
        "ifindex": event.ifindex,
        "length": event.len,
        "ether_type": event.ether_type,
        "protocol": event.protocol,
        "source": address(event.src),
        "source_port": event.src_port,
        "destination": address(event.dst),
        "destination_port": event.dst_port,
        "outer_source": address(event.outer_src),
    })
}

fn event_line(event: &DropEvent) -> String {
    let (reason, hook) = names(event);
    let end = |addr: Addr, port: u16| match (addr.is_unspecified(), port) {
        (true, _) => "?".to_owned(),
        (false, 0) => addr.to_ip().to_string(),
        (false, port) => format!("{}:{port}", addr.to_ip()),
    };
    let tunnel = if event.outer_src.is_unspecified() {
        String::new()
    } else {
        format!(" from VTEP {}", event.outer_src.to_ip())
    };
    format!(
        "{:>14}.{:06} {reason} at {hook} (ifindex {}): {} -> {} protocol {} length {}{tunnel}",
        event.time_ns / 1_000_000_000,
        event.time_ns % 1_000_000_000 / 1000,
        event.ifindex,
        end(event.src, event.src_port),
        end(event.dst, event.dst_port),
        event.protocol,
        event.len,
    )
}

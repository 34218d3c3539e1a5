//! `overlay monitor`: dropped packets as they happen. Needs no agent.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlay_common::{
    maps::{Addr, DropEvent},
    reason::{Hook, Reason},
};
use serde_json::{Value, json};

use crate::datapath::{events::Events, pins::Pins};

#[derive(Debug, Args)]
pub(super) struct Monitor {
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// `overlay monitor`: until it is interrupted.
pub(super) fn monitor(pins: &Pins, args: &Monitor) -> anyhow::Result<()> {
    let mut events = Events::open(pins)?;
    loop {
        while let Some(event) = events.next_event() {
            let mut out = io::stdout().lock();
            let written = match args.output {
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

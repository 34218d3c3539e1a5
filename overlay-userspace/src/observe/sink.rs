//! Where packets go, in which form: lines, JSON or a capture file.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::pcapng::PcapNg;

/// Where and how to write.
#[derive(Clone, Debug, Args)]
pub struct SinkArgs {
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Form,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// What [`SinkArgs`] offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// A line for each packet
    #[value(alias = "text")]
    Table,
    /// A JSON object in each line
    Json,
    /// A capture file (pcapng), for Wireshark, tshark and tcpdump
    #[value(alias = "pcapng")]
    Pcap,
}

/// The open output.
pub enum Sink {
    /// Lines of text.
    Lines(Box<dyn Write>),
    /// Lines of JSON.
    Json(Box<dyn Write>),
    /// A capture file.
    Pcap(PcapNg<Box<dyn Write>>),
}

/// One packet in all forms, each made only where it is wanted.
pub trait Show {
    /// For people.
    fn line(&self) -> String;
    /// For machines.
    fn json(&self) -> Value;
    /// For a capture file.
    fn write(&self, file: &mut PcapNg<Box<dyn Write>>) -> io::Result<()>;
}

impl SinkArgs {
    /// Opens it. `snap` is the number of bytes that are kept of a packet, 0 for all.
    pub fn open(&self, snap: u32) -> anyhow::Result<Sink> {
        ensure!(
            self.output != Form::Pcap || self.write.is_some() || !io::stdout().is_terminal(),
            "a capture file is nothing for a terminal: add -w FILE, or pipe it (overlay … -o pcap | wireshark -k -i -)"
        );
        let out: Box<dyn Write> = match &self.write {
            Some(path) => Box::new(create(path)?),
            None => Box::new(io::stdout()),
        };
        Ok(match self.output {
            Form::Table => Sink::Lines(out),
            Form::Json => Sink::Json(out),
            Form::Pcap => {
                let mut file = PcapNg::new(out, snap).context("begin the capture file")?;
                file.flush().context("begin the capture file")?;
                Sink::Pcap(file)
            }
        })
    }
}

fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("create {}", path.display()))
}

impl Sink {
    /// Writes a packet.
    pub fn show(&mut self, packet: &dyn Show) -> io::Result<()> {
        match self {
            Self::Lines(out) => writeln!(out, "{}", packet.line()),
            Self::Json(out) => writeln!(out, "{}", packet.json()),
            Self::Pcap(file) => packet.write(file),
        }
    }

    /// Writes a remark; a capture file has no place for one, so that it goes to standard error.
    pub fn remark(&mut self, line: &str, json: &Value) -> io::Result<()> {
        match self {
            Self::Lines(out) => writeln!(out, "{line}"),
            Self::Json(out) => writeln!(out, "{json}"),
            Self::Pcap(_) => writeln!(io::stderr(), "overlay: {line}"),
        }
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Lines(out) | Self::Json(out) => out.flush(),
            Self::Pcap(file) => file.flush(),
        }
    }
}

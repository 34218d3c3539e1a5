//! One question to each target, and what both sides saw.

use std::{
    io::{self, BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::{self, ExitCode},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{invalid, ping};

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(3);
/// Between two questions to a target that has not answered yet.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks all targets and prints an object for each: `target`, and `local` and `seen` (the own address, and the one that the
/// other side saw) or `error`. With `within`, asks again until there is an answer. Fails unless all have answered.
pub(crate) fn run(targets: &[&str], within: Option<Duration>) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for target in targets {
        let end = within.map(|within| Instant::now() + within);
        let result = loop {
            let result = one(target);
            if result.is_ok() || end.is_none_or(|end| Instant::now() >= end) {
                break result;
            }
            thread::sleep(PAUSE);
        };
        let mut line = result.unwrap_or_else(|error| {
            code = ExitCode::FAILURE;
            json!({ "error": error.to_string() })
        });
        line["target"] = Value::from(*target);
        println!("{line}");
    }
    code
}

fn one(target: &str) -> io::Result<Value> {
    let malformed = || invalid(&format!("{target:?} is none of tcp:IP:PORT, udp:IP:PORT, ping:IP"));
    let (protocol, address) = target.split_once(':').ok_or_else(malformed)?;
    let socket = || address.parse::<SocketAddr>().map_err(|_| malformed());
    match protocol {
        "tcp" => tcp(socket()?),
        "udp" => udp(socket()?),
        "ping" => echo(address.parse().map_err(|_| malformed())?),
        _ => Err(malformed()),
    }
}

fn tcp(to: SocketAddr) -> io::Result<Value> {
    let connection = TcpStream::connect_timeout(&to, LIMIT)?;
    connection.set_read_timeout(Some(LIMIT))?;
    let mut seen = String::new();
    BufReader::new(&connection).read_line(&mut seen)?;
    Ok(json!({ "local": connection.local_addr()?.to_string(), "seen": seen.trim_end() }))
}

fn udp(to: SocketAddr) -> io::Result<Value> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send(b"who am I ")?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let seen = answer.strip_prefix("who am I ").unwrap_or(&answer);
    Ok(json!({ "local": socket.local_addr()?.to_string(), "seen": seen }))
}

fn echo(to: Ipv4Addr) -> io::Result<Value> {
    let socket = ping::open()?;
    let id = process::id() as u16;
    let end = Instant::now() + LIMIT;
    socket.send_to(&ping::request(id, 1), (to, 0))?;
    let mut buffer = [0; 256];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no echo reply"));
        }
        socket.set_read_timeout(Some(left))?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        if from.ip() == to && ping::reply(&buffer[..length], id) == Some(1) {
            return Ok(json!({ "local": Value::Null, "seen": Value::Null }));
        }
    }
}

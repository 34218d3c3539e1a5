//! `probe`: what runs in the pods of the end-to-end tests.
//!
//! * `probe serve [IP PORT]` answers on TCP and UDP, and tells whoever asks which address it saw;
//! * `probe ask [--within SECONDS] TARGET…` asks each target (`tcp:IP:PORT`, `udp:IP:PORT`, `ping:IP`) once, or until it answers, and
//!   prints one JSON object a line;
//! * `probe stream IP PORT` talks TCP, UDP and ping to a `serve` without end, and prints each second what it has counted.
//!
//! IPv4 only. Everything that is asked has a deadline.

mod ask;
mod ping;
mod serve;
mod stream;

use std::{env, io, net::Ipv4Addr, process::ExitCode, time::Duration};

/// Where `serve` listens unless told otherwise.
const PORT: u16 = 7000;

const USAGE: &str = "usage: probe serve [IP PORT] | ask [--within SECONDS] TARGET… | stream IP PORT";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> io::Result<ExitCode> {
    match arguments {
        ["serve"] => serve::run(Ipv4Addr::UNSPECIFIED, PORT),
        ["serve", address, port] => serve::run(number(address)?, number(port)?),
        ["ask", "--within", seconds, targets @ ..] => {
            Ok(ask::run(targets, Some(Duration::from_secs(number(seconds)?))))
        }
        ["ask", targets @ ..] => Ok(ask::run(targets, None)),
        ["stream", address, port] => {
            let address: Ipv4Addr = number(address)?;
            stream::run((address, number(port)?).into())
        }
        _ => Err(invalid(USAGE)),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| invalid(&format!("{text:?} is not what is wanted there; {USAGE}")))
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

//! HTTP/1.1 by hand, because what is wanted of this server is mostly what no library does: half an answer.

use std::collections::HashMap;
use std::io::{self, BufRead, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{POLL, Shared};

/// What can befall a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 500 Internal Server Error.
    Internal,
    /// 410 Gone as the status of the answer.
    Gone,
    /// 403 Forbidden.
    Forbidden,
    /// The answer ends in its middle; of a watch, the next line does.
    Cut,
    /// A line of a watch, or the body of a list, that is no JSON.
    Garbage,
    /// A watch ends as soon as it has begun.
    EndsAtOnce,
    /// The answer comes this slowly, in milliseconds for each eighth part of it.
    Slow(u64),
    /// A watch tells nothing, and does not end.
    Mute,
    /// No answer for as long as the server lives, or until the fault is lifted.
    Silent,
}

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    body: Vec<u8>,
}

impl Request {
    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    fn query(&self) -> HashMap<&str, &str> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').filter_map(|pair| pair.split_once('=')).collect()
    }
}

/// The next request of a connection; `None` at its end.
pub(super) fn read(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(io::Error::other(format!("no request: {line:?}")));
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { method, target, body }))
}

/// Answers; `false` when the connection is to end.
pub(super) fn answer(
    mut stream: &TcpStream,
    shared: &Shared,
    life: u64,
    request: &Request,
    fault: Option<Fault>,
) -> io::Result<bool> {
    match fault {
        Some(Fault::Internal) => return refuse(stream, 500, "InternalError", "the lab has a fault"),
        Some(Fault::Gone) => return refuse(stream, 410, "Expired", "the lab has forgotten"),
        Some(Fault::Forbidden) => return refuse(stream, 403, "Forbidden", "nodes is forbidden"),
        Some(Fault::Silent) => {
            while shared.lives(life) && shared.state().lasting == Some(Fault::Silent) {
                thread::sleep(POLL);
            }
            return Ok(false);
        }
        _ => {}
    }
    let query = request.query();
    let watch = query.get("watch").is_some_and(|value| *value == "true" || *value == "1");
    match (request.method.as_str(), request.path()) {
        ("GET", "/api/v1/nodes") if watch => {
            let version = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            follow(stream, shared, life, version, fault)?;
            Ok(false)
        }
        ("GET", "/api/v1/nodes") => {
            let limit = query.get("limit").and_then(|limit| limit.parse().ok());
            let page = shared.state().store.page(limit, query.get("continue").copied());
            let Ok(mut page) = page else {
                return refuse(stream, 410, "Expired", "the continue token is too old");
            };
            if fault == Some(Fault::Garbage) {
                page.replace_range(..1, "!");
            }
            let head = head(200, &format!("content-length: {}", page.len()));
            let whole = [head.as_bytes(), page.as_bytes()].concat();
            match fault {
                Some(Fault::Cut) => stream.write_all(&whole[..whole.len() / 2]).map(|()| false),
                Some(Fault::Slow(pause)) => {
                    for part in whole.chunks(whole.len() / 8 + 1) {
                        stream.write_all(part)?;
                        thread::sleep(Duration::from_millis(pause));
                    }
                    Ok(true)
                }
                _ => stream.write_all(&whole).map(|()| true),
            }
        }
        ("POST" | "PATCH", to) => {
            let body: Value = serde_json::from_slice(&request.body).map_err(io::Error::other)?;
            let answer = body.to_string();
            shared.state().written.push((request.method.clone(), to.to_owned(), body));
            let status = if request.method == "POST" { 201 } else { 200 };
            let head = head(status, &format!("content-length: {}", answer.len()));
            stream.write_all(head.as_bytes())?;
            stream.write_all(answer.as_bytes()).map(|()| true)
        }
        _ => refuse(stream, 404, "NotFound", "the lab has Nodes and Events"),
    }
}

/// A watch: every event after `version`, until the server or the connection ends.
fn follow(
    mut stream: &TcpStream,
    shared: &Shared,
    life: u64,
    mut version: u64,
    fault: Option<Fault>,
) -> io::Result<()> {
    stream.write_all(head(200, "transfer-encoding: chunked").as_bytes())?;
    if fault == Some(Fault::EndsAtOnce) {
        return stream.write_all(b"0\r\n\r\n");
    }
    let begun = Instant::now();
    let mut state = shared.state();
    loop {
        if state.life != Some(life) {
            return Ok(());
        }
        let Ok(events) = state.store.since(version) else {
            drop(state);
            let expired = status(410, "Expired", "too old resource version");
            let event = json!({"type": "ERROR", "object": expired}).to_string();
            stream.write_all(&chunk(&event))?;
            return stream.write_all(b"0\r\n\r\n");
        };
        if events.is_empty() || fault == Some(Fault::Mute) {
            // Notified of all that matters, but for a client that is gone: the next event finds out.
            state =
                shared.changed.wait_timeout(state, Duration::from_secs(1)).expect("no panic while held").0;
            assert!(begun.elapsed() < Duration::from_mins(10), "a watch that nobody ends");
            continue;
        }
        drop(state);
        for event in events {
            match fault {
                Some(Fault::Cut) => {
                    let chunk = chunk(&event.line);
                    stream.write_all(&chunk[..chunk.len() / 2])?;
                    return Ok(());
                }
                Some(Fault::Garbage) => {
                    stream.write_all(&chunk("{\"type\": \"ADDED\", \"object\": 7}"))?;
                    return stream.write_all(b"0\r\n\r\n");
                }
                Some(Fault::Slow(pause)) => {
                    let chunk = chunk(&event.line);
                    for part in chunk.chunks(chunk.len() / 8 + 1) {
                        stream.write_all(part)?;
                        thread::sleep(Duration::from_millis(pause));
                    }
                }
                _ => stream.write_all(&chunk(&event.line))?,
            }
            version = event.version;
        }
        state = shared.state();
    }
}

fn chunk(line: &str) -> Vec<u8> {
    format!("{:x}\r\n{line}\n\r\n", line.len() + 1).into_bytes()
}

fn head(status: u16, more: &str) -> String {
    format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{more}\r\n\r\n")
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn refuse(mut stream: &TcpStream, code: u16, reason: &str, message: &str) -> io::Result<bool> {
    let body = status(code, reason, message).to_string();
    let head = head(code, &format!("content-length: {}", body.len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    Ok(true)
}

//! What an agent answers over HTTP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::step_limit;
use crate::lab::Namespace;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Its headers, as they came.
    pub headers: String,
    /// The body.
    pub body: String,
}

/// `GET <path>` of `at`, asked in `namespace`; `None` where nobody answers in time.
pub fn get(namespace: &Namespace, at: SocketAddr, path: &str) -> Option<Answer> {
    namespace.run(|| {
        let mut stream = TcpStream::connect_timeout(&at, step_limit()).ok()?;
        stream.set_read_timeout(Some(step_limit())).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        let (headers, body) = text.split_once("\r\n\r\n")?;
        Some(Answer { status, headers: headers.to_owned(), body: body.to_owned() })
    })
}

//! Where the files of a dump come from: programs, files, the agent's HTTP. Everything is bounded in time and in size, because
//! a dump is taken of nodes on which something hangs.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// How long one source may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// At most so many bytes of one source; of a log, the last ones.
const LIMIT: u64 = 8 << 20;

/// What a program prints on standard output, whatever its exit status, if it prints anything.
pub(super) fn command(program: &str, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {program}"))?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("run {program}: no pipe");
    };
    let out = thread::spawn(move || bounded(out));
    let err = thread::spawn(move || bounded(err));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {program}"))? {
            break status;
        }
        if Instant::now() >= deadline {
            // It may have ended just now.
            let _ = child.kill();
            let _ = child.wait();
            bail!("{program} took longer than {} s", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(10));
    };
    let [out, err] = [out, err].map(|reader| reader.join().unwrap_or_default());
    if !status.success() && out.is_empty() {
        let said = String::from_utf8_lossy(&err);
        bail!(
            "{program} {}: {status}: {}",
            arguments.join(" "),
            said.lines().next().unwrap_or("nothing said")
        );
    }
    Ok(out)
}

/// All that there is, or as much as is taken; the rest is read and dropped, so that the writer does not wait.
fn bounded(mut from: impl std::io::Read) -> Vec<u8> {
    let mut read = Vec::new();
    let _ = from.by_ref().take(LIMIT).read_to_end(&mut read);
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    read
}

/// A file, its end where it is long.
pub(super) fn file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > LIMIT {
            file.seek(SeekFrom::Start(length - LIMIT))?;
        }
        let mut read = Vec::new();
        file.take(LIMIT).read_to_end(&mut read)?;
        Ok::<_, std::io::Error>(read)
    };
    read().with_context(|| format!("read {}", path.display()))
}

/// What the agent answers to `GET path`.
pub(super) fn http(address: SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE / 5)?;
        stream.set_read_timeout(Some(PATIENCE / 5))?;
        stream.set_write_timeout(Some(PATIENCE / 5))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(LIMIT).read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = ask().with_context(|| format!("ask http://{address}{path}"))?;
    let end =
        answer.windows(4).position(|four| four == b"\r\n\r\n").context("the answer has no end of headers")?;
    let first = String::from_utf8_lossy(&answer[..end]);
    let first = first.lines().next().unwrap_or_default();
    // An agent that is not ready says so with 503, and that is worth having.
    if first.contains(" 404") {
        bail!("http://{address}{path}: {first}");
    }
    Ok(answer[end + 4..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_an_error_unless_it_has_printed_something() {
        assert_eq!(command("sh", &["-c", "echo a; exit 3"]).unwrap(), b"a\n");
        let error = format!("{:#}", command("sh", &["-c", "echo no >&2; exit 3"]).unwrap_err());
        assert!(error.contains("exit status: 3") && error.ends_with("no"), "{error}");
        assert!(command("/nonexistent/program", &[]).is_err());
    }

    #[test]
    fn more_than_a_pipe_holds_is_read_and_no_more_than_the_limit() {
        let out = command("sh", &["-c", "yes | head -c 9000000"]).unwrap();
        assert_eq!(out.len() as u64, LIMIT);
    }

    #[test]
    fn of_a_long_file_the_end_is_taken() {
        let path = std::env::temp_dir().join(format!("overlay-long-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.set_len(LIMIT).unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"the end").unwrap();
        let read = super::file(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(read.len() as u64 == LIMIT && read.ends_with(b"the end"));
    }
}

//! What the kernel has said since a moment (`/dev/kmsg`).

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
};

use anyhow::{Context as _, Result};

/// What it says when a program has made it do something wrong. Others use this kernel too, so not every line is ours.
const ALARMS: [&str; 10] = [
    "WARNING: ",
    "BUG: ",
    "Oops",
    "Call Trace",
    "general protection",
    "refcount",
    "bad gso",
    "csum failure",
    "skb_over_panic",
    "stalls on CPUs",
];

/// The end of the log, to be read on from.
pub(crate) struct KernelLog(File);

impl KernelLog {
    pub(crate) fn from_now() -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("open /dev/kmsg")?;
        file.seek(SeekFrom::End(0)).context("go to the end of /dev/kmsg")?;
        Ok(Self(file))
    }

    /// Lines since the last call that are alarms.
    pub(crate) fn alarms(&mut self) -> Result<Vec<String>> {
        let mut alarms = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => return Ok(alarms),
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    // `level,number,time,flags;message`, then properties in lines that begin with a space.
                    let message =
                        text.lines().next().and_then(|line| line.split_once(';')).map(|(_, said)| said);
                    alarms.extend(
                        message
                            .filter(|said| ALARMS.iter().any(|alarm| said.contains(alarm)))
                            .map(str::to_owned),
                    );
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(alarms),
                // Overwritten before it was read: goes on with what is there.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error).context("read /dev/kmsg"),
            }
        }
    }
}

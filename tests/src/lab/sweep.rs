//! Removing labs, by what is recorded on disk alone: the one cleanup path, used when a [`Lab`](super::Lab) is
//! dropped (also while unwinding) and for labs whose process was killed.
//!
//! A lab `<id>` owns, and removing it removes: the processes recorded in `/run/overlay-lab/<id>/processes/`, the
//! namespaces `/run/netns/<id>-*`, the bpffs mounted on `/run/overlay-lab/<id>/bpf` (with it every pin), the
//! directory. Nothing else on the machine is looked at. Programs that somebody else runs in a lab's
//! namespace (a shell, say) are left alone: their namespace loses its name and goes when they end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespace::{self, NETNS_DIR};

/// All labs of this machine.
pub const LABS_DIR: &str = "/run/overlay-lab";

/// A directory without an owner record is one being set up, for at most this long.
const SETUP_TIME: Duration = Duration::from_secs(30);

/// A process, told from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    /// Clock ticks after boot: field 22 of `/proc/<pid>/stat`, see proc(5).
    started: u64,
}

impl Process {
    /// The process that runs under this number now.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, the name in brackets, may itself hold spaces and brackets.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        // A zombie runs nothing any more.
        if fields.next()? == "Z" {
            return None;
        }
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self { pid, started })
    }

    /// Writes the record that [`Process::read`] reads.
    pub(super) fn record(self, path: &Path) -> io::Result<()> {
        fs::write(path, format!("{} {}\n", self.pid, self.started))
    }

    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, started) = text.trim_end().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }

    fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// The file that says which process a lab belongs to.
pub(super) fn owner_file(lab: &Path) -> PathBuf {
    lab.join("owner")
}

/// The directory with one record per process that the lab started.
pub(super) fn processes_dir(lab: &Path) -> PathBuf {
    lab.join("processes")
}

/// Removes the labs whose process is dead. Gives their ids. Never fails: what cannot be removed is reported on
/// standard error and tried again by the next lab.
pub fn sweep() -> Vec<String> {
    let mut swept = Vec::new();
    for entry in fs::read_dir(LABS_DIR).into_iter().flatten().flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        if is_abandoned(&entry.path()) {
            report(&id, &remove(&id));
            swept.push(id);
        }
    }
    swept
}

fn is_abandoned(lab: &Path) -> bool {
    if let Some(owner) = Process::read(&owner_file(lab)) {
        return !owner.is_alive();
    }
    let made = fs::metadata(lab).and_then(|meta| meta.modified());
    made.is_ok_and(|made| SystemTime::now().duration_since(made).is_ok_and(|age| age > SETUP_TIME))
}

/// Removes everything that lab `id` owns, and goes on after errors; gives them.
pub(super) fn remove(id: &str) -> Vec<String> {
    let lab = Path::new(LABS_DIR).join(id);
    let mut errors = Vec::new();
    for entry in fs::read_dir(processes_dir(&lab)).into_iter().flatten().flatten() {
        let process = Process::read(&entry.path()).filter(|process| process.is_alive());
        if let Some(process) = process
            && let Err(error) = kill(Pid::from_raw(process.pid), Signal::SIGKILL)
            && error != Errno::ESRCH
        {
            errors.push(format!("kill process {}: {error}", process.pid));
        }
    }
    let prefix = format!("{id}-");
    for entry in fs::read_dir(NETNS_DIR).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with(&prefix)
            && let Err(error) = namespace::delete(&name)
        {
            errors.push(format!("delete network namespace {name}: {error}"));
        }
    }
    match umount2(&lab.join("bpf"), MntFlags::MNT_DETACH) {
        // EINVAL: the directory is there, but nothing is mounted on it.
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(error) => errors.push(format!("unmount {}/bpf: {error}", lab.display())),
    }
    match fs::remove_dir_all(&lab) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            errors.push(format!("remove {}: {error}", lab.display()));
        }
        _ => {}
    }
    errors
}

/// Says on standard error what was left of lab `id`.
pub(super) fn report(id: &str, errors: &[String]) {
    for error in errors {
        eprintln!("lab {id}: cleanup: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_told_from_a_later_one_with_its_number() {
        let own = Process::of(std::process::id().cast_signed()).unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive());
    }

    #[test]
    fn process_record_reads_back() {
        let path = std::env::temp_dir().join(format!("overlay-lab-record-{}", std::process::id()));
        let own = Process::of(std::process::id().cast_signed()).unwrap();
        own.record(&path).unwrap();
        assert_eq!(Process::read(&path), Some(own));
        fs::remove_file(path).unwrap();
    }
}

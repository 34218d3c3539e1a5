//! Runs a program and stops it for good right after a given one of its steps: a step is a system call that changes
//! something outside of the process.
//!
//! Between two steps nothing changes, so killing a program after each of them in turn covers every moment at which it could
//! be killed. By ptrace(2): the same steps in every run, and nothing in the program knows of it.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Killed after the step that was asked for.
    Killed {
        /// Which step that was.
        step: String,
    },
    /// Ended before, with this status.
    Exited(i32),
}

/// Runs `command` on `input` and kills it after step `last` (counted from 1).
#[track_caller]
pub fn kill_after(command: Command, input: &str, last: usize) -> End {
    kill_when(command, input, |number, _| number == last)
}

/// Runs `command` on `input` and kills it after the step for which `enough` says so, given its number (from 1) and its
/// name. The program stands still while it is asked.
#[track_caller]
pub fn kill_when(mut command: Command, input: &str, mut enough: impl FnMut(usize, &str) -> bool) -> End {
    // SAFETY: between fork and exec only ptrace is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| ptrace::traceme().map_err(Into::into));
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("start a traced program");
    // Less than a pipe holds.
    child.stdin.take().unwrap().write_all(input.as_bytes()).expect("write its input");
    let leader = Pid::from_raw(child.id().cast_signed());
    assert_eq!(waitpid(leader, None), Ok(WaitStatus::Stopped(leader, Signal::SIGTRAP)), "stopped at exec");
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(leader, options).expect("set options");
    ptrace::syscall(leader, None).expect("go on");

    // Which step a thread is in.
    let mut within: HashMap<Pid, Option<String>> = HashMap::new();
    let mut steps = 0;
    let mut end = None;
    // Only what this thread has started or traces: other tests wait for theirs.
    let any = Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD);
    loop {
        let status = match waitpid(None, any) {
            Ok(status) => status,
            Err(Errno::ECHILD) => break,
            Err(error) => panic!("wait for a traced program: {error}"),
        };
        match status {
            WaitStatus::PtraceSyscall(thread) => {
                let inside = within.entry(thread).or_default();
                *inside = match inside.take() {
                    // Leaving it.
                    Some(step) => {
                        steps += usize::from(!step.is_empty());
                        if !step.is_empty() && end.is_none() && enough(steps, &step) {
                            end = Some(End::Killed { step });
                            kill(leader, Signal::SIGKILL).expect("kill a traced program");
                        }
                        None
                    }
                    None => Some(step_at(thread).unwrap_or_default()),
                };
                resume(thread, None);
            }
            WaitStatus::Exited(thread, code) if thread == leader => {
                end.get_or_insert(End::Exited(code));
            }
            WaitStatus::Stopped(thread, signal) => {
                // A new thread begins with a stop of its own.
                let own = matches!(signal, Signal::SIGSTOP | Signal::SIGTRAP);
                resume(thread, (!own).then_some(signal));
            }
            WaitStatus::PtraceEvent(thread, ..) => resume(thread, None),
            _ => {}
        }
    }
    // It has been waited for above, which the standard library cannot know.
    let _ = child.wait();
    end.expect("a traced program ends")
}

/// A thread that was killed meanwhile is no error.
fn resume(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("resume a traced thread: {error}"),
    }
}

/// The step that the system call of a stopped thread is, if it is one.
fn step_at(thread: Pid) -> Option<String> {
    let info = ptrace::syscall_info(thread).ok()?;
    // SAFETY: the thread is at the entry of a system call, because stops alternate, so that this is the valid member.
    let entry = unsafe { info.u.entry };
    match entry.nr.cast_signed() {
        // Map elements written or deleted, objects pinned, links made or updated (linux/bpf.h).
        libc::SYS_bpf => {
            matches!(entry.args[0], 2 | 3 | 6 | 28 | 29).then(|| format!("bpf {}", entry.args[0]))
        }
        // Of rtnetlink's message types, every fourth from RTM_GETLINK reads.
        libc::SYS_sendto => {
            let head = ptrace::read(thread, entry.args[1] as ptrace::AddressType).ok()?;
            let kind = (head.cast_unsigned() >> 32) as u16;
            (kind & 3 != 2).then(|| format!("netlink {kind}"))
        }
        libc::SYS_write => Some(format!("write to {}", entry.args[0])),
        libc::SYS_unlink | libc::SYS_unlinkat | libc::SYS_rmdir => Some("unlink".to_owned()),
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => Some("rename".to_owned()),
        libc::SYS_mkdir | libc::SYS_mkdirat => Some("mkdir".to_owned()),
        libc::SYS_symlink | libc::SYS_symlinkat => Some("symlink".to_owned()),
        libc::SYS_fork | libc::SYS_vfork => Some("fork".to_owned()),
        // Threads are no step; processes have no CLONE_THREAD.
        libc::SYS_clone => (entry.args[0] & libc::CLONE_THREAD as u64 == 0).then(|| "fork".to_owned()),
        // The flags are the first field of `struct clone_args`.
        libc::SYS_clone3 => {
            let flags = ptrace::read(thread, entry.args[0] as ptrace::AddressType).ok()?;
            (flags & i64::from(libc::CLONE_THREAD) == 0).then(|| "fork".to_owned())
        }
        // What a child does is not traced: it is somewhere between its start and its end when its parent is killed.
        libc::SYS_wait4 | libc::SYS_waitid => Some("wait".to_owned()),
        _ => None,
    }
}

//! The steps, as xtask/src/vm/plan.rs writes them: a line each, name, seconds, program and arguments with tabs between.
//!
//! A kernel that overlay refuses runs none of them; there the agent must refuse it, with one line, and leave nothing behind.

use std::{
    fs,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use overlay_tests::lab::exec;

const FILE: &str = "/etc/plan";
/// By how much limits of tests are longer here.
const PATIENCE: &str = "/etc/patience";
const OVERLAY: &str = "/tests/overlay";
const OBJECT: &str = "/tests/overlay.o";
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// For what is asked of overlay itself.
const QUESTION: Duration = Duration::from_mins(2);

/// Runs all steps, or sees to it that the kernel is refused.
pub(crate) fn run() -> Result<()> {
    let text = fs::read_to_string(FILE).with_context(|| format!("read {FILE}"))?;
    if supported()? {
        for line in text.lines() {
            step(line).with_context(|| format!("run the step {line:?}"))?;
        }
    } else {
        println!("@vm refused {}", refusal()?);
    }
    println!("@vm done");
    Ok(())
}

/// A command in the environment that tests expect.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("RUST_BACKTRACE", "0");
    // Absent: the machine is as fast as any.
    if let Ok(patience) = fs::read_to_string(PATIENCE) {
        command.env(exec::PATIENCE, patience.trim());
    }
    command.env("OVERLAY_BIN", OVERLAY).env("OVERLAY_BPF_OBJECT", OBJECT).env("LC_ALL", "C.UTF-8");
    command
}

/// Asks overlay what this kernel can do, and says so.
fn supported() -> Result<bool> {
    let file = "/run/version.json";
    let out = fs::File::create(file).with_context(|| format!("make {file}"))?;
    let status = wait(command(OVERLAY).args(["version", "-o", "json"]).stdout(out), QUESTION)?;
    ensure!(status.success(), "overlay version: {}", describe(status));
    let text = fs::read_to_string(file).with_context(|| format!("read {file}"))?;
    let version: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("parse {text}"))?;
    let features = version["features"].as_array().context("overlay version names no features")?;
    for feature in features {
        let text = |field: &str| feature[field].as_str().with_context(|| format!("a feature has no {field}"));
        let without = if feature["present"] == true { "" } else { &format!(": {}", text("without")?) };
        let has = if without.is_empty() { "yes" } else { "no" };
        println!("@vm feature {}: {has}{without}", text("name")?);
    }
    version["supported"].as_bool().context("overlay version does not say whether the kernel is supported")
}

/// The one line with which the agent refuses this kernel.
fn refusal() -> Result<String> {
    let (config, said) = ("/run/overlay.toml", "/run/refusal");
    let file = "[network]\ncidr = \"10.244.0.0/16\"\n[[nodes]]\nname = \"vm\"\naddress = \"192.0.2.1\"\nsubnet = \"10.244.1.0/24\"\n";
    fs::write(config, file).with_context(|| format!("write {config}"))?;
    let err = fs::File::create(said).with_context(|| format!("make {said}"))?;
    let status = wait(command(OVERLAY).args(["agent", "--config", config]).stderr(err), QUESTION)?;
    ensure!(status.code() == Some(1), "the agent did not refuse: {}", describe(status));
    let text = fs::read_to_string(said).with_context(|| format!("read {said}"))?;
    let [line] = text.lines().collect::<Vec<_>>()[..] else { bail!("not one line, but: {text:?}") };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    ensure!(line.contains(release.trim()), "it does not name the kernel: {line}");
    let pins = fs::read_dir("/sys/fs/bpf").context("list the pins")?.count();
    ensure!(pins == 0, "it left {pins} pins");
    let links = fs::read_dir("/sys/class/net").context("list the links")?.flatten();
    let links: Vec<_> = links.map(|link| link.file_name()).filter(|name| name != "lo").collect();
    ensure!(links.is_empty(), "it left {links:?}");
    Ok(line.to_owned())
}

/// Runs a step; that it fails is said to the host, and no reason to stop.
fn step(line: &str) -> Result<()> {
    let mut fields = line.split('\t');
    let (Some(name), Some(seconds), Some(program)) = (fields.next(), fields.next(), fields.next()) else {
        bail!("name, seconds and program are wanted")
    };
    let limit = Duration::from_secs(seconds.parse().context("read the seconds")?);
    println!("@vm begin {name}");
    let start = Instant::now();
    let ended = wait(command(program).args(fields), limit);
    // Output may have ended in the middle of a line.
    println!();
    let how = ended.map_or_else(|error| format!("{error:#}"), describe);
    println!("@vm end {how} {}", start.elapsed().as_secs());
    Ok(())
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".into(),
    }
}

/// Runs a program in a process group of its own, and reaps everything that ends meanwhile: the first process inherits what
/// loses its parent.
fn wait(command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let program = command.get_program().to_owned();
    let child = command.process_group(0).spawn().with_context(|| format!("start {}", program.display()))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let deadline = Instant::now() + limit;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(ended, code)) if ended == pid => {
                return Ok(ExitStatus::from_raw(code << 8));
            }
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended == pid => {
                return Ok(ExitStatus::from_raw(signal as i32));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(_) => continue,
            Err(error) => return Err(error).context("wait for a child"),
        }
        if Instant::now() >= deadline {
            killpg(pid, Signal::SIGKILL).context("kill a step")?;
            bail!("killed after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

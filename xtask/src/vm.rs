//! `cargo xtask test --vm`: packet tables and the core of the lab on Debian's kernels, in virtual machines.
//!
//! Kernels come as packages ([`archive`], [`kernel`]), are unpacked below the target directory and not installed. Each boots in
//! QEMU ([`machine`]) with an initramfs ([`initramfs`]) of programs of this machine and the tests as they are built here; its
//! first process (tests/src/vm) runs the [`plan`], and what it says on a serial port becomes an [`outcome`]. Nothing of it needs
//! root. Logs stay in `vm/<kernel>/` of the target directory.

mod archive;
mod initramfs;
mod kernel;
mod machine;
mod outcome;
mod plan;

use std::{
    fmt::Write as _,
    fs,
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use self::{
    archive::{Archive, NEWEST},
    initramfs::Built,
    kernel::Kernel,
    machine::{Accelerator, Machine},
    outcome::Outcome,
    plan::Plan,
};
use crate::{
    ebpf,
    setup::{self, Part},
    workspace::{self, Profile, Workspace},
};

/// The oldest that Debian has, which is too old; those of the releases that it does support; and the newest that there is.
const KERNELS: [&str; 4] = ["5.10", "6.1", "6.12", NEWEST];

/// First process of the machines: a binary of overlay-tests.
const INIT: &str = "vm-init";

/// Boots the kernels of these versions, or [`KERNELS`].
pub(crate) fn run(workspace: &Workspace, versions: &[String]) -> Result<()> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "kernels are booted on x86_64, because they run the programs of this machine, and this is {}",
        std::env::consts::ARCH
    );
    setup::ensure(&[Part::Host, Part::Bpf, Part::Agent, Part::Lab, Part::Vm])?;
    let dir = workspace.target().join("vm");
    let archive = Archive::open(&dir.join("apt"))?;
    let mut kernels = Vec::new();
    let wanted: Vec<&str> =
        if versions.is_empty() { KERNELS.to_vec() } else { versions.iter().map(String::as_str).collect() };
    for version in wanted {
        kernels.push(Kernel::get(&archive, archive.find(version)?, &dir.join("kernels"))?);
    }

    let image = &kernels.first().context("no kernel to boot")?.image;
    let (accelerator, why) = Accelerator::find(image, &dir)?;
    let plan = Plan::new(accelerator);
    let base = dir.join("base.cpio");
    build(workspace, accelerator.profile(), &plan, &base)?;
    let how =
        why.map_or_else(|| "by the processor".into(), |why| format!("by emulation, which is slow: {why}"));
    eprintln!("{}: {how}", machine::version()?);

    let mut table = String::from("\n");
    let mut bad = 0;
    for kernel in &kernels {
        let Kernel { release, offer, .. } = kernel;
        eprintln!("== Linux {release}");
        let start = Instant::now();
        let outcome = boot(kernel, &base, &dir, accelerator, &plan)
            .unwrap_or_else(|error| Outcome { trouble: vec![format!("{error:#}")], ..Outcome::default() });
        let verdict = if outcome.is_good() { "passed" } else { "FAILED" };
        bad += usize::from(!outcome.is_good());
        let seconds = start.elapsed().as_secs();
        writeln!(table, "{verdict}   {seconds:5} s  {release} ({} of {})", offer.version, offer.suite)?;
        table += &told(&outcome);
    }
    eprint!("{table}");
    if bad > 0 {
        bail!("{bad} of {} kernels did not pass: see the logs in {}", kernels.len(), dir.display());
    }
    Ok(())
}

/// What there is to say of a boot, a line each.
fn told(outcome: &Outcome) -> String {
    let Outcome { features, refusal, steps, trouble } = outcome;
    let refusal = refusal.iter().map(|line| format!("refused: {line}"));
    let all = features.iter().cloned().chain(refusal);
    let all = all.chain(steps.iter().map(ToString::to_string));
    let all = all.chain(trouble.iter().map(|line| format!("TROUBLE: {line}")));
    all.fold(String::new(), |text, line| text + "    " + &line + "\n")
}

fn boot(kernel: &Kernel, base: &Path, dir: &Path, accelerator: Accelerator, plan: &Plan) -> Result<Outcome> {
    let dir = dir.join(&kernel.release);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let archive = dir.join("initramfs.cpio");
    initramfs::with_modules(base, kernel, &archive)?;
    let machine = Machine {
        accelerator,
        image: &kernel.image,
        initramfs: Some(&archive),
        dir: &dir,
        limit: plan.limit(),
    };
    let outcome = machine.run(|step| eprintln!("{step}"));
    // Hundreds of MiB that are quickly made again.
    let _ = fs::remove_file(&archive);
    outcome
}

/// Builds all that runs in the machines, and the part of the initramfs that they share.
fn build(workspace: &Workspace, profile: Profile, plan: &Plan, base: &Path) -> Result<()> {
    let object = ebpf::build(workspace)?;
    let [overlay] = workspace.build(profile, ["overlay"], &object)?;
    let [init] = workspace.build(profile, [INIT], &object)?;
    let names: Vec<_> = Plan::tests().collect();
    let tests = workspace.build_tests(profile, "overlay-tests", &names, &object)?;
    let mut built = vec![Built { name: "overlay".into(), path: overlay }];
    built.extend(names.into_iter().zip(tests).map(|(name, path)| Built { name: name.into(), path }));
    initramfs::base(&init, &built, &object, plan, base)
}

/// What a command has said and how it ended.
struct Done {
    success: bool,
    /// Both outputs.
    text: String,
}

/// Runs a command that must not take longer than `limit`.
fn bounded(command: &mut Command, limit: Duration) -> Result<Done> {
    let line = workspace::line(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {line}"))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let reader = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = reader(out.map(|pipe| Box::new(pipe) as _));
    let err = reader(err.map(|pipe| Box::new(pipe) as _));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {line}"))? {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{line} was still running after {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    };
    let text = [out, err].map(|reader| reader.join().unwrap_or_default()).concat();
    Ok(Done { success: status.success(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_ended() {
        let error = bounded(Command::new("sleep").arg("600"), Duration::from_millis(50)).err().unwrap();
        assert!(error.to_string().contains("sleep 600 was still running"), "{error}");
    }

    #[test]
    fn both_outputs_are_kept() {
        let done = bounded(
            Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]),
            Duration::from_secs(20),
        );
        let Done { success, text } = done.unwrap();
        assert_eq!((success, text.as_str()), (false, "out\nerr\n"));
    }
}

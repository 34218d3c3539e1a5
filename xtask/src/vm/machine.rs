//! One virtual machine: boots a kernel, waits for its end, never outlives its limit or this process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{bounded, outcome::Outcome};
use crate::workspace::Profile;

/// QEMU for the architecture whose kernels are booted.
const QEMU: &str = "qemu-system-x86_64";
const KVM: &str = "/dev/kvm";
/// MiB: the initramfs, unpacked, is a quarter of it.
const MEMORY: u32 = 3072;
/// For a kernel's first line.
const TRIAL: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);

/// What executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The processor.
    Kvm,
    /// A program.
    Tcg,
}

impl Accelerator {
    /// The best that works here, and why it is not the processor. That a device is there does not mean that it works: a kernel is
    /// booted by it until it says something.
    pub(super) fn find(image: &Path, dir: &Path) -> Result<(Self, Option<String>)> {
        if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(KVM) {
            return Ok((Self::Tcg, Some(format!("open {KVM}: {error}"))));
        }
        let dir = dir.join("trial");
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let trial = Machine { accelerator: Self::Kvm, image, initramfs: None, dir: &dir, limit: TRIAL };
        Ok(match trial.says_something()? {
            Ok(()) => (Self::Kvm, None),
            Err(why) => (Self::Tcg, Some(why)),
        })
    }

    /// How much longer everything may take.
    pub(super) const fn slowness(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 10,
        }
    }

    /// How programs are built for it: where each instruction costs ten, it pays to have fewer.
    pub(super) const fn profile(self) -> Profile {
        match self {
            Self::Kvm => Profile::Dev,
            Self::Tcg => Profile::Emulated,
        }
    }

    const fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Wide vectors are slower than none when they are emulated; random numbers must not be waited for.
            Self::Tcg => ["-accel", "tcg,tb-size=512", "-cpu", "Westmere,+rdrand"],
        }
    }
}

/// What to boot.
pub(super) struct Machine<'a> {
    pub(super) accelerator: Accelerator,
    pub(super) image: &'a Path,
    pub(super) initramfs: Option<&'a Path>,
    /// Where logs go.
    pub(super) dir: &'a Path,
    pub(super) limit: Duration,
}

/// Ends QEMU, whatever becomes of the function that waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// What the kernel says, and what the tests say.
    fn logs(&self) -> [PathBuf; 2] {
        [self.dir.join("console.log"), self.dir.join("tests.log")]
    }

    /// Boots, and waits until the machine has switched itself off; `progress` hears of each step that ends.
    pub(super) fn run(&self, mut progress: impl FnMut(&str)) -> Result<Outcome> {
        let [console, tests] = self.logs();
        for log in [&console, &tests] {
            fs::write(log, "").with_context(|| format!("write {}", log.display()))?;
        }
        let mut running = Running(self.command().spawn().with_context(|| format!("start {QEMU}"))?);
        let deadline = Instant::now() + self.limit;
        let mut told = 0;
        let ended = loop {
            let ended = running.0.try_wait().context("wait for QEMU")?;
            let text = read(&tests)?;
            let outcome = Outcome::read(&text, "");
            for step in outcome.steps.iter().skip(told) {
                progress(&step.to_string());
            }
            told = outcome.steps.len();
            if ended.is_some() || Instant::now() >= deadline {
                break ended;
            }
            thread::sleep(POLL);
        };
        let mut outcome = Outcome::read(&read(&tests)?, &read(&console)?);
        match ended {
            None => outcome.trouble.push(format!("it was still running after {} s", self.limit.as_secs())),
            Some(status) if !status.success() => {
                outcome.trouble.push(format!("QEMU failed ({status}): {}", self.complaint()));
            }
            Some(_) => {}
        }
        Ok(outcome)
    }

    /// Whether a kernel that is booted writes to its console, or why it does not.
    fn says_something(&self) -> Result<Result<(), String>> {
        let [console, _] = self.logs();
        fs::write(&console, "").with_context(|| format!("write {}", console.display()))?;
        let mut running = Running(self.command().spawn().with_context(|| format!("start {QEMU}"))?);
        let deadline = Instant::now() + self.limit;
        loop {
            let ended = running.0.try_wait().context("wait for QEMU")?;
            if read(&console)?.contains("Linux version") {
                return Ok(Ok(()));
            }
            if let Some(status) = ended {
                let said = self.complaint();
                return Ok(Err(format!("{KVM} does not work here ({status}): {said}")));
            }
            if Instant::now() >= deadline {
                let seconds = self.limit.as_secs();
                return Ok(Err(format!(
                    "{KVM} does not work here: no sign of life of a kernel in {seconds} s"
                )));
            }
            thread::sleep(POLL);
        }
    }

    /// The first line of what QEMU has said.
    fn complaint(&self) -> String {
        let said = fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default();
        said.lines().next().unwrap_or("it said nothing").to_owned()
    }

    fn command(&self) -> Command {
        let [console, tests] = self.logs();
        let serial = |path: &Path| format!("file:{}", path.display());
        // QEMU dies with its parent even where that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
        ]);
        command.args(["-machine", "q35", "-smp", "1", "-m", &MEMORY.to_string()]);
        command.args(self.accelerator.arguments());
        command.args(["-serial", &serial(&console), "-serial", &serial(&tests)]);
        command.arg("-kernel").arg(self.image);
        // A trial is for the first lines, which a machine that works does not show.
        let level = if self.initramfs.is_some() { "loglevel=5" } else { "earlyprintk=ttyS0" };
        if let Some(initramfs) = self.initramfs {
            command.arg("-initrd").arg(initramfs);
        }
        // A panic, and anything that is one in the making, ends the machine: -no-reboot.
        let parameters = format!("console=ttyS0 {level} rdinit=/init oops=panic panic=-1 no_timer_check");
        command.args(["-append", &parameters]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        match fs::File::create(self.dir.join("qemu.log")) {
            Ok(log) => command.stderr(log),
            Err(_) => command.stderr(Stdio::inherit()),
        };
        command
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// QEMU's own version, for the report.
pub(super) fn version() -> Result<String> {
    let output = bounded(Command::new(QEMU).arg("--version"), Duration::from_secs(20))?;
    Ok(output.text.lines().next().unwrap_or(QEMU).to_owned())
}

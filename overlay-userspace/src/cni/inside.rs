//! A call from its beginning to its end on the schema in force: the plugin may be of another build than the agent.
//!
//! A plugin that is newer works on the older schema. One that is older cannot; it hands the call to the build that has
//! taken its place meanwhile, or tells the runtime to try again later. Called by the entry point for every verb that looks at pins.

use std::{
    env, io,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use super::{
    failure::{Code, Failure},
    types::Conf,
};
use crate::datapath::{
    DatapathError,
    schema::lock::{self, Inside},
};

/// Appended by the kernel to the path of a program whose file has been replaced (proc_pid_exe(5)).
const REPLACED: &str = " (deleted)";

/// Holds the schema in force for the call, which works on its pins from now on.
///
/// # Errors
///
/// [`Code::TryAgainLater`] where the schema is another build's, or being changed.
pub(super) fn enter(conf: &mut Conf) -> Result<Inside, Failure> {
    let (inside, pins) = lock::enter(&conf.pins)?;
    if pins.schema() > conf.pins.schema() {
        let own = conf.pins.schema();
        let message = format!(
            "{} is of a newer overlay, and this CNI plugin knows schema {own}: run `overlay cni install` of the newer build",
            pins.root().display()
        );
        return Err(Failure::new(Code::TryAgainLater, message));
    }
    conf.pins = pins;
    Ok(inside)
}

/// The build that has been installed over this one since the call began, if that is why the call failed.
pub(super) fn successor(failure: &Failure) -> Option<PathBuf> {
    if failure.code != Code::TryAgainLater {
        return None;
    }
    let path = env::current_exe().ok()?.into_os_string().into_string().ok()?;
    path.strip_suffix(REPLACED).map(PathBuf::from).filter(|path| path.is_file())
}

/// Has another build answer the call: the same environment and input, its answer on our standard output. The exit code.
pub(super) fn hand_over(build: &PathBuf, stdin: &[u8]) -> io::Result<Option<i32>> {
    let mut child = Command::new(build).arg("cni").stdin(Stdio::piped()).spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        // Which it need not read.
        let _ = pipe.write_all(stdin);
    }
    Ok(child.wait()?.code())
}

impl From<&DatapathError> for Code {
    fn from(error: &DatapathError) -> Self {
        match error {
            DatapathError::NotPinned { .. } | DatapathError::Newer { .. } | DatapathError::Busy { .. } => {
                Self::TryAgainLater
            }
            _ => Self::Io,
        }
    }
}

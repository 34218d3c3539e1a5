//! `overlay completions` and `overlay man`: what shells and `man` want to know of the command line, made from it, so that
//! nothing of it can be out of date.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    /// Prints what completes the command line of `command`.
    pub(super) fn run(&self, mut command: Command) -> anyhow::Result<()> {
        let mut script = Vec::new();
        let name = command.get_name().to_owned();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        io::stdout().write_all(&script).context("write to standard output")
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where to; created if need be
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    /// Writes a page for `command` and for each of its subcommands: `overlay.8`, `overlay-status.8`, ….
    pub(super) fn run(&self, mut command: Command) -> anyhow::Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        command.build();
        pages(&command, &self.dir)
    }
}

fn pages(command: &Command, dir: &Path) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let page = clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).section("8");
    let mut text = Vec::new();
    page.render(&mut text).with_context(|| format!("make the page of {name}"))?;
    let path = dir.join(format!("{name}.8"));
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    command.get_subcommands().filter(|one| one.get_name() != "help").try_for_each(|one| pages(one, dir))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn there_is_a_page_for_each_command_and_it_names_the_options() {
        let dir = std::env::temp_dir().join(format!("overlay-man-{}", std::process::id()));
        Man { dir: dir.clone() }.run(Cli::command()).unwrap();
        let names: BTreeSet<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let status = fs::read_to_string(dir.join("overlay-status.8")).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        for command in Cli::command().get_subcommands() {
            assert!(names.contains(&format!("overlay-{}.8", command.get_name())), "{names:?}");
        }
        assert!(names.contains("overlay.8") && names.contains("overlay-cni-install.8"), "{names:?}");
        assert!(status.contains("no\\-headers") && status.contains(".SH SYNOPSIS"), "{status}");
    }

    #[test]
    fn every_shell_gets_a_script_with_the_commands() {
        use clap::ValueEnum as _;
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "overlay", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["endpoints", "completions", "no-headers"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}

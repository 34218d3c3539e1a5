//! Rules on source text that no compiler checks: length of files, and words that mark unfinished work.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// A file this long should be split (lines).
const LONG: usize = 500;
/// A file this long must be split (lines).
const TOO_LONG: usize = 600;

/// Words of unfinished work; in pieces here, or this file would break its own rule.
const FORBIDDEN: [&str; 3] = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("FIX", "ME")];

/// What was found, one line each.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    warnings: Vec<String>,
    errors: Vec<String>,
}

/// Checks every Rust file of the workspace's crates.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut findings = Findings::default();
    let mut files = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("list {}", root.display()))? {
        let member = entry.with_context(|| format!("list {}", root.display()))?.path();
        if member.join("Cargo.toml").is_file() {
            collect(&member, &mut files)?;
        }
    }
    files.sort();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
        findings.examine(&name, &text);
    }
    for warning in &findings.warnings {
        eprintln!("warning: {warning}");
    }
    if findings.errors.is_empty() {
        return Ok(());
    }
    bail!("{} findings in the source:\n  {}", findings.errors.len(), findings.errors.join("\n  "))
}

/// Rust files below `dir`, except in build results.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.is_dir() {
            if !path.join("CACHEDIR.TAG").exists() {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

impl Findings {
    fn examine(&mut self, name: &str, text: &str) {
        let lines = text.lines().count();
        if lines > TOO_LONG {
            self.errors
                .push(format!("{name}: {lines} lines, at most {TOO_LONG} are allowed: split it by subject"));
        } else if lines > LONG {
            self.warnings.push(format!("{name}: {lines} lines, better fewer than {LONG}"));
        }
        for (number, line) in text.lines().enumerate() {
            for word in FORBIDDEN {
                if line.contains(word) {
                    let word = word.trim_end_matches('(');
                    self.errors.push(format!("{name}:{}: {word} marks unfinished work", number + 1));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Findings {
        let mut findings = Findings::default();
        findings.examine("a.rs", text);
        findings
    }

    #[test]
    fn long_files_are_warned_about_and_longer_ones_refused() {
        assert_eq!(findings(&"\n".repeat(LONG)), Findings::default());
        assert_eq!(findings(&"\n".repeat(LONG + 1)).warnings.len(), 1);
        assert_eq!(findings(&"\n".repeat(TOO_LONG + 1)).errors.len(), 1);
    }

    #[test]
    fn marks_of_unfinished_work_are_found_with_their_line() {
        for word in FORBIDDEN {
            let errors = findings(&format!("fn a() {{\n    {word}\n}}\n")).errors;
            assert_eq!(errors.len(), 1, "{word}");
            assert!(errors[0].starts_with("a.rs:2: "), "{errors:?}");
        }
    }
}

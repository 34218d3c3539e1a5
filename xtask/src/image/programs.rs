//! Programs of this machine for the image, with all that they need to run there: libraries, loader, licences.
//!
//! Paths in the image are those that the loader uses, so that it finds everything without a cache; `/lib` and its like are
//! the links that they are on a system whose `/usr` is merged.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::rootfs::{Node, RootFs};
use crate::{toolchain::find_program, workspace};

/// Directories that are links where `/usr` is merged.
const MERGED: [&str; 4] = ["/bin", "/lib", "/lib64", "/sbin"];

/// Collects what goes into a tree.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    /// Paths on this machine whose files are taken, by whatever link they are found.
    files: BTreeSet<PathBuf>,
    /// Links that are taken as links.
    links: BTreeSet<PathBuf>,
}

impl Programs {
    /// Takes a program of PATH, and all that its loader opens.
    pub(crate) fn program(&mut self, name: &str) -> Result<()> {
        let path = find_program(name).with_context(|| format!("find the program {name} in PATH"))?;
        let path = beyond_merge(&path)?;
        // One program with several names finds out by its name what to do.
        let real = fs::canonicalize(&path).with_context(|| format!("resolve {}", path.display()))?;
        if real != path {
            self.links.insert(path);
        }
        self.object(&real)
    }

    /// Takes an ELF file, and the libraries and the loader that it needs.
    pub(crate) fn object(&mut self, path: &Path) -> Result<()> {
        self.files.insert(path.to_path_buf());
        self.libraries(path)
    }

    /// Takes the libraries and the loader that an ELF file needs, without the file.
    pub(crate) fn libraries(&mut self, path: &Path) -> Result<()> {
        for library in needed(path)? {
            self.files.insert(beyond_merge(&library)?);
        }
        Ok(())
    }

    /// Takes every shared object of a directory whose name begins with one of `prefixes`.
    pub(crate) fn plugins(&mut self, dir: &Path, prefixes: &[&str]) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().extension().is_some_and(|extension| extension == "so")
                && prefixes.iter().any(|prefix| name.starts_with(prefix))
            {
                self.object(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The directory of the library whose name begins with `prefix`, of those that are taken.
    pub(crate) fn directory_of(&self, prefix: &str) -> Option<PathBuf> {
        let named =
            |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        self.files.iter().find(named)?.parent().map(Path::to_path_buf)
    }

    /// Puts it all into `root`, with the licences of the packages that it is from; their versions go to the file `list`.
    pub(crate) fn put_into(&self, root: &mut RootFs, list: &str) -> Result<()> {
        for dir in MERGED {
            if let Ok(target) = fs::read_link(dir) {
                root.put(Path::new(dir), Node::Link(target))?;
            }
        }
        let mut packages = BTreeSet::new();
        for path in &self.files {
            root.put(path, read(path)?)?;
            let real = fs::canonicalize(path).with_context(|| format!("resolve {}", path.display()))?;
            packages.extend(package_of(&real));
        }
        for path in &self.links {
            let real = fs::canonicalize(path).with_context(|| format!("resolve {}", path.display()))?;
            root.put(path, Node::Link(real))?;
        }
        let mut versions = String::new();
        for package in &packages {
            versions.push_str(&version(package)?);
            let name = package.split(':').next().unwrap_or(package);
            let licence = PathBuf::from(format!("/usr/share/doc/{name}/copyright"));
            if licence.is_file() {
                root.put(&licence, read(&licence)?)?;
            }
        }
        root.file(list, versions)
    }
}

/// The file behind `path`.
fn read(path: &Path) -> Result<Node> {
    let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let mode =
        fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.permissions().mode();
    Ok(Node::File { executable: mode & 0o111 != 0, content })
}

/// The path with its directory, but not its last component, resolved.
fn beyond_merge(path: &Path) -> Result<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        anyhow::bail!("{} is the path of no file", path.display())
    };
    let dir = fs::canonicalize(dir).with_context(|| format!("resolve {}", dir.display()))?;
    Ok(dir.join(name))
}

/// The libraries and the loader of an ELF file, by the loader itself; none where it is static.
pub(crate) fn needed(path: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    command.env("LC_ALL", "C").arg(path).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("start {}", workspace::line(&command)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    if is_static(&text) || is_static(&said) {
        return Ok(Vec::new());
    }
    ensure!(output.status.success(), "{}: {}", workspace::line(&command), said.trim());
    parse(&text).with_context(|| format!("find the libraries of {}", path.display()))
}

fn is_static(said: &str) -> bool {
    ["statically linked", "not a dynamic executable"].iter().any(|text| said.contains(text))
}

/// Paths in what ldd prints.
fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        ensure!(!line.contains("not found"), "{line}");
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        let path = path.rsplit_once(" (0x").map_or(path, |(path, _)| path);
        // The kernel's own library has no file.
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

/// The Debian package that a file is of.
fn package_of(path: &Path) -> Option<String> {
    // dpkg knows files of an older package by the path before the merge.
    let before = path.strip_prefix("/usr").map(|path| Path::new("/").join(path)).ok();
    [Some(path.to_path_buf()), before].into_iter().flatten().find_map(|path| {
        let output =
            Command::new("dpkg-query").arg("--search").arg(path).stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        // Also a package with an architecture: `libc6:amd64: /lib/…`.
        text.lines().find_map(|line| line.split_once(": ")).map(|(package, _)| package.to_owned())
    })
}

/// `name version`, as one line.
fn version(package: &str) -> Result<String> {
    let mut command = Command::new("dpkg-query");
    command.args([
        "--show",
        "--showformat=${Package} ${Version} (source ${source:Package} ${source:Version})\\n",
        package,
    ]);
    let output = command.output().with_context(|| format!("start {}", workspace::line(&command)))?;
    ensure!(output.status.success(), "dpkg-query does not know the package {package}");
    String::from_utf8(output.stdout).with_context(|| format!("read the version of {package}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007f80bf9fa000)\n\
                    \tlibnftables.so.1 => /lib/x86_64-linux-gnu/libnftables.so.1 (0x00007f80bf907000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f80bf9fc000)\n";
        let paths = ["/lib/x86_64-linux-gnu/libnftables.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse(text).unwrap(), paths.map(PathBuf::from));
    }

    #[test]
    fn a_library_that_is_missing_is_named() {
        let error = parse("\tlibmnl.so.0 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "libmnl.so.0 => not found");
    }

    #[test]
    fn a_dynamic_program_takes_its_libraries_and_its_loader_with_it() {
        let own = std::env::current_exe().unwrap();
        let mut programs = Programs::default();
        programs.object(&own).unwrap();
        assert!(programs.files.contains(&own));
        let names: Vec<_> = programs.files.iter().map(|path| path.display().to_string()).collect();
        assert!(names.iter().any(|name| name.contains("/libc.so")), "{names:?}");
        assert!(names.iter().any(|name| name.contains("/ld-")), "the loader is missing: {names:?}");
        assert!(names.iter().all(|name| !name.starts_with("/lib64/") || !Path::new("/lib64").is_symlink()));
    }
}

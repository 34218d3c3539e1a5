//! Debian's kernels as packages, by apt, without installing any.
//!
//! apt works on directories of its own below the target directory, with the mirror (and proxy) that this machine is set up
//! for, and checks signatures and hashes as ever. The machine's package lists are neither read nor written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::bounded;

/// Suites, oldest first. One that the mirror does not have is done without.
const SUITES: [&str; 6] = ["bullseye", "bookworm", "trixie", "trixie-backports", "forky", "sid"];
/// Depends on the suite's kernel; its version is the kernel's.
const METAPACKAGE: &str = "linux-image-amd64";
/// Whose keys Debian's suites are signed with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Package lists are fetched again when they are older.
const FRESH: Duration = Duration::from_hours(24);
/// The newest kernel of all suites.
pub(super) const NEWEST: &str = "newest";

const LISTS_LIMIT: Duration = Duration::from_mins(5);
const QUERY_LIMIT: Duration = Duration::from_mins(1);
const DOWNLOAD_LIMIT: Duration = Duration::from_mins(15);

/// A kernel that a suite offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Of the Debian package, such as `6.1.176-1`.
    pub(super) version: String,
    pub(super) suite: String,
}

/// What apt is told to work on.
pub(super) struct Archive {
    dir: PathBuf,
    offers: Vec<Offer>,
}

impl Archive {
    /// Fetches the package lists below `dir` where there are none that are fresh.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let mut archive = Self { dir: dir.to_path_buf(), offers: Vec::new() };
        for part in ["lists/partial", "cache/archives/partial", "packages"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        let sources = sources(&mirror()?)?;
        let changed =
            write(&dir.join("sources.list"), &sources)? | write(&dir.join("apt.conf"), &configuration(dir))?;
        let stamp = dir.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|of| of.modified())
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < FRESH));
        if changed || !fresh {
            eprintln!("fetching the package lists of {}", SUITES.join(", "));
            let updated = bounded(archive.apt("apt-get").args(["-q", "update"]), LISTS_LIMIT)?;
            archive.offers = archive.list()?;
            // apt fails when one suite does; the others are there all the same.
            ensure!(
                !archive.offers.is_empty(),
                "no package lists of Debian: is the network there, and does the mirror that apt is set up for have them?\n{}",
                updated.text.trim_end()
            );
            if updated.success {
                fs::write(&stamp, "").with_context(|| format!("write {}", stamp.display()))?;
            }
        } else {
            archive.offers = archive.list()?;
        }
        Ok(archive)
    }

    /// The newest kernel of a version such as `6.1` or `6.12.107`, or of all ([`NEWEST`]).
    pub(super) fn find(&self, version: &str) -> Result<&Offer> {
        find(&self.offers, version)
    }

    fn list(&self) -> Result<Vec<Offer>> {
        let listed = bounded(self.apt("apt-cache").args(["madison", METAPACKAGE]), QUERY_LIMIT)?;
        Ok(offers(&listed.text))
    }

    /// The packages that make up a kernel, its modules included, and what it calls itself (`uname -r`).
    pub(super) fn packages(&self, offer: &Offer) -> Result<(String, Vec<String>)> {
        let image = depends(&self.show(&format!("{METAPACKAGE}={}", offer.version))?)
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))
            .with_context(|| format!("{METAPACKAGE} {} depends on no kernel", offer.version))?;
        let release = image.trim_start_matches("linux-image-").to_owned();
        let with = depends(&self.show(&format!("{image}={}", offer.version))?);
        let mut packages = vec![image];
        // Newer ones come in several packages.
        packages
            .extend(with.into_iter().filter(|name| name.starts_with("linux-") && name.ends_with(&release)));
        Ok((release, packages))
    }

    fn show(&self, package: &str) -> Result<String> {
        let shown = bounded(self.apt("apt-cache").args(["show", "--no-all-versions", package]), QUERY_LIMIT)?;
        ensure!(shown.success, "apt-cache show {package}: {}", shown.text.trim_end());
        Ok(shown.text)
    }

    /// Downloads packages; the files.
    pub(super) fn download(&self, packages: &[String], version: &str) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join("packages");
        let mut files = Vec::new();
        for package in packages {
            let mut command = self.apt("apt-get");
            command.current_dir(&dir).args(["-q", "download", &format!("{package}={version}")]);
            let done = bounded(&mut command, DOWNLOAD_LIMIT)?;
            ensure!(
                done.success,
                "download {package} {version}: is the network there?\n{}",
                done.text.trim_end()
            );
            let prefix = format!("{package}_");
            let file = fs::read_dir(&dir)
                .with_context(|| format!("list {}", dir.display()))?
                .flatten()
                .map(|entry| entry.path())
                .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
                .with_context(|| format!("find {package} in {}", dir.display()))?;
            files.push(file);
        }
        Ok(files)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.dir.join("apt.conf")).env("LC_ALL", "C");
        command
    }
}

/// The mirror of Debian's own archive that this machine's apt is set up for.
fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.env("LC_ALL", "C").args([
        "indextargets",
        "--format",
        "$(SITE)\t$(ORIGIN)\t$(LABEL)\t$(COMPONENT)",
        "Created-By: Packages",
    ]);
    let targets = bounded(&mut command, QUERY_LIMIT).context("kernels come as Debian packages, by apt")?;
    debian(&targets.text).map(str::to_owned).context(
        "this machine's apt is not set up for Debian's archive: add it to the sources (`deb <mirror> stable main`)",
    )
}

fn debian(targets: &str) -> Option<&str> {
    targets.lines().find_map(|line| {
        let fields: Vec<_> = line.split('\t').collect();
        matches!(fields[..], [_, "Debian", "Debian", "main"]).then(|| fields[0])
    })
}

fn sources(mirror: &str) -> Result<String> {
    ensure!(
        Path::new(KEYRING).is_file(),
        "{KEYRING} is missing, which packages are checked by: apt-get install debian-archive-keyring"
    );
    Ok(SUITES.map(|suite| format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n")).concat())
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "Dir::State::Lists \"{dir}/lists\";\n\
         Dir::State::status \"/dev/null\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         Dir::Etc::SourceList \"{dir}/sources.list\";\n\
         Dir::Etc::SourceParts \"-\";\n\
         Dir::Etc::Preferences \"/dev/null\";\n\
         Dir::Etc::PreferencesParts \"-\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Sandbox::User \"\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"2\";\n\
         Acquire::http::Timeout \"30\";\n"
    )
}

/// Writes a file where it is not that already; whether it was not.
fn write(path: &Path, content: &str) -> Result<bool> {
    if fs::read_to_string(path).is_ok_and(|present| present == content) {
        return Ok(false);
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
    Ok(true)
}

/// Reads `apt-cache madison`: `package | version | mirror suite/component architecture Packages`.
fn offers(text: &str) -> Vec<Offer> {
    let offer = |line: &str| {
        let mut fields = line.split('|').map(str::trim);
        let (_, version, place) = (fields.next()?, fields.next()?, fields.next()?);
        let suite = place.split_whitespace().nth(1)?.split('/').next()?;
        Some(Offer { version: version.to_owned(), suite: suite.to_owned() })
    };
    text.lines().filter_map(offer).collect()
}

fn find<'a>(offers: &'a [Offer], version: &str) -> Result<&'a Offer> {
    let wanted = numbers(version);
    let fits = |offer: &&Offer| {
        version == NEWEST || !wanted.is_empty() && numbers(&offer.version).starts_with(&wanted)
    };
    let newest = offers.iter().filter(fits).max_by_key(|offer| numbers(&offer.version));
    let Some(newest) = newest else {
        let all: Vec<_> =
            offers.iter().map(|Offer { version, suite }| format!("{version} ({suite})")).collect();
        bail!("no suite has a kernel {version}; there are {}", all.join(", "))
    };
    Ok(newest)
}

/// The numbers at the beginning of a version.
fn numbers(version: &str) -> Vec<u32> {
    let upstream = version.split(['-', '+', '~']).next().unwrap_or_default();
    upstream.split('.').map_while(|number| number.parse().ok()).collect()
}

/// First alternatives of what a package depends on.
fn depends(shown: &str) -> Vec<String> {
    let line = shown.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    line.split(',').filter_map(|one| one.split_whitespace().next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADISON: &str = "\
linux-image-amd64 | 7.3.4-1~bpo13+1 | http://mirror.example/debian trixie-backports/main amd64 Packages
linux-image-amd64 | 7.2.13-1 | http://mirror.example/debian sid/main amd64 Packages
linux-image-amd64 | 6.12.107-1 | http://mirror.example/debian trixie/main amd64 Packages
linux-image-amd64 | 6.1.176-1 | http://mirror.example/debian bookworm/main amd64 Packages
";

    fn version_of(wanted: &str) -> String {
        find(&offers(MADISON), wanted).unwrap().version.clone()
    }

    #[test]
    fn a_version_names_the_newest_kernel_that_begins_with_it() {
        assert_eq!(version_of("6.1"), "6.1.176-1");
        assert_eq!(version_of("6.12"), "6.12.107-1");
        assert_eq!(version_of("6"), "6.12.107-1");
        assert_eq!(version_of(NEWEST), "7.3.4-1~bpo13+1");
        assert_eq!(find(&offers(MADISON), "7.2").unwrap().suite, "sid");
    }

    #[test]
    fn a_version_that_no_suite_has_is_told_with_those_that_there_are() {
        for version in ["5.10", "nonsense", ""] {
            let error = find(&offers(MADISON), version).unwrap_err().to_string();
            assert!(error.contains("7.2.13-1 (sid), 6.12.107-1 (trixie)"), "{error}");
        }
    }

    #[test]
    fn the_mirror_is_that_of_debians_own_archive() {
        let targets = "http://other.example/node\t. nodistro\t. nodistro\tmain\n\
                       http://mirror.example/debian-security\tDebian\tDebian-Security\tmain\n\
                       http://mirror.example/debian\tDebian\tDebian\tmain\n";
        assert_eq!(debian(targets), Some("http://mirror.example/debian"));
        assert_eq!(debian("http://mirror.example/ubuntu\tUbuntu\tUbuntu\tmain\n"), None);
    }

    #[test]
    fn what_a_package_depends_on_is_read_without_versions() {
        let shown = "Package: linux-image-7.3.4+deb13-amd64\nDepends: dracut | initramfs-tools, \
                     linux-binary-7.3.4+deb13-amd64 (= 7.3.4-1), linux-modules-7.3.4+deb13-amd64 (= 7.3.4-1)\n";
        let names = ["dracut", "linux-binary-7.3.4+deb13-amd64", "linux-modules-7.3.4+deb13-amd64"];
        assert_eq!(depends(shown), names);
    }
}

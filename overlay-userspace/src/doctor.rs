//! `overlay doctor`: looks for what is wrong with a node, and says what, how it is seen, and what helps.
//!
//! Each check is one file below and implements `Check`. It only looks; what may be put right without asking is a
//! `Fix` at the finding. Checks need no agent and, but for drift, no overlay on the node: what does not apply is
//! skipped, and says so. A check that cannot look is a finding as well. Called by the command line.

use serde::Serialize;

mod agent;
mod bpffs;
mod checksums;
mod cni;
mod drift;
mod firewall;
mod fix;
mod flannel;
mod icmp;
mod kernel;
mod mtu;
mod nodes;
mod peers;
mod pins;
mod ports;
mod site;
mod sockets;
mod sysctls;

pub(crate) use fix::{Fix, Scope};
pub(crate) use site::Site;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// All is well; one row for each check that found nothing.
    Ok,
    /// The check does not apply, or could not be made; it says why.
    Skipped,
    /// Something works less well than it could, or will break.
    Warning,
    /// Something does not work.
    Error,
}

impl Severity {
    /// As people and machines see it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What a check has found; also that it has found nothing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// The check.
    pub(crate) check: &'static str,
    /// How bad.
    pub(crate) severity: Severity,
    /// What it is about: a device, a setting, a file; empty for the node as a whole.
    pub(crate) object: String,
    /// What is wrong with it.
    pub(crate) what: String,
    /// How that is seen.
    pub(crate) evidence: String,
    /// What helps: often a command that can be run as it is.
    pub(crate) remedy: String,
    /// Which `--fix` does it; `None` for none.
    pub(crate) fix: Option<Scope>,
    #[serde(skip)]
    act: Option<Fix>,
}

impl Finding {
    fn evidence(&mut self, evidence: impl Into<String>) -> &mut Self {
        self.evidence = evidence.into();
        self
    }

    fn remedy(&mut self, remedy: impl Into<String>) -> &mut Self {
        self.remedy = remedy.into();
        self
    }

    fn fix(&mut self, fix: Fix) -> &mut Self {
        self.fix = Some(fix.scope());
        self.act = Some(fix);
        self
    }
}

/// What one check has to say.
pub(crate) struct Report {
    check: &'static str,
    findings: Vec<Finding>,
    seen: Vec<String>,
    skipped: Option<String>,
}

impl Report {
    fn add(
        &mut self,
        severity: Severity,
        object: impl Into<String>,
        what: impl Into<String>,
    ) -> &mut Finding {
        self.findings.push(Finding {
            check: self.check,
            severity,
            object: object.into(),
            what: what.into(),
            evidence: String::new(),
            remedy: String::new(),
            fix: None,
            act: None,
        });
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    fn error(&mut self, object: impl Into<String>, what: impl Into<String>) -> &mut Finding {
        self.add(Severity::Error, object, what)
    }

    fn warning(&mut self, object: impl Into<String>, what: impl Into<String>) -> &mut Finding {
        self.add(Severity::Warning, object, what)
    }

    /// What was looked at, for the row that says that nothing was found.
    fn saw(&mut self, what: impl Into<String>) {
        self.seen.push(what.into());
    }

    /// There was nothing to look at, and why.
    fn skip(&mut self, why: impl Into<String>) {
        self.skipped = Some(why.into());
    }

    fn end(mut self) -> Vec<Finding> {
        if self.findings.is_empty() {
            if let Some(why) = self.skipped.take() {
                self.add(Severity::Skipped, "", why);
            } else {
                let seen = self.seen.join("; ");
                self.add(Severity::Ok, "", seen);
            }
        }
        self.findings
    }
}

/// One thing to look at.
pub(crate) trait Check: Sync {
    /// Its name, as `--only` takes it.
    fn name(&self) -> &'static str;

    /// Looks. An error is that it could not.
    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()>;
}

/// All checks, in the order in which they run: what later ones rest on first.
pub(crate) const CHECKS: &[&dyn Check] = &[
    &kernel::Kernel,
    &bpffs::Bpffs,
    &agent::Agent,
    &nodes::Nodes,
    &cni::Cni,
    &ports::Ports,
    &flannel::Flannel,
    &sysctls::Sysctls,
    &firewall::Firewall,
    &mtu::Mtu,
    &peers::Peers,
    &checksums::Checksums,
    &pins::Pinned,
    &drift::DriftCheck,
];

/// Runs the checks of these names, or all where there are none.
pub(crate) fn examine(site: &Site, only: &[String]) -> Vec<Finding> {
    let chosen =
        CHECKS.iter().filter(|check| only.is_empty() || only.iter().any(|name| name == check.name()));
    chosen
        .flat_map(|check| {
            let mut report =
                Report { check: check.name(), findings: Vec::new(), seen: Vec::new(), skipped: None };
            if let Err(error) = check.run(site, &mut report) {
                report
                    .error("", "could not be looked at")
                    .evidence(format!("{error:#}"))
                    .remedy("run it as root, in the node's own network namespace");
            }
            report.end()
        })
        .collect()
}

/// What may be done about the findings, each thing once, in the order of the checks.
pub(crate) fn fixes(findings: &[Finding], scopes: &[Scope]) -> Vec<Fix> {
    let mut fixes: Vec<Fix> = Vec::new();
    for fix in findings.iter().filter_map(|finding| finding.act.as_ref()) {
        if scopes.contains(&fix.scope()) && !fixes.contains(fix) {
            fixes.push(fix.clone());
        }
    }
    fixes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report { check: "x", findings: Vec::new(), seen: Vec::new(), skipped: None }
    }

    #[test]
    fn a_check_always_has_something_to_say() {
        let mut fine = report();
        fine.saw("one thing");
        fine.saw("another");
        let said = |report: Report| -> Vec<_> {
            report.end().into_iter().map(|finding| (finding.severity, finding.what)).collect()
        };
        assert_eq!(said(fine), [(Severity::Ok, "one thing; another".to_owned())]);
        let mut skipped = report();
        skipped.skip("not here");
        assert_eq!(said(skipped), [(Severity::Skipped, "not here".to_owned())]);
        let mut broken = report();
        broken.saw("one thing");
        broken.skip("too late");
        broken.warning("eth0", "is slow");
        assert_eq!(said(broken), [(Severity::Warning, "is slow".to_owned())]);
    }

    #[test]
    fn each_thing_is_done_once_and_only_what_was_asked_for() {
        let mut report = report();
        let setting = |path: &str| Fix::Setting { path: path.into(), value: "1" };
        report.error("a", "off").fix(setting("a"));
        report.error("b", "differs").fix(Fix::Pass);
        report.error("c", "differs").fix(Fix::Pass);
        report.error("d", "is there").fix(Fix::Flannel(flannel::Leftover::Device("cni0".into())));
        let findings = report.end();
        assert_eq!(fixes(&findings, &[Scope::Own]), [setting("a"), Fix::Pass]);
        assert_eq!(fixes(&findings, &[Scope::Own, Scope::Flannel]).len(), 3);
        assert_eq!(fixes(&findings, &[]), []);
    }

    #[test]
    fn every_check_has_a_name_of_its_own() {
        let names: std::collections::HashSet<_> = CHECKS.iter().map(|check| check.name()).collect();
        assert_eq!(names.len(), CHECKS.len());
    }
}

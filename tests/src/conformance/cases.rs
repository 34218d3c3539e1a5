//! The table of all cases, in the order in which they run.
//!
//! Each module has the cases of one part of the specification: a table `CASES`, and one function per case. Sentences
//! are those of specification 1.1.0 unless their section names another version.

use super::case::Case;

mod add;
mod again;
mod broken;
mod chain;
mod check;
mod del;
mod environment;
mod gc;
mod host;
mod input;
mod parallel;
mod result;
mod status;
mod version;

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let tables: [&[Case]; 14] = [
        version::CASES,
        environment::CASES,
        input::CASES,
        add::CASES,
        result::CASES,
        again::CASES,
        chain::CASES,
        del::CASES,
        broken::CASES,
        check::CASES,
        gc::CASES,
        status::CASES,
        parallel::CASES,
        // Last: it looks at what everything before has left.
        host::CASES,
    ];
    tables.concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_case_quotes_its_sentence() {
        let cases = all();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len());
        for case in &cases {
            assert!(case.section.starts_with('§'), "{}", case.name);
            assert!(case.sentence.len() > 10, "{}", case.name);
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            assert!(case.name.bytes().all(plain), "{}", case.name);
        }
    }
}

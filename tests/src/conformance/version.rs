//! The versions of the specification that the suite knows how to judge.

use std::fmt;

/// A released version of the CNI specification, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// Several interfaces and addresses in a result; chains.
    V0_3_1,
    /// CHECK; `prevResult` on DEL.
    V0_4_0,
    /// Addresses no longer say their family.
    V1_0_0,
    /// GC and STATUS; MTU in results.
    V1_1_0,
}

impl Version {
    /// Oldest first.
    pub(crate) const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// As it is written in `cniVersion`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of this name, if the suite knows it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether `text` is a version as Semantic Versioning 2.0 writes it, without judging suffixes.
pub(crate) fn is_semantic(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let number = |part: &str| {
        let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        plain && (part == "0" || !part.starts_with('0'))
    };
    core.split('.').count() == 3 && core.split('.').all(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_and_round_trip() {
        assert!(Version::ALL.is_sorted());
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()), Some(version));
        }
        assert_eq!(Version::parse("0.2.0"), None);
    }

    #[test]
    fn semantic_versions_have_three_numbers() {
        for good in ["0.3.1", "1.0.0", "10.20.30", "1.1.0-rc1", "1.0.0+ds1"] {
            assert!(is_semantic(good), "{good}");
        }
        for bad in ["", "1", "1.0", "v1.0.0", "1.0.0.0", "1.01.0", "1..0", "latest"] {
            assert!(!is_semantic(bad), "{bad}");
        }
    }
}

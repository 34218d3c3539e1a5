//! Keeps secrets out of an archive. Two nets, because each has holes: values that are secrets for certain, wherever they
//! turn up (from kubeconfigs, service accounts and the environment), and what looks like one, whatever it is.
//!
//! What is cut out is replaced by [`MARK`]; lines stay lines.

use std::{env, fs, path::Path};

/// In place of a secret.
pub(super) const MARK: &str = "[removed]";

/// Where a pod finds the token of its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Shorter values are no secrets, and cutting them out would make a text unreadable.
const SHORTEST: usize = 6;

/// Names of what has a secret for a value, in lower case.
const NAMES: [&str; 11] = [
    "token",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "credential",
    "authorization",
    "apikey",
    "api_key",
    "private_key",
    "client-key-data",
];

/// Values that are cut out.
#[derive(Debug, Default)]
pub(in crate::cli) struct Secrets {
    /// Longest first, so that a part of one does not hide the rest of it.
    values: Vec<String>,
}

impl Secrets {
    /// Those that can be found from here: in the environment, the service account, and these kubeconfigs.
    pub(in crate::cli) fn gather<'a>(kubeconfigs: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut found = Self::default();
        for (name, value) in env::vars() {
            if is_secret_name(&name) {
                found.learn(&value);
            }
        }
        if let Ok(token) = fs::read_to_string(SERVICE_ACCOUNT) {
            found.learn(&token);
        }
        for path in kubeconfigs {
            if let Ok(text) = fs::read_to_string(path) {
                found.learn_kubeconfig(&text);
            }
        }
        found
    }

    fn learn(&mut self, value: &str) {
        let value = value.trim();
        if value.len() >= SHORTEST && !self.values.iter().any(|known| known == value) {
            self.values.push(value.to_owned());
            self.values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        }
    }

    /// Everything that a kubeconfig says of its users.
    fn learn_kubeconfig(&mut self, text: &str) {
        let Ok(config) = serde_saphyr::from_str::<serde_json::Value>(text) else {
            // Then it is no kubeconfig, and nobody can say what of it is secret.
            text.split_whitespace().filter(|word| word.len() > 16).for_each(|word| self.learn(word));
            return;
        };
        let users = config["users"].as_array().into_iter().flatten();
        for user in users {
            self.learn_leaves(&user["user"]);
        }
    }

    fn learn_leaves(&mut self, value: &serde_json::Value) {
        match value {
            serde_json::Value::String(text) => self.learn(text),
            serde_json::Value::Array(list) => list.iter().for_each(|one| self.learn_leaves(one)),
            serde_json::Value::Object(fields) => fields.values().for_each(|one| self.learn_leaves(one)),
            _ => {}
        }
    }

    /// The text without them.
    pub(super) fn remove(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for value in &self.values {
            text = text.replace(value, MARK);
        }
        let mut clean = String::with_capacity(text.len());
        let mut in_key = false;
        for line in text.split_inclusive('\n') {
            if line.contains("-----BEGIN ") && line.contains("PRIVATE KEY") {
                in_key = true;
                clean.push_str(MARK);
                clean.push('\n');
            }
            if !in_key {
                clean.push_str(&suspicious(line));
            }
            in_key = in_key && !line.contains("-----END ");
        }
        clean
    }
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.iter().any(|secret| name.contains(secret))
}

/// A line without what looks like a secret: values behind names, bearers, web tokens, passwords in addresses.
fn suspicious(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut cut: Vec<(usize, usize)> = Vec::new();
    for name in NAMES.iter().chain(&["bearer "]) {
        for (at, _) in lower.match_indices(name) {
            let rest = &line[at + name.len()..];
            // The rest of the word, then what stands between a name and its value.
            let value = if name.ends_with(' ') {
                0
            } else {
                let word = rest
                    .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-')))
                    .unwrap_or(rest.len());
                let gap = rest[word..]
                    .find(|c: char| !matches!(c, '"' | '\'' | ':' | '=' | ' ' | '\\'))
                    .unwrap_or(0);
                let between = &rest[word..word + gap];
                if !between.contains([':', '=']) {
                    continue;
                }
                word + gap
            };
            let quote = rest[..value].chars().next_back().filter(|c| matches!(c, '"' | '\''));
            let ends = |c: char| match quote {
                Some(quote) => c == quote || matches!(c, '\\' | '\n'),
                None => matches!(c, '"' | '\'' | ',' | '}' | ']' | '\\') || c.is_whitespace(),
            };
            let end = rest[value..].find(ends).map_or(rest.len(), |length| value + length);
            let text = &rest[value..end];
            // `authorization: Bearer x`: the next word is the one.
            if !text.is_empty() && !matches!(text.to_ascii_lowercase().as_str(), "bearer" | "basic" | MARK) {
                cut.push((at + name.len() + value, at + name.len() + end));
            } else if text.eq_ignore_ascii_case("basic") {
                let after = at + name.len() + end;
                cut.push((after, line.trim_end().len().max(after)));
            }
        }
    }
    for (at, _) in line.match_indices("eyJ") {
        let end = line[at..].find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')));
        let end = end.map_or(line.len(), |length| at + length);
        if line[at..end].matches('.').count() >= 2 {
            cut.push((at, end));
        }
    }
    for (at, scheme) in line.match_indices("://") {
        let start = at + scheme.len();
        let end = line[start..].find(|c: char| c == '/' || c == '"' || c.is_whitespace());
        let authority = &line[start..end.map_or(line.len(), |length| start + length)];
        if let Some(user) = authority.rfind('@') {
            cut.push((start, start + user));
        }
    }
    cut.sort_unstable();
    let mut clean = String::with_capacity(line.len());
    let mut from = 0;
    for (start, end) in cut {
        if start >= from {
            clean.push_str(&line[from..start]);
            clean.push_str(MARK);
        }
        from = from.max(end);
    }
    clean.push_str(&line[from.min(line.len())..]);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn cleaned(text: &str, expected: &str) {
        assert_eq!(Secrets::default().remove(text), expected);
    }

    #[test]
    fn what_looks_like_a_secret_is_cut_out() {
        cleaned(
            "{\"password\": \"hunter2\", \"mtu\": 1450}\n",
            "{\"password\": \"[removed]\", \"mtu\": 1450}\n",
        );
        cleaned("token = \"abc def\" # x", "token = \"[removed]\" # x");
        cleaned("MY_SECRET_THING=x1 other=2\n", "MY_SECRET_THING=[removed] other=2\n");
        cleaned("Authorization: Bearer abc.def\n", "Authorization: Bearer [removed]\n");
        cleaned("authorization: Basic dTpw cg\n", "authorization: Basic[removed]\n");
        cleaned("sent eyJhbGciOi.eyJzdWIi.c2ln to", "sent [removed] to");
        cleaned("https://me:mine@192.0.2.1:6443/x", "https://[removed]@192.0.2.1:6443/x");
        cleaned("{\\\"token\\\":\\\"abcdef\\\"}", "{\\\"token\\\":\\\"[removed]\\\"}");
    }

    #[test]
    fn keys_are_cut_out_whole() {
        let text = "a\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----\nb\n";
        cleaned(text, "a\n[removed]\nb\n");
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "the token bucket of the interface\n",
            "{\"mesh\": {\"port\": 8473}, \"drops\": {\"tunnel_key\": {\"packets\": 0}}}\n",
            "udp://192.0.2.1:8472 a@b\n",
            "ip daddr 10.96.0.1 tcp dport 443 counter\n",
            "ümläut: Öl\n",
        ] {
            cleaned(text, text);
        }
    }

    #[test]
    fn known_values_are_cut_out_wherever_they_are() {
        let mut secrets = Secrets::default();
        secrets.learn_kubeconfig(
            "apiVersion: v1\nclusters:\n- name: c\n  cluster: {server: 'https://192.0.2.1:6443'}\nusers:\n- name: u\n  user:\n    \
             token: abcdefgh\n    client-key-data: QUJDREVGRw==\n    exec: {args: [--pass, sesame-open]}\n",
        );
        secrets.learn("short");
        let text = "x=abcdefgh QUJDREVGRw== <sesame-open> short 192.0.2.1\n";
        assert_eq!(secrets.remove(text), "x=[removed] [removed] <[removed]> short 192.0.2.1\n");
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_secret_as_a_whole() {
        let mut secrets = Secrets::default();
        secrets.learn_kubeconfig("{{{ 0123456789abcdef0123 and short");
        assert_eq!(secrets.remove("0123456789abcdef0123 and"), "[removed] and");
    }
}

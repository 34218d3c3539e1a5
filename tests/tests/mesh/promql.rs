//! Which metrics a PromQL expression reads, with the labels that it asks for. Enough of the language for rules and dashboards.

/// A metric in an expression.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) name: String,
    /// Label, operator, value.
    pub(crate) matchers: Vec<(String, String, String)>,
}

/// Words that are followed by labels in parentheses.
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that stand where a metric could, and are none; functions are known by their parenthesis.
const WORDS: [&str; 17] = [
    "and", "or", "unless", "bool", "offset", "inf", "nan", "sum", "avg", "min", "max", "count", "topk",
    "bottomk", "quantile", "stddev", "group",
];

/// The selectors of an expression.
#[track_caller]
pub(crate) fn selectors(expression: &str) -> Vec<Selector> {
    let mut rest = expression;
    let mut found = Vec::new();
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            rest = after_string(rest).1;
        } else if first == '[' {
            rest = &rest[rest.find(']').expect("a range ends")..];
        } else if first.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else if first.is_ascii_alphabetic() || first == '_' || first == ':' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
            let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
            let next = behind.trim_start();
            rest = behind;
            if GROUPING.contains(&word) {
                if next.starts_with('(') {
                    rest = &next[next.find(')').expect("a list of labels ends")..];
                }
            } else if !next.starts_with('(') && !WORDS.contains(&word) {
                let (matchers, behind) = matchers(behind);
                found.push(Selector { name: word.to_owned(), matchers });
                rest = behind;
            }
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    found
}

/// A string at the beginning, and what is behind it.
#[track_caller]
fn after_string(text: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            '"' if !escaped => return (&text[1..at], &text[at + 1..]),
            other => escaped = other == '\\' && !escaped,
        }
    }
    panic!("a string does not end: {text}")
}

#[track_caller]
fn matchers(text: &str) -> (Vec<(String, String, String)>, &str) {
    let mut found = Vec::new();
    let Some(mut rest) = text.trim_start().strip_prefix('{') else { return (found, text) };
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(behind) = rest.strip_prefix('}') {
            return (found, behind);
        }
        let (label, behind) = rest.split_at(rest.find(['=', '!']).expect("a matcher has an operator"));
        let (operator, behind) = behind.split_at(behind.find('"').expect("a matcher has a value"));
        let (value, behind) = after_string(behind);
        found.push((label.trim().to_owned(), operator.trim().to_owned(), value.to_owned()));
        rest = behind;
    }
}

#[test]
fn metrics_and_matchers_are_found_and_nothing_else() {
    let expression = r#"histogram_quantile(0.9, sum by (verb, le) (rate(a_bucket{job=~"$job", x="y, \"z\"}"}[5m])))
        / ignoring (state) (b{} + on (x) group_left (q) c:d) > bool 1e3 or count by (v) (e offset 5m) unless topk(3, f)"#;
    let found = selectors(expression);
    let names: Vec<_> = found.iter().map(|selector| selector.name.as_str()).collect();
    assert_eq!(names, ["a_bucket", "b", "c:d", "e", "f"]);
    let matchers = [("job", "=~", "$job"), ("x", "=", "y, \\\"z\\\"}")];
    assert_eq!(found[0].matchers, matchers.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
}

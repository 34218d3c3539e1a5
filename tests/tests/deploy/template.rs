//! The part of Helm's template language that the chart keeps to, so that the chart can be rendered, and compared with the
//! manifests, on a machine without Helm. What is not part of it is an error, not ignored.
//!
//! `{{ }}` with `-` for white space, comments, `if`, `else`, `with`, `end`; paths from `.`; string literals; pipelines of `quote`,
//! `toYaml`, `toJson`, `nindent`, `not`.

use serde_json::Value;

/// A piece of a template.
#[derive(Debug)]
enum Token {
    Text(String),
    Action(String),
}

/// Renders a template for the object that `.` stands for.
pub(crate) fn render(template: &str, dot: &Value) -> Result<String, String> {
    let tokens = tokens(template)?;
    let mut at = 0;
    let mut output = String::new();
    let end = block(&tokens, &mut at, dot, true, &mut output)?;
    match end {
        None => Ok(output),
        Some(word) => Err(format!("{{{{ {word} }}}} without a beginning")),
    }
}

fn tokens(template: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or_else(|| format!("no end of {{{{{after}"))?;
        let (text, action) = match action.strip_prefix("- ") {
            Some(action) => (text.trim_end(), action),
            None => (text, action),
        };
        let (action, after) = match action.strip_suffix(" -") {
            Some(action) => (action, after.trim_start()),
            None => (action, after),
        };
        tokens.push(Token::Text(text.to_owned()));
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            tokens.push(Token::Action(action.to_owned()));
        }
        rest = after;
    }
    tokens.push(Token::Text(rest.to_owned()));
    Ok(tokens)
}

/// Renders up to an `end` or `else` of its own, which it returns; without writing where not `live`.
fn block(
    tokens: &[Token],
    at: &mut usize,
    dot: &Value,
    live: bool,
    output: &mut String,
) -> Result<Option<String>, String> {
    while let Some(token) = tokens.get(*at) {
        *at += 1;
        let action = match token {
            Token::Text(text) => {
                if live {
                    output.push_str(text);
                }
                continue;
            }
            Token::Action(action) => action.as_str(),
        };
        match action.split_once(' ').map_or((action, ""), |(word, rest)| (word, rest)) {
            ("end" | "else", "") => return Ok(Some(action.to_owned())),
            (word @ ("if" | "with"), condition) => {
                // In a branch that is not taken a path may lead nowhere.
                let value = if live { pipeline(condition, dot)? } else { Value::Null };
                let holds = truth(&value);
                let inner = if word == "with" { &value } else { dot };
                let mut end = block(tokens, at, inner, live && holds, output)?;
                if end.as_deref() == Some("else") {
                    end = block(tokens, at, dot, live && !holds, output)?;
                }
                if end.as_deref() != Some("end") {
                    return Err(format!("no end of {action:?}"));
                }
            }
            _ if live => match pipeline(action, dot)? {
                Value::String(text) => output.push_str(&text),
                Value::Null => return Err(format!("{action:?} gives nothing")),
                Value::Array(_) | Value::Object(_) => return Err(format!("{action:?} is no scalar")),
                value => output.push_str(&value.to_string()),
            },
            _ => {}
        }
    }
    Ok(None)
}

/// What a template takes for true.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn pipeline(text: &str, dot: &Value) -> Result<Value, String> {
    let mut result = None;
    for command in text.split('|') {
        let words: Vec<&str> = command.split_whitespace().collect();
        let (name, arguments) = words.split_first().ok_or_else(|| format!("{text:?} is not complete"))?;
        let mut values = arguments.iter().map(|word| operand(word, dot)).collect::<Result<Vec<_>, _>>()?;
        if name.starts_with(['.', '"']) {
            if !values.is_empty() || result.is_some() {
                return Err(format!("{text:?} calls what is no function"));
            }
            result = Some(operand(name, dot)?);
            continue;
        }
        values.extend(result.take());
        result = Some(call(name, &values)?);
    }
    result.ok_or_else(|| "an empty action".to_owned())
}

fn call(name: &str, values: &[Value]) -> Result<Value, String> {
    let text = match (name, values) {
        ("not", [value]) => return Ok(Value::Bool(!truth(value))),
        ("quote", [Value::String(text)]) => format!("{text:?}"),
        ("quote", [value]) => format!("{:?}", value.to_string()),
        ("toJson", [value]) => value.to_string(),
        ("toYaml", [value]) => {
            let yaml = serde_saphyr::to_string(value).map_err(|error| error.to_string())?;
            yaml.trim_end().to_owned()
        }
        ("nindent", [Value::Number(width), Value::String(text)]) => {
            let pad = " ".repeat(width.as_u64().and_then(|width| usize::try_from(width).ok()).unwrap_or(0));
            text.lines().flat_map(|line| ["\n", pad.as_str(), line]).collect()
        }
        _ => return Err(format!("{name} of {values:?} is not known here")),
    };
    Ok(Value::String(text))
}

/// A literal, or what a path leads to.
fn operand(word: &str, dot: &Value) -> Result<Value, String> {
    if let Ok(literal) = serde_json::from_str::<Value>(word) {
        return Ok(literal);
    }
    let path = word.strip_prefix('.').ok_or_else(|| format!("{word:?} is not known here"))?;
    let mut value = dot;
    for key in path.split('.').filter(|key| !key.is_empty()) {
        value = value.get(key).ok_or_else(|| format!("{word}: there is no {key}"))?;
    }
    Ok(value.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::render;

    fn rendered(template: &str) -> String {
        let dot = json!({
            "Values": { "on": true, "off": false, "list": ["a"], "empty": [], "text": "x", "zero": 0, "map": { "k": "v" } },
        });
        render(template, &dot).unwrap()
    }

    #[test]
    fn values_functions_and_white_space_are_those_of_helm() {
        assert_eq!(rendered("a: {{ .Values.text }}\n"), "a: x\n");
        assert_eq!(rendered("a: {{ .Values.text | quote }}"), "a: \"x\"");
        assert_eq!(rendered("a\n  {{- /* b */}}\nc"), "a\nc");
        assert_eq!(rendered("a:\n  {{- toYaml .Values.map | nindent 2 }}\n"), "a:\n  k: v\n");
        assert_eq!(rendered("{{ .Values.list | toJson }} {{ not .Values.off }}"), "[\"a\"] true");
    }

    #[test]
    fn only_the_branch_that_holds_is_rendered() {
        assert_eq!(rendered("{{ if .Values.on }}a{{ else }}b{{ end }}"), "a");
        assert_eq!(rendered("{{ if .Values.zero }}a{{ else }}b{{ end }}"), "b");
        assert_eq!(rendered("{{ if .Values.off }}{{ if .Values.none }}a{{ end }}{{ end }}c"), "c");
        assert_eq!(
            rendered("{{ with .Values.map }}{{ .k }}{{ end }}{{ with .Values.empty }}a{{ end }}"),
            "v"
        );
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for template in [
            "{{ .Values.none }}",
            "{{ include \"a\" . }}",
            "{{ end }}",
            "{{ if .Values.on }}",
            "{{ .Values.map }}",
            "{{ a",
        ] {
            let dot = json!({ "Values": { "on": true, "map": { "k": "v" } } });
            assert!(render(template, &dot).is_err(), "{template}");
        }
    }
}

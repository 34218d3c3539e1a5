//! Objects against an OpenAPI 2 description, as Kubernetes releases have it: every field known, of its type, none missing that
//! is required.

use serde_json::Value;

/// What is wrong with an object; empty if nothing.
pub(crate) fn check(description: &Value, object: &Value) -> Vec<String> {
    let (group, version) = match object["apiVersion"].as_str().unwrap_or_default().split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", object["apiVersion"].as_str().unwrap_or_default()),
    };
    let kind = object["kind"].as_str().unwrap_or_default();
    let is_meant = |definition: &&Value| {
        let kinds = definition["x-kubernetes-group-version-kind"].as_array();
        kinds.is_some_and(|kinds| {
            kinds.len() == 1
                && kinds[0]["group"] == group
                && kinds[0]["version"] == version
                && kinds[0]["kind"] == kind
        })
    };
    let definitions = description["definitions"].as_object().expect("no definitions in the description");
    let Some(definition) = definitions.values().find(is_meant) else {
        return vec![format!("{group}/{version} {kind} is not described")];
    };
    let mut wrong = Vec::new();
    compare(description, definition, object, kind, &mut wrong);
    wrong
}

fn compare(description: &Value, schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = description.pointer(reference.trim_start_matches('#'));
        let schema = schema.unwrap_or_else(|| panic!("{reference} leads nowhere"));
        return compare(description, schema, value, at, wrong);
    }
    let fits = match schema["type"].as_str() {
        Some("string") if schema["format"] == "int-or-string" => value.is_string() || value.is_i64(),
        // The type of a quantity is a string, for which a number does as well.
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        _ => value.is_object(),
    };
    if !fits {
        wrong.push(format!("{at} is {value}, not {}", schema["type"]));
    }
    for (number, item) in value.as_array().into_iter().flatten().enumerate() {
        compare(description, &schema["items"], item, &format!("{at}[{number}]"), wrong);
    }
    for (key, item) in value.as_object().into_iter().flatten() {
        let inner = match (&schema["properties"][key], &schema["additionalProperties"]) {
            (Value::Null, Value::Null) => {
                wrong.push(format!("{at}.{key} is not known"));
                continue;
            }
            (Value::Null, any) => any,
            (property, _) => property,
        };
        compare(description, inner, item, &format!("{at}.{key}"), wrong);
    }
    for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value[key].is_null() {
            wrong.push(format!("{at}.{key} is missing"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::check;

    #[test]
    fn unknown_missing_and_mistyped_fields_are_found() {
        let description = json!({ "definitions": {
            "Thing": {
                "type": "object", "required": ["size"],
                "properties": {
                    "apiVersion": { "type": "string" }, "kind": { "type": "string" },
                    "size": { "$ref": "#/definitions/Size" },
                    "labels": { "type": "object", "additionalProperties": { "type": "string" } },
                },
                "x-kubernetes-group-version-kind": [{ "group": "", "version": "v1", "kind": "Thing" }],
            },
            "Size": { "type": "integer" },
        } });
        let thing = |more: &[(&str, serde_json::Value)]| {
            let mut thing = json!({ "apiVersion": "v1", "kind": "Thing" });
            for (key, value) in more {
                thing[*key] = value.clone();
            }
            check(&description, &thing)
        };
        assert!(thing(&[("size", json!(1)), ("labels", json!({ "a": "b" }))]).is_empty());
        assert_eq!(thing(&[]), ["Thing.size is missing"]);
        assert_eq!(thing(&[("size", json!("1"))]), ["Thing.size is \"1\", not \"integer\""]);
        assert_eq!(thing(&[("size", json!(1)), ("sise", json!(1))]), ["Thing.sise is not known"]);
        assert_eq!(thing(&[("size", json!(1)), ("labels", json!({ "a": 1 }))]).len(), 1);
    }
}

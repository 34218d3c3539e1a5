//! The network configuration, and the request configurations that a runtime derives from it (specification, §1 and
//! §3 "Deriving request configuration from plugin configuration").

use serde_json::{Map, Value, json};

/// A network configuration: a list of plugins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network {
    /// Network name.
    pub(crate) name: String,
    /// `disableCheck`: a runtime never calls CHECK.
    pub(crate) disable_check: bool,
    /// `disableGC`: a runtime never calls GC.
    pub(crate) disable_gc: bool,
    /// The plugins, in the order of ADD; at least one.
    pub(crate) plugins: Vec<PluginConf>,
}

/// One plugin of the list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PluginConf {
    /// `type`: the name of the binary.
    pub(crate) kind: String,
    fields: Map<String, Value>,
}

/// What a runtime adds to a plugin's configuration for one call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extra<'a> {
    /// `prevResult`.
    pub(crate) previous: Option<&'a Value>,
    /// Capability arguments by name; those that the plugin does not declare are left out.
    pub(crate) capabilities: Option<&'a Map<String, Value>>,
}

/// Why a file is no network configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("not a JSON object")]
    NotAnObject,
    #[error("no `name`")]
    NoName,
    #[error("`plugins` is not a list of objects with at least one element")]
    NoPlugins,
    #[error("plugin {0} of the list has no `type`, or one that is no file name")]
    NoType(usize),
}

impl Network {
    /// Reads a list (`.conflist`) or the configuration of a single plugin (`.conf`).
    pub(crate) fn parse(text: &str) -> Result<Self, NetworkError> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| NetworkError::Json(error.to_string()))?;
        let Value::Object(fields) = value else { return Err(NetworkError::NotAnObject) };
        let name = fields.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.ok_or(NetworkError::NoName)?.to_owned();
        let flag = |key: &str| fields.get(key).and_then(Value::as_bool).unwrap_or_default();
        let (disable_check, disable_gc) = (flag("disableCheck"), flag("disableGC"));
        let inlined = match fields.get("plugins") {
            None => vec![Value::Object(fields)],
            Some(Value::Array(plugins)) if !plugins.is_empty() => plugins.clone(),
            Some(_) => return Err(NetworkError::NoPlugins),
        };
        let plugins = inlined.into_iter().enumerate().map(|(index, plugin)| {
            let Value::Object(fields) = plugin else { return Err(NetworkError::NoPlugins) };
            let kind = fields.get("type").and_then(Value::as_str);
            let kind = kind.filter(|kind| !kind.is_empty() && !kind.contains('/'));
            let kind = kind.ok_or(NetworkError::NoType(index))?.to_owned();
            Ok(PluginConf { kind, fields })
        });
        Ok(Self { name, disable_check, disable_gc, plugins: plugins.collect::<Result<_, _>>()? })
    }

    /// The request configuration for plugin `index`, in the protocol version `version`.
    pub(crate) fn request(&self, plugin: &PluginConf, version: &str, extra: Extra<'_>) -> Value {
        let mut fields = plugin.fields.clone();
        let declared = fields.remove("capabilities");
        fields.insert("cniVersion".to_owned(), json!(version));
        fields.insert("name".to_owned(), json!(self.name));
        let wanted = |name: &str| declared.as_ref().is_some_and(|all| all[name] == Value::Bool(true));
        let given = extra.capabilities.into_iter().flatten().filter(|(name, _)| wanted(name));
        let given: Map<_, _> = given.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !given.is_empty() {
            fields.insert("runtimeConfig".to_owned(), Value::Object(given));
        }
        if let Some(previous) = extra.previous {
            fields.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_order_and_flags() {
        let text =
            r#"{"cniVersion":"1.0.0","name":"n","disableGC":true,"plugins":[{"type":"a"},{"type":"b"}]}"#;
        let network = Network::parse(text).unwrap();
        let kinds: Vec<&str> = network.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
        assert_eq!(kinds, ["a", "b"]);
        assert!(network.disable_gc && !network.disable_check);
    }

    #[test]
    fn a_single_configuration_is_a_list_of_one() {
        let network = Network::parse(r#"{"cniVersion":"1.0.0","name":"n","type":"a","key":1}"#).unwrap();
        assert_eq!(network.plugins.len(), 1);
        let request = network.request(&network.plugins[0], "0.4.0", Extra::default());
        assert_eq!(request, json!({"cniVersion":"0.4.0","name":"n","type":"a","key":1}));
    }

    #[test]
    fn a_request_has_what_the_runtime_adds_and_not_the_capabilities() {
        let text = r#"{"name":"n","plugins":[{"type":"a","capabilities":{"mac":true,"ips":false},"x":{}}]}"#;
        let network = Network::parse(text).unwrap();
        let Value::Object(capabilities) = json!({"mac":"m","ips":[],"bandwidth":{}}) else { unreachable!() };
        let previous = json!({"ips":[]});
        let extra = Extra { previous: Some(&previous), capabilities: Some(&capabilities) };
        let expected = json!({
            "cniVersion": "1.1.0", "name": "n", "type": "a", "x": {},
            "runtimeConfig": {"mac": "m"}, "prevResult": {"ips": []},
        });
        assert_eq!(network.request(&network.plugins[0], "1.1.0", extra), expected);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let cases = [
            ("[]", NetworkError::NotAnObject),
            (r#"{"type":"a"}"#, NetworkError::NoName),
            (r#"{"name":"","type":"a"}"#, NetworkError::NoName),
            (r#"{"name":"n","plugins":[]}"#, NetworkError::NoPlugins),
            (r#"{"name":"n","plugins":[1]}"#, NetworkError::NoPlugins),
            (r#"{"name":"n","plugins":[{"type":"a"},{}]}"#, NetworkError::NoType(1)),
            (r#"{"name":"n","type":"../a"}"#, NetworkError::NoType(0)),
        ];
        for (text, error) in cases {
            assert_eq!(Network::parse(text), Err(error), "{text}");
        }
        assert!(matches!(Network::parse("{"), Err(NetworkError::Json(_))));
    }
}

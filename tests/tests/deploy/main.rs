//! What is in deploy/: the manifests are what the chart gives, its values are what its schema says, and every object has the
//! shape that Kubernetes gives it. Needs neither root nor a cluster.
//!
//! With `OVERLAY_WRITE_MANIFESTS=1` the manifests are written instead of compared. With `OVERLAY_OPENAPI=FILE` objects are also held against
//! that OpenAPI description (`api/openapi-spec/swagger.json` of a Kubernetes release, or `kubectl get --raw /openapi/v2`).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests panic, to keep the line number"
)]

mod openapi;
mod template;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Namespace, Service, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use overlay_userspace::config::{Outer, Overrides, Settings, Source};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

const HEADER: &str = "# overlay, the pod network. Made from deploy/chart/overlay";

/// In the order in which Helm installs their kinds.
const TEMPLATES: [&str; 4] = ["rbac.yaml", "configmap.yaml", "daemonset.yaml", "metrics.yaml"];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn read(path: &str) -> String {
    let path = deploy().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The documents of a YAML stream.
fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(yaml).filter(|document| !document.is_null()).collect()
}

fn values() -> Value {
    yaml(&read("chart/overlay/values.yaml"))
}

fn render(template: &str, values: &Value) -> String {
    let dot = json!({
        "Values": values,
        "Chart": { "AppVersion": yaml(&read("chart/overlay/Chart.yaml"))["appVersion"] },
        "Release": { "Namespace": "kube-overlay", "Name": "overlay" },
    });
    let path = format!("chart/overlay/templates/{template}");
    template::render(&read(&path), &dot).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All objects, with the namespace.
fn manifest(values: &Value, header: &str) -> String {
    let mut text = format!("{header}\n{}", read("namespace.yaml"));
    for template in TEMPLATES {
        let objects = render(template, values);
        // A template that is switched off.
        if !objects.trim().is_empty() {
            text.push_str("---\n");
            text.push_str(objects.trim_start_matches('\n'));
        }
    }
    text
}

/// The manifests in deploy/, and what they have to be.
fn manifests() -> [(&'static str, String); 2] {
    let mut capabilities = values();
    capabilities["overlay"]["privileged"] = false.into();
    [
        ("overlay.yaml", manifest(&values(), &format!("{HEADER}."))),
        (
            "overlay-capabilities.yaml",
            manifest(&capabilities, &format!("{HEADER} with overlay.privileged=false.")),
        ),
    ]
}

#[test]
fn the_manifests_are_what_the_chart_gives() {
    for (name, wanted) in manifests() {
        if env::var_os("OVERLAY_WRITE_MANIFESTS").is_some() {
            fs::write(deploy().join(name), &wanted).unwrap();
        }
        assert!(
            read(name) == wanted,
            "deploy/{name} is not what the chart gives: run this test with OVERLAY_WRITE_MANIFESTS=1"
        );
    }
}

/// The object survives a round through the type that Kubernetes has for it: nothing in it is unknown or of another type.
fn round<T: DeserializeOwned + Serialize>(object: &Value) {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    assert_eq!(serde_json::to_value(&typed).unwrap(), *object, "a field is not known");
}

/// Checks one object against its type.
fn check(object: &Value) {
    match (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()) {
        ("v1", "Namespace") => round::<Namespace>(object),
        ("v1", "Service") => round::<Service>(object),
        // The operator's own type, which is in no crate that is used here.
        ("monitoring.coreos.com/v1", "ServiceMonitor") => service_monitor(object),
        ("v1", "ServiceAccount") => round::<ServiceAccount>(object),
        ("v1", "ConfigMap") => round::<ConfigMap>(object),
        ("apps/v1", "DaemonSet") => round::<DaemonSet>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => round::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => round::<ClusterRoleBinding>(object),
        other => panic!("{other:?} is not one of the stable kinds that are checked here"),
    }
}

/// The fields that the chart uses, as the operator's documentation has them.
fn service_monitor(object: &Value) {
    let spec = &object["spec"];
    let endpoint = &spec["endpoints"][0];
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(spec), ["endpoints", "jobLabel", "selector"]);
    assert_eq!(keys(&spec["selector"]), ["matchLabels"]);
    assert_eq!(
        (keys(endpoint), &endpoint["port"]),
        (vec!["path".to_owned(), "port".to_owned()], &json!("metrics"))
    );
}

/// Values that reach every branch of the templates.
fn everything() -> Value {
    let mut values = values();
    values["overlay"]["metrics"] = json!({ "enabled": true, "annotations": true, "serviceMonitor": true });
    values["global"]["imagePullSecrets"] = json!([{ "name": "secret" }]);
    values["podCidrv6"] = json!("fd00:10:244::/56");
    let overlay = &mut values["overlay"];
    for (key, value) in [
        ("mtu", json!(1400)),
        ("iface", json!("eth1")),
        ("noMasquerade", json!(["192.168.0.0/16", "fd00:99::/48"])),
        ("ipv6First", json!(true)),
        ("underlay", json!("ipv6")),
        ("networkAvailable", json!(true)),
        ("apiServer", json!("https://192.0.2.1:6443")),
        ("podAnnotations", json!({ "a": "b" })),
        ("podLabels", json!({ "c": "d" })),
        ("skipCNIConfigInstallation", json!(true)),
        ("privileged", json!(false)),
    ] {
        assert!(overlay.get(key).is_some(), "values.yaml does not name {key}");
        overlay[key] = value;
    }
    values
}

#[test]
fn every_object_has_the_shape_of_its_type_and_a_stable_version() {
    for text in manifests().map(|(_, text)| text).into_iter().chain([manifest(&everything(), HEADER)]) {
        let objects = documents(&text);
        assert!(objects.len() >= 6, "{} objects", objects.len());
        objects.iter().for_each(check);
    }
}

#[test]
fn metrics_are_offered_where_prometheus_reaches_them_and_only_when_asked_for() {
    let set = |values: &Value| yaml(&render("daemonset.yaml", values))["spec"]["template"].clone();
    let health = |set: &Value| {
        let variables = set["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        variables.iter().find(|variable| variable["name"] == "OVERLAY_HEALTH").cloned()
    };
    let probe = |set: &Value| set["spec"]["containers"][0]["livenessProbe"]["httpGet"]["host"].clone();
    let off = set(&values());
    assert_eq!((health(&off), probe(&off)), (None, json!("127.0.0.1")));
    assert_eq!(off["metadata"].get("annotations"), None);
    assert!(render("metrics.yaml", &values()).trim().is_empty());

    let on = set(&everything());
    assert_eq!(health(&on).unwrap()["value"], "$(HOST_IP):9879");
    assert_eq!(probe(&on), Value::Null);
    let annotations = json!({ "prometheus.io/scrape": "true", "prometheus.io/port": "9879", "a": "b" });
    assert_eq!(on["metadata"]["annotations"], annotations);
    let objects = documents(&render("metrics.yaml", &everything()));
    let [service, monitor] = &objects[..] else { panic!("{} objects", objects.len()) };
    assert_eq!(
        service["spec"]["selector"],
        on["metadata"]["labels"]
            .as_object()
            .map(|labels| { json!({ "app.kubernetes.io/name": labels["app.kubernetes.io/name"] }) })
            .unwrap()
    );
    assert_eq!(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"]);
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], service["spec"]["ports"][0]["name"]);
}

#[test]
fn a_field_that_is_not_known_is_found() {
    let mut objects = documents(&manifests()[0].1);
    let set = objects.iter_mut().find(|object| object["kind"] == "DaemonSet").unwrap();
    set["spec"]["template"]["spec"]["hostNetworks"] = true.into();
    let set = set.clone();
    assert!(std::panic::catch_unwind(|| check(&set)).is_err());
}

#[test]
#[ignore = "needs OVERLAY_OPENAPI, the OpenAPI description of a Kubernetes release"]
fn every_object_agrees_with_the_openapi_description() {
    let path = env::var_os("OVERLAY_OPENAPI").expect("OVERLAY_OPENAPI is not set");
    let description: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    for text in manifests().map(|(_, text)| text).into_iter().chain([manifest(&everything(), HEADER)]) {
        for object in documents(&text) {
            let wrong = openapi::check(&description, &object);
            assert!(wrong.is_empty(), "{}: {wrong:?}", object["kind"]);
        }
    }
}

#[test]
fn the_configuration_is_one_that_the_agent_takes() {
    for values in [values(), everything()] {
        let map = yaml(&render("configmap.yaml", &values));
        let text = map["data"]["overlay.toml"].as_str().unwrap();
        let overrides = Overrides { node: Some("n1".to_owned()), ..Overrides::default() };
        let settings = Settings::parse(text, Path::new("overlay.toml"), &overrides).unwrap();
        assert!(matches!(settings.source, Source::Kubernetes(_)), "{text}");
        assert_eq!(
            settings.health.unwrap().port().to_string(),
            values["overlay"]["healthz"]["port"].to_string()
        );
        assert_eq!(Value::Bool(!settings.cni.install), values["overlay"]["skipCNIConfigInstallation"]);
    }
}

#[test]
fn the_ranges_are_those_of_the_families_that_are_given_in_their_order() {
    let (v4, v6) = ("10.244.0.0/16", "fd00:10:244::/56");
    for (pod_cidr, pod_cidr_v6, ipv6_first, expected) in [
        (v4, "", false, v4.to_owned()),
        ("", v6, false, v6.to_owned()),
        (v4, v6, false, format!("{v4}, {v6}")),
        (v4, v6, true, format!("{v6}, {v4}")),
    ] {
        let mut values = values();
        values["podCidr"] = pod_cidr.into();
        values["podCidrv6"] = pod_cidr_v6.into();
        values["overlay"]["ipv6First"] = ipv6_first.into();
        let map = yaml(&render("configmap.yaml", &values));
        let overrides = Overrides { node: Some("n1".to_owned()), ..Overrides::default() };
        let text = map["data"]["overlay.toml"].as_str().unwrap();
        let settings = Settings::parse(text, Path::new("overlay.toml"), &overrides).unwrap();
        assert_eq!(settings.network.cidrs.to_string(), expected);
        assert_eq!(settings.network.underlay, Outer::Auto);
        assert!(render("NOTES.txt", &values).contains(pod_cidr_v6));
    }
    let mut values = values();
    values["overlay"]["underlay"] = "ipv6".into();
    assert!(render("configmap.yaml", &values).contains("\n    underlay = \"ipv6\"\n"));
}

/// Keys that the templates use without a default in values.yaml fail to render; here the other way round.
#[test]
fn every_value_is_described_and_every_description_has_a_value() {
    let schema: Value = serde_json::from_str(&read("chart/overlay/values.schema.json")).unwrap();
    compare(&schema, &values(), "");
}

fn compare(schema: &Value, value: &Value, at: &str) {
    let (Some(properties), Some(fields)) = (schema["properties"].as_object(), value.as_object()) else {
        return;
    };
    for key in fields.keys() {
        let inner = properties.get(key).unwrap_or_else(|| panic!("the schema does not describe {at}.{key}"));
        compare(inner, &fields[key], &format!("{at}.{key}"));
    }
    for key in properties.keys() {
        // A chart that asks for no limits has none by default.
        assert!(fields.contains_key(key) || key == "limits", "values.yaml has no {at}.{key}");
    }
}

#[test]
fn the_image_is_the_one_that_xtask_makes() {
    let values = values();
    let image = &values["overlay"]["image"];
    let chart = yaml(&read("chart/overlay/Chart.yaml"));
    assert_eq!(image["repository"], "localhost/overlay");
    for version in [&image["tag"], &chart["version"], &chart["appVersion"]] {
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
    }
}

#[test]
fn the_notes_render_whatever_the_values() {
    for values in [values(), everything()] {
        let notes = render("NOTES.txt", &values);
        assert!(notes.contains("rollout status daemonset/overlay"), "{notes}");
    }
    assert!(render("NOTES.txt", &everything()).contains("overlay cni install"));
}

#[test]
fn the_agent_can_write_nothing_but_events() {
    let writes =
        ["create", "update", "patch", "delete", "deletecollection", "escalate", "bind", "impersonate", "*"];
    for (name, text) in manifests() {
        for object in documents(&text).iter().filter(|object| object["kind"] == "ClusterRole") {
            for rule in object["rules"].as_array().unwrap() {
                let verbs = rule["verbs"].as_array().unwrap();
                let writing = verbs.iter().any(|verb| writes.contains(&verb.as_str().unwrap()));
                assert!(!writing || rule["resources"] == json!(["events"]), "{name}: {rule}");
            }
        }
    }
}

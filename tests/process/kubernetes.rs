//! Tests of the Kubernetes manifests: validates them, runs the pod's command, and changes its configuration as the kubelet
//! does.

use crate::support::*;
use crate::tools::{program, python, texts, yaml};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn manifests() -> Vec<PathBuf> {
    let all = fs::read_dir(repository().join("deploy/kubernetes")).unwrap().map(|file| file.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    all.retain(|path| !path.ends_with("kustomization.yaml"));
    all.sort();
    all
}

#[test]
fn kubernetes_manifests_are_valid_and_consistent() {
    let Some(python) = python("kubernetes_validate, cloudcoil.models.prometheus_operator") else { return };
    let check = |files: &[PathBuf]| {
        let output =
            Command::new(&python).arg(repository().join("tests/tools/kubernetes.py")).args(files).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (valid, report) = check(&manifests());
    assert!(valid, "{report}");
    // The validation is strict: it rejects an unknown key in both kinds of schema.
    for (file, from, to) in [("deployment.yaml", "replicas:", "replica:"), ("servicemonitor.yaml", "path:", "paths:")] {
        let directory = TempDir::new().unwrap();
        let text = fs::read_to_string(repository().join("deploy/kubernetes").join(file)).unwrap();
        let wrong = directory.path().join(file);
        fs::write(&wrong, text.replacen(from, to, 1)).unwrap();
        assert!(!check(&[wrong]).0, "{file}: {to} is accepted");
    }
    let document = |name: &str| yaml(&format!("deploy/kubernetes/{name}.yaml")).unwrap().remove(0);
    let listed = texts(&document("kustomization")["resources"]);
    let names: Vec<String> =
        manifests().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(listed, names);
    let (deployment, service) = (document("deployment"), document("service"));
    let pod = &deployment["spec"]["template"];
    let selects = |selector: &Value, labels: &Value| {
        selector
            .as_object()
            .is_some_and(|all| !all.is_empty() && all.iter().all(|(name, value)| labels[name] == *value))
    };
    let labels = &pod["metadata"]["labels"];
    for (selector, of) in [
        (&deployment["spec"]["selector"]["matchLabels"], labels),
        (&service["spec"]["selector"], labels),
        (&document("poddisruptionbudget")["spec"]["selector"]["matchLabels"], labels),
        (&document("networkpolicy")["spec"]["podSelector"]["matchLabels"], labels),
        (&document("servicemonitor")["spec"]["selector"]["matchLabels"], &service["metadata"]["labels"]),
    ] {
        assert!(selects(selector, of), "{selector} does not select {of}");
    }
    assert_eq!(service["metadata"]["name"], "weir", "the alerts use this name as the job");
    let container = &pod["spec"]["containers"][0];
    let ports: Vec<&str> =
        container["ports"].as_array().unwrap().iter().filter_map(|port| port["name"].as_str()).collect();
    let mut wanted: Vec<&Value> =
        service["spec"]["ports"].as_array().unwrap().iter().map(|port| &port["targetPort"]).collect();
    wanted
        .extend(["startupProbe", "livenessProbe", "readinessProbe"].map(|probe| &container[probe]["httpGet"]["port"]));
    for port in wanted {
        assert!(ports.contains(&port.as_str().unwrap()), "the container has no port {port}");
    }
    // Pod Security Standards, restricted.
    assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["spec"]["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(texts(&container["securityContext"]["capabilities"]["drop"]), ["ALL"]);
}

#[test]
fn configmap_yaml_equals_the_shipped_configuration() {
    let script = repository().join("deploy/kubernetes/configmap.sh");
    let output = Command::new("sh").arg(script).arg(repository().join("config")).output().unwrap();
    let generated = String::from_utf8(output.stdout).unwrap();
    let committed = fs::read_to_string(repository().join("deploy/kubernetes/configmap.yaml")).unwrap();
    assert!(
        output.status.success() && generated == committed,
        "run deploy/kubernetes/configmap.sh config > deploy/kubernetes/configmap.yaml"
    );
    let Some(document) = yaml("deploy/kubernetes/configmap.yaml").map(|mut documents| documents.remove(0)) else {
        return;
    };
    for (key, text) in document["data"].as_object().unwrap() {
        let file = key.replacen("providers.", "providers/", 1);
        assert_eq!(
            text.as_str().unwrap(),
            fs::read_to_string(repository().join("config").join(&file)).unwrap(),
            "{file}"
        );
    }
}

/// Writes a projected volume as the kubelet does: each version in a new directory, then an atomic swap of `..data`.
fn write_projected_volume(volume: &Path, version: &str, files: &[(String, String)]) {
    let directory = volume.join(version);
    for (path, text) in files {
        let file = directory.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    symlink(version, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    for (path, _) in files {
        let first = path.split('/').next().unwrap();
        if volume.join(first).symlink_metadata().is_err() {
            symlink(format!("..data/{first}"), volume.join(first)).unwrap();
        }
    }
}

#[test]
fn the_pod_starts_and_reloads_a_changed_config_map() {
    let Some(deployment) = yaml("deploy/kubernetes/deployment.yaml").map(|mut documents| documents.remove(0)) else {
        return;
    };
    let maps: Vec<Value> = ["configmap", "clients"]
        .iter()
        .map(|name| yaml(&format!("deploy/kubernetes/{name}.yaml")).unwrap().remove(0))
        .collect();
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let mut files = Vec::new();
    for source in pod["volumes"][0]["projected"]["sources"].as_array().unwrap() {
        let map = maps
            .iter()
            .find(|map| map["metadata"]["name"] == source["configMap"]["name"])
            .expect("the config map exists");
        for item in source["configMap"]["items"].as_array().unwrap() {
            let text = map["data"][item["key"].as_str().unwrap()].as_str().expect("the config map has the key");
            files.push((item["path"].as_str().unwrap().to_owned(), text.to_owned()));
        }
    }
    let volume = TempDir::new().unwrap();
    write_projected_volume(volume.path(), "..2026_01_01", &files);
    let sim = Sim::start();
    let mut command = program("weir");
    command.args(texts(&container["args"]));
    for line in sim.process.stdout.lock().unwrap().iter() {
        let pair = line.strip_prefix("env ").and_then(|pair| pair.split_once('='));
        command.envs(pair.filter(|(name, _)| name.ends_with("_URL")));
    }
    let keys = [
        ("vectara-api-key", "zut_sim"),
        ("palantir-token", "sim-token"),
        ("agenthuman-api-key", "ah_test_sim"),
        ("admin-token", "a-token"),
        ("page-token-key", "a-key"),
    ];
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        let secret = &variable["valueFrom"]["secretKeyRef"]["key"];
        let value = match (variable["value"].as_str(), keys.iter().find(|(key, _)| secret == key)) {
            // Not loopback, as in the pod, so that the admin listener requires the token.
            (Some(value), _) if value.starts_with("0.0.0.0:") => "0.0.0.0:0".to_owned(),
            (Some("/etc/weir"), _) => volume.path().display().to_string(),
            (None, Some((_, value))) => (*value).to_owned(),
            other => panic!("{name}: {other:?}"),
        };
        command.env(name, value);
    }
    let mut weir = Process::start(&mut command);
    let line = wait_for_line(&weir.stderr, "listening http=").replace("0.0.0.0", "127.0.0.1");
    let (http, admin) = line.split_once(" admin=").unwrap();
    let (http, admin) = (http.parse().unwrap(), admin.parse().unwrap());
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        assert_eq!(send(admin, "GET", path, &[]).status, 200, "{path}");
    }
    let monitor = yaml("deploy/kubernetes/servicemonitor.yaml").unwrap().remove(0);
    assert_eq!(send(admin, "GET", monitor["spec"]["endpoints"][0]["path"].as_str().unwrap(), &[]).status, 200);
    assert_eq!(send(admin, "GET", "/config", &[]).status, 401, "/config requires the token");

    let status_with_new_key = || send(http, "GET", VECTARA, &[("X-API-Key", "a-new-key")]).status;
    assert_eq!(status_with_new_key(), 401);
    let digest = expand_digests("SHA(a-new-key)");
    for (path, text) in &mut files {
        if path == "clients.yaml" {
            *text = text.replace(&"0".repeat(64), &digest);
        }
    }
    write_projected_volume(volume.path(), "..2026_01_02", &files);
    wait_until("the new key is accepted", || status_with_new_key() == 200);
    fs::remove_dir_all(volume.path().join("..2026_01_01")).unwrap();
    assert_eq!(status_with_new_key(), 200);

    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    let wait: u64 = texts(&container["lifecycle"]["preStop"]["exec"]["command"])[1].parse().unwrap();
    assert!(grace > wait + 10, "the pod must live longer than preStop and the default shutdown.grace of 10 s");
    weir.signal("TERM");
    assert!(weir.wait().success());
}

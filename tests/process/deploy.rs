//! What is deployed: each container's command line is run here outside of one, manifests and units are put before
//! what will read them, and a mounted configuration changes the way Kubernetes changes it.

use crate::monitoring::Prometheus;
use crate::support::*;
use crate::tools::{has, python};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A YAML file's documents as JSON; nothing where there is nothing to read it with.
fn yaml(path: &str) -> Option<Vec<Value>> {
    const READ: &str =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout, default=str)";
    let output = Command::new(python("yaml")?).args(["-c", READ]).arg(repository().join(path)).output().unwrap();
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn texts(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    value.as_array().unwrap_or_else(|| panic!("a list: {value}")).iter().map(text).collect()
}

fn dockerfile() -> String {
    fs::read_to_string(repository().join("Dockerfile")).unwrap()
}

/// The instructions of a stage of the Dockerfile, lines that go on joined.
fn stage(name: &str) -> Vec<(String, String)> {
    let joined = dockerfile().replace("\\\n", " ");
    let lines = joined.lines().filter(|line| !line.starts_with('#'));
    let instructions =
        lines.filter_map(|line| line.split_once(' ')).map(|(what, rest)| (what.to_owned(), rest.trim().to_owned()));
    let stage = instructions.skip_while(|(what, rest)| !(what == "FROM" && rest.ends_with(&format!(" AS {name}"))));
    let mut stage = stage.enumerate().take_while(|(at, (what, _))| *at == 0 || what != "FROM").map(|(_, line)| line);
    let first = stage.next().unwrap_or_else(|| panic!("no stage {name}"));
    std::iter::once(first).chain(stage).collect()
}

fn instruction(stage: &[(String, String)], name: &str) -> Option<String> {
    stage.iter().rev().find(|(what, _)| what == name).map(|(_, rest)| rest.clone())
}

/// A service's whole command line: the image's entry point and what compose says.
fn argv(compose: &Value, service: &str) -> Vec<String> {
    let service = &compose["services"][service];
    let entry = match service["build"]["target"].as_str() {
        Some(target) => {
            let entry = instruction(&stage(target), "ENTRYPOINT").expect("an entry point");
            texts(&serde_json::from_str(&entry).unwrap())
        }
        None => Vec::new(),
    };
    entry.into_iter().chain(texts(&service["command"])).collect()
}

/// The program that the tests built, in place of the one in the image.
fn program(name: &str) -> Command {
    Command::new(match name {
        "weir" => env!("CARGO_BIN_EXE_weir"),
        "weir-sim" => env!("CARGO_BIN_EXE_weir-sim"),
        other => panic!("{other}: in no image of ours"),
    })
}

#[test]
fn compose_accepts_the_file() {
    if !has("docker-compose") {
        return;
    }
    let mut command = Command::new("docker-compose");
    let output = command.args(["config", "--quiet"]).current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Simulators, gateway, health check, load and Prometheus, each by its own command line; only names of hosts,
/// paths and ports are those of this machine.
#[test]
fn every_command_of_compose_runs_outside_of_a_container() {
    let Some(compose) = yaml("docker-compose.yml").map(|mut documents| documents.remove(0)) else { return };
    let services = compose["services"].as_object().unwrap();
    let simulators: Vec<(&String, Sim)> = services
        .iter()
        .filter(|(name, service)| service["build"]["target"] == "sim" && *name != "load")
        .map(|(name, _)| {
            let argv = argv(&compose, name);
            let arguments = argv[1..].iter().map(|argument| argument.replace("0.0.0.0:9090", "127.0.0.1:0"));
            let process = Process::start(program(&argv[0]).args(arguments));
            (name, Sim { address: line_with(&process.stdout, "listening http=").parse().unwrap(), process })
        })
        .collect();
    assert_eq!(simulators.len(), 3);

    let (weir, weir_argv) = (&services["weir"], argv(&compose, "weir"));
    let mut environment: Vec<(String, String)> = vec![
        ("WEIR_LISTEN".into(), "127.0.0.1:0".into()),
        ("WEIR_ADMIN".into(), "127.0.0.1:0".into()),
        ("WEIR_CONFIG".into(), repository().join("config").display().to_string()),
    ];
    assert!(texts(&weir["volumes"]).contains(&"./config:/etc/weir:ro".to_owned()));
    for (name, value) in weir["environment"].as_object().unwrap() {
        let mut value = value.as_str().unwrap().to_owned();
        for (host, sim) in &simulators {
            value = value.replace(&format!("http://{host}:9090"), &format!("http://{}", sim.address));
        }
        assert!(!value.ends_with(":9090"), "{name}={value}: no service of this name");
        if let Some((_, default)) = value.split_once(":-") {
            value = default.trim_end_matches('}').to_owned();
        }
        environment.push((name.clone(), value));
    }
    let mut running = Process::start(program(&weir_argv[0]).args(&weir_argv[1..]).envs(environment));
    let line = line_with(&running.stderr, "listening http=");
    let (http, admin) = line.split_once(" admin=").unwrap();

    // As the image's health check and compose's ask: `weir health`, told by WEIR_ADMIN where.
    let health = || {
        let test = texts(&weir["healthcheck"]["test"]);
        assert_eq!(test[0], "CMD");
        let image = instruction(&stage("weir"), "HEALTHCHECK").unwrap();
        assert!(image.ends_with(&format!("CMD {}", serde_json::json!(test[1..]).to_string().replace(',', ", "))));
        program(&test[1]).args(&test[2..]).env("WEIR_ADMIN", admin).output().unwrap()
    };
    let healthy = health();
    assert!(healthy.status.success() && String::from_utf8_lossy(&healthy.stdout).contains("ready"), "{healthy:?}");

    let load = argv(&compose, "load");
    let arguments = load[1..].iter().map(|argument| argument.replace("http://weir:8080", &format!("http://{http}")));
    let load = Process::start(program(&load[0]).args(arguments));
    let served = || {
        let metrics = String::from_utf8(send(admin.parse().unwrap(), "GET", "/metrics", &[]).body).unwrap();
        metrics
            .lines()
            .any(|line| line.starts_with("weir_http_requests_total{client=\"demo\"") && line.contains("status=\"200\""))
    };
    until("the load job is served", served);

    if has("prometheus") {
        let directory = TempDir::new().unwrap();
        let argv = argv(&compose, "prometheus");
        let file = directory.path().join("prometheus.yml");
        let arguments = argv.iter().map(|argument| {
            argument
                .replace("/etc/prometheus/prometheus.yml", file.to_str().unwrap())
                .replace("=/prometheus", &format!("={}/data", directory.path().display()))
        });
        Prometheus::configure(&file, admin.parse().unwrap());
        let prometheus = Prometheus::run(Command::new("prometheus").args(arguments));
        until("it scrapes Weir", || prometheus.series("up{job=\"weir\"} == 1", true).len() == 1);
    }

    drop(load);
    running.signal("TERM");
    assert!(running.wait().success());
    let ill = health();
    assert_eq!(ill.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ill.stderr).contains("does not answer"), "{ill:?}");
}

/// A command that sees the whole file system read-only, as in the containers; `None` where the system lets nobody.
fn read_only(program: &str) -> Option<Command> {
    const REMOUNT: &str = "mount -o remount,bind,ro / && ! touch /tmp/weir 2>/dev/null && exec \"$@\"";
    let command = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", REMOUNT, "sh"]).args(arguments);
        command
    };
    let may = command(&["true"]).output().is_ok_and(|output| output.status.success());
    if !may {
        eprintln!("SKIPPED: this system does not let tests have mounts of their own");
    }
    may.then(|| command(&[program]))
}

#[test]
fn nothing_is_written_to_the_file_system() {
    let (Some(mut simulate), Some(mut run)) =
        (read_only(env!("CARGO_BIN_EXE_weir-sim")), read_only(env!("CARGO_BIN_EXE_weir")))
    else {
        return;
    };
    let process = Process::start(simulate.args(["--listen", "127.0.0.1:0", "--exit-with-stdin"]));
    let sim = Sim { address: line_with(&process.stdout, "listening http=").parse().unwrap(), process };
    let config = Config::shipped();
    for name in ["VECTARA", "PALANTIR", "AGENTHUMAN"] {
        run.env(format!("{name}_BASE_URL"), format!("http://{}", sim.address));
    }
    run.env("VECTARA_API_KEY", "zut_sim").env("WEIR_CONFIG", config.directory.path());
    let mut weir = Process::start(run.env("WEIR_LISTEN", "127.0.0.1:0").env("WEIR_ADMIN", "127.0.0.1:0").arg("run"));
    let line = line_with(&weir.stderr, "listening http=");
    let (http, admin) = line.split_once(" admin=").unwrap();
    assert_eq!(send(http.parse().unwrap(), "GET", VECTARA, &[("X-API-Key", "open")]).status, 200);
    assert_eq!(send(admin.parse().unwrap(), "POST", "/reload", &[]).status, 200);
    weir.signal("TERM");
    assert!(weir.wait().success());
}

#[test]
fn health_needs_no_sound_configuration_but_an_address() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let admin = weir.admin.to_string();
    weir.config.write("weir.yaml", "listen: nonsense\n");
    let run = |arguments: &[&str]| {
        let output = weir.config.command(arguments).env_remove("WEIR_ADMIN").output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run(&["health", "--admin", &admin]).0, 0);
    assert_eq!(run(&["health", "--live", "--admin", &admin.replace("127.0.0.1", "0.0.0.0")]).0, 0);
    let (code, said) = run(&["health"]);
    assert!(code == 1 && said.contains("--admin ADDRESS"), "{said}");
    weir.config.write("weir.yaml", &format!("listen: [{{ address: 127.0.0.1:0 }}]\nadmin: {{ address: {admin} }}\nrate_limits:\n  standard: {{ requests: 600, per: 1m }}\n  careful: {{ requests: 60, per: 1m }}\n"));
    assert_eq!(run(&["health"]), (0, String::new()));
}

#[test]
fn the_load_asks_no_more_than_it_is_told_to() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let target = format!("http://{}", weir.http);
    let mut command = program("weir-sim");
    command.args(["load", "--target", &target, "--key", "open", "--rate", "20", "--seconds", "2"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.starts_with("load 200="), "{said}");
    let answers = said.split('=').skip(1).map(|rest| rest.split([' ', '\n']).next().unwrap().parse::<u64>().unwrap());
    let answers: u64 = answers.sum();
    assert!((1..=41).contains(&answers), "{said}");
}

#[test]
fn images_are_pinned_and_containers_may_do_little() {
    let pinned = |image: &str| {
        let tag = image.split_once(':').unwrap_or_else(|| panic!("{image} has no tag")).1;
        assert!(tag.matches('.').count() >= 1 && tag.contains(|c: char| c.is_ascii_digit()), "{image} is not pinned");
    };
    let stages = ["build", "base", "sim", "weir"];
    let froms: Vec<String> =
        dockerfile().lines().filter_map(|line| Some(line.strip_prefix("FROM ")?.to_owned())).collect();
    assert_eq!(froms.len(), stages.len());
    for from in froms {
        let image = from.split(' ').next().unwrap();
        if !stages.contains(&image) {
            pinned(image);
        }
    }
    let base = stage("base");
    let user = instruction(&base, "USER").unwrap();
    assert!(user.split(':').all(|id| id.parse::<u32>().unwrap() > 0), "{user}");
    assert_eq!(instruction(&base, "STOPSIGNAL").as_deref(), Some("SIGTERM"));
    assert!(dockerfile().trim_end().ends_with("CMD [\"run\"]"), "the last stage is the one built without a target");
    let toolchain = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let toolchain =
        toolchain.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"').to_owned();
    assert!(
        stage("build")[0].1.starts_with(&format!("rust:{toolchain}")),
        "the image's toolchain is the oldest that is promised"
    );

    let Some(compose) = yaml("docker-compose.yml").map(|mut documents| documents.remove(0)) else { return };
    for (name, service) in compose["services"].as_object().unwrap() {
        pinned(service["image"].as_str().unwrap());
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port} is open to others");
        }
    }
}

/// The manifest names all it needs, and the build's context has it.
#[test]
fn the_build_context_holds_what_cargo_reads() {
    let directory = TempDir::new().unwrap();
    let rules = fs::read_to_string(repository().join(".dockerignore")).unwrap();
    assert!(rules.lines().any(|line| line == "*"), "all is left out that is not named");
    for name in rules.lines().filter_map(|line| line.strip_prefix('!')) {
        let (from, to) = (repository().join(name), directory.path().join(name));
        match from {
            from if from.is_dir() => copy(&from, &to),
            from if from.exists() => drop(fs::copy(from, to).unwrap()),
            _ => {}
        }
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--locked", "--offline", "--no-deps", "--format-version=1"]);
    let output = cargo.current_dir(directory.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    for target in metadata["packages"][0]["targets"].as_array().unwrap() {
        assert!(Path::new(target["src_path"].as_str().unwrap()).exists(), "{}", target["src_path"]);
    }
    // What is built besides, and by what.
    let has = |path: &str| assert!(directory.path().join(path).exists(), "{path} is not in the build's context");
    assert!(repository().join("build.rs").exists());
    has("build.rs");
    let image = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    image.split_whitespace().filter(|word| word.starts_with("scripts/")).for_each(has);
    // What sources take in from outside of src/.
    let included = fs::read_to_string(repository().join("src/bin/weir-sim/vectara.rs")).unwrap();
    for path in included.split("include_str!(\"../../../").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(directory.path().join(path).exists(), "{path}");
    }
}

#[test]
fn grafana_is_told_of_what_is_there() {
    let Some(mut compose) = yaml("docker-compose.yml") else { return };
    let services = compose.remove(0)["services"].take();
    let source = &yaml("deploy/grafana/provisioning/datasources/prometheus.yml").unwrap()[0]["datasources"][0];
    let url = source["url"].as_str().unwrap();
    let (host, port) = url.strip_prefix("http://").and_then(|rest| rest.split_once(':')).unwrap();
    assert!(texts(&services[host]["ports"]).iter().any(|mapped| mapped.ends_with(&format!(":{port}"))), "{url}");
    let mounts: Vec<(String, String)> = texts(&services["grafana"]["volumes"])
        .iter()
        .filter_map(|mount| mount.strip_suffix(":ro")?.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())))
        .collect();
    for (from, _) in &mounts {
        assert!(repository().join(from).is_dir(), "{from}");
    }
    let mounted = |path: &str| {
        mounts
            .iter()
            .find_map(|(from, to)| Some(repository().join(from).join(path.strip_prefix(to)?.trim_start_matches('/'))))
    };
    let provider = &yaml("deploy/grafana/provisioning/dashboards/weir.yml").unwrap()[0]["providers"][0];
    assert!(mounted(provider["options"]["path"].as_str().unwrap()).unwrap().join("overview.json").exists());
    let home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str().unwrap();
    assert!(mounted(home).unwrap().exists(), "{home}");
}

fn manifests() -> Vec<PathBuf> {
    let all = fs::read_dir(repository().join("deploy/kubernetes")).unwrap().map(|file| file.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    all.retain(|path| !path.ends_with("kustomization.yaml"));
    all.sort();
    all
}

#[test]
fn kubernetes_manifests_are_valid_and_fit_each_other() {
    let Some(python) = python("kubernetes_validate, cloudcoil.models.prometheus_operator") else { return };
    let check = |files: &[PathBuf]| {
        let output =
            Command::new(&python).arg(repository().join("tests/tools/kubernetes.py")).args(files).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (valid, said) = check(&manifests());
    assert!(valid, "{said}");
    // It can tell: a word that is not known is found, in either kind of schema.
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
    let within = |selector: &Value, labels: &Value| {
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
        assert!(within(selector, of), "{selector} does not select {of}");
    }
    assert_eq!(service["metadata"]["name"], "weir", "the job's name, which the alerts look for");
    let container = &pod["spec"]["containers"][0];
    let ports: Vec<&str> =
        container["ports"].as_array().unwrap().iter().filter_map(|port| port["name"].as_str()).collect();
    let mut wanted: Vec<&Value> =
        service["spec"]["ports"].as_array().unwrap().iter().map(|port| &port["targetPort"]).collect();
    wanted
        .extend(["startupProbe", "livenessProbe", "readinessProbe"].map(|probe| &container[probe]["httpGet"]["port"]));
    for port in wanted {
        assert!(ports.contains(&port.as_str().unwrap()), "{port} is no port of the container");
    }
    // Pod Security Standards, restricted.
    assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["spec"]["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(texts(&container["securityContext"]["capabilities"]["drop"]), ["ALL"]);
}

#[test]
fn the_config_map_is_made_of_the_shipped_configuration() {
    let script = repository().join("deploy/kubernetes/configmap.sh");
    let output = Command::new("sh").arg(script).arg(repository().join("config")).output().unwrap();
    let made = String::from_utf8(output.stdout).unwrap();
    let kept = fs::read_to_string(repository().join("deploy/kubernetes/configmap.yaml")).unwrap();
    assert!(
        output.status.success() && made == kept,
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

/// Writes a projected volume as the kubelet does: a directory of its own for each state, `..data` swapped to it.
fn project(volume: &Path, state: &str, files: &[(String, String)]) {
    let directory = volume.join(state);
    for (path, text) in files {
        let file = directory.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    symlink(state, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    for (path, _) in files {
        let first = path.split('/').next().unwrap();
        if volume.join(first).symlink_metadata().is_err() {
            symlink(format!("..data/{first}"), volume.join(first)).unwrap();
        }
    }
}

#[test]
fn the_pod_runs_and_takes_a_changed_config_map() {
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
        let map =
            maps.iter().find(|map| map["metadata"]["name"] == source["configMap"]["name"]).expect("the map is here");
        for item in source["configMap"]["items"].as_array().unwrap() {
            let text = map["data"][item["key"].as_str().unwrap()].as_str().expect("the key is in the map");
            files.push((item["path"].as_str().unwrap().to_owned(), text.to_owned()));
        }
    }
    let volume = TempDir::new().unwrap();
    project(volume.path(), "..2026_01_01", &files);
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
            // Off loopback, as in the pod, so that the token is asked for.
            (Some(value), _) if value.starts_with("0.0.0.0:") => "0.0.0.0:0".to_owned(),
            (Some("/etc/weir"), _) => volume.path().display().to_string(),
            (None, Some((_, value))) => (*value).to_owned(),
            other => panic!("{name}: {other:?}"),
        };
        command.env(name, value);
    }
    let mut weir = Process::start(&mut command);
    let line = line_with(&weir.stderr, "listening http=").replace("0.0.0.0", "127.0.0.1");
    let (http, admin) = line.split_once(" admin=").unwrap();
    let (http, admin) = (http.parse().unwrap(), admin.parse().unwrap());
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        assert_eq!(send(admin, "GET", path, &[]).status, 200, "{path}");
    }
    let monitor = yaml("deploy/kubernetes/servicemonitor.yaml").unwrap().remove(0);
    assert_eq!(send(admin, "GET", monitor["spec"]["endpoints"][0]["path"].as_str().unwrap(), &[]).status, 200);
    assert_eq!(send(admin, "GET", "/config", &[]).status, 401, "all else wants the token");

    let asked = || send(http, "GET", VECTARA, &[("X-API-Key", "a-new-key")]).status;
    assert_eq!(asked(), 401);
    let digest = digests("SHA(a-new-key)");
    for (path, text) in &mut files {
        if path == "clients.yaml" {
            *text = text.replace(&"0".repeat(64), &digest);
        }
    }
    project(volume.path(), "..2026_01_02", &files);
    until("the new client is known", || asked() == 200);
    fs::remove_dir_all(volume.path().join("..2026_01_01")).unwrap();
    assert_eq!(asked(), 200);

    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    let wait: u64 = texts(&container["lifecycle"]["preStop"]["exec"]["command"])[1].parse().unwrap();
    assert!(grace > wait + 10, "the default shutdown.grace is 10 s");
    weir.signal("TERM");
    assert!(weir.wait().success());
}

#[test]
fn the_unit_is_verified_and_tight() {
    if !has("systemd-analyze") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let unit = fs::read_to_string(repository().join("deploy/systemd/weir.service")).unwrap();
    let installed = "ExecStart=/usr/local/bin/weir ";
    assert!(unit.contains(installed));
    let file = directory.path().join("weir.service");
    fs::write(&file, unit.replace(installed, &format!("ExecStart={} ", env!("CARGO_BIN_EXE_weir")))).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").args(arguments).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said)
    };
    let (valid, said) = run(&["verify", "--man=no"]);
    assert!(valid && said.trim().is_empty(), "{said}");
    // The threshold is in tenths: what is left open is the network, and reading what everyone may.
    let (tight, said) = run(&["security", "--offline=yes", "--threshold=15"]);
    println!("{}", said.lines().last().unwrap_or_default());
    assert!(tight, "{said}");
    // The command line is one that the program takes.
    let words: Vec<&str> = unit.lines().find_map(|line| line.strip_prefix(installed)).unwrap().split(' ').collect();
    let config = Config::shipped();
    let mut check = program("weir");
    check.args(
        words.iter().map(|word| if *word == "/etc/weir" { config.directory.path().to_str().unwrap() } else { word }),
    );
    let help = check.arg("--help").output().unwrap();
    assert!(help.status.success(), "{}", String::from_utf8_lossy(&help.stderr));

    let users = repository().join("deploy/systemd/sysusers.d/weir.conf");
    if has("systemd-sysusers") {
        let output = Command::new("systemd-sysusers").arg("--dry-run").arg(&users).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let user = unit.lines().find_map(|line| line.strip_prefix("User=")).unwrap();
    assert!(fs::read_to_string(users).unwrap().lines().any(|line| line.starts_with(&format!("u {user} "))));
}

//! Tests of the Dockerfile and of compose: runs the command lines of the containers outside of containers.

use crate::monitoring::Prometheus;
use crate::support::*;
use crate::tools::{has, program, texts, yaml};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

fn dockerfile() -> String {
    fs::read_to_string(repository().join("Dockerfile")).unwrap()
}

/// The instructions of a stage of the Dockerfile, continued lines joined.
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

/// The arguments of the last such instruction in a stage.
fn instruction(stage: &[(String, String)], name: &str) -> Option<String> {
    stage.iter().rev().find(|(what, _)| what == name).map(|(_, rest)| rest.clone())
}

/// The command line of a compose service: the image's entry point and the service's command.
fn argv(compose: &Value, service: &str) -> Vec<String> {
    let service = &compose["services"][service];
    let entry = match service["build"]["target"].as_str() {
        Some(target) => {
            let entry = instruction(&stage(target), "ENTRYPOINT").expect("the stage has an entry point");
            texts(&serde_json::from_str(&entry).unwrap())
        }
        None => Vec::new(),
    };
    entry.into_iter().chain(texts(&service["command"])).collect()
}

#[test]
fn docker_compose_accepts_the_compose_file() {
    if !has("docker-compose") {
        return;
    }
    let mut command = Command::new("docker-compose");
    let output = command.args(["config", "--quiet"]).current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The containers of compose, as processes. Only host names, paths and ports are replaced by local ones.
struct ComposeProcesses {
    compose: Value,
    simulators: Vec<(String, Sim)>,
    weir: Process,
    http: SocketAddr,
    admin: SocketAddr,
    _config: TempDir,
}

impl ComposeProcesses {
    /// Starts the simulators and the gateway. `None` if the file cannot be read here.
    fn start() -> Option<Self> {
        let compose = yaml("docker-compose.yml")?.remove(0);
        let services = compose["services"].as_object().unwrap();
        let simulators: Vec<(String, Sim)> = services
            .iter()
            .filter(|(name, service)| service["build"]["target"] == "sim" && *name != "load")
            .map(|(name, _)| {
                let argv = argv(&compose, name);
                let arguments = argv[1..].iter().map(|argument| argument.replace("0.0.0.0:9090", "127.0.0.1:0"));
                let process = Process::start(program(&argv[0]).args(arguments));
                let address = wait_for_line(&process.stdout, "listening http=").parse().unwrap();
                (name.clone(), Sim { address, process })
            })
            .collect();
        assert_eq!(simulators.len(), 3);
        let (weir, weir_argv) = (&services["weir"], argv(&compose, "weir"));
        let config = TempDir::new().unwrap();
        assert_eq!(texts(&weir["volumes"])[0], "./config:/etc/weir:ro");
        for volume in texts(&weir["volumes"]) {
            let (from, to) = volume.strip_suffix(":ro").unwrap().split_once(':').unwrap();
            let (from, to) = (repository().join(from), to.replacen("/etc/weir", config.path().to_str().unwrap(), 1));
            if from.is_dir() {
                copy(&from, Path::new(&to));
            } else {
                fs::copy(&from, to).unwrap();
            }
        }
        let mut environment: Vec<(String, String)> = vec![
            ("WEIR_LISTEN".into(), "127.0.0.1:0".into()),
            ("WEIR_ADMIN".into(), "127.0.0.1:0".into()),
            ("WEIR_CONFIG".into(), config.path().display().to_string()),
        ];
        for (name, value) in weir["environment"].as_object().unwrap() {
            let mut value = value.as_str().unwrap().to_owned();
            for (host, sim) in &simulators {
                value = value.replace(&format!("http://{host}:9090"), &format!("http://{}", sim.address));
            }
            assert!(!value.ends_with(":9090"), "{name}={value} names no simulator of compose");
            if let Some((_, default)) = value.split_once(":-") {
                value = default.trim_end_matches('}').to_owned();
            }
            environment.push((name.clone(), value));
        }
        let process = Process::start(program(&weir_argv[0]).args(&weir_argv[1..]).envs(environment));
        let line = wait_for_line(&process.stderr, "listening http=");
        let (http, admin) = line.split_once(" admin=").unwrap();
        let (http, admin) = (http.parse().unwrap(), admin.parse().unwrap());
        Some(Self { compose, simulators, weir: process, http, admin, _config: config })
    }

    fn start_load(&self) -> Process {
        let load = argv(&self.compose, "load");
        let target = format!("http://{}", self.http);
        Process::start(program(&load[0]).args(load[1..].iter().map(|text| text.replace("http://weir:8080", &target))))
    }

    /// Runs the health check: the image and compose have the same one, `weir health` at WEIR_ADMIN.
    fn health(&self) -> std::process::Output {
        let test = texts(&self.compose["services"]["weir"]["healthcheck"]["test"]);
        assert_eq!(test[0], "CMD");
        let image = instruction(&stage("weir"), "HEALTHCHECK").unwrap();
        assert!(image.ends_with(&format!("CMD {}", serde_json::json!(test[1..]).to_string().replace(',', ", "))));
        program(&test[1]).args(&test[2..]).env("WEIR_ADMIN", self.admin.to_string()).output().unwrap()
    }

    /// The sum of the series that begin with this text and contain all of these.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let metrics = String::from_utf8(send(self.admin, "GET", "/metrics", &[]).body).unwrap();
        let fits = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
        metrics.lines().filter(fits).map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }
}

#[test]
fn every_command_of_compose_runs_outside_of_a_container() {
    let Some(mut running) = ComposeProcesses::start() else { return };
    let healthy = running.health();
    assert!(healthy.status.success() && String::from_utf8_lossy(&healthy.stdout).contains("ready"), "{healthy:?}");
    let load = running.start_load();
    let served = ["client=\"load\"", "status=\"200\""];
    wait_until("the load generator gets responses", || running.sum("weir_http_requests_total{", &served) > 0.0);

    if has("prometheus") {
        let directory = TempDir::new().unwrap();
        let argv = argv(&running.compose, "prometheus");
        let file = directory.path().join("prometheus.yml");
        let arguments = argv.iter().map(|argument| {
            argument
                .replace("/etc/prometheus/prometheus.yml", file.to_str().unwrap())
                .replace("=/prometheus", &format!("={}/data", directory.path().display()))
        });
        Prometheus::configure(&file, running.admin);
        let prometheus = Prometheus::run(Command::new("prometheus").args(arguments));
        wait_until("Prometheus scrapes Weir", || prometheus.series("up{job=\"weir\"} == 1", true).len() == 1);
    }

    drop(load);
    running.weir.signal("TERM");
    assert!(running.weir.wait().success());
    let unhealthy = running.health();
    assert_eq!(unhealthy.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&unhealthy.stderr).contains("no response from the admin listener"),
        "{unhealthy:?}"
    );
}

#[test]
fn the_load_of_compose_leaves_the_limits_of_the_demo_client_alone() {
    let Some(running) = ComposeProcesses::start() else { return };
    // More requests to this provider than the burst of the demo client permits.
    let output = program("weir-sim")
        .args(["load", "--target", &format!("http://{}", running.http), "--key", "weir-load-key"])
        .args(["--rate", "60", "--seconds", "2"])
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(
        running.sum("weir_http_requests_total{", &["client=\"load\"", "provider=\"agenthuman\"", "status=\"200\""])
            > 10.0
    );
    let response = send(running.http, "GET", AGENTHUMAN, &[("X-API-Key", "weir-demo-key")]);
    assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
    let limit = response.header("ratelimit").unwrap();
    assert!(limit.contains("\"careful\";r=9"), "nobody else uses the limit: {limit}");
    assert_eq!(running.sum("weir_rate_limit_requests_total{", &["client=\"load\"", "decision=\"limited\""]), 0.0);
}

/// `docker compose stop` removes a container's address: connections to it get no answer.
#[test]
fn a_stopped_container_of_compose_shows_soon_as_a_connect_problem() {
    let Some(mut running) = ComposeProcesses::start() else { return };
    let _load = running.start_load();
    let position = running.simulators.iter().position(|(name, _)| name == "palantir").unwrap();
    let called = ["provider=\"palantir\"", "status=\"200\""];
    wait_until("the provider is called", || running.sum("weir_upstream_requests_total{", &called) > 0.0);
    let (_, sim) = running.simulators.remove(position);
    let address = sim.address;
    drop(sim);
    let silent = Silent::at(address);
    let requests = || running.sum("weir_http_requests_total{", &["client=\"load\""]);
    let failures = |reason: &str| {
        running.sum("weir_upstream_failures_total{", &["provider=\"palantir\"", &format!("reason=\"{reason}\"")])
    };
    let (before, reset) = (requests(), failures("reset"));
    wait_until("the outage shows", || failures("connect_timeout") > 0.0);
    // The load has a fixed rate, so the number of its requests is the time: 60 are ten seconds.
    let sent = requests() - before;
    assert!(sent <= 60.0, "{sent} requests");
    assert_eq!(failures("timeout"), 0.0);
    assert!(failures("reset") <= reset + 1.0, "a call in flight can break; others do not connect");
    drop(silent);
}

/// A listener whose queue is full: the system drops connections to it without an answer.
struct Silent {
    _listener: socket2::Socket,
    _queue: Vec<socket2::Socket>,
}

impl Silent {
    fn at(address: SocketAddr) -> Self {
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = socket();
        listener.set_reuse_address(true).unwrap();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let queue = (0..4).map(|_| {
            let socket = socket();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address.into());
            socket
        });
        Self { _queue: queue.collect(), _listener: listener }
    }
}

/// A command that runs with a read-only file system, as in the containers; `None` where tests may not mount.
fn read_only(program: &Path) -> Option<Command> {
    const REMOUNT: &str = "mount -o remount,bind,ro / && ! touch /tmp/weir 2>/dev/null && exec \"$@\"";
    let command = |arguments: &[&OsStr]| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", REMOUNT, "sh"]).args(arguments);
        command
    };
    let permitted = command(&["true".as_ref()]).output().is_ok_and(|output| output.status.success());
    if !permitted {
        eprintln!("SKIPPED: this system does not permit a mount namespace");
    }
    permitted.then(|| command(&[program.as_os_str()]))
}

#[test]
fn weir_and_simulator_run_on_a_read_only_file_system() {
    let (Some(mut simulate), Some(mut run)) =
        (read_only(&simulator_program()), read_only(Path::new(env!("CARGO_BIN_EXE_weir"))))
    else {
        return;
    };
    let process = Process::start(simulate.args(["--listen", "127.0.0.1:0", "--exit-with-stdin"]));
    let sim = Sim { address: wait_for_line(&process.stdout, "listening http=").parse().unwrap(), process };
    let config = Config::shipped();
    for name in ["VECTARA", "PALANTIR", "AGENTHUMAN"] {
        run.env(format!("{name}_BASE_URL"), format!("http://{}", sim.address));
    }
    run.env("VECTARA_API_KEY", "zut_sim").env("WEIR_CONFIG", config.directory.path());
    let mut weir = Process::start(
        run.env("WEIR_LISTEN", "127.0.0.1:0").env("WEIR_ADMIN", "127.0.0.1:0").env_remove("XDG_RUNTIME_DIR").arg("run"),
    );
    let line = wait_for_line(&weir.stderr, "listening http=");
    let (http, admin) = line.split_once(" admin=").unwrap();
    assert_eq!(send(http.parse().unwrap(), "GET", VECTARA, &[("X-API-Key", "open")]).status, 200);
    // Weir can store no token of its own, so it refuses changes, and says what would permit them.
    let refused = send(admin.parse().unwrap(), "POST", "/reload", &[]);
    assert_eq!(refused.code(), (403, "forbidden".into()));
    assert!(refused.json()["detail"].as_str().unwrap().contains("WEIR_ADMIN_TOKEN"), "{}", refused.json());
    assert_eq!(send(admin.parse().unwrap(), "GET", "/config", &[]).status, 200);
    weir.signal("TERM");
    assert!(weir.wait().success());
}

#[test]
fn weir_health_works_with_an_invalid_configuration_if_it_has_an_address() {
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
    let (code, stderr) = run(&["health"]);
    assert!(code == 1 && stderr.contains("--admin ADDRESS"), "{stderr}");
    weir.config.write("weir.yaml", &format!("listen: [{{ address: 127.0.0.1:0 }}]\nadmin: {{ address: {admin} }}\nrate_limits:\n  standard: {{ requests: 600, per: 1m }}\n  careful: {{ requests: 60, per: 1m }}\n"));
    assert_eq!(run(&["health"]), (0, String::new()));
}

#[test]
fn the_load_generator_keeps_its_rate() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let target = format!("http://{}", weir.http);
    let mut command = program("weir-sim");
    command.args(["load", "--target", &target, "--key", "open", "--rate", "20", "--seconds", "2"]);
    let output = command.output().unwrap();
    let summary = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && summary.starts_with("load 200="), "{summary}");
    let responses =
        summary.split('=').skip(1).map(|rest| rest.split([' ', '\n']).next().unwrap().parse::<u64>().unwrap());
    let responses: u64 = responses.sum();
    assert!((1..=41).contains(&responses), "{summary}");
}

#[test]
fn images_are_pinned_and_containers_have_few_privileges() {
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
    assert!(
        dockerfile().trim_end().ends_with("CMD [\"run\"]"),
        "the last stage, which is built without a target, must be weir"
    );
    let toolchain = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let toolchain =
        toolchain.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"').to_owned();
    assert!(
        stage("build")[0].1.starts_with(&format!("rust:{toolchain}")),
        "the image builds with the minimum version of Rust"
    );

    let Some(compose) = yaml("docker-compose.yml").map(|mut documents| documents.remove(0)) else { return };
    for (name, service) in compose["services"].as_object().unwrap() {
        pinned(service["image"].as_str().unwrap());
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port} is not on loopback only");
        }
    }
}

/// `.dockerignore` must let through every file that the build reads.
#[test]
fn the_image_build_context_has_all_files_that_cargo_reads() {
    let directory = TempDir::new().unwrap();
    let rules = fs::read_to_string(repository().join(".dockerignore")).unwrap();
    assert!(rules.lines().any(|line| line == "*"), ".dockerignore must exclude everything that it does not name");
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
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), 2, "weir and weir-sim");
    for target in packages.iter().flat_map(|package| package["targets"].as_array().unwrap()) {
        assert!(Path::new(target["src_path"].as_str().unwrap()).exists(), "{}", target["src_path"]);
    }
    // The build script, and the scripts that the Dockerfile runs.
    let has = |path: &str| assert!(directory.path().join(path).exists(), "{path} is not in the build's context");
    assert!(repository().join("build.rs").exists());
    has("build.rs");
    let image = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    image.split_whitespace().filter(|word| word.starts_with("scripts/")).for_each(has);
    // Files outside of the sources that `include_str!` reads.
    let source = fs::read_to_string(repository().join("sim/src/vectara.rs")).unwrap();
    assert!(source.contains("include_str!(\"../../"));
    for path in source.split("include_str!(\"../../").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(directory.path().join(path).exists(), "{path}");
    }
}

#[test]
fn grafana_provisioning_refers_to_existing_services_and_files() {
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

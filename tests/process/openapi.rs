//! The API that documents itself: what the description says holds on the running program, judged by tools that do not
//! know Weir, and the page that renders it works in a real browser.

use crate::support::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn venv(program: &str) -> PathBuf {
    repository().join("target/openapi/bin").join(program)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn description(weir: &Weir) -> Value {
    send(weir.http, "GET", "/openapi.json", &[]).json()
}

/// Every operation of the description: path, method, operation.
fn operations(description: &Value) -> Vec<(String, String, Value)> {
    let paths = description["paths"].as_object().unwrap().iter();
    let each = paths.flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().map(|(method, operation)| (path.clone(), method.clone(), operation.clone()))
    });
    each.collect()
}

#[test]
fn what_is_public_needs_no_key_costs_nothing_and_is_validated() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients("clients:\n  - { id: once, keys: [ { sha256: SHA(once) } ], rate_limit: once }\n")
        .edit("weir.yaml", "rate_limits:\n", "rate_limits:\n  once:\n    requests: 1\n    per: 1h\n")
        .start(&sim);
    for (path, media) in [
        ("/openapi.json", "application/json"),
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/swagger-ui.css", "text/css; charset=utf-8"),
        ("/docs/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("/docs/start.js", "text/javascript; charset=utf-8"),
    ] {
        let ask = |method: &str, headers: &[(&str, &str)]| send(weir.http, method, path, headers);
        let plain = ask("GET", &[]);
        assert_eq!((plain.status, plain.header("content-type")), (200, Some(media)), "{path}");
        assert_eq!(plain.header("cache-control"), Some("public, max-age=300"));
        assert_eq!((plain.header("vary"), plain.header("ratelimit"), plain.header("cache-status")), (None, None, None));
        assert!(plain.header("x-request-id").is_some() && plain.header("x-content-type-options") == Some("nosniff"));
        // A key is not looked at: neither is a good one charged, nor can a bad one be told by the answer.
        for key in ["once", "once", "wrong"] {
            let keyed = ask("GET", &[("X-API-Key", key)]);
            assert!(keyed.status == 200 && keyed.header("ratelimit").is_none(), "{path} with {key}");
        }
        let tag = plain.header("etag").unwrap();
        let unchanged = ask("GET", &[("If-None-Match", tag)]);
        assert_eq!((unchanged.status, unchanged.body.len(), unchanged.header("etag")), (304, 0, Some(tag)));
        let head = ask("HEAD", &[]);
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), Some(plain.body.len().to_string().as_str()));
        let post = ask("POST", &[]);
        assert_eq!((post.code(), post.header("allow")), ((405, "method_not_allowed".into()), Some("GET, HEAD")));
        let long = send(weir.http, "GET", &format!("{path}?{}", "x".repeat(9000)), &[]);
        assert_eq!(long.code(), (414, "request_too_large".into()), "within limits all the same");
    }
    assert_eq!(weir.metric("weir_edge_auth_failures_total{result=\"told\"}"), 0.0);
    assert_eq!(send(weir.http, "GET", "/docs/other", &[]).code(), (404, "not_found".into()));
    assert_eq!(send(weir.http, "GET", "/docs/", &[]).code(), (401, "unauthorized".into()));
    let policy = send(weir.http, "GET", "/docs", &[]).header("content-security-policy").unwrap().to_owned();
    assert!(
        policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe") && !policy.contains("http"),
        "{policy}"
    );
    assert_eq!(weir.get_as("once", "/v1/providers").status, 200, "nothing was charged before");
    assert_eq!(weir.get_as("once", "/v1/providers").status, 429);
}

#[test]
fn the_examples_of_the_description_work() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let description = description(&weir);
    let operations = operations(&description);
    assert_eq!(operations.len(), 20);
    for (path, method, operation) in &operations {
        let parameters: Vec<&Value> =
            operation["parameters"].as_array().unwrap().iter().filter(|p| p["in"].is_string()).collect();
        // Ids come by provider: those of one belong together.
        let providers: Vec<&String> =
            parameters.iter().filter_map(|p| p["examples"].as_object()).flat_map(|all| all.keys()).collect();
        let cases: Vec<Option<&String>> =
            if providers.is_empty() { vec![None] } else { providers.into_iter().map(Some).collect() };
        for provider in cases {
            let (mut target, mut query) = (path.clone(), Vec::new());
            for parameter in &parameters {
                let name = parameter["name"].as_str().unwrap();
                let shown =
                    provider.map_or(&parameter["example"], |provider| &parameter["examples"][provider]["value"]);
                let shown = if shown.is_null() { &parameter["example"] } else { shown };
                if parameter["in"] == "path" {
                    target = target.replace(&format!("{{{name}}}"), shown.as_str().unwrap());
                } else if parameter["required"] == true {
                    query.extend(shown.as_array().unwrap().iter().map(|id| format!("{name}={}", id.as_str().unwrap())));
                } else if path == "/v1/sessions" && matches!(name, "agent" | "provider") {
                    let all = parameter["schema"]["examples"][0].as_array().unwrap();
                    query.extend(all.iter().map(|source| format!("{name}={}", source.as_str().unwrap())));
                }
            }
            if !query.is_empty() {
                target += &format!("?{}", query.join("&"));
            }
            let answer = send(weir.http, &method.to_uppercase(), &target, &[("X-API-Key", "open")]);
            assert_eq!(answer.status, 200, "{method} {target}: {}", String::from_utf8_lossy(&answer.body));
            let documented = operation["responses"]["200"]["headers"].as_object().unwrap();
            for (header, reference) in
                documented.iter().filter(|(_, r)| r["$ref"].as_str().unwrap().ends_with(".always"))
            {
                assert!(answer.header(header).is_some(), "{method} {target}: {header} of {reference}");
            }
        }
    }
}

#[test]
fn the_description_follows_the_configuration() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let pattern = |description: &Value| {
        let agent = &description["paths"]["/v1/agents/{agent}/sessions"]["get"]["parameters"][0];
        agent["schema"]["anyOf"].as_array().unwrap().iter().find(|form| form["title"] == "vectara").unwrap()["pattern"]
            .clone()
    };
    let before = send(weir.http, "GET", "/openapi.json", &[]);
    assert_eq!(pattern(&before.json()), "^[0-9a-zA-Z_-]{1,50}$");
    weir.config.change("providers/vectara.yaml", "agent: '^[0-9a-zA-Z_-]{1,50}$'", "agent: '^[0-9a-zA-Z_-]{1,60}$'");
    until("it is in force", || weir.reload().0 == 200);
    let after = send(weir.http, "GET", "/openapi.json", &[]);
    assert_eq!(pattern(&after.json()), "^[0-9a-zA-Z_-]{1,60}$");
    assert_ne!(before.header("etag"), after.header("etag"));
}

#[test]
fn linters_find_nothing_to_say() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("openapi.json");
    std::fs::write(&file, send(weir.http, "GET", "/openapi.json", &[]).body).unwrap();
    let python = venv("python");
    if needs("openapi-spec-validator", python.exists()) {
        let output = Command::new(&python).args(["-m", "openapi_spec_validator"]).arg(&file).output().unwrap();
        assert!(output.status.success() && said(&output).contains("OK"), "{}", said(&output));
    }
    let redocly = repository().join("target/openapi/linter/node_modules/.bin/redocly");
    if needs("redocly", redocly.exists()) {
        let output = Command::new(redocly)
            .args(["lint", "--extends", "recommended-strict"])
            .arg(&file)
            .current_dir(directory.path())
            .env("REDOCLY_TELEMETRY", "off")
            .env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = said(&output);
        assert!(output.status.success() && said.contains("Your API description is valid"), "{said}");
        println!("{said}");
    }
}

/// Every check, and for each operation its examples, the edges of its parameters, hundreds of requests made up that
/// are right or wrong, and chains of them.
#[test]
fn schemathesis_finds_nothing() {
    let python = venv("python");
    if !needs("schemathesis", python.exists()) {
        return;
    }
    let sim = Sim::with(&["--sessions", "57"]);
    let mut config = Config::shipped();
    // Quotas, and limits on what comes in, are not what is judged here.
    for provider in ["vectara", "palantir", "agenthuman"] {
        config = without_capacity(config, provider);
    }
    let weir = config
        .edit("weir.yaml", "    requests: 120\n", "    requests: 100000\n")
        .edit("weir.yaml", "url_bytes: 8KiB", "url_bytes: 384KiB")
        .start(&sim);
    let here = repository().join("tests/openapi");
    let report = tempfile::TempDir::new().unwrap();
    let url = format!("http://{}", weir.http);
    let output = Command::new("timeout")
        .arg("600")
        .arg(venv("st"))
        .args(["--config-file", here.join("schemathesis.toml").to_str().unwrap(), "run"])
        .arg(format!("{url}/openapi.json"))
        .args(["--header", "X-API-Key: open", "--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"])
        .args(["--max-examples", "200", "--seed", "6", "--workers", "1", "--request-timeout", "20"])
        .args(["--generation-with-security-parameters", "false", "--generation-database", "none", "--no-color"])
        .env("WEIR", &url)
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", &here)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(report.path())
        .output()
        .unwrap();
    let said = said(&output);
    println!("{said}");
    assert!(output.status.success() && said.contains("No issues found"), "schemathesis: {:?}", output.status);
    assert_eq!(weir.metric("weir_http_requests_in_flight"), 0.0);
}

/// A provider's file without its `capacity`.
fn without_capacity(config: Config, provider: &str) -> Config {
    let file = format!("providers/{provider}.yaml");
    let text = config.read(&file);
    let mut inside = false;
    let kept = text.lines().filter(|line| {
        inside = line.starts_with("  capacity:") || inside && line.starts_with("    ");
        !inside
    });
    config.write(&file, &kept.map(|line| format!("{line}\n")).collect::<String>());
    config
}

/// A browser without a window, driven as the W3C's WebDriver says.
struct Browser {
    _driver: Process,
    address: SocketAddr,
    session: String,
}

impl Browser {
    fn start(profile: &Path) -> Self {
        let driver = Process::start(Command::new("chromedriver").args(["--port=0"]));
        let told = line_with(&driver.stdout, "ChromeDriver was started successfully on port ");
        let address: SocketAddr = format!("127.0.0.1:{}", told.trim_end_matches('.')).parse().unwrap();
        let profile = format!("--user-data-dir={}", profile.display());
        let options = json!({
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1600", profile],
        });
        let wanted = json!({ "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": { "performance": "ALL", "browser": "ALL" },
        } });
        let mut browser = Self { _driver: driver, address, session: String::new() };
        let made = browser.command("POST", "", &json!({ "capabilities": wanted }));
        made["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        browser
    }

    /// A command to the driver; its value.
    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let session =
            if self.session.is_empty() { "/session".to_owned() } else { format!("/session/{}", self.session) };
        let body = if method == "GET" { String::new() } else { body.to_string() };
        // It answers nobody who calls it by another name.
        let head = format!(
            "{method} {session}{path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        let answer = self.send(&format!("{head}\r\n{body}")).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
        serde_json::from_str::<Value>(body).unwrap()["value"].clone()
    }

    /// Sends a request; the whole answer. The driver leaves the connection open, and tells how long its answer is.
    fn send(&self, request: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let (mut reader, mut answer, mut length) = (BufReader::new(stream), String::new(), 0);
        while !answer.ends_with("\r\n\r\n") {
            let before = answer.len();
            if reader.read_line(&mut answer)? == 0 {
                return Ok(answer);
            }
            if let Some((name, value)) =
                answer[before..].split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case("content-length"))
            {
                length = value.trim().parse().unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        }
        reader.take(length).read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn run(&self, script: &str) -> Value {
        self.command("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    fn log(&self, kind: &str) -> Vec<Value> {
        self.command("POST", "/se/log", &json!({ "type": kind })).as_array().unwrap().clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.send(&format!("DELETE /session/{} HTTP/1.1\r\nHost: {}\r\n\r\n", self.session, self.address));
    }
}

#[test]
fn the_page_renders_every_operation_and_a_request_tried_from_it_is_answered() {
    let there =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !needs("chromium", there("chromium") && there("chromedriver")) {
        return;
    }
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let described = operations(&description(&weir)).len();
    let profile = tempfile::TempDir::new().unwrap();
    let browser = Browser::start(profile.path());
    let origin = format!("http://{}", weir.http);
    browser.command("POST", "/url", &json!({ "url": format!("{origin}/docs") }));
    let shown = || browser.run("return document.querySelectorAll('.opblock').length").as_u64().unwrap();
    until("every operation is shown", || shown() == described as u64);
    // The key, then the first operation: as a reader does it, by clicks.
    browser.run("document.querySelector('button.authorize').click()");
    until("it asks for a key", || {
        browser.run("return document.querySelector('.auth-container input') !== null") == true
    });
    browser.run(
        "const input = document.querySelector('.auth-container input');\
         Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(input, 'open');\
         input.dispatchEvent(new Event('input', { bubbles: true }));",
    );
    browser.run("document.querySelector('.auth-container button.authorize').click()");
    browser.run("document.querySelector('.dialog-ux .btn-done, .dialog-ux .close-modal').click()");
    browser.run("document.querySelector('#operations-sessions-getSession .opblock-summary-control').click()");
    until("its form is there", || {
        browser.run("return document.querySelector('#operations-sessions-getSession .execute') !== null") == true
    });
    browser.run("document.querySelector('#operations-sessions-getSession .execute').click()");
    let status = "const s = document.querySelector('#operations-sessions-getSession .live-responses-table tbody .response-col_status');\
                  return s === null ? '' : s.textContent";
    until("an answer is shown", || browser.run(status).as_str().unwrap().starts_with("200"));
    let body = browser
        .run("return document.querySelector('#operations-sessions-getSession .live-responses-table').textContent");
    assert!(body.as_str().unwrap().contains("provider_session_id"), "{body}");
    asks_nobody_else(&browser, &origin);
    if let Some(path) = std::env::var_os("DOCS_SCREENSHOT") {
        let png = browser.command("GET", "/screenshot", &Value::Null);
        use base64::Engine as _;
        std::fs::write(path, base64::engine::general_purpose::STANDARD.decode(png.as_str().unwrap()).unwrap()).unwrap();
    }
}

/// What the page asked for, and what the browser refused it.
fn asks_nobody_else(browser: &Browser, origin: &str) {
    let mut asked = Vec::new();
    for entry in browser.log("performance") {
        let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
        let message = &message["message"];
        if message["method"] == "Network.requestWillBeSent" {
            let url = message["params"]["request"]["url"].as_str().unwrap();
            // The page that a new window begins with is the browser's own.
            if !url.starts_with("chrome:") {
                asked.push(url.to_owned());
            }
        }
    }
    let ours = |url: &&String| url.starts_with(&format!("{origin}/")) || url.starts_with("data:");
    assert!(asked.len() >= 6, "the page, its files, the description, the request: {asked:?}");
    assert!(asked.iter().all(|url| ours(&url)), "{asked:?}");
    let refused: Vec<Value> = browser
        .log("browser")
        .into_iter()
        .filter(|entry| entry["level"] == "SEVERE" || entry["message"].to_string().contains("Content Security Policy"))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

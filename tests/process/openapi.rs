//! The OpenAPI description: other tools test it against the running gateway, and a real browser tests the docs page.

use crate::browser::Browser;
use crate::support::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn venv(program: &str) -> PathBuf {
    repository().join("target/openapi/bin").join(program)
}

fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn description(weir: &Weir) -> Value {
    send(weir.http, "GET", "/openapi.json", &[]).json()
}

/// Returns every operation of the description: path, method, operation.
fn operations(description: &Value) -> Vec<(String, String, Value)> {
    let paths = description["paths"].as_object().unwrap().iter();
    let each = paths.flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().map(|(method, operation)| (path.clone(), method.clone(), operation.clone()))
    });
    each.collect()
}

#[test]
fn public_paths_need_no_key_cost_nothing_and_have_the_request_limits() {
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
        let send_to_path = |method: &str, headers: &[(&str, &str)]| send(weir.http, method, path, headers);
        let plain = send_to_path("GET", &[]);
        assert_eq!((plain.status, plain.header("content-type")), (200, Some(media)), "{path}");
        assert_eq!(plain.header("cache-control"), Some("public, max-age=300"));
        assert_eq!(
            (plain.header("vary"), plain.header("ratelimit"), plain.header("cache-status")),
            (Some("Accept-Encoding"), None, None)
        );
        assert!(plain.header("x-request-id").is_some() && plain.header("x-content-type-options") == Some("nosniff"));
        // Weir ignores keys here. A valid key costs nothing, and the response does not reveal an invalid key.
        for key in ["once", "once", "wrong"] {
            let keyed = send_to_path("GET", &[("X-API-Key", key)]);
            assert!(keyed.status == 200 && keyed.header("ratelimit").is_none(), "{path} with {key}");
        }
        let tag = plain.header("etag").unwrap();
        let unchanged = send_to_path("GET", &[("If-None-Match", tag)]);
        assert_eq!((unchanged.status, unchanged.body.len(), unchanged.header("etag")), (304, 0, Some(tag)));
        let head = send_to_path("HEAD", &[]);
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), Some(plain.body.len().to_string().as_str()));
        let post = send_to_path("POST", &[]);
        assert_eq!((post.code(), post.header("allow")), ((405, "method_not_allowed".into()), Some("GET, HEAD")));
        let long = send(weir.http, "GET", &format!("{path}?{}", "x".repeat(9000)), &[]);
        assert_eq!(long.code(), (414, "request_too_large".into()), "the URL limit applies");
    }
    let auth_failures = || weir.metric("weir_auth_failures_total{decision=\"told\"}");
    assert_eq!(auth_failures(), 0.0);
    assert_eq!(send(weir.http, "GET", "/docs/other", &[]).code(), (404, "not_found".into()));
    assert_eq!(send(weir.http, "GET", "/docs/", &[]).code(), (401, "unauthorized".into()));
    assert_eq!(auth_failures(), 1.0, "the metric counts");
    let policy = send(weir.http, "GET", "/docs", &[]).header("content-security-policy").unwrap().to_owned();
    assert!(
        policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe") && !policy.contains("http"),
        "{policy}"
    );
    assert_eq!(weir.get_as("once", VECTARA).status, 200, "the requests before cost nothing");
    assert_eq!(weir.get_as("once", VECTARA).status, 429);
}

/// The parameters of a form: the required ones, and the sources of a list. Empty for an operation without a form.
fn form_example(operation: &Value) -> Vec<String> {
    let schema = &operation["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"];
    let wanted = ["id", "agent", "provider"];
    let properties = schema["properties"].as_object().into_iter().flatten();
    let wanted = properties.filter(|(name, _)| wanted.contains(&name.as_str()));
    let values = |(name, schema): (&String, &Value)| {
        let all = schema["examples"][0].as_array().expect("an example").clone();
        all.into_iter().map(|value| format!("{name}={}", value.as_str().unwrap())).collect::<Vec<_>>()
    };
    wanted.flat_map(|(name, schema)| values((name, schema))).collect()
}

#[test]
fn requests_built_from_the_descriptions_examples_succeed() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let description = description(&weir);
    let operations = operations(&description);
    assert_eq!(operations.len(), 23);
    for (path, method, operation) in &operations {
        let parameters: Vec<&Value> =
            operation["parameters"].as_array().unwrap().iter().filter(|p| p["in"].is_string()).collect();
        // The examples of ids are named after providers. A request combines ids of one provider only.
        let providers: Vec<&String> =
            parameters.iter().filter_map(|p| p["examples"].as_object()).flat_map(|all| all.keys()).collect();
        let cases: Vec<Option<&String>> =
            if providers.is_empty() { vec![None] } else { providers.into_iter().map(Some).collect() };
        for provider in cases {
            let (mut target, mut query) = (path.clone(), form_example(operation));
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
            let (mut headers, mut form) = (vec![("X-API-Key", "open")], query.join("&"));
            if method == "post" {
                headers.push(("Content-Type", "application/x-www-form-urlencoded"));
            } else if !query.is_empty() {
                target += &format!("?{}", std::mem::take(&mut form));
            }
            let length = form.len().to_string();
            if method == "post" {
                headers.push(("Content-Length", &length));
            }
            let bytes = [&request(&method.to_uppercase(), &target, &headers), form.as_bytes()].concat();
            let response = send_bytes(weir.http, &bytes);
            assert_eq!(response.status, 200, "{method} {target}: {}", String::from_utf8_lossy(&response.body));
            let documented = operation["responses"]["200"]["headers"].as_object().unwrap();
            for (header, reference) in
                documented.iter().filter(|(_, r)| r["$ref"].as_str().unwrap().ends_with(".always"))
            {
                assert!(response.header(header).is_some(), "{method} {target}: {header} of {reference}");
            }
        }
    }
}

#[test]
fn the_description_changes_with_the_configuration() {
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
    wait_until("the configuration is reloaded", || weir.reload().0 == 200);
    let after = send(weir.http, "GET", "/openapi.json", &[]);
    assert_eq!(pattern(&after.json()), "^[0-9a-zA-Z_-]{1,60}$");
    assert_ne!(before.header("etag"), after.header("etag"));
}

#[test]
fn openapi_linters_report_nothing() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("openapi.json");
    std::fs::write(&file, send(weir.http, "GET", "/openapi.json", &[]).body).unwrap();
    let python = venv("python");
    if require_tool("openapi-spec-validator", python.exists()) {
        let output = Command::new(&python).args(["-m", "openapi_spec_validator"]).arg(&file).output().unwrap();
        assert!(output.status.success() && output_text(&output).contains("OK"), "{}", output_text(&output));
    }
    let redocly = repository().join("target/openapi/linter/node_modules/.bin/redocly");
    if require_tool("redocly", redocly.exists()) {
        let output = Command::new(redocly)
            .args(["lint", "--extends", "recommended-strict"])
            .arg(&file)
            .current_dir(directory.path())
            .env("REDOCLY_TELEMETRY", "off")
            .env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = output_text(&output);
        assert!(output.status.success() && text.contains("Your API description is valid"), "{text}");
        println!("{text}");
    }
}

/// Runs all checks with the examples of each operation, the limits of its parameters, hundreds of generated valid and
/// invalid requests, and sequences of requests.
#[test]
fn schemathesis_reports_no_issues() {
    let python = venv("python");
    if !require_tool("schemathesis", python.exists()) {
        return;
    }
    let sim = Sim::with_options(&["--sessions", "57"]);
    let mut config = Config::shipped();
    // Quotas and request limits are not under test here.
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
    let text = output_text(&output);
    println!("{text}");
    assert!(output.status.success() && text.contains("No issues found"), "schemathesis: {:?}", output.status);
    assert_eq!(weir.metric("weir_http_requests_in_flight"), 0.0);
}

/// Removes `capacity` from a provider's file.
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

#[test]
fn the_docs_page_renders_every_operation_and_can_send_a_request() {
    if !Browser::is_installed() {
        return;
    }
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let operation_count = operations(&description(&weir)).len();
    let profile = tempfile::TempDir::new().unwrap();
    let browser = Browser::start(profile.path());
    let origin = format!("http://{}", weir.http);
    browser.command("POST", "/url", &json!({ "url": format!("{origin}/docs") }));
    let rendered_count = || browser.run("return document.querySelectorAll('.opblock').length").as_u64().unwrap();
    wait_until("every operation is rendered", || rendered_count() == operation_count as u64);
    // Enters the key, then sends a request, with clicks as a user does.
    browser.run("document.querySelector('button.authorize').click()");
    wait_until("the key form is shown", || {
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
    wait_until("the request form is shown", || {
        browser.run("return document.querySelector('#operations-sessions-getSession .execute') !== null") == true
    });
    browser.run("document.querySelector('#operations-sessions-getSession .execute').click()");
    let status = "const s = document.querySelector('#operations-sessions-getSession .live-responses-table tbody .response-col_status');\
                  return s === null ? '' : s.textContent";
    wait_until("a response is shown", || browser.run(status).as_str().unwrap().starts_with("200"));
    let body = browser
        .run("return document.querySelector('#operations-sessions-getSession .live-responses-table').textContent");
    assert!(body.as_str().unwrap().contains("provider_session_id"), "{body}");
    assert_no_foreign_requests(&browser, &origin);
    if let Some(path) = std::env::var_os("DOCS_SCREENSHOT") {
        let png = browser.command("GET", "/screenshot", &Value::Null);
        use base64::Engine as _;
        std::fs::write(path, base64::engine::general_purpose::STANDARD.decode(png.as_str().unwrap()).unwrap()).unwrap();
    }
}

/// Checks that the page sent requests only to its own origin and that the browser blocked nothing.
fn assert_no_foreign_requests(browser: &Browser, origin: &str) {
    let mut requested = Vec::new();
    for entry in browser.log("performance") {
        let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
        let message = &message["message"];
        if message["method"] == "Network.requestWillBeSent" {
            let url = message["params"]["request"]["url"].as_str().unwrap();
            // A new window starts with a page of the browser.
            if !url.starts_with("chrome:") {
                requested.push(url.to_owned());
            }
        }
    }
    let own_origin = |url: &&String| url.starts_with(&format!("{origin}/")) || url.starts_with("data:");
    assert!(requested.len() >= 6, "the page, its files, the description, the request: {requested:?}");
    assert!(requested.iter().all(|url| own_origin(&url)), "{requested:?}");
    let blocked: Vec<Value> = browser
        .log("browser")
        .into_iter()
        .filter(|entry| entry["level"] == "SEVERE" || entry["message"].to_string().contains("Content Security Policy"))
        .collect();
    assert!(blocked.is_empty(), "{blocked:#?}");
}

//! What operators see of a failing provider: log lines and metrics say why, and clients do not learn where it is.

use crate::support::*;
use crate::tls::write_certificate;
use serde_json::json;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn log(weir: &Weir) -> Vec<String> {
    weir.process.stderr.lock().unwrap().clone()
}

fn failures(weir: &Weir, provider: &str, reason: &str) -> f64 {
    weir.metric(&format!("weir_upstream_failures_total{{provider=\"{provider}\",reason=\"{reason}\"}}"))
}

#[test]
fn the_cause_of_a_failure_is_in_the_log_and_the_metrics_and_not_in_the_response() {
    let sim = Sim::start();
    let directory = tempfile::tempdir().unwrap();
    write_certificate(directory.path(), "server");
    let closed = closed_port();
    let tls = crate::tls::with_tls(directory.path(), "").start(&sim);
    let weir = Config::shipped()
        .env("VECTARA_BASE_URL", &format!("http://{closed}"))
        .env("PALANTIR_BASE_URL", "https://nowhere.invalid")
        // Its certificate is signed by nobody that Weir trusts.
        .env("AGENTHUMAN_BASE_URL", &format!("https://localhost:{}", tls.http.port()))
        .start(&sim);
    let native = "/vectara/v2/agents/agt_load_1/other";
    for (provider, targets, reason, cause) in [
        ("vectara", vec![VECTARA, native], "refused", closed.to_string()),
        ("palantir", vec![PALANTIR], "dns", "nowhere.invalid cannot be resolved".to_owned()),
        ("agenthuman", vec![AGENTHUMAN], "tls", "the TLS handshake with localhost".to_owned()),
    ] {
        assert!(weir.metrics().contains(&format!("{{provider=\"{provider}\",reason=\"{reason}\"}} 0")), "{provider}");
        for target in &targets {
            let before = failures(&weir, provider, reason);
            let response = weir.get(target);
            let body = String::from_utf8_lossy(&response.body).into_owned();
            assert_eq!(response.status, 502, "{provider}: {body}");
            assert!(body.contains("the provider is unreachable"), "{body}");
            for place in ["nowhere", "127.0.0.1", "localhost", &closed.port().to_string()] {
                assert!(!body.contains(place), "{provider}: {body} tells {place}");
            }
            assert!(failures(&weir, provider, reason) > before, "{target}");
        }
        let lines = log(&weir);
        let of_provider: Vec<&String> = lines
            .iter()
            .filter(|line| line.contains("provider fails") && line.contains(&format!("provider=\"{provider}\"")))
            .collect();
        assert_eq!(of_provider.len(), 1, "{lines:?}");
        assert!(is_log_line(of_provider[0], "WARN", "provider fails"), "{of_provider:?}");
        assert!(of_provider[0].contains(reason) && of_provider[0].contains(&cause), "{of_provider:?}");
    }
}

#[test]
fn an_outage_and_its_end_are_a_few_log_lines() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/vectara.yaml", "open_for: 10s", "open_for: 100ms")
        .edit("providers/vectara.yaml", "stale_if_error: 10m", "stale_if_error: 0s")
        .start(&sim);
    sim.set_response("/v2/", 500, &json!({}), "{}");
    let get = |n: usize| weir.get_with(&format!("/v1/sessions/vectara:agt_load_{}:ase_{n}", n % 7), &[]).status;
    for n in 0..40 {
        assert!(matches!(get(n), 502 | 503));
        std::thread::sleep(Duration::from_millis(10));
    }
    wait_for_log(&weir.process.stderr, "WARN", "provider fails");
    wait_for_log(&weir.process.stderr, "WARN", "breaker open:");
    wait_for_log(&weir.process.stderr, "INFO", "breaker half-open");
    sim.clear_faults();
    wait_until("the provider works again", || weir.get(VECTARA).status == 200);
    wait_for_log(&weir.process.stderr, "INFO", "breaker closed");
    let lines = log(&weir);
    let about = lines.iter().filter(|line| line.contains("provider=\"vectara\"")).count();
    assert!(about <= 5, "{about} lines: {lines:?}");
    assert!(lines.iter().any(|line| line.contains("status 500")), "{lines:?}");
}

#[test]
fn counters_of_providers_and_clients_exist_before_their_first_count() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let metrics = weir.metrics();
    for series in [
        "weir_upstream_failures_total{provider=\"palantir\",reason=\"connect_timeout\"} 0",
        "weir_upstream_refused_total{provider=\"palantir\",reason=\"breaker\"} 0",
        "weir_upstream_retries_total{provider=\"palantir\",result=\"made\"} 0",
        "weir_cache_requests_total{provider=\"palantir\",result=\"stale\"} 0",
        "weir_http_problems_total{client=\"open\",code=\"provider_error\",provider=\"palantir\"} 0",
        "weir_trace_exports_total{result=\"failed\"} 0",
    ] {
        assert!(metrics.lines().any(|line| line == series), "{series} does not exist");
    }
}

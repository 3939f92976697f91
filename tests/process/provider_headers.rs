//! Headers of a provider's response: URLs that lead to the provider, and headers about the provider's host.

use crate::scripted_provider::*;
use crate::support::*;

/// Targets of one provider: a native read, a request that is forwarded, and a unified read.
const ROUTES: [(&str, &str); 4] = [
    ("GET", "/agenthuman/v1/sessions/sess_N"),
    ("GET", "/agenthuman/v1/usage"),
    ("POST", "/agenthuman/v1/sessions"),
    ("GET", "/v1/sessions/sess_N"),
];

fn start(provider: &ScriptedProvider, base: &str) -> (Sim, Weir) {
    let sim = Sim::start();
    let weir = unlimited().env("AGENTHUMAN_BASE_URL", &format!("{}{base}", provider.base_url())).start(&sim);
    (sim, weir)
}

/// Returns the values of a header in the text of a response.
fn values<'r>(response: &'r str, name: &str) -> Vec<&'r str> {
    let head = response.split("\r\n\r\n").next().unwrap();
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
}

#[test]
fn no_spelling_of_the_providers_address_reaches_a_client_in_a_url() {
    let provider = ScriptedProvider::start();
    let (_sim, weir) = start(&provider, "/base");
    let port = provider.address.port();
    let address = format!("127.0.0.1:{port}");
    // URLs below the base URL, and others at the provider's host.
    let below = [
        format!("http://{address}/base/v1/next?a=b"),
        format!("HTTP://{address}/base/v1/next?a=b"),
        format!("https://{address}/base/v1/next?a=b"),
        format!("//{address}/base/v1/next?a=b"),
        format!("\\\\{address}\\base/v1/next?a=b"),
        format!("/\\{address}/base/v1/next?a=b"),
        format!("http:{address}/base/v1/next?a=b"),
        format!("http://user:password@{address}/base/v1/next?a=b"),
        format!("http://2130706433:{port}/base/v1/next?a=b"),
        format!("http://0x7f.1:{port}/base/v1/next?a=b"),
        format!("http://127.0.0.%31:{port}/base/v1/next?a=b"),
        format!("http://{address}/base/x/../v1/next?a=b"),
        format!("ht\ttp://{address}/base/v1/next?a=b"),
        "/base/v1/next?a=b".to_owned(),
    ];
    let elsewhere = [
        format!("http://{address}/login"),
        format!("http://{address}/based"),
        "http://127.0.0.1/base/v1/next".to_owned(),
        format!("//127.0.0.1:{}/base", port ^ 1),
        format!("ws://{address}/base/v1/next"),
        "/login".to_owned(),
    ];
    for (urls, expected) in [(&below[..], Some("/agenthuman/v1/next?a=b")), (&elsewhere[..], None)] {
        for url in urls {
            for code in [201, 302] {
                let headers = format!(
                    "Location: {url}\r\nContent-Location: {url}\r\nLink: <{url}>; rel=\"next\", <https://other.example/>; rel=x\r\nRefresh: 5; url={url}\r\n"
                );
                provider.respond(code, &headers, b"{\"session\":{}}");
                for (method, target) in ROUTES {
                    for (version, response) in on_every_version(&weir, method, target, &[]) {
                        let what = format!("{url} {code} {method} {target} {version}: {response}");
                        let head = response.split("\r\n\r\n").next().unwrap();
                        assert!(!head.contains("127.0.0.1") && !head.contains(&port.to_string()), "{what}");
                        let is_read = target.contains("sess_N");
                        if target.starts_with("/v1/") || is_read && code == 201 {
                            // Weir's own response, or a body only.
                            continue;
                        }
                        assert_eq!(status(&response), code, "{what}");
                        let expected: Vec<&str> = expected.into_iter().collect();
                        assert_eq!(values(&response, "location"), expected, "{what}");
                        assert_eq!(values(&response, "content-location"), expected, "{what}");
                        let link: String = expected.iter().map(|url| format!("<{url}>; rel=\"next\", ")).collect();
                        assert_eq!(
                            values(&response, "link"),
                            [format!("{link}<https://other.example/>; rel=x")],
                            "{what}"
                        );
                        let refresh: Vec<String> = expected.iter().map(|url| format!("5; url={url}")).collect();
                        assert_eq!(values(&response, "refresh"), refresh, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn urls_that_do_not_lead_to_the_provider_stay() {
    let provider = ScriptedProvider::start();
    let (_sim, weir) = start(&provider, "");
    for url in ["https://other.example/127.0.0.1", "next?a=b", "../next", "?a=b", "#x"] {
        provider.respond(
            302,
            &format!("Location: {url}\r\nLink: <{url}>; rel=next\r\nRefresh: 0;url={url}\r\n"),
            b"{}",
        );
        for (method, target) in [ROUTES[1], ROUTES[2]] {
            for (version, response) in on_every_version(&weir, method, target, &[]) {
                assert_eq!(values(&response, "location"), [url], "{method} {target} {version}: {response}");
                assert_eq!(values(&response, "refresh"), [format!("0;url={url}")]);
                assert!(url.contains("127.0.0.1") || values(&response, "link") == [format!("<{url}>; rel=next")]);
            }
        }
    }
    // Each of several fields is rewritten.
    let headers = format!(
        "Link: <https://other.example/>; rel=a\r\nLink: <{0}/v1/b>; rel=b\r\nLocation: https://other.example/\r\nLocation: {0}/c\r\n",
        provider.base_url()
    );
    provider.respond(200, &headers, b"{}");
    for (_, response) in on_every_version(&weir, "POST", "/agenthuman/v1/sessions", &[]) {
        assert_eq!(
            values(&response, "link"),
            ["<https://other.example/>; rel=a", "</agenthuman/v1/b>; rel=b"],
            "{response}"
        );
        assert_eq!(values(&response, "location"), ["https://other.example/", "/agenthuman/c"], "{response}");
    }
}

#[test]
fn headers_about_the_providers_host_do_not_reach_clients() {
    let provider = ScriptedProvider::start();
    let (_sim, weir) = start(&provider, "");
    let names = [
        "Strict-Transport-Security",
        "Clear-Site-Data",
        "Set-Cookie",
        "Set-Cookie2",
        "Public-Key-Pins",
        "Public-Key-Pins-Report-Only",
        "NEL",
        "Report-To",
        "Reporting-Endpoints",
        "Alt-Svc",
        "Expect-CT",
        "Service-Worker-Allowed",
        "Origin-Agent-Cluster",
        "Accept-CH",
        "Critical-CH",
        "P3P",
        "Onion-Location",
        "Timing-Allow-Origin",
        "Access-Control-Allow-Origin",
        "X-Accel-Redirect",
        "Surrogate-Control",
        "CDN-Cache-Control",
        "Proxy-Authenticate",
        "X-Permitted-Cross-Domain-Policies",
    ];
    let headers: String = names.iter().map(|name| format!("{name}: of-the-provider\r\n")).collect();
    let interim = format!("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n{headers}\r\n");
    let sent = format!("{headers}X-Own: kept\r\n");
    let mut number = 0;
    for code in [200, 302, 404, 500] {
        let body = if code == 200 { &b"{\"session\":{\"session_id\":\"sess_N\"}}"[..] } else { b"{\"error\":\"e\"}" };
        for interim in ["", &*interim] {
            provider.respond_with_interim(interim, code, &sent, body);
            number += 1;
            for (method, target) in ROUTES {
                let target = target.replace("sess_N", &format!("sess_N{number}"));
                // The second time, reads come from the cache.
                for _ in 0..2 {
                    for (version, response) in on_every_version(&weir, method, &target, &[]) {
                        let what = format!("{code} {method} {target} {version}: {response}");
                        assert!(!response.contains("of-the-provider"), "{what}");
                        let own = response.to_ascii_lowercase().contains("x-own: kept");
                        assert_eq!(
                            own,
                            !target.starts_with("/v1/") && (code != 200 || !target.contains("sess_N")),
                            "{what}"
                        );
                    }
                }
            }
        }
    }
}

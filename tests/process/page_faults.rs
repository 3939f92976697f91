//! Pages that do not say how their list goes on, or lead elsewhere: the source says that it failed, and nothing ends
//! silently.

use crate::lists::purge_all;
use crate::paged_provider::*;
use crate::support::*;
use serde_json::{Value, json};

fn path(kind: &str) -> String {
    format!("/v1/sessions?provider={kind}&limit=100")
}

fn start() -> (Sim, PagedProvider, Weir) {
    let (sim, provider) = (Sim::start(), PagedProvider::start());
    let weir = provider.config().start(&sim);
    (sim, provider, weir)
}

/// Reads a list whose source fails after some pages. Returns its sessions and the cause.
fn cut(weir: &Weir, kind: &str) -> (usize, String) {
    purge_all(weir);
    let response = weir.get(&path(kind));
    assert_eq!(response.status, 200, "{kind}: {}", String::from_utf8_lossy(&response.body));
    let page = response.json();
    let source = &page["sources"][0];
    assert_eq!((&page["partial"], &source["state"]), (&json!(true), &json!("failed")), "{kind}: {page}");
    assert_eq!(source["error"]["code"], "provider_invalid_response", "{kind}: {page}");
    assert_eq!((&page["next_page_token"], &page["total_count"]), (&Value::Null, &Value::Null), "{kind}: {page}");
    let detail = source["error"]["detail"].as_str().unwrap().to_owned();
    (page["sessions"].as_array().unwrap().len(), detail)
}

/// Reads a list whose first page cannot be used. Returns the cause.
fn unusable(weir: &Weir, kind: &str) -> String {
    purge_all(weir);
    let response = weir.get(&path(kind));
    assert_eq!(response.code(), (502, "provider_invalid_response".into()), "{kind}");
    response.json()["detail"].as_str().unwrap().to_owned()
}

#[test]
fn a_missing_end_is_not_the_end() {
    let (_sim, provider, weir) = start();
    for kind in ["token", "last-more", "number-more", "offset-more"] {
        for value in [Value::Null, json!("yes"), json!(1), json!({})] {
            provider.fill(20);
            provider.set(|listing| drop(listing.body.insert("more", value.clone())));
            let cause = unusable(&weir, kind);
            assert!(cause.contains("neither true nor false at $.more"), "{kind}, {value}: {cause}");
        }
        for value in ["true", "false"] {
            provider.fill(3);
            provider.set(|listing| drop(listing.body.insert("more", json!(value))));
            purge_all(&weir);
            let page = weir.get(&path(kind)).json();
            assert_eq!(page["sessions"].as_array().unwrap().len(), 3, "{kind}, {value} as text: {page}");
            assert_eq!(page["partial"], value == "true", "{kind}: {page}");
        }
    }
    for kind in ["number-total", "offset-total"] {
        for value in ["", "many", "-1"] {
            provider.fill(20);
            provider.set(|listing| drop(listing.headers.insert("X-Total-Count", value.into())));
            let cause = unusable(&weir, kind);
            assert!(cause.contains("no number of all sessions at the header x-total-count"), "{kind}: {cause}");
        }
    }
}

#[test]
fn a_page_without_a_way_to_the_sessions_that_follow_is_not_the_last_one() {
    let (_sim, provider, weir) = start();
    provider.fill(20);
    provider.set(|listing| drop(listing.body.insert("next", Value::Null)));
    let (sessions, cause) = cut(&weir, "token");
    assert_eq!(sessions, 7);
    assert!(cause.contains("no way to them (next.token)"), "{cause}");
    // Without more, a missing token is the end.
    purge_all(&weir);
    assert_eq!(weir.get(&path("text")).json()["partial"], false);
    provider.fill(0);
    provider.set(|listing| drop(listing.body.insert("more", json!(true))));
    for (kind, expected) in [("last-more", "no way to them (next.last)"), ("number-more", "the page has none")] {
        let (sessions, cause) = cut(&weir, kind);
        assert!(sessions == 0 && cause.contains(expected), "{kind}: {cause}");
    }
}

#[test]
fn an_end_that_contradicts_the_total_is_named() {
    let (_sim, provider, weir) = start();
    // A page of five sessions looks like the last one of the file, whose pages have seven.
    provider.fill(20);
    provider.set(|listing| listing.cap = Some(5));
    for kind in ["last-short", "number-short", "offset-short"] {
        let (sessions, cause) = cut(&weir, kind);
        assert_eq!(sessions, 5, "{kind}");
        assert!(cause.contains("ends after 5 sessions, but the provider says that it has 20"), "{kind}: {cause}");
    }
    // The others read on.
    for kind in
        ["last-empty", "last-more", "number-empty", "number-total", "number-more", "offset-empty", "offset-total"]
    {
        purge_all(&weir);
        let page = weir.get(&path(kind)).json();
        assert_eq!((page["sessions"].as_array().unwrap().len(), &page["partial"]), (20, &json!(false)), "{kind}");
    }
    // The total promises sessions that do not exist.
    provider.fill(20);
    provider.set(|listing| {
        listing.headers.insert("X-Total-Count", "23".into());
        listing.body.insert("total", json!(23));
    });
    for kind in ["last-short", "last-empty", "number-short", "number-empty", "offset-short", "offset-empty"] {
        let (sessions, cause) = cut(&weir, kind);
        assert!(sessions == 20 && cause.contains("ends after 20 sessions"), "{kind}: {cause}");
    }
    for kind in ["number-total", "offset-total"] {
        let (sessions, cause) = cut(&weir, kind);
        assert!(sessions == 20 && cause.contains("ends after 20 sessions"), "{kind}: {cause}");
    }
}

#[test]
fn a_provider_that_ignores_the_pages_number_gives_every_session_once() {
    let (sim, provider) = (Sim::start(), PagedProvider::start());
    let config = provider.config();
    for (kind, wrong) in [("number-more", "page: '{page}'"), ("offset-more", "skip: '{offset}'")] {
        let right = wrong.replace("page:", "ignored:").replace("skip:", "ignored:");
        config.change(&format!("providers/{kind}.yaml"), wrong, &right);
    }
    let weir = config.start(&sim);
    provider.fill(20);
    for kind in ["number-more", "offset-more"] {
        let (sessions, cause) = cut(&weir, kind);
        assert!(sessions == 7 && cause.contains("same page again"), "{kind}: {cause}");
    }
}

#[test]
fn a_url_that_leads_elsewhere_is_named_and_not_followed() {
    let (_sim, provider, weir) = start();
    let (here, elsewhere) = (provider.address, PagedProvider::start());
    elsewhere.fill(20);
    let cases = |kind: &str| {
        [
            (format!("http://{}/{kind}/things?token=7", elsewhere.address), "another port"),
            (format!("//{}/{kind}/things?token=7", elsewhere.address), "another port"),
            (format!("http://localhost:{}/{kind}/things?token=7", here.port()), "another host"),
            (format!("https://{here}/{kind}/things?token=7"), "another scheme"),
            (format!("http://{here}/{kind}/others?token=7"), "another path"),
            (format!("http://{here}/{kind}/things/../others?token=7"), "another path"),
            (format!("http://{here}/{kind}/things/%2e%2e/others?token=7"), "another path"),
            (format!("http://{here}//{kind}/things?token=7"), "another path"),
            ("/things?token=7".into(), "another path"),
            (format!("http://user:pass@{here}/{kind}/things?token=7"), "a user name"),
            (format!("http://{here}\\@evil.example/{kind}/things?token=7"), "not a URL"),
            (format!("?token=7&access_token={}", "x".repeat(9)), "\"access_token\""),
            ("?token=7&_method=DELETE".into(), "\"_method\""),
            (format!("?token=7&x={}", "x".repeat(3000)), "2048 bytes"),
            (format!("?token=7&x={}", "x".repeat(7900)), "2048 bytes"),
            ("#token=7".into(), "no query"),
        ]
    };
    for kind in ["url", "link"] {
        for (url, expected) in cases(kind) {
            provider.fill(20);
            provider.set(|listing| {
                listing.body.insert("url", json!(url));
                listing.headers.insert("Link", format!("<{url}>; rel=\"next\""));
            });
            let (sessions, cause) = cut(&weir, kind);
            assert!(sessions == 7 && cause.contains(expected), "{kind}, {url}: {cause}");
            assert!(!cause.contains("token=7"), "the message has no part of the URL: {cause}");
            assert_eq!(provider.take_targets().len(), 1, "{kind}, {url}");
        }
    }
    assert_eq!(elsewhere.take_targets(), Vec::<String>::new(), "nothing was sent elsewhere");
    // What is no URL at all is not the end either.
    provider.fill(20);
    provider.set(|listing| {
        listing.body.insert("url", json!({ "href": "?token=7" }));
        listing.headers.insert("Link", "</things?token=7; rel=\"next\"".into());
    });
    assert!(unusable(&weir, "url").contains("URL is not text"));
    assert!(unusable(&weir, "link").contains("Link header of the response cannot be read"));
    // Missing, null and empty are the end.
    for value in [Value::Null, json!("")] {
        provider.fill(20);
        provider.set(|listing| {
            listing.body.insert("url", value);
            listing.headers.insert("Link", String::new());
        });
        for kind in ["url", "link"] {
            purge_all(&weir);
            let page = weir.get(&path(kind)).json();
            assert_eq!((&page["partial"], page["sessions"].as_array().unwrap().len()), (&json!(false), 7), "{kind}");
        }
    }
}

#[test]
fn a_page_token_keeps_its_meaning_across_a_reload_or_is_refused() {
    let (_sim, provider, weir) = start();
    provider.fill(20);
    let first = weir.get("/v1/sessions?provider=number-short&limit=10").json();
    let next = format!(
        "/v1/sessions?provider=number-short&limit=100&page_token={}",
        first["next_page_token"].as_str().unwrap()
    );
    // The pages of a token keep their size, so a smaller one is not the end of the list.
    weir.config.change("providers/number-short.yaml", "max_limit: 7", "max_limit: 9");
    assert_eq!(weir.reload().0, 200);
    let rest = weir.get(&next).json();
    assert_eq!(rest["partial"], false, "{rest}");
    assert_eq!(rest["sessions"].as_array().unwrap().len(), 10, "{rest}");
    let file = provider.file("number-short", "skip: '{offset}'", "{ offset: 0, end: short }", None);
    weir.config.write("providers/number-short.yaml", &file);
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get(&next).code(), (400, "invalid_request".into()));
}

#[test]
fn a_native_list_shares_the_entries_and_keeps_the_headers_of_its_pages() {
    let (_sim, provider, weir) = start();
    provider.fill(20);
    let whole = weir.get(&path("offset-short"));
    assert_eq!(whole.json()["sessions"].as_array().unwrap().len(), 20);
    assert_eq!(
        provider.take_targets(),
        [
            "/offset-short/things?limit=7&skip=0",
            "/offset-short/things?limit=7&skip=6",
            "/offset-short/things?limit=7&skip=12",
            "/offset-short/things?limit=7&skip=18"
        ]
    );
    // The same pages, by the client's own parameters.
    for (target, served) in [("limit=7&skip=6", true), ("skip=12&limit=7", true), ("limit=3&skip=6", false)] {
        let page = weir.get(&format!("/offset-short/things?{target}"));
        assert_eq!(page.status, 200);
        assert_eq!(provider.take_targets().is_empty(), served, "{target}");
    }
    // The headers lead a native client to the next page at Weir, from the provider and from the cache.
    for way in ["from the provider", "from the cache"] {
        let page = weir.get("/link/things?limit=7");
        let link = page.header("link").unwrap_or_default().to_owned();
        assert!(link.contains("</link/things?limit=7&token=7>; rel=\"next\""), "{way}: {link}");
        assert_eq!(page.header("x-total-count"), Some("20"), "{way}");
        assert_eq!(weir.get("/header/things?limit=7").header("x-next-cursor"), Some("7"), "{way}");
        let unnamed = weir.get("/token/things?limit=7");
        assert_eq!((unnamed.header("link"), unnamed.header("x-next-cursor")), (None, None), "{way}");
    }
    assert_eq!(provider.take_targets().len(), 3);
    // The unified list goes on from the stored page.
    let unified = weir.get(&path("link")).json();
    assert_eq!((unified["sessions"].as_array().unwrap().len(), &unified["total_count"]), (20, &json!(20)));
    assert_eq!(provider.take_targets().len(), 2);
}

#[test]
fn a_stored_page_without_a_header_that_a_reload_names_is_requested_again() {
    let (_sim, provider, weir) = start();
    provider.fill(20);
    assert_eq!(weir.get(&path("text")).json()["sessions"].as_array().unwrap().len(), 20);
    provider.take_targets();
    let file =
        provider.file("text", "token: '{page_token}'", "{ header: X-Next-Cursor }", Some("{ header: X-Total-Count }"));
    weir.config.write("providers/text.yaml", &file);
    assert_eq!(weir.reload().0, 200);
    let page = weir.get(&path("text")).json();
    assert_eq!((page["sessions"].as_array().unwrap().len(), &page["total_count"]), (20, &json!(20)), "{page}");
    assert_eq!(provider.take_targets().len(), 3);
}

#[test]
fn each_fault_of_a_page_rule_has_its_own_message() {
    let provider = PagedProvider::start();
    let token = "token: '{page_token}'";
    for (parameters, next, total, message) in [
        (
            token,
            "{ token: $.next, header: X-Next }",
            None,
            "exactly one of token, header, last, number, offset, url and link, and has token and header",
        ),
        (token, "{ more: $.more }", None, "and has none of them"),
        (token, "{ token: next }", None, "it must start with $"),
        (token, "{ tokn: $.next }", None, "unknown key \"tokn\"; did you mean \"token\"?"),
        (token, "{ token: $.next, end: short }", None, "end cannot be beside token"),
        (token, "{ header: X-Next, more: $.more }", None, "more cannot be beside header"),
        (token, "{ header: 'X Next' }", None, "\"X Next\" is not the name of a header"),
        (token, "{ header: Content-Length }", None, "the header Content-Length has another meaning"),
        (token, "{ header: Set-Cookie }", None, "the header Set-Cookie has another meaning"),
        (
            token,
            "{ last: $.id }",
            None,
            "next with last does not say where the list ends; add more: the JSONPath of a boolean, or end: short, empty",
        ),
        (token, "{ last: $.id, end: total }", Some("$.total"), "end: total needs number or offset"),
        (token, "{ last: $.id, end: never }", None, "unknown end \"never\"; expected one of: short, empty, total"),
        (token, "{ number: 1, end: short }", None, "but next: is number, which needs {page}"),
        (token, "none", None, "{page_token} needs next: the JSONPath of the next page's token, but next: is none"),
        (
            "page: '{page}'",
            "{ number: 1 }",
            None,
            "next with number does not say where the list ends; add more: the JSONPath of a boolean, or end: short, empty or total",
        ),
        ("page: '{page}'", "{ number: 2, end: short }", None, "\"2\" is not a number to count from; write 0 or 1"),
        ("page: '{page}'", "{ number: one, end: short }", None, "\"one\" is not a number to count from; write 0 or 1"),
        ("page: '{page}'", "{ number: 1, end: short, more: $.more }", None, "next has more and end"),
        ("page: '{page}'", "{ number: 1, end: total }", None, "end: total needs total:"),
        ("page: '{page}'", "{ offset: 0, end: short }", None, "but next: is offset, which needs {offset}"),
        ("page: '{page}'", "$.next", None, "{page} needs next: { number: 1 } and its end, but next: is token"),
        (
            "skip: '{offset}'",
            "{ url: $.url }",
            None,
            "{offset} needs next: { offset: 0 } and its end, but next: is url",
        ),
        (token, "{ link: next }", None, "but next: is link"),
        ("", "{ link: '<next>' }", None, "\"<next>\" is not the name of a link relation; write next"),
        ("", "{ url: $.url, end: short }", None, "end cannot be beside url"),
        ("", "{ link: next, more: $.more }", None, "more cannot be beside link"),
        ("", "{ token: $.next }", None, "next: names a page token, so a query parameter must send {page_token}"),
        ("", "{ number: 1, end: short }", None, "counts with number, so a query parameter must send {page}"),
        ("", "{ offset: 0, end: short }", None, "counts with offset, so a query parameter must send {offset}"),
        ("", "{ url: $.url }", Some("{ header: Date }"), "the header Date has another meaning"),
        ("", "{ url: $.url }", Some("{}"), "missing key \"header\""),
        ("", "[ $.a, $.b ]", None, "this must be a single value"),
    ] {
        let config = Config::shipped();
        config.write("providers/paged.yaml", &provider.file("paged", parameters, next, total));
        let (code, lines) = config.check();
        assert_eq!(code, 1, "{next}: {lines:#?}");
        let (mine, others): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.contains(message));
        assert_eq!(mine.len(), 1, "{next}: {lines:#?}");
        assert!(mine[0].starts_with("providers/paged.yaml:"), "{next}: {lines:#?}");
        assert!(others.iter().all(|line| !line.starts_with("providers/")), "{next} has another fault: {lines:#?}");
    }
    let short = provider.file("paged", "page: '{page}'", "{ number: 1, end: short }", None);
    let config = Config::shipped();
    config.write("providers/paged.yaml", &short.replace(&format!("    max_limit: {PAGE}\n"), ""));
    let (code, lines) = config.check();
    assert!(code == 1 && lines.iter().any(|line| line.contains("end: short needs max_limit")), "{lines:#?}");
    config
        .write("providers/paged.yaml", &short.replace("\"GET /things/{session}\"", "\"GET /things/{session}/{page}\""));
    let (code, lines) = config.check();
    assert!(code == 1 && lines.iter().any(|line| line.contains("{page} is only for lists")), "{lines:#?}");
}

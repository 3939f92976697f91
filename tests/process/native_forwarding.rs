//! Native forwarding: the request that Weir sends to the provider, its credential, and the address.

use crate::native_client::*;
use crate::support::*;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

#[test]
fn a_forwarded_request_contains_no_key_cookie_or_address_of_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let provider = listener.local_addr().unwrap();
    let forwarded = std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        let (mut head, mut reader) = (String::new(), BufReader::new(socket.try_clone().unwrap()));
        while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
        let mut body = [0; 4];
        reader.read_exact(&mut body).unwrap();
        let response = "HTTP/1.1 302 Found\r\nLocation: http://HOST/base/v2/next?x=1\r\nSet-Cookie: their=cookie\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Kept: 1\r\nContent-Length: 0\r\n\r\n";
        socket.write_all(response.replace("HOST", &provider.to_string()).as_bytes()).unwrap();
        head
    });
    let sim = Sim::start();
    let weir = Config::shipped().env("VECTARA_BASE_URL", &format!("http://{provider}/base")).start(&sim);
    let headers = [
        ("X-API-Key", "open"),
        ("Authorization", "Bearer open"),
        ("Cookie", "session=secret"),
        ("Connection", "close, X-Named"),
        ("X-Named", "hop"),
        ("Request-Timeout", "7"),
        ("X_API_KEY", "some servers read an underscore as a hyphen"),
        ("Content_Length", "9"),
        ("Forwarded", "for=6.6.6.6"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-Host", "6.6.6.6"),
        ("X-Real-IP", "6.6.6.6"),
        ("Content-Length", "4"),
    ];
    let mut text = String::from("POST /vectara/v2/a%2Fb/c?q=%20x&y HTTP/1.1\r\nHost: weir.example\r\n");
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    let response = send_bytes(weir.http, format!("{text}\r\nbody").as_bytes());
    let head = forwarded.join().unwrap();
    assert!(head.starts_with("POST /base/v2/a%2Fb/c?q=%20x&y HTTP/1.1\r\n"), "{head}");
    let lower = head.to_ascii_lowercase();
    assert!(lower.contains(&format!("host: {provider}\r\n")) && lower.contains("x-api-key: zut_sim\r\n"), "{head}");
    assert!(lower.contains("request-timeout: 7\r\n"), "{head}");
    for removed in ["open", "secret", "x-named", "weir.example", "cookie", "x_api_key", "content_length", "6.6.6.6"] {
        assert!(!lower.contains(removed), "{removed}: {head}");
    }
    assert_eq!((response.status, response.header("location")), (302, Some("/vectara/v2/next?x=1")));
    let trace = send(weir.http, "TRACE", "/vectara/v2/x", &[("X-API-Key", "open")]);
    assert_eq!((trace.status, trace.header("allow").is_some()), (405, true), "TRACE would return the credential");
    assert_eq!(
        (response.header("set-cookie"), response.header("x-hop"), response.header("x-kept")),
        (None, None, Some("1"))
    );
}

#[test]
fn weir_tries_the_other_addresses_of_a_host_name() {
    // `localhost` is also [::1], where nothing listens.
    let sim = Sim::start();
    let weir =
        Config::shipped().env("VECTARA_BASE_URL", &format!("http://localhost:{}", sim.address.port())).start(&sim);
    for _ in 0..3 {
        let response = vectara(&weir, "POST", &format!("{VECTARA_SESSION}/events"), Some(&json!({})));
        assert_eq!(response.status, 201, "{}", response.json());
    }
}

#[test]
fn the_simulator_can_delay_writes_and_oauth2_tokens() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit(
            "providers/vectara.yaml",
            "credentials: { header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }",
            "credentials: { oauth2: { token_url: \"${VECTARA_BASE_URL}/oauth2/token\", client_id: sim-client, client_secret: sim-secret } }",
        )
        .start(&sim);
    sim.plan(&json!({ "path": "/", "latency_ms": 50 }));
    assert_eq!(vectara(&weir, "PATCH", VECTARA_SESSION, Some(&json!({ "name": "late" }))).json()["name"], "late");
    assert_eq!(vectara(&weir, "GET", VECTARA_SESSION, None).json()["name"], "late");
}

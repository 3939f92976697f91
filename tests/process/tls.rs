//! Tests of TLS: certificates, client certificates, and reloads of both.

use crate::support::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Writes a self-signed certificate for localhost and its key: `name.crt` and `name.key`.
pub fn write_certificate(directory: &Path, name: &str) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    std::fs::write(directory.join(format!("{name}.crt")), made.cert.pem()).unwrap();
    std::fs::write(directory.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
}

/// Writes a CA (`ca.crt`) and a client certificate that it signed (`client.crt`, `client.key`).
fn write_client_ca(directory: &Path) {
    let (ca_key, client_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let client = CertificateParams::new(["a client".to_owned()]).unwrap().signed_by(&client_key, &issuer).unwrap();
    std::fs::write(directory.join("ca.crt"), ca.pem()).unwrap();
    std::fs::write(directory.join("client.crt"), client.pem()).unwrap();
    std::fs::write(directory.join("client.key"), client_key.serialize_pem()).unwrap();
}

/// A configuration whose listener uses TLS; `more` is appended to its `tls` mapping.
pub fn with_tls(directory: &Path, more: &str) -> Config {
    let (certificate, key) = (directory.join("server.crt"), directory.join("server.key"));
    Config::shipped().edit(
        "weir.yaml",
        "  - address: ${WEIR_LISTEN:-127.0.0.1:8080}\n",
        &format!(
            "  - address: ${{WEIR_LISTEN:-127.0.0.1:8080}}\n    tls: {{ certificate: {}, key: {}{more} }}\n",
            certificate.display(),
            key.display()
        ),
    )
}

/// Sends a request with curl. Returns the status and the HTTP version, or curl's exit code.
pub fn curl(address: SocketAddr, scheme: &str, options: &[&str]) -> Result<String, i32> {
    let url = format!("{scheme}://localhost:{}{VECTARA}", address.port());
    let mut command = Command::new("curl");
    command.args([
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{http_version}",
        "-H",
        "X-API-Key: open",
        "--max-time",
        "20",
    ]);
    let output = command
        .args(["--resolve", &format!("localhost:{}:127.0.0.1", address.port())])
        .args(options)
        .arg(url)
        .output()
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(output.status.code().unwrap_or(-1))
    }
}

#[test]
fn a_reload_replaces_a_certificate_and_rejects_an_invalid_one() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    write_certificate(directory.path(), "server");
    std::fs::copy(path("server.crt"), path("first.crt")).unwrap();
    let sim = Sim::start();
    let weir = with_tls(directory.path(), "").start(&sim);
    assert_eq!(curl(weir.http, "https", &["--cacert", &path("first.crt")]), Ok("200 2".into()));
    assert_eq!(curl(weir.http, "https", &["--http1.1", "--cacert", &path("first.crt")]), Ok("200 1.1".into()));
    assert!(curl(weir.http, "http", &[]).is_err(), "a TLS listener must not serve plain HTTP");
    write_certificate(directory.path(), "server");
    assert_eq!(weir.reload().0, 200);
    assert_eq!(curl(weir.http, "https", &["--cacert", &path("server.crt")]), Ok("200 2".into()));
    assert_eq!(
        curl(weir.http, "https", &["--cacert", &path("first.crt")]),
        Err(60),
        "the old certificate is no longer used"
    );
    std::fs::copy(path("server.crt"), path("second.crt")).unwrap();
    for (file, message) in [("server.crt", "no PEM certificate"), ("server.key", "no PEM private key")] {
        let good = std::fs::read(path(file)).unwrap();
        std::fs::write(path(file), "nonsense").unwrap();
        let (status, faults) = weir.reload();
        assert_eq!(status, 422, "{file}");
        assert!(faults.to_string().contains(message) && faults.to_string().contains("weir.yaml:"), "{faults}");
        assert_eq!(
            curl(weir.http, "https", &["--cacert", &path("second.crt")]),
            Ok("200 2".into()),
            "the valid certificate stays in use"
        );
        std::fs::write(path(file), good).unwrap();
    }
    assert!(weir.metric("weir_connections_ended_total{reason=\"tls\"}") >= 2.0);
    let mut stalled = TcpStream::connect(weir.http).unwrap();
    let _ = stalled.write_all(b"\x16");
    assert_eq!(
        curl(weir.http, "https", &["--cacert", &path("server.crt")]),
        Ok("200 2".into()),
        "a stalled handshake must not delay other connections"
    );
}

#[test]
fn with_client_ca_only_certificates_that_it_signed_are_accepted() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    write_certificate(directory.path(), "server");
    write_client_ca(directory.path());
    let sim = Sim::start();
    let weir = with_tls(directory.path(), &format!(", client_ca: {}", path("ca.crt"))).start(&sim);
    let (trust, own) = (path("server.crt"), [path("client.crt"), path("client.key")]);
    assert!(curl(weir.http, "https", &["--cacert", &trust]).is_err());
    write_certificate(directory.path(), "stranger");
    assert!(
        curl(
            weir.http,
            "https",
            &["--cacert", &trust, "--cert", &path("stranger.crt"), "--key", &path("stranger.key")]
        )
        .is_err()
    );
    assert_eq!(
        curl(weir.http, "https", &["--cacert", &trust, "--cert", &own[0], "--key", &own[1]]),
        Ok("200 2".into())
    );
}

#[test]
fn a_reload_does_not_weaken_the_tls_settings_of_a_listener() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    write_certificate(directory.path(), "server");
    write_client_ca(directory.path());
    let sim = Sim::start();
    let weir = with_tls(directory.path(), &format!(", client_ca: {}", path("ca.crt"))).start(&sim);
    let client_options = ["--cacert", &path("server.crt"), "--cert", &path("client.crt"), "--key", &path("client.key")];
    let written = weir.config.read("weir.yaml");
    let without = |from: &str| written.lines().filter(|line| !line.contains(from)).collect::<Vec<_>>().join("\n");
    let other_address = written.replace("${WEIR_LISTEN:-127.0.0.1:8080}", "127.0.0.1:1");
    let without_client_ca = written.replace(&format!(", client_ca: {}", path("ca.crt")), "");
    for (what, text) in
        [("address", &other_address), ("tls", &without("    tls: { certificate")), ("client_ca", &without_client_ca)]
    {
        assert_ne!(*text, written, "{what}");
        weir.config.write("weir.yaml", text);
        let mut reloaded = weir.reload();
        // The file watcher may have reloaded the change already; then another change is needed to see the result.
        if reloaded.1["result"] != "success" {
            weir.config.write("weir.yaml", &format!("{text}\n# {what}\n"));
            reloaded = weir.reload();
        }
        assert_eq!((reloaded.0, &reloaded.1["needs_restart"]), (200, &json!(["listen"])), "{what}: {reloaded:?}");
        let plain = format!("GET {VECTARA} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\nConnection: close\r\n\r\n");
        assert!(try_send_bytes(weir.http, plain.as_bytes()).is_err(), "{what}: served without TLS");
        assert!(curl(weir.http, "https", &client_options[..2]).is_err(), "{what}: served without a client certificate");
        assert_eq!(curl(weir.http, "https", &client_options), Ok("200 2".into()), "{what}");
    }
}

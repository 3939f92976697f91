//! Compiles the TLS settings of listeners, and reads when certificates expire.
//!
//! A reload can replace a certificate while connections are open. New connections use the new one.

use crate::base::model::Time;
use crate::config::edge::Tls;
use crate::config::faults::{Faults, Located};
use pingora::listeners::tls::Acceptor;
use std::sync::Arc;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use x509_parser::parse_x509_certificate;

/// Accepts the TLS handshakes of a listener.
pub(crate) type TlsAcceptor = Arc<Acceptor>;

/// Compiles a listener's TLS settings and adds every fault to `faults`. Supports TLS 1.2 and 1.3, HTTP/1.1 and HTTP/2.
pub(crate) fn compile(config: &Tls, faults: &mut Faults) -> Option<TlsAcceptor> {
    let chain = faults.keep(&config.certificate.location, certificates(&config.certificate));
    let key = PrivateKeyDer::from_pem_slice(config.key.value.0.as_bytes());
    let key = faults
        .keep(&config.key.location, key.map_err(|_| "the file contains no PEM private key (PKCS#8, PKCS#1 or SEC1)"));
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = faults.keep(&config.certificate.location, builder.map_err(|error| error.to_string()))?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            let (usable, _) = roots.add_parsable_certificates(faults.keep(&ca.location, certificates(ca))?);
            let usable = if usable > 0 { Ok(()) } else { Err("no certificate in the file can act as a CA") };
            faults.keep(&ca.location, usable)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(faults.keep(&ca.location, verifier.map_err(|error| error.to_string()))?)
        }
    };
    let server =
        builder.with_single_cert(chain?, key?).map_err(|error| format!("certificate and key do not match: {error}"));
    let mut server = faults.keep(&config.certificate.location, server)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Some(Arc::new(Acceptor::from_server_config(Arc::new(server))))
}

/// Returns when the first certificate of a listener's chain expires; handshakes fail after that. Returns `None` if the
/// chain cannot be parsed.
#[must_use]
pub(crate) fn expiry(config: &Tls) -> Option<Time> {
    let chain = certificates(&config.certificate).ok()?;
    let expiries =
        chain.iter().filter_map(|der| Some(parse_x509_certificate(der).ok()?.1.validity().not_after.timestamp()));
    expiries.min().map(|seconds| Time(seconds.saturating_mul(1000)))
}

fn certificates(pem: &Located<String>) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.value.as_bytes()).collect();
    certificates.ok().filter(|all| !all.is_empty()).ok_or("the file contains no PEM certificate")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode::Secret;
    use crate::config::faults::Location;

    fn faults(certificate: &str, key: &str, client_ca: Option<&str>) -> Vec<String> {
        let at = |text: &str| Located { value: text.to_owned(), location: Location::top(&"f".into()) };
        let key = Located { value: Secret(key.to_owned()), location: Location::top(&"f".into()) };
        let mut faults = Faults::default();
        let config = Tls { certificate: at(certificate), key, client_ca: client_ca.map(at) };
        let compiled = compile(&config, &mut faults);
        assert_eq!(compiled.is_some(), faults.is_empty());
        faults.sorted().into_iter().map(|fault| fault.message).collect()
    }

    #[test]
    fn a_chain_expires_with_its_first_expiring_certificate() {
        let certificate = |year| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params.self_signed(&key).unwrap().pem()
        };
        let at = |value| Located { value, location: Location::top(&"f".into()) };
        let expiry = |certificate: String| {
            let key = Located { value: Secret(String::new()), location: Location::top(&"f".into()) };
            super::expiry(&Tls { certificate: at(certificate), key, client_ca: None })
        };
        let (long, short) = (certificate(2040), certificate(2031));
        assert_eq!(expiry(long.clone() + &short), Some(Time(1_924_992_000_000)), "2031-01-01");
        assert_eq!(expiry(long), Some(Time(2_208_988_800_000)), "2040-01-01");
        assert_eq!(expiry("x".to_owned()), None);
    }

    #[test]
    fn each_invalid_part_has_a_fault() {
        let make = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (one, other) = (make(), make());
        let (certificate, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        assert!(faults(&certificate, &key, None).is_empty());
        assert!(faults(&certificate, &key, Some(&other.cert.pem())).is_empty());
        assert!(faults("x", &key, None)[0].contains("no PEM certificate"));
        assert!(faults(&certificate, "x", None)[0].contains("no PEM private key"));
        assert_eq!(faults("x", "y", None).len(), 2);
        assert!(faults(&certificate, &other.signing_key.serialize_pem(), None)[0].contains("do not match"));
        assert!(faults(&certificate, &key, Some("x"))[0].contains("no PEM certificate"));
    }
}

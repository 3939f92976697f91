//! TLS towards clients: certificates and keys made into what a handshake needs.
//!
//! A room of its own because a certificate is the one part of the configuration that ends by itself, and
//! that is replaced while connections are open. New connections are shown the newest.

use crate::config::edge::Tls;
use crate::config::faults::{At, Faults};
use crate::model::Time;
use pingora::listeners::tls::Acceptor;
use std::sync::Arc;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use x509_parser::parse_x509_certificate;

/// What a listener's handshakes are made with.
pub type Handshake = Arc<Acceptor>;

/// Compiles a listener's TLS, reporting every fault: HTTP/2 and HTTP/1.1, TLS 1.2 and 1.3.
pub fn compile(config: &Tls, faults: &mut Faults) -> Option<Handshake> {
    let chain = faults.keep(&config.certificate.place, certificates(&config.certificate));
    let key = PrivateKeyDer::from_pem_slice(config.key.value.0.as_bytes());
    let key = faults
        .keep(&config.key.place, key.map_err(|_| "this file holds no private key as PEM (PKCS#8, PKCS#1 or SEC1)"));
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = faults.keep(&config.certificate.place, builder.map_err(|error| error.to_string()))?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            let (known, _) = roots.add_parsable_certificates(faults.keep(&ca.place, certificates(ca))?);
            let known =
                if known > 0 { Ok(known) } else { Err("none of these certificates can be trusted as an authority") };
            faults.keep(&ca.place, known)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(faults.keep(&ca.place, verifier.map_err(|error| error.to_string()))?)
        }
    };
    let made =
        builder.with_single_cert(chain?, key?).map_err(|error| format!("certificate and key do not fit: {error}"));
    let mut made = faults.keep(&config.certificate.place, made)?;
    made.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Some(Arc::new(Acceptor::from_server_config(Arc::new(made))))
}

/// When the first certificate of a listener's chain ends: from then on handshakes fail. `None` for what no
/// handshake can be made with.
#[must_use]
pub fn expiry(config: &Tls) -> Option<Time> {
    let chain = certificates(&config.certificate).ok()?;
    let ends =
        chain.iter().filter_map(|der| Some(parse_x509_certificate(der).ok()?.1.validity().not_after.timestamp()));
    ends.min().map(|seconds| Time(seconds.saturating_mul(1000)))
}

fn certificates(pem: &At<String>) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.value.as_bytes()).collect();
    read.ok().filter(|all| !all.is_empty()).ok_or("this file holds no certificate as PEM")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode::Secret;
    use crate::config::faults::Place;

    fn faults(certificate: &str, key: &str, client_ca: Option<&str>) -> Vec<String> {
        let at = |text: &str| At { value: text.to_owned(), place: Place::top(&"f".into()) };
        let key = At { value: Secret(key.to_owned()), place: Place::top(&"f".into()) };
        let mut faults = Faults::default();
        let config = Tls { certificate: at(certificate), key, client_ca: client_ca.map(at) };
        let made = compile(&config, &mut faults);
        assert_eq!(made.is_some(), faults.is_empty());
        faults.sorted().into_iter().map(|fault| fault.message).collect()
    }

    #[test]
    fn a_chain_ends_with_the_first_of_its_certificates() {
        let until = |year| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params.self_signed(&key).unwrap().pem()
        };
        let at = |value| At { value, place: Place::top(&"f".into()) };
        let ends = |certificate: String| {
            let key = At { value: Secret(String::new()), place: Place::top(&"f".into()) };
            expiry(&Tls { certificate: at(certificate), key, client_ca: None })
        };
        let (long, short) = (until(2040), until(2031));
        assert_eq!(ends(long.clone() + &short), Some(Time(1_924_992_000_000)), "2031-01-01");
        assert_eq!(ends(long), Some(Time(2_208_988_800_000)), "2040-01-01");
        assert_eq!(ends("x".to_owned()), None);
    }

    #[test]
    fn each_part_that_is_wrong_is_named() {
        let make = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (one, other) = (make(), make());
        let (certificate, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        assert!(faults(&certificate, &key, None).is_empty());
        assert!(faults(&certificate, &key, Some(&other.cert.pem())).is_empty());
        assert!(faults("x", &key, None)[0].contains("no certificate"));
        assert!(faults(&certificate, "x", None)[0].contains("no private key"));
        assert_eq!(faults("x", "y", None).len(), 2);
        assert!(faults(&certificate, &other.signing_key.serialize_pem(), None)[0].contains("do not fit"));
        assert!(faults(&certificate, &key, Some("x"))[0].contains("no certificate"));
    }
}

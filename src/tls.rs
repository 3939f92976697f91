//! TLS towards clients: certificates and keys made into what a handshake needs.
//!
//! A room of its own because a certificate is the one part of the configuration that ends by itself, and
//! that is replaced while connections are open. New connections are shown the newest.

use crate::config::edge::Tls;
use crate::config::faults::{At, Faults};
use pingora::listeners::tls::Acceptor;
use std::sync::Arc;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

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

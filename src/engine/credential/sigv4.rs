//! Signs requests with AWS Signature Version 4, as every AWS service except S3 expects it.
//!
//! The signature covers the method, the path, the query, `Host`, all `X-Amz-*` headers, the time and the body.

use super::outgoing::{
    AuthenticatedRequest, OutgoingBody, OutgoingRequest, SecretHeader, SigningError, digest, sensitive,
};
use crate::base::model::Time;
use crate::config::credentials::AwsSigV4;
use crate::rules::query;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const CONTENT_DIGEST: &str = "x-amz-content-sha256";
/// What the names of the headers begin with that a signature must cover.
const SIGNED_PREFIX: &str = "x-amz-";
/// The headers of a signature.
pub(super) static HEADERS: [HeaderName; 3] =
    [header::AUTHORIZATION, HeaderName::from_static("x-amz-date"), HeaderName::from_static("x-amz-security-token")];
/// The query parameters of a signature in the URL, which only the owner of the credential may send.
pub(super) const PARAMETERS: [&str; 8] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "X-Amz-Content-Sha256",
];
/// AWS accepts signatures whose time differs by less than five minutes from its own.
const MAX_SKEW_MS: i64 = 4 * 60_000;
/// A clock that differs more than that is not followed.
const MAX_OFFSET_MS: i64 = 24 * 3_600_000;

/// Signs the requests of one access key.
pub(super) struct RequestSigner {
    /// The identity of the credential.
    pub(super) identity: Arc<str>,
    credentials: Credentials,
    region: String,
    service: String,
    /// The difference from Weir's clock to the provider's, in milliseconds.
    clock_offset: AtomicI64,
}

impl RequestSigner {
    /// Makes a signer. `None` if the access key or its secret is empty.
    #[must_use]
    pub(super) fn compile(config: &AwsSigV4) -> Option<Self> {
        let AwsSigV4 { access_key_id, secret_access_key, session_token, region, service } = config;
        let (id, secret) = (&access_key_id.value, &secret_access_key.0);
        if id.is_empty() || secret.is_empty() {
            return None;
        }
        let token = session_token.as_ref().map(|token| token.0.clone()).filter(|token| !token.is_empty());
        let parts = [id, secret, token.as_deref().unwrap_or_default(), region, service].map(str::as_bytes);
        Some(Self {
            identity: digest("aws_sigv4", &parts).into(),
            credentials: Credentials::new(id, secret, token, None, "weir"),
            region: region.clone(),
            service: service.clone(),
            clock_offset: AtomicI64::new(0),
        })
    }

    /// Signs a request. Brings its query into the form that AWS computes the signature of, with the same parameters in the
    /// same order.
    ///
    /// # Errors
    /// The request cannot be signed.
    pub(super) fn signed<'h>(
        &self,
        request: &OutgoingRequest<'_>,
        headers: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>,
        now: Time,
    ) -> Result<AuthenticatedRequest, SigningError> {
        let path_and_query = match request.path_and_query.split_once('?') {
            Some((path, query)) => format!("{path}?{}", query::canonical(query).map_err(|_| SigningError::Query)?),
            None => request.path_and_query.to_owned(),
        };
        let mut signed = vec![("host", request.target.authority())];
        for (name, value) in headers.filter(|(name, _)| name.as_str().starts_with(SIGNED_PREFIX)) {
            if !HEADERS.contains(name) {
                signed.push((name.as_str(), value.to_str().map_err(|_| SigningError::Header(name.clone()))?));
            }
        }
        let digest = signed.iter().find(|(name, _)| *name == CONTENT_DIGEST).map(|(_, value)| *value);
        let body = match (digest, request.body) {
            (Some(digest), _) if !is_digest(digest) => return Err(SigningError::BodyDigest),
            (Some(digest), _) => SignableBody::Precomputed(digest.to_ascii_lowercase()),
            (None, OutgoingBody::Whole(body)) => SignableBody::Bytes(body),
            (None, OutgoingBody::Streamed) => return Err(SigningError::BodyDigest),
        };
        let url = format!("{}{}", request.target.origin(), request.target.path(&path_and_query));
        let headers = self.headers(request.method, url, signed, body, now).ok_or(SigningError::Unsuitable)?;
        Ok(AuthenticatedRequest { path_and_query, headers })
    }

    /// Returns the headers of the signature; `None` if the library refuses the request.
    fn headers(
        &self,
        method: &str,
        url: String,
        signed: Vec<(&str, &str)>,
        body: SignableBody<'_>,
        now: Time,
    ) -> Option<Vec<SecretHeader>> {
        let identity = self.credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(&self.service)
            .time(self.time(now))
            .settings(SigningSettings::default())
            .build()
            .ok()?;
        let request = SignableRequest::new(method, url, signed.into_iter(), body).ok()?;
        let (instructions, _) = sign(request, &parameters.into()).ok()?.into_parts();
        let typed = |(name, value): (&str, &str)| {
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, sensitive(HeaderValue::from_str(value).ok()?)))
        };
        instructions.headers().map(typed).collect()
    }

    fn time(&self, now: Time) -> SystemTime {
        let millis = now.0.saturating_add(self.clock_offset.load(Ordering::Relaxed));
        UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }

    /// Follows the provider's clock, if it refused a signature and its time is too far from the signature's. Returns whether
    /// a new signature differs.
    pub(super) fn follow_clock(&self, status: u16, headers: &HeaderMap, now: Time) -> bool {
        let date = headers.get(header::DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let millis = date.and_then(|date| i64::try_from(date.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok());
        let Some(offset) = millis.map(|millis| millis - now.0).filter(|_| matches!(status, 400 | 401 | 403)) else {
            return false;
        };
        let used = self.clock_offset.load(Ordering::Relaxed);
        if (offset - used).abs() < MAX_SKEW_MS || offset.abs() > MAX_OFFSET_MS {
            return false;
        }
        self.clock_offset.store(offset, Ordering::Relaxed);
        true
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode::Secret;
    use crate::config::faults::{Located, Location};
    use crate::config::upstream::Upstream;
    use crate::engine::upstream::Target;

    fn config(token: Option<&str>) -> AwsSigV4 {
        AwsSigV4 {
            access_key_id: Located { value: "AKIDEXAMPLE".into(), location: Location::top(&"f".into()) },
            secret_access_key: Secret("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()),
            session_token: token.map(|token| Secret(token.into())),
            region: "us-east-1".into(),
            service: "service".into(),
        }
    }

    fn signer(token: Option<&str>) -> RequestSigner {
        RequestSigner::compile(&config(token)).unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    /// 2015-08-30T12:36:00Z, the time of all published requests.
    const THEN: Time = Time(1_440_938_160_000);

    fn sign_at(
        signer: &RequestSigner,
        method: &str,
        path_and_query: &str,
        body: OutgoingBody<'_>,
        sent: &HeaderMap,
        now: Time,
    ) -> Result<AuthenticatedRequest, SigningError> {
        let target = Target::compile("https://example.amazonaws.com", &Upstream::default()).unwrap();
        let request = OutgoingRequest { method, target: &target, path_and_query, body };
        signer.signed(&request, sent.iter(), now)
    }

    fn authorization(signed: &AuthenticatedRequest) -> &str {
        let (_, value) = signed.headers.iter().find(|(name, _)| name == header::AUTHORIZATION).unwrap();
        value.to_str().unwrap()
    }

    #[test]
    fn the_signatures_are_those_of_the_published_test_suite() {
        // aws-signing-test-suite/v4, header-signature.txt
        let unreserved = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let token = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";
        for (method, request, token, signature) in [
            ("GET", "/", None, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("POST", "/", None, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
            ("GET", "/?Param1=value1", None, "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"),
            ("POST", "/?Param1=value1", None, "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"),
            (
                "GET",
                "/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
                None,
                "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
            ),
            ("GET", "/?%e1%88%b4=bar", None, "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"),
            ("GET", "//example//", None, "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84"),
            (
                "GET",
                &format!("/{unreserved}"),
                None,
                "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
            ),
            (
                "GET",
                &format!("/?{unreserved}={unreserved}"),
                None,
                "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
            ),
            ("GET", "/", Some(token), "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"),
        ] {
            let signed =
                sign_at(&signer(token), method, request, OutgoingBody::Whole(b""), &HeaderMap::new(), THEN).unwrap();
            let names = if token.is_some() { "host;x-amz-date;x-amz-security-token" } else { "host;x-amz-date" };
            let scope = "AKIDEXAMPLE/20150830/us-east-1/service/aws4_request";
            let expected = format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={signature}");
            assert_eq!(authorization(&signed), expected, "{method} {request}");
            assert!(signed.headers.iter().all(|(_, value)| value.is_sensitive()));
            let sent = signed.headers.iter().find(|(name, _)| name == "x-amz-security-token");
            assert_eq!(sent.map(|(_, value)| value.to_str().unwrap()), token);
        }
    }

    #[test]
    fn the_query_is_sent_as_it_is_signed() {
        let sent = |query: &str| {
            let request = format!("/x?{query}");
            sign_at(&signer(None), "GET", &request, OutgoingBody::Whole(b""), &HeaderMap::new(), THEN)
                .map(|signed| signed.path_and_query)
        };
        assert_eq!(sent("b=x:y&a=1+2&c&%7e=%2a").unwrap(), "/x?b=x%3Ay&a=1%202&c=&~=%2A");
        assert_eq!(sent("a=%ff").unwrap_err(), SigningError::Query);
    }

    #[test]
    fn a_streamed_body_needs_its_digest_and_all_amz_headers_are_signed() {
        let post = |sent: &HeaderMap| sign_at(&signer(None), "POST", "/", OutgoingBody::Streamed, sent, THEN);
        assert_eq!(post(&HeaderMap::new()).err(), Some(SigningError::BodyDigest));
        for wrong in ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "abc", ""] {
            assert_eq!(post(&headers(&[(CONTENT_DIGEST, wrong)])).err(), Some(SigningError::BodyDigest), "{wrong}");
        }
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let signed = post(&headers(&[(CONTENT_DIGEST, empty), ("x-amz-target", "T.Op"), ("x-other", "1")])).unwrap();
        assert!(authorization(&signed).contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-target,"));
        let own = headers(&[("x-amz-date", "20200101T000000Z"), ("x-amz-security-token", "mine")]);
        let signed = sign_at(&signer(None), "GET", "/", OutgoingBody::Whole(b""), &own, THEN).unwrap();
        assert!(authorization(&signed).ends_with("5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"));
        let whole = |body: &'static [u8]| {
            sign_at(&signer(None), "POST", "/", OutgoingBody::Whole(body), &HeaderMap::new(), THEN).unwrap()
        };
        assert_ne!(authorization(&whole(b"{}")), authorization(&whole(b"")), "the signature covers the body");
    }

    #[test]
    fn the_providers_clock_is_followed_only_if_it_is_the_cause() {
        let signer = signer(None);
        let date = |text| headers(&[("date", text)]);
        let (near, far) = (date("Sun, 30 Aug 2015 12:38:00 GMT"), date("Sun, 30 Aug 2015 12:46:00 GMT"));
        let absurd = date("Tue, 01 Sep 2015 12:46:00 GMT");
        for (status, headers) in [(403, &near), (200, &far), (500, &far), (403, &absurd), (403, &HeaderMap::new())] {
            assert!(!signer.follow_clock(status, headers, THEN), "{status} {headers:?}");
        }
        assert!(signer.follow_clock(403, &far, THEN));
        assert!(!signer.follow_clock(403, &far, THEN), "the second refusal has another cause");
        let signed =
            sign_at(&signer, "GET", "/", OutgoingBody::Whole(b""), &HeaderMap::new(), Time(THEN.0 - 600_000)).unwrap();
        assert!(authorization(&signed).ends_with("5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"));
        assert!(signer.follow_clock(403, &date("Sun, 30 Aug 2015 12:36:00 GMT"), THEN), "and back again");
    }
}

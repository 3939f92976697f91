//! Asking a provider: names resolved, connections pooled by Pingora, deadlines and limits kept.
//!
//! A room of its own because it is the only one that opens connections to providers. It carries a
//! question there and its whole answer back; what the answer means is judged elsewhere.

use crate::exchange::{FailureKind, ProviderFailure, ProviderReply, ProviderRequest};
use crate::held::{Budget, Held};
use bytes::{Bytes, BytesMut};
use http::Uri;
use http::header;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::ALPN;
use pingora::protocols::TcpKeepalive;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::{H1UpgradePolicy, HttpPeer};
use pingora::{Error, ErrorType};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a resolved name is used before it is asked for again.
const NAME_TTL: Duration = Duration::from_secs(30);
/// How long known addresses are used after asking for them failed.
const NAME_RETRY: Duration = Duration::from_secs(5);
/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(60);
/// The most interim (1xx) answers read before the final one.
const MAX_INTERIM: usize = 8;
const USER_AGENT: &str = concat!("weir/", env!("CARGO_PKG_VERSION"));

/// Where a provider is and how it may be called: a compiled `base_url` and `upstream`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    tls: bool,
    host: String,
    port: u16,
    /// Host and port as the `Host` header has them.
    authority: String,
    /// Before every path; without a slash at its end.
    prefix: String,
    /// For TCP and TLS together.
    pub connect_timeout: Duration,
    /// In all, retries included.
    pub timeout: Duration,
    /// Longest body in bytes.
    pub max_body: usize,
    /// How often a request that failed before its answer is sent again.
    pub retries: u32,
}

impl Target {
    /// Reads a base URL: `http(s)://host[:port][/prefix]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(base_url: &str, config: &crate::config::upstream::Upstream) -> Result<Self, String> {
        // One with credentials in it is not repeated.
        let shown = if base_url.contains('@') { "what stands here" } else { base_url };
        let wrong = |what: &str| format!("{shown:?} is not a base URL ({what}); write https://HOST[:PORT][/PREFIX]");
        let uri: Uri = base_url.parse().map_err(|_| wrong("it cannot be parsed"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("credentials belong under credentials:"));
        }
        if uri.query().is_some() {
            return Err(wrong("query parameters belong under query:"));
        }
        if authority.host().is_empty() {
            return Err(wrong("it has no host"));
        }
        Ok(Self {
            tls,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            connect_timeout: config.connect_timeout,
            timeout: config.timeout,
            max_body: usize::try_from(config.max_body).unwrap_or(usize::MAX),
            retries: config.retries,
        })
    }

    /// What tells one provider's place from another: scheme, authority and prefix.
    #[must_use]
    pub fn place(&self) -> String {
        self.origin() + &self.prefix
    }

    /// Scheme and authority, for people.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }

    /// Path and query at the provider, the base URL's prefix included.
    #[must_use]
    pub fn path(&self, path_and_query: &str) -> String {
        format!("{}{path_and_query}", self.prefix)
    }

    /// The base URL's path, without a slash at its end.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What of a `Location` lies below this place: path and query, with a slash before them.
    #[must_use]
    pub fn below(&self, location: &str) -> Option<String> {
        let place = self.place();
        let path = location.starts_with('/') && !location.starts_with("//");
        let base = if path { self.prefix.as_str() } else { place.as_str() };
        let rest = location.strip_prefix(base)?;
        match rest.chars().next() {
            None => Some("/".to_owned()),
            Some('/') => Some(rest.to_owned()),
            Some('?' | '#') => Some(format!("/{rest}")),
            Some(_) => None,
        }
    }

    /// Host and port as the `Host` header has them.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    fn peer(&self, address: SocketAddr) -> HttpPeer {
        let mut peer = HttpPeer::new(address, self.tls, self.host.clone());
        peer.options.connection_timeout = Some(self.connect_timeout);
        peer.options.total_connection_timeout = Some(self.connect_timeout);
        peer.options.idle_timeout = Some(IDLE);
        peer.options.max_h2_streams = 100;
        // Without these a connection that died silently would be used until the kernel gives up.
        peer.options.h2_ping_interval = Some(Duration::from_secs(5));
        peer.options.tcp_keepalive = Some(TcpKeepalive {
            idle: Duration::from_secs(15),
            interval: Duration::from_secs(5),
            count: 3,
            #[cfg(target_os = "linux")]
            user_timeout: Duration::from_secs(30),
        });
        peer.options.alpn = if self.tls { ALPN::H2H1 } else { ALPN::H1 };
        peer
    }
}

/// Where a connection goes, and how.
pub type Peer = HttpPeer;

/// Connections to all providers and the names resolved for them. Outlives every reload.
pub struct Upstream {
    connector: Connector,
    names: Mutex<HashMap<(String, u16), Resolved>>,
    /// Bytes of answers held.
    pub budget: Arc<Budget>,
}

#[derive(Clone)]
struct Resolved {
    addresses: Arc<[SocketAddr]>,
    at: Instant,
}

fn failure(kind: FailureKind, detail: impl Into<String>) -> ProviderFailure {
    ProviderFailure { kind, detail: detail.into() }
}

impl Upstream {
    /// No connection yet. Bodies being read at the same time have at most `max_buffered` bytes together.
    #[must_use]
    pub fn new(max_buffered: u64) -> Self {
        Self { connector: Connector::new(None), names: Mutex::default(), budget: Budget::new(max_buffered) }
    }

    /// Asks, until the deadline, retries included. A retry is made only if `may_retry`
    /// says so.
    ///
    /// # Errors
    /// Why there is no whole answer.
    pub async fn ask(
        &self,
        target: &Target,
        request: &ProviderRequest,
        deadline: Instant,
        may_retry: impl Fn(&ProviderFailure) -> bool,
    ) -> Result<ProviderReply, ProviderFailure> {
        let mut left = target.retries;
        loop {
            let attempt = timeout_at(deadline, self.attempt(target, request)).await;
            match attempt {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err((failure, true))) if left > 0 && Instant::now() < deadline && may_retry(&failure) => left -= 1,
                Ok(Err((failure, _))) => return Err(failure),
                Err(_) => {
                    let detail = format!("no whole answer within {} ms", target.timeout.as_millis());
                    return Err(failure(FailureKind::Timeout, detail));
                }
            }
        }
    }

    /// Where to connect to pass a request on: the name's addresses in turn, by how many were `tried`, and how many
    /// there are. The provider may be silent for `idle`.
    ///
    /// Over HTTP/1.1: on a shared HTTP/2 connection one stalled download holds up all others, an upload is timed
    /// as silence, and interim answers do not come through (`read_response_header` and the windows in
    /// pingora-core's `protocols/http/v2/client.rs` and `connectors/http/v2.rs`).
    ///
    /// # Errors
    /// The name has no address.
    pub async fn peer(&self, target: &Target, tried: usize, idle: Duration) -> Result<(Peer, usize), ProviderFailure> {
        let addresses = self.resolve(target).await?;
        let mut peer = target.peer(addresses[tried % addresses.len()]);
        peer.options.alpn = ALPN::H1;
        (peer.options.read_timeout, peer.options.write_timeout) = (Some(idle), Some(idle));
        peer.options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::Deny;
        Ok((peer, addresses.len()))
    }

    /// One try. The flag says that it failed before any of the answer came, so that a GET may be
    /// sent again (RFC 9110, section 9.2.2).
    async fn attempt(
        &self,
        target: &Target,
        request: &ProviderRequest,
    ) -> Result<ProviderReply, (ProviderFailure, bool)> {
        let addresses = self.resolve(target).await.map_err(|failure| (failure, true))?;
        let (mut session, peer) = self.connect(target, &addresses).await?;
        let result = exchange(&mut session, target, request, self.budget.hold()).await;
        if result.is_ok() {
            if let HttpSession::H1(h1) = &mut session {
                h1.respect_keepalive();
            }
            self.connector.release_http_session(session, &peer, Some(IDLE)).await;
        } else {
            session.shutdown().await;
        }
        result
    }

    /// A pooled or new connection to the first address that takes one.
    async fn connect(
        &self,
        target: &Target,
        addresses: &[SocketAddr],
    ) -> Result<(HttpSession, HttpPeer), (ProviderFailure, bool)> {
        let mut last = failure(FailureKind::Connect, format!("{} has no address", target.host));
        for address in addresses {
            let peer = target.peer(*address);
            match self.connector.get_http_session(&peer).await {
                Ok((session, _)) => return Ok((session, peer)),
                Err(error) => last = connect_failure(target, &error),
            }
        }
        let again = last.kind == FailureKind::Connect;
        Err((last, again))
    }

    /// The name's addresses: remembered for [`NAME_TTL`], and used past it while asking fails.
    async fn resolve(&self, target: &Target) -> Result<Arc<[SocketAddr]>, ProviderFailure> {
        if let Ok(address) = target.host.parse::<IpAddr>() {
            return Ok(Arc::from([SocketAddr::new(address, target.port)]));
        }
        let name = (target.host.clone(), target.port);
        let known = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.at.elapsed() < NAME_TTL) {
            return Ok(known.addresses.clone());
        }
        let lookup = timeout_at(Instant::now() + target.connect_timeout, tokio::net::lookup_host(name.clone())).await;
        let found: Vec<SocketAddr> = match lookup {
            Ok(Ok(addresses)) => addresses.collect(),
            _ => Vec::new(),
        };
        match (found.is_empty(), known) {
            (false, _) => {
                let resolved = Resolved { addresses: found.into(), at: Instant::now() };
                let addresses = resolved.addresses.clone();
                self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name, resolved);
                Ok(addresses)
            }
            (true, Some(known)) => {
                // Not asked again at once: every call would wait for the same failure.
                let again = Instant::now().checked_sub(NAME_TTL - NAME_RETRY).unwrap_or(known.at);
                let kept = Resolved { addresses: known.addresses.clone(), at: again };
                self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name, kept);
                Ok(known.addresses)
            }
            (true, None) => Err(failure(FailureKind::Connect, format!("the name {} cannot be resolved", target.host))),
        }
    }
}

async fn exchange(
    session: &mut HttpSession,
    target: &Target,
    request: &ProviderRequest,
    held: Held,
) -> Result<ProviderReply, (ProviderFailure, bool)> {
    let header = request_header(target, request, matches!(session, HttpSession::H2(_))).map_err(|error| {
        (failure(FailureKind::Malformed, format!("the request cannot be made: {}", error.etype().as_str())), false)
    })?;
    let early = |error: Box<Error>| (transfer_failure(&error, "before its answer"), true);
    session.write_request_header(Box::new(header)).await.map_err(early)?;
    if let Some(form) = &request.form {
        session.write_request_body(form.clone(), true).await.map_err(early)?;
    }
    session.finish_request_body().await.map_err(early)?;
    let (status, headers) = final_header(session).await.map_err(|error| {
        let failure = transfer_failure(&error, "before its answer");
        let again = failure.kind == FailureKind::Reset;
        (failure, again)
    })?;
    let body = body(session, target.max_body, held).await.map_err(|failure| (failure, false))?;
    Ok(ProviderReply { status, headers, body })
}

fn request_header(target: &Target, request: &ProviderRequest, h2: bool) -> Result<RequestHeader, Box<Error>> {
    let path = format!("{}{}", target.prefix, request.path_and_query);
    let method = if request.form.is_some() { "POST" } else { "GET" };
    let mut header = RequestHeader::build(method, path.as_bytes(), Some(8))?;
    if let Some(form) = &request.form {
        header.insert_header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")?;
        header.insert_header(header::CONTENT_LENGTH, form.len())?;
    }
    if h2 {
        // HTTP/2 says where it goes in the URI: its :scheme and :authority (RFC 9113, section 8.3.1).
        let uri = Uri::builder().scheme(if target.tls { "https" } else { "http" });
        let uri = uri.authority(target.authority.as_str()).path_and_query(path);
        header.set_uri(uri.build().map_err(|e| Error::because(ErrorType::InvalidHTTPHeader, "uri", e))?);
        header.set_version(http::Version::HTTP_2);
    } else {
        header.insert_header(header::HOST, target.authority.as_str())?;
    }
    header.insert_header(header::ACCEPT, "application/json")?;
    header.insert_header(header::ACCEPT_ENCODING, "identity")?;
    header.insert_header(header::USER_AGENT, USER_AGENT)?;
    for (name, value) in request.credential.iter().chain(&request.conditions) {
        header.insert_header(name.clone(), value.clone())?;
    }
    Ok(header)
}

/// The final answer's header, past any interim ones (RFC 9110, section 15.2).
async fn final_header(session: &mut HttpSession) -> Result<(u16, http::HeaderMap), Box<Error>> {
    for _ in 0..MAX_INTERIM {
        session.read_response_header().await?;
        let Some(header) = session.response_header() else { break };
        if !header.status.is_informational() {
            return Ok((header.status.as_u16(), header.headers.clone()));
        }
    }
    Error::e_explain(ErrorType::InvalidHTTPHeader, "no final answer")
}

async fn body(session: &mut HttpSession, max: usize, mut held: Held) -> Result<Bytes, ProviderFailure> {
    let too_large = || failure(FailureKind::TooLarge, format!("the body is larger than max_body ({max} bytes)"));
    let announced: Option<usize> = session
        .response_header()
        .and_then(|header| header.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    loop {
        match session.read_response_body().await {
            Ok(Some(chunk)) => {
                if body.len() + chunk.len() > max {
                    return Err(too_large());
                }
                if !held.more(chunk.len()) {
                    let detail = "as many bytes of answers are under way as may be (overload.max_buffered)";
                    return Err(failure(FailureKind::Overloaded, detail));
                }
                body.extend_from_slice(&chunk);
            }
            // Exactly as long as it is: what is kept is weighed by its length.
            Ok(None) => return Ok(Bytes::copy_from_slice(&body)),
            Err(error) => return Err(transfer_failure(&error, "inside its answer")),
        }
    }
}

/// Why a request that was passed on failed.
#[must_use]
pub fn passing_failure(target: &Target, error: &Error, connected: bool) -> ProviderFailure {
    if connected { transfer_failure(error, "on the way") } else { connect_failure(target, error) }
}

fn connect_failure(target: &Target, error: &Error) -> ProviderFailure {
    let (kind, what) = match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => (
            FailureKind::Timeout,
            format!("no connection to {} within {} ms", target.authority, target.connect_timeout.as_millis()),
        ),
        ErrorType::TLSHandshakeFailure
        | ErrorType::InvalidCert
        | ErrorType::HandshakeError
        | ErrorType::TLSWantX509Lookup => {
            (FailureKind::Tls, format!("the TLS handshake with {} failed", target.authority))
        }
        other => (FailureKind::Connect, format!("no connection to {} ({})", target.authority, other.as_str())),
    };
    failure(kind, what)
}

fn transfer_failure(error: &Error, when: &str) -> ProviderFailure {
    match error.etype() {
        // A stream that the peer refused or a graceful end of its connection: not processed.
        ErrorType::H2Error if error.retry() => failure(FailureKind::Reset, format!("the stream was refused {when}")),
        ErrorType::InvalidHTTPHeader | ErrorType::H1Error | ErrorType::H2Error => {
            failure(FailureKind::Malformed, format!("what came {when} is not HTTP"))
        }
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => {
            failure(FailureKind::Timeout, format!("it stalled {when}"))
        }
        other => failure(FailureKind::Reset, format!("the connection broke {when} ({})", other.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::upstream;

    fn target(url: &str) -> Result<Target, String> {
        let config = upstream::Upstream {
            connect_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            max_body: 1000,
            retries: 0,
            capacity: None,
            breaker: None,
        };
        Target::compile(url, &config)
    }

    #[test]
    fn base_urls() {
        let read = target("https://example.com/prefix/").unwrap();
        assert_eq!(
            (read.tls, read.port, read.prefix.as_str(), read.authority.as_str()),
            (true, 443, "/prefix", "example.com")
        );
        let read = target("http://[::1]:8080").unwrap();
        assert_eq!(
            (read.host.as_str(), read.port, read.authority.as_str(), read.prefix.as_str()),
            ("::1", 8080, "[::1]:8080", "")
        );
        let below = |location| target("http://h:1/a").unwrap().below(location);
        assert_eq!(below("http://h:1/a/x?y").as_deref(), Some("/x?y"));
        assert_eq!(below("/a/x").as_deref(), Some("/x"));
        assert_eq!((below("http://h:1/a").as_deref(), below("http://h:1/a?b").as_deref()), (Some("/"), Some("/?b")));
        for elsewhere in ["/ab/x", "http://h:1/ab", "http://h:12/a", "//h:1/a", "/x", "x", "https://h:1/a/x"] {
            assert_eq!(below(elsewhere), None, "{elsewhere}");
        }
        for wrong in ["example.com", "ftp://x", "https://", "https://u:p@x", "https://x/?a=b", "not a url", ""] {
            assert!(target(wrong).unwrap_err().contains("is not a base URL"), "{wrong}");
        }
    }
}

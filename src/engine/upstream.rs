//! Sends requests to providers: resolves names, pools connections (Pingora), and enforces deadlines and size limits.
//!
//! Only this module opens connections to providers. It returns complete responses, and does not interpret them.

use crate::base::memory_budget::{MemoryBudget, Reservation, without_spare};
use crate::base::request_reply::{FailureKind, ProviderFailure, ProviderReply, ProviderRequest};
use crate::engine::checked_stream::CheckedStream;
use crate::engine::connection_groups::{ConnectionGroup, ConnectionGroups, announces_forbidden_body};
use crate::engine::connection_slots::ConnectionSlots;
use crate::engine::forward_connection::{ConnectionState, forward_peer};
use crate::engine::open_files::OpenFiles;
use crate::engine::transfer_failure::transfer_failure;
use bytes::Bytes;
use http::{StatusCode, Uri, header};
use pingora::connectors::http::Connector;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::http::RequestHeader;
use pingora::protocols::ALPN;
use pingora::protocols::TcpKeepalive;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1::client::HttpSession as Http1Session;
use pingora::upstreams::peer::{H1UpgradePolicy, HttpPeer};
use pingora::{Error, ErrorType};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a resolved name is used before it is resolved again.
const NAME_TTL: Duration = Duration::from_secs(30);
/// How long the old addresses are used after a failed resolution, before the next one.
const NAME_RETRY: Duration = Duration::from_secs(5);
/// How long an idle connection stays open.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The most interim (1xx) responses read before the final one.
const MAX_INTERIM: usize = 8;
/// The most characters of the reason why there is no connection.
const MAX_REASON: usize = 300;
const USER_AGENT: &str = concat!("weir/", env!("CARGO_PKG_VERSION"));

/// The compiled `base_url` and `upstream` settings of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    tls: bool,
    host: String,
    port: u16,
    /// Host and port as in the `Host` header.
    authority: String,
    /// The path before every request path, without a slash at its end.
    prefix: String,
    /// The timeout for TCP and TLS together.
    pub connect_timeout: Duration,
    /// The timeout of a call, retries included.
    pub timeout: Duration,
    /// The longest response body in bytes.
    pub max_body: usize,
    /// The most retries of a request that failed before its response.
    pub retries: u32,
}

impl Target {
    /// Compiles a base URL (`http(s)://host[:port][/prefix]`) and its settings.
    ///
    /// # Errors
    /// The fault of the base URL, as text.
    pub fn compile(base_url: &str, config: &crate::config::upstream::Upstream) -> Result<Self, String> {
        // A URL that may contain credentials is not printed.
        let printed = if base_url.contains('@') { "the value".to_owned() } else { format!("{base_url:?}") };
        let invalid = |why: &str| format!("{printed} is not a base URL ({why}); write https://HOST[:PORT][/PREFIX]");
        let uri: Uri = base_url.parse().map_err(|_| invalid("it cannot be parsed"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(invalid("it must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| invalid("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("credentials belong under credentials:"));
        }
        if uri.query().is_some() {
            return Err(invalid("query parameters belong under query:"));
        }
        if authority.host().is_empty() {
            return Err(invalid("it has no host"));
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

    /// Returns scheme, authority and prefix.
    #[must_use]
    pub fn base_url(&self) -> String {
        self.origin() + &self.prefix
    }

    /// Returns scheme and authority.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }

    /// Returns the path and query at the provider, including the base URL's prefix.
    #[must_use]
    pub fn path(&self, path_and_query: &str) -> String {
        format!("{}{path_and_query}", self.prefix)
    }

    /// Returns host and port as in the `Host` header.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    fn peer(&self, address: SocketAddr, group: ConnectionGroup) -> HttpPeer {
        let mut peer = HttpPeer::new(address, self.tls, self.host.clone());
        peer.group_key = group.key;
        peer.options.connection_timeout = Some(self.connect_timeout);
        peer.options.total_connection_timeout = Some(self.connect_timeout);
        peer.options.idle_timeout = Some(IDLE_TIMEOUT);
        peer.options.max_h2_streams = 100;
        // These detect a dead connection long before the kernel would.
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

/// Address and options of a connection.
pub(crate) type Peer = HttpPeer;

/// A connection for a forwarded request.
pub(crate) struct ForwardPeer {
    /// Address and options, for Pingora's proxy.
    pub peer: HttpPeer,
    /// The connections that the request may use.
    pub group: ConnectionGroup,
    /// The number of the provider's addresses.
    pub addresses: usize,
    /// The state of the connection.
    pub connection: Arc<ConnectionState>,
}

/// The connections to all providers and the resolved names. Reloads keep it.
pub struct UpstreamClient {
    connector: Connector,
    /// The connections of forwarded requests.
    forward_pool: Arc<TransportConnector>,
    /// Which requests may use which connections, also of those that Pingora's proxy opens.
    pub(crate) groups: ConnectionGroups,
    names: Mutex<HashMap<(String, u16), ResolvedName>>,
    /// The limit on the bytes that are held on behalf of clients.
    pub budget: Arc<MemoryBudget>,
    /// The connections of calls: more could take the files that Weir needs for others.
    pub slots: ConnectionSlots,
}

#[derive(Clone)]
struct ResolvedName {
    addresses: Arc<[SocketAddr]>,
    resolved_at: Instant,
}

fn failure(kind: FailureKind, detail: impl Into<String>) -> ProviderFailure {
    ProviderFailure::new(kind, detail)
}

impl UpstreamClient {
    /// Makes a client without connections. `max_buffered` limits the bytes that are held on behalf of all clients.
    #[must_use]
    pub fn new(max_buffered: u64) -> Self {
        let files = OpenFiles::available();
        let pool = || Some(ConnectorOptions::new(files.idle_provider_connections()));
        Self {
            connector: Connector::new(pool()),
            forward_pool: Arc::new(TransportConnector::new(pool())),
            groups: ConnectionGroups::new(),
            names: Mutex::default(),
            budget: MemoryBudget::new(max_buffered),
            slots: ConnectionSlots::new(files.provider_calls()),
        }
    }

    /// Sends a request and returns the complete response. Retries a request that failed before its response if
    /// `may_retry` allows it. The deadline includes the retries.
    ///
    /// Reserves `memory` for the body before it reads the body.
    ///
    /// # Errors
    /// Why there is no complete response.
    pub async fn send(
        &self,
        target: &Target,
        request: &ProviderRequest,
        deadline: Instant,
        memory: &mut Reservation,
        may_retry: impl Fn(&ProviderFailure) -> bool,
    ) -> Result<ProviderReply, ProviderFailure> {
        let mut retries_left = target.retries;
        loop {
            let attempt = timeout_at(deadline, self.attempt(target, request, memory)).await;
            match attempt {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err((failure, true))) if retries_left > 0 && Instant::now() < deadline && may_retry(&failure) => {
                    retries_left -= 1;
                }
                Ok(Err((failure, _))) => return Err(failure),
                Err(_) => {
                    let detail = format!("no complete response within {} ms", target.timeout.as_millis());
                    return Err(failure(FailureKind::Timeout, detail));
                }
            }
        }
    }

    /// Returns the peer for a forwarded request. Each value of `tried` selects the next address. The connection is a new
    /// one unless `may_reuse`, and carries requests of this `owner` only. `idle_timeout` limits the time without data.
    ///
    /// Uses HTTP/1.1: on a shared HTTP/2 connection one stalled download would block all others, the idle timeout would
    /// run during an upload, and interim responses would be lost (`read_response_header` and the windows in
    /// pingora-core's `protocols/http/v2/client.rs` and `connectors/http/v2.rs`).
    ///
    /// # Errors
    /// The name cannot be resolved.
    pub(crate) async fn peer(
        &self,
        target: &Target,
        tried: usize,
        may_reuse: bool,
        idle_timeout: Duration,
        owner: &str,
    ) -> Result<ForwardPeer, ProviderFailure> {
        let addresses = self.resolve(target).await?;
        let group = self.groups.group(&target.authority, owner);
        let address = addresses[tried % addresses.len()];
        let mut peer = target.peer(address, group);
        peer.options.alpn = ALPN::H1;
        (peer.options.read_timeout, peer.options.write_timeout) = (Some(idle_timeout), Some(idle_timeout));
        peer.options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::Deny;
        let (peer, connection) = forward_peer(&self.forward_pool, address, peer, may_reuse);
        Ok(ForwardPeer { peer, group, addresses: addresses.len(), connection })
    }

    /// Sends the request once. The flag of an error says that the call failed before any part of the response arrived,
    /// so a GET may be sent again (RFC 9110, section 9.2.2).
    async fn attempt(
        &self,
        target: &Target,
        request: &ProviderRequest,
        memory: &mut Reservation,
    ) -> Result<ProviderReply, (ProviderFailure, bool)> {
        let addresses = self.resolve(target).await.map_err(|failure| (failure, true))?;
        let (mut session, peer) = self.connect(target, &addresses, request).await?;
        let result = send_and_receive(&mut session, target, request, memory).await;
        if result.as_ref().is_ok_and(|_| has_clean_end(&session)) {
            if let HttpSession::H1(h1) = &mut session {
                h1.respect_keepalive();
            }
            self.connector.release_http_session(session, &peer, Some(IDLE_TIMEOUT)).await;
        } else {
            session.shutdown().await;
        }
        result
    }

    /// Returns a pooled or new connection to the first address that accepts one.
    async fn connect(
        &self,
        target: &Target,
        addresses: &[SocketAddr],
        request: &ProviderRequest,
    ) -> Result<(HttpSession, HttpPeer), (ProviderFailure, bool)> {
        let group = self.groups.group(&target.authority, &request.owner);
        let mut last = ProviderFailure::unreachable(FailureKind::Dns, format!("{} has no address", target.host));
        for address in addresses {
            let peer = target.peer(*address, group);
            match self.connector.get_http_session(&peer).await {
                Ok((session, _)) => return Ok((checked(session, &peer), peer)),
                Err(error) => last = connect_failure(target, &error),
            }
        }
        let retryable = matches!(last.kind, FailureKind::Connect | FailureKind::Refused | FailureKind::Dns);
        Err((last, retryable))
    }

    /// Returns the name's addresses. Caches them for [`NAME_TTL`], and uses them longer while resolution fails.
    async fn resolve(&self, target: &Target) -> Result<Arc<[SocketAddr]>, ProviderFailure> {
        if let Ok(address) = target.host.parse::<IpAddr>() {
            return Ok(Arc::from([SocketAddr::new(address, target.port)]));
        }
        let name = (target.host.clone(), target.port);
        let known = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.resolved_at.elapsed() < NAME_TTL) {
            return Ok(known.addresses.clone());
        }
        let lookup = timeout_at(Instant::now() + target.connect_timeout, tokio::net::lookup_host(name.clone())).await;
        let (found, fault): (Vec<SocketAddr>, String) = match lookup {
            Ok(Ok(addresses)) => (addresses.collect(), "it has no address".to_owned()),
            Ok(Err(error)) => (Vec::new(), error.to_string()),
            Err(_) => (Vec::new(), format!("no response within {} ms", target.connect_timeout.as_millis())),
        };
        match (found.is_empty(), known) {
            (false, _) => {
                let resolved = ResolvedName { addresses: found.into(), resolved_at: Instant::now() };
                let addresses = resolved.addresses.clone();
                self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name, resolved);
                Ok(addresses)
            }
            (true, Some(known)) => {
                // Without this pause every call would wait for the same failure.
                let resolved_at = Instant::now().checked_sub(NAME_TTL - NAME_RETRY).unwrap_or(known.resolved_at);
                let extended = ResolvedName { addresses: known.addresses.clone(), resolved_at };
                self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name, extended);
                Ok(known.addresses)
            }
            (true, None) => {
                let cause = format!("the host name {} cannot be resolved: {fault}", target.host);
                Err(ProviderFailure::unreachable(FailureKind::Dns, cause))
            }
        }
    }
}

/// Puts the strict reader under a session of HTTP/1. A connection from the pool has it already.
fn checked(session: HttpSession, peer: &HttpPeer) -> HttpSession {
    match session {
        HttpSession::H1(h1) if !(**h1.stream()).as_any().is::<CheckedStream>() => {
            let stream = Box::new(CheckedStream::new(h1.into_inner()));
            HttpSession::H1(Http1Session::new_with_options(stream, peer))
        }
        session => session,
    }
}

/// Returns whether the next bytes on the connection can only be the next response.
fn has_clean_end(session: &HttpSession) -> bool {
    let HttpSession::H1(h1) = session else { return matches!(session, HttpSession::H2(_)) };
    let checked = (**h1.stream()).as_any().downcast_ref::<CheckedStream>();
    let header = h1.resp_header();
    checked.is_some_and(CheckedStream::is_reusable)
        && header.is_some_and(|header| !announces_forbidden_body(header.status, &header.headers))
}

/// Sends the request over a connection and receives the response. The flag of an error is as for `attempt`.
async fn send_and_receive(
    session: &mut HttpSession,
    target: &Target,
    request: &ProviderRequest,
    memory: &mut Reservation,
) -> Result<ProviderReply, (ProviderFailure, bool)> {
    let header = request_header(target, request, matches!(session, HttpSession::H2(_))).map_err(|error| {
        (failure(FailureKind::Malformed, format!("cannot build the request: {}", error.etype().as_str())), false)
    })?;
    let send_failure = |error: Box<Error>| (transfer_failure(&error, "while Weir sent the request"), true);
    session.write_request_header(Box::new(header)).await.map_err(send_failure)?;
    if let Some(form) = &request.form {
        session.write_request_body(form.clone(), true).await.map_err(send_failure)?;
    }
    session.finish_request_body().await.map_err(send_failure)?;
    let (status, headers) = final_header(session).await.map_err(|error| {
        let failure = transfer_failure(&error, "while Weir waited for the response");
        let retryable = failure.kind == FailureKind::Reset;
        (failure, retryable)
    })?;
    let body = read_body(session, target.max_body, memory).await.map_err(|failure| (failure, false))?;
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
        // In HTTP/2 the URI's scheme and authority replace `Host` (:scheme and :authority, RFC 9113, section 8.3.1).
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
    for (name, value) in request.conditions.iter().chain(&request.credential) {
        header.insert_header(name.clone(), value.clone())?;
    }
    Ok(header)
}

/// Reads the header of the final response and skips interim ones (RFC 9110, section 15.2). 101 is an error, because Weir
/// requests no upgrade.
async fn final_header(session: &mut HttpSession) -> Result<(u16, http::HeaderMap), Box<Error>> {
    for _ in 0..MAX_INTERIM {
        session.read_response_header().await?;
        let header = session.response_header().filter(|header| header.status != StatusCode::SWITCHING_PROTOCOLS);
        let Some(header) = header else { break };
        if !header.status.is_informational() {
            return Ok((header.status.as_u16(), header.headers.clone()));
        }
    }
    Error::e_explain(ErrorType::InvalidHTTPHeader, "no final response")
}

/// Reads the body. Reserves its memory before it allocates it.
async fn read_body(session: &mut HttpSession, max: usize, memory: &mut Reservation) -> Result<Bytes, ProviderFailure> {
    let too_large =
        || failure(FailureKind::TooLarge, format!("the response body is larger than max_body ({max} bytes)"));
    // A response to GET without a body may announce the length that the body would have (RFC 9110, section 8.6).
    let with_body = session.response_header().filter(|header| !matches!(header.status.as_u16(), 204 | 304));
    let content_length: Option<usize> =
        with_body.and_then(|header| header.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok());
    if content_length.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let mut reserve = |bytes: usize| {
        let reserved = memory.resize(bytes);
        reserved.map_err(|limit| failure(FailureKind::Overloaded, limit.to_string()))
    };
    let announced = content_length.unwrap_or_default();
    reserve(announced)?;
    let mut body = Vec::with_capacity(announced);
    loop {
        match session.read_response_body().await {
            Ok(Some(chunk)) => {
                let length = body.len() + chunk.len();
                if length > max {
                    return Err(too_large());
                }
                if length > body.capacity() {
                    let capacity = length.max(2 * body.capacity()).min(max);
                    reserve(capacity)?;
                    body.reserve_exact(capacity - body.len());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(None) => {
                // Without spare capacity, because the cache counts a body by its length.
                let body = without_spare(body);
                reserve(body.len())?;
                return Ok(body);
            }
            Err(error) => return Err(transfer_failure(&error, "while Weir read the response body")),
        }
    }
}

/// Returns the failure of a forwarded request.
#[must_use]
pub(crate) fn forward_failure(target: &Target, error: &Error, connected: bool) -> ProviderFailure {
    if connected { transfer_failure(error, "while Weir forwarded the request") } else { connect_failure(target, error) }
}

fn connect_failure(target: &Target, error: &Error) -> ProviderFailure {
    let (kind, what) = match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => (
            FailureKind::ConnectTimeout,
            format!("no connection to {} within {} ms", target.authority, target.connect_timeout.as_millis()),
        ),
        ErrorType::TLSHandshakeFailure
        | ErrorType::InvalidCert
        | ErrorType::HandshakeError
        | ErrorType::TLSWantX509Lookup => {
            (FailureKind::Tls, format!("the TLS handshake with {} failed", target.authority))
        }
        ErrorType::ConnectRefused => (FailureKind::Refused, format!("{} refused the connection", target.authority)),
        other => (FailureKind::Connect, format!("no connection to {} ({})", target.authority, other.as_str())),
    };
    ProviderFailure::unreachable(kind, what + &reason(error))
}

/// Returns what Pingora and the system say about a failed connection: a colon and the text, or nothing.
fn reason(error: &Error) -> String {
    let context = error.context.as_ref().map(|context| context.as_str().to_owned());
    let cause = error.cause.as_ref().map(ToString::to_string);
    let parts = [context, cause].into_iter().flatten().filter(|part| !part.is_empty());
    let text: String = parts.flat_map(|part| [": ".to_owned(), part]).collect();
    text.chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::upstream;

    fn compile(url: &str) -> Result<Target, String> {
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
    fn base_urls_are_parsed_and_invalid_ones_rejected() {
        let target = compile("https://example.com/prefix/").unwrap();
        assert_eq!(
            (target.tls, target.port, target.prefix.as_str(), target.authority.as_str()),
            (true, 443, "/prefix", "example.com")
        );
        let target = compile("http://[::1]:8080").unwrap();
        assert_eq!(
            (target.host.as_str(), target.port, target.authority.as_str(), target.prefix.as_str()),
            ("::1", 8080, "[::1]:8080", "")
        );
        for invalid in ["example.com", "ftp://x", "https://", "https://u:p@x", "https://x/?a=b", "not a url", ""] {
            assert!(compile(invalid).unwrap_err().contains("is not a base URL"), "{invalid}");
        }
    }
}

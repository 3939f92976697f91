//! Forwards a native request: admits it, rewrites the heads of request and response, and marks the changed cache entries
//! as stale.
//!
//! A [`Forward`] lives as long as the stream and keeps the provider's permits until then. Pingora transports the bytes.

use crate::base::ids::{ClientId, ProviderId};
use crate::base::operation::Operation;
use crate::base::problem::{Outcome, Problem};
use crate::base::request_reply::{ProviderFailure, ProviderReply, Response};
use crate::base::trace_context::TraceAttribute;
use crate::engine::body_deadline::BodyDeadline;
use crate::engine::breaker::CallSubject;
use crate::engine::cache::WriteScope;
use crate::engine::connection_groups::{ConnectionGroup, announces_forbidden_body};
use crate::engine::credential::{AuthenticatedRequest, OutgoingBody, OutgoingRequest, SentCredential};
use crate::engine::forward_connection::ConnectionState;
use crate::engine::request_record::RequestRecord;
use crate::engine::upstream::{ForwardPeer, Peer};
use crate::fetch::provider_admission::{self, CallGuards, CallInFlight, CallPermit};
use crate::fetch::provider_query::{self, ProviderIdentity, ProviderQuery, SharedState};
use crate::pipeline::forward_memory::ForwardMemory;
use crate::pipeline::{problems, respond};
use crate::rules::purge::Subject;
use crate::rules::query_key::StreamMask;
use crate::rules::{forwarding, hop_by_hop};
use crate::runtime::snapshot::{Provider, Snapshot};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// The cached data that a request makes stale if it succeeds.
pub(crate) enum Change {
    /// None.
    Nothing,
    /// A session, and the lists that contain it.
    Session {
        /// The query for the session.
        session: Box<ProviderQuery>,
        /// A query for the lists, if the provider has any.
        lists: Option<Box<ProviderQuery>>,
    },
    /// Lists: a query for them, if the provider has any.
    Lists(Option<Box<ProviderQuery>>),
    /// An agent, with all its sessions and lists.
    Agent(Subject),
}

/// A request that is being forwarded.
pub struct Forward {
    /// The record of the request.
    pub record: RequestRecord,
    /// The CORS headers of the response.
    pub cors_headers: Vec<(HeaderName, HeaderValue)>,
    shared: Arc<SharedState>,
    snapshot: Arc<Snapshot>,
    client: ClientId,
    provider: ProviderId,
    identity: ProviderIdentity,
    request: ForwardRequest,
    sent: SentCredential,
    /// Masks the credential in the response's body.
    mask: StreamMask,
    /// How many of the provider's addresses were tried.
    tries: usize,
    /// How many addresses the provider has.
    addresses: usize,
    /// The connections that the request may use.
    group: Option<ConnectionGroup>,
    /// The state of its connection.
    connection: Arc<ConnectionState>,
    /// The connection may not come from the pool: one from there was closed before the response.
    needs_new_connection: bool,
    /// The status with which the provider refused the credential once, so Weir renews it.
    refused_with: Option<u16>,
    /// The status of the provider's response.
    status: Option<u16>,
    /// The response has no `Content-Length`: the provider may change data until the stream ends.
    streams: bool,
    /// A connection to the provider was established.
    connected: bool,
    failed: bool,
    started: Instant,
    /// The deadline of the client's body.
    pub body_deadline: Arc<BodyDeadline>,
    /// The quota and the breakers.
    guards: CallGuards,
    memory: ForwardMemory,
    /// The provider's permit.
    permit: CallPermit,
    /// The permit of the client's share.
    _share: OwnedSemaphorePermit,
    _call: CallInFlight,
}

/// The changes to the request's head that make it a request to the provider.
pub struct ProviderHead {
    /// `Host`.
    pub authority: String,
    /// Headers to remove.
    pub drop: Vec<HeaderName>,
    /// No other request may use the connection.
    pub close: bool,
    /// The response must not be encoded, because Weir masks the credential in it.
    pub plain_response: bool,
    /// Trace context headers, if the request is traced.
    pub trace: Vec<(HeaderName, HeaderValue)>,
    /// `Via`, in addition to the client's.
    pub via: (HeaderName, HeaderValue),
    /// `Max-Forwards`, one less than the client's.
    pub max_forwards: Option<(HeaderName, HeaderValue)>,
}

/// What to do with the provider's response.
pub enum ResponseAction {
    /// Forward it, with these changes to its headers.
    Forward {
        /// Headers to remove.
        drop: Vec<HeaderName>,
        /// Weir's headers, which replace those of the same name.
        set: Vec<(HeaderName, HeaderValue)>,
        /// Weir's headers, in addition to those of the same name.
        add: Vec<(HeaderName, HeaderValue)>,
    },
    /// Discard it and send the request again with a new token: the provider refused the token.
    RetryWithNewToken,
    /// Discard it and respond with this problem.
    Refuse(Box<Problem>),
}

/// A request to forward.
pub(crate) struct ForwardRequest {
    /// What it changes.
    pub change: Change,
    /// The part of the client's path before the provider's path.
    pub prefix: String,
    /// The provider's path and query.
    pub path_and_query: String,
    /// Its method.
    pub method: http::Method,
    /// It comes from a proxy whose `Forwarded` headers Weir trusts.
    pub from_trusted_proxy: bool,
}

impl Forward {
    /// Waits until Weir may call the provider, and gets the credential.
    ///
    /// # Errors
    /// Weir may not call the provider before the deadline, or there is no credential.
    pub(crate) async fn start(
        shared: &Arc<SharedState>,
        snapshot: &Arc<Snapshot>,
        client: ClientId,
        provider: ProviderId,
        identity: ProviderIdentity,
        request: ForwardRequest,
        memory: ForwardMemory,
    ) -> Outcome<Box<Self>> {
        let (metrics, config) = (&shared.metrics.upstream, &snapshot.providers[provider]);
        let call = shared.count_call(snapshot, client, &config.name)?;
        #[allow(clippy::disallowed_methods)] // measures how long the provider takes
        let started = Instant::now();
        let deadline = tokio::time::Instant::now() + config.target.timeout;
        let latest = deadline - config.target.timeout / 2;
        let caller = provider_query::caller(snapshot, client, provider, latest);
        let one_of_several = caller.shares_quota.then_some(&**caller.client);
        let guards = identity.guards(config, call_subject(config, &request.path_and_query, one_of_several));
        let (id, limits) = (&snapshot.clients[client].id, &snapshot.weir.limits);
        let share = provider_admission::acquire_client_share(metrics, config, &guards.quota, id, latest).await?;
        let permit = provider_admission::admit(shared.admission_state(), config, &guards, caller).await?;
        let sent = identity.credential.obtain(&shared.upstream, metrics, deadline, shared.now()).await.inspect_err(
            |error| {
                provider_admission::record_token_failure(&guards, error, shared.now());
            },
        )?;
        Ok(Box::new(Self {
            record: RequestRecord::new(String::new(), ""),
            cors_headers: Vec::new(),
            shared: shared.clone(),
            snapshot: snapshot.clone(),
            client,
            provider,
            identity,
            request,
            sent,
            mask: StreamMask::default(),
            tries: 0,
            addresses: 0,
            group: None,
            connection: Arc::default(),
            needs_new_connection: false,
            refused_with: None,
            status: None,
            streams: false,
            connected: false,
            failed: false,
            started,
            body_deadline: Arc::new(BodyDeadline::new(
                limits.stall_timeout,
                limits.body_timeout,
                tokio::time::Instant::now(),
            )),
            guards,
            memory,
            permit,
            _share: share,
            _call: call,
        }))
    }

    /// Returns the provider.
    #[must_use]
    pub fn provider(&self) -> &Provider {
        &self.snapshot.providers[self.provider]
    }

    /// Starts the trace step of the provider call.
    pub fn start_upstream_step(&mut self) {
        let target = &self.snapshot.providers[self.provider].target;
        self.record.steps.client_step("upstream");
        self.record.steps.attribute("server.address", || TraceAttribute::Text(target.authority().into()));
    }

    /// Returns the next address to connect to. Fetches a new token first if the provider refused the last one.
    ///
    /// # Errors
    /// The provider has no address, or Weir gets no new token.
    pub async fn peer(&mut self) -> Outcome<Peer> {
        let metrics = &self.shared.metrics.upstream;
        if self.refused_with.is_some() {
            let deadline = tokio::time::Instant::now() + self.provider().target.timeout;
            self.sent =
                self.identity.credential.obtain(&self.shared.upstream, metrics, deadline, self.shared.now()).await?;
        }
        let provider = self.provider();
        let owner = &self.identity.credential.identity;
        let (may_reuse, idle_timeout) = (!self.needs_new_connection, provider.idle_timeout);
        let upstream = &self.shared.upstream;
        let peer = upstream.peer(&provider.target, self.tries, may_reuse, idle_timeout, owner).await;
        self.tries += 1;
        let ForwardPeer { peer, group, addresses, connection } =
            peer.map_err(|failure| self.record_failure(failure))?;
        (self.group, self.addresses, self.connection) = (Some(group), addresses, connection);
        Ok(peer)
    }

    /// Returns whether there is an address that was not tried yet.
    #[must_use]
    pub fn has_more_addresses(&self) -> bool {
        self.tries < self.addresses
    }

    /// Returns the changes to the head of the client's request.
    #[must_use]
    pub fn provider_head(&self, version: Version, headers: &HeaderMap) -> ProviderHead {
        let target = &self.provider().target;
        let own = self.identity.credential.header_names().into_iter().cloned();
        ProviderHead {
            authority: target.authority().to_owned(),
            drop: hop_by_hop::of_request(headers, self.request.from_trusted_proxy).chain(own).collect(),
            // Whether a body follows the response to HEAD cannot be known.
            close: self.request.method == http::Method::HEAD,
            plain_response: self.identity.credential.query_key().is_some(),
            trace: if self.record.steps.context().is_some() { self.record.steps.headers() } else { Vec::new() },
            via: forwarding::via(version),
            max_forwards: forwarding::decremented(&self.request.method, headers),
        }
    }

    /// Returns path, query and credential of the request, whose other headers are these. `has_body`: it has a body, or may
    /// have one.
    ///
    /// # Errors
    /// The request cannot be signed.
    pub(crate) fn authenticated(&self, headers: &HeaderMap, has_body: bool) -> Outcome<AuthenticatedRequest> {
        let outgoing = OutgoingRequest {
            method: self.request.method.as_str(),
            target: &self.provider().target,
            path_and_query: &self.request.path_and_query,
            body: if has_body { OutgoingBody::Streamed } else { OutgoingBody::Whole(b"") },
        };
        let AuthenticatedRequest { path_and_query, headers } =
            self.sent.added_to(&outgoing, headers.iter(), self.shared.now())?;
        Ok(AuthenticatedRequest { path_and_query: outgoing.target.path(&path_and_query), headers })
    }

    /// Decides what to do with the provider's response. Updates the breaker, the quota and the cache from its status.
    pub fn response_action(&mut self, version: Version, status: u16, headers: &HeaderMap) -> ResponseAction {
        self.retire_doubtful_connection(status, headers);
        self.count(&status.to_string());
        let credential = &self.identity.credential;
        if self.refused_with.is_none() && credential.renew(&self.sent, status, headers, self.shared.now()) {
            self.refused_with = Some(status);
            return ResponseAction::RetryWithNewToken;
        }
        let (provider, is_forwarded) = (self.provider(), self.identity.credential.is_forwarded());
        let error = (!matches!(status, 200..=399)).then(|| {
            let reply = ProviderReply { status, headers: headers.clone(), body: Bytes::new() };
            provider.errors.judge(reply, is_forwarded, self.shared.now())
        });
        provider_admission::record_result(&self.guards, error.as_ref(), true, self.shared.now());
        // The response may be a stream that never ends.
        self.permit.end_trial();
        self.status = Some(status);
        self.streams = !headers.contains_key(header::CONTENT_LENGTH);
        // The client sees the refusal of its own credential, but not the refusal of Weir's.
        if let Some(error) = error.filter(|_| status == 401 && !is_forwarded) {
            return ResponseAction::Refuse(error.into());
        }
        if status < 400 {
            self.mark_changed();
        }
        if let Err(limit) = self.memory.add_response(headers) {
            return ResponseAction::Refuse(limit.into());
        }
        self.record.status = status;
        self.record.steps.attribute("http.response.status_code", || TraceAttribute::Number(status.into()));
        let (address, key) = (&self.provider().address, self.identity.credential.query_key());
        let (mut drop, mut add) =
            forwarding::response_changes(address, key.map(|key| &**key), headers, &self.request.prefix);
        drop.extend_from_slice(hop_by_hop::framing_without_body(status));
        add.extend(self.cors_headers.iter().cloned().chain([forwarding::via(version)]));
        ResponseAction::Forward { drop, set: self.headers_to_set(), add }
    }

    /// Reserves the memory of a part of the request's body.
    ///
    /// # Errors
    /// It would exceed the client's share. A write has its memory already.
    pub fn add_request_part(&mut self, length: usize) -> Outcome<()> {
        Ok(self.memory.add_request_part(length)?)
    }

    /// Reserves the memory of a part of the response.
    ///
    /// # Errors
    /// It would exceed the client's share. Of a write, this can be only an event stream with long parts.
    pub fn add_part(&mut self, length: usize) -> Outcome<()> {
        Ok(self.memory.add_part(length)?)
    }

    /// Masks the credential in a part of the response's body. It can keep back the end of a part until the next one.
    pub fn mask_part(&mut self, part: &mut Option<Bytes>, is_last: bool) {
        if let Some(key) = self.identity.credential.query_key() {
            // An empty part would end the body.
            *part = self.mask.add(key, part.take(), is_last).filter(|part| !part.is_empty());
        }
    }

    fn headers_to_set(&self) -> Vec<(HeaderName, HeaderValue)> {
        let cache_status = if self.request.method.is_safe() { "weir; fwd=bypass" } else { "weir; fwd=method" };
        let buckets = self.snapshot.buckets(Some(self.client), &[self.provider]);
        respond::forwarded_headers(&buckets, &self.record, cache_status)
    }

    /// Records that a connection to the provider is established.
    pub fn mark_connected(&mut self) {
        self.connected = true;
    }

    /// Returns whether the connection to the provider carried other requests before.
    #[must_use]
    pub fn is_connection_reused(&self) -> bool {
        self.connection.is_reused()
    }

    /// Returns whether the request, which is idempotent, may be sent a second time after its connection broke: the
    /// connection came from the pool, so the provider has probably closed it before it got the request, and no byte of a
    /// response arrived. The second time the connection is new, so there is no third time.
    pub fn may_send_again(&mut self) -> bool {
        self.needs_new_connection = self.connection.is_reused() && !self.connection.has_response();
        self.needs_new_connection
    }

    /// Returns whether the pool returned a connection of a group that was retired in the meantime.
    #[must_use]
    pub fn is_connection_retired(&self) -> bool {
        self.group.is_some_and(|group| self.shared.upstream.groups.is_retired(group))
    }

    /// Makes requests stop using this connection if the provider may send more on it than this final response: a body
    /// that the response cannot have, or its response to the rest of the request body.
    fn retire_doubtful_connection(&self, status: u16, headers: &HeaderMap) {
        let upload_unfinished = self.body_deadline.next_deadline().is_some();
        let forbidden_body = StatusCode::from_u16(status).is_ok_and(|status| announces_forbidden_body(status, headers));
        if let Some(group) = self.group.filter(|_| upload_unfinished || forbidden_body) {
            self.shared.upstream.groups.retire(group);
        }
    }

    /// Records that the provider did not respond, or not completely. Returns the problem.
    pub fn record_failure(&mut self, failure: ProviderFailure) -> Box<Problem> {
        self.failed = true;
        let provider = self.provider();
        self.shared.metrics.upstream.failed(&provider.name, "native", failure.kind);
        let error = provider.errors.judge_failure(failure);
        provider_admission::record_result(&self.guards, Some(&error), true, self.shared.now());
        error.into()
    }

    /// Returns the response for a problem, in the format of the provider's errors.
    #[must_use]
    pub fn problem_response(&mut self, problem: &Problem) -> Response {
        let (snapshot, now) = (self.snapshot.clone(), self.shared.now());
        let buckets = snapshot.buckets(Some(self.client), &[self.provider]);
        let native_errors = snapshot.providers[self.provider].native_errors.as_ref();
        let mut response = respond::native(problem, native_errors, &buckets, &mut self.record, now);
        response.headers.extend(self.cors_headers.iter().cloned());
        response
    }

    fn count(&self, status: &str) {
        let labels = [&*self.provider().name, "native", status];
        self.shared.metrics.upstream.requests.with_label_values(&labels).inc();
    }

    /// Marks the cache entries that this request changes as stale.
    fn mark_changed(&self) {
        let (cache, now) = (&self.shared.cache, self.shared.now());
        let lists = match &self.request.change {
            Change::Nothing => return,
            Change::Agent(agent) => return cache.record_write(WriteScope::Agent(agent.clone()), now),
            Change::Session { session, lists } => {
                cache.record_write(WriteScope::Subject(session.subject.clone()), now);
                lists
            }
            Change::Lists(lists) => lists,
        };
        if let Some(lists) = lists {
            cache.record_write(WriteScope::Subject(lists.subject.clone()), now);
        }
    }

    /// Records the end of the request, complete or not, and returns its duration. A stream may have changed data until
    /// its end; a request without a response may have changed data too.
    pub fn finish(&mut self) -> Duration {
        match self.status {
            Some(status) if status < 400 && self.streams => self.mark_changed(),
            None if self.connected => self.mark_changed(),
            _ => {}
        }
        if self.status.is_none() && !self.failed {
            // The client closed the connection.
            self.count("cancelled");
        }
        let duration = self.started.elapsed();
        self.record.provider_wait = duration;
        let labels = [&*self.provider().name, "native"];
        self.shared.metrics.upstream.duration.with_label_values(&labels).observe(duration.as_secs_f64());
        duration
    }

    /// Returns the problem for a provider that refuses Weir's credential.
    #[must_use]
    pub fn credential_refused(&self) -> Box<Problem> {
        problems::credential_refused(&self.provider().name, self.refused_with.unwrap_or(401))
    }
}

/// Returns what a forwarded request is about, for the breaker: the session that the path names or is below, the lists
/// of an agent, or else the path. `client`: the one that calls, if others use the credential too.
fn call_subject(provider: &Provider, path_and_query: &str, client: Option<&str>) -> CallSubject {
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    for (operation, compiled) in provider.operations.iter() {
        let Some((captured, segments_below)) = compiled.template.read_ids(path, query) else { continue };
        if operation == Operation::GetSession || segments_below == 0 {
            return CallSubject::of_session(captured.agent.as_deref(), captured.session.as_deref());
        }
    }
    CallSubject::of_path(path_and_query, client)
}

/// Replaces the URLs in a response's headers that lead to the provider with the same places at Weir.
pub(crate) fn rewrite_links(provider: &Provider, prefix: &str, response: &mut Response) {
    let typed = |(name, value): (&str, &[u8])| Some((name.parse().ok()?, HeaderValue::from_bytes(value).ok()?));
    let headers: HeaderMap = response.headers.iter().filter_map(typed).collect();
    for (name, values) in provider.address.rewrite(&headers, prefix) {
        response.headers.retain(|known| known != name.as_str());
        values.into_iter().for_each(|value| response.headers.push(name.as_str(), value));
    }
}

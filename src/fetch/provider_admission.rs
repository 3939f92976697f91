//! Decides whether Weir may call a provider now, and records how calls end.
//!
//! All calls pass through this file: calls that fill the cache, and forwarded requests. Nothing here sends a request.
//! Callers pass the time or the clock.

use crate::base::client_use::{ClientUse, CountGuard, Counted};
use crate::base::metrics::UpstreamMetrics;
use crate::base::model::Time;
use crate::base::problem::Code;
use crate::base::request_reply::FailureKind;
use crate::engine::breaker::{AdmittedCall, Breaker, BreakerChange, CallOutcome, CallSubject};
use crate::engine::coalesce::Joiners;
use crate::engine::connection_slots::{ConnectionSlots, NoSlot};
use crate::engine::credential::token_error::TokenError;
use crate::engine::provider_health::ProviderHealth;
use crate::engine::provider_quota::{ProviderQuota, QuotaLimit};
use crate::rules::error_rules::{ProviderError, ProviderErrorCause};
use crate::runtime::snapshot::Provider;
use futures_util::stream::{FuturesUnordered, StreamExt};
use prometheus::IntGauge;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// Of how many sessions failures say that a provider without `breaker.failures` fails.
const FAILURES_WITHOUT_BREAKER: usize = 5;

/// Why Weir does not call a provider now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum NotAdmitted {
    #[error("{provider} throttles requests; Weir has paused its calls to it")]
    Pause { provider: Arc<str>, wait: Duration },
    #[error("{provider} failed repeatedly; its breaker is open")]
    Breaker { provider: Arc<str>, wait: Duration },
    #[error("Weir's capacity for {provider} is used up")]
    Capacity { provider: Arc<str>, limit: QuotaLimit, wait: Duration },
    #[error(
        "this client has {limit} forwarded requests to {provider} in flight, which is the limit (half of \
         capacity.concurrent)"
    )]
    ClientShare { provider: Arc<str>, limit: usize },
    #[error("this client has {limit} calls to {provider} in flight, which is its share (half of capacity.concurrent)")]
    CapacityShare { provider: Arc<str>, limit: usize },
    #[error("{limit} calls to providers are in flight or wait, which is the limit (overload.max_in_flight)")]
    TooManyCalls { limit: i64 },
    #[error(
        "this client has {limit} calls to providers in flight or waiting, which is its share (half of \
         overload.max_in_flight)"
    )]
    CallShare { limit: i64 },
    #[error("{limit} calls to providers are in flight, which is all that the limit of open files permits")]
    TooManyConnections { limit: usize },
    #[error(
        "this client has {limit} calls to providers in flight, which is its share (half of what the limit of open files \
         permits)"
    )]
    ConnectionShare { limit: usize },
}

impl NotAdmitted {
    /// Returns the problem code of the refusal.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Pause { .. } | Self::Capacity { .. } | Self::ClientShare { .. } | Self::CapacityShare { .. } => {
                Code::ProviderRateLimited
            }
            Self::Breaker { .. } => Code::ProviderUnavailable,
            Self::TooManyCalls { .. }
            | Self::CallShare { .. }
            | Self::TooManyConnections { .. }
            | Self::ConnectionShare { .. } => Code::Overloaded,
        }
    }

    /// Returns the metric's `reason` label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Pause { .. } => "pause",
            Self::Breaker { .. } => "breaker",
            Self::Capacity { limit, .. } => limit.name(),
            Self::ClientShare { .. } | Self::CapacityShare { .. } => "share",
            Self::TooManyCalls { .. }
            | Self::CallShare { .. }
            | Self::TooManyConnections { .. }
            | Self::ConnectionShare { .. } => "overload",
        }
    }

    /// Counts the refusal, and returns it.
    fn counted(self, metrics: &UpstreamMetrics, provider: &str) -> Self {
        metrics.refused.with_label_values(&[provider, self.reason()]).inc();
        self
    }
}

/// Counts a call as in flight until dropped.
pub(crate) struct CallInFlight {
    all: IntGauge,
    _of_client: CountGuard,
}

impl Drop for CallInFlight {
    fn drop(&mut self) {
        self.all.dec();
    }
}

/// The most calls in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallLimits {
    /// Of all clients.
    pub total: i64,
    /// Of one client.
    pub share: i64,
}

/// Counts a call as in flight, on behalf of the client that causes it. The limits also hold for calls that no request waits
/// for: background refreshes, and calls whose clients have closed their connections. Requests in flight have their own.
///
/// # Errors
/// So many calls are in flight, or so many of this client.
pub(crate) fn count_call(
    metrics: &UpstreamMetrics,
    provider: &str,
    client: &Arc<ClientUse>,
    limits: CallLimits,
) -> Result<CallInFlight, NotAdmitted> {
    let CallLimits { total, share } = limits;
    let (of_client, clients_calls) = client.count(Counted::Calls);
    // First the share: a call that exceeds it takes nothing of the total, not even for a moment.
    if clients_calls > share {
        return Err(NotAdmitted::CallShare { limit: share }.counted(metrics, provider));
    }
    metrics.calls.inc();
    let call = CallInFlight { all: metrics.calls.clone(), _of_client: of_client };
    if metrics.calls.get() > total {
        return Err(NotAdmitted::TooManyCalls { limit: total }.counted(metrics, provider));
    }
    Ok(call)
}

/// Waits, at most until `latest`, until the client has fewer forwarded requests in flight than its share. Call it
/// before [`admit`], so that a client above its share does not wait in the provider's queue.
///
/// # Errors
/// The client's share is used up.
pub(crate) async fn acquire_client_share(
    metrics: &UpstreamMetrics,
    provider: &Provider,
    quota: &ProviderQuota,
    client: &Arc<str>,
    latest: Instant,
) -> Result<OwnedSemaphorePermit, NotAdmitted> {
    let (name, limit) = (&provider.name, quota.forwarded_shares.max_permits);
    let permit = quota.forwarded_shares.acquire_until(client, latest).await;
    permit.ok_or_else(|| NotAdmitted::ClientShare { provider: name.clone(), limit }.counted(metrics, name))
}

/// The quota and the breakers of one call.
pub(crate) struct CallGuards {
    /// The quota of the call's credential.
    pub quota: Arc<ProviderQuota>,
    /// The provider's breaker, which counts calls without a connection, and that of the credential.
    breakers: [Arc<Breaker>; 2],
    /// What the call is about.
    subject: CallSubject,
    /// Logs changes of the provider's state.
    health: Arc<ProviderHealth>,
}

/// What a call holds until its end.
pub(crate) struct CallPermit {
    _places: Places,
    /// Admits the next trials when dropped.
    admitted: Option<[AdmittedCall; 2]>,
}

impl CallPermit {
    /// Ends the call's trial: its result is recorded, but the call continues.
    pub(crate) fn end_trial(&mut self) {
        self.admitted = None;
    }
}

impl CallGuards {
    /// Returns the guards of a call, from the quota and the breaker of its credential.
    pub(crate) fn new(
        provider: &Provider,
        quota: Arc<ProviderQuota>,
        breaker: Arc<Breaker>,
        subject: CallSubject,
    ) -> Self {
        Self { quota, breakers: [provider.breaker.clone(), breaker], subject, health: provider.health.clone() }
    }

    /// Returns of how many sessions failures say that the provider itself fails.
    fn failures_of_all(&self) -> usize {
        let [_, credential] = &self.breakers;
        let failures = credential.config.as_ref().map(|config| config.failures.get());
        failures.map_or(FAILURES_WITHOUT_BREAKER, |failures| usize::try_from(failures).unwrap_or(usize::MAX))
    }

    /// Checks whether the provider may be called now.
    ///
    /// # Errors
    /// It is paused, or a breaker is open.
    fn check(&self, provider: &Provider, now: Time) -> Result<(), NotAdmitted> {
        let name = || provider.name.clone();
        if let Some(until) = self.quota.pauses.until(self.subject, now) {
            return Err(NotAdmitted::Pause { provider: name(), wait: until.since(now) });
        }
        let checked = self.breakers.iter().try_for_each(|breaker| breaker.check(self.subject, now));
        checked.map_err(|until| NotAdmitted::Breaker { provider: name(), wait: until.since(now) })
    }

    fn admit(&self, now: Time) -> Result<[AdmittedCall; 2], Time> {
        let [connections, credential] = &self.breakers;
        let admitted = [connections.admit(self.subject, now)?, credential.admit(self.subject, now)?];
        if admitted.iter().any(AdmittedCall::is_trial) {
            self.health.trial(now);
        }
        Ok(admitted)
    }

    /// Records the outcome. Returns the change of a breaker: of that for connections, if both change.
    fn record(&self, outcome: CallOutcome, now: Time) -> Option<BreakerChange> {
        let [connections, credential] = &self.breakers;
        // A session that fails says nothing about connections.
        let about_connections = outcome != CallOutcome::Failure;
        let connections_change = about_connections.then(|| connections.record(self.subject, outcome, now)).flatten();
        connections_change.or(credential.record(self.subject, outcome, now))
    }
}

/// The places of a call: at the provider, and among the connections of the process.
struct Places {
    _at_provider: OwnedSemaphorePermit,
    _connection: OwnedSemaphorePermit,
    /// The client's shares of both.
    _of_client: [Option<OwnedSemaphorePermit>; 2],
}

/// What the admission of every call uses.
#[derive(Clone, Copy)]
pub(crate) struct AdmissionState<'s> {
    /// Counts refusals.
    pub metrics: &'s UpstreamMetrics,
    /// The connections of the process.
    pub slots: &'s ConnectionSlots,
    /// Reads the time.
    pub clock: fn() -> Time,
}

/// On whose behalf a call is made, and how long it may wait.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'c> {
    /// The client's id.
    pub client: &'c Arc<str>,
    /// There are other clients, so that this one gets half of the connections of the process.
    pub has_others: bool,
    /// Other clients use the quota of the credential too, so that this one gets half of `capacity.concurrent`.
    pub shares_quota: bool,
    /// The clients that join the call while it waits.
    pub joiners: Option<&'c Joiners>,
    /// The end of the wait.
    pub latest: Instant,
}

/// Waits for a permit to call a provider. The clock is read before and after the wait.
///
/// # Errors
/// The provider is paused, its breaker is open, or its capacity is used up.
pub(crate) async fn admit(
    state: AdmissionState<'_>,
    provider: &Provider,
    guards: &CallGuards,
    caller: Caller<'_>,
) -> Result<CallPermit, NotAdmitted> {
    let admitted = try_admit(state, provider, guards, caller).await;
    admitted.map_err(|refusal| refusal.counted(state.metrics, &provider.name))
}

async fn try_admit(
    state: AdmissionState<'_>,
    provider: &Provider,
    guards: &CallGuards,
    caller: Caller<'_>,
) -> Result<CallPermit, NotAdmitted> {
    // Checked before the wait, to refuse at once, and after it, because the state may have changed.
    guards.check(provider, (state.clock)())?;
    let places = wait_for_places(state, provider, guards, caller).await?;
    let now = (state.clock)();
    guards.check(provider, now)?;
    let breaker_open = |until: Time| NotAdmitted::Breaker { provider: provider.name.clone(), wait: until.since(now) };
    let admitted = guards.admit(now).map_err(breaker_open)?;
    Ok(CallPermit { _places: places, admitted: Some(admitted) })
}

/// Waits in the queue of each client that waits for this call, so that a client with many calls does not hold up the others
/// that have joined one of them.
///
/// # Errors
/// Why the caller itself got no place.
async fn wait_for_places(
    state: AdmissionState<'_>,
    provider: &Provider,
    guards: &CallGuards,
    caller: Caller<'_>,
) -> Result<Places, NotAdmitted> {
    let own = acquire_places(state, provider, guards, caller, caller.client.clone());
    let Some(joiners) = caller.joiners else { return own.await };
    tokio::pin!(own);
    let (mut others, mut known) = (FuturesUnordered::new(), 0);
    loop {
        tokio::select! {
            biased;
            places = &mut own => return places,
            // A refusal leaves the caller its own place in the queue.
            Some(places) = others.next() => if let Ok(places) = places { return Ok(places) },
            client = joiners.get(known) => {
                known += 1;
                if client != *caller.client {
                    others.push(acquire_places(state, provider, guards, caller, client));
                }
            }
        }
    }
}

/// Waits for a place within the client's share, in its queue.
///
/// # Errors
/// There was none until `caller.latest`, or the provider may not be called any more.
async fn acquire_places(
    state: AdmissionState<'_>,
    provider: &Provider,
    guards: &CallGuards,
    caller: Caller<'_>,
    client: Arc<str>,
) -> Result<Places, NotAdmitted> {
    let (quota, latest, name) = (&guards.quota, caller.latest, || provider.name.clone());
    let no_slot = |no_slot| match no_slot {
        NoSlot::Total(limit) => NotAdmitted::TooManyConnections { limit },
        NoSlot::Share(limit) => NotAdmitted::ConnectionShare { limit },
    };
    // Shares come before the queue, so that a client above one of them holds nothing that others wait for.
    let mut of_client = [None, None];
    if caller.has_others {
        of_client[0] = Some(state.slots.acquire_share(&client, latest).await.map_err(no_slot)?);
    }
    if caller.shares_quota {
        let share = quota.client_shares.acquire_until(&client, latest).await;
        let limit = quota.client_shares.max_permits;
        of_client[1] = Some(share.ok_or_else(|| NotAdmitted::CapacityShare { provider: name(), limit })?);
    }
    let check = || guards.check(provider, (state.clock)());
    let busy = |limit, wait| NotAdmitted::Capacity { provider: name(), limit, wait };
    let at_provider = quota.acquire(&client, latest, check, busy).await?;
    // After the queue, because a call that waits for the provider has no connection.
    let connection = state.slots.acquire(latest).await.map_err(no_slot)?;
    Ok(Places { _at_provider: at_provider, _of_client: of_client, _connection: connection })
}

/// Returns whether a call may send its request once more: there is no pause, the breaker is not open, and the quota has a
/// call left. Takes that call from the quota.
#[must_use]
pub(crate) fn admit_retry(guards: &CallGuards, now: Time) -> bool {
    let quota = &guards.quota;
    guards.breakers.iter().all(|breaker| breaker.is_closed())
        && quota.pauses.until(guards.subject, now).is_none()
        && quota.try_take()
}

/// Updates the breakers and the pause from how a request ended. Call it before the permit is dropped, so that the next
/// call sees the new state. `had_whole_timeout`: no other wait took from the time that the provider had. Otherwise a timeout
/// says nothing about it.
pub(crate) fn record_result(guards: &CallGuards, error: Option<&ProviderError>, had_whole_timeout: bool, now: Time) {
    match outcome(error).filter(|_| had_whole_timeout || !error.is_some_and(is_timeout)) {
        None => {}
        Some(CallOutcome::Success) => {
            let change = guards.record(CallOutcome::Success, now);
            guards.health.succeeded(change, now);
        }
        Some(failed) => {
            let change = guards.record(failed, now);
            guards.health.failed(&error.map(cause).unwrap_or_default(), change, now);
        }
    }
    if let Some((error, wait)) = error.and_then(|error| Some((error, error.wait?))) {
        pause(guards, error, wait, now);
    }
}

/// Pauses calls as long as the provider requests: all calls of the credential if it throttles, those for the same session
/// if it is unavailable (503), because that may hold for this session only.
fn pause(guards: &CallGuards, error: &ProviderError, wait: Duration, now: Time) {
    let (pauses, until) = (&guards.quota.pauses, now.plus(wait));
    let all_until = if error.code() == Code::ProviderUnavailable || error.status() == Some(503) {
        pauses.pause_subject(guards.subject, until, guards.failures_of_all(), now)
    } else {
        pauses.pause_all(until);
        Some(until)
    };
    if let Some(until) = all_until {
        guards.health.paused(&cause(error), until.since(now), now);
    }
}

/// Logs that there is no access token for the provider. The token's endpoint has no breaker.
pub(crate) fn record_token_failure(guards: &CallGuards, error: &TokenError, now: Time) {
    guards.health.failed(&format!("access token: {}", error.cause()), None, now);
}

/// Returns why a call failed, for the log.
fn cause(error: &ProviderError) -> String {
    match &error.cause {
        ProviderErrorCause::Failure(failure) => format!("{}: {}", failure.kind.reason(), failure.cause),
        ProviderErrorCause::Response { status, .. } | ProviderErrorCause::ForwardedCredentialRefused { status } => {
            format!("status {status}")
        }
    }
}

fn is_timeout(error: &ProviderError) -> bool {
    matches!(&error.cause, ProviderErrorCause::Failure(failure) if failure.kind == FailureKind::Timeout)
}

/// Returns what the result says about the provider; `None` if it says nothing.
fn outcome(error: Option<&ProviderError>) -> Option<CallOutcome> {
    Some(match error.map(|error| &error.cause) {
        None => CallOutcome::Success,
        Some(ProviderErrorCause::Failure(failure)) => match failure.kind {
            // Weir reached its own limit.
            FailureKind::Overloaded => return None,
            FailureKind::TooLarge => CallOutcome::Success,
            FailureKind::Connect
            | FailureKind::Dns
            | FailureKind::Refused
            | FailureKind::ConnectTimeout
            | FailureKind::Tls => CallOutcome::NoConnection,
            FailureKind::Timeout | FailureKind::Reset | FailureKind::Malformed => CallOutcome::Failure,
        },
        Some(
            ProviderErrorCause::Response { status, .. } | ProviderErrorCause::ForwardedCredentialRefused { status },
        ) => match *status {
            // The provider does not know this method. A proxy in front of a provider that is down may say so too.
            501 => return None,
            // A provider that throttles (503) or refuses the request (below 500) works.
            ..=499 | 503 => CallOutcome::Success,
            _ => CallOutcome::Failure,
        },
    })
}

//! A request's way, from who asks to what is answered, as one straight line.
//!
//! `answer` is the line; every step stands in its own room. It knows neither sockets nor Pingora,
//! and decides nothing that another room could.

use crate::cache::Kind;
use crate::conditional::{self, Directives};
use crate::config::edge::{Limits, counted_as};
use crate::config::weir::Charge;
use crate::cors;
use crate::error::Outcome;
use crate::error::{Code, Problem};
use crate::exchange::{Answer, Request};
use crate::fetch::{self, Looked, Served};
use crate::forward::{self, Forward, Passage};
use crate::listing::List;
use crate::model::{Form, Show, Time};
use crate::mount::Mounted;
use crate::native::{self, Way};
use crate::origin;
use crate::question::{self, Asking, Question, Shared};
use crate::ratelimit::{self, Bucket, Refusal};
use crate::respond::{self, Content};
use crate::route::{NO_ROUTE, Page, Route, Routed};
use crate::runtime::snapshot::Snapshot;
use crate::runtime::{self, Runtime};
use crate::template::Values;
use crate::trace::Trace;
use http::header;
use std::num::NonZeroU32;
use std::sync::Arc;

/// All that the line needs.
pub struct Line {
    /// What is in force.
    pub runtime: Arc<Runtime>,
    /// Cache, connections, metrics.
    pub shared: Arc<Shared>,
}

/// What becomes of a request.
pub enum Handled {
    /// It is answered.
    Answered(Answer),
    /// It goes on to the provider, and its answer comes back from there.
    Passed(Box<Forward>),
}

enum Done {
    Content(Content),
    Passed(Box<Forward>),
}

/// Label of browsers' questions whether they may ask.
const PREFLIGHT: &str = "preflight";
/// Label of requests that are passed on.
const NATIVE: &str = "native";

/// Who asks for what, once that is known.
struct Asked {
    snapshot: Arc<Snapshot>,
    client: usize,
    provider: Option<usize>,
    directives: Directives,
    now: Time,
}

impl Line {
    /// Answers a request: authenticate → route and permit → admit → cache → [fetch] → respond; or passes it on.
    pub async fn handle(&self, request: &Request, request_id: String) -> (Handled, Trace) {
        let (snapshot, now) = (self.runtime.snapshot(), runtime::now());
        if let Some(headers) = cors::preflight(snapshot.weir.cors.as_ref(), request) {
            let mut trace = Trace::new(request_id, PREFLIGHT);
            let answer = respond::preflight(headers, &mut trace);
            return (Handled::Answered(answer), trace);
        }
        let mounted = snapshot.mounts.find(&request.headers, &request.path);
        let mut trace = Trace::new(request_id, NO_ROUTE);
        let mut asked = Asked {
            client: usize::MAX,
            provider: None,
            directives: conditional::directives(&request.headers),
            snapshot: snapshot.clone(),
            now,
        };
        let outcome = match &mounted {
            None => self.line(request, &mut asked, &mut trace).await.map(Done::Content),
            Some(mounted) => self.native(request, mounted, &mut asked, &mut trace).await,
        };
        let buckets = asked.buckets();
        let shared_with = cors::headers(snapshot.weir.cors.as_ref(), request);
        let mut answer = match (outcome, mounted) {
            (Ok(Done::Passed(mut forward)), _) => {
                forward.shared_with = shared_with;
                return (Handled::Passed(forward), trace);
            }
            (Ok(Done::Content(content)), _) => respond::content(request, content, &buckets, &mut trace, runtime::now()),
            (Err(problem), None) => respond::problem(&problem, &buckets, &mut trace, runtime::now()),
            (Err(problem), Some(mounted)) => {
                let provider = &snapshot.providers[mounted.provider];
                let dialect = provider.dialect.as_ref();
                let mut answer = respond::native(&problem, dialect, &buckets, &mut trace, runtime::now());
                for (_, value) in answer.headers.iter_mut().filter(|(name, _)| *name == header::LOCATION) {
                    *value = forward::here(provider, mounted.prefix, value).unwrap_or_else(|| value.clone());
                }
                answer
            }
        };
        answer.headers.extend(shared_with);
        (Handled::Answered(answer), trace)
    }

    /// Authenticate, and refuse what is too much.
    fn enter(&self, request: &Request, asked: &mut Asked, trace: &mut Trace) -> Outcome<()> {
        well_formed(request)?;
        let identified = asked.snapshot.keys.identify(request, asked.now);
        asked.client = identified.map_err(|problem| self.failed(asked, request, problem))?;
        trace.client = Some(asked.snapshot.clients[asked.client].id.clone());
        within_limits(request, &asked.snapshot.weir.limits)?;
        self.shed_load(asked)
    }

    /// What someone is told who gave no valid key: that, unless too many from the same address have been.
    fn failed(&self, asked: &Asked, request: &Request, problem: Box<Problem>) -> Box<Problem> {
        let told = self.shared.metrics.edge.auth_failures.clone();
        let address = origin::address(request, &asked.snapshot.weir.trusted_proxies).map(counted_as);
        let counted = asked.snapshot.failures.as_ref().zip(address).map(|(failures, address)| failures.count(address));
        let Some(Err(wait)) = counted.filter(|_| problem.code == Code::Unauthorized) else {
            told.with_label_values(&["told"]).inc();
            return problem;
        };
        told.with_label_values(&["limited"]).inc();
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let detail = "too many requests from this address had no valid API key; send one, or wait";
        let mut limited = Problem::new(Code::RateLimitExceeded, detail).retry_after_ms(ms);
        limited.violated_policies = vec!["auth_failures".to_owned()];
        Box::new(limited)
    }

    /// The provider's own API.
    async fn native(
        &self,
        request: &Request,
        mounted: &Mounted<'_>,
        asked: &mut Asked,
        trace: &mut Trace,
    ) -> Outcome<Done> {
        let provider = mounted.provider;
        (trace.route, trace.provider) = (NATIVE, Some(asked.snapshot.providers[provider].name.clone()));
        self.enter(request, asked, trace)?;
        native::permitted(&asked.snapshot, asked.client, provider)?;
        asked.provider = Some(provider);
        let who = (asked.client, provider);
        let asking = Asking::of(&asked.snapshot, asked.client, provider, &request.headers)?;
        match native::way(&asked.snapshot, who, &asking, mounted, request)? {
            Way::Read(question) => {
                trace.route = question.operation()?.name;
                let looked = self.look_and_admit(asked, &question)?;
                let secrets = asked.snapshot.clients[asked.client].reveal_secrets;
                native::read(&self.shared, &question, looked, secrets, trace).await.map(Done::Content)
            }
            Way::Pass(change) => {
                self.admit(asked, false)?;
                let question_mark = if request.query.is_empty() { "" } else { "?" };
                let passage = Passage {
                    change,
                    prefix: mounted.prefix.to_owned(),
                    path_and_query: format!("{}{question_mark}{}", mounted.path, request.query),
                    method: request.method.clone(),
                };
                Forward::begin(&self.shared, &asked.snapshot, who, asking, passage).await.map(Done::Passed)
            }
        }
    }

    async fn line(&self, request: &Request, asked: &mut Asked, trace: &mut Trace) -> Outcome<Content> {
        self.enter(request, asked, trace)?;
        body_within_limits(request, &asked.snapshot.weir.limits)?;
        let route = asked.route(request, trace)?;
        match route {
            Route::Providers => {
                self.admit(asked, true)?;
                Ok(respond::providers(&asked.snapshot, asked.client, asked.now))
            }
            Route::Session { provider, agent, session, native } => {
                let values = Values { agent: agent.as_deref(), session: Some(&session), ..Values::default() };
                let asking = Asking::of(&asked.snapshot, asked.client, provider, &request.headers)?;
                let question = Question::new(&asked.snapshot, (asked.client, provider), asking, false, &values)?;
                self.session(asked, &question, native, trace).await
            }
            Route::List { provider, agent, page } => {
                let asking = Asking::of(&asked.snapshot, asked.client, provider, &request.headers)?;
                self.list(asked, asking, (provider, agent.as_deref()), &page, trace).await
            }
        }
    }

    /// Refuses at once what could only be queued.
    fn shed_load(&self, asked: &Asked) -> Outcome<()> {
        let most = i64::from(asked.snapshot.weir.overload.max_in_flight);
        if self.shared.metrics.http.in_flight.get() <= most {
            return Ok(());
        }
        let detail = format!("{most} requests are being answered; more are not taken on");
        Err(Box::new(Problem::new(Code::Overloaded, detail).retry_after_ms(1000)))
    }

    async fn session(&self, asked: &Asked, question: &Question, native: bool, trace: &mut Trace) -> Outcome<Content> {
        let looked = self.look_and_admit(asked, question)?;
        let Served { entry, status } = fetch::obtain(&self.shared, question, looked, trace).await?;
        trace.cache = Some(status);
        if let Kind::NotFound(problem) = &entry.kind {
            return Err(problem.clone());
        }
        let form = if native { Form::WithNative } else { Form::Unified };
        let show = Show { secrets: asked.snapshot.clients[asked.client].reveal_secrets, form };
        let view = fetch::view(&self.shared, question, &entry, show, asked.now)?;
        Ok(Content { body: view.body.clone(), etag: Some(view.etag.clone()) })
    }

    async fn list(
        &self,
        asked: &Asked,
        asking: Asking,
        (provider, agent): (usize, Option<&str>),
        page: &Page,
        trace: &mut Trace,
    ) -> Outcome<Content> {
        let list = List {
            shared: &self.shared,
            snapshot: &asked.snapshot,
            client: asked.client,
            provider,
            agent,
            page,
            asking,
            directives: asked.directives,
        };
        let start = list.start()?;
        let question = list.question(&start)?;
        let looked = self.look_and_admit(asked, &question)?;
        let body = list.read(start, (question, looked), trace).await?;
        Ok(Content { etag: Some(crate::reading::etag(&body)), body })
    }

    /// Policies may charge misses only, so the cache is looked up first; nothing is told of what is
    /// in it before the request is admitted.
    fn look_and_admit(&self, asked: &Asked, question: &Question) -> Outcome<Looked> {
        let looked = fetch::look(&self.shared, question, asked.directives, asked.now);
        self.admit(asked, looked.is_hit())?;
        Ok(looked)
    }

    fn admit(&self, asked: &Asked, hit: bool) -> Outcome<()> {
        let client = &asked.snapshot.clients[asked.client];
        let buckets = asked.buckets();
        let charged = |charge| charge == Charge::All || !hit;
        let decision = ratelimit::admit(&buckets, charged, NonZeroU32::MIN, &client.gate);
        let violated = match &decision {
            Err(Refusal::Limited { policies, .. }) => policies.as_slice(),
            _ => &[],
        };
        for bucket in buckets.iter().filter(|bucket| charged(bucket.limiter.policy.charge)) {
            let policy = &bucket.limiter.policy.name;
            let word = if violated.contains(policy) { "limited" } else { "allowed" };
            if decision.is_ok() || word == "limited" {
                self.shared.metrics.http.rate_limit.with_label_values(&[&*client.id, policy, word]).inc();
            }
        }
        decision.map_err(|refusal| respond::refusal(&client.id, &buckets, refusal))
    }
}

impl Asked {
    /// Route and permit.
    fn route(&mut self, request: &Request, trace: &mut Trace) -> Outcome<Route> {
        let routed = self.snapshot.routes.route(&request.method, &request.path, &request.query);
        let Routed { label, route } = routed.map_err(|(label, problem)| {
            trace.route = label;
            problem
        })?;
        trace.route = label;
        if let Route::Session { provider, .. } | Route::List { provider, .. } = route {
            trace.provider = Some(self.snapshot.providers[provider].name.clone());
            question::permitted(&self.snapshot, self.client, provider)?;
            self.provider = Some(provider);
        }
        Ok(route)
    }

    /// The policies that apply: the client's, and its for this provider.
    fn buckets(&self) -> Vec<&Bucket> {
        self.snapshot.buckets(self.client, self.provider)
    }
}

fn refuse(code: Code, detail: String) -> Outcome<()> {
    Err(Box::new(Problem::new(code, detail)))
}

/// Refuses what two readers could read in two ways, though Pingora reads it in one (RFC 9112, section 3.2).
fn well_formed(request: &Request) -> Outcome<()> {
    let headers = &request.headers;
    let what = match request.version {
        http::Version::HTTP_11 if !headers.contains_key(header::HOST) => "a request has a Host",
        _ if headers.get_all(header::HOST).iter().count() > 1 => "a request has one Host",
        _ => return Ok(()),
    };
    refuse(Code::InvalidRequest, what.to_owned())
}

/// No route of Weir's own takes a body.
fn body_within_limits(request: &Request, limits: &Limits) -> Outcome<()> {
    let announced = request.header("content-length").and_then(|length| length.trim().parse::<u64>().ok());
    let most = limits.body_bytes;
    match announced.filter(|length| *length > most) {
        Some(length) => refuse(Code::BodyTooLarge, format!("a body of {length} bytes; at most {most} are accepted")),
        None => Ok(()),
    }
}

/// Limits on what comes in.
fn within_limits(request: &Request, limits: &Limits) -> Outcome<()> {
    let (url, most) = (request.path.len() + request.query.len() + 1, limits.url_bytes);
    if url > most {
        return refuse(Code::UrlTooLong, format!("the URL has {url} bytes; at most {most} are accepted"));
    }
    let (count, most) = (request.headers.len(), limits.header_count);
    if count > most {
        return refuse(Code::HeadersTooLarge, format!("{count} header fields; at most {most} are accepted"));
    }
    let bytes: usize = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let most = limits.header_bytes;
    if bytes > most {
        return refuse(Code::HeadersTooLarge, format!("{bytes} bytes of headers; at most {most} are accepted"));
    }
    Ok(())
}

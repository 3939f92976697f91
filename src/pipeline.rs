//! A request's way, from who asks to what is answered, as one straight line.
//!
//! `answer` is the line; every step stands in its own room. It knows neither sockets nor Pingora,
//! and decides nothing that another room could.

use crate::batch::Batch;
use crate::batch::Job;
use crate::bounds::{self, Beyond};
use crate::cache::Kind;
use crate::charge::{Charged, charges};
use crate::conditional::{self, Directives};
use crate::config::edge::counted_as;
use crate::cors;
use crate::endpoints::{self, EXPLAIN};
use crate::error::Outcome;
use crate::error::{Code, Problem};
use crate::exchange::{Answer, Request};
use crate::explain;
use crate::fetch::{self, Looked, Served};
use crate::forward::{self, Forward, Passage};
use crate::held::Counted;
use crate::listing::List;
use crate::model::{Form, Show, Time};
use crate::mount::Mounted;
use crate::native::{self, Way};
use crate::origin;
use crate::parameters::Shape;
use crate::question::{self, Asking, Question, Shared};
use crate::ratelimit::{self, Bucket, Cost, Due, Refusal};
use crate::respond::{self, Content};
use crate::route::{NO_ROUTE, Name, Route, Routed, Source};
use crate::runtime::snapshot::Snapshot;
use crate::runtime::{self, Runtime};
use crate::span::Steps;
use crate::trace::Trace;
use crate::watching::{self, Begun, Watched, Watching, Wish};
use bytes::Bytes;
use http::HeaderValue;
use serde_json::{Map, Value};
use std::sync::Arc;

/// All that the line needs.
pub struct Line {
    /// What is in force.
    pub runtime: Arc<Runtime>,
    /// Cache, connections, metrics.
    pub shared: Arc<Shared>,
    watched: Arc<Watched>,
}

/// What becomes of a request.
pub enum Handled {
    /// It is answered.
    Answered(Answer),
    /// It goes on to the provider, and its answer comes back from there.
    Passed(Box<Forward>),
    /// Its answer begins with this, whose body is what is watched.
    Watching(Answer, Box<Watching>),
}

enum Done {
    Content(Content),
    Passed(Box<Forward>),
    Watching(Box<Watching>),
    /// There is nothing to say, now or later.
    Nothing,
}

/// Label of browsers' questions whether they may ask.
const PREFLIGHT: &str = "preflight";
/// Label of requests that are passed on.
const NATIVE: &str = "native";
/// Label of the provider of requests that go to several.
const SEVERAL: &str = "several";

/// Who asks for what, once that is known.
struct Asked {
    snapshot: Arc<Snapshot>,
    client: usize,
    /// Whom it goes to, each once.
    providers: Vec<usize>,
    /// It is for a provider's own API.
    mounted: bool,
    directives: Directives,
    now: Time,
}

impl Line {
    /// A line on what is in force and what all requests share.
    #[must_use]
    pub fn new(runtime: Arc<Runtime>, shared: Arc<Shared>) -> Self {
        Self { runtime, shared, watched: Arc::default() }
    }

    /// Answers a request: authenticate → route and permit → admit → cache → [fetch] → respond; or passes it on.
    pub async fn handle(&self, request: &Request, request_id: String) -> (Handled, Trace) {
        let (snapshot, now) = (self.runtime.snapshot(), runtime::now());
        let bounded = self.bounded(bounds::head(request, &snapshot.weir.limits));
        let preflight = bounded.is_ok().then(|| cors::preflight(snapshot.weir.cors.as_ref(), request)).flatten();
        if let Some(headers) = preflight {
            let mut trace = Trace::new(request_id, PREFLIGHT);
            trace.answered_at = now;
            let answer = respond::preflight(headers, &mut trace);
            return (Handled::Answered(answer), trace);
        }
        let mounted = snapshot.mounts.find(&request.headers, &request.path);
        let mut trace = Trace::new(request_id, NO_ROUTE);
        let rate = snapshot.traces.as_ref().map(|traces| traces.sample);
        trace.steps = Steps::begin(&request.headers, rate, &self.shared.spans, runtime::clock);
        let mut asked = Asked {
            client: usize::MAX,
            providers: Vec::new(),
            mounted: mounted.is_some(),
            directives: conditional::directives(request.headers.get_all("cache-control")),
            snapshot: snapshot.clone(),
            now,
        };
        let outcome = match (bounded, &mounted) {
            (Err(problem), _) => Err(problem),
            (Ok(()), None) => self.line(request, &mut asked, &mut trace).await,
            (Ok(()), Some(mounted)) => self.native(request, mounted, &mut asked, &mut trace).await,
        };
        if !matches!(outcome, Ok(Done::Passed(_))) {
            trace.steps.step("respond");
        }
        let buckets = asked.buckets();
        // What waited for nothing is answered in the moment in which it was asked.
        let now = if trace.waited.is_zero() { now } else { runtime::now() };
        trace.answered_at = now;
        let shared_with = cors::headers(snapshot.weir.cors.as_ref(), request);
        let mut answer = match (outcome, mounted) {
            (Ok(Done::Passed(mut forward)), _) => {
                forward.shared_with = shared_with;
                return (Handled::Passed(forward), trace);
            }
            (Ok(Done::Watching(mut watching)), _) => {
                let mut answer = respond::events(&buckets, &mut trace);
                if let Some(told) = asked.told(request, &mut trace) {
                    watching.explain(Value::Object(told).to_string().as_bytes());
                }
                answer.headers.extend(shared_with);
                return (Handled::Watching(answer, watching), trace);
            }
            (Ok(Done::Nothing), _) => respond::nothing(&buckets, &mut trace),
            (Ok(Done::Content(content)), _) => respond::content(request, content, &buckets, &mut trace, now),
            (Err(problem), None) => respond::problem(&problem, &buckets, &mut trace, now),
            (Err(problem), Some(mounted)) => {
                let provider = &snapshot.providers[mounted.provider];
                let dialect = provider.dialect.as_ref();
                let mut answer = respond::native(&problem, dialect, &buckets, &mut trace, now);
                let location = answer.headers.get("location").and_then(|value| HeaderValue::from_bytes(value).ok());
                if let Some(here) = location.and_then(|value| forward::here(provider, mounted.prefix, &value)) {
                    answer.headers.retain(|name| name != "location");
                    answer.headers.push("location", here);
                }
                answer
            }
        };
        answer = self.explained(request, &asked, answer, &mut trace);
        answer.headers.extend(shared_with);
        (Handled::Answered(answer), trace)
    }

    /// The answer with its explanation around it, where that is wanted.
    fn explained(&self, request: &Request, asked: &Asked, answer: Answer, trace: &mut Trace) -> Answer {
        let Some(told) = asked.told(request, trace) else { return answer };
        match Counted::bytes(explain::around(&answer, &told), &self.shared.upstream.budget) {
            Some(body) => respond::explained(answer, body, trace),
            None => {
                let detail = "as many bytes of answers are under way as may be (overload.max_buffered)";
                let problem = Problem::new(Code::Overloaded, detail).retry_after_ms(1000);
                respond::problem(&problem, &asked.buckets(), trace, runtime::now())
            }
        }
    }

    /// What is larger than may be is counted, whoever sent it.
    fn bounded(&self, bounded: Result<(), Beyond>) -> Outcome<()> {
        bounded.map_err(|(limit, problem)| {
            self.shared.metrics.edge.limited.with_label_values(&[limit]).inc();
            problem
        })
    }

    /// Authenticate, and refuse what is too much.
    fn enter(&self, request: &Request, asked: &mut Asked, trace: &mut Trace) -> Outcome<()> {
        trace.steps.step("authenticate");
        well_formed(request)?;
        // What is for everyone is for whoever asks: no key is looked at, so none can be guessed there.
        if asked.mounted || !endpoints::is_public(&request.path) {
            let identified = asked.snapshot.keys.identify(request, asked.now);
            asked.client = identified.map_err(|problem| self.failed(asked, request, problem))?;
            let client = &asked.snapshot.clients[asked.client];
            (trace.client, trace.vary) = (Some(client.id.clone()), client.vary.clone());
            if client.explain && wants_explanation(request)? {
                trace.explain = Some(Box::default());
            }
        }
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
        asked.providers = vec![provider];
        let who = (asked.client, provider);
        let asking = Asking::of(&asked.snapshot, asked.client, provider, &request.headers)?;
        match native::way(&asked.snapshot, who, &asking, mounted, request)? {
            Way::Read(question) => {
                trace.route = question.operation()?.name;
                trace.steps.step("look up and admit");
                let looked = self.look_and_admit(asked, &question, trace)?;
                let secrets = asked.snapshot.clients[asked.client].reveal_secrets;
                native::read(&self.shared, &question, looked, secrets, trace).await.map(Done::Content)
            }
            Way::Pass(change) => {
                trace.steps.step("admit");
                self.admit(asked, &[(Some(provider), Cost::one(false))], trace)?;
                trace.steps.step("gate and credential");
                let question_mark = if request.query.is_empty() { "" } else { "?" };
                let passage = Passage {
                    change,
                    prefix: mounted.prefix.to_owned(),
                    path_and_query: format!("{}{question_mark}{}", mounted.path, request.query),
                    method: request.method.clone(),
                    believed: origin::believed(request, &asked.snapshot.weir.trusted_proxies),
                };
                Forward::begin(&self.shared, &asked.snapshot, who, asking, passage).await.map(Done::Passed)
            }
        }
    }

    async fn line(&self, request: &Request, asked: &mut Asked, trace: &mut Trace) -> Outcome<Done> {
        self.bounded(bounds::body(request, &asked.snapshot.weir.limits))?;
        self.enter(request, asked, trace)?;
        trace.steps.step("route and permit");
        let routed = asked.route(request, trace)?;
        match routed.route {
            Route::Published(what) => Ok(Done::Content(respond::publish(&asked.snapshot, what))),
            Route::Providers => {
                self.admit(asked, &[(None, Cost::one(true))], trace)?;
                Ok(Done::Content(respond::providers(&asked.snapshot, asked.client, asked.now)))
            }
            Route::Session { name, shape } => {
                let question = watching::question(&asked.snapshot, asked.client, &name, request)?;
                self.session(asked, &question, &shape, trace).await.map(Done::Content)
            }
            Route::Watch { name, shape } => self.watch(request, asked, &name, shape, trace).await,
            Route::List { sources, page } => {
                let asking =
                    |source: &Source| Asking::of(&asked.snapshot, asked.client, source.provider, &request.headers);
                let sources = sources.iter().map(|source| Ok((source, asking(source)?)));
                let list = List {
                    shared: &self.shared,
                    snapshot: &asked.snapshot,
                    client: asked.client,
                    path: routed.endpoint.path,
                    page: &page,
                    sources: sources.collect::<Outcome<_>>()?,
                    directives: asked.directives,
                };
                self.list(asked, &list, trace).await.map(Done::Content)
            }
            Route::Batch { ids, shape } => self.batch(request, asked, (&ids, &shape), trace).await.map(Done::Content),
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

    async fn session(&self, asked: &Asked, question: &Question, shape: &Shape, trace: &mut Trace) -> Outcome<Content> {
        trace.steps.step("look up and admit");
        let looked = self.look_and_admit(asked, question, trace)?;
        let Served { entry, status } = fetch::obtain(&self.shared, question, looked, None, trace).await?;
        trace.cache = Some(status);
        if let Kind::NotFound(problem) = &entry.kind {
            return Err(problem.clone());
        }
        let form = if shape.native { Form::WithNative } else { Form::Unified };
        let show = Show { secrets: asked.snapshot.clients[asked.client].reveal_secrets, form };
        let view = fetch::view(&self.shared, question, &entry, show, asked.now)?;
        let Some(fields) = &shape.fields else {
            return Ok(Content::json(view.body.clone(), Some(view.etag.clone())));
        };
        let mut body = Vec::with_capacity(view.body.len());
        fields.cut(&view.body, &mut body)?;
        let tag = crate::reading::etag(&body);
        Ok(Content::json(Bytes::from(body), Some(tag)))
    }

    async fn watch(
        &self,
        request: &Request,
        asked: &Asked,
        name: &Name,
        shape: Shape,
        trace: &mut Trace,
    ) -> Outcome<Done> {
        let question = watching::question(&asked.snapshot, asked.client, name, request)?;
        let looked = self.look_and_admit(asked, &question, trace)?;
        let wish = Wish {
            runtime: &self.runtime,
            shared: &self.shared,
            watched: &self.watched,
            snapshot: &asked.snapshot,
            client: asked.client,
            request,
            shape,
        };
        Ok(match wish.begin(question, looked, trace).await? {
            Begun::Watching(watching) => Done::Watching(watching),
            Begun::Over => Done::Nothing,
        })
    }

    async fn list(&self, asked: &Asked, list: &List<'_>, trace: &mut Trace) -> Outcome<Content> {
        trace.steps.step("look up and admit");
        let readers = list.start()?;
        let costs = readers.iter().zip(&list.sources);
        let costs =
            costs.filter_map(|(reader, (source, _))| Some((Some(source.provider), Cost::one(reader.is_hit()?))));
        self.admit(asked, &costs.collect::<Vec<_>>(), trace)?;
        trace.steps.step("fetch");
        let (body, etag) = list.read(readers, trace).await?;
        Ok(Content::json(body, Some(etag)))
    }

    async fn batch(
        &self,
        request: &Request,
        asked: &mut Asked,
        (ids, shape): (&[(String, Outcome<Name>)], &Shape),
        trace: &mut Trace,
    ) -> Outcome<Content> {
        let snapshot = asked.snapshot.clone();
        let batch = Batch { shared: &self.shared, snapshot: &snapshot, client: asked.client, ids, shape };
        trace.steps.step("look up and admit");
        let (jobs, places) = batch.jobs(&request.headers, asked.directives);
        let costs: Vec<_> = jobs.iter().map(Job::cost).collect();
        asked.goes_to(costs.iter().filter_map(|(provider, _)| *provider), trace);
        self.admit(asked, &costs, trace)?;
        trace.steps.step("fetch");
        let body = batch.read(jobs, &places, trace).await?;
        let tag = crate::reading::etag(&body);
        Ok(Content::json(body, Some(tag)))
    }

    /// Policies may charge misses only, so the cache is looked up first; nothing is told of what is
    /// in it before the request is admitted.
    fn look_and_admit(&self, asked: &Asked, question: &Question, trace: &mut Trace) -> Outcome<Looked> {
        let looked = fetch::look(&self.shared, question, asked.directives, asked.now);
        self.admit(asked, &[(asked.providers.first().copied(), Cost::one(looked.is_hit()))], trace)?;
        Ok(looked)
    }

    /// Takes from all policies or from none.
    fn admit(&self, asked: &Asked, costs: &[(Option<usize>, Cost)], trace: &mut Trace) -> Outcome<()> {
        if let Some(gathered) = &mut trace.explain {
            gathered.costs = costs.to_vec();
        }
        let client = &asked.snapshot.clients[asked.client];
        let charged = charges(&asked.snapshot, asked.client, &asked.providers, costs);
        let dues: Vec<Due<'_>> = charged.filter_map(Charged::due).collect();
        let decision = ratelimit::admit(&dues, &client.gate);
        let violated = match &decision {
            Err(Refusal::Limited { policies, .. }) => policies.as_slice(),
            _ => &[],
        };
        for Due { bucket, .. } in &dues {
            let policy = &bucket.limiter.policy.name;
            let counter = |word| self.shared.metrics.http.rate_limit.with_label_values(&[&*client.id, policy, word]);
            if decision.is_ok() {
                bucket.admitted.get_or_init(|| counter("allowed")).inc();
            } else if violated.contains(policy) {
                counter("limited").inc();
            }
        }
        decision.map_err(|refusal| respond::refusal(&client.id, &asked.buckets(), refusal))
    }
}

impl Asked {
    /// Route and permit.
    fn route(&mut self, request: &Request, trace: &mut Trace) -> Outcome<Routed> {
        let routed = self.snapshot.routes.route(&request.method, &request.path, &request.query);
        let routed = routed.map_err(|(label, problem)| {
            trace.route = label;
            problem
        })?;
        trace.route = routed.endpoint.path;
        let providers = routed.route.providers();
        self.goes_to(providers.iter().copied(), trace);
        for provider in providers {
            question::permitted(&self.snapshot, self.client, provider)?;
        }
        Ok(routed)
    }

    /// Remembers whom it goes to.
    fn goes_to(&mut self, providers: impl Iterator<Item = usize>, trace: &mut Trace) {
        for provider in providers {
            if !self.providers.contains(&provider) {
                self.providers.push(provider);
            }
        }
        trace.provider = match self.providers.as_slice() {
            [] => None,
            [one] => Some(self.snapshot.providers[*one].name.clone()),
            _ => Some(SEVERAL.into()),
        };
    }

    /// All that was gathered to explain the request, where that is wanted.
    fn told(&self, request: &Request, trace: &mut Trace) -> Option<Map<String, Value>> {
        let gathered = trace.explain.take()?;
        let mut told = explain::request(&self.snapshot, self.client, request);
        told.insert("request_id".into(), trace.request_id.as_str().into());
        told.insert("route".into(), trace.route.into());
        told.insert("cache".into(), trace.cache.as_ref().map(|status| status.header(runtime::now())).into());
        told.insert("waited_ms".into(), u64::try_from(trace.waited.as_millis()).unwrap_or(u64::MAX).into());
        told.insert("answers".into(), gathered.answers.into());
        let charged = charges(&self.snapshot, self.client, &self.providers, &gathered.costs);
        told.insert("limits".into(), explain::limits(&self.snapshot, charged, true));
        Some(told)
    }

    /// The policies that apply: the client's, and its for these providers.
    fn buckets(&self) -> Vec<&Bucket> {
        self.snapshot.buckets(self.client, &self.providers)
    }
}

fn refuse(code: Code, detail: String) -> Outcome<()> {
    Err(Box::new(Problem::new(code, detail)))
}

/// Whether a client that may asks to have its request explained.
fn wants_explanation(request: &Request) -> Outcome<bool> {
    match request.headers.get(EXPLAIN.name) {
        None => Ok(false),
        Some(b"1") => Ok(true),
        Some(_) => Err(Box::new(Problem::invalid("Weir-Explain is 1, or is left out"))),
    }
}

/// Refuses what two readers could read in two ways, though Pingora reads it in one (RFC 9112, section 3.2).
fn well_formed(request: &Request) -> Outcome<()> {
    let headers = &request.headers;
    let what = match request.version {
        http::Version::HTTP_11 if !headers.contains("host") => "a request has a Host",
        _ if headers.get_all("host").count() > 1 => "a request has one Host",
        _ => return Ok(()),
    };
    refuse(Code::InvalidRequest, what.to_owned())
}

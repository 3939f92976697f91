//! A request walked through beforehand, up to the point where somebody would be asked.
//!
//! A room of its own because `weir explain` must tell what a gateway would do without being one: it takes the line's
//! own steps over an empty cache, and stops where the line would admit the request. It takes nothing and calls nobody.

use crate::batch::Batch;
use crate::bounds;
use crate::charge::charges;
use crate::conditional;
use crate::endpoints::{Answers, Endpoint};
use crate::error::Outcome;
use crate::exchange::Request;
use crate::explain;
use crate::forward::Change;
use crate::freshness::UpstreamLimit;
use crate::listing::List;
use crate::model::Time;
use crate::native::{self, Way};
use crate::question::{self, Asking, Question, Shared};
use crate::ratelimit::Cost;
use crate::route::Route;
use crate::runtime::snapshot::Snapshot;
use crate::watching;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A request to be explained.
pub struct Rehearsal<'r> {
    /// The configuration.
    pub snapshot: &'r Arc<Snapshot>,
    /// The client's position.
    pub client: usize,
    /// What it sends.
    pub request: &'r Request,
    /// Nothing is stored in it.
    pub shared: &'r Arc<Shared>,
}

/// A provider's body, to be explained with a request.
pub struct Given<'g> {
    /// Its bytes.
    pub body: &'g [u8],
    /// When it came.
    pub at: Time,
    /// What is found is told too, where it is not secret.
    pub values: bool,
}

/// What was found.
#[derive(Default)]
struct Found {
    route: Option<String>,
    way: Option<&'static str>,
    changes: Option<&'static str>,
    passed: Option<String>,
    providers: Vec<usize>,
    /// One for each answer that is needed, or why it cannot be asked for.
    questions: Vec<Outcome<Question>>,
    costs: Vec<(Option<usize>, Cost)>,
}

impl Rehearsal<'_> {
    /// The explanation, and whether the request would fail.
    ///
    /// # Errors
    /// Where a body is given and there is not one answer that it could be.
    pub fn explain(&self, given: Option<&Given<'_>>) -> Result<(Value, bool), String> {
        let mut found = Found::default();
        let walked = self.walk(&mut found);
        let mut problem = walked.err();
        if given.is_some() && problem.is_none() && (found.questions.len() != 1 || found.questions[0].is_err()) {
            let count = found.questions.iter().filter(|question| question.is_ok()).count();
            return Err(format!("a body goes with one answer of a provider; this request needs {count}"));
        }
        let mut answers = Vec::with_capacity(found.questions.len());
        for question in &found.questions {
            answers.push(match question {
                Ok(question) => {
                    let mut told = explain::question(question);
                    if let (Some(given), None) = (given, &problem) {
                        let (life, body) = ((UpstreamLimit::default(), given.at), given.body);
                        problem = explain::body(&mut told, question, body, life, given.values).err();
                    }
                    Value::Object(told)
                }
                Err(problem) => json!({ "problem": problem.to_value(None) }),
            });
        }
        let mut told: Map<String, Value> = explain::request(self.snapshot, self.client, self.request);
        told.insert("route".into(), found.route.into());
        told.insert("way".into(), found.way.into());
        told.extend(found.passed.map(|passed| ("passed_to".to_owned(), passed.into())));
        told.extend(found.changes.map(|changes| ("changes".to_owned(), changes.into())));
        told.insert("answers".into(), answers.into());
        let charged = charges(self.snapshot, self.client, &found.providers, &found.costs);
        told.insert("limits".into(), explain::limits(self.snapshot, charged, false));
        let fails = problem.is_some();
        told.insert("problem".into(), problem.map(|problem| problem.to_value(None)).into());
        Ok((told.into(), fails))
    }

    /// The line's steps, as far as they go.
    fn walk(&self, found: &mut Found) -> Outcome<()> {
        let request = self.request;
        let mounted = self.snapshot.mounts.find(&request.headers, &request.path);
        bounds::head(request, &self.snapshot.weir.limits).map_err(|(_, problem)| problem)?;
        if let Some(mounted) = mounted {
            return self.native(&mounted, found);
        }
        let routed = self.snapshot.routes.route(&request.method, &request.path, &request.query);
        let routed = routed.map_err(|(label, problem)| {
            found.route = Some(label.to_owned());
            problem
        })?;
        found.route = Some(routed.endpoint.path.to_owned());
        found.way = Some(way(routed.endpoint));
        found.providers = routed.route.providers();
        found.providers.sort_unstable();
        found.providers.dedup();
        for provider in &found.providers {
            question::permitted(self.snapshot, self.client, *provider)?;
        }
        self.questions(&routed.route, routed.endpoint, found)?;
        found.costs.extend(found.questions.iter().flatten().map(|question| (at(self.snapshot, question), one())));
        if let Route::Batch { .. } = routed.route {
            found.providers = found.costs.iter().filter_map(|(provider, _)| *provider).collect();
            found.providers.sort_unstable();
            found.providers.dedup();
        }
        Ok(())
    }

    fn questions(&self, route: &Route, endpoint: &'static Endpoint, found: &mut Found) -> Outcome<()> {
        let (snapshot, client, headers) = (self.snapshot, self.client, &self.request.headers);
        let directives = conditional::directives(headers.get_all("cache-control"));
        match route {
            // What is for everyone costs nothing.
            Route::Published(_) => {}
            Route::Providers => found.costs.push((None, Cost::one(true))),
            Route::Session { name, .. } | Route::Watch { name, .. } => {
                found.questions.push(Ok(watching::question(snapshot, client, name, self.request)?));
            }
            Route::List { sources, page } => {
                let asked =
                    sources.iter().map(|source| Ok((source, Asking::of(snapshot, client, source.provider, headers)?)));
                let (shared, path) = (self.shared, endpoint.path);
                let sources = asked.collect::<Outcome<_>>()?;
                let list = List { shared, snapshot, client, path, page, sources, directives };
                let readers = list.start()?;
                found.questions.extend(readers.iter().filter_map(|reader| reader.question().cloned().map(Ok)));
            }
            Route::Batch { ids, shape } => {
                let batch = Batch { shared: self.shared, snapshot, client, ids, shape };
                let (jobs, _) = batch.jobs(headers, directives);
                let failed = jobs.iter().filter(|job| job.question().is_err());
                // What cannot be asked for costs too.
                found.costs.extend(failed.map(crate::batch::Job::cost));
                found.questions.extend(jobs.iter().map(|job| job.question().cloned()));
            }
        }
        Ok(())
    }

    fn native(&self, mounted: &crate::mount::Mounted<'_>, found: &mut Found) -> Outcome<()> {
        let (snapshot, provider) = (self.snapshot, mounted.provider);
        let target = &snapshot.providers[provider].target;
        found.route = Some(format!("/{}/**", snapshot.providers[provider].name));
        native::permitted(snapshot, self.client, provider)?;
        found.providers = vec![provider];
        let who = (self.client, provider);
        let asking = Asking::of(snapshot, self.client, provider, &self.request.headers)?;
        let way = native::way(snapshot, who, &asking, mounted, self.request)?;
        found.costs.push((Some(provider), one()));
        match way {
            Way::Read(question) => {
                found.way =
                    Some("native read: described in the provider's file, shares its entry with the unified view");
                found.questions.push(Ok(*question));
            }
            Way::Pass(change) => {
                found.way = Some("passed on: streamed to the provider and back, not cached");
                let path = target.path(mounted.path);
                found.passed = Some(format!("{} {}{path}", self.request.method, target.origin()));
                found.changes = match change {
                    Change::Nothing => None,
                    Change::Session { .. } => Some("its session, and the lists that is in"),
                    Change::Lists(_) => Some("lists"),
                    Change::Agent(_) => Some("an agent, with all its sessions and lists"),
                };
            }
        }
        Ok(())
    }
}

fn one() -> Cost {
    Cost::one(false)
}

fn at(snapshot: &Snapshot, question: &Question) -> Option<usize> {
    snapshot.providers.iter().position(|provider| provider.name == question.provider().name)
}

fn way(endpoint: &Endpoint) -> &'static str {
    match endpoint.answers {
        Answers::Events => "unified, watched: asked every freshness.watch, once for all who watch it",
        Answers::Providers => "unified, out of the configuration: no provider is asked",
        _ => "unified, through the cache",
    }
}

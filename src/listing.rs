//! One page of a list, put together from the provider's own pages.
//!
//! A room of its own because a client's page and a provider's page are not the same: pages are asked
//! of a provider always in one size, so that they are shared by all who walk the list, and a token
//! holds where in them the next page begins.

use crate::cache::Kind;
use crate::conditional::Directives;
use crate::cursor::Position;
use crate::error::Outcome;
use crate::error::{Code, Problem};
use crate::fetch::{self, Looked, Served};
use crate::held::Counted;
use crate::model::{Form, Show, View, write_json};
use crate::question::{Asking, Question, Shared};
use crate::route::Page;
use crate::runtime;
use crate::runtime::snapshot::Snapshot;
use crate::template::Values;
use crate::trace::{CacheStatus, How, Trace};
use bytes::Bytes;
use std::sync::Arc;

/// Provider pages read to fill one of ours, after the first.
const MAX_FURTHER_PAGES: usize = 5;

/// A list to read, for one client.
pub struct List<'l> {
    /// What all requests share.
    pub shared: &'l Arc<Shared>,
    /// The configuration in force.
    pub snapshot: &'l Arc<Snapshot>,
    /// The client's position.
    pub client: usize,
    /// The provider's position.
    pub provider: usize,
    /// The agent, where the provider has agents.
    pub agent: Option<&'l str>,
    /// What of it.
    pub page: &'l Page,
    /// As whom the provider is asked.
    pub asking: Asking,
    /// The client's directives.
    pub directives: Directives,
}

/// Sessions chosen from provider pages.
struct Chosen {
    parts: Vec<(Arc<View>, usize)>,
    next: Option<Position>,
    total: Option<u64>,
    status: Option<CacheStatus>,
}

impl List<'_> {
    /// Where the page begins: the token's position, or the start.
    ///
    /// # Errors
    /// 400 for a token that is not this list's.
    pub fn start(&self) -> Outcome<Position> {
        let size = self.snapshot.providers[self.provider].list_sessions.as_ref().map_or(0, |op| op.max_limit);
        let Some(token) = &self.page.token else { return Ok(Position { page_token: None, size, offset: 0 }) };
        let binding = self.binding();
        let binding: Vec<&str> = binding.iter().map(String::as_str).collect();
        match self.snapshot.signer.open(&binding, token) {
            Ok(mut positions) if positions.len() == 1 => Ok(positions.remove(0)),
            Ok(_) => Err(Box::new(Problem::invalid("page_token is of another list; start again without it"))),
            Err(why) => Err(Box::new(Problem::invalid(why))),
        }
    }

    /// What a token of this list may be used for.
    fn binding(&self) -> [String; 5] {
        [
            self.snapshot.clients[self.client].id.to_string(),
            self.snapshot.providers[self.provider].name.to_string(),
            self.agent.unwrap_or_default().to_owned(),
            self.page.status.map(|s| s.as_str().to_owned()).unwrap_or_default(),
            self.page.enabled.map(|e| e.to_string()).unwrap_or_default(),
        ]
    }

    /// The question for the provider's page at a position.
    ///
    /// # Errors
    /// 400 for an id that no path can hold.
    pub fn question(&self, at: &Position) -> Outcome<Question> {
        let values = Values {
            agent: self.agent,
            session: None,
            limit: (at.size > 0).then_some(at.size),
            page_token: at.page_token.as_deref(),
            enabled: self.page.enabled,
        };
        Question::new(self.snapshot, (self.client, self.provider), self.asking.clone(), true, &values)
    }

    /// Reads the page that begins at `start`, of which the first lookup is done, as a JSON body.
    ///
    /// # Errors
    /// The provider's failure; the token stays usable.
    pub async fn read(&self, start: Position, first: (Question, Looked), trace: &mut Trace) -> Outcome<Bytes> {
        let chosen = self.choose(start, first, trace).await?;
        trace.cache.clone_from(&chosen.status);
        // Made for this request alone, so many slow readers would hold as many.
        Counted::bytes(self.body(&chosen), &self.shared.upstream.budget).ok_or_else(|| {
            let detail = "as many bytes of answers are under way as may be (overload.max_buffered)";
            Box::new(Problem::new(Code::Overloaded, detail).retry_after_ms(1000))
        })
    }

    async fn choose(&self, start: Position, first: (Question, Looked), trace: &mut Trace) -> Outcome<Chosen> {
        let form = if self.page.native { Form::WithNative } else { Form::Unified };
        let show = Show { secrets: self.snapshot.clients[self.client].reveal_secrets, form };
        let limit = self.page.limit as usize;
        let mut chosen = Chosen { parts: Vec::with_capacity(limit), next: None, total: None, status: None };
        let (mut at, mut asked) = (start, Some(first));
        for _ in 0..=MAX_FURTHER_PAGES {
            let (question, looked) = match asked.take() {
                Some(asked) => asked,
                None => {
                    let question = self.question(&at)?;
                    let looked = fetch::look(self.shared, &question, self.directives, runtime::now());
                    (question, looked)
                }
            };
            let Served { entry, status } = fetch::obtain(self.shared, &question, looked, trace).await?;
            chosen.status = Some(worse(chosen.status.take(), status));
            let (next, total) = match &entry.kind {
                Kind::Page { next, total } => (next, *total),
                Kind::NotFound(problem) => {
                    trace.cache = chosen.status;
                    return Err(problem.clone());
                }
                Kind::Session => {
                    return Err(Box::new(Problem::new(Code::InternalError, "a session where a list was stored")));
                }
            };
            let view = fetch::view(self.shared, &question, &entry, show, runtime::now())?;
            chosen.total = total.filter(|_| self.page.status.is_none());
            let more = chosen.take(&view, &mut at, limit, self.page.status);
            chosen.next = match (more, next) {
                (true, _) => Some(at.clone()),
                (false, Some(token)) => Some(Position { page_token: Some(token.clone()), size: at.size, offset: 0 }),
                (false, None) => None,
            };
            match &chosen.next {
                Some(next) if chosen.parts.len() < limit => at = next.clone(),
                _ => break,
            }
        }
        Ok(chosen)
    }

    fn body(&self, chosen: &Chosen) -> Vec<u8> {
        let provider = &self.snapshot.providers[self.provider].name;
        let sessions: usize =
            chosen.parts.iter().map(|(view, item)| view.items[*item].end - view.items[*item].start + 1).sum();
        let mut out = Vec::with_capacity(sessions + 512);
        out.extend_from_slice(b"{\"sessions\":[");
        for (position, (view, item)) in chosen.parts.iter().enumerate() {
            if position > 0 {
                out.push(b',');
            }
            let item = &view.items[*item];
            out.extend_from_slice(&view.body[item.start..item.end]);
        }
        let binding = self.binding();
        let binding: Vec<&str> = binding.iter().map(String::as_str).collect();
        let token = chosen.next.as_ref().map(|next| self.snapshot.signer.seal(&binding, std::slice::from_ref(next)));
        out.extend_from_slice(b"],\"next_page_token\":");
        write_json(&mut out, &token);
        out.extend_from_slice(b",\"total_count\":");
        write_json(&mut out, &chosen.total);
        out.extend_from_slice(b",\"partial\":false,\"sources\":");
        let age = chosen.status.as_ref().and_then(|s| s.life).map_or(0, |life| life.age(runtime::now()).as_secs());
        let state = match chosen.status.as_ref().map(|s| s.how) {
            Some(How::Hit) => "cached",
            Some(How::Stale(_) | How::StaleOnError { .. }) => "stale",
            _ => "fresh",
        };
        let source = serde_json::json!([{
            "provider": &**provider, "agent": self.agent, "state": state, "age_seconds": age, "error": null,
        }]);
        write_json(&mut out, &source);
        out.push(b'}');
        out
    }
}

impl Chosen {
    /// Takes what fits from a provider's page, and moves `at` on. Says whether the page has more.
    fn take(
        &mut self,
        view: &Arc<View>,
        at: &mut Position,
        limit: usize,
        status: Option<crate::model::Status>,
    ) -> bool {
        for (position, item) in view.items.iter().enumerate().skip(at.offset as usize) {
            if self.parts.len() == limit {
                return true;
            }
            at.offset = u32::try_from(position + 1).unwrap_or(u32::MAX);
            if status.is_none_or(|status| item.status == status) {
                self.parts.push((view.clone(), position));
            }
        }
        false
    }
}

/// Of several pages: a hit only if all were, and the times of the one that ends first.
fn worse(one: Option<CacheStatus>, other: CacheStatus) -> CacheStatus {
    let rank = |status: &CacheStatus| match status.how {
        How::Hit => 0,
        How::Collapsed(_) => 1,
        How::Miss(_) | How::Requested(_) | How::Refused(_) => 2,
        How::Stale(_) | How::StaleOnError { .. } => 3,
    };
    let Some(one) = one else { return other };
    let how = if rank(&one) > rank(&other) { one.how } else { other.how };
    let life = [one.life, other.life].into_iter().flatten().min_by_key(|life| life.fresh_until);
    CacheStatus { how, life }
}

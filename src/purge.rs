//! What a purge is for, and which answers it touches.
//!
//! A room of its own because two sides must agree: entries that are in the cache, and answers still
//! on their way when the purge came, which must not bring back what was purged.

use std::collections::VecDeque;
use std::sync::Arc;

/// What an answer is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The provider.
    pub provider: Arc<str>,
    /// The identity of the credential it was asked with.
    pub credential: Arc<str>,
    /// The agent, where the provider has agents.
    pub agent: Option<Box<str>>,
    /// The session; `None` for a list.
    pub session: Option<Box<str>>,
}

/// What to purge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One session, and the lists it may be in: those of its agent, or of a provider without agents.
    Session {
        /// The provider.
        provider: Arc<str>,
        /// Its agent, where the provider has agents.
        agent: Option<String>,
        /// The provider's own id.
        session: String,
    },
    /// An agent's sessions and lists.
    Agent {
        /// The provider.
        provider: Arc<str>,
        /// The provider's own id.
        agent: String,
    },
    /// All of a provider's.
    Provider(Arc<str>),
    /// All that was asked with these providers' credentials: pairs of provider and identity.
    Credentials(Vec<(Arc<str>, Arc<str>)>),
    /// Everything.
    All,
}

impl Scope {
    /// Whether an answer about this is purged.
    #[must_use]
    pub fn touches(&self, subject: &Subject) -> bool {
        match self {
            Scope::All => true,
            Scope::Provider(provider) => *provider == subject.provider,
            Scope::Credentials(pairs) => pairs
                .iter()
                .any(|(provider, credential)| *provider == subject.provider && same(credential, &subject.credential)),
            Scope::Agent { provider, agent } => {
                *provider == subject.provider && subject.agent.as_deref() == Some(agent.as_str())
            }
            Scope::Session { provider, agent, session } => {
                *provider == subject.provider
                    && subject.agent.as_deref() == agent.as_deref()
                    && subject.session.as_deref().is_none_or(|own| own == session)
            }
        }
    }
}

/// Whether a credential is the one meant. One that ends with a colon means all that begin so: those that
/// clients bring themselves.
fn same(meant: &str, credential: &str) -> bool {
    meant == credential || meant.ends_with(':') && credential.starts_with(meant)
}

/// How an entry is purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is gone.
    Hard,
    /// It is stale: to be refreshed, and served meanwhile or on errors within its windows.
    Soft,
}

/// Purges remembered; an answer that was on its way through more of them than this is not stored.
const REMEMBERED: usize = 256;

/// The number of purges so far. An answer is as old as the epoch in which it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Epoch(u64);

/// The last purges.
#[derive(Debug, Default)]
pub struct Log {
    now: u64,
    last: VecDeque<Scope>,
}

impl Log {
    /// The epoch it is.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(self.now)
    }

    /// Begins a new epoch with a purge.
    pub fn add(&mut self, scope: Scope) {
        self.now += 1;
        self.last.push_back(scope);
        if self.last.len() > REMEMBERED {
            self.last.pop_front();
        }
    }

    /// Whether an answer that was asked for in `asked` was purged since.
    #[must_use]
    pub fn purged_since(&self, asked: Epoch, subject: &Subject) -> bool {
        let since = usize::try_from(self.now - asked.0).unwrap_or(usize::MAX);
        since > self.last.len() || self.last.iter().rev().take(since).any(|scope| scope.touches(subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(agent: Option<&str>, session: Option<&str>) -> Subject {
        Subject {
            provider: "p".into(),
            credential: "c".into(),
            agent: agent.map(Into::into),
            session: session.map(Into::into),
        }
    }

    #[test]
    fn each_scope_touches_its_own() {
        let session = Scope::Session { provider: "p".into(), agent: Some("a".into()), session: "s".into() };
        assert!(session.touches(&subject(Some("a"), Some("s"))) && session.touches(&subject(Some("a"), None)));
        assert!(!session.touches(&subject(Some("a"), Some("t"))) && !session.touches(&subject(Some("b"), None)));
        let agentless = Scope::Session { provider: "p".into(), agent: None, session: "s".into() };
        assert!(agentless.touches(&subject(None, Some("s"))) && agentless.touches(&subject(None, None)));
        assert!(!agentless.touches(&subject(Some("a"), Some("s"))));
        let agent = Scope::Agent { provider: "p".into(), agent: "a".into() };
        assert!(agent.touches(&subject(Some("a"), Some("s"))) && !agent.touches(&subject(None, Some("s"))));
        assert!(
            Scope::Provider("p".into()).touches(&subject(None, None))
                && !Scope::Provider("q".into()).touches(&subject(None, None))
        );
        let credentials = |credential: &str| Scope::Credentials(vec![("p".into(), credential.into())]);
        assert!(credentials("c").touches(&subject(None, None)) && !credentials("d").touches(&subject(None, None)));
        assert!(Scope::All.touches(&subject(None, None)));
    }

    #[test]
    fn an_answer_asked_for_before_a_purge_is_known_as_purged_after_it() {
        let mut log = Log::default();
        let before = log.epoch();
        log.add(Scope::Provider("other".into()));
        assert!(!log.purged_since(before, &subject(None, None)));
        log.add(Scope::Provider("p".into()));
        let after = log.epoch();
        assert!(log.purged_since(before, &subject(None, None)) && !log.purged_since(after, &subject(None, None)));
        for _ in 0..=REMEMBERED {
            log.add(Scope::Provider("other".into()));
        }
        assert!(log.purged_since(after, &subject(None, None)), "too long ago to know: not stored");
    }
}

//! Decides which responses a purge covers.
//!
//! A purge covers the entries in the cache, and also the responses of calls that were in flight during the purge: those
//! are not stored, because they may contain the purged data.

use std::collections::VecDeque;
use std::sync::Arc;

/// What a response is about: provider, credential, agent and session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The provider.
    pub provider: Arc<str>,
    /// The identity of the credential of the call.
    pub credential: Arc<str>,
    /// The agent, if the provider has agents.
    pub agent: Option<Box<str>>,
    /// The session; `None` for a list.
    pub session: Option<Box<str>>,
}

/// The responses that a purge covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One session, and the lists that may contain it: those of its agent, or all lists of a provider without agents.
    Session {
        /// The provider.
        provider: Arc<str>,
        /// The session's agent, if the provider has agents.
        agent: Option<String>,
        /// The provider's own id of the session.
        session: String,
    },
    /// An agent's sessions and lists.
    Agent {
        /// The provider.
        provider: Arc<str>,
        /// The provider's own id of the agent.
        agent: String,
    },
    /// All responses of a provider.
    Provider(Arc<str>),
    /// All responses to calls with these credentials: pairs of provider and identity.
    Credentials(Vec<(Arc<str>, Arc<str>)>),
    /// Everything.
    All,
}

impl Scope {
    /// Returns whether the purge covers a response.
    #[must_use]
    pub fn covers(&self, subject: &Subject) -> bool {
        match self {
            Scope::All => true,
            Scope::Provider(provider) => *provider == subject.provider,
            Scope::Credentials(pairs) => pairs.iter().any(|(provider, credential)| {
                *provider == subject.provider && is_meant(credential, &subject.credential)
            }),
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

/// Returns whether `meant` covers the identity `credential`. A `meant` that ends with a colon covers all identities that
/// start with it: those of the credentials that clients send themselves.
fn is_meant(meant: &str, credential: &str) -> bool {
    meant == credential || meant.ends_with(':') && credential.starts_with(meant)
}

/// What a purge does to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Removes the entry.
    Hard,
    /// Makes the entry stale. The next request refreshes it, and it may be served within its stale windows.
    Soft,
}

/// The number of purges in the log. A response whose call was in flight during more purges is not stored.
const LOG_LENGTH: usize = 256;

/// The number of purges before a call started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct PurgeEpoch(u64);

/// The most recent purges.
#[derive(Debug, Default)]
pub(crate) struct PurgeLog {
    epoch: u64,
    recent: VecDeque<Scope>,
}

impl PurgeLog {
    /// Returns the current epoch.
    #[must_use]
    pub(crate) fn epoch(&self) -> PurgeEpoch {
        PurgeEpoch(self.epoch)
    }

    /// Records a purge. This starts a new epoch.
    pub(crate) fn add(&mut self, scope: Scope) {
        self.epoch += 1;
        self.recent.push_back(scope);
        if self.recent.len() > LOG_LENGTH {
            self.recent.pop_front();
        }
    }

    /// Returns whether a purge covered a response after its call started in epoch `started`. Also `true` if the log
    /// does not reach back that far.
    #[must_use]
    pub(crate) fn purged_since(&self, started: PurgeEpoch, subject: &Subject) -> bool {
        let since = usize::try_from(self.epoch - started.0).unwrap_or(usize::MAX);
        since > self.recent.len() || self.recent.iter().rev().take(since).any(|scope| scope.covers(subject))
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
    fn each_scope_covers_its_own_responses() {
        let session = Scope::Session { provider: "p".into(), agent: Some("a".into()), session: "s".into() };
        assert!(session.covers(&subject(Some("a"), Some("s"))) && session.covers(&subject(Some("a"), None)));
        assert!(!session.covers(&subject(Some("a"), Some("t"))) && !session.covers(&subject(Some("b"), None)));
        let agentless = Scope::Session { provider: "p".into(), agent: None, session: "s".into() };
        assert!(agentless.covers(&subject(None, Some("s"))) && agentless.covers(&subject(None, None)));
        assert!(!agentless.covers(&subject(Some("a"), Some("s"))));
        let agent = Scope::Agent { provider: "p".into(), agent: "a".into() };
        assert!(agent.covers(&subject(Some("a"), Some("s"))) && !agent.covers(&subject(None, Some("s"))));
        assert!(
            Scope::Provider("p".into()).covers(&subject(None, None))
                && !Scope::Provider("q".into()).covers(&subject(None, None))
        );
        let credentials = |credential: &str| Scope::Credentials(vec![("p".into(), credential.into())]);
        assert!(credentials("c").covers(&subject(None, None)) && !credentials("d").covers(&subject(None, None)));
        assert!(Scope::All.covers(&subject(None, None)));
    }

    #[test]
    fn a_response_to_a_call_from_before_a_purge_counts_as_purged() {
        let mut log = PurgeLog::default();
        let before = log.epoch();
        log.add(Scope::Provider("other".into()));
        assert!(!log.purged_since(before, &subject(None, None)));
        log.add(Scope::Provider("p".into()));
        let after = log.epoch();
        assert!(log.purged_since(before, &subject(None, None)) && !log.purged_since(after, &subject(None, None)));
        for _ in 0..=LOG_LENGTH {
            log.add(Scope::Provider("other".into()));
        }
        assert!(log.purged_since(after, &subject(None, None)), "the log does not reach back that far: not stored");
    }
}

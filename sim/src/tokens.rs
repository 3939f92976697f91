//! Issues tokens for OAuth 2.0 client credentials, and accepts them until they expire.

use crate::http::{Query, Reply};
use crate::simulator::Simulator;
use crate::sync::lock;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The issued tokens.
#[derive(Default)]
pub(crate) struct Tokens {
    /// Provider and expiry of each token.
    issued: Mutex<BTreeMap<String, (String, Instant)>>,
    last_number: AtomicU64,
}

impl Tokens {
    fn issue(&self, provider: &str, seconds: u64) -> String {
        let number = self.last_number.fetch_add(1, Ordering::SeqCst) + 1;
        let token = format!("sim-issued-{number}");
        let expires = Instant::now() + Duration::from_secs(seconds);
        lock(&self.issued).insert(token.clone(), (provider.to_owned(), expires));
        token
    }

    /// Returns whether an Authorization header has a valid token of this provider.
    pub(crate) fn accept(&self, provider: &str, authorization: Option<&str>) -> bool {
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let issued = lock(&self.issued);
        token
            .and_then(|token| issued.get(token))
            .is_some_and(|(issuer, expires)| issuer == provider && Instant::now() < *expires)
    }

    pub(crate) fn revoke_all(&self) {
        lock(&self.issued).clear();
    }
}

/// Responds to a token request (RFC 6749, section 4.4), whose body is a form.
pub(crate) fn respond(sim: &Simulator, provider: &str, form: &str) -> Reply {
    let form = Query::parse(form);
    let known_client =
        form.get("client_id") == Some("sim-client") && form.get("client_secret") == Some(&*sim.options.client_secret);
    match form.get("grant_type") {
        Some("client_credentials") if known_client => {
            let seconds = sim.options.token_seconds;
            let token = sim.tokens.issue(provider, seconds);
            Reply::json(200, &json!({ "access_token": token, "token_type": "bearer", "expires_in": seconds }))
        }
        Some("client_credentials") => Reply::json(401, &json!({ "error": "invalid_client" })),
        _ => Reply::json(400, &json!({ "error": "unsupported_grant_type" })),
    }
}

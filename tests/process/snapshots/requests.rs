//! The requests of the snapshot.

use crate::support::*;

/// Name, method, target and more headers.
pub type NamedRequest = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Requests of the snapshot: a name, the method, the target, and extra headers. All send the key `open`, unless the extra
/// headers contain `x-api-key`.
pub const REQUESTS: &[NamedRequest] = &[
    ("session of an agent", "GET", VECTARA, &[]),
    ("session from the cache", "GET", VECTARA, &[]),
    (
        "session with native",
        "GET",
        "/v1/agents/agt_customer_support/sessions/ase_customer_support_001?include=native",
        &[],
    ),
    (
        "session with fields",
        "GET",
        "/v1/agents/agt_customer_support/sessions/ase_customer_support_001?fields=id,status",
        &[],
    ),
    ("session, confirmed", "GET", VECTARA, &[("cache-control", "no-cache")]),
    ("session of a provider with resource ids", "GET", PALANTIR, &[]),
    ("session of a provider without agents", "GET", AGENTHUMAN, &[]),
    ("head", "HEAD", AGENTHUMAN, &[]),
    ("list of an agent", "GET", "/v1/agents/agt_customer_support/sessions?limit=2", &[]),
    ("merged list", "GET", "/v1/sessions?agent=agt_customer_support&provider=agenthuman&limit=3", &[]),
    ("batch", "GET", "/v1/sessions:batchGet?id=sess_01H3Z8G9YR3K2N5M6P7Q8W4T&id=nothing%20known", &[]),
    ("providers", "GET", "/v1/providers", &[]),
    ("no key", "GET", AGENTHUMAN, &[("x-api-key", "")]),
    ("unknown key", "GET", AGENTHUMAN, &[("x-api-key", "wrong")]),
    ("unknown session", "GET", "/v1/sessions/sess_0000000000000000000000NONE", &[]),
    ("unknown agent", "GET", "/v1/agents/agt_nobody/sessions", &[]),
    ("unknown provider", "GET", "/v1/sessions/nobody:x", &[]),
    ("unknown path", "GET", "/v2/nothing", &[]),
    ("unknown parameter", "GET", "/v1/providers?x=1", &[]),
    ("wrong method", "POST", AGENTHUMAN, &[]),
    ("only if cached", "GET", "/v1/sessions/sess_SIM00000009", &[("cache-control", "only-if-cached")]),
    ("bad page token", "GET", "/v1/agents/agt_customer_support/sessions?page_token=x", &[]),
    ("native read", "GET", "/agenthuman/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T", &[]),
    (
        "native forward",
        "GET",
        "/agenthuman/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T?x=1",
        &[("cache-control", "no-cache")],
    ),
    ("native, no key", "GET", "/palantir/api/v2/aipAgents/agents/x/sessions/y", &[("x-api-key", "")]),
    ("native, wrong method", "TRACE", "/agenthuman/v1/sessions", &[]),
];

/// Admin requests of the snapshot.
pub const ADMIN: &[(&str, &str)] =
    &[("GET", "/healthz"), ("GET", "/nothing"), ("GET", "/config"), ("GET", "/providers"), ("GET", "/cache")];

/// Requests of the snapshot that ask for an explanation: a name and the target.
pub const EXPLAINED: &[(&str, &str)] = &[
    ("miss", VECTARA),
    ("hit", VECTARA),
    ("list", "/v1/sessions?agent=agt_customer_support&provider=agenthuman&limit=2"),
    ("native read", "/vectara/v2/agents/agt_customer_support/sessions/ase_customer_support_001"),
    ("unknown path", "/nowhere"),
    ("unmappable session", "/v1/sessions/vectara:agt_x:ase_bad"),
];

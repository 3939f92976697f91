//! Contains the types that every folder uses: the session model, problems, endpoints, headers, metrics, memory budget, JSON.
//! It imports no other folder.

pub(crate) mod client_use;
pub(crate) mod content_coding;
pub(crate) mod endpoint;
pub(crate) mod endpoints;
pub(crate) mod id_pattern;
pub(crate) mod ids;
pub(crate) mod json;
pub(crate) mod json_text;
pub(crate) mod jsonpath;
pub(crate) mod memory_budget;
pub(crate) mod metrics;
pub(crate) mod model;
pub(crate) mod operation;
pub(crate) mod problem;
pub(crate) mod request_headers;
pub(crate) mod request_reply;
pub(crate) mod response_headers;
pub(crate) mod trace_context;
pub(crate) mod typo;

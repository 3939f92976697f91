//! Contains everything with state or IO: cache, rate limits, breaker, credentials, provider connections, trace export.

pub(crate) mod admin_token;
pub(crate) mod body_deadline;
pub(crate) mod breaker;
pub(crate) mod cache;
pub(crate) mod checked_stream;
pub(crate) mod client_address;
pub(crate) mod coalesce;
pub(crate) mod compressor;
pub(crate) mod connection_groups;
pub(crate) mod connection_slots;
pub(crate) mod credential;
pub(crate) mod fair_queue;
pub(crate) mod forward_connection;
pub(crate) mod open_files;
pub(crate) mod otlp;
pub(crate) mod provider_health;
pub(crate) mod provider_quota;
pub(crate) mod rate_limit;
pub(crate) mod request_record;
pub(crate) mod strangers;
pub(crate) mod tls;
pub(crate) mod token_bucket;
pub(crate) mod transfer_failure;
pub(crate) mod unknown_words;
pub(crate) mod upstream;

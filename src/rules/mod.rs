//! Pure rules: routing, ids, mapping, freshness, error rules, page tokens, authentication. They do no IO and take `now`.

pub(crate) mod admin_access;
pub(crate) mod auth;
pub(crate) mod cache_control;
pub(crate) mod cors;
pub(crate) mod error_rules;
pub(crate) mod fields;
pub(crate) mod freshness;
pub(crate) mod hop_by_hop;
pub(crate) mod mapping;
pub(crate) mod native_errors;
pub(crate) mod native_routes;
pub(crate) mod openapi;
pub(crate) mod page_token;
pub(crate) mod parameters;
pub(crate) mod path_forms;
pub(crate) mod provider_body;
pub(crate) mod provider_links;
pub(crate) mod purge;
pub(crate) mod query;
pub(crate) mod request_limits;
pub(crate) mod route;
pub(crate) mod route_error;
pub(crate) mod secrets;
pub(crate) mod swagger_ui;
pub(crate) mod template;
pub(crate) mod visible_body;

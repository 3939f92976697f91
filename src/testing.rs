//! Re-exports the internals that tests, benches and fuzz targets use. This is not a stable API.
//!
//! All other items except `main` are private to the crate, so that the compiler finds dead code.

pub use crate::base::content_coding::EncodedForms;
pub use crate::base::ids::{ClientId, ProviderId};
pub use crate::base::json::{ParsedJson, parse as parse_json};
pub use crate::base::metrics::Metrics;
pub use crate::base::model::{Form, Show, Time, View};
pub use crate::base::operation::Operation;
pub use crate::base::request_headers::RequestHeaders;
pub use crate::base::request_reply::{ProviderReply, ProviderRequest, Request, Response};
pub use crate::base::response_headers::ResponseHeaders;
pub use crate::config::clients::decode as decode_clients;
pub use crate::config::decode::{DecodeContext, Secret};
pub use crate::config::faults::Faults;
pub use crate::config::load::{ConfigSource, load as load_config};
pub use crate::config::provider::decode as decode_provider;
pub use crate::config::schema::{File as SchemaFile, schema};
pub use crate::config::tree::parse as parse_yaml;
pub use crate::config::weir::decode as decode_weir;
pub use crate::engine::cache::{Cache, Entry, EntryKind, Key, KeyParts};
pub use crate::engine::coalesce::{Coalescer, JoinTerms, Joined, shared_result_and_trace};
pub use crate::engine::rate_limit::{BucketCharge, admit};
pub use crate::engine::request_record::RequestRecord;
pub use crate::fetch::call::{UnmappedParts, entry_from_body};
pub use crate::fetch::provider_query::{ProviderIdentity, ProviderQuery, QueryTarget, SharedState};
pub use crate::pipeline::{Handled, Pipeline};
pub use crate::rules::chunked::{ChunkFault, ChunkedBody};
pub use crate::rules::cursor_history::CursorHistory;
pub use crate::rules::exchange::{Exchange, ResponseFault};
pub use crate::rules::freshness::{Lifetime, TtlSource, UpstreamLimit};
pub use crate::rules::native_routes::{NativeRoutes, has_dots};
pub use crate::rules::page_headers::PageHeaders;
pub use crate::rules::page_token::{Mark, Position, Signer, SourceProgress};
pub use crate::rules::purge::Subject;
pub use crate::rules::route::{RouteTable, SessionName};
pub use crate::rules::template::{Captured, Template, Values};
pub use crate::rules::visible_body::visible_body;
pub use crate::runtime::snapshot::{Provider, Snapshot};
pub use crate::runtime::{Runtime, now};
pub use crate::server::http1_head::parse as parse_http1_head;
pub use crate::server::http2_frames::{HeaderBlocks, HeaderFault, HeaderFaults};

/// Parsers of the HTTP caching headers.
pub mod cache_control {
    pub use crate::rules::cache_control::{age, age_header, conditions, directives, if_none_match_contains};
}

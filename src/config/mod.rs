//! The configuration as written: types, reading, decoding and checking. Nothing is compiled here.
//!
//! The way: `load` reads files, `tree` parses each with places, `weir`, `clients` and `provider`
//! decode through `decode`, `check` judges across files, and all report into `faults`.

mod check;
pub mod clients;
pub mod credentials;
pub mod decode;
pub mod edge;
pub mod faults;
pub mod freshness;
pub mod load;
pub mod native;
pub mod provider;
pub mod sketch;
pub mod tree;
pub mod upstream;
pub mod weir;

use faults::Place;

/// A whole configuration, decoded.
#[derive(Debug, Clone)]
pub struct Config {
    /// `weir.yaml`
    pub weir: weir::Weir,
    /// `clients.yaml`
    pub clients: Vec<clients::Client>,
    /// `providers/*.yaml`, by file name
    pub providers: Vec<provider::Provider>,
    /// `examples/*/*.json`
    pub examples: Vec<Example>,
    /// The files read, as shown to people.
    pub files: Vec<String>,
    /// Names this content, for people and metrics.
    pub revision: String,
    /// Says whether anything changed, secrets' files included. Never shown.
    pub content: decode::Secret,
}

/// A provider's own test: a native body and what it maps to.
#[derive(Debug, Clone)]
pub struct Example {
    /// The provider, after its folder.
    pub provider: String,
    /// The provider's body.
    pub native: String,
    /// The unified body it should become.
    pub unified: String,
    /// Where the native body is.
    pub native_place: Place,
    /// Where the unified body is.
    pub unified_place: Place,
}

//! Reads, decodes and checks the configuration. The types represent it as it is written; nothing is compiled here.
//!
//! `load` reads the files, `tree` parses each of them, `weir`, `clients` and `provider` decode the trees with the
//! functions of `decode`, and `check` checks rules between files. All of them report faults to `faults`. `schema` runs the
//! decoders on a probe to get the JSON Schema of each file.

mod check;
pub(crate) mod clients;
pub(crate) mod compression;
pub(crate) mod content;
pub(crate) mod conversion;
pub(crate) mod credentials;
pub(crate) mod decode;
pub(crate) mod edge;
pub(crate) mod faults;
pub(crate) mod freshness;
mod jwt;
pub(crate) mod load;
pub(crate) mod native;
pub(crate) mod pages;
pub(crate) mod provider;
mod read_file;
pub(crate) mod request_headers;
pub(crate) mod schema;
mod schema_builder;
pub(crate) mod tree;
pub(crate) mod upstream;
pub(crate) mod weir;

use faults::Location;

/// A decoded configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `weir.yaml`
    pub weir: weir::Weir,
    /// `clients.yaml`
    pub clients: Vec<clients::ClientConfig>,
    /// `providers/*.yaml`, by file name
    pub providers: Vec<provider::ProviderConfig>,
    /// The names of all providers, also of those whose file has faults.
    pub written_providers: Vec<String>,
    /// `examples/*/*.json`
    pub examples: Vec<Example>,
    /// The environment variables that are not set and the files that cannot be read, if that is accepted.
    pub missing: Vec<String>,
    /// Paths of all files, as messages show them.
    pub files: Vec<String>,
    /// Identifies the content of these files, for people and metrics.
    pub revision: String,
}

/// A test of a provider file: a native body, and the unified body that it must map to.
#[derive(Debug, Clone)]
pub struct Example {
    /// The provider's name, from the name of the folder.
    pub provider: String,
    /// The provider's body.
    pub native: String,
    /// The unified body.
    pub unified: String,
    /// The location of the native body.
    pub native_location: Location,
    /// The location of the unified body.
    pub unified_location: Location,
}

//! Faults of a configuration: where each is and what is wrong, collected until the end.
//!
//! A room of its own so that every stage (reading, decoding, checking, compiling) reports in one
//! form and none of them stops at the first fault.

use std::fmt;
use std::sync::Arc;

/// Where something stands in a config file. Lines and columns count from 1.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as the user would name it.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// Shows nothing: a digest of what a config says must not change with its line numbers.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("@")
    }
}

impl Place {
    /// The beginning of a file.
    #[must_use]
    pub fn top(file: &Arc<str>) -> Self {
        Self { file: file.clone(), line: 1, column: 1 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A value and where it was written, so that later stages can still point at it.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// All faults found so far.
#[derive(Debug, Default)]
pub struct Faults {
    list: Vec<Fault>,
}

impl Faults {
    /// Adds one.
    pub fn add(&mut self, place: &Place, message: impl Into<String>) {
        self.list.push(Fault { place: place.clone(), message: message.into() });
    }

    /// Keeps a result's value, or its error as a fault at `place`.
    pub fn keep<T, E: fmt::Display>(&mut self, place: &Place, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(place, error.to_string())).ok()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The faults, by file and place.
    #[must_use]
    pub fn sorted(mut self) -> Vec<Fault> {
        self.list.sort_by(|a, b| a.place.cmp(&b.place));
        self.list.dedup();
        self.list
    }
}

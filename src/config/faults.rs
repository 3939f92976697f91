//! Collects the faults of a configuration: where each one is, and what is wrong.
//!
//! Reading, decoding, checking and compiling all report here, so none of them stops at the first fault.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// A position in a configuration file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The file, by a path that the user can open.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// Hides the position: the digest of a configuration must not change with its line numbers.
impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("@")
    }
}

impl Location {
    /// Returns the beginning of a file.
    #[must_use]
    pub fn top(file: &Arc<str>) -> Self {
        Self { file: file.clone(), line: 1, column: 1 }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A value with its location, so that later stages can report faults there.
#[derive(Debug, Clone)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// The location of the value.
    pub location: Location,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The location of the fault.
    pub location: Location,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.message)
    }
}

/// All faults so far.
#[derive(Debug, Default)]
pub struct Faults {
    list: Vec<Fault>,
    /// Places of values that are placeholders.
    placeholders: HashSet<Location>,
}

impl Faults {
    /// Adds a fault, unless the value at this place is a placeholder.
    pub fn add(&mut self, location: &Location, message: impl Into<String>) {
        if self.placeholders.contains(location) {
            return;
        }
        self.list.push(Fault { location: location.clone(), message: message.into() });
    }

    /// Records that the value at this place is a placeholder, so that nothing about it is a fault.
    pub(crate) fn expect_none_at(&mut self, location: &Location) {
        self.placeholders.insert(location.clone());
    }

    /// Returns the number of faults.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.list.len()
    }

    /// Returns the value of a result, or adds its error as a fault at `location`.
    pub fn keep<T, E: fmt::Display>(&mut self, location: &Location, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(location, error.to_string())).ok()
    }

    /// Returns whether there are no faults.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns the faults by file, line and column, without duplicates.
    #[must_use]
    pub fn sorted(mut self) -> Vec<Fault> {
        self.list.sort_by(|a, b| a.location.cmp(&b.location));
        self.list.dedup();
        self.list
    }
}

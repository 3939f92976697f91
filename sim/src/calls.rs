//! Counts the requests to the simulated providers.

use crate::sync::lock;
use hyper::{Method, Version};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;

#[derive(Default)]
pub(crate) struct CallCounts {
    /// By method and path with query.
    by_target: Mutex<BTreeMap<String, u64>>,
    by_version: Mutex<BTreeMap<String, u64>>,
}

impl CallCounts {
    pub(crate) fn count(&self, method: &Method, target: &str, version: Version) {
        *lock(&self.by_target).entry(format!("{method} {target}")).or_default() += 1;
        *lock(&self.by_version).entry(format!("{version:?}")).or_default() += 1;
    }

    pub(crate) fn to_json(&self) -> Value {
        let calls = lock(&self.by_target).clone();
        json!({ "total": calls.values().sum::<u64>(), "calls": calls, "versions": *lock(&self.by_version) })
    }

    pub(crate) fn reset(&self) {
        lock(&self.by_target).clear();
        lock(&self.by_version).clear();
    }
}

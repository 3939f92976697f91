//! Decides which headers a read of Weir sends to a provider, and which of them are part of the cache key.
//!
//! The reads of the unified API have the fixed headers of the provider's file. A native read also has the client's
//! headers that the file names.

use crate::base::request_headers::RequestHeaders;
use crate::config::credentials::CredentialConfig;
use crate::config::faults::{Faults, Located};
use crate::config::request_headers::ReadHeaders;
use crate::rules::hop_by_hop;
use http::{HeaderName, HeaderValue};
use std::sync::Arc;

/// The most headers in each list of the file.
const MAX_NAMES: usize = 16;
/// The most bytes of the client's headers that a read sends: names and values.
const MAX_BYTES: usize = 4096;

/// The compiled headers of a provider's reads.
#[derive(Debug, Default)]
pub struct ReadHeaderRules {
    fixed: Vec<(HeaderName, HeaderValue)>,
    key: Vec<HeaderName>,
    pass: Vec<HeaderName>,
    /// The headers of a read without a client's headers; `None` if there are none.
    unified: Option<Arc<SentHeaders>>,
}

/// The headers of one read, besides those of every read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SentHeaders {
    /// The headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Those that are part of the cache key, one in a line.
    pub key: String,
}

/// A client's request whose headers are too long to be part of a cache key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the headers that the provider's file names ({names}) may have at most {MAX_BYTES} bytes together")]
pub struct LongHeaders {
    /// The names.
    pub names: String,
}

impl ReadHeaderRules {
    /// Compiles the section, and reports every fault.
    #[must_use]
    pub fn compile(config: &ReadHeaders, faults: &mut Faults) -> Self {
        let mut rules = Self::default();
        for (list, names) in [("key", &config.key), ("pass", &config.pass)] {
            if let Some(surplus) = names.get(MAX_NAMES) {
                faults.add(&surplus.location, format!("headers.{list} may have at most {MAX_NAMES} names"));
            }
        }
        if let Some((surplus, _)) = config.fixed.get(MAX_NAMES) {
            faults.add(&surplus.location, format!("headers.fixed may have at most {MAX_NAMES} headers"));
        }
        for at in &config.key {
            let name = name(at, &[&rules.key], faults);
            rules.key.extend(name);
        }
        for at in &config.pass {
            let name = name(at, &[&rules.key, &rules.pass], faults);
            rules.pass.extend(name);
        }
        for (at, value) in &config.fixed {
            let known: Vec<HeaderName> = rules.fixed.iter().map(|(name, _)| name.clone()).collect();
            let valid = HeaderValue::from_str(&value.value)
                .map_err(|_| "this value has characters that are not allowed in a header".to_owned());
            let header = name(at, &[&known, &rules.pass], faults).zip(faults.keep(&value.location, valid));
            rules.fixed.extend(header);
        }
        let unified = SentHeaders::of(rules.fixed.clone(), Vec::new());
        rules.unified = (!unified.headers.is_empty()).then(|| Arc::new(unified));
        rules
    }

    /// Reports a fault if the header of a credential is one of these: what a client sends in it would be part of cache keys
    /// and explanations.
    pub(crate) fn exclude_credential(&self, credential: Option<&CredentialConfig>, faults: &mut Faults) {
        for header in credential.iter().flat_map(|credential| credential.header_names()) {
            let mut names = self.key.iter().chain(&self.pass).chain(self.fixed.iter().map(|(name, _)| name));
            if names.any(|name| name.as_str().eq_ignore_ascii_case(&header.value)) {
                let what = "is the header of this credential, so the provider's headers cannot name it";
                faults.add(&header.location, format!("{} {what}", header.value));
            }
        }
    }

    /// Returns the headers of a read of the unified API; `None` if there are none.
    #[must_use]
    pub fn unified(&self) -> Option<&Arc<SentHeaders>> {
        self.unified.as_ref()
    }

    /// Returns whether a native read sends headers of the client.
    #[must_use]
    pub fn takes_any(&self) -> bool {
        !self.key.is_empty() || !self.pass.is_empty()
    }

    /// Returns the names of the headers that are part of the cache key.
    #[must_use]
    pub fn key_names(&self) -> &[HeaderName] {
        &self.key
    }

    /// Returns the names of the headers that are sent, but not part of the cache key.
    #[must_use]
    pub fn passed_names(&self) -> &[HeaderName] {
        &self.pass
    }

    /// Returns the headers of a native read. A header in `key` has the client's value, or is not sent; the fixed value is for
    /// other reads.
    ///
    /// # Errors
    /// The client's headers are too long.
    pub fn native(&self, headers: &RequestHeaders) -> Result<SentHeaders, LongHeaders> {
        let mut bytes = 0;
        let mut take = |name: &HeaderName| {
            let lines: Vec<&[u8]> = headers.get_all(name.as_str()).map(<[u8]>::trim_ascii).collect();
            // Several lines are one list (RFC 9110, section 5.3).
            let value = (!lines.is_empty()).then(|| lines.join(b", ".as_slice()))?;
            bytes += name.as_str().len() + value.len();
            HeaderValue::from_bytes(&value).ok().map(|value| (name.clone(), value))
        };
        let own: Vec<_> = self.key.iter().filter_map(&mut take).collect();
        let passed: Vec<_> = self.pass.iter().filter_map(&mut take).collect();
        if bytes > MAX_BYTES {
            let names = self.key.iter().chain(&self.pass).map(HeaderName::as_str).collect::<Vec<_>>();
            return Err(LongHeaders { names: names.join(", ") });
        }
        let fixed = self.fixed.iter().filter(|(name, _)| !self.key.contains(name)).cloned();
        Ok(SentHeaders::of(fixed.chain(own).collect(), passed))
    }
}

impl SentHeaders {
    /// Makes the headers of which the first list is part of the key.
    fn of(mut headers: Vec<(HeaderName, HeaderValue)>, passed: Vec<(HeaderName, HeaderValue)>) -> Self {
        headers.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        let mut key = String::new();
        for (name, value) in &headers {
            // A value has no line end, and percent-encoding keeps bytes apart that are not UTF-8.
            let value = percent_encoding::percent_encode(value.as_bytes(), percent_encoding::CONTROLS);
            key.extend([name.as_str(), ":", &value.to_string(), "\n"]);
        }
        headers.extend(passed);
        Self { headers, key }
    }
}

/// Reads the name of a header that a read may send. `others` are the names before it.
fn name(at: &Located<String>, others: &[&[HeaderName]], faults: &mut Faults) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(at.value.as_bytes())
        .map_err(|_| format!("{:?} is not a valid header name", at.value))
        .and_then(|name| match () {
            () if !hop_by_hop::may_be_named(name.as_str()) => {
                Err(format!("{name} cannot be a header of the file: Weir sets it, or never sends it to a provider"))
            }
            () if others.iter().any(|names| names.contains(&name)) => Err(format!("{name} is already listed")),
            () => Ok(name),
        });
    faults.keep(&at.location, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::faults::Location;

    fn at(value: &str) -> Located<String> {
        Located { value: value.to_owned(), location: Location::top(&"f".into()) }
    }

    fn compile(fixed: &[(&str, &str)], key: &[&str], pass: &[&str]) -> (ReadHeaderRules, Vec<String>) {
        let names = |names: &[&str]| names.iter().map(|name| at(name)).collect();
        let fixed = fixed.iter().map(|(name, value)| (at(name), at(value))).collect();
        let mut faults = Faults::default();
        let rules = ReadHeaderRules::compile(&ReadHeaders { fixed, key: names(key), pass: names(pass) }, &mut faults);
        (rules, faults.sorted().iter().map(|fault| fault.message.clone()).collect())
    }

    #[test]
    fn the_key_has_the_headers_that_are_part_of_the_question() {
        let (rules, faults) = compile(&[("api-version", "1"), ("x-own", "w")], &["API-Version", "beta"], &["x-lang"]);
        assert!(faults.is_empty(), "{faults:?}");
        assert_eq!(rules.unified().unwrap().key, "api-version:1\nx-own:w\n");
        let native = |headers: &[(&'static str, &'static str)]| {
            rules.native(&headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect()).unwrap()
        };
        let sent = |headers: &SentHeaders| {
            headers.headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect::<Vec<_>>().join(";")
        };
        let none = native(&[("other", "x")]);
        assert_eq!((sent(&none), &*none.key), ("x-own=w".into(), "x-own:w\n"));
        let same = native(&[("api-version", "1"), ("x-lang", "go")]);
        assert_eq!((sent(&same), &same.key), ("api-version=1;x-own=w;x-lang=go".into(), &rules.unified().unwrap().key));
        let both = native(&[("Beta", "b"), ("api-version", " 2 "), ("beta", "a")]);
        assert_eq!(
            (sent(&both), &*both.key),
            ("api-version=2;beta=b, a;x-own=w".into(), "api-version:2\nbeta:b, a\nx-own:w\n")
        );
        assert_ne!(native(&[("beta", "")]).key, none.key);
        assert!(compile(&[], &[], &[]).0.unified().is_none());
    }

    #[test]
    fn names_that_weir_sets_or_never_sends_are_faults() {
        for name in [
            "Host",
            "authorization",
            "Cookie",
            "X-API-Key",
            "connection",
            "x-weir-key",
            "weir-explain",
            "if-none-match",
            "Range",
            "accept-encoding",
            "content-length",
            "a_b",
            "X-HTTP-Method-Override",
            "x-forwarded-for",
            "",
            "a b",
        ] {
            for (fixed, list) in [(vec![(name, "v")], vec![]), (vec![], vec![name])] {
                let (_, faults) = compile(&fixed, &list, &[]);
                assert_eq!(faults.len(), 1, "{name:?}: {faults:?}");
            }
        }
        assert_eq!(compile(&[], &["x-a", "X-A", "x-c"], &["x-c", "x-b", "x-b"]).1.len(), 3);
        let many: Vec<String> = (0..17).map(|n| format!("x-{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(compile(&[], &many, &[]).1, ["headers.key may have at most 16 names"]);
    }

    #[test]
    fn the_clients_headers_are_limited() {
        let (rules, _) = compile(&[], &["beta"], &["lang"]);
        let native = |length: usize| {
            let value = "x".repeat(length);
            rules.native(&[("beta", value.as_bytes()), ("other", &[b'y'; 9999])].into_iter().collect())
        };
        assert!(native(MAX_BYTES - 4).is_ok());
        assert_eq!(native(MAX_BYTES - 3), Err(LongHeaders { names: "beta, lang".into() }));
    }
}

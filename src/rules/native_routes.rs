//! Recognises requests to a provider's native API, by their host or by the first segment of their path.
//!
//! This comes before authentication, because even the error for a missing key has the shape of the provider's errors.

use crate::base::ids::{Id, ProviderId};
use crate::base::request_headers::RequestHeaders;
use crate::config::provider::ProviderConfig;
use crate::rules::authority::Authority;
use crate::rules::path_forms::decoded_forms;
use std::collections::HashMap;

/// The native routes of all providers.
#[derive(Debug, Default)]
pub struct NativeRoutes {
    /// Searched one by one, because there are few.
    names: Vec<(String, ProviderId)>,
    hosts: HashMap<String, ProviderId>,
}

/// A request to a native route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NativeMatch<'r> {
    /// The provider.
    pub provider: ProviderId,
    /// The part of the path before the provider's own path. Empty if the host matched.
    pub prefix: &'r str,
    /// The provider's own path, still percent-encoded. Starts with a slash.
    pub path: &'r str,
}

impl NativeRoutes {
    /// Creates the routes of these providers.
    #[must_use]
    pub fn compile(providers: &[ProviderConfig]) -> Self {
        let mut routes = Self::default();
        for (position, provider) in providers.iter().enumerate() {
            let id = ProviderId::at(position);
            routes.names.push((provider.name.value.clone(), id));
            routes.hosts.extend(provider.native.hosts.iter().map(|host| (host.value.clone(), id)));
        }
        routes
    }

    /// Returns the native route of a request, if it has one.
    #[must_use]
    pub fn find<'r>(&self, headers: &RequestHeaders, path: &'r str) -> Option<NativeMatch<'r>> {
        if !self.hosts.is_empty()
            && let Some(provider) = headers.get("host").and_then(|host| self.by_host(host))
        {
            return Some(NativeMatch { provider, prefix: "", path });
        }
        let rest = path.strip_prefix('/')?;
        let name = &rest[..rest.bytes().position(|byte| byte == b'/').unwrap_or(rest.len())];
        let provider = self.names.iter().find(|(known, _)| known == name)?.1;
        let (prefix, rest) = path.split_at(name.len() + 1);
        Some(NativeMatch { provider, prefix, path: if rest.is_empty() { "/" } else { rest } })
    }

    /// Finds a host with its port, otherwise the host without a port, which stands for all ports.
    fn by_host(&self, host: &[u8]) -> Option<ProviderId> {
        let authority = Authority::parse(host)?;
        let name = authority.name();
        let with_port = authority.port().and_then(|port| self.hosts.get(&format!("{name}:{port}")));
        with_port.or_else(|| self.hosts.get(&name)).copied()
    }
}

/// Returns whether a path has a segment `.` or `..`, percent-encoded or not, or is encoded too often to know. Such a path
/// could leave the provider's API.
#[must_use]
pub fn has_dots(path: &str) -> bool {
    decoded_forms(path).map_or(true, |forms| forms.iter().any(|form| has_dots_as_it_is(form)))
}

fn has_dots_as_it_is(path: &str) -> bool {
    path.split(['/', '\\']).any(|segment| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        let plain = plain.split("%2f").flat_map(|part| part.split("%5c"));
        plain.into_iter().any(|part| matches!(part.split(';').next(), Some("." | "..")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_found_by_host_and_by_first_segment() {
        let mut routes = NativeRoutes::default();
        routes.names.push(("one".into(), ProviderId::at(0)));
        routes.hosts.extend([
            ("two.example".to_owned(), ProviderId::at(1)),
            ("three.example:81".to_owned(), ProviderId::at(2)),
        ]);
        let find = |host: &'static str, path: &'static str| {
            let headers = [("Host", host.as_bytes())].into_iter().collect();
            routes.find(&headers, path).map(|m| (m.provider.position(), m.prefix, m.path))
        };
        assert_eq!(find("weir", "/one/v2/x"), Some((0, "/one", "/v2/x")));
        assert_eq!(find("weir", "/one"), Some((0, "/one", "/")));
        assert_eq!(find("weir", "/onetwo/x"), None);
        assert_eq!(find("weir", "/v1/sessions"), None);
        assert_eq!(find("TWO.example:8080", "/v1/sessions"), Some((1, "", "/v1/sessions")));
        assert_eq!(find("two.example", "/one/x"), Some((1, "", "/one/x")));
        assert_eq!(find("Two.Example.:", "/one/x"), Some((1, "", "/one/x")));
        assert_eq!(find("two.example:99999", "/one/x"), Some((0, "/one", "/x")), "no valid host");
        assert_eq!(find("three.example:81", "/x"), Some((2, "", "/x")));
        assert_eq!(find("three.example:82", "/x"), None);
    }

    #[test]
    fn dot_segments_are_found_in_every_encoding() {
        for path in [
            "/..",
            "/a/../b",
            "/a/%2e%2E/b",
            "/a/.%2e",
            "/./a",
            "/a%2f..%2fb",
            "/a\\..\\b",
            "/a/..;x=1/b",
            "/%2E",
            "/%252e%252E/b",
            "/a%u002f%u002e/b",
        ] {
            assert!(has_dots(path), "{path}");
        }
        for path in ["/a.b/c..d/...", "/ri.aip-agents..agent.1/x", "/a%2fb", "/", ""] {
            assert!(!has_dots(path), "{path}");
        }
    }
}

//! Which provider's own API a request is for: by its host, or by the first segment of its path.
//!
//! A room of its own because it is asked before anything else: even a missing key is told in the shape of
//! the provider whose SDK asks.

use crate::config::provider::Provider;
use crate::headers::Headers;
use std::collections::HashMap;

/// Where providers' own APIs stand.
#[derive(Debug, Default)]
pub struct Mounts {
    /// So few that looking at each is the quickest.
    names: Vec<(String, usize)>,
    hosts: HashMap<String, usize>,
}

/// A request below a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mounted<'r> {
    /// The provider's position.
    pub provider: usize,
    /// What stands before its own path; empty for a host.
    pub prefix: &'r str,
    /// Its own path, still percent-encoded; begins with a slash.
    pub path: &'r str,
}

impl Mounts {
    /// The mounts of these providers.
    #[must_use]
    pub fn compile(providers: &[Provider]) -> Self {
        let mut mounts = Self::default();
        for (position, provider) in providers.iter().enumerate() {
            mounts.names.push((provider.name.value.clone(), position));
            mounts.hosts.extend(provider.native.hosts.iter().map(|host| (host.value.clone(), position)));
        }
        mounts
    }

    /// The mount that a request is below.
    #[must_use]
    pub fn find<'r>(&self, headers: &Headers, path: &'r str) -> Option<Mounted<'r>> {
        if !self.hosts.is_empty()
            && let Some(provider) = headers.text("host").and_then(|host| self.of_host(host))
        {
            return Some(Mounted { provider, prefix: "", path });
        }
        let rest = path.strip_prefix('/')?;
        let name = &rest[..rest.bytes().position(|byte| byte == b'/').unwrap_or(rest.len())];
        let provider = self.names.iter().find(|(known, _)| known == name)?.1;
        let (prefix, rest) = path.split_at(name.len() + 1);
        Some(Mounted { provider, prefix, path: if rest.is_empty() { "/" } else { rest } })
    }

    /// With its port, or for all ports.
    fn of_host(&self, host: &str) -> Option<usize> {
        let host = host.to_ascii_lowercase();
        let bare =
            host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map(|(name, _)| name);
        self.hosts.get(&host).or_else(|| self.hosts.get(bare?)).copied()
    }
}

/// Whether a path has a segment `.` or `..`, encoded or not: such a one could leave the provider's own.
#[must_use]
pub fn has_dots(path: &str) -> bool {
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
    fn by_host_with_or_without_port_and_by_the_first_segment() {
        let mut mounts = Mounts::default();
        mounts.names.push(("one".into(), 0));
        mounts.hosts.extend([("two.example".to_owned(), 1), ("three.example:81".to_owned(), 2)]);
        let find = |host: &'static str, path: &'static str| {
            let headers = [("Host", host.as_bytes())].into_iter().collect();
            mounts.find(&headers, path).map(|m| (m.provider, m.prefix, m.path))
        };
        assert_eq!(find("weir", "/one/v2/x"), Some((0, "/one", "/v2/x")));
        assert_eq!(find("weir", "/one"), Some((0, "/one", "/")));
        assert_eq!(find("weir", "/onetwo/x"), None);
        assert_eq!(find("weir", "/v1/sessions"), None);
        assert_eq!(find("TWO.example:8080", "/v1/sessions"), Some((1, "", "/v1/sessions")));
        assert_eq!(find("two.example", "/one/x"), Some((1, "", "/one/x")));
        assert_eq!(find("three.example:81", "/x"), Some((2, "", "/x")));
        assert_eq!(find("three.example:82", "/x"), None);
    }

    #[test]
    fn dots_are_seen_in_every_dress() {
        for path in
            ["/..", "/a/../b", "/a/%2e%2E/b", "/a/.%2e", "/./a", "/a%2f..%2fb", "/a\\..\\b", "/a/..;x=1/b", "/%2E"]
        {
            assert!(has_dots(path), "{path}");
        }
        for path in ["/a.b/c..d/...", "/ri.aip-agents..agent.1/x", "/a%2fb", "/", ""] {
            assert!(!has_dots(path), "{path}");
        }
    }
}

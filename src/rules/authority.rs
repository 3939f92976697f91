//! Parses a host and its port, as in `Host` and `:authority` (RFC 9110, section 7.2; RFC 3986, section 3.2.2).

use std::net::Ipv6Addr;

/// A valid host with its port. Compare two with [`Authority::is_same`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Authority<'a> {
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Parses `host [ ":" port ]`. Returns `None` if the text is not that, or if it has user information.
    ///
    /// Weir's own rules beyond RFC 3986: no comma, which separates the values of a list; and a port of at most 65535.
    #[must_use]
    pub(crate) fn parse(text: &'a [u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok().filter(|text| text.is_ascii())?;
        let (host, port) = match text.strip_prefix('[') {
            Some(literal) => {
                let (address, rest) = literal.split_once(']')?;
                is_address(address).then_some(())?;
                (&text[..address.len() + 2], rest)
            }
            None => {
                let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                is_name(name).then_some(())?;
                (name, rest)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return None,
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
        };
        Some(Self { host, port })
    }

    /// Returns whether both name the same place. `default_port` stands for a port that is not written.
    #[must_use]
    pub(crate) fn is_same(&self, other: &Authority<'_>, default_port: u16) -> bool {
        let port = |of: &Authority<'_>| of.port.unwrap_or(default_port);
        self.host.eq_ignore_ascii_case(other.host) && port(self) == port(other)
    }

    /// Returns the host in lower case, without the dot that ends a fully qualified name.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        self.host.strip_suffix('.').unwrap_or(self.host).to_ascii_lowercase()
    }

    /// Returns the port, if it is written.
    #[must_use]
    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }
}

/// Returns whether the text between brackets is `IPv6address` or `IPvFuture`.
fn is_address(text: &str) -> bool {
    if text.parse::<Ipv6Addr>().is_ok() {
        return true;
    }
    let future = text.strip_prefix(['v', 'V']).and_then(|rest| rest.split_once('.'));
    future.is_some_and(|(version, address)| {
        let valid = |byte: u8| byte == b':' || is_name_byte(byte);
        !version.is_empty()
            && version.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !address.is_empty()
            && address.bytes().all(valid)
    })
}

/// Returns whether the text is a `reg-name` that is not empty. An IPv4 address is one too.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut hex = || bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit());
        let valid = if byte == b'%' { hex() && hex() } else { is_name_byte(byte) };
        if !valid {
            return false;
        }
    }
    !text.is_empty() && text != "."
}

/// Returns whether a byte is in `unreserved` or `sub-delims`, except the comma.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(String, Option<u16>)> {
        Authority::parse(text.as_bytes()).map(|authority| (authority.name(), authority.port()))
    }

    #[test]
    fn valid_hosts_are_parsed() {
        for (text, name, port) in [
            ("example.com", "example.com", None),
            ("Example.COM.:8080", "example.com", Some(8080)),
            ("a_b-c~d", "a_b-c~d", None),
            ("localhost:", "localhost", None),
            ("127.0.0.1:65535", "127.0.0.1", Some(65535)),
            ("999.1.1.1", "999.1.1.1", None),
            ("[::1]", "[::1]", None),
            ("[::FFFF:1.2.3.4]:80", "[::ffff:1.2.3.4]", Some(80)),
            ("[v1.a:b]", "[v1.a:b]", None),
            ("x%41y", "x%41y", None),
            ("a!b$c&d'e(f)g*h+i;j=k", "a!b$c&d'e(f)g*h+i;j=k", None),
        ] {
            assert_eq!(parse(text), Some((name.to_owned(), port)), "{text}");
        }
    }

    #[test]
    fn invalid_hosts_are_refused() {
        for text in [
            "",
            ".",
            ".:80",
            ":",
            ":80",
            "x y",
            " x",
            "x ",
            "x\ty",
            "x/y",
            "/",
            "x?y",
            "x#y",
            "x@y",
            "u:p@x",
            "x\\y",
            "x,y",
            "x, y",
            "x:y",
            "x:99999",
            "x:65536",
            "x:-1",
            "x:+1",
            "x:0x1",
            "x:1:2",
            "x: 80",
            "x:80 ",
            "::1",
            "[::1",
            "::1]",
            "[]",
            "[:::1]",
            "[::1]x",
            "[::1]:x",
            "[::1%25eth0]",
            "[1.2.3.4]",
            "[g::]",
            "[v.a]",
            "[v1.]",
            "[v1.a/b]",
            "x%",
            "x%4",
            "x%4g",
            "x<y",
            "x\"y",
            "x|y",
            "x^y",
            "x`y",
            "x{y}",
            "h\u{f6}st",
            "x\0y",
            "x\u{7f}",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert!(Authority::parse(b"x\xff").is_none());
    }

    #[test]
    fn case_and_a_default_port_make_no_difference() {
        let same = |one: &str, other: &str, port| {
            let [one, other] = [one, other].map(|text| Authority::parse(text.as_bytes()).unwrap());
            one.is_same(&other, port)
        };
        for (one, other) in [("A.b", "a.B"), ("a:80", "a"), ("a", "a:"), ("[::A]:80", "[::a]")] {
            assert!(same(one, other, 80) && same(other, one, 80), "{one} {other}");
        }
        for (one, other) in [("a:443", "a"), ("a", "b"), ("a:81", "a:82"), ("[::a]", "a")] {
            assert!(!same(one, other, 80), "{one} {other}");
        }
        assert!(same("a:443", "a", 443));
    }
}

//! Finds weak settings in a valid configuration, for `weir check --strict`.
//!
//! Each warning says where, what is weak, and what would be better. No warning prevents a start: a setting can be right
//! on a laptop and weak on a network.

use crate::base::model::Time;
use crate::base::operation::Operation;
use crate::config::Config;
use crate::config::clients::ClientConfig;
use crate::config::credentials::{CredentialConfig, Jwt, JwtAlgorithm, JwtKey};
use crate::config::edge::Listener;
use crate::config::faults::{Fault, Faults, Location};
use crate::config::pages::{End, NextPage, Way};
use crate::config::provider::{Ids, ProviderConfig};
use crate::config::weir::{AccessLog, Weir};
use crate::engine::open_files::OpenFiles;
use crate::engine::tls;
use crate::rules::query_key::MIN_MASKED;
use http::Uri;
use regex_syntax::hir::Look;
use std::net::IpAddr;
use std::time::Duration;

/// A certificate or a key that expires within this time gets a warning.
const SOON: Duration = Duration::from_secs(30 * 86_400);
/// SHA-256 of the keys of the demo and of its load generator, which are public.
const PUBLIC_KEYS: [[u8; 32]; 2] = [DEMO_KEY, LOAD_KEY];
const LOAD_KEY: [u8; 32] = [
    0x5b, 0xfa, 0x82, 0x66, 0x69, 0x12, 0xd0, 0x4d, 0x61, 0xab, 0xbd, 0xc0, 0x0d, 0xb2, 0xa4, 0x6c, 0xa0, 0x8b, 0x11,
    0x68, 0x55, 0x96, 0x3f, 0xf0, 0x7a, 0x4f, 0x5d, 0x29, 0xa0, 0x30, 0x72, 0x18,
];
const DEMO_KEY: [u8; 32] = [
    0x37, 0xa7, 0x21, 0x70, 0x6a, 0xdc, 0x52, 0x40, 0xe6, 0x0d, 0xef, 0x71, 0x3f, 0x98, 0x17, 0xd6, 0x80, 0x09, 0x83,
    0xf7, 0x4a, 0xb6, 0xc8, 0x9c, 0x32, 0xf4, 0x1c, 0x24, 0x4b, 0x29, 0xe0, 0x3f,
];
/// The least length of a secret that cannot be guessed, in bytes.
const MIN_SECRET: usize = 32;
/// The least size of a cache that stores more than some hundred responses, in bytes.
const MIN_CACHE: u64 = 16 << 20;

/// Returns all warnings, by location.
#[must_use]
pub(crate) fn warnings(config: &Config, now: Time) -> Vec<Fault> {
    let mut warnings = Faults::default();
    config.weir.listen.iter().for_each(|listener| self::listener(listener, &config.weir, now, &mut warnings));
    admin(&config.weir, &mut warnings);
    page_token_key(&config.weir, &mut warnings);
    exposure(&config.weir, &mut warnings);
    running(config, &mut warnings);
    config.clients.iter().for_each(|client| self::client(client, now, &mut warnings));
    config.providers.iter().for_each(|provider| self::provider(provider, &mut warnings));
    warnings.sorted()
}

fn listener(listener: &Listener, weir: &Weir, now: Time, warnings: &mut Faults) {
    let Some(tls) = &listener.tls else {
        // With trusted_proxies set, a proxy in front of Weir terminates TLS.
        if !listener.address.ip().is_loopback() && weir.trusted_proxies.is_empty() {
            let better = "set tls: { certificate, key }, or name the proxy that terminates TLS in trusted_proxies";
            warnings.add(&listener.location, format!("keys and responses cross the network without TLS; {better}"));
        }
        return;
    };
    if let Some(when) = tls::expiry(tls).and_then(|at| describe_expiry(at, now)) {
        let better = "renew it; Weir reads the file at every reload";
        warnings.add(&tls.certificate.location, format!("the certificate {when}; {better}"));
    }
}

/// Describes an expiry that has passed or comes soon; `None` for any other.
fn describe_expiry(at: Time, now: Time) -> Option<String> {
    let left = at.since(now);
    let day = at.rfc3339().chars().take(10).collect::<String>();
    match left {
        Duration::ZERO => Some(format!("expired on {day}")),
        _ if left <= SOON => Some(format!("expires on {day}, in {} days", left.as_secs() / 86_400)),
        _ => None,
    }
}

fn admin(weir: &Weir, warnings: &mut Faults) {
    let admin = &weir.admin;
    let Some(location) = admin.location.as_ref().filter(|_| !admin.address.ip().is_loopback()) else { return };
    let better = "use a loopback address, or let only operators and Prometheus connect";
    warnings.add(location, format!("the admin listener is on the network, and its metrics need no token; {better}"));
    if admin.token.0.len() < MIN_SECRET {
        let better = format!("set it to at least {MIN_SECRET} random characters");
        warnings.add(location, format!("admin.token is too short for a listener on the network; {better}"));
    }
}

/// Returns the location of a key, or the beginning of the file if the key is missing.
fn location_or_top<'w>(key: Option<&'w Location>, weir: &'w Weir) -> &'w Location {
    key.unwrap_or(&weir.locations.file)
}

fn page_token_key(weir: &Weir, warnings: &mut Faults) {
    let location = location_or_top(weir.locations.page_tokens.as_ref(), weir);
    match weir.page_token_key.0.len() {
        0 => {
            let better = "set page_tokens.key to the same value in all gateways behind one address";
            warnings.add(location, format!("page tokens become invalid at every restart; {better}"));
        }
        length if length < MIN_SECRET => {
            let better = format!("use at least {MIN_SECRET} random characters");
            warnings.add(location, format!("a page_tokens.key of {length} characters can be guessed; {better}"));
        }
        _ => {}
    }
}

/// Checks the settings that protect Weir from clients on the network.
fn exposure(weir: &Weir, warnings: &mut Faults) {
    let locations = &weir.locations;
    if weir.limits.auth_failures.is_none() {
        let better = "set limits.auth_failures, for example to { requests: 120, per: 1m }";
        warnings.add(
            location_or_top(locations.limits.as_ref(), weir),
            format!("failed authentications are not limited, so clients can try many keys; {better}"),
        );
    }
    if weir.cors.as_ref().is_some_and(|cors| cors.origins.iter().any(|origin| origin == "*")) {
        warnings.add(
            location_or_top(locations.cors.as_ref(), weir),
            "pages of any origin can read responses; list your own origins",
        );
    }
    if weir.trusted_proxies.iter().any(|network| network.0.prefix_len() == 0) {
        let better = "list only the networks of your proxies";
        warnings.add(
            location_or_top(locations.trusted_proxies.as_ref(), weir),
            format!("every client can forge its address with X-Forwarded-For; {better}"),
        );
    }
}

/// Checks the access log, the cache and the shutdown.
fn running(config: &Config, warnings: &mut Faults) {
    let (weir, location) = (&config.weir, &config.weir.locations.file);
    if let Some(warning) = OpenFiles::available().warning(&weir.limits) {
        warnings.add(location, warning);
    }
    if weir.access_log == AccessLog::Off {
        warnings.add(location, "access_log is off, so nobody can see who sent which request; use on, or { sample: N }");
    }
    if weir.max_bytes < MIN_CACHE {
        let better = "64MiB stores tens of thousands of sessions";
        warnings.add(location, format!("cache.max_bytes ({} bytes) stores few responses; {better}", weir.max_bytes));
    }
    memory(weir, machine_memory(), warnings);
    let slowest = config.providers.iter().map(|provider| provider.upstream.timeout).max().unwrap_or_default();
    if weir.grace < slowest {
        let (grace, slowest) = (weir.grace.as_millis(), slowest.as_millis());
        let better = "set shutdown.grace to at least that";
        let weak =
            format!("shutdown.grace cuts requests off after {grace} ms; the longest upstream.timeout is {slowest} ms");
        warnings.add(location, format!("{weak}; {better}"));
    }
}

/// Compares the bound on memory (docs/OPERATIONS.md, Sizing) with the memory of the machine, in bytes.
fn memory(weir: &Weir, machine: Option<u64>, warnings: &mut Faults) {
    let most = weir.max_bytes.saturating_mul(3).saturating_add(weir.overload.max_buffered);
    let Some(machine) = machine.filter(|machine| most > *machine) else { return };
    let (most, machine) = (most >> 20, machine >> 20);
    let better = "lower cache.max_bytes or overload.max_buffered";
    let weak =
        format!("Weir may take {most} MiB (3 times cache.max_bytes, and overload.max_buffered) of {machine} MiB");
    warnings.add(&weir.locations.file, format!("{weak}; {better}"));
}

/// Returns the memory of the machine or of the process's control group, whichever is less, in bytes. `None` if the system
/// does not say.
fn machine_memory() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    // `max` means no limit.
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse::<u64>().ok());
    machine.into_iter().chain(group).min()
}

fn client(client: &ClientConfig, now: Time, warnings: &mut Faults) {
    let (id, location) = (&client.id.value, &client.id.location);
    if client.rate_limits.is_empty() {
        let better = "set rate_limit, so that its mistakes do not affect other clients";
        warnings.add(location, format!("client {id:?} has no rate limit; {better}"));
    }
    if client.keys.is_empty() {
        warnings.add(location, format!("client {id:?} has no key; add one (weir key new), or remove the client"));
    }
    for key in &client.keys {
        if PUBLIC_KEYS.contains(&key.sha256) {
            let better = "remove it before other machines can reach a listener";
            warnings.add(&key.location, format!("this is the key of the demo, which is public; {better}"));
        }
        if let Some(when) = key.expires_at.and_then(|at| describe_expiry(at, now)) {
            let better = "add another key (weir key new), and remove this one when the client no longer uses it";
            warnings.add(&key.location, format!("this key of client {id:?} {when}; {better}"));
        }
    }
    for (provider, credential) in &client.credentials {
        self::credential(credential, &provider.location, warnings);
    }
}

fn provider(provider: &ProviderConfig, warnings: &mut Faults) {
    let (name, location) = (&provider.name.value, &provider.name.location);
    if is_cleartext(&provider.base_url.value) {
        let weak = format!("credentials and responses of {name} cross the network without TLS");
        warnings.add(&provider.base_url.location, format!("{weak}; use https://"));
    }
    if let Some(credential) = &provider.credential {
        self::credential(credential, location, warnings);
    }
    if provider.upstream.capacity.is_none() {
        let better = "set upstream.capacity to that quota";
        warnings.add(location, format!("Weir can exceed your quota at {name}; {better}"));
    }
    if provider.upstream.breaker.is_none() {
        let better = "set upstream.breaker, for example to { failures: 5, open_for: 10s }";
        warnings.add(location, format!("while {name} is down, every request to it waits for a timeout; {better}"));
    }
    let upstream = &provider.upstream;
    if upstream.connect_timeout > upstream.timeout {
        let (connect, timeout) = (upstream.connect_timeout.as_millis(), upstream.timeout.as_millis());
        let weak = format!(
            "upstream.connect_timeout of {name} ({connect} ms) never ends before upstream.timeout ({timeout} ms)"
        );
        warnings.add(location, format!("{weak}; make it shorter"));
    }
    patterns(&provider.ids, warnings);
    pages(provider, warnings);
    let freshness = &provider.freshness;
    if freshness.stale_if_error.is_zero() {
        let better = "set freshness.stale_if_error, for example to 10m";
        let weak = format!("when {name} fails, clients get an error even if a stale response is stored");
        warnings.add(location, format!("{weak}; {better}"));
    }
    if freshness.default.is_zero() || freshness.max.is_zero() {
        let better = "set freshness.default and freshness.max above 0s";
        warnings.add(location, format!("sessions of {name} are not cached; {better}"));
    }
}

/// Checks that a list whose end Weir concludes says how many sessions it has.
fn pages(provider: &ProviderConfig, warnings: &mut Faults) {
    let Some(list) = provider.operations.get(Operation::ListSessions).filter(|list| list.total.is_none()) else {
        return;
    };
    let Some(NextPage { location, way, end }) = &list.next else { return };
    let better = "set total, if the provider gives the number of all sessions";
    if matches!(end, Some(End::Short)) {
        let weak =
            "if the provider's pages have fewer sessions than max_limit, the list ends early, and nothing says so";
        warnings.add(location, format!("{weak}; {better}, or write end: empty"));
    }
    if matches!(way, Way::Number(_)) {
        let weak = "if a session is removed while a client reads the list, another one can be missing";
        warnings.add(location, format!("{weak}; {better}"));
    }
}

/// Checks that the patterns of ids match whole ids.
fn patterns(ids: &Ids, warnings: &mut Faults) {
    let all = [&ids.recognise, &ids.accept].into_iter().flat_map(|patterns| [&patterns.agent, &patterns.session]);
    for pattern in all.flatten() {
        if !is_anchored(&pattern.value) {
            let weak = format!("the pattern {:?} also matches a part of an id", pattern.value);
            warnings.add(&pattern.location, format!("{weak}; begin it with ^ and end it with $"));
        }
    }
}

/// Returns whether a regular expression matches whole texts only.
fn is_anchored(pattern: &str) -> bool {
    let Ok(parsed) = regex_syntax::parse(pattern) else { return true };
    let properties = parsed.properties();
    properties.look_set_prefix().contains(Look::Start) && properties.look_set_suffix().contains(Look::End)
}

/// Checks a credential for a provider.
fn credential(credential: &CredentialConfig, location: &Location, warnings: &mut Faults) {
    match credential {
        CredentialConfig::Header { header, value } if value.0.is_empty() => {
            warnings
                .add(&header.location, "the credential is empty, so Weir sends none; set it, or remove credentials");
        }
        CredentialConfig::Query { name, value } if value.0.is_empty() => {
            warnings.add(&name.location, "the credential is empty, so Weir sends none; set it, or remove credentials");
        }
        CredentialConfig::Query { name, value } if value.0.len() < MIN_MASKED => {
            let weak = "the key is too short to be masked wherever the provider repeats it";
            warnings.add(&name.location, format!("{weak}; use at least {MIN_MASKED} characters"));
        }
        CredentialConfig::AwsSigV4(aws) if aws.access_key_id.value.is_empty() || aws.secret_access_key.0.is_empty() => {
            let weak = "access_key_id or secret_access_key is empty, so Weir sends no credential";
            warnings.add(&aws.access_key_id.location, format!("{weak}; set both, or remove credentials"));
        }
        CredentialConfig::AwsSigV4(aws) if aws.session_token.as_ref().is_some_and(|token| token.0.is_empty()) => {
            let weak = "session_token is empty, so Weir does not send it";
            warnings.add(&aws.access_key_id.location, format!("{weak}; set it, or remove the key"));
        }
        CredentialConfig::Jwt(jwt) => self::jwt(jwt, warnings),
        CredentialConfig::Headers(headers) => {
            for (name, _) in headers.iter().filter(|(_, value)| value.0.is_empty()) {
                let better = "set it, or remove the header";
                warnings.add(&name.location, format!("{} is empty, so Weir does not send it; {better}", name.value));
            }
        }
        CredentialConfig::Basic { username, password } => {
            let better = "set it, or remove credentials";
            if username.value.0.is_empty() {
                warnings.add(&username.location, format!("the user name is empty; {better}"));
            }
            if password.as_ref().is_some_and(|password| password.0.is_empty()) {
                let better = "set it, or remove the key if there is none";
                warnings.add(&username.location, format!("the password is empty; {better}"));
            }
        }
        CredentialConfig::OAuth2(oauth2) if is_cleartext(&oauth2.token_url.value) => {
            let better = "use https:// for token_url";
            warnings.add(
                &oauth2.token_url.location,
                format!("the client secret crosses the network without TLS; {better}"),
            );
        }
        CredentialConfig::OAuth2(oauth2) if oauth2.client_secret.0.is_empty() => {
            warnings.add(location, "client_secret is empty; set it");
        }
        _ => {}
    }
}

fn jwt(jwt: &Jwt, warnings: &mut Faults) {
    let secret = jwt.key.secret();
    let is_hmac = matches!(jwt.key, JwtKey::Own { algorithm: JwtAlgorithm::Hs256, .. });
    if secret.value.0.is_empty() {
        warnings.add(&secret.location, "the key is empty, so Weir sends no credential; set it, or remove credentials");
    } else if is_hmac && secret.value.0.len() < MIN_SECRET {
        // RFC 7518, section 3.2
        let better = format!("use at least {MIN_SECRET} random characters");
        warnings.add(&secret.location, format!("a key of HS256 this short can be guessed; {better}"));
    }
    if let Some(url) = jwt.token_url.as_ref().filter(|url| is_cleartext(&url.value)) {
        let better = "use https:// for token_url";
        warnings.add(&url.location, format!("the signed token crosses the network without TLS; {better}"));
    }
}

/// Returns whether the URL is `http://` to another machine.
fn is_cleartext(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    uri.scheme_str() == Some("http") && !loopback
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pattern_of_whole_ids_is_anchored() {
        for anchored in ["^a$", "^(a|b)$", "^a$|^b$", r"\Aa\z", "^(?:x{1,3})$"] {
            assert!(is_anchored(anchored), "{anchored}");
        }
        for open in ["a", "^a", "a$", "^a|b$", "^a$|b", "(^)?a$", ""] {
            assert!(!is_anchored(open), "{open}");
        }
    }
}

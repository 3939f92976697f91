//! What in a configuration is sound but weak: each finding says where, what, and what would be better.
//!
//! A room of its own because nothing of it stops a start: a setting may be right for a laptop and weak for a network.
//! It reads the configuration as written, and asks nobody else.

use crate::config::Config;
use crate::config::clients::Client;
use crate::config::credentials::Credential;
use crate::config::edge::Listener;
use crate::config::faults::{Fault, Faults, Place};
use crate::config::provider::Provider;
use crate::config::weir::{AccessLog, Weir};
use crate::model::Time;
use crate::tls;
use http::Uri;
use std::net::IpAddr;
use std::time::Duration;

/// What ends within this is near its end.
const SOON: Duration = Duration::from_secs(30 * 86_400);
/// SHA-256 of the key that the demo uses, which everybody knows.
const DEMO_KEY: [u8; 32] = [
    0x37, 0xa7, 0x21, 0x70, 0x6a, 0xdc, 0x52, 0x40, 0xe6, 0x0d, 0xef, 0x71, 0x3f, 0x98, 0x17, 0xd6, 0x80, 0x09, 0x83,
    0xf7, 0x4a, 0xb6, 0xc8, 0x9c, 0x32, 0xf4, 0x1c, 0x24, 0x4b, 0x29, 0xe0, 0x3f,
];
/// Shorter secrets can be guessed by who may try often enough.
const LONG_ENOUGH: usize = 32;
/// A smaller cache holds some hundred answers.
const SMALL_CACHE: u64 = 16 << 20;

/// All findings, by place.
#[must_use]
pub fn audit(config: &Config, now: Time) -> Vec<Fault> {
    let mut found = Faults::default();
    config.weir.listen.iter().for_each(|listener| self::listener(listener, &config.weir, now, &mut found));
    admin(&config.weir, &mut found);
    whole(config, &mut found);
    config.clients.iter().for_each(|client| self::client(client, now, &mut found));
    config.providers.iter().for_each(|provider| self::provider(provider, &mut found));
    found.sorted()
}

fn listener(listener: &Listener, weir: &Weir, now: Time, found: &mut Faults) {
    let Some(tls) = &listener.tls else {
        // Who trusts a proxy says that one stands before Weir: TLS is its part.
        if !listener.address.ip().is_loopback() && weir.trusted_proxies.is_empty() {
            let better =
                "give the listener tls: { certificate, key }, or name the proxy that has TLS in trusted_proxies";
            found.add(&listener.place, format!("keys and answers cross the network in the clear here; {better}"));
        }
        return;
    };
    if let Some(when) = tls::expiry(tls).and_then(|at| ending(at, now)) {
        found.add(&tls.certificate.place, format!("the certificate {when}; renew it (it is read on every reload)"));
    }
}

/// When something ends, if it has ended or will soon.
fn ending(at: Time, now: Time) -> Option<String> {
    let left = at.since(now);
    let day = at.rfc3339().chars().take(10).collect::<String>();
    match left {
        Duration::ZERO => Some(format!("ended on {day}")),
        _ if left <= SOON => Some(format!("ends on {day}, in {} days", left.as_secs() / 86_400)),
        _ => None,
    }
}

fn admin(weir: &Weir, found: &mut Faults) {
    let admin = &weir.admin;
    let Some(place) = admin.place.as_ref().filter(|_| !admin.address.ip().is_loopback()) else { return };
    let better = "listen on loopback, or let only operators and Prometheus reach it";
    found.add(place, format!("the network reaches the admin listener, whose metrics need no token; {better}"));
    if admin.token.0.len() < LONG_ENOUGH {
        let better = format!("set admin.token to at least {LONG_ENOUGH} random characters");
        found.add(place, format!("the admin token is short for a listener that the network reaches; {better}"));
    }
}

fn whole(config: &Config, found: &mut Faults) {
    let (weir, places) = (&config.weir, &config.weir.places);
    let at = |place: &Option<Place>| place.clone().unwrap_or_else(|| places.file.clone());
    match weir.page_token_key.0.len() {
        0 => {
            let better = "set page_tokens.key, the same for all gateways behind one address";
            found.add(&at(&places.page_tokens), format!("page tokens end with every restart; {better}"));
        }
        length if length < LONG_ENOUGH => {
            let better = format!("at least {LONG_ENOUGH} random characters cannot");
            found.add(
                &at(&places.page_tokens),
                format!("a page_tokens.key of {length} characters can be guessed; {better}"),
            );
        }
        _ => {}
    }
    if weir.limits.auth_failures.is_none() {
        let better = "limit auth_failures: { requests: 120, per: 1m }";
        found.add(&at(&places.limits), format!("keys may be guessed as fast as connections allow; {better}"));
    }
    if weir.cors.as_ref().is_some_and(|cors| cors.origins.iter().any(|origin| origin == "*")) {
        found.add(&at(&places.cors), "pages of any origin may read answers; name the origins that are yours");
    }
    if weir.trusted_proxies.iter().any(|network| network.bits == 0) {
        let better = "name the networks of your proxies";
        found.add(
            &at(&places.trusted_proxies),
            format!("anybody is believed who says whom a request is from; {better}"),
        );
    }
    if weir.access_log == AccessLog::Off {
        found.add(&places.file, "access_log is off: nobody can tell who asked for what; use on, or { sample: N }");
    }
    if weir.max_bytes < SMALL_CACHE {
        let better = "64MiB and more hold tens of thousands of sessions";
        found.add(&places.file, format!("cache.max_bytes ({} bytes) holds few answers; {better}", weir.max_bytes));
    }
    let slowest = config.providers.iter().map(|provider| provider.upstream.timeout).max().unwrap_or_default();
    if weir.grace < slowest {
        let (grace, slowest) = (weir.grace.as_millis(), slowest.as_millis());
        let better = "set shutdown.grace to as long as the slowest upstream.timeout";
        let what = format!("a provider may take {slowest} ms, and shutdown.grace cuts requests off after {grace} ms");
        found.add(&places.file, format!("{what}; {better}"));
    }
}

fn client(client: &Client, now: Time, found: &mut Faults) {
    let (id, place) = (&client.id.value, &client.id.place);
    if client.rate_limits.is_empty() {
        let better = "give it a rate_limit, so that its mistakes are not everybody's";
        found.add(place, format!("client {id:?} has no limit; {better}"));
    }
    if client.keys.is_empty() {
        found.add(place, format!("client {id:?} has no key; give it one (weir key new), or take it out"));
    }
    for key in &client.keys {
        if key.sha256 == DEMO_KEY {
            let better = "take it out before others can reach a listener";
            found.add(&key.place, format!("this is the key of the demo, which everybody knows; {better}"));
        }
        if let Some(when) = key.expires_at.and_then(|at| ending(at, now)) {
            let better = "hand out another beside it (weir key new), and take this one out once nobody uses it";
            found.add(&key.place, format!("this key of {id:?} {when}; {better}"));
        }
    }
    for (provider, credential) in &client.credentials {
        shown(credential, &provider.place, found);
    }
}

fn provider(provider: &Provider, found: &mut Faults) {
    let (name, place) = (&provider.name.value, &provider.name.place);
    if in_the_clear(&provider.base_url.value) {
        let what = "credentials and answers cross the network in the clear";
        found.add(&provider.base_url.place, format!("{what}; use https:// for {name}"));
    }
    if let Some(credential) = &provider.credential {
        shown(credential, place, found);
    }
    if provider.upstream.capacity.is_none() {
        let better = "set upstream.capacity to the quota that you have there";
        found.add(place, format!("nothing protects the quota at {name}; {better}"));
    }
    if provider.upstream.breaker.is_none() {
        let better = "set upstream.breaker, as { failures: 5, open_for: 10s }";
        found.add(place, format!("while {name} is down, every request waits for it; {better}"));
    }
    let freshness = &provider.freshness;
    if freshness.stale_if_error.is_zero() {
        let better = "set freshness.stale_if_error, as 10m";
        found
            .add(place, format!("when {name} fails, clients see it at once, though an answer may be stored; {better}"));
    }
    if freshness.default.is_zero() || freshness.max.is_zero() {
        let better = "give freshness.default and freshness.max some seconds";
        found.add(place, format!("sessions of {name} are not cached; {better}"));
    }
}

/// What is weak in what a provider is shown.
fn shown(credential: &Credential, place: &Place, found: &mut Faults) {
    match credential {
        Credential::Header { header, value } if value.0.is_empty() => {
            found.add(&header.place, "the credential is empty, so none is sent; set it, or leave credentials out");
        }
        Credential::OAuth2(oauth2) if in_the_clear(&oauth2.token_url.value) => {
            let better = "use https:// for token_url";
            found.add(&oauth2.token_url.place, format!("the client secret crosses the network in the clear; {better}"));
        }
        Credential::OAuth2(oauth2) if oauth2.client_secret.0.is_empty() => {
            found.add(place, "client_secret is empty; set it");
        }
        _ => {}
    }
}

/// Whether this is `http://` to another machine.
fn in_the_clear(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    uri.scheme_str() == Some("http") && !here
}

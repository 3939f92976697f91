//! What can only be judged across files: names that must exist, ids and keys that must be unique.
//!
//! A room of its own because it needs everything decoded and nothing compiled.

use super::Config;
use super::decode::unknown;
use super::faults::{At, Faults, Place};
use std::collections::HashMap;
use std::hash::Hash;

/// First segments of Weir's own paths.
const RESERVED: [&str; 2] = ["v1", "docs"];

/// Checks references and uniqueness. `cut` names files (and `providers`) of which a part could not
/// be read: what seems to be missing may stand there.
pub(super) fn cross_file(config: &Config, cut: &[String], faults: &mut Faults) {
    let whole = |file: &str| !cut.iter().any(|c| c == file);
    if config.weir.listen.is_empty() && whole("weir.yaml") {
        let file = config.files.iter().find(|f| f.ends_with("weir.yaml")).map(String::as_str).unwrap_or("weir.yaml");
        faults.add(&Place::top(&file.into()), "listen has no address");
    }
    if config.providers.is_empty() && whole("providers") {
        let file = config.files.first().map(String::as_str).unwrap_or("weir.yaml");
        faults.add(&Place::top(&file.into()), "there is no provider: providers/*.yaml holds one file each");
    }
    unique(config.providers.iter().map(|p| (&p.name.value, &p.name.place)), "provider", faults);
    unique(config.clients.iter().map(|c| (&c.id.value, &c.id.place)), "client id", faults);
    unique(config.providers.iter().flat_map(|p| &p.native.hosts).map(|at| (&at.value, &at.place)), "host", faults);
    for name in config.providers.iter().map(|p| &p.name).filter(|name| RESERVED.contains(&name.value.as_str())) {
        let what = "is a path of Weir's own, and a provider is mounted under its name; give it another";
        faults.add(&name.place, format!("{:?} {what}", name.value));
    }
    keys(config, faults);
    if whole("weir.yaml") {
        policies(config, faults);
    }
    if whole("providers") {
        providers(config, faults);
    }
}

fn unique<'c, T: Eq + Hash + std::fmt::Debug + 'c>(
    named: impl Iterator<Item = (&'c T, &'c Place)>,
    what: &str,
    faults: &mut Faults,
) {
    let mut seen: HashMap<&T, &Place> = HashMap::new();
    for (name, place) in named {
        if let Some(first) = seen.get(name) {
            faults.add(place, format!("{what} {name:?} is already used at {first}; each needs its own"));
        } else {
            seen.insert(name, place);
        }
    }
}

fn keys(config: &Config, faults: &mut Faults) {
    let mut seen: HashMap<[u8; 32], &Place> = HashMap::new();
    for key in config.clients.iter().flat_map(|c| &c.keys) {
        if let Some(first) = seen.insert(key.sha256, &key.place) {
            faults.add(&key.place, format!("the same key stands at {first}; a key belongs to one client, once"));
        }
    }
}

fn policies(config: &Config, faults: &mut Faults) {
    let lists = config.clients.iter().flat_map(|client| {
        std::iter::once(&client.rate_limits).chain(client.provider_rate_limits.iter().map(|(_, policies)| policies))
    });
    for list in lists {
        for (position, at) in list.iter().enumerate() {
            if list[..position].iter().any(|other| other.value == at.value) {
                faults.add(&at.place, format!("{:?} stands here twice; once is enough", at.value));
            }
        }
    }
    let known = || config.weir.policies.iter().map(|p| p.name.as_str());
    let mut check = |at: &At<String>| {
        if !known().any(|name| name == at.value) {
            faults.add(&at.place, unknown("rate limit", &at.value, known()));
        }
    };
    for client in &config.clients {
        client.rate_limits.iter().for_each(&mut check);
        client.provider_rate_limits.iter().flat_map(|(_, policies)| policies).for_each(&mut check);
    }
}

fn providers(config: &Config, faults: &mut Faults) {
    let known = || config.providers.iter().map(|p| p.name.value.as_str());
    let mut check = |at: &At<String>| {
        if !known().any(|name| name == at.value) {
            faults.add(&at.place, unknown("provider", &at.value, known()));
        }
    };
    for client in &config.clients {
        client.providers.iter().flatten().for_each(&mut check);
        client.provider_rate_limits.iter().for_each(|(provider, _)| check(provider));
        client.credentials.iter().for_each(|(provider, _)| check(provider));
    }
    for example in &config.examples {
        check(&At { value: example.provider.clone(), place: example.native_place.clone() });
    }
}

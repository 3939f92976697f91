//! Checks rules that span several files: references must exist, and names, ids and keys must be unique.

use super::Config;
use super::clients::ClientConfig;
use super::faults::{Faults, Located, Location};
use crate::base::typo::unknown;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;

/// The first segments of Weir's own paths.
const RESERVED: [&str; 2] = ["v1", "docs"];

/// Checks references and uniqueness. `truncated` names the files that were read only in part; `providers` stands for the
/// files of providers whose name is not known. A reference into such a file is no fault, because the rest of the file can
/// define it.
pub(super) fn cross_file(config: &Config, truncated: &[String], faults: &mut Faults) {
    let whole = |file: &str| !truncated.iter().any(|name| name == file);
    if config.weir.listen.is_empty() && config.weir.written.listeners == 0 && whole("weir.yaml") {
        let file = config.files.iter().find(|f| f.ends_with("weir.yaml")).map(String::as_str).unwrap_or("weir.yaml");
        faults.add(&Location::top(&file.into()), "listen is empty; write at least one listener");
    }
    if config.written_providers.is_empty() && whole("providers") {
        let file = config.files.first().map(String::as_str).unwrap_or("weir.yaml");
        faults.add(&Location::top(&file.into()), "no provider file; write at least one providers/NAME.yaml");
    }
    unique(config.providers.iter().map(|p| (&p.name.value, &p.name.location)), "provider", faults);
    unique(config.clients.iter().map(|c| (&c.id.value, &c.id.location)), "client id", faults);
    unique(config.providers.iter().flat_map(|p| &p.native.hosts).map(|at| (&at.value, &at.location)), "host", faults);
    for name in config.providers.iter().map(|p| &p.name).filter(|name| RESERVED.contains(&name.value.as_str())) {
        let why = "cannot be the name of a provider, because Weir has this path itself; choose another name";
        faults.add(&name.location, format!("{:?} {why}", name.value));
    }
    keys(config, faults);
    addresses(config, faults);
    config.clients.iter().for_each(|client| permitted(client, faults));
    if whole("weir.yaml") {
        policies(config, faults);
    }
    if whole("providers") {
        providers(config, faults);
    }
}

fn unique<'c, T: Eq + Hash + std::fmt::Debug + 'c>(
    named: impl Iterator<Item = (&'c T, &'c Location)>,
    what: &str,
    faults: &mut Faults,
) {
    let mut seen: HashMap<&T, &Location> = HashMap::new();
    for (name, location) in named {
        if let Some(first) = seen.get(name) {
            faults.add(location, format!("{what} {name:?} is already used at {first}; choose another one"));
        } else {
            seen.insert(name, location);
        }
    }
}

fn keys(config: &Config, faults: &mut Faults) {
    let mut seen: HashMap<[u8; 32], &Location> = HashMap::new();
    for key in config.clients.iter().flat_map(|c| &c.keys) {
        if let Some(first) = seen.insert(key.sha256, &key.location) {
            faults.add(&key.location, format!("this key is already used at {first}; make another one (weir key new)"));
        }
    }
}

/// Adds a fault for each listener whose address another one has taken.
fn addresses(config: &Config, faults: &mut Faults) {
    let admin = &config.weir.admin;
    // With a fault in it, the address of the admin listener is not known.
    let admin_address =
        (admin.location.is_some() || !config.weir.written.admin).then_some((admin.address, admin.location.as_ref()));
    let clients = config.weir.listen.iter().map(|listener| (listener.address, Some(&listener.location)));
    let all: Vec<_> = clients.chain(admin_address).collect();
    for (position, (address, location)) in all.iter().enumerate() {
        let Some((_, first)) = all[..position].iter().find(|(other, _)| overlap(*other, *address)) else { continue };
        // The admin listener without a location has its default address, which then is the fault of the other listener.
        if let Some(at) = location.or(*first) {
            let taken = first.filter(|_| location.is_some()).map_or_else(
                || "the admin listener has this address".to_owned(),
                |first| format!("a listener has this address already, at {first}"),
            );
            faults.add(at, format!("{address}: {taken}; choose another port"));
        }
    }
}

/// Returns whether the system refuses to listen at both addresses.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (first, second) = (one.ip(), other.ip());
    let either_is_any = first.is_unspecified() || second.is_unspecified();
    one.port() == other.port()
        && one.port() != 0
        && (first == second || either_is_any && first.is_ipv4() == second.is_ipv4())
}

/// Adds a fault for a client that may use no provider, and for each setting for a provider that it may not use.
fn permitted(client: &ClientConfig, faults: &mut Faults) {
    let (Some(permitted), id) = (&client.providers, &client.id) else { return };
    if permitted.is_empty() {
        let better = "name the providers that it may use, or leave providers out for all of them";
        faults.add(&id.location, format!("client {:?} may use no provider; {better}", id.value));
        return;
    }
    let limits = client.provider_rate_limits.iter().map(|(provider, _)| ("a rate limit", provider));
    let credentials = client.credentials.iter().map(|(provider, _)| ("a credential", provider));
    for (what, provider) in limits.chain(credentials) {
        if permitted.iter().all(|at| at.value != provider.value) {
            let better = format!("add {0:?} to its providers, or remove {what}", provider.value);
            let fault = format!("{what} for {:?}, which client {:?} may not use; {better}", provider.value, id.value);
            faults.add(&provider.location, fault);
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
                faults.add(&at.location, format!("duplicate rate limit {:?}; write it once", at.value));
            }
        }
    }
    let known = || config.weir.written.policies.iter().map(String::as_str);
    let mut check = |at: &Located<String>| {
        if !known().any(|name| name == at.value) {
            faults.add(&at.location, unknown("rate limit", &at.value, known()));
        }
    };
    for client in &config.clients {
        client.rate_limits.iter().for_each(&mut check);
        client.provider_rate_limits.iter().flat_map(|(_, policies)| policies).for_each(&mut check);
    }
}

fn providers(config: &Config, faults: &mut Faults) {
    let known = || config.written_providers.iter().map(String::as_str);
    let mut check = |at: &Located<String>| {
        if !known().any(|name| name == at.value) {
            faults.add(&at.location, unknown("provider", &at.value, known()));
        }
    };
    for client in &config.clients {
        client.providers.iter().flatten().for_each(&mut check);
        client.provider_rate_limits.iter().for_each(|(provider, _)| check(provider));
        client.credentials.iter().for_each(|(provider, _)| check(provider));
    }
    for example in &config.examples {
        check(&Located { value: example.provider.clone(), location: example.native_location.clone() });
    }
}

//! `weir health`: asks a running gateway's admin listener whether it is well, for health checks where there is
//! no other client.
//!
//! It reads the configuration only where nobody says where the admin listener is: a faulty file on the disk is
//! no reason to call a gateway ill that serves on with the one before.

use super::{complain, list_faults, print, purge};
use crate::config::faults::Faults;
use crate::config::load::{self, Source};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The admin listener's address; left out: the configuration's
    #[arg(long, value_name = "ADDRESS", env = "WEIR_ADMIN")]
    admin: Option<SocketAddr>,
    /// Ask whether the process lives, not whether it takes requests
    #[arg(long)]
    live: bool,
}

pub(super) fn health(source: &Source, arguments: &Arguments) -> ExitCode {
    let address = match arguments.admin.map_or_else(|| configured(source), Ok) {
        Ok(address) => reachable(address),
        Err(faults) => {
            list_faults(&faults.sorted());
            complain("weir: the configuration does not say where the admin listener is; --admin ADDRESS does");
            return ExitCode::FAILURE;
        }
    };
    let path = if arguments.live { "/healthz" } else { "/readyz" };
    match purge::ask(address, &format!("GET {path}"), "", "") {
        Ok((200, body)) => {
            print(&format!("{}\n", body.trim()));
            ExitCode::SUCCESS
        }
        Ok((status, body)) => {
            complain(&format!("weir: {path} is {status}: {}", body.trim()));
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(&format!("weir: the admin listener {address} does not answer: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn configured(source: &Source) -> Result<SocketAddr, Faults> {
    let load::Loaded { config, faults } = load::load(source);
    config.filter(|_| faults.is_empty()).map(|config| config.weir.admin.address).ok_or(faults)
}

/// An address that stands for all of a machine's is asked for at the machine itself.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

//! Runs `weir health`: checks a running gateway through its admin listener, for health checks of containers.
//!
//! It reads the configuration only if neither `--admin` nor `WEIR_ADMIN` is given. A faulty file on the disk does not
//! make a running gateway unhealthy, because the gateway keeps its last valid configuration.

use super::{admin_client, print, print_faults, print_stderr};
use crate::config::faults::Faults;
use crate::config::load::{self, ConfigSource};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The address of the admin listener [default: admin.address of the configuration]
    #[arg(long, value_name = "ADDRESS", env = "WEIR_ADMIN")]
    admin: Option<SocketAddr>,
    /// Check that the process is alive (/healthz), not that it accepts requests (/readyz)
    #[arg(long)]
    live: bool,
}

pub(super) fn health(source: &ConfigSource, arguments: &Arguments) -> ExitCode {
    let address = match arguments.admin.map_or_else(|| configured(source), Ok) {
        Ok(address) => reachable(address),
        Err(faults) => {
            print_faults(&faults.sorted());
            print_stderr(
                "weir: cannot read the address of the admin listener from the configuration; use --admin ADDRESS",
            );
            return ExitCode::FAILURE;
        }
    };
    let path = if arguments.live { "/healthz" } else { "/readyz" };
    match admin_client::send(address, &format!("GET {path}"), "", "") {
        Ok((200, body)) => {
            print(&format!("{}\n", body.trim()));
            ExitCode::SUCCESS
        }
        Ok((status, body)) => {
            print_stderr(&format!("weir: {path} returned {status}: {}", body.trim()));
            ExitCode::FAILURE
        }
        Err(error) => {
            print_stderr(&format!("weir: no response from the admin listener at {address}: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn configured(source: &ConfigSource) -> Result<SocketAddr, Faults> {
    let load::Loaded { config, faults } = load::load(source);
    config.filter(|_| faults.is_empty()).map(|config| config.weir.admin.address).ok_or(faults)
}

/// Returns an address to connect to: loopback in place of an unspecified address, such as 0.0.0.0.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

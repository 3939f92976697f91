//! Defines the state of a running simulator.

use crate::calls::CallCounts;
use crate::faults::Plans;
use crate::options::ServeOptions;
use crate::throttle::Throttle;
use crate::tokens::Tokens;
use crate::world::World;
use std::sync::atomic::AtomicBool;

pub(crate) struct Simulator {
    pub(crate) world: World,
    pub(crate) plans: Plans,
    pub(crate) calls: CallCounts,
    pub(crate) tokens: Tokens,
    pub(crate) throttle: Throttle,
    /// Whether new TLS connections are closed before the handshake.
    pub(crate) refuse_tls: AtomicBool,
    pub(crate) options: ServeOptions,
}

impl Simulator {
    pub(crate) fn new(options: ServeOptions) -> Self {
        Self {
            world: World::new(options.sessions),
            plans: Plans::default(),
            calls: CallCounts::default(),
            tokens: Tokens::default(),
            throttle: Throttle::new(options.throttle),
            refuse_tls: AtomicBool::new(false),
            options,
        }
    }
}

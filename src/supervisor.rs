//! What the service manager is told (sd_notify(3)): ready, reloading, stopping, and who takes over.
//!
//! A room of its own so that nobody else knows of it. Without `NOTIFY_SOCKET` it does nothing; a manager that does not
//! listen is no reason to fail.

use sd_notify::NotifyState;

/// Requests are accepted, and no reload is under way.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload begins. The manager wants to know when, to tell this one from an earlier one's end.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// Nothing is accepted any more, and the process will end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Another process has taken over: it is the service's main one from now on.
pub fn succeeded_by(pid: u32) {
    tell(&[NotifyState::MainPid(pid), NotifyState::Ready]);
}

fn tell(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}

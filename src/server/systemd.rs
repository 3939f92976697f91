//! Notifies the service manager (sd_notify(3)): ready, reloading, stopping, and the process id after an upgrade.
//!
//! Does nothing if `NOTIFY_SOCKET` is not set. Errors are ignored: Weir also runs without a service manager.

use sd_notify::NotifyState;

/// Reports that Weir accepts requests and that no reload is running.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Reports the start of a reload. The time lets the manager assign the next `ready` to this reload.
pub(crate) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

/// Reports that Weir accepts no more connections and will exit.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Reports that the process `pid` has taken over and is the main process of the service from now on.
pub(crate) fn succeeded_by(pid: u32) {
    notify(&[NotifyState::MainPid(pid), NotifyState::Ready]);
}

fn notify(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}

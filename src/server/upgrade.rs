//! Hands the listening sockets of a running process to a new one, so that no connection is refused meanwhile.
//!
//! The new process sends `REQUEST` once its configuration is valid, receives the sockets, and sends `READY` once it
//! accepts connections. Until then the old process serves as before, so a failed upgrade has no effect on it. Each
//! process checks that the other one runs as the same user.

use crate::engine::admin_token::AdminToken;
use crate::runtime::Runtime;
use crate::server::log_limit::LogLimit;
use crate::server::upgrade_socket::{self, MAX_SOCKETS, UpgradeAddress};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// First message of the new process. The number is the version of this protocol.
const REQUEST: &str = "weir 1 sockets\n";
/// Second message of the new process: it accepts connections.
const READY: &str = "ready\n";
/// Last message of the old process: it accepts no more connections.
const LEAVING: &str = "leaving\n";

/// The old process, which this process replaces, and the sockets that it sent.
pub(crate) struct Predecessor {
    stream: UnixStream,
    address: UpgradeAddress,
    sockets: Vec<(SocketAddr, TcpListener)>,
    /// The predecessor's listener on `address`.
    listener: UnixListener,
    /// Signs page tokens if the configuration has no key. With it, page tokens of the old process stay valid.
    pub key: [u8; 32],
    /// The token that the predecessor made for its admin listener, and the address of that listener.
    pub admin_token: Option<(SocketAddr, String)>,
}

impl Predecessor {
    /// Requests the sockets of the process that listens on `address`.
    ///
    /// # Errors
    /// Says why there are none.
    pub(crate) fn request(address: &UpgradeAddress) -> Result<Self, String> {
        let failed = |why: String| format!("cannot take over from {address}: {why}");
        let mut stream = address.connect().map_err(|e| failed(format!("cannot connect to a running Weir ({e})")))?;
        upgrade_socket::peer_pid(&stream).map_err(failed)?;
        stream.write_all(REQUEST.as_bytes()).map_err(|e| failed(e.to_string()))?;
        let (message, fds) = upgrade_socket::receive(&mut stream).map_err(|e| failed(e.to_string()))?;
        let Message { addresses, key, admin_token } = parse_message(&message).map_err(failed)?;
        if fds.len() != addresses.len() + 1 {
            return Err(failed(format!("received {} sockets, expected {}", fds.len(), addresses.len() + 1)));
        }
        let mut fds = fds.into_iter();
        let sockets = addresses.into_iter().zip(fds.by_ref());
        let sockets = sockets.map(|(address, fd)| (address, TcpListener::from(fd))).collect();
        let listener = fds.next().map(UnixListener::from);
        let listener = listener.ok_or_else(|| failed("the socket of upgrade.socket is missing".to_owned()))?;
        Ok(Self { stream, address: address.clone(), sockets, listener, key, admin_token })
    }

    /// Takes the socket that was configured for `address`, or else the one that is bound to it.
    pub(crate) fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let configured = self.sockets.iter().position(|(known, _)| *known == address);
        let is_bound = |socket: &TcpListener| socket.local_addr().is_ok_and(|bound| bound == address);
        let bound = || self.sockets.iter().position(|(_, socket)| is_bound(socket));
        configured.or_else(bound).map(|position| self.sockets.swap_remove(position).1)
    }

    /// Tells the predecessor to stop accepting connections, and closes the sockets that were not taken. Returns the
    /// listener for the next upgrade if `next` is the same address.
    ///
    /// # Errors
    /// The predecessor did not confirm. It may have ended, or may still accept connections.
    pub(crate) fn relieve(mut self, next: Option<&UpgradeAddress>) -> Result<Option<UnixListener>, String> {
        self.sockets.clear();
        let mut reply = [0; LEAVING.len()];
        let confirmed = self.stream.write_all(READY.as_bytes()).and_then(|()| self.stream.read_exact(&mut reply));
        confirmed.map_err(|error| format!("the old process did not confirm the upgrade: {error}"))?;
        if next == Some(&self.address) {
            return Ok(Some(self.listener));
        }
        self.address.remove_file();
        Ok(None)
    }
}

/// A listening socket, and the address that it was configured for.
pub(crate) struct BoundSocket {
    pub address: SocketAddr,
    pub fd: OwnedFd,
}

/// Hands the sockets of this process to a new one that requests them.
pub(crate) struct Handoff {
    address: UpgradeAddress,
    listener: tokio::net::UnixListener,
    contents: Arc<HandoffContents>,
    /// Any local user can connect to an abstract socket.
    log: LogLimit,
}

/// What the new process receives.
struct HandoffContents {
    sockets: Vec<BoundSocket>,
    listener: OwnedFd,
    key: [u8; 32],
    admin_token: Arc<AdminToken>,
}

impl Handoff {
    /// Offers `sockets`. `listener` is the listener on `address` if a
    /// predecessor has handed it over; otherwise this process binds the address.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub(crate) fn new(
        address: UpgradeAddress,
        listener: Option<UnixListener>,
        sockets: Vec<BoundSocket>,
        runtime: &Runtime,
        admin_token: Arc<AdminToken>,
    ) -> io::Result<Self> {
        let listener = listener.map_or_else(|| address.listen(), Ok)?;
        listener.set_nonblocking(true)?;
        let (copy, key) = (listener.try_clone()?.into(), runtime.random());
        let contents = HandoffContents { sockets, listener: copy, key, admin_token };
        let listener = tokio::net::UnixListener::from_std(listener)?;
        Ok(Self { address, listener, contents: Arc::new(contents), log: LogLimit::default() })
    }

    /// Waits until another process has taken over. Returns its process id.
    pub(crate) async fn completed(&self) -> u32 {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let contents = self.contents.clone();
            let result = tokio::task::spawn_blocking(move || hand_over(stream.into_std()?, &contents)).await;
            let error = match result {
                Ok(Ok(pid)) => return pid,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            if let Some(not_logged) = self.log.count(tokio::time::Instant::now().into_std()) {
                warn!(not_logged, "upgrade failed; still serving: {error}");
            }
        }
    }

    /// Ends the offer without an upgrade.
    pub(crate) fn withdraw(self) {
        self.address.remove_file();
    }
}

/// Sends the sockets and waits until the other process accepts connections. Returns its process id.
fn hand_over(mut stream: UnixStream, contents: &HandoffContents) -> io::Result<u32> {
    stream.set_nonblocking(false)?;
    upgrade_socket::set_timeouts(&stream)?;
    let pid = upgrade_socket::peer_pid(&stream).map_err(io::Error::other)?;
    upgrade_socket::expect(&mut stream, REQUEST)?;
    let addresses: Vec<String> = contents.sockets.iter().map(|socket| socket.address.to_string()).collect();
    let mut message = json!({ "sockets": addresses, "page_token_key": hex::encode(contents.key) });
    if let Some(token) = contents.admin_token.get() {
        message["admin_token"] = json!({ "address": contents.admin_token.address().to_string(), "token": token });
    }
    let fds: Vec<BorrowedFd<'_>> =
        contents.sockets.iter().map(|socket| &socket.fd).chain([&contents.listener]).map(AsFd::as_fd).collect();
    if fds.len() > MAX_SOCKETS {
        return Err(io::Error::other(format!("cannot hand over {} sockets; the limit is {MAX_SOCKETS}", fds.len())));
    }
    upgrade_socket::send(&mut stream, &format!("{message}\n"), &fds)?;
    upgrade_socket::expect(&mut stream, READY)?;
    stream.write_all(LEAVING.as_bytes())?;
    Ok(pid)
}

/// The content of the message that comes with the sockets.
struct Message {
    addresses: Vec<SocketAddr>,
    key: [u8; 32],
    /// `None` if the old process has none, or is of a version that does not send it.
    admin_token: Option<(SocketAddr, String)>,
}

fn parse_message(message: &str) -> Result<Message, String> {
    let message: Value = serde_json::from_str(message).map_err(|e| format!("the message is not valid JSON: {e}"))?;
    let addresses = message["sockets"].as_array().ok_or("the message has no list `sockets`")?;
    let address = |address: &Value| address.as_str().and_then(|text| text.parse().ok());
    let addresses: Option<Vec<SocketAddr>> = addresses.iter().map(address).collect();
    let digits = message["page_token_key"].as_str().filter(|digits| digits.len() == 64);
    let digits = digits.ok_or("`page_token_key` is missing, or does not have 64 digits")?;
    let mut key = [0; 32];
    hex::decode_to_slice(digits, &mut key).map_err(|_| "`page_token_key` is not hexadecimal")?;
    let admin_token = &message["admin_token"];
    let admin_token = address(&admin_token["address"]).zip(admin_token["token"].as_str().map(str::to_owned));
    Ok(Message { addresses: addresses.ok_or("`sockets` contains an invalid address")?, key, admin_token })
}

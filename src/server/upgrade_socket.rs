//! Implements the Unix socket of an upgrade: its address, the check of the other process, and messages with sockets.

use crate::config::weir::UpgradeSocket;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use sha2::{Digest, Sha256};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// The most sockets that one message can carry (`SCM_MAX_FD` of Linux).
pub(crate) const MAX_SOCKETS: usize = 253;
/// The maximum length of a message in bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// Time limit for each message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The address of the socket, as in `upgrade.socket`: a path, or `@` and an abstract name (unix(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UpgradeAddress(String);

impl UpgradeAddress {
    /// Returns the configured address, or `None` if upgrades are off.
    ///
    /// The default is an abstract name made of the user id and the configuration directory. It needs no writable
    /// directory and disappears with the process.
    #[must_use]
    pub(crate) fn of(config: &UpgradeSocket, directory: &Path) -> Option<Self> {
        match config {
            UpgradeSocket::Off => None,
            UpgradeSocket::Named(address) => Some(Self(address.clone())),
            UpgradeSocket::Auto => {
                let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
                let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
                Some(Self(format!("@weir-{}-{}", own_user(), hex::encode(&digest[..6]))))
            }
        }
    }

    /// Returns the path of the socket; `None` if the address is an abstract name.
    fn path(&self) -> Option<&Path> {
        (!self.0.starts_with('@')).then(|| Path::new(&self.0))
    }

    fn to_sockaddr(&self) -> io::Result<SockAddr> {
        match self.0.strip_prefix('@') {
            Some(name) => SockAddr::unix(format!("\0{name}")),
            None => SockAddr::unix(&self.0),
        }
    }

    /// Connects to the process that listens on this address.
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.connect(&self.to_sockaddr()?)?;
        let stream = UnixStream::from(OwnedFd::from(socket));
        set_timeouts(&stream)?;
        Ok(stream)
    }

    /// Listens on this address.
    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        if let Some(path) = self.path() {
            self.remove_stale_file(path)?;
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&self.to_sockaddr()?)?;
        if let Some(path) = self.path() {
            // Before `listen`, so that no other user can connect.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        }
        socket.listen(8)?;
        Ok(UnixListener::from(OwnedFd::from(socket)))
    }

    /// Removes the socket file of a process that was killed.
    fn remove_stale_file(&self, path: &Path) -> io::Result<()> {
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        let refused = || self.connect().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if is_socket && refused() { std::fs::remove_file(path) } else { Ok(()) }
    }

    /// Removes the socket file. An abstract name has none.
    pub(crate) fn remove_file(&self) {
        if let Some(path) = self.path() {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl std::fmt::Display for UpgradeAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) fn set_timeouts(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
    stream.set_write_timeout(Some(MESSAGE_TIMEOUT))
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Returns the id of the process at the other end.
///
/// # Errors
/// It runs as another user, or the system does not identify it.
#[cfg(target_os = "linux")]
pub(crate) fn peer_pid(stream: &UnixStream) -> Result<u32, String> {
    let peer = rustix::net::sockopt::get_socket_peercred(stream)
        .map_err(|error| format!("cannot identify the other process: {error}"))?;
    let (user, own) = (peer.uid.as_raw(), own_user());
    match user == own {
        true => Ok(peer.pid.as_raw_nonzero().get().unsigned_abs()),
        false => Err(format!("the other process runs as user {user}, not as user {own}")),
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn peer_pid(_: &UnixStream) -> Result<u32, String> {
    Err("cannot identify the other process; upgrades need Linux".to_owned())
}

/// Receives exactly the message `expected`.
pub(crate) fn expect(stream: &mut UnixStream, expected: &str) -> io::Result<()> {
    let mut received = vec![0; expected.len()];
    stream.read_exact(&mut received)?;
    if received != expected.as_bytes() {
        let received = String::from_utf8_lossy(&received);
        return Err(io::Error::other(format!("unexpected message {received:?}, expected {expected:?}")));
    }
    Ok(())
}

/// Sends a line with `sockets` attached to its first byte (unix(7), `SCM_RIGHTS`).
pub(crate) fn send(stream: &mut UnixStream, line: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [0; rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    if !attached.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("the sockets do not fit into one message"));
    }
    let sent = rustix::net::sendmsg(&stream, &[IoSlice::new(line.as_bytes())], &mut attached, SendFlags::NOSIGNAL)?;
    stream.write_all(line.as_bytes().get(sent..).unwrap_or_default())
}

/// Receives a line and the sockets attached to its first byte.
pub(crate) fn receive(stream: &mut UnixStream) -> io::Result<(String, Vec<OwnedFd>)> {
    let (mut line, mut sockets) = (vec![0; MAX_MESSAGE], Vec::new());
    let mut space = [0; rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    let mut length = rustix::net::recvmsg(&stream, &mut [IoSliceMut::new(&mut line)], &mut attached, flags)?.bytes;
    for message in attached.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received);
        }
    }
    while line.get(..length).is_some_and(|line| !line.ends_with(b"\n")) {
        match stream.read(line.get_mut(length..).unwrap_or_default())? {
            0 => return Err(io::Error::other("the other process closed the connection")),
            more => length += more,
        }
    }
    line.truncate(length);
    String::from_utf8(line).map(|line| (line, sockets)).map_err(io::Error::other)
}

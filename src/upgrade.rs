//! From one Weir to the next: a running process hands its listening sockets to the one that takes its place.
//!
//! A room of its own because it is the only one in which two processes of ours speak with each other. The new one asks
//! once its configuration is sound, and says so once it accepts connections; until then the old one goes on as if
//! nothing had happened. Both speak only with processes of their own user. It must not serve: `server` does.

use crate::config::weir::{HandOver, LogLevel};
use crate::observe;
use crate::runtime::Runtime;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How the new one asks. A later form of this conversation gets a number of its own.
const ASK: &str = "weir 1 sockets\n";
/// How it says that it accepts connections.
const READY: &str = "ready\n";
/// How the old one says that it no longer does.
const LEAVING: &str = "leaving\n";
/// The most sockets that one message can carry (`SCM_MAX_FD` of Linux).
const MOST: usize = 253;
/// How long the other may take to say something. The new one is well under way when it asks.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any message.
const LONGEST: usize = 64 << 10;

/// Where two Weirs meet: the address of a socket, as people write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meeting(String);

impl Meeting {
    /// As configured. The default is an abstract name (unix(7)), made of the user and the configuration's directory: it
    /// needs no directory that can be written to, and is gone with the process.
    #[must_use]
    pub fn of(config: &HandOver, directory: &Path) -> Option<Self> {
        match config {
            HandOver::Off => None,
            HandOver::At(written) => Some(Self(written.clone())),
            HandOver::Default => {
                let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
                let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
                let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
                Some(Self(format!("@weir-{}-{digest}", own_user())))
            }
        }
    }

    fn address(&self) -> io::Result<SockAddr> {
        match self.0.strip_prefix('@') {
            Some(name) => SockAddr::unix(format!("\0{name}")),
            None => SockAddr::unix(&self.0),
        }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.connect(&self.address()?)?;
        let stream = UnixStream::from(OwnedFd::from(socket));
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    fn listen(&self) -> io::Result<UnixListener> {
        let path = (!self.0.starts_with('@')).then(|| Path::new(&self.0));
        if let Some(path) = path {
            self.remove_left_over(path)?;
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&self.address()?)?;
        if let Some(path) = path {
            // Before it listens nobody can connect.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        }
        socket.listen(8)?;
        Ok(UnixListener::from(OwnedFd::from(socket)))
    }

    /// A socket that nobody listens on was left by a process that did not end in order.
    fn remove_left_over(&self, path: &Path) -> io::Result<()> {
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        let refused = || self.connect().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if is_socket && refused() { std::fs::remove_file(path) } else { Ok(()) }
    }
}

impl std::fmt::Display for Meeting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The process at the other end, if it runs as the same user.
#[cfg(target_os = "linux")]
fn peer(stream: &UnixStream) -> Result<u32, String> {
    let peer =
        rustix::net::sockopt::get_socket_peercred(stream).map_err(|e| format!("it cannot be identified: {e}"))?;
    let (theirs, own) = (peer.uid.as_raw(), own_user());
    match theirs == own {
        true => Ok(peer.pid.as_raw_nonzero().get().unsigned_abs()),
        false => Err(format!("it runs as user {theirs}, and not as {own}")),
    }
}

#[cfg(not(target_os = "linux"))]
fn peer(_: &UnixStream) -> Result<u32, String> {
    Err("this system does not tell who it is; sockets are handed over on Linux only".to_owned())
}

/// The process whose place is taken, and what it gave.
pub struct Predecessor {
    stream: UnixStream,
    at: Meeting,
    sockets: Vec<(SocketAddr, TcpListener)>,
    door: UnixListener,
    /// Signs page tokens where the configuration has no key: those that clients hold stay good.
    pub key: [u8; 32],
}

impl Predecessor {
    /// Asks the process that listens there for its sockets.
    ///
    /// # Errors
    /// Why it does not give them.
    pub fn ask(at: &Meeting) -> Result<Self, String> {
        let wrong = |why: String| format!("no sockets were handed over at {at}: {why}");
        let mut stream = at.connect().map_err(|e| wrong(format!("no running Weir can be reached there ({e})")))?;
        peer(&stream).map_err(|why| wrong(format!("of the process there: {why}")))?;
        stream.write_all(ASK.as_bytes()).map_err(|e| wrong(e.to_string()))?;
        let (said, fds) = receive(&mut stream).map_err(|e| wrong(e.to_string()))?;
        let (addresses, key) = understood(&said).map_err(&wrong)?;
        if fds.len() != addresses.len() + 1 {
            return Err(wrong(format!("{} sockets came for {} addresses", fds.len(), addresses.len())));
        }
        let mut fds = fds.into_iter();
        let sockets = addresses.into_iter().zip(fds.by_ref()).map(|(at, fd)| (at, TcpListener::from(fd))).collect();
        let door = fds.next().map(UnixListener::from).ok_or_else(|| wrong("its own is missing".to_owned()))?;
        Ok(Self { stream, at: at.clone(), sockets, door, key })
    }

    /// The socket that was configured for this address, or that is bound to it.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let configured = self.sockets.iter().position(|(known, _)| *known == address);
        let bound = || self.sockets.iter().position(|(_, socket)| socket.local_addr().is_ok_and(|at| at == address));
        configured.or_else(bound).map(|at| self.sockets.swap_remove(at).1)
    }

    /// Tells it that its place is taken: it stops accepting. What of its sockets was not taken is closed here. The door
    /// is given on, if the next process will come to the same one.
    ///
    /// # Errors
    /// It did not answer: it may be gone, or may still accept.
    pub fn relieve(mut self, next: Option<&Meeting>) -> Result<Option<UnixListener>, String> {
        self.sockets.clear();
        let mut answer = [0; LEAVING.len()];
        let answered = self.stream.write_all(READY.as_bytes()).and_then(|()| self.stream.read_exact(&mut answer));
        answered.map_err(|error| format!("the process whose place this one takes did not answer: {error}"))?;
        if next == Some(&self.at) {
            return Ok(Some(self.door));
        }
        if !self.at.0.starts_with('@') {
            // Nobody will listen there.
            let _ = std::fs::remove_file(&self.at.0);
        }
        Ok(None)
    }
}

/// What is to be had of a running process.
pub struct Offer {
    at: Meeting,
    door: tokio::net::UnixListener,
    given: Arc<Given>,
    runtime: Arc<Runtime>,
}

struct Given {
    sockets: Vec<(SocketAddr, OwnedFd)>,
    door: OwnedFd,
    key: [u8; 32],
}

impl Offer {
    /// Offers sockets, each with the address it was configured for, to whoever comes to this meeting. `door` is the
    /// listener there, if it was handed over too.
    ///
    /// # Errors
    /// Why nobody can come.
    pub fn new(
        at: Meeting,
        door: Option<UnixListener>,
        sockets: Vec<(SocketAddr, OwnedFd)>,
        runtime: &Arc<Runtime>,
    ) -> io::Result<Self> {
        let door = door.map_or_else(|| at.listen(), Ok)?;
        door.set_nonblocking(true)?;
        let given = Arc::new(Given { sockets, door: door.try_clone()?.into(), key: runtime.random() });
        Ok(Self { at, door: tokio::net::UnixListener::from_std(door)?, given, runtime: runtime.clone() })
    }

    /// Waits until another process has taken over; that one's id.
    pub async fn taken(&self) -> u32 {
        loop {
            let Ok((stream, _)) = self.door.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let given = self.given.clone();
            let conversation = tokio::task::spawn_blocking(move || converse(stream.into_std()?, &given)).await;
            match conversation {
                Ok(Ok(pid)) => return pid,
                Ok(Err(error)) => self.say(&error),
                Err(error) => self.say(&error),
            }
        }
    }

    fn say(&self, error: &dyn std::fmt::Display) {
        let what = || format!("an upgrade began and came to nothing ({error}); going on");
        observe::say(&self.runtime, LogLevel::Warn, what);
    }

    /// Nobody is to come here any more.
    pub fn withdraw(self) {
        if !self.at.0.starts_with('@') {
            let _ = std::fs::remove_file(&self.at.0);
        }
    }
}

/// Gives the sockets away and waits until the other accepts connections.
fn converse(mut stream: UnixStream, given: &Given) -> io::Result<u32> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let pid = peer(&stream).map_err(io::Error::other)?;
    hear(&mut stream, ASK)?;
    let addresses: Vec<String> = given.sockets.iter().map(|(address, _)| address.to_string()).collect();
    let key: String = given.key.iter().map(|byte| format!("{byte:02x}")).collect();
    let said = json!({ "sockets": addresses, "page_token_key": key });
    let fds: Vec<BorrowedFd<'_>> =
        given.sockets.iter().map(|(_, fd)| fd).chain([&given.door]).map(AsFd::as_fd).collect();
    if fds.len() > MOST {
        return Err(io::Error::other(format!("{} sockets are more than can be handed over ({MOST})", fds.len())));
    }
    send(&mut stream, &format!("{said}\n"), &fds)?;
    hear(&mut stream, READY)?;
    stream.write_all(LEAVING.as_bytes())?;
    Ok(pid)
}

/// Waits for just this to be said.
fn hear(stream: &mut UnixStream, wanted: &str) -> io::Result<()> {
    let mut said = vec![0; wanted.len()];
    stream.read_exact(&mut said)?;
    if said != wanted.as_bytes() {
        return Err(io::Error::other(format!("{:?} was said, and not {wanted:?}", String::from_utf8_lossy(&said))));
    }
    Ok(())
}

/// Sends a line with sockets attached to its beginning (unix(7), `SCM_RIGHTS`).
fn send(stream: &mut UnixStream, line: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [0; rustix::cmsg_space!(ScmRights(MOST))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    if !attached.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("the sockets do not fit into one message"));
    }
    let sent = rustix::net::sendmsg(&stream, &[IoSlice::new(line.as_bytes())], &mut attached, SendFlags::NOSIGNAL)?;
    stream.write_all(line.as_bytes().get(sent..).unwrap_or_default())
}

/// A line, and the sockets attached to its beginning.
fn receive(stream: &mut UnixStream) -> io::Result<(String, Vec<OwnedFd>)> {
    let (mut said, mut fds) = (vec![0; LONGEST], Vec::new());
    let mut space = [0; rustix::cmsg_space!(ScmRights(MOST))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    let mut length = rustix::net::recvmsg(&stream, &mut [IoSliceMut::new(&mut said)], &mut attached, flags)?.bytes;
    for message in attached.drain() {
        if let RecvAncillaryMessage::ScmRights(these) = message {
            fds.extend(these);
        }
    }
    while said.get(..length).is_some_and(|said| !said.ends_with(b"\n")) {
        match stream.read(said.get_mut(length..).unwrap_or_default())? {
            0 => return Err(io::Error::other("it hung up")),
            more => length += more,
        }
    }
    said.truncate(length);
    String::from_utf8(said).map(|said| (said, fds)).map_err(io::Error::other)
}

/// The addresses and the key that were told.
fn understood(said: &str) -> Result<(Vec<SocketAddr>, [u8; 32]), String> {
    let told: Value = serde_json::from_str(said).map_err(|e| format!("what was said is not JSON: {e}"))?;
    let addresses = told["sockets"].as_array().ok_or("no addresses were told")?;
    let address = |address: &Value| address.as_str().and_then(|text| text.parse().ok());
    let addresses: Option<Vec<SocketAddr>> = addresses.iter().map(address).collect();
    let digits = told["page_token_key"].as_str().filter(|digits| digits.len() == 64 && digits.is_ascii());
    let digits = digits.ok_or("no key was told")?;
    let mut key = [0; 32];
    for (at, byte) in key.iter_mut().enumerate() {
        let pair = digits.get(2 * at..2 * at + 2).unwrap_or_default();
        *byte = u8::from_str_radix(pair, 16).map_err(|_| "the key that was told is not one")?;
    }
    Ok((addresses.ok_or("what was told are not addresses")?, key))
}

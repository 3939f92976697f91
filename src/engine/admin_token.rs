//! Makes the token of the admin listener if none is configured, and stores it in a file for commands on this machine.
//!
//! The file is named after the bound address. Only the user that runs Weir can read it: the directory has mode 0700 and
//! the file 0600, and neither may be a link.

use crate::config::decode::Secret;
use rustix::fs::OFlags;
use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The longest content of a token file, in bytes.
const MAX_FILE: u64 = 1024;

/// The token that this process made or took over, and its file.
pub(crate) struct AdminToken {
    address: SocketAddr,
    /// The directories to try, in this order.
    directories: Vec<PathBuf>,
    token: OnceLock<Secret>,
    file: OnceLock<TokenFile>,
}

struct TokenFile {
    path: PathBuf,
    /// Device and inode, to recognise the file later.
    identity: (u64, u64),
}

impl AdminToken {
    /// Returns the token for the listener at `address`, which does not exist yet.
    #[must_use]
    pub(crate) fn new(address: SocketAddr, directories: Vec<PathBuf>) -> Self {
        Self { address, directories, token: OnceLock::new(), file: OnceLock::new() }
    }

    /// Returns the token, if there is one.
    #[must_use]
    pub(crate) fn get(&self) -> Option<&str> {
        self.token.get().map(|token| token.0.as_str())
    }

    /// Returns the bound address.
    #[must_use]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes over the token of the previous process, which keeps its file until [`Self::store`] replaces it.
    pub(crate) fn inherit(&self, token: &str) {
        let _ = self.token.set(Secret(token.to_owned()));
    }

    /// Stores the token in its file; makes one if there is none. Returns the path. Only a start and then reloads, one at
    /// a time, call this.
    ///
    /// # Errors
    /// No directory can be written. The message names each, and why.
    pub(crate) fn store(&self) -> Result<&Path, String> {
        if let Some(file) = self.file.get() {
            return Ok(&file.path);
        }
        let token = match self.get() {
            Some(token) => token.to_owned(),
            None => random_token().map_err(|error| error.to_string())?,
        };
        let mut failures = Vec::new();
        for directory in &self.directories {
            match write(directory, self.address, &token) {
                Ok(file) => {
                    self.inherit(&token);
                    return Ok(&self.file.get_or_init(|| file).path);
                }
                Err(error) => failures.push(format!("{}: {error}", directory.display())),
            }
        }
        Err(failures.join("; "))
    }

    /// Returns whether the token is stored.
    #[must_use]
    pub(crate) fn is_stored(&self) -> bool {
        self.file.get().is_some()
    }

    /// Removes the file, unless another process has replaced it.
    pub(crate) fn remove_file(&self) {
        let Some(TokenFile { path, identity: own }) = self.file.get() else { return };
        if std::fs::symlink_metadata(path).is_ok_and(|found| identity(&found) == *own) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Returns the token of the process that listens on `address`, from the first directory that has its file.
#[must_use]
pub(crate) fn find(directories: &[PathBuf], address: SocketAddr) -> Option<String> {
    directories.iter().find_map(|directory| read(directory, address).ok())
}

/// Removes the file of the process before this one, which listened on another address.
pub(crate) fn remove_file_of(directories: &[PathBuf], address: SocketAddr, token: &str) {
    for directory in directories {
        if read(directory, address).is_ok_and(|found| found == token) {
            let _ = std::fs::remove_file(file_in(directory, address));
        }
    }
}

fn file_in(directory: &Path, address: SocketAddr) -> PathBuf {
    directory.join(format!("admin-{address}.token"))
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

fn random_token() -> io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(hex::encode(bytes))
}

/// Checks that only this user, or root, can have changed what is found.
fn check_private(found: &Metadata, is_right_kind: bool) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    // Root finds the files of every user's Weir.
    let is_ours = found.uid() == own || own == 0;
    match () {
        () if !is_right_kind => Err(io::Error::other("it is a link or not of the expected kind")),
        () if !is_ours => Err(io::Error::other(format!("it belongs to user {}, not to user {own}", found.uid()))),
        () if found.mode() & 0o077 != 0 => {
            Err(io::Error::other(format!("its mode is {:o}; other users must have no rights", found.mode() & 0o777)))
        }
        () => Ok(()),
    }
}

fn check_directory(directory: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(directory)?;
    check_private(&found, found.is_dir())
}

fn read(directory: &Path, address: SocketAddr) -> io::Result<String> {
    check_directory(directory)?;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(file_in(directory, address))?;
    let found = file.metadata()?;
    check_private(&found, found.is_file())?;
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    let token = text.trim();
    if token.is_empty() { Err(io::Error::other("the file is empty")) } else { Ok(token.to_owned()) }
}

/// Writes a new file and gives it the name of the old one, if there is one: readers find one of the two, complete.
fn write(directory: &Path, address: SocketAddr, token: &str) -> io::Result<TokenFile> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => check_directory(directory)?,
    }
    let file = file_in(directory, address);
    let new = directory.join(format!(".admin-{address}.{}.new", std::process::id()));
    // Left by a process with the same id that was killed. The directory belongs to this user alone.
    let _ = std::fs::remove_file(&new);
    // `create_new` is O_EXCL: it follows no link and opens no existing file.
    let mut created = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = created.write_all(format!("{token}\n").as_bytes()).and_then(|()| std::fs::rename(&new, &file));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&new);
        return Err(error);
    }
    Ok(TokenFile { path: file, identity: identity(&created.metadata()?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn each_address_has_its_own_token_in_a_private_file() {
        let root = tempfile::tempdir().unwrap();
        let directories = vec![root.path().join("weir")];
        let tokens = [1, 2].map(|port| AdminToken::new(address(port), directories.clone()));
        for token in &tokens {
            assert_eq!(token.get(), None);
            token.store().unwrap();
            assert_eq!(find(&directories, token.address()).as_deref(), token.get());
            assert_eq!(mode(&file_in(&directories[0], token.address())), 0o600);
        }
        assert_eq!(mode(&directories[0]), 0o700);
        assert!(tokens[0].get() != tokens[1].get() && tokens[0].get().unwrap().len() == 64);
        tokens[0].remove_file();
        assert_eq!(find(&directories, address(1)), None);
        assert!(find(&directories, address(2)).is_some());
    }

    #[test]
    fn a_file_of_a_killed_process_is_replaced_and_that_of_a_successor_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let directories = vec![root.path().join("weir")];
        let [old, new] = [(); 2].map(|()| AdminToken::new(address(1), directories.clone()));
        old.store().unwrap();
        new.inherit("inherited");
        new.store().unwrap();
        assert_eq!(find(&directories, address(1)).as_deref(), Some("inherited"));
        old.remove_file();
        assert_eq!(find(&directories, address(1)).as_deref(), Some("inherited"));
        remove_file_of(&directories, address(1), "another");
        assert!(find(&directories, address(1)).is_some());
        remove_file_of(&directories, address(1), "inherited");
        assert_eq!(find(&directories, address(1)), None);
    }

    #[test]
    fn a_directory_or_file_that_others_may_have_made_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let (open, link, private, missing) = (at("open"), at("link"), at("private"), at("missing/weir"));
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        let token = AdminToken::new(address(1), vec![private.clone()]);
        token.store().unwrap();
        symlink(&private, &link).unwrap();
        for directory in [&open, &link, &missing] {
            let refused = AdminToken::new(address(1), vec![directory.clone()]).store().map(Path::to_owned).unwrap_err();
            assert!(refused.contains(&*directory.to_string_lossy()), "{refused}");
            assert_eq!(find(std::slice::from_ref(directory), address(1)), None);
        }
        let fallback = AdminToken::new(address(2), vec![missing, open, private.clone()]);
        fallback.store().unwrap();
        assert_eq!(find(std::slice::from_ref(&private), address(2)).as_deref(), fallback.get());

        // A link in place of the file is replaced by a write, not followed, and not read.
        let target = at("target");
        std::fs::write(&target, "foreign").unwrap();
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&target, file_in(&private, address(3))).unwrap();
        assert_eq!(find(std::slice::from_ref(&private), address(3)), None);
        AdminToken::new(address(3), vec![private.clone()]).store().unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "foreign");
        let readable = file_in(&private, address(3));
        std::fs::set_permissions(readable, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(find(&[private], address(3)), None);
    }
}

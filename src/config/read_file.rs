//! Reads the files of a configuration: regular files only, up to a size.
//!
//! A pipe or a device would block the reader, or would never end.

use rustix::fs::OFlags;
use std::fs::{File, FileType};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// The largest configuration file, in bytes.
pub(super) const MAX_FILE: u64 = 64 << 20;
/// The largest file that a configuration file names: a secret, a certificate or a key, in bytes.
pub(super) const MAX_NAMED_FILE: u64 = 1 << 20;

/// Returns the text of a file, which may be a link to a regular file.
///
/// # Errors
/// Says why the file cannot be read: it is no regular file, is longer than `limit` bytes, or is not UTF-8.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    let regular = |kind: FileType| if kind.is_file() { Ok(()) } else { Err(not_regular(kind)) };
    // Before `open`, which can have an effect on a device.
    let found = std::fs::metadata(path).map_err(|error| error.to_string())?;
    regular(found.file_type())?;
    // The file can be replaced after the check. `NONBLOCK` keeps the open of a pipe from waiting for a writer.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(|error| error.to_string())?;
    regular(file.metadata().map_err(|error| error.to_string())?.file_type())?;
    let mut bytes = Vec::new();
    // A file can grow while it is read, so the limit holds for what is read.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > limit {
        return Err(format!("the file has more than {limit} bytes, which is the limit"));
    }
    String::from_utf8(bytes).map_err(|_| "the file is not UTF-8 text".to_owned())
}

fn not_regular(kind: FileType) -> String {
    let what = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a named pipe (FIFO)",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "something else",
    };
    format!("it is {what}; it must be a regular file, or a link to one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType as Kind, Mode, mknodat};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_regular_files_up_to_the_limit_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "12345").unwrap();
        symlink(at("file"), at("link")).unwrap();
        symlink(at("link"), at("link-to-link")).unwrap();
        for name in ["file", "link", "link-to-link"] {
            assert_eq!(read_text(&at(name), 5).as_deref(), Ok("12345"), "{name}");
        }
        assert!(read_text(&at("file"), 4).unwrap_err().contains("more than 4 bytes"));
        std::fs::write(at("binary"), [0xff, 0xfe]).unwrap();
        assert!(read_text(&at("binary"), 5).unwrap_err().contains("not UTF-8"));

        mknodat(CWD, at("pipe"), Kind::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        symlink(at("pipe"), at("link-to-pipe")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        symlink("/dev/zero", at("device")).unwrap();
        for (name, what) in [
            ("pipe", "a named pipe"),
            ("link-to-pipe", "a named pipe"),
            ("socket", "a socket"),
            ("directory", "a directory"),
            ("device", "a device"),
        ] {
            assert!(read_text(&at(name), 5).unwrap_err().contains(what), "{name}");
        }
        symlink(at("loop"), at("loop")).unwrap();
        assert!(read_text(&at("loop"), 5).is_err());
        assert!(read_text(&at("missing"), 5).is_err());
    }

    #[test]
    fn a_file_that_says_it_is_empty_is_read_up_to_the_limit() {
        // Files under /proc have a length of 0.
        assert!(read_text(Path::new("/proc/self/status"), 10).unwrap_err().contains("more than 10 bytes"));
    }
}

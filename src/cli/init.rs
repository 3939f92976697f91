//! Runs `weir init`: writes a small configuration with comments, which `weir check` accepts.
//!
//! It replaces no file and writes only into an empty directory.

use super::{new_key, print, print_stderr};
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// The files, by their path in the directory.
const FILES: [(&str, &str); 5] = [
    ("weir.yaml", include_str!("init/weir.yaml")),
    ("clients.yaml", include_str!("init/clients.yaml")),
    ("providers/acme.yaml", include_str!("init/providers/acme.yaml")),
    ("examples/acme/get.native.json", include_str!("init/examples/acme/get.native.json")),
    ("examples/acme/get.unified.json", include_str!("init/examples/acme/get.unified.json")),
];

/// Stands for the digest of the client's key in `clients.yaml`.
const DIGEST: &str = "{digest}";

pub(super) fn init(directory: &Path) -> ExitCode {
    let written = new_key().map_err(|error| format!("cannot get random bytes: {error}")).and_then(|(key, digest)| {
        check_empty(directory)?;
        write(directory, &digest).map_err(|(path, error)| format!("{path}: {error}"))?;
        Ok(key)
    });
    let shown = directory.display();
    match written {
        Ok(key) => {
            let files = FILES.map(|(path, _)| format!("  {path}\n")).concat();
            print(&format!(
                "Wrote to {shown}:\n{files}\nThe key of the client \"first\", which is shown only now:\n  {key}\n\n\
                 Next: describe your provider in providers/, then\n  weir --config {shown} check\n  weir --config {shown} run\n"
            ));
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_stderr(&format!("weir: nothing written: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Checks that the directory is empty or does not exist. Hidden entries, such as `.git`, do not count.
fn check_empty(directory: &Path) -> Result<(), String> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{}: {error}", directory.display())),
        Ok(entries) => entries,
    };
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names.filter(|name| !name.starts_with('.')).min() {
        None => Ok(()),
        Some(name) => {
            let better = "name an empty directory, or one that does not exist";
            Err(format!("{} is not empty (it has {name}); {better}", directory.display()))
        }
    }
}

/// Writes all files, or none: if one cannot be written, those before it are removed.
fn write(directory: &Path, digest: &str) -> Result<(), (String, io::Error)> {
    let mut written = Vec::new();
    for (name, text) in FILES {
        let path = directory.join(name);
        let parent = path.parent().unwrap_or(directory);
        let made = DirBuilder::new().recursive(true).create(parent).and_then(|()| {
            // `create_new` follows no link and replaces no file.
            let mut file = File::options().write(true).create_new(true).open(&path)?;
            written.push(path.clone());
            file.write_all(text.replace(DIGEST, digest).as_bytes())
        });
        if let Err(error) = made {
            written.iter().for_each(|path| drop(std::fs::remove_file(path)));
            return Err((path.display().to_string(), error));
        }
    }
    Ok(())
}

//! Loads a configuration directory: reads its files, then decodes and checks them.
//!
//! It reads all files before it decodes one, because the revision is a digest of their text. It also reads the files and
//! the environment variables that they name. No other module of the gateway does, or calls `std::env::var` (clippy.toml
//! forbids it). Other readers of the environment and of files: clap reads `WEIR_CONFIG` and `WEIR_ADMIN`, the commands
//! `map` and `explain` read a response body, and libraries read `SSL_CERT_FILE` and `SSL_CERT_DIR` (TLS), `OTEL_*`
//! (traces) and `NOTIFY_SOCKET` (systemd).

use super::decode::{DecodeContext, Secret};
use super::faults::{Faults, Location};
use super::read_file::{MAX_FILE, MAX_NAMED_FILE, read_text};
use super::tree::{self, Document};
use super::{Config, Example, check, clients, provider, weir};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A configuration directory and its environment.
#[derive(Debug, Clone)]
pub struct ConfigSource {
    /// The directory.
    pub directory: PathBuf,
    /// Variables that replace those of the process environment.
    pub overlay: BTreeMap<String, String>,
    /// The file that is being read, for the message about a read that does not end. Clones share it.
    reading: Arc<Mutex<Option<PathBuf>>>,
}

impl ConfigSource {
    /// Returns a directory with the environment of the process.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), overlay: BTreeMap::new(), reading: Arc::default() }
    }

    /// Returns the file that is being read.
    #[must_use]
    pub(crate) fn reading(&self) -> Option<PathBuf> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads a file below the directory, or one with an absolute path.
    fn read(&self, path: &str, limit: u64) -> Result<String, String> {
        let path = self.directory.join(path);
        let set = |path| *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = path;
        set(Some(path.clone()));
        let text = read_text(&path, limit);
        set(None);
        text
    }

    /// Returns the directories in which Weir may store a file that lasts as long as the process, the best one first.
    /// They need not exist.
    #[must_use]
    pub(crate) fn runtime_directories(&self) -> Vec<PathBuf> {
        let user = rustix::process::geteuid().as_raw();
        let absolute = |name| self.env(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let temporary = absolute("TMPDIR").unwrap_or_else(|| "/tmp".into());
        let own = [
            // Set by systemd for a unit with `RuntimeDirectory`.
            absolute("RUNTIME_DIRECTORY"),
            absolute("XDG_RUNTIME_DIR").map(|directory| directory.join("weir")),
        ];
        let usual = ["/run/weir".into(), format!("/run/user/{user}/weir").into()];
        own.into_iter().flatten().chain(usual).chain([temporary.join(format!("weir-{user}"))]).collect()
    }

    fn env(&self, name: &str) -> Option<String> {
        #[allow(clippy::disallowed_methods)] // the one place that reads the environment of the configuration
        self.overlay.get(name).cloned().or_else(|| std::env::var(name).ok())
    }
}

/// The result of loading a directory.
pub struct Loaded {
    /// The configuration, without the parts that have faults; `None` if `weir.yaml` could not be decoded.
    pub config: Option<Config>,
    /// All faults that loading found.
    pub faults: Faults,
}

/// Reads, decodes and checks a directory. `runtime::snapshot` compiles the result.
#[must_use]
pub fn load(source: &ConfigSource) -> Loaded {
    let mut faults = Faults::default();
    let files = read_directory(source, &mut faults);
    let secrets = RefCell::new(Sha256::new());
    let read_file = |path: &str| read_secret(source, path, &secrets);
    let env = |name: &str| source.env(name);
    let mut decoder = Decoder { env: &env, read_file: &read_file, faults: &mut faults, truncated: Vec::new() };
    let config = decoder.decode(&files);
    let truncated = std::mem::take(&mut decoder.truncated);
    let config = config.map(|mut config| {
        check::cross_file(&config, &truncated, &mut faults);
        config.revision = revision(&files);
        config.content = content(&files, secrets.into_inner());
        config
    });
    Loaded { config, faults }
}

/// A file of the directory.
struct SourceFile {
    /// The path below the directory, with `/`.
    relative: String,
    /// The path as messages show it.
    name: Arc<str>,
    text: String,
}

fn read_directory(source: &ConfigSource, faults: &mut Faults) -> Vec<SourceFile> {
    let (directory, mut files) = (&source.directory, Vec::new());
    for name in ["weir.yaml", "clients.yaml"] {
        read_file(source, name, &mut files, faults);
    }
    for name in names_in(&directory.join("providers")) {
        if Path::new(&name).extension().is_some_and(|e| e == "yaml" || e == "yml") {
            read_file(source, &format!("providers/{name}"), &mut files, faults);
        }
    }
    for provider in names_in(&directory.join("examples")) {
        for name in names_in(&directory.join("examples").join(&provider)) {
            if name.ends_with(".json") {
                read_file(source, &format!("examples/{provider}/{name}"), &mut files, faults);
            }
        }
    }
    files
}

/// Returns the sorted names in a directory, without hidden ones such as the `..data` of a Kubernetes ConfigMap. Returns
/// no names if there is no such directory.
fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|e| e.file_name().into_string().ok()).filter(|n| !n.starts_with('.')).collect();
    names.sort();
    names
}

fn read_file(source: &ConfigSource, relative: &str, files: &mut Vec<SourceFile>, faults: &mut Faults) {
    let name: Arc<str> = source.directory.join(relative).to_string_lossy().into();
    match source.read(relative, MAX_FILE) {
        Ok(text) => files.push(SourceFile { relative: relative.to_owned(), name, text }),
        Err(error) => faults.add(&Location::top(&name), format!("cannot be read: {error}")),
    }
}

fn read_secret(source: &ConfigSource, path: &str, digest: &RefCell<Sha256>) -> Result<String, String> {
    let text = source.read(path, MAX_NAMED_FILE)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err("the file is empty".into());
    }
    digest.borrow_mut().update(Sha256::digest(text));
    Ok(text.to_owned())
}

/// Returns twelve hexadecimal digits that identify the text of the files. Secret files are not part of it, because the
/// revision is public and would be a fingerprint of the secrets.
fn revision(files: &[SourceFile]) -> String {
    hex::encode(&digest(files)[..6])
}

fn digest(files: &[SourceFile]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for file in files {
        for part in [&file.relative, &file.text] {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
    }
    digest.finalize().into()
}

/// Returns a digest of the files and of the secret files, to detect changes. It must not be shown.
fn content(files: &[SourceFile], secrets: Sha256) -> Secret {
    Secret(hex::encode(digest(files)) + &hex::encode(secrets.finalize()))
}

struct Decoder<'a> {
    env: tree::Env<'a>,
    read_file: &'a dyn Fn(&str) -> Result<String, String>,
    faults: &'a mut Faults,
    /// Files that end at a syntax fault, and `providers` if one of them is a provider file.
    truncated: Vec<String>,
}

impl Decoder<'_> {
    fn decode(&mut self, files: &[SourceFile]) -> Option<Config> {
        let (mut weir, mut clients, mut providers, mut examples) = (None, Vec::new(), Vec::new(), Vec::new());
        for file in files {
            match file.relative.split('/').next() {
                Some("weir.yaml") => weir = self.yaml(file, weir::decode),
                Some("clients.yaml") => {
                    clients = self.yaml(file, |n, cx| Some(clients::decode(n, cx))).unwrap_or_default();
                }
                Some("providers") => {
                    let read = self.yaml(file, provider::decode);
                    if read.is_none() {
                        self.truncated.push("providers".into());
                    }
                    providers.extend(read);
                }
                _ => self.example(file, files, &mut examples),
            }
        }
        Some(Config {
            weir: weir?,
            clients,
            providers,
            examples,
            files: files.iter().map(|f| f.name.to_string()).collect(),
            revision: String::new(),
            content: Secret(String::new()),
        })
    }

    fn yaml<T>(
        &mut self,
        file: &SourceFile,
        decode: impl Fn(&tree::Node, &mut DecodeContext<'_>) -> Option<T>,
    ) -> Option<T> {
        let Document { root, truncated } = tree::parse(&file.name, &file.text, self.env, self.faults);
        if truncated {
            self.truncated.push(file.relative.clone());
            if file.relative.starts_with("providers/") {
                self.truncated.push("providers".into());
            }
        }
        let Some(root) = root else {
            if !truncated {
                self.faults.add(&Location::top(&file.name), "the file is empty");
            }
            return None;
        };
        decode(&root, &mut DecodeContext::new(self.faults, self.read_file, truncated))
    }

    /// Adds the example of a `CASE.native.json` and its `CASE.unified.json`.
    fn example(&mut self, file: &SourceFile, files: &[SourceFile], examples: &mut Vec<Example>) {
        let top = Location::top(&file.name);
        let Some(case) = file.relative.strip_suffix(".native.json") else {
            let partner = file.relative.strip_suffix(".unified.json").map(|case| format!("{case}.native.json"));
            if !partner.is_some_and(|partner| files.iter().any(|f| f.relative == partner)) {
                self.faults.add(&top, "this file has no partner; an example is CASE.native.json and CASE.unified.json");
            }
            return;
        };
        let partner = format!("{case}.unified.json");
        let Some(unified) = files.iter().find(|f| f.relative == partner) else {
            self.faults.add(&top, format!("missing {partner}, the unified body of this example"));
            return;
        };
        let provider = file.relative.split('/').nth(1).unwrap_or_default().to_owned();
        examples.push(Example {
            provider,
            native: file.text.clone(),
            unified: unified.text.clone(),
            native_location: top,
            unified_location: Location::top(&unified.name),
        });
    }
}

//! Reading a configuration directory: the only room that reads files and the environment.
//!
//! It reads everything first, so that a revision is a digest of what was read, then decodes. It must
//! not compile or judge across files; `check` does that.

use super::decode::{Cx, Secret};
use super::faults::{Faults, Place};
use super::tree::{self, Document};
use super::{Config, Example, check, clients, provider, weir};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest config file read.
const MAX_FILE: u64 = 64 << 20;

/// Where a configuration comes from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The directory.
    pub directory: PathBuf,
    /// Set in place of environment variables of the same name.
    pub overlay: BTreeMap<String, String>,
}

impl Source {
    /// A directory, with the process's environment.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), overlay: BTreeMap::new() }
    }

    fn env(&self, name: &str) -> Option<String> {
        #[allow(clippy::disallowed_methods)] // the one room that may
        self.overlay.get(name).cloned().or_else(|| std::env::var(name).ok())
    }
}

/// What a directory gave: the config as far as it could be read, and all faults up to here.
pub struct Loaded {
    /// The config; `None` where no part of it could be made sense of.
    pub config: Option<Config>,
    /// Faults so far.
    pub faults: Faults,
}

/// Reads, decodes and checks a directory. Compiling is the snapshot's.
#[must_use]
pub fn load(source: &Source) -> Loaded {
    let mut faults = Faults::default();
    let files = read_directory(&source.directory, &mut faults);
    let secrets = RefCell::new(Sha256::new());
    let read_file = |path: &str| read_secret(&source.directory, path, &secrets);
    let env = |name: &str| source.env(name);
    let mut decoder = Decoder { env: &env, read_file: &read_file, faults: &mut faults, cut: Vec::new() };
    let config = decoder.decode(&files);
    let cut = std::mem::take(&mut decoder.cut);
    let config = config.map(|mut config| {
        check::cross_file(&config, &cut, &mut faults);
        config.revision = revision(&files);
        config.content = content(&files, secrets.into_inner());
        config
    });
    Loaded { config, faults }
}

/// One file as read.
struct File {
    /// Path below the directory, with `/`.
    relative: String,
    /// Path as shown to people.
    shown: Arc<str>,
    text: String,
}

fn read_directory(directory: &Path, faults: &mut Faults) -> Vec<File> {
    let mut files = Vec::new();
    for name in ["weir.yaml", "clients.yaml"] {
        read_file(directory, name, &mut files, faults);
    }
    for name in names_in(&directory.join("providers")) {
        if Path::new(&name).extension().is_some_and(|e| e == "yaml" || e == "yml") {
            read_file(directory, &format!("providers/{name}"), &mut files, faults);
        }
    }
    for provider in names_in(&directory.join("examples")) {
        for name in names_in(&directory.join("examples").join(&provider)) {
            if name.ends_with(".json") {
                read_file(directory, &format!("examples/{provider}/{name}"), &mut files, faults);
            }
        }
    }
    files
}

/// Names in a directory, sorted; hidden ones (a ConfigMap's `..data`) left out. None if it is not there.
fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|e| e.file_name().into_string().ok()).filter(|n| !n.starts_with('.')).collect();
    names.sort();
    names
}

fn read_file(directory: &Path, relative: &str, files: &mut Vec<File>, faults: &mut Faults) {
    let path = directory.join(relative);
    let shown: Arc<str> = path.to_string_lossy().into();
    match read_limited(&path) {
        Ok(text) => files.push(File { relative: relative.to_owned(), shown, text }),
        Err(error) => faults.add(&Place::top(&shown), format!("cannot be read: {error}")),
    }
}

fn read_limited(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length > MAX_FILE {
        return Err(format!("{length} bytes; a config file has at most {MAX_FILE}"));
    }
    std::fs::read_to_string(path).map_err(|e| e.to_string())
}

fn read_secret(directory: &Path, path: &str, digest: &RefCell<Sha256>) -> Result<String, String> {
    let text = read_limited(&directory.join(path))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err("it is empty".into());
    }
    digest.borrow_mut().update(Sha256::digest(text));
    Ok(text.to_owned())
}

/// Twelve hexadecimal digits that name this content; without the secrets' files, of which it would
/// be a fingerprint.
fn revision(files: &[File]) -> String {
    digest(files).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn digest(files: &[File]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for file in files {
        for part in [&file.relative, &file.text] {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
    }
    digest.finalize().into()
}

/// Like the revision, with the secrets' files: never shown, says whether anything changed.
fn content(files: &[File], secrets: Sha256) -> Secret {
    let both = digest(files).into_iter().chain(secrets.finalize());
    Secret(both.map(|byte| format!("{byte:02x}")).collect())
}

struct Decoder<'a> {
    env: tree::Env<'a>,
    read_file: &'a dyn Fn(&str) -> Result<String, String>,
    faults: &'a mut Faults,
    /// Files of which a part is hidden by a syntax fault.
    cut: Vec<String>,
}

impl Decoder<'_> {
    fn decode(&mut self, files: &[File]) -> Option<Config> {
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
                        self.cut.push("providers".into());
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
            files: files.iter().map(|f| f.shown.to_string()).collect(),
            revision: String::new(),
            content: Secret(String::new()),
        })
    }

    fn yaml<T>(&mut self, file: &File, decode: impl Fn(&tree::Node, &mut Cx<'_>) -> Option<T>) -> Option<T> {
        let Document { root, cut } = tree::parse(&file.shown, &file.text, self.env, self.faults);
        if cut {
            self.cut.push(file.relative.clone());
            if file.relative.starts_with("providers/") {
                self.cut.push("providers".into());
            }
        }
        let Some(root) = root else {
            if !cut {
                self.faults.add(&Place::top(&file.shown), "the file is empty");
            }
            return None;
        };
        decode(&root, &mut Cx::new(self.faults, self.read_file, cut))
    }

    /// Takes `<case>.native.json` with its `<case>.unified.json`.
    fn example(&mut self, file: &File, files: &[File], examples: &mut Vec<Example>) {
        let top = Place::top(&file.shown);
        let Some(case) = file.relative.strip_suffix(".native.json") else {
            let partner = file.relative.strip_suffix(".unified.json").map(|case| format!("{case}.native.json"));
            if !partner.is_some_and(|partner| files.iter().any(|f| f.relative == partner)) {
                self.faults.add(&top, "an example is a pair: CASE.native.json and CASE.unified.json");
            }
            return;
        };
        let partner = format!("{case}.unified.json");
        let Some(unified) = files.iter().find(|f| f.relative == partner) else {
            self.faults.add(&top, format!("{partner} is missing: what this example should map to"));
            return;
        };
        let provider = file.relative.split('/').nth(1).unwrap_or_default().to_owned();
        examples.push(Example {
            provider,
            native: file.text.clone(),
            unified: unified.text.clone(),
            native_place: top,
            unified_place: Place::top(&unified.shown),
        });
    }
}

//! Loads a configuration directory: reads its files, then decodes and checks them.
//!
//! It reads all files before it decodes one, because the revision is a digest of their text. It also reads the files and
//! the environment variables that they name. No other module of the gateway does, or calls `std::env::var` (clippy.toml
//! forbids it). Other readers of the environment and of files: clap reads `WEIR_CONFIG` and `WEIR_ADMIN`, the commands
//! `map` and `explain` read a response body, and libraries read `SSL_CERT_FILE` and `SSL_CERT_DIR` (TLS), `OTEL_*`
//! (traces) and `NOTIFY_SOCKET` (systemd).

use super::content::Content;
use super::decode::{DecodeContext, Missing};
use super::faults::{Fault, Faults, Location};
use super::read_file::{MAX_FILE, MAX_NAMED_FILE, read_text};
use super::tree::{self, Document};
use super::{Config, Example, check, clients, provider, weir};
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
    /// Whether variables that are not set and named files that cannot be read are accepted.
    accepts_missing: bool,
}

impl ConfigSource {
    /// Returns a directory with the environment of the process.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), overlay: BTreeMap::new(), reading: Arc::default(), accepts_missing: false }
    }

    /// Returns the same directory for a command that needs no secret: placeholders stand for variables that are not set and
    /// for secret files that cannot be read. `Config::missing` lists them.
    #[must_use]
    pub(crate) fn accepting_missing(&self) -> Self {
        Self { accepts_missing: true, ..self.clone() }
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
    /// The content of all files that were read.
    pub content: Content,
    /// All faults that loading found.
    pub faults: Faults,
}

/// Reads, decodes and checks a directory. `runtime::snapshot` compiles the result.
#[must_use]
pub fn load(source: &ConfigSource) -> Loaded {
    let mut faults = Faults::default();
    let mut directory = Directory::default();
    directory.read(source, &mut faults);
    let content = RefCell::new(Content::default());
    directory.files.iter().for_each(|file| content.borrow_mut().add(&file.relative, &file.text));
    let read_file = |path: &str| read_named(source, path).inspect(|text| content.borrow_mut().add_named(path, text));
    let env = |name: &str| source.env(name);
    let missing = Missing::default();
    let accepted = source.accepts_missing.then_some(&missing);
    let mut decoder = Decoder {
        env: &env,
        read_file: &read_file,
        missing: accepted,
        faults: &mut faults,
        unreadable: &directory.unreadable,
        truncated: Vec::new(),
    };
    let config = decoder.decode(&directory.files);
    let mut truncated = std::mem::take(&mut decoder.truncated);
    truncated
        .extend(directory.unreadable.iter().any(|file| file.starts_with("providers/")).then(|| "providers".into()));
    let content = content.into_inner();
    let config = config.map(|mut config| {
        check::cross_file(&config, &truncated, &mut faults);
        config.revision = content.revision();
        config.missing = missing.take().into_iter().collect();
        config
    });
    Loaded { config, content, faults }
}

/// Reads one part of the section `admin` of `weir.yaml`. No other part of the configuration is read, so none needs to be
/// valid. Returns `None` if the part is not written.
///
/// # Errors
/// The file cannot be read, or the part has a fault.
pub(crate) fn read_admin<T>(
    source: &ConfigSource,
    part: impl FnOnce(&tree::Node, &mut DecodeContext<'_>) -> Option<T>,
) -> Result<Option<T>, Vec<Fault>> {
    let (mut faults, mut directory) = (Faults::default(), Directory::default());
    if directory.exists(source, &mut faults) {
        directory.read_file(source, "weir.yaml", &mut faults);
    }
    let Some(file) = directory.files.first() else { return Err(faults.sorted()) };
    let mut syntax = Faults::default();
    let Document { root, truncated } = tree::parse(&file.name, &file.text, &|name| source.env(name), &mut syntax);
    let read_file = |path: &str| read_named(source, path);
    let mut cx = DecodeContext::new(&mut faults, &read_file, truncated);
    let found = root.and_then(|root| part(&root, &mut cx));
    match (found, faults.is_empty()) {
        (_, false) => Err(faults.sorted()),
        (None, true) if truncated => Err(syntax.sorted()),
        (found, true) => Ok(found),
    }
}

/// A file of the directory.
struct SourceFile {
    /// The path below the directory, with `/`.
    relative: String,
    /// The path as messages show it.
    name: Arc<str>,
    text: String,
}

/// The files of a directory.
#[derive(Default)]
struct Directory {
    files: Vec<SourceFile>,
    /// The files that cannot be read, by their path below the directory.
    unreadable: Vec<String>,
}

impl Directory {
    /// Checks that there is a directory. If not, that is one fault, in place of one for each file.
    fn exists(&self, source: &ConfigSource, faults: &mut Faults) -> bool {
        let directory = &source.directory;
        let problem = match std::fs::metadata(directory) {
            Ok(found) if found.is_dir() => return true,
            Ok(_) => "this is not a directory".to_owned(),
            Err(error) => format!("cannot be read: {error}"),
        };
        let better = "name the configuration directory with --config DIR or WEIR_CONFIG, or write a new one with \
                      `weir init DIR`";
        faults.add(
            &Location::top(&directory.to_string_lossy().into()),
            format!("{problem}{}; {better}", tried(directory)),
        );
        false
    }

    fn read(&mut self, source: &ConfigSource, faults: &mut Faults) {
        if !self.exists(source, faults) {
            return;
        }
        let directory = &source.directory;
        for name in ["weir.yaml", "clients.yaml"] {
            self.read_file(source, name, faults);
        }
        for name in names_in(&directory.join("providers")) {
            if Path::new(&name).extension().is_some_and(|e| e == "yaml" || e == "yml") {
                self.read_file(source, &format!("providers/{name}"), faults);
            }
        }
        for provider in names_in(&directory.join("examples")) {
            for name in names_in(&directory.join("examples").join(&provider)) {
                if name.ends_with(".json") {
                    self.read_file(source, &format!("examples/{provider}/{name}"), faults);
                }
            }
        }
    }

    fn read_file(&mut self, source: &ConfigSource, relative: &str, faults: &mut Faults) {
        let path = source.directory.join(relative);
        let name: Arc<str> = path.to_string_lossy().into();
        match source.read(relative, MAX_FILE) {
            Ok(text) => self.files.push(SourceFile { relative: relative.to_owned(), name, text }),
            Err(error) => {
                faults.add(&Location::top(&name), format!("cannot be read: {error}{}", tried(&path)));
                self.unreadable.push(relative.to_owned());
            }
        }
    }
}

/// Returns ` (tried PATH)` with the absolute path.
fn tried(path: &Path) -> String {
    std::path::absolute(path).map_or_else(|_| String::new(), |path| format!(" (tried {})", path.display()))
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

/// Reads a file that the configuration names. Returns its text without the final line break.
fn read_named(source: &ConfigSource, path: &str) -> Result<String, String> {
    let at = || tried(&source.directory.join(path));
    let text = source.read(path, MAX_NAMED_FILE).map_err(|error| format!("{error}{}", at()))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(format!("the file is empty{}", at()));
    }
    Ok(text.to_owned())
}

struct Decoder<'a> {
    env: tree::Env<'a>,
    read_file: &'a dyn Fn(&str) -> Result<String, String>,
    missing: Option<&'a Missing>,
    faults: &'a mut Faults,
    /// Files that cannot be read.
    unreadable: &'a [String],
    /// Files that end at a syntax fault, and `providers` if the name of a provider is not known.
    truncated: Vec<String>,
}

impl Decoder<'_> {
    fn decode(&mut self, files: &[SourceFile]) -> Option<Config> {
        let (mut weir, mut clients, mut examples) = (None, Vec::new(), Vec::new());
        let (mut providers, mut written_providers) = (Vec::new(), Vec::new());
        for file in files {
            match file.relative.split('/').next() {
                Some("weir.yaml") => weir = self.yaml(file, weir::decode),
                Some("clients.yaml") => {
                    clients = self.yaml(file, |n, cx| Some(clients::decode(n, cx))).unwrap_or_default();
                }
                Some("providers") => {
                    let (name, read) = self.yaml(file, |n, cx| Some(provider::decode(n, cx))).unwrap_or_default();
                    if name.is_none() {
                        self.truncated.push("providers".into());
                    }
                    written_providers.extend(name);
                    providers.extend(read);
                }
                _ => self.example(file, files, &mut examples),
            }
        }
        Some(Config {
            weir: weir?,
            clients,
            providers,
            written_providers,
            examples,
            files: files.iter().map(|f| f.name.to_string()).collect(),
            revision: String::new(),
            missing: Vec::new(),
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
        }
        let Some(root) = root else {
            if !truncated {
                self.faults.add(&Location::top(&file.name), "the file is empty");
            }
            return None;
        };
        let mut cx = DecodeContext::new(self.faults, self.read_file, truncated);
        cx.missing = self.missing;
        decode(&root, &mut cx)
    }

    /// Returns whether the directory has this file, also if it cannot be read.
    fn exists(&self, relative: &str, files: &[SourceFile]) -> bool {
        files.iter().any(|file| file.relative == relative) || self.unreadable.iter().any(|file| file == relative)
    }

    /// Adds the example of a `CASE.native.json` and its `CASE.unified.json`.
    fn example(&mut self, file: &SourceFile, files: &[SourceFile], examples: &mut Vec<Example>) {
        let top = Location::top(&file.name);
        let Some(case) = file.relative.strip_suffix(".native.json") else {
            let partner = file.relative.strip_suffix(".unified.json").map(|case| format!("{case}.native.json"));
            if !partner.is_some_and(|partner| self.exists(&partner, files)) {
                self.faults.add(&top, "this file has no partner; an example is CASE.native.json and CASE.unified.json");
            }
            return;
        };
        let partner = format!("{case}.unified.json");
        let Some(unified) = files.iter().find(|f| f.relative == partner) else {
            if !self.exists(&partner, files) {
                self.faults.add(&top, format!("missing {partner}, the unified body of this example"));
            }
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

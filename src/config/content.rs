//! Remembers the content of the files of a configuration, to notice which of them changed.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The digest of a file's text.
type TextDigest = [u8; 32];

/// The content of all files that were read. It is only compared, never shown: a digest of a secret would be a fingerprint
/// of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The files of the directory, by their path below it.
    files: BTreeMap<String, TextDigest>,
    /// The files that these name: secrets, certificates and keys, by their path as it is written.
    named: BTreeMap<String, TextDigest>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("files", &self.files.len()).field("named", &self.named.len()).finish()
    }
}

impl Content {
    /// Adds a file of the directory.
    pub(super) fn add(&mut self, path: &str, text: &str) {
        self.files.insert(path.to_owned(), Sha256::digest(text).into());
    }

    /// Adds a file that a file of the directory names.
    pub(super) fn add_named(&mut self, path: &str, text: &str) {
        self.named.insert(path.to_owned(), Sha256::digest(text).into());
    }

    /// Returns twelve hexadecimal digits that identify the files of the directory. The files that these name are not part
    /// of it, because it is public.
    #[must_use]
    pub(super) fn revision(&self) -> String {
        let mut digest = Sha256::new();
        for (path, text) in &self.files {
            digest.update(path.len().to_le_bytes());
            digest.update(path);
            digest.update(text);
        }
        hex::encode(&digest.finalize()[..6])
    }

    /// Returns whether the files that the directory names have another content than in `earlier`.
    #[must_use]
    pub fn has_other_named_files(&self, earlier: &Content) -> bool {
        self.named != earlier.named
    }

    /// Returns the files that are new, changed or gone since `earlier`. A configuration with faults may not name all of its
    /// files, so those that it does not name count as gone only if the configuration `is_valid`.
    #[must_use]
    pub fn changes_since(&self, earlier: &Content, is_valid: bool) -> Vec<String> {
        let changed = |now: &BTreeMap<String, TextDigest>, then: &BTreeMap<String, TextDigest>, with_gone: bool| {
            let new = now.iter().filter(|(path, text)| then.get(*path) != Some(*text)).map(|(path, _)| path);
            let gone = then.keys().filter(|path| with_gone && !now.contains_key(*path));
            new.chain(gone).cloned().collect::<Vec<_>>()
        };
        let mut all = changed(&self.files, &earlier.files, true);
        all.extend(changed(&self.named, &earlier.named, is_valid));
        all.sort();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(files: &[(&str, &str)], named: &[(&str, &str)]) -> Content {
        let mut content = Content::default();
        files.iter().for_each(|(path, text)| content.add(path, text));
        named.iter().for_each(|(path, text)| content.add_named(path, text));
        content
    }

    #[test]
    fn new_changed_and_removed_files_are_changes_and_only_named_files_leave_the_revision() {
        let first = content(&[("weir.yaml", "a"), ("old", "b")], &[("/run/key", "k")]);
        let files = content(&[("weir.yaml", "c"), ("new", "b")], &[("/run/key", "k")]);
        let secret = content(&[("weir.yaml", "a"), ("old", "b")], &[("/run/key", "l")]);
        assert_eq!(files.changes_since(&first, true), ["new", "old", "weir.yaml"]);
        assert_eq!(secret.changes_since(&first, true), ["/run/key"]);
        assert!(first.changes_since(&first, true).is_empty());
        assert_eq!(first.changes_since(&Content::default(), true).len(), 3);
        assert_eq!(Content::default().changes_since(&first, false), ["old", "weir.yaml"]);
        assert!(first.revision() != files.revision() && first.revision() == secret.revision());
        assert!(!files.has_other_named_files(&first) && secret.has_other_named_files(&first));
        assert_eq!(first.revision().len(), 12);
        assert!(!format!("{first:?}").contains("/run"));
    }
}

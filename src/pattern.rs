//! Regular expressions from the config, with errors that fit on a line.

use regex::{Regex, RegexBuilder};

/// Compiles a pattern of bounded size.
///
/// # Errors
/// What is wrong with it, for the config's author.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern).size_limit(1 << 20).build().map_err(|error| {
        let text = error.to_string();
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        format!("{pattern:?} is not a regular expression: {}", last.trim().trim_start_matches("error: "))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_bad_pattern_says_so_in_one_line() {
        let error = super::compile("^(a").unwrap_err();
        assert!(error.contains("unclosed group") && !error.contains('\n'), "{error}");
    }
}

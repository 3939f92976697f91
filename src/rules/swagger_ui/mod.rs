//! Embeds the documentation page: Swagger UI, which shows the API description and can send requests.
//!
//! `build.rs` takes the files of Swagger UI, unchanged, out of a registry package. The page loads nothing from other
//! hosts. This module does not know the API description.

use crate::base::content_coding::EncodedForms;
use crate::rules::provider_body::etag;
use bytes::Bytes;
use http::HeaderValue;
use std::sync::LazyLock;

/// The `Content-Security-Policy` of the page. It allows files and requests of this host only, and no inline code.
/// Images may also be `data:` URLs, because the style sheet contains some.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// A document that is the same for all clients.
pub struct PublicDocument {
    /// The media type.
    pub media: &'static str,
    /// The bytes.
    pub body: Bytes,
    /// The strong entity tag.
    pub etag: HeaderValue,
    /// The compressed forms of the bytes.
    pub encoded: EncodedForms,
}

impl PublicDocument {
    /// Creates a document and computes its entity tag.
    #[must_use]
    pub fn new(media: &'static str, body: Bytes) -> Self {
        Self { media, etag: etag(&body), body, encoded: EncodedForms::default() }
    }
}

static PAGE: LazyLock<PublicDocument> =
    LazyLock::new(|| PublicDocument::new(HTML, Bytes::from_static(include_bytes!("page.html"))));
static START: LazyLock<PublicDocument> =
    LazyLock::new(|| PublicDocument::new(SCRIPT, Bytes::from_static(include_bytes!("start.js"))));
static BUNDLE: LazyLock<PublicDocument> = LazyLock::new(|| {
    PublicDocument::new(SCRIPT, Bytes::from_static(include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js"))))
});
static STYLE_SHEET: LazyLock<PublicDocument> = LazyLock::new(|| {
    PublicDocument::new(STYLE, Bytes::from_static(include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css"))))
});

/// Returns the HTML page.
#[must_use]
pub(crate) fn page() -> &'static PublicDocument {
    &PAGE
}

/// Returns a file of the page, named in [`crate::base::endpoints::DOCS_FILES`].
#[must_use]
pub(crate) fn file(name: &str) -> &'static PublicDocument {
    match name {
        "swagger-ui-bundle.js" => &BUNDLE,
        "swagger-ui.css" => &STYLE_SHEET,
        _ => &START,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::endpoints::DOCS_FILES;

    #[test]
    fn the_page_loads_the_embedded_files_and_nothing_else() {
        let page = std::str::from_utf8(&PAGE.body).unwrap();
        let loaded: Vec<&str> = page.split(['"', '\'']).filter(|text| text.starts_with("docs/")).collect();
        assert_eq!(loaded, DOCS_FILES.map(|name| format!("docs/{name}")), "in the order of the page");
        let all: Vec<_> = DOCS_FILES.iter().map(|name| file(name)).collect();
        assert!(all[0].media == STYLE && all[1].media == SCRIPT && all[2].media == SCRIPT);
        assert!(all[0].body.len() > 100_000 && all[1].body.len() > 1_000_000 && all[2].body.len() < 2_000);
        assert!(!page.contains("//"), "nothing from another host");
    }
}

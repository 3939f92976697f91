//! The page that the API's description is read in, and requests are tried from: Swagger UI, embedded.
//!
//! A room of its own because what it holds was made elsewhere. It changes none of it, and no file of it comes from another
//! host: `build.rs` takes them out of a package of the registry. It must not know what is described.

use crate::reading::etag;
use bytes::Bytes;
use http::HeaderValue;
use std::sync::LazyLock;

/// What a browser may do for the page: nothing that does not come from here, and nothing that stands in the page itself. Pictures
/// are also taken from the style sheet, which holds them.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Something that is the same for everyone.
pub struct Document {
    /// Its media type.
    pub media: &'static str,
    /// Its bytes.
    pub body: Bytes,
    /// Their strong entity tag.
    pub etag: HeaderValue,
}

impl Document {
    /// A document with its entity tag.
    #[must_use]
    pub fn new(media: &'static str, body: Bytes) -> Self {
        Self { media, etag: etag(&body), body }
    }
}

static PAGE: LazyLock<Document> =
    LazyLock::new(|| Document::new(HTML, Bytes::from_static(include_bytes!("page.html"))));
static START: LazyLock<Document> =
    LazyLock::new(|| Document::new(SCRIPT, Bytes::from_static(include_bytes!("start.js"))));
static BUNDLE: LazyLock<Document> = LazyLock::new(|| {
    Document::new(SCRIPT, Bytes::from_static(include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js"))))
});
static SHEET: LazyLock<Document> = LazyLock::new(|| {
    Document::new(STYLE, Bytes::from_static(include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css"))))
});

/// The page.
#[must_use]
pub fn page() -> &'static Document {
    &PAGE
}

/// A file of the page: one of [`crate::endpoints::READER_FILES`].
#[must_use]
pub fn file(name: &str) -> &'static Document {
    match name {
        "swagger-ui-bundle.js" => &BUNDLE,
        "swagger-ui.css" => &SHEET,
        _ => &START,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::READER_FILES;

    #[test]
    fn the_page_needs_what_is_served_and_nothing_else() {
        let page = std::str::from_utf8(&PAGE.body).unwrap();
        let wanted: Vec<&str> = page.split(['"', '\'']).filter(|text| text.starts_with("docs/")).collect();
        assert_eq!(wanted, READER_FILES.map(|name| format!("docs/{name}")), "in the order of the page");
        let all: Vec<_> = READER_FILES.iter().map(|name| file(name)).collect();
        assert!(all[0].media == STYLE && all[1].media == SCRIPT && all[2].media == SCRIPT);
        assert!(all[0].body.len() > 100_000 && all[1].body.len() > 1_000_000 && all[2].body.len() < 2_000);
        assert!(!page.contains("//"), "nothing of another host");
    }
}

//! Whether a request is larger than may be, by the name of the limit that it is over.
//!
//! A room of its own because it is asked before anything else is: before whose request it is, and before a browser's
//! question is answered. It counts what a request has; what became of it is not known here.

use crate::config::edge::Limits;
use crate::error::{Code, Problem};
use crate::exchange::Request;
use http::Version;

/// The limit's name, and what the client is told.
pub type Beyond = (&'static str, Box<Problem>);

fn beyond(limit: &'static str, code: Code, detail: String) -> Result<(), Beyond> {
    Err((limit, Box::new(Problem::new(code, detail))))
}

/// Limits on every request's head.
///
/// # Errors
/// The first that it is over.
pub fn head(request: &Request, limits: &Limits) -> Result<(), Beyond> {
    let (url, most) = (request.path.len() + request.query.len() + 1, limits.url_bytes);
    if url > most {
        return beyond("url_bytes", Code::UrlTooLong, format!("the URL has {url} bytes; at most {most} are accepted"));
    }
    let (count, most) = (request.headers.count(), limits.header_count);
    if count > most {
        let detail = format!("{count} header fields; at most {most} are accepted");
        return beyond("header_count", Code::HeadersTooLarge, detail);
    }
    let fields = request.headers.bytes() + 4 * count;
    let most = limits.header_bytes;
    if fields > most {
        let detail = format!("{fields} bytes of headers; at most {most} are accepted");
        return beyond("header_bytes", Code::HeadersTooLarge, detail);
    }
    // As HTTP/2 counts: 32 bytes more for each field (RFC 9113, section 6.5.2), and the request line is four fields.
    let (list, most) = (url + fields + 28 * count + 4 * 32, limits.h2_header_list);
    if request.version == Version::HTTP_2 && list > most {
        let detail = format!("a header list of {list} bytes; at most {most} are accepted");
        return beyond("h2_header_list", Code::HeadersTooLarge, detail);
    }
    Ok(())
}

/// The limit on a body of which the length is told. No route of Weir's own takes one.
///
/// # Errors
/// It is over it.
pub fn body(request: &Request, limits: &Limits) -> Result<(), Beyond> {
    let announced = request.header("content-length").and_then(|length| length.trim().parse::<u64>().ok());
    let most = limits.body_bytes;
    match announced.filter(|length| *length > most) {
        Some(length) => {
            let detail = format!("a body of {length} bytes; at most {most} are accepted");
            beyond("body_bytes", Code::BodyTooLarge, detail)
        }
        None => Ok(()),
    }
}

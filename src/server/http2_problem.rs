//! Responds to an HTTP/2 request that Weir does not serve.

use crate::base::problem::Problem;
use bytes::Bytes;
use h2::server::SendResponse;
use http::{Method, header};

/// Sends a problem that belongs to no request that Weir serves.
pub(crate) fn send(respond: &mut SendResponse<Bytes>, method: &Method, problem: &Problem) {
    let body = Bytes::from(problem.to_value(None).to_string());
    let response = http::Response::builder()
        .status(problem.code.status())
        .header(header::CONTENT_TYPE, "application/problem+json")
        .header(header::CONTENT_LENGTH, body.len())
        .header(header::CACHE_CONTROL, "no-store");
    // An error means that the client has reset the stream.
    if let Ok(response) = response.body(())
        && let is_head = *method == Method::HEAD
        && let Ok(mut writer) = respond.send_response(response, is_head)
        && !is_head
    {
        let _ = writer.send_data(body, true);
    }
}

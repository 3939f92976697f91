//! Reads the parameters of a request from its query, or from the form of a POST.

use crate::base::endpoints::{Endpoint, Methods};
use crate::base::request_reply::Request;
use crate::rules::parameters::Parameters;
use crate::rules::route_error::RouteError;
use http::Method;

/// Returns the parameters of a request.
///
/// # Errors
/// The endpoint does not have the method, there is no form, or a parameter is invalid.
pub(crate) fn parameters(endpoint: &'static Endpoint, request: &Request) -> Result<Parameters, RouteError> {
    let (path, methods) = (endpoint.path, endpoint.methods);
    let text = match &request.method {
        &Method::GET | &Method::HEAD if methods.has_get() => &request.query,
        &Method::POST if methods == Methods::Post => &request.query,
        &Method::POST if methods.has_form() => match &request.form {
            Some(Ok(_)) if !request.query.is_empty() => return Err(RouteError::QueryAndForm),
            Some(Ok(form)) => form,
            Some(Err(error)) => return Err((*error).into()),
            None => return Err(RouteError::NoForm { path }),
        },
        _ => return Err(RouteError::Method { path, allow: methods.allow() }),
    };
    Ok(Parameters::parse(text, endpoint)?)
}

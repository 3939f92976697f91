//! Selects the content coding of a response, and encodes its body.
//!
//! Only responses of Weir's own whose bodies contain no secret are encoded: the length of an encoded body says what its
//! parts have in common, and a part may come from the request (BREACH).

use crate::base::content_coding::{ContentCoding, EncodedForms};
use crate::base::memory_budget::MemoryShare;
use crate::base::request_reply::Body;
use crate::engine::compressor::{Compressor, Encoded, NotEncoded};
use crate::engine::request_record::RequestRecord;
use crate::pipeline::context::RequestContext;
use crate::pipeline::respond::{self, Compressible, Content};
use crate::rules::accept_encoding::{self, accepted};
use crate::rules::cache_control::if_none_match_contains;
use http::Method;
use std::sync::Arc;

/// The coding in which a response is to be sent.
pub(crate) struct SelectedCoding {
    coding: ContentCoding,
    /// Whether the client also accepts the response without a coding.
    may_stay_plain: bool,
}

/// Selects the representation of a response: its entity tag, and the coding in which its body must be encoded. Selects
/// nothing for a client that does not send `Accept-Encoding`.
///
/// A client that has one of the acceptable representations gets 304 for this one, whatever it would get otherwise.
pub(crate) fn select(
    context: &RequestContext<'_>,
    content: &mut Content,
    record: &mut RequestRecord,
) -> Option<SelectedCoding> {
    let config = context.snapshot.weir.compression.as_ref()?;
    if matches!(content.compressible, Compressible::No) || record.explain.is_some() {
        return None;
    }
    record.varies_by_coding = true;
    let headers = &context.request.headers;
    let accepted = accepted(headers.get_all("accept-encoding"))?;
    let may_stay_plain = accepted.accepts_identity();
    let is_short = content.body.len() < config.min_size;
    if context.directives.no_transform || (is_short && may_stay_plain) {
        return None;
    }
    let ranked = accepted.ranked(&config.encodings);
    let plain = content.etag.as_ref().filter(|_| context.request.form.is_none() && headers.contains("if-none-match"));
    let held = plain.into_iter().flat_map(|plain| ranked.iter().map(|coding| accept_encoding::tag(plain, *coding)));
    let mut held = held.filter(|tag| tag.to_str().is_ok_and(|tag| if_none_match_contains(headers, tag)));
    if let Some(tag) = held.next() {
        content.etag = Some(tag);
        return None;
    }
    let coding = (*ranked.first()?)?;
    Some(SelectedCoding { coding, may_stay_plain })
}

/// Encodes the body of a response. The body stays as it is if its encoder does not get memory, or if it would become
/// longer.
pub(crate) async fn apply(
    compressor: &Compressor,
    context: &RequestContext<'_>,
    content: &mut Content,
    selected: SelectedCoding,
    share: MemoryShare,
) {
    let SelectedCoding { coding, may_stay_plain } = selected;
    let (plain, metrics) = (&content.body, &compressor.metrics);
    let encoded = match std::mem::replace(&mut content.compressible, Compressible::No) {
        Compressible::Document(kind) => {
            let forms = &respond::public_document(&context.snapshot, kind).encoded;
            kept(compressor, forms, plain, coding, &share).await.map(|(body, _)| body)
        }
        Compressible::View(view, key) => {
            let form = kept(compressor, &view.encoded, plain, coding, &share).await;
            form.map(|(body, is_new)| {
                if is_new {
                    context.shared.cache.weigh_again(key, context.shared.now());
                }
                body
            })
        }
        Compressible::Once | Compressible::No => {
            let encoded = compressor.encode(plain, coding, &share).await;
            encoded.map(|Encoded { bytes, memory }| Body::from(bytes).holding([Arc::new(memory)]))
        }
    };
    let skipped = |reason| metrics.skipped.with_label_values(&[reason]).inc();
    let body = match encoded {
        Err(NotEncoded::Memory) => return skipped("memory"),
        Err(NotEncoded::Failed) => return skipped("failed"),
        Ok(body) if body.len() >= plain.len() && may_stay_plain => return skipped("longer"),
        Ok(body) => body,
    };
    if context.request.method != Method::HEAD {
        metrics.responses.with_label_values(&[coding.as_str()]).inc();
        let saved = plain.len().saturating_sub(body.len());
        metrics.saved.with_label_values(&[coding.as_str()]).inc_by(saved as u64);
    }
    content.etag = content.etag.as_ref().map(|plain| accept_encoding::tag(plain, Some(coding)));
    (content.body, content.coding) = (body, Some(coding));
}

/// Returns a form that is kept, and whether it was made now. One request makes it, and the others wait for it.
async fn kept(
    compressor: &Compressor,
    forms: &EncodedForms,
    plain: &Body,
    coding: ContentCoding,
    share: &MemoryShare,
) -> Result<(Body, bool), NotEncoded> {
    let mut is_new = false;
    let make = || {
        is_new = true;
        // What keeps the form counts its memory.
        async { compressor.encode(plain, coding, share).await.map(|encoded| encoded.bytes) }
    };
    let form = forms.place(coding).get_or_try_init(make).await?;
    let body = Body::from(form.clone());
    Ok((body, is_new))
}

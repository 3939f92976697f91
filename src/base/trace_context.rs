//! Reads and writes W3C Trace Context headers, and records the spans of sampled requests.
//!
//! Unless a request is sampled, nothing is recorded and nothing allocated. Span names and attributes are fixed words,
//! configured names and numbers, never a header value, path or body. This module does not export spans.

use crate::base::request_headers::RequestHeaders;
use http::{HeaderName, HeaderValue};
use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// The header with the trace id, the span id and the flags.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with data of other tracing systems. Weir passes it on unread.
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

const SAMPLED: u8 = 1;

/// The trace id, span id, flags and `tracestate` of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace id; never 0.
    pub trace: u128,
    /// The span id; never 0.
    pub span: u64,
    flags: u8,
    state: Option<HeaderValue>,
}

impl TraceContext {
    /// Returns whether the sampled flag is set.
    #[must_use]
    pub fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Reads the headers of a request (W3C Trace Context, section 3.2). `None` unless there is exactly one
    /// `traceparent` and it is valid.
    #[must_use]
    pub fn of(headers: &RequestHeaders) -> Option<Self> {
        let mut all = headers.get_all("traceparent");
        let (Some(value), None) = (all.next(), all.next()) else { return None };
        let (trace, span, flags) = parse_traceparent(value)?;
        let state = headers.get("tracestate").and_then(|state| HeaderValue::from_bytes(state).ok());
        Some(Self { trace, span, flags, state })
    }

    /// Returns the context of another span in the same trace.
    fn with_span(&self, span: u64) -> Self {
        Self { span, ..self.clone() }
    }

    fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&format!("00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)).ok()
    }
}

/// Parses `version-trace-span-flags`. A version after `00` may append more fields.
fn parse_traceparent(value: &[u8]) -> Option<(u128, u64, u8)> {
    let text = std::str::from_utf8(value).ok()?;
    let (head, rest) = text.split_at_checked(55)?;
    let lower = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mut parts = head.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths = [version, trace, span, flags].map(str::len);
    if parts.next().is_some() || lengths != [2, 32, 16, 2] || ![version, trace, span, flags].into_iter().all(lower) {
        return None;
    }
    let fits = match version {
        "00" => rest.is_empty(),
        "ff" => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
    let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    fits.then_some((trace, span, flags))
}

/// The role of a span in a request, as OpenTelemetry's span kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Work inside this process.
    Inside,
    /// A request that this process receives.
    Server,
    /// A request that this process sends.
    Client,
}

/// The value of a span's attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceAttribute {
    /// A word from the code.
    Static(&'static str),
    /// A name from the configuration, or a request id.
    Text(Arc<str>),
    /// A number.
    Number(i64),
}

/// A finished span.
#[derive(Debug, Clone)]
pub struct Span {
    /// The trace and span ids.
    pub context: TraceContext,
    /// The id of the parent span.
    pub parent: Option<u64>,
    /// Whether the parent span belongs to another process.
    pub parent_is_remote: bool,
    /// The span's name.
    pub name: Cow<'static, str>,
    /// The span's role.
    pub side: Side,
    /// When the span started.
    pub started: SystemTime,
    /// When the span ended.
    pub ended: SystemTime,
    /// Attributes.
    pub attributes: Vec<(&'static str, TraceAttribute)>,
    /// Spans that this span waited for.
    pub links: Vec<TraceContext>,
    /// Whether the work failed.
    pub failed: bool,
}

/// An unfinished span and its steps, which are child spans that follow one another.
#[derive(Debug, Clone)]
struct Recorder {
    clock: fn() -> SystemTime,
    parent: Span,
    steps: Vec<Span>,
}

/// The trace context of a request or of a call, and its steps.
#[derive(Debug, Clone, Default)]
pub struct TraceSteps {
    /// The context of this process's span if `own`, else the client's.
    context: Option<TraceContext>,
    own: bool,
    /// The clock; `None` if the request is not sampled.
    clock: Option<fn() -> SystemTime>,
    recorder: Option<Box<Recorder>>,
    /// The client requests that this request is sampled, and nobody has decided yet whether it may. The value is whether
    /// the request is sampled anyway.
    requested: Option<bool>,
}

impl TraceSteps {
    /// Starts the span of a request. With `rate`, the flags of a valid `traceparent` decide whether the request is
    /// sampled, if [`TraceSteps::decide`] permits that; without one, this share of requests is sampled. Without `rate`,
    /// nothing is recorded and the client's context is passed on.
    #[must_use]
    pub fn begin(headers: &RequestHeaders, rate: Option<f64>, spans: &Spans, clock: fn() -> SystemTime) -> Self {
        let received = TraceContext::of(headers);
        let Some(rate) = rate else { return Self { context: received, ..Self::default() } };
        let parent = received.as_ref().map(|received| received.span);
        let context = match received {
            Some(received) => received.with_span(spans.next_id()),
            None => {
                let trace = u128::from(spans.next_id()) << 64 | u128::from(spans.next_id());
                let flags = u8::from(is_in_share((trace >> 64) as u64, rate));
                TraceContext { trace, span: spans.next_id(), flags, state: None }
            }
        };
        let requested = (parent.is_some() && context.sampled()).then(|| is_in_share(spans.next_id(), rate));
        Self { requested, ..Self::recording(context, parent, parent.is_some(), clock) }
    }

    /// Decides about a request whose client requests that it is sampled: if `may_request` returns `false`, and the
    /// request is not sampled anyway, it is not sampled.
    pub fn decide(&mut self, may_request: impl FnOnce() -> bool) {
        if let Some(anyway) = self.requested.take()
            && !anyway
            && !may_request()
        {
            (self.clock, self.recorder) = (None, None);
            self.context.iter_mut().for_each(|context| context.flags &= !SAMPLED);
        }
    }

    fn recording(
        context: TraceContext,
        parent: Option<u64>,
        parent_is_remote: bool,
        clock: fn() -> SystemTime,
    ) -> Self {
        let clock = Some(clock).filter(|_| context.sampled());
        let recorder = clock.map(|clock| {
            let parent = Span::begin(context.clone(), parent, parent_is_remote, Cow::Borrowed(""), clock());
            Box::new(Recorder { clock, parent, steps: Vec::new() })
        });
        Self { context: Some(context), own: true, clock, recorder, requested: None }
    }

    /// Starts the span of a call to a provider. The call may outlive this request.
    #[must_use]
    pub fn call(&self, spans: &Spans) -> Self {
        match (&self.context, self.clock) {
            (Some(context), Some(clock)) => {
                Self::recording(context.with_span(spans.next_id()), Some(context.span), false, clock)
            }
            _ => self.part(),
        }
    }

    /// Returns a copy for a part of this request that records no steps but may start calls.
    #[must_use]
    pub fn part(&self) -> Self {
        Self { context: self.context.clone(), own: self.own, clock: self.clock, ..Self::default() }
    }

    /// Returns the context of this process's span, for links from other spans.
    #[must_use]
    pub fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref().filter(|_| self.own)
    }

    /// Returns the trace id as 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        self.context.as_ref().map(|context| format!("{:032x}", context.trace))
    }

    /// Starts a step and ends the previous one.
    pub fn step(&mut self, name: &'static str) {
        if let Some(recorder) = &mut self.recorder {
            recorder.step(name, Side::Inside);
        }
    }

    /// Starts a step that sends a request to another process, and ends the previous step.
    pub fn client_step(&mut self, name: &'static str) {
        if let Some(recorder) = &mut self.recorder {
            recorder.step(name, Side::Client);
        }
    }

    /// Adds an attribute to the current step.
    pub fn attribute(&mut self, name: &'static str, value: impl FnOnce() -> TraceAttribute) {
        if let Some(step) = self.recorder.as_mut().and_then(|recorder| recorder.steps.last_mut()) {
            step.attributes.push((name, value()));
        }
    }

    /// Marks the current step as failed.
    pub fn failed(&mut self) {
        if let Some(step) = self.recorder.as_mut().and_then(|recorder| recorder.steps.last_mut()) {
            step.failed = true;
        }
    }

    /// Links the current step to a span that it waited for.
    pub fn link(&mut self, to: &TraceContext) {
        if let Some(step) = self.recorder.as_mut().and_then(|recorder| recorder.steps.last_mut()) {
            step.links.push(to.clone());
        }
    }

    /// Returns the trace headers for the next process, with the current step as the parent. If nothing is traced here,
    /// they are the client's.
    #[must_use]
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let Some(context) = &self.context else { return Vec::new() };
        let step = self.recorder.as_ref().and_then(|recorder| recorder.steps.last());
        let parent = step.map_or(context, |step| &step.context).header().map(|value| (TRACEPARENT, value));
        let state = context.state.clone().map(|state| (TRACESTATE, state));
        // `tracestate` has no meaning without `traceparent`.
        parent.into_iter().chain(state).collect()
    }

    /// Ends the span and its last step. Returns all its spans; none if the request is not sampled, for example because
    /// nobody has decided that its unknown client may request it. `describe` returns the span's name and attributes.
    pub fn end(
        &mut self,
        side: Side,
        failed: bool,
        describe: impl FnOnce() -> (Cow<'static, str>, Vec<(&'static str, TraceAttribute)>),
    ) -> Vec<Span> {
        self.decide(|| false);
        let Some(recorder) = self.recorder.take() else { return Vec::new() };
        let Recorder { clock, mut parent, mut steps } = *recorder;
        let now = clock();
        if let Some(last) = steps.last_mut() {
            last.ended = now;
        }
        (parent.name, parent.attributes) = describe();
        (parent.side, parent.failed, parent.ended) = (side, failed, now);
        steps.push(parent);
        steps
    }
}

/// Returns whether a random number is in a share from 0 to 1 of all numbers.
fn is_in_share(random: u64, share: f64) -> bool {
    // The 53 highest bits as a number from 0 to 1.
    ((random >> 11) as f64) < share * (1_u64 << 53) as f64
}

impl Recorder {
    fn step(&mut self, name: &'static str, side: Side) {
        let now = (self.clock)();
        if let Some(last) = self.steps.last_mut() {
            last.ended = now;
        }
        // Different for each step, because it depends on the number of the step.
        let id = mix(self.parent.context.span.wrapping_add((self.steps.len() as u64 + 1).wrapping_mul(GOLDEN)));
        let parent = Some(self.parent.context.span);
        let mut step = Span::begin(self.parent.context.with_span(id), parent, false, Cow::Borrowed(name), now);
        step.side = side;
        self.steps.push(step);
    }
}

impl Span {
    fn begin(
        context: TraceContext,
        parent: Option<u64>,
        parent_is_remote: bool,
        name: Cow<'static, str>,
        now: SystemTime,
    ) -> Self {
        Self {
            context,
            parent,
            parent_is_remote,
            name,
            side: Side::Inside,
            started: now,
            ended: now,
            attributes: Vec::new(),
            links: Vec::new(),
            failed: false,
        }
    }
}

/// Receives finished spans.
pub(crate) type Sink = Box<dyn Fn(Vec<Span>) + Send + Sync>;

/// Generates span ids and sends finished spans to the exporter.
pub struct Spans {
    next: AtomicU64,
    sink: OnceLock<Sink>,
}

/// The increment of splitmix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Computes the output function of splitmix64, but never returns 0, which is not a valid id.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).max(1)
}

impl Default for Spans {
    /// Starts at a random id, so that two processes do not generate the same ids.
    fn default() -> Self {
        Self { next: AtomicU64::new(RandomState::new().hash_one(GOLDEN)), sink: OnceLock::new() }
    }
}

impl Spans {
    /// Sets the exporter. Only the first call has an effect.
    pub fn send_to(&self, sink: Sink) {
        let _ = self.sink.set(sink);
    }

    fn next_id(&self) -> u64 {
        mix(self.next.fetch_add(GOLDEN, Ordering::Relaxed))
    }

    /// Sends spans to the exporter, if one is set.
    pub fn emit(&self, spans: Vec<Span>) {
        if let Some(sink) = self.sink.get().filter(|_| !spans.is_empty()) {
            sink(spans);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[&'static str]) -> RequestHeaders {
        all.iter().map(|value| ("traceparent", value.as_bytes())).collect()
    }

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn epoch() -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    #[test]
    fn only_valid_traceparents_are_accepted() {
        let read = TraceContext::of(&headers(&[GOOD])).unwrap();
        assert_eq!((read.trace, read.span), (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7));
        assert!(read.sampled());
        assert_eq!(read.header().unwrap(), GOOD);
        for good in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert!(TraceContext::of(&headers(&[good])).is_some(), "{good}");
        }
        for wrong in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::of(&headers(&[wrong])), None, "{wrong}");
        }
        assert_eq!(TraceContext::of(&headers(&[GOOD, GOOD])), None);
    }

    #[test]
    fn without_a_rate_the_context_is_passed_on_and_nothing_is_recorded() {
        let spans = Spans::default();
        let mut steps = TraceSteps::begin(&headers(&[GOOD]), None, &spans, epoch);
        steps.step("one");
        assert_eq!(steps.call(&spans).headers(), [(TRACEPARENT, HeaderValue::from_static(GOOD))]);
        assert!(steps.end(Side::Server, false, || panic!("nothing is recorded")).is_empty());
        assert!(TraceSteps::begin(&RequestHeaders::default(), None, &spans, epoch).headers().is_empty());
    }

    #[test]
    fn the_clients_sampling_decision_comes_before_the_rate() {
        let spans = Spans::default();
        let sampled = |headers: &RequestHeaders, rate| {
            let mut steps = TraceSteps::begin(headers, Some(rate), &spans, epoch);
            steps.decide(|| true);
            steps.recorder.is_some()
        };
        assert!(sampled(&headers(&[GOOD]), 0.0));
        assert!(!sampled(&headers(&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"]), 1.0));
        let without = RequestHeaders::default();
        let count = |rate| (0..10_000).filter(|_| sampled(&without, rate)).count();
        assert_eq!((count(0.0), count(1.0)), (0, 10_000));
        assert!((800..1200).contains(&count(0.1)), "{}", count(0.1));
    }

    #[test]
    fn a_sampling_flag_needs_a_client_that_may_set_it() {
        let spans = Spans::default();
        let ended = |rate, may: Option<bool>| {
            let mut steps = TraceSteps::begin(&headers(&[GOOD]), Some(rate), &spans, epoch);
            steps.step("one");
            may.into_iter().for_each(|may| steps.decide(|| may));
            let flag = steps.headers()[0].1.to_str().unwrap().ends_with("-01");
            (steps.end(Side::Server, false, || ("all".into(), Vec::new())).len(), flag)
        };
        assert_eq!(ended(0.0, Some(true)), (2, true));
        assert_eq!(ended(0.0, Some(false)), (0, false), "the next process gets no flag either");
        assert_eq!(ended(0.0, None).0, 0, "an unknown client decides nothing");
        assert_eq!(ended(1.0, Some(false)), (2, true), "it is sampled by the share");
        assert_eq!(ended(1.0, None).0, 2);
    }

    #[test]
    fn steps_are_children_of_the_span_and_have_different_ids() {
        let spans = Spans::default();
        let mut steps = TraceSteps::begin(&headers(&[GOOD]), Some(0.0), &spans, epoch);
        steps.decide(|| true);
        steps.step("one");
        steps.client_step("two");
        steps.attribute("status", || TraceAttribute::Number(200));
        let sent = steps.headers();
        let all = steps.end(Side::Server, true, || ("all".into(), Vec::new()));
        assert_eq!(all.iter().map(|span| &*span.name).collect::<Vec<_>>(), ["one", "two", "all"]);
        let parent = &all[2];
        assert_eq!((parent.parent, parent.parent_is_remote, parent.failed), (Some(0x00f0_67aa_0ba9_02b7), true, true));
        assert!(all[..2].iter().all(|span| span.parent == Some(parent.context.span) && !span.parent_is_remote));
        assert_ne!(all[0].context.span, all[1].context.span);
        assert_eq!(sent[0].1, all[1].context.header().unwrap());
        assert_eq!(all[1].attributes, [("status", TraceAttribute::Number(200))]);
    }
}

//! Where a request stands in a trace that others began (W3C Trace Context), and what is recorded of its steps.
//!
//! A room of its own because every floor may add a step and none may pay for it: nothing is recorded, and nothing
//! allocated, unless this request is sampled. What is recorded are words of ours, configured names and numbers; no
//! header's value, id, path or body has a way in. Sending it away is not its business.

use crate::headers::Headers;
use http::{HeaderName, HeaderValue};
use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Names a trace and a span in it.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What others want to know again, not ours to read.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

const SAMPLED: u8 = 1;

/// A place in a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: u128,
    /// The span in it.
    pub span: u64,
    flags: u8,
    state: Option<HeaderValue>,
}

impl Context {
    /// Whether its spans are wanted.
    #[must_use]
    pub fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// What a request's headers say, if they say it well (W3C Trace Context, section 3.2).
    #[must_use]
    pub fn of(headers: &Headers) -> Option<Self> {
        let mut all = headers.get_all("traceparent");
        let (Some(value), None) = (all.next(), all.next()) else { return None };
        let (trace, span, flags) = read(value)?;
        let state = headers.get("tracestate").and_then(|state| HeaderValue::from_bytes(state).ok());
        Some(Self { trace, span, flags, state })
    }

    fn at(&self, span: u64) -> Self {
        Self { span, ..self.clone() }
    }

    fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&format!("00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)).ok()
    }
}

/// `version-trace-span-flags`; a later version may have more behind that.
fn read(value: &[u8]) -> Option<(u128, u64, u8)> {
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

/// Which side of a request a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Neither.
    Inside,
    /// It answers.
    Server,
    /// It asks.
    Client,
}

/// Something known of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A word of ours.
    Word(&'static str),
    /// A name from the configuration, or an id that Weir gave.
    Name(Arc<str>),
    /// A number.
    Number(i64),
}

/// One span, ended.
#[derive(Debug, Clone)]
pub struct Span {
    /// Where it is.
    pub at: Context,
    /// The span that it is a part of.
    pub parent: Option<u64>,
    /// That one is somebody else's.
    pub remote: bool,
    /// What was done.
    pub name: Cow<'static, str>,
    /// Its side.
    pub side: Side,
    /// When it began.
    pub begun: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What is known of it.
    pub facts: Vec<(&'static str, Fact)>,
    /// What else it has to do with.
    pub links: Vec<Context>,
    /// Whether it failed.
    pub failed: bool,
}

/// A span that goes on, and its steps one after another.
#[derive(Debug, Clone)]
struct Recorder {
    clock: fn() -> SystemTime,
    whole: Span,
    steps: Vec<Span>,
}

/// A request's, or a call's, place in a trace and the steps it takes.
#[derive(Debug, Clone, Default)]
pub struct Steps {
    /// Ours if `own`, else as it came.
    context: Option<Context>,
    own: bool,
    /// What tells the time, where spans are wanted.
    clock: Option<fn() -> SystemTime>,
    recorder: Option<Box<Recorder>>,
}

impl Steps {
    /// Of a request with these headers. Without a `rate` nothing is traced here, and what came is only passed on. A
    /// decision that came is heeded; else this share of requests is sampled.
    #[must_use]
    pub fn begin(headers: &Headers, rate: Option<f64>, spans: &Spans, clock: fn() -> SystemTime) -> Self {
        let came = Context::of(headers);
        let Some(rate) = rate else { return Self { context: came, ..Self::default() } };
        let parent = came.as_ref().map(|came| came.span);
        let context = match came {
            Some(came) => came.at(spans.id()),
            None => {
                let trace = u128::from(spans.id()) << 64 | u128::from(spans.id());
                // Its 53 highest bits, as a number from 0 to 1.
                let share = (trace >> 75) as f64 / (1_u64 << 53) as f64;
                Context { trace, span: spans.id(), flags: u8::from(share < rate), state: None }
            }
        };
        Self::recording(context, parent, parent.is_some(), clock)
    }

    fn recording(context: Context, parent: Option<u64>, remote: bool, clock: fn() -> SystemTime) -> Self {
        let clock = Some(clock).filter(|_| context.sampled());
        let recorder = clock.map(|clock| {
            let whole = Span::begin(context.clone(), parent, remote, Cow::Borrowed(""), clock());
            Box::new(Recorder { clock, whole, steps: Vec::new() })
        });
        Self { context: Some(context), own: true, clock, recorder }
    }

    /// Of a call that this request starts, and that may outlive it.
    #[must_use]
    pub fn call(&self, spans: &Spans) -> Self {
        match (&self.context, self.clock) {
            (Some(context), Some(clock)) => Self::recording(context.at(spans.id()), Some(context.span), false, clock),
            _ => self.part(),
        }
    }

    /// Of a part of this request that takes no steps of its own, but may start calls.
    #[must_use]
    pub fn part(&self) -> Self {
        Self { context: self.context.clone(), own: self.own, clock: self.clock, recorder: None }
    }

    /// Where it is, for those who share what it does.
    #[must_use]
    pub fn context(&self) -> Option<&Context> {
        self.context.as_ref().filter(|_| self.own)
    }

    /// The trace, as people write it.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        self.context.as_ref().map(|context| format!("{:032x}", context.trace))
    }

    /// The next step begins, and the one before it ends.
    pub fn step(&mut self, name: &'static str) {
        if let Some(recorder) = &mut self.recorder {
            recorder.step(name, Side::Inside);
        }
    }

    /// Likewise: another process is asked.
    pub fn ask(&mut self, name: &'static str) {
        if let Some(recorder) = &mut self.recorder {
            recorder.step(name, Side::Client);
        }
    }

    /// The step at hand is known to be this.
    pub fn fact(&mut self, name: &'static str, fact: impl FnOnce() -> Fact) {
        if let Some(step) = self.recorder.as_mut().and_then(|recorder| recorder.steps.last_mut()) {
            step.facts.push((name, fact()));
        }
    }

    /// The step at hand failed.
    pub fn failed(&mut self) {
        if let Some(step) = self.recorder.as_mut().and_then(|recorder| recorder.steps.last_mut()) {
            step.failed = true;
        }
    }

    /// The step at hand waited for what another did.
    pub fn link(&mut self, to: &Context) {
        if let Some(step) = self.recorder.as_mut().and_then(|recorder| recorder.steps.last_mut()) {
            step.links.push(to.clone());
        }
    }

    /// What the next process is told: the step at hand as its parent; what came, where nothing is traced here.
    #[must_use]
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let Some(context) = &self.context else { return Vec::new() };
        let step = self.recorder.as_ref().and_then(|recorder| recorder.steps.last());
        let parent = step.map_or(context, |step| &step.at).header().map(|value| (TRACEPARENT, value));
        let state = context.state.clone().map(|state| (TRACESTATE, state));
        // Without the one the other means nothing.
        parent.into_iter().chain(state).collect()
    }

    /// It is over: its spans, if they are wanted.
    pub fn end(
        &mut self,
        side: Side,
        failed: bool,
        named: impl FnOnce() -> (Cow<'static, str>, Vec<(&'static str, Fact)>),
    ) -> Vec<Span> {
        let Some(recorder) = self.recorder.take() else { return Vec::new() };
        let Recorder { clock, mut whole, mut steps } = *recorder;
        let now = clock();
        if let Some(last) = steps.last_mut() {
            last.ended = now;
        }
        (whole.name, whole.facts) = named();
        (whole.side, whole.failed, whole.ended) = (side, failed, now);
        steps.push(whole);
        steps
    }
}

impl Recorder {
    fn step(&mut self, name: &'static str, side: Side) {
        let now = (self.clock)();
        if let Some(last) = self.steps.last_mut() {
            last.ended = now;
        }
        // Apart from every other by how many there were before it.
        let id = mixed(self.whole.at.span.wrapping_add((self.steps.len() as u64 + 1).wrapping_mul(GOLDEN)));
        let parent = Some(self.whole.at.span);
        let mut step = Span::begin(self.whole.at.at(id), parent, false, Cow::Borrowed(name), now);
        step.side = side;
        self.steps.push(step);
    }
}

impl Span {
    fn begin(at: Context, parent: Option<u64>, remote: bool, name: Cow<'static, str>, now: SystemTime) -> Self {
        let (facts, links) = (Vec::new(), Vec::new());
        Self { at, parent, remote, name, side: Side::Inside, begun: now, ended: now, facts, links, failed: false }
    }
}

/// Takes spans that have ended.
pub type Sink = Box<dyn Fn(Vec<Span>) + Send + Sync>;

/// Where ids come from and spans go.
pub struct Spans {
    next: AtomicU64,
    sink: OnceLock<Sink>,
}

/// Steps through all numbers, far apart from each other (splitmix64).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // 0 is no id.
    (z ^ (z >> 31)).max(1)
}

impl Default for Spans {
    /// Ids begin at a random number, so that no two processes make the same.
    fn default() -> Self {
        Self { next: AtomicU64::new(RandomState::new().hash_one(GOLDEN)), sink: OnceLock::new() }
    }
}

impl Spans {
    /// Where spans go from now on; the first that is said holds.
    pub fn send_to(&self, sink: Sink) {
        let _ = self.sink.set(sink);
    }

    fn id(&self) -> u64 {
        mixed(self.next.fetch_add(GOLDEN, Ordering::Relaxed))
    }

    /// Sends spans away.
    pub fn emit(&self, spans: Vec<Span>) {
        if let Some(sink) = self.sink.get().filter(|_| !spans.is_empty()) {
            sink(spans);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[&'static str]) -> Headers {
        all.iter().map(|value| ("traceparent", value.as_bytes())).collect()
    }

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn then() -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    #[test]
    fn a_traceparent_is_read_as_the_recommendation_says() {
        let read = Context::of(&headers(&[GOOD])).unwrap();
        assert_eq!((read.trace, read.span), (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7));
        assert!(read.sampled());
        assert_eq!(read.header().unwrap(), GOOD);
        for good in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert!(Context::of(&headers(&[good])).is_some(), "{good}");
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
            assert_eq!(Context::of(&headers(&[wrong])), None, "{wrong}");
        }
        assert_eq!(Context::of(&headers(&[GOOD, GOOD])), None);
    }

    #[test]
    fn without_a_rate_what_came_is_passed_on_and_nothing_is_recorded() {
        let spans = Spans::default();
        let mut steps = Steps::begin(&headers(&[GOOD]), None, &spans, then);
        steps.step("one");
        assert_eq!(steps.call(&spans).headers(), [(TRACEPARENT, HeaderValue::from_static(GOOD))]);
        assert!(steps.end(Side::Server, false, || panic!("it is not asked for")).is_empty());
        assert!(Steps::begin(&Headers::default(), None, &spans, then).headers().is_empty());
    }

    #[test]
    fn a_decision_that_came_is_heeded_and_else_the_share_is_kept() {
        let spans = Spans::default();
        let sampled = |headers: &Headers, rate| Steps::begin(headers, Some(rate), &spans, then).recorder.is_some();
        assert!(sampled(&headers(&[GOOD]), 0.0));
        assert!(!sampled(&headers(&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"]), 1.0));
        let none = Headers::default();
        let count = |rate| (0..10_000).filter(|_| sampled(&none, rate)).count();
        assert_eq!((count(0.0), count(1.0)), (0, 10_000));
        assert!((800..1200).contains(&count(0.1)), "{}", count(0.1));
    }

    #[test]
    fn steps_are_parts_of_the_whole_and_ids_are_all_different() {
        let spans = Spans::default();
        let mut steps = Steps::begin(&headers(&[GOOD]), Some(0.0), &spans, then);
        steps.step("one");
        steps.ask("two");
        steps.fact("status", || Fact::Number(200));
        let told = steps.headers();
        let all = steps.end(Side::Server, true, || ("all".into(), Vec::new()));
        assert_eq!(all.iter().map(|span| &*span.name).collect::<Vec<_>>(), ["one", "two", "all"]);
        let whole = &all[2];
        assert_eq!((whole.parent, whole.remote, whole.failed), (Some(0x00f0_67aa_0ba9_02b7), true, true));
        assert!(all[..2].iter().all(|span| span.parent == Some(whole.at.span) && !span.remote));
        assert_ne!(all[0].at.span, all[1].at.span);
        assert_eq!(told[0].1, all[1].at.header().unwrap());
        assert_eq!(all[1].facts, [("status", Fact::Number(200))]);
    }
}

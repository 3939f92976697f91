//! `weir-sim load`: sends mixed requests to a gateway at a limited rate.
//!
//! Each request follows from its number: most repeat a few paths, as people do; some are rare, and some have no session. At
//! regular intervals a request to each provider avoids the cache, so that an outage of any of them shows soon. It prints every ten seconds how many responses came with each status.

use crate::sync::lock;
use crate::world::{EXAMPLE_PATHS, pseudo_random};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
const MAX_CONCURRENT_REQUESTS: usize = 64;

#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Arguments {
    /// The gateway, as http://HOST:PORT
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    target: Uri,
    /// The client's key
    #[arg(long, default_value = "weir-demo-key")]
    key: String,
    /// Requests per second
    #[arg(long, default_value = "5")]
    rate: NonZeroU32,
    /// Percentage of requests with `Cache-Control: no-cache`
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(..=100))]
    no_cache: u64,
    /// Use HTTP/2 with prior knowledge
    #[arg(long)]
    http2: bool,
    /// Exit after this many seconds; 0: run until a signal ends the process
    #[arg(long, default_value_t = 0)]
    seconds: u64,
}

/// The number of responses by status; requests without a response count as `broken` or `timeout`.
type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

/// The highest rate, in requests per second, at which missed ticks are skipped, so that a paused gateway gets no burst
/// afterwards. At higher rates the timer is too coarse for single requests: missed ticks are caught up in small groups.
const MAX_RATE_WITHOUT_BURSTS: u32 = 1000;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let authority = arguments.target.authority().ok_or("--target must be http://HOST:PORT")?.to_string();
    let client = Client::builder(TokioExecutor::new()).http2_only(arguments.http2).build_http::<Empty<Bytes>>();
    let (counts, slots) = (Counts::default(), Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS)));
    let (started, mut last_report) = (Instant::now(), Instant::now());
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / arguments.rate.get());
    if arguments.rate.get() <= MAX_RATE_WITHOUT_BURSTS {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    for number in 0.. {
        ticks.tick().await;
        if arguments.seconds > 0 && started.elapsed() >= Duration::from_secs(arguments.seconds) {
            break;
        }
        let slot = slots.clone().acquire_owned().await?;
        let uncached = uncached_path(number);
        let no_cache = uncached.is_some() || pseudo_random(!number) % 100 < arguments.no_cache;
        let path = uncached.map_or_else(|| path(number), str::to_owned);
        let request = Request::get(format!("http://{authority}{path}")).header("x-api-key", &arguments.key);
        let request = if no_cache { request.header("cache-control", "no-cache") } else { request };
        let request = request.body(Empty::<Bytes>::new())?;
        let (client, counts_of_task) = (client.clone(), counts.clone());
        tokio::spawn(async move {
            let outcome = match tokio::time::timeout(REQUEST_TIMEOUT, send(&client, request)).await {
                Ok(Ok(status)) => status.to_string(),
                Ok(Err(_)) => "broken".into(),
                Err(_) => "timeout".into(),
            };
            *lock(&counts_of_task).entry(outcome).or_insert(0) += 1;
            drop(slot);
        });
        if last_report.elapsed() >= REPORT_INTERVAL {
            report(&counts)?;
            last_report = Instant::now();
        }
    }
    // All slots are free when all requests have ended.
    let _ = slots.acquire_many(u32::try_from(MAX_CONCURRENT_REQUESTS)?).await?;
    report(&counts)?;
    Ok(())
}

/// Sends a request, reads the response to its end and returns its status.
async fn send(
    client: &Client<HttpConnector, Empty<Bytes>>,
    request: Request<Empty<Bytes>>,
) -> Result<u16, Box<dyn Error + Send + Sync>> {
    let response = client.request(request).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    Ok(status)
}

/// Returns the path of a request that avoids the cache: one to each provider in a fixed number of requests.
fn uncached_path(number: u64) -> Option<&'static str> {
    match (number % 18, number % 36) {
        // Its quota is the smallest.
        (_, 0) => Some(EXAMPLE_PATHS[0]),
        (6, _) => Some(EXAMPLE_PATHS[1]),
        (12, _) => Some(EXAMPLE_PATHS[2]),
        _ => None,
    }
}

/// Returns the path and query of the request with this number.
fn path(number: u64) -> String {
    let random = pseudo_random(number);
    let (kind, variant) = (random % 100, (random >> 32) as usize);
    match kind {
        0..50 => EXAMPLE_PATHS[variant % EXAMPLE_PATHS.len()].to_owned(),
        50..65 => format!("/v1/sessions/vectara:agt_load_1:ase_agt_load_1_{}", variant % 40 + 1),
        65..75 => format!("/vectara/v2/agents/agt_load_2/sessions/ase_agt_load_2_{}", variant % 20 + 1),
        75..85 => format!("/v1/agents/agt_load_{}/sessions?limit=20", variant % 10),
        85..90 => format!("/v1/sessions?agent=agt_load_{}&provider=agenthuman&limit=10", variant % 3),
        90..93 => format!("/v1/sessions/vectara:agt_load_1:ase_missing_{}", variant % 5),
        // No provider file describes the parameter `x`: the gateway passes the request through.
        93..95 => format!("/vectara/v2/agents/agt_load_2/sessions/ase_agt_load_2_{}?x=1", variant % 20 + 1),
        _ => EXAMPLE_PATHS[1].to_owned(),
    }
}

/// Prints and resets the counts: `load STATUS=NUMBER …`.
fn report(counts: &Counts) -> std::io::Result<()> {
    let counts = std::mem::take(&mut *lock(counts));
    let counts: Vec<String> = counts.iter().map(|(outcome, number)| format!("{outcome}={number}")).collect();
    let mut out = std::io::stdout();
    writeln!(out, "load {}", counts.join(" "))?;
    out.flush()
}

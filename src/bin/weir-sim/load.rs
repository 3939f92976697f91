//! `weir-sim load`: a client that asks a gateway for this and that, at a bounded rate.
//!
//! What it asks follows from the request's number: mostly few things again and again, as people do,
//! some that are rare, some that do not exist. It says every ten seconds what it got.

use crate::world::{TRY, mix};
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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

/// No request takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it says what it got.
const SAY: Duration = Duration::from_secs(10);
/// Requests under way at the same time; beyond them it waits.
const MOST: usize = 64;

#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Arguments {
    /// The gateway, as http://HOST:PORT
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    target: Uri,
    /// The client's key
    #[arg(long, default_value = "weir-demo-key")]
    key: String,
    /// Requests a second
    #[arg(long, default_value = "5")]
    rate: NonZeroU32,
    /// Of a hundred requests, how many want the provider to be asked
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(..=100))]
    no_cache: u64,
    /// Over HTTP/2, by prior knowledge
    #[arg(long)]
    http2: bool,
    /// End after so many seconds; 0: when told to
    #[arg(long, default_value_t = 0)]
    seconds: u64,
}

/// Answers by status, or by what went wrong.
type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

/// Beyond so many a second the clock ticks too coarsely for each: they leave a few at a time, and what is missed is made
/// up for. Below it is not: who was away is not met by all that it missed.
const SMOOTH: u32 = 1000;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let authority = arguments.target.authority().ok_or("--target needs to be http://HOST:PORT")?.to_string();
    let client = Client::builder(TokioExecutor::new()).http2_only(arguments.http2).build_http::<Empty<Bytes>>();
    let (counts, places) = (Counts::default(), Arc::new(Semaphore::new(MOST)));
    let (begun, mut said) = (Instant::now(), Instant::now());
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / arguments.rate.get());
    if arguments.rate.get() <= SMOOTH {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    for number in 0.. {
        ticks.tick().await;
        if arguments.seconds > 0 && begun.elapsed() >= Duration::from_secs(arguments.seconds) {
            break;
        }
        let place = places.clone().acquire_owned().await?;
        let (path, no_cache) = (what(number), mix(!number) % 100 < arguments.no_cache);
        let request = Request::get(format!("http://{authority}{path}")).header("x-api-key", &arguments.key);
        let request = if no_cache { request.header("cache-control", "no-cache") } else { request };
        let request = request.body(Empty::<Bytes>::new())?;
        let (client, counted) = (client.clone(), counts.clone());
        tokio::spawn(async move {
            let got = match tokio::time::timeout(PATIENCE, ask(&client, request)).await {
                Ok(Ok(status)) => status.to_string(),
                Ok(Err(_)) => "broken".into(),
                Err(_) => "timeout".into(),
            };
            *counted.lock().unwrap_or_else(PoisonError::into_inner).entry(got).or_insert(0) += 1;
            drop(place);
        });
        if said.elapsed() >= SAY {
            say(&counts)?;
            said = Instant::now();
        }
    }
    // Those under way have come back when all places are free.
    let _ = places.acquire_many(u32::try_from(MOST)?).await?;
    say(&counts)?;
    Ok(())
}

type Gateway = Client<HttpConnector, Empty<Bytes>>;

async fn ask(gateway: &Gateway, request: Request<Empty<Bytes>>) -> Result<u16, Box<dyn Error + Send + Sync>> {
    let answer = gateway.request(request).await?;
    let status = answer.status().as_u16();
    answer.into_body().collect().await?;
    Ok(status)
}

/// What the request of this number asks for.
fn what(number: u64) -> String {
    let random = mix(number);
    let (kind, of) = (random % 100, (random >> 32) as usize);
    match kind {
        0..50 => TRY[of % TRY.len()].to_owned(),
        50..65 => format!("/v1/sessions/vectara:agt_load_1:ase_agt_load_1_{}", of % 40 + 1),
        65..75 => format!("/vectara/v2/agents/agt_load_2/sessions/ase_agt_load_2_{}", of % 20 + 1),
        75..85 => format!("/v1/agents/agt_load_{}/sessions?limit=20", of % 10),
        85..90 => format!("/v1/sessions?agent=agt_load_{}&provider=agenthuman&limit=10", of % 3),
        90..93 => format!("/v1/sessions/vectara:agt_load_1:ase_missing_{}", of % 5),
        // With a query that no file describes: passed on.
        93..95 => format!("/vectara/v2/agents/agt_load_2/sessions/ase_agt_load_2_{}?x=1", of % 20 + 1),
        _ => TRY[1].to_owned(),
    }
}

fn say(counts: &Counts) -> std::io::Result<()> {
    let counts = std::mem::take(&mut *counts.lock().unwrap_or_else(PoisonError::into_inner));
    let each: Vec<String> = counts.iter().map(|(what, times)| format!("{what}={times}")).collect();
    let mut out = std::io::stdout();
    writeln!(out, "load {}", each.join(" "))?;
    out.flush()
}

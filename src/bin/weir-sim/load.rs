//! `weir-sim load`: a client that asks a gateway for this and that, at a bounded rate.
//!
//! What it asks follows from the request's number: mostly few things again and again, as people do,
//! some that are rare, some that do not exist. It says every ten seconds what it got.

use crate::world::{TRY, mix};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

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
    /// End after so many seconds; 0: when told to
    #[arg(long, default_value_t = 0)]
    seconds: u64,
}

/// Answers by status, or by what went wrong.
type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

/// Connections on which nothing is asked just now.
type Idle = Arc<Mutex<Vec<SendRequest<Empty<Bytes>>>>>;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let authority = arguments.target.authority().ok_or("--target needs to be http://HOST:PORT")?.to_string();
    let address = if authority.contains(':') { authority.clone() } else { format!("{authority}:80") };
    let (counts, idle, places) = (Counts::default(), Idle::default(), Arc::new(Semaphore::new(MOST)));
    let (begun, mut said) = (Instant::now(), Instant::now());
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / arguments.rate.get());
    for number in 0.. {
        ticks.tick().await;
        if arguments.seconds > 0 && begun.elapsed() >= Duration::from_secs(arguments.seconds) {
            break;
        }
        let place = places.clone().acquire_owned().await?;
        let (path, no_cache) = what(number);
        let request = Request::get(path).header("host", &authority).header("x-api-key", &arguments.key);
        let request = if no_cache { request.header("cache-control", "no-cache") } else { request };
        let request = request.body(Empty::<Bytes>::new())?;
        let (address, idle, counted) = (address.clone(), idle.clone(), counts.clone());
        tokio::spawn(async move {
            let got = match tokio::time::timeout(PATIENCE, ask(&address, &idle, request)).await {
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

async fn ask(address: &str, idle: &Idle, request: Request<Empty<Bytes>>) -> Result<u16, Box<dyn Error + Send + Sync>> {
    let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut sender = match kept.filter(|sender| !sender.is_closed()) {
        Some(kept) => kept,
        None => {
            let stream = TcpStream::connect(address).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender
        }
    };
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    answer.into_body().collect().await?;
    idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    Ok(status)
}

/// What the request of this number asks for, and whether it wants the provider to be asked.
fn what(number: u64) -> (String, bool) {
    let random = mix(number);
    let (kind, of) = (random % 100, (random >> 32) as usize);
    let path = match kind {
        0..50 => TRY[of % TRY.len()].to_owned(),
        50..65 => format!("/v1/sessions/vectara:agt_load_1:ase_agt_load_1_{}", of % 40 + 1),
        65..75 => format!("/vectara/v2/agents/agt_load_2/sessions/ase_agt_load_2_{}", of % 20 + 1),
        75..85 => format!("/v1/agents/agt_load_{}/sessions?limit=20", of % 10),
        85..90 => format!("/v1/sessions?agent=agt_load_{}&provider=agenthuman&limit=10", of % 3),
        90..95 => format!("/v1/sessions/vectara:agt_load_1:ase_missing_{}", of % 5),
        _ => TRY[1].to_owned(),
    };
    (path, kind >= 97)
}

fn say(counts: &Counts) -> std::io::Result<()> {
    let counts = std::mem::take(&mut *counts.lock().unwrap_or_else(PoisonError::into_inner));
    let each: Vec<String> = counts.iter().map(|(what, times)| format!("{what}={times}")).collect();
    let mut out = std::io::stdout();
    writeln!(out, "load {}", each.join(" "))?;
    out.flush()
}

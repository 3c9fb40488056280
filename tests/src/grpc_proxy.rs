//! A gRPC proxy on a unix socket, between edgecore and containerd: passes every call on and does
//! to chosen calls what a failing daemon does. It knows calls by their method path and by bytes in
//! the request (a pod's uid), never by their messages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this gRPC status; the daemon never hears of it.
    Error(u16),
    /// The connection breaks before the daemon heard of the call.
    CutBefore,
    /// The daemon executes the call; the connection breaks before its answer arrives.
    CutAfter,
    /// No answer, ever; the daemon never hears of it.
    Hang,
    /// Passed on after a while.
    Delay(Duration),
}

/// Which calls, how often, what.
#[derive(Clone, Debug)]
pub struct Rule {
    /// End of the method's path, e.g. `Tasks/Create`.
    pub method: String,
    /// Bytes that the request must hold; none: any request.
    pub needle: String,
    pub fault: Fault,
    pub times: u32,
}

/// A call that is held at its step until [`Held::let_go`] or drop.
#[derive(Debug)]
pub struct Held {
    /// What was called.
    pub method: String,
    go: oneshot::Sender<()>,
}

impl Held {
    pub fn let_go(self) {
        // The call may have been given up meanwhile.
        let _ = self.go.send(());
    }
}

/// Where a call is to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The daemon has not heard of it.
    Before,
    /// The daemon has executed it; nobody knows yet.
    After,
}

struct Trap {
    needle: String,
    /// Calls with the needle that pass before.
    skip: u32,
    side: Side,
    caught: oneshot::Sender<Held>,
}

#[derive(Default)]
struct State {
    rules: Vec<(Rule, Arc<Mutex<u32>>)>,
    trap: Option<Trap>,
    seen: BTreeMap<String, u64>,
}

struct Shared {
    upstream: PathBuf,
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault_for(&self, path: &str, body: &[u8]) -> Option<Fault> {
        let mut state = self.lock();
        let at = state.rules.iter().position(|(rule, _)| {
            path.ends_with(&rule.method) && holds(body, rule.needle.as_bytes())
        })?;
        let (rule, hits) = &mut state.rules[at];
        *hits.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let fault = rule.fault;
        rule.times -= 1;
        if rule.times == 0 {
            state.rules.remove(at);
        }
        Some(fault)
    }

    /// Takes the trap if this call is the one that it waits for.
    fn trap_for(&self, body: &[u8]) -> Option<Trap> {
        let mut state = self.lock();
        let trap = state.trap.as_mut()?;
        if !holds(body, trap.needle.as_bytes()) {
            return None;
        }
        if trap.skip > 0 {
            trap.skip -= 1;
            return None;
        }
        state.trap.take()
    }
}

fn holds(body: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || body.windows(needle.len()).any(|window| window == needle)
}

/// The proxy; stops when dropped.
pub struct GrpcProxy {
    address: PathBuf,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl GrpcProxy {
    /// Listens on `address` and passes on to `upstream`, which may be absent at times.
    pub fn start(address: &Path, upstream: &Path) -> Result<Self> {
        let listener = UnixListener::bind(address)
            .with_context(|| format!("cannot listen on {}", address.display()))?;
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            state: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            address: address.to_owned(),
            shared,
            task,
        })
    }

    pub fn address(&self) -> &Path {
        &self.address
    }

    /// Adds a rule; the counter says how often it has applied.
    pub fn inject(&self, rule: Rule) -> Arc<Mutex<u32>> {
        let hits = Arc::new(Mutex::new(0));
        self.shared.lock().rules.push((rule, Arc::clone(&hits)));
        hits
    }

    /// Holds the call with `needle` in its request that comes after `skip` others.
    pub fn trap(&self, needle: &str, skip: u32, side: Side) -> oneshot::Receiver<Held> {
        let (caught, receiver) = oneshot::channel();
        self.shared.lock().trap = Some(Trap {
            needle: needle.to_owned(),
            skip,
            side,
            caught,
        });
        receiver
    }

    /// No fault and no trap from now on.
    pub fn calm(&self) {
        let mut state = self.shared.lock();
        state.rules.clear();
        state.trap = None;
    }

    /// Calls seen, by method (`Tasks/Create`).
    pub fn seen(&self) -> BTreeMap<String, u64> {
        self.shared.lock().seen.clone()
    }
}

impl Drop for GrpcProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        // Nobody listens behind us: the client sees a connection that ends, as with a dead daemon.
        let Ok(daemon) = UnixStream::connect(&shared.upstream).await else {
            continue;
        };
        connections.spawn(serve(client, daemon, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(client: UnixStream, daemon: UnixStream, shared: Arc<Shared>) {
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(daemon));
    let Ok((sender, upstream)) = handshake.await else {
        return;
    };
    let cut = CancellationToken::new();
    let service = hyper::service::service_fn(|request| {
        pass(request, sender.clone(), Arc::clone(&shared), cut.clone())
    });
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(client), service);
    // Whichever ends first takes the other along: that is what "the connection" is to the client.
    tokio::select! {
        () = cut.cancelled() => {}
        _ = served => {}
        _ = upstream => {}
    }
}

type Body = BoxBody<Bytes, hyper::Error>;

/// `Tasks/Create` of `/containerd.services.tasks.v1.Tasks/Create`.
fn short(path: &str) -> String {
    path.rsplit('.').next().unwrap_or(path).to_owned()
}

async fn pass(
    request: Request<Incoming>,
    mut sender: SendRequest<Body>,
    shared: Arc<Shared>,
    cut: CancellationToken,
) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    *shared.lock().seen.entry(short(&path)).or_default() += 1;
    if path.ends_with("Content/Write") {
        // A conversation, not a question: passed on as it comes.
        let answer = sender.send_request(request.map(BodyExt::boxed)).await?;
        return Ok(answer.map(BodyExt::boxed));
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let fault = shared.fault_for(&path, &body);
    let trap = shared.trap_for(&body);
    match fault {
        None | Some(Fault::CutAfter) => {}
        Some(Fault::Error(code)) => return Ok(refusal(code)),
        Some(Fault::Hang) => return std::future::pending().await,
        // The delay is the fault.
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        Some(Fault::CutBefore) => {
            cut.cancel();
            return std::future::pending().await;
        }
    }
    let (before, after) = match trap {
        Some(trap) if trap.side == Side::Before => (Some(trap), None),
        other => (None, other),
    };
    spring(before, &path).await;
    let body = Full::new(body).map_err(|never| match never {}).boxed();
    let answer = sender.send_request(Request::from_parts(head, body)).await?;
    if after.is_none() && fault != Some(Fault::CutAfter) {
        return Ok(answer.map(BodyExt::boxed));
    }
    // Executed for certain only once the whole answer is here.
    let (head, body) = answer.into_parts();
    let collected = body.collect().await?;
    spring(after, &path).await;
    if fault == Some(Fault::CutAfter) {
        cut.cancel();
        return std::future::pending().await;
    }
    Ok(Response::from_parts(
        head,
        collected.map_err(|never| match never {}).boxed(),
    ))
}

async fn spring(trap: Option<Trap>, path: &str) {
    let Some(trap) = trap else {
        return;
    };
    let (go, gone) = oneshot::channel();
    let held = Held {
        method: short(path),
        go,
    };
    if trap.caught.send(held).is_ok() {
        // Dropped without a word counts as leave to go.
        let _ = gone.await;
    }
}

fn refusal(code: u16) -> Response<Body> {
    let empty = Full::new(Bytes::new())
        .map_err(|never| match never {})
        .boxed();
    let mut answer = Response::new(empty);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code));
    headers.insert("grpc-message", HeaderValue::from_static("injected"));
    answer
}

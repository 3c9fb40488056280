//! A registry inside the test: what OCI archives hold, over HTTP or HTTPS, with basic or token
//! authentication, and able to break in every way a test wants.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

/// `user:secret`
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";
pub(crate) const USER: &str = "user";
pub(crate) const PASSWORD: &str = "secret";
/// The refresh token that the token server takes instead.
pub(crate) const REFRESH: &str = "refresh-me";

/// What was asked for: path, and the first byte of the range.
pub(crate) type Asked = (String, Option<usize>);

/// How callers show who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Auth {
    Nobody,
    #[default]
    Basic,
    /// By a token server, which is the registry itself under `/token`.
    Token,
}

/// What a blob's transfer is to suffer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The connection is closed after so many bytes.
    Cut(usize),
    /// Nothing more comes after so many bytes, until the client hangs up.
    Stall(usize),
    /// Other bytes of the same length.
    Garble,
}

/// How the registry behaves.
#[derive(Clone, Default)]
pub(crate) struct Behaviour {
    pub(crate) auth: Auth,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    /// `Range` is passed over, as some proxies do.
    pub(crate) no_ranges: bool,
}

#[derive(Default)]
struct State {
    /// Content and media type.
    blobs: HashMap<String, (Vec<u8>, String)>,
    /// Digest by tag; `""` is every other tag.
    tags: HashMap<String, String>,
    asked: Vec<Asked>,
    faults: VecDeque<Fault>,
    /// Answer of everything, e.g. 503.
    status: Option<String>,
    blob_bytes: usize,
    tokens: u32,
    stalled: usize,
}

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    behaviour: Behaviour,
    address: SocketAddr,
    changed: Condvar,
}

impl Registry {
    /// Serves `archive`, over plain HTTP and with a password, for as long as the process lives.
    pub(crate) fn serve(archive: &Path) -> Self {
        let registry = Self::with(Behaviour::default());
        registry.add(archive);
        registry
    }

    /// An empty registry.
    pub(crate) fn with(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            behaviour,
            address,
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || connection(stream, &shared));
            }
        });
        Self { address, shared }
    }

    /// Adds what an OCI archive holds; every tag stands for its image.
    pub(crate) fn add(&self, archive: &Path) {
        let mut state = self.shared.state.lock().unwrap();
        let mut tar = tar::Archive::new(std::fs::File::open(archive).unwrap());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if path == "index.json" {
                let index: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                let digest = index["manifests"][0]["digest"].as_str().unwrap();
                state.tags.insert(String::new(), digest.to_owned());
            } else if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                let kind = "application/vnd.oci.image.manifest.v1+json".to_owned();
                state
                    .blobs
                    .insert(format!("sha256:{digest}"), (bytes, kind));
            }
        }
    }

    /// Adds one document or blob under its digest, and under `tag` if there is one.
    pub(crate) fn put(&self, bytes: &[u8], kind: &str, tag: Option<&str>) -> String {
        let digest = crate::oci::digest(bytes);
        let mut state = self.shared.state.lock().unwrap();
        let blob = (bytes.to_vec(), kind.to_owned());
        state.blobs.insert(digest.clone(), blob);
        if let Some(tag) = tag {
            state.tags.insert(tag.to_owned(), digest.clone());
        }
        digest
    }

    /// Breaks off the next long blob after `bytes`.
    pub(crate) fn cut_next(&self, bytes: usize) {
        self.fault(Fault::Cut(bytes));
    }

    /// What the next blob longer than a document suffers; several wait in line.
    pub(crate) fn fault(&self, fault: Fault) {
        self.shared.state.lock().unwrap().faults.push_back(fault);
    }

    /// Answers everything so, or well again.
    pub(crate) fn answer(&self, status: Option<&str>) {
        self.shared.state.lock().unwrap().status = status.map(str::to_owned);
    }

    /// What was asked for since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.state.lock().unwrap().asked)
    }

    /// Bytes of blobs sent so far, and tokens given.
    pub(crate) fn sent(&self) -> (usize, u32) {
        let state = self.shared.state.lock().unwrap();
        (state.blob_bytes, state.tokens)
    }

    /// Waits until a transfer stalls.
    pub(crate) fn until_stalled(&self) {
        let state = self.shared.state.lock().unwrap();
        let waited =
            self.shared
                .changed
                .wait_timeout_while(state, crate::world::PATIENCE, |state| state.stalled == 0);
        assert!(!waited.unwrap().1.timed_out(), "no transfer stalled");
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn connection(stream: TcpStream, shared: &Shared) {
    let mut socket = stream.try_clone().unwrap();
    let stream: Box<dyn Stream> = match &shared.behaviour.tls {
        None => Box::new(stream),
        Some(config) => {
            let session = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
            Box::new(rustls::StreamOwned::new(session, stream))
        }
    };
    // A client that hangs up ends it.
    let _ = answer(stream, shared);
    // What was not read when a socket is closed resets it, and the client may lose the answer, or the
    // alert of TLS, over its own next write.
    let _ = socket.shutdown(Shutdown::Write);
    let _ = socket.set_read_timeout(Some(crate::world::PATIENCE));
    let _ = std::io::copy(&mut socket, &mut std::io::sink());
}

struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: String,
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    Some(Request {
        method,
        path,
        headers,
        body,
    })
}

fn answer(stream: Box<dyn Stream>, shared: &Shared) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let request = read_request(&mut reader);
    let mut stream = reader.into_inner();
    let Some(request) = request else {
        // As Go's server answers TLS on a plain port.
        return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").ok();
    };
    let head = |stream: &mut dyn Stream, status: &str, more: &str, length: usize| {
        let text = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n"
        );
        stream.write_all(text.as_bytes()).ok()?;
        stream.flush().ok()
    };
    if request.path.starts_with("/token") {
        let given = token(&request, shared);
        let status = if given.is_some() {
            "200 OK"
        } else {
            "401 Unauthorized"
        };
        let body = given.unwrap_or_default();
        head(&mut stream, status, "", body.len())?;
        stream.write_all(body.as_bytes()).ok()?;
        return stream.flush().ok();
    }
    if let Some(challenge) = challenge(&request, shared) {
        return head(&mut stream, "401 Unauthorized", &challenge, 0);
    }
    if let Some(status) = shared.state.lock().ok()?.status.clone() {
        return head(&mut stream, &status, "", 0);
    }
    let path = request.path.split('?').next()?.to_owned();
    let name = path.rsplit('/').next()?;
    let is_blob = path.contains("/blobs/");
    let (found, fault) = {
        let mut state = shared.state.lock().ok()?;
        let digest = if name.starts_with("sha256:") {
            Some(name.to_owned())
        } else {
            state.tags.get(name).or_else(|| state.tags.get("")).cloned()
        };
        let found = digest.and_then(|d| state.blobs.get(&d).cloned().map(|blob| (d, blob)));
        let long = found
            .as_ref()
            .is_some_and(|(_, (body, _))| body.len() > 64 << 10);
        let fault = (is_blob && long)
            .then(|| state.faults.pop_front())
            .flatten();
        (found, fault)
    };
    let Some((digest, (mut body, kind))) = found else {
        return head(&mut stream, "404 Not Found", "", 0);
    };
    let from = request
        .headers
        .get("range")
        .filter(|_| !shared.behaviour.no_ranges)
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .split('-')
                .next()?
                .parse()
                .ok()
        });
    shared.state.lock().ok()?.asked.push((path.clone(), from));
    let more = if is_blob {
        "Content-Type: application/octet-stream\r\n".to_owned()
    } else {
        format!("Content-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\n")
    };
    if request.method == "HEAD" {
        return head(&mut stream, "200 OK", &more, body.len());
    }
    let whole = body.len();
    let start = from.unwrap_or(0).min(whole);
    let (status, more) = match from {
        None => ("200 OK", more),
        Some(from) => (
            "206 Partial Content",
            format!(
                "{more}Content-Range: bytes {from}-{}/{whole}\r\n",
                whole - 1
            ),
        ),
    };
    if matches!(fault, Some(Fault::Garble)) {
        for byte in &mut body {
            *byte = !*byte;
        }
    }
    let rest = &body[start..];
    head(&mut stream, status, &more, rest.len())?;
    let until = match fault {
        Some(Fault::Cut(bytes) | Fault::Stall(bytes)) => bytes.min(rest.len()),
        Some(Fault::Garble) | None => rest.len(),
    };
    stream.write_all(&rest[..until]).ok()?;
    stream.flush().ok()?;
    if is_blob {
        shared.state.lock().ok()?.blob_bytes += until;
    }
    if matches!(fault, Some(Fault::Stall(_))) {
        shared.state.lock().ok()?.stalled += 1;
        shared.changed.notify_all();
        // Ends when the client hangs up.
        let _ = stream.read(&mut [0]);
    }
    Some(())
}

/// The token server: the password or the refresh token buys a token.
fn token(request: &Request, shared: &Shared) -> Option<String> {
    let basic = request.headers.get("authorization").map(String::as_str) == Some(BASIC);
    let refreshed = request.method == "POST"
        && request.body.contains("grant_type=refresh_token")
        && request.body.contains(&format!("refresh_token={REFRESH}"));
    let text = format!("{}{}", request.path, request.body);
    let scoped = text.contains("service=test") && text.contains("scope=repository");
    if !(basic || refreshed) || !scoped {
        return None;
    }
    shared.state.lock().ok()?.tokens += 1;
    Some(r#"{"token":"golden","expires_in":300}"#.to_owned())
}

/// The header that sends the caller away, unless he may come in.
fn challenge(request: &Request, shared: &Shared) -> Option<String> {
    let given = request.headers.get("authorization").map(String::as_str);
    match shared.behaviour.auth {
        Auth::Nobody => None,
        Auth::Basic => {
            (given != Some(BASIC)).then(|| "WWW-Authenticate: Basic realm=\"test\"\r\n".to_owned())
        }
        Auth::Token => (given != Some("Bearer golden")).then(|| {
            let scheme = if shared.behaviour.tls.is_some() {
                "https"
            } else {
                "http"
            };
            format!(
                "WWW-Authenticate: Bearer realm=\"{scheme}://{}/token\",service=\"test\",\
                 scope=\"repository:team/app:pull\"\r\n",
                shared.address
            )
        }),
    }
}

//! A registry of one image: what an OCI archive holds, over plain HTTP with basic authentication,
//! able to break off a transfer.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// `user:secret`
const AUTHORIZATION: &str = "Basic dXNlcjpzZWNyZXQ=";
pub(crate) const USER: &str = "user";
pub(crate) const PASSWORD: &str = "secret";

/// What was asked for: path, and the first byte of the range.
pub(crate) type Asked = (String, Option<usize>);

#[derive(Default)]
struct State {
    blobs: HashMap<String, Vec<u8>>,
    manifest: String,
    asked: Vec<Asked>,
    /// The next blob longer than this is cut here.
    cut_at: Option<usize>,
}

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Registry {
    /// Serves `archive` for as long as the process lives.
    pub(crate) fn serve(archive: &Path) -> Self {
        let mut state = State::default();
        let mut tar = tar::Archive::new(std::fs::File::open(archive).unwrap());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if path == "index.json" {
                let index: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                let digest = index["manifests"][0]["digest"].as_str().unwrap();
                digest.clone_into(&mut state.manifest);
            } else if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                state.blobs.insert(format!("sha256:{digest}"), bytes);
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer(&stream, &shared));
            }
        });
        Self { address, state }
    }

    /// Breaks off the next long blob after `bytes`.
    pub(crate) fn cut_next(&self, bytes: usize) {
        self.state.lock().unwrap().cut_at = Some(bytes);
    }

    /// What was asked for since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

fn answer(mut stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request).ok()?;
    let path = request.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut head = |status: &str, more: &str, length: usize| {
        let text = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n"
        );
        stream.write_all(text.as_bytes()).ok()
    };
    if headers.get("authorization").map(String::as_str) != Some(AUTHORIZATION) {
        return head(
            "401 Unauthorized",
            "WWW-Authenticate: Basic realm=\"test\"\r\n",
            0,
        );
    }
    let name = path.rsplit('/').next()?;
    let (body, mut cut) = {
        let mut state = state.lock().ok()?;
        let digest = if path.contains("/manifests/") && !name.starts_with("sha256:") {
            state.manifest.clone()
        } else {
            name.to_owned()
        };
        let body = state.blobs.get(&digest).cloned();
        let length = body.as_ref().map_or(0, Vec::len);
        let cut = state
            .cut_at
            .filter(|cut| length > *cut && path.contains("/blobs/"));
        if cut.is_some() {
            state.cut_at = None;
        }
        (body, cut)
    };
    let Some(body) = body else {
        return head(
            if path == "/v2/" {
                "200 OK"
            } else {
                "404 Not Found"
            },
            "",
            0,
        );
    };
    let from = headers.get("range").and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .split('-')
            .next()?
            .parse::<usize>()
            .ok()
    });
    state.lock().ok()?.asked.push((path.clone(), from));
    let rest = &body[from.unwrap_or(0)..];
    let kind = if path.contains("/manifests/") {
        "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n"
    } else {
        "Content-Type: application/octet-stream\r\n"
    };
    let status = if from.is_some() {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    head(status, kind, rest.len())?;
    let until = cut.take().unwrap_or(rest.len()).min(rest.len());
    stream.write_all(&rest[..until]).ok()
}

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;

use futures_util::TryStreamExt;

use super::*;

#[tokio::test]
async fn skip_drops_exactly_the_offset() {
    let parts = ["abc", "def", "ghi"].map(|s| Ok(Bytes::from_static(s.as_bytes())));
    let rest: Vec<Bytes> = skip(stream::iter(parts).boxed(), 4)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(rest.concat(), b"efghi");
}

#[test]
fn ranges_are_read() {
    for (text, want) in [
        ("bytes 5-9/10", Some(5)),
        ("bytes 0-0/*", Some(0)),
        ("bytes */10", None),
        ("pages 1-2", None),
        ("", None),
    ] {
        assert_eq!(first_byte(text), want, "{text}");
    }
}

/// A host that answers every request with the same head, and remembers the requests.
struct Host {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Host {
    fn answering(answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&heard);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    request.push(byte[0]);
                }
                let request = String::from_utf8(request).unwrap().to_ascii_lowercase();
                let answer = answer(&request);
                shared.lock().unwrap().push(request);
                let text = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(text.as_bytes());
            }
        });
        Self { address, heard }
    }

    fn empty() -> Self {
        Self::answering(|_| "200 OK\r\nContent-Length: 0".to_owned())
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

/// A client whose endpoint has a header of its own, as `hosts.toml` gives.
fn client(registry: &Host, auth: RegistryAuth) -> Client {
    let mut endpoint = Endpoint::new(&registry.url(), false, true).unwrap();
    endpoint.headers = vec![("X-Key".to_owned(), "hush".to_owned())];
    Client::new(
        &Registries::default(),
        endpoint,
        "r.io",
        "team/app",
        &[auth],
        Arc::default(),
    )
    .unwrap()
}

fn password() -> RegistryAuth {
    RegistryAuth {
        username: "user".to_owned(),
        password: "secret".to_owned(),
        ..RegistryAuth::default()
    }
}

/// Refuses who brings no credentials, and sends everybody else on.
fn sends_on_to(place: String) -> Host {
    Host::answering(move |request| {
        if request.contains("authorization: basic") {
            format!("307 Temporary Redirect\r\nContent-Length: 0\r\nLocation: {place}")
        } else {
            "401 Unauthorized\r\nContent-Length: 0\r\nWWW-Authenticate: Basic realm=\"x\""
                .to_owned()
        }
    })
}

fn knows_nothing(request: &str) -> bool {
    !request.contains("x-key") && !request.contains("authorization") && !request.contains("hush")
}

#[tokio::test]
async fn a_redirect_to_another_host_takes_the_range_along_and_no_secret() {
    let store = Host::empty();
    let registry = sends_on_to(format!("{}/blob", store.url()));
    let client = client(&registry, password());
    drop(client.blob("sha256:00", 7).await.unwrap());
    let asked = registry.heard();
    assert!(asked.iter().all(|request| request.contains("x-key: hush")));
    let [stored] = &store.heard()[..] else {
        panic!("not asked once");
    };
    assert!(stored.starts_with("get /blob ") && stored.contains("range: bytes=7-"));
    assert!(knows_nothing(stored), "{stored}");
}

#[tokio::test]
async fn who_sends_back_from_another_host_gets_no_credentials_used() {
    let registry = Arc::new(Mutex::new(String::new()));
    let back = Arc::clone(&registry);
    let store = Host::answering(move |_| {
        let place = back.lock().unwrap();
        format!("302 Found\r\nContent-Length: 0\r\nLocation: {place}/v2/other/manifests/x")
    });
    let origin = sends_on_to(format!("{}/away", store.url()));
    *registry.lock().unwrap() = origin.url();
    let client = client(&origin, password());
    assert!(client.blob("sha256:00", 0).await.is_err());
    let asked = origin.heard();
    let returned: Vec<&String> = asked.iter().filter(|r| r.contains("/v2/other/")).collect();
    assert!(!returned.is_empty());
    assert!(returned.iter().all(|request| knows_nothing(request)));
}

#[tokio::test]
async fn redirects_end() {
    let host = Host::answering(|_| "302 Found\r\nContent-Length: 0\r\nLocation: /again".to_owned());
    let error = client(&host, password()).blob("sha256:00", 0).await;
    let error = error.err().unwrap().to_string();
    assert!(error.contains("redirects without end"), "{error}");
}

#[tokio::test]
async fn a_foreign_layers_host_learns_nothing() {
    let (registry, foreign) = (Host::empty(), Host::empty());
    let client = client(&registry, password());
    let url = format!("{}/layer", foreign.url());
    drop(client.foreign(&url, 0).await.unwrap());
    assert!(foreign.heard().iter().all(|request| knows_nothing(request)));
    assert!(client.foreign("file:///etc/shadow", 0).await.is_err());
}

#[tokio::test]
async fn a_token_server_is_not_told_the_registrys_header_and_its_redirects_get_no_token() {
    let thief = Host::empty();
    let place = thief.url();
    let server = Host::answering(move |_| {
        format!("307 Temporary Redirect\r\nContent-Length: 0\r\nLocation: {place}/steal")
    });
    let realm = server.url();
    let registry = Host::answering(move |_| {
        format!(
            "401 Unauthorized\r\nContent-Length: 0\r\nWWW-Authenticate: Bearer realm=\"{realm}/token\""
        )
    });
    let token = RegistryAuth {
        identity_token: "refresh-me".to_owned(),
        ..RegistryAuth::default()
    };
    assert!(client(&registry, token).blob("sha256:00", 0).await.is_err());
    assert!(
        server
            .heard()
            .iter()
            .all(|r| r.starts_with("post /token") && !r.contains("x-key"))
    );
    assert_eq!(thief.heard(), Vec::<String>::new());
}

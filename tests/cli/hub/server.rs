//! A hub of its own on this machine: the requests that clients make of the real one, and what can go wrong with them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with the next request for a file whose name ends so.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// The connection ends after so many bytes of the body.
    Breaks(usize),
    /// Bytes come slowly: so many, then a rest of some milliseconds, again and again.
    Drips(usize, u64),
    /// The server answers so instead.
    Status(u16, &'static str),
    /// The whole comes although a piece was asked for.
    Whole,
    /// One byte of the body is another.
    Flipped,
    /// A header has another value, in answers to HEAD.
    Header(&'static str, String),
}

#[derive(Default)]
struct State {
    /// By the path below /ORG/NAME/resolve/COMMIT/, or api path.
    files: BTreeMap<String, Vec<u8>>,
    troubles: Vec<(String, Trouble)>,
    /// Token that is demanded.
    token: Option<String>,
    requests: Vec<String>,
}

/// Serves one repository until the test ends.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    id: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Serves `files` as `id`, which begins with `datasets/` for a data set.
    pub(crate) fn start(id: &str, files: Vec<(String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { files: files.into_iter().collect(), ..State::default() }));
        let (shared, name) = (Arc::clone(&state), id.to_owned());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, name) = (Arc::clone(&shared), name.clone());
                thread::spawn(move || {
                    let _ = answer(stream, &shared, &name);
                });
            }
        });
        Self { endpoint, id: id.to_owned(), state }
    }

    /// Makes trouble with the next request, once for each call.
    pub(crate) fn trouble(&self, ending: &str, trouble: Trouble) {
        self.state.lock().unwrap().troubles.push((ending.to_owned(), trouble));
    }

    pub(crate) fn demand_token(&self, token: &str) {
        self.state.lock().unwrap().token = Some(token.to_owned());
    }

    /// `METHOD PATH RANGE` of all requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    pub(crate) fn id(&self) -> &str {
        self.id.trim_start_matches("datasets/")
    }
}

fn answer(mut stream: TcpStream, shared: &Mutex<State>, id: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut parts = line.split_whitespace();
    let (method, path) = (parts.next().unwrap_or("").to_owned(), parts.next().unwrap_or("").to_owned());
    let (mut range, mut token) = (None, None);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? <= 2 {
            break;
        }
        let (name, value) = header.trim().split_once(": ").unwrap_or((header.trim(), ""));
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                range = value.strip_prefix("bytes=").and_then(|from| from.trim_end_matches('-').parse().ok());
            }
            "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    let (files, trouble, demanded) = {
        let mut state = shared.lock().unwrap();
        let from = range.map_or(String::new(), |from: usize| format!(" {from}-"));
        state.requests.push(format!("{method} {path}{from}"));
        let heads = |trouble: &Trouble| matches!(trouble, Trouble::Header(..));
        let at = state
            .troubles
            .iter()
            .position(|(ending, trouble)| path.ends_with(ending) && (method == "HEAD") == heads(trouble));
        let trouble = at.map(|at| state.troubles.remove(at).1);
        (state.files.clone(), trouble, state.token.clone())
    };
    let mut plain = |status: &str, body: &str| {
        let length = body.len();
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
    };
    if let Some(Trouble::Status(code, headers)) = &trouble {
        return write!(
            stream,
            "HTTP/1.1 {code} X\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    if demanded.is_some() && demanded != token {
        return plain("401 Unauthorized", "");
    }
    let api = format!(
        "/api/{}/revision/main",
        if id.starts_with("datasets/") { id.to_owned() } else { format!("models/{id}") }
    );
    if path == api || path == format!("{}{COMMIT}", api.trim_end_matches("main")) {
        let siblings: Vec<_> = files.keys().map(|name| json!({"rfilename": name})).collect();
        return plain("200 OK", &json!({"sha": COMMIT, "siblings": siblings}).to_string());
    }
    if path.starts_with("/api/models?author=") {
        return plain("200 OK", &json!([{"id": id}]).to_string());
    }
    let Some(body) = path.strip_prefix(&format!("/{id}/resolve/{COMMIT}/")).and_then(|name| files.get(name))
    else {
        return plain("404 Not Found", "");
    };
    let mut body = body.clone();
    let etag: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let whole = body.len();
    if method == "HEAD" {
        let mut headers = BTreeMap::from([
            ("etag", format!("\"{etag}\"")),
            ("x-repo-commit", COMMIT.to_owned()),
            ("content-length", whole.to_string()),
        ]);
        if let Some(Trouble::Header(name, value)) = trouble {
            headers.insert(name, value);
        }
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        return write!(stream, "HTTP/1.1 200 OK\r\n{lines}connection: close\r\n\r\n");
    }
    if matches!(trouble, Some(Trouble::Flipped)) {
        body[whole / 2] ^= 1;
    }
    let from = range.filter(|_| !matches!(trouble, Some(Trouble::Whole))).unwrap_or(0);
    let rest = &body[from.min(whole)..];
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let piece = if from > 0 {
        format!("content-range: bytes {from}-{}/{whole}\r\n", whole - 1)
    } else {
        String::new()
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{piece}content-length: {}\r\nconnection: close\r\n\r\n",
        rest.len()
    )?;
    match trouble {
        Some(Trouble::Breaks(after)) => stream.write_all(&rest[..after.min(rest.len())]),
        Some(Trouble::Drips(bytes, rest_ms)) => {
            for drop in rest.chunks(bytes) {
                stream.write_all(drop)?;
                stream.flush()?;
                thread::sleep(Duration::from_millis(rest_ms));
            }
            Ok(())
        }
        _ => stream.write_all(rest),
    }
}

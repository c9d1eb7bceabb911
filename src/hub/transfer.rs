//! Requests to the hub: which files a revision has, what a file is, and its bytes, gone on with after every break.
//!
//! A server is not believed: what it calls files and contents is checked before anything is named after it, a piece must be the piece that
//! was asked for, and a file must have the length and the hash that were announced.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use super::address::{Address, Kind};
use super::cache::incomplete;
use super::{Listing, files};
use crate::error::Error;
use crate::progress::{Progress, go_on};

/// Where the hub is, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// Tries in a row that bring nothing, before a download is given up.
const TRIES: u32 = 5;
/// Seconds without an answer, or in which a piece must end or at least bring something.
const PATIENCE: u64 = 30;
/// Longest list of files that is read, bytes.
const MOST_LISTING: u64 = 64 << 20;
/// Redirects inside of the hub, as of repositories that have a new name.
const MOST_REDIRECTS: usize = 5;
/// Bytes that are read, hashed and written at a time.
const PIECE: usize = 1 << 18;
/// Bytes of a step of progress.
const STEP: u64 = 1 << 20;

/// The hub, over the network.
#[derive(Debug)]
pub(super) struct Transfer {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What the hub says of a file.
#[derive(Clone, Debug)]
pub(super) struct Described {
    /// The name of its content: SHA-256 of large files, git's SHA-1 of others.
    pub(super) etag: String,
    pub(super) bytes: u64,
}

/// Why nothing came.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection, or none that lasts.
    Unreachable(String),
    Unauthorized(String),
    NotFound(String),
    /// An answer that makes no sense.
    Broken(String),
    /// A server that is busy or out of order, and the seconds that it asks to wait.
    Busy(String, Option<u64>),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Transfer {
    /// At `HF_ENDPOINT`, with the limits of `HF_HUB_DOWNLOAD_TIMEOUT` in seconds.
    pub(super) fn from_environment(token: Option<String>) -> Result<Self, Error> {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|found| !found.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned();
        if !(endpoint.starts_with("https://") || endpoint.starts_with("http://")) {
            return Err(Error::Hub {
                problem: format!(
                    "HF_ENDPOINT is `{endpoint}`, expected an address that begins with https://"
                ),
                hint: format!("unset it to use {ENDPOINT}"),
            });
        }
        let seconds = std::env::var("HF_HUB_DOWNLOAD_TIMEOUT").ok().and_then(|text| text.parse().ok());
        let patience = Duration::from_secs(seconds.unwrap_or(PATIENCE).max(1));
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(patience))
            .timeout_recv_response(Some(patience))
            .timeout_recv_body(Some(patience))
            .user_agent(concat!("quantc/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: agent.into(), endpoint, token })
    }

    /// The files of a revision, and the commit that it is.
    pub(super) fn list(&self, address: &Address) -> Result<Listing, Failure> {
        let kind = match address.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        let url =
            format!("{}/api/{kind}/{}/revision/{}", self.endpoint, address.id, escaped(&address.revision));
        let value = self.patiently(|| {
            let response = self.get(&url, None)?;
            let mut text = Vec::new();
            let mut body = response.into_body().into_reader().take(MOST_LISTING);
            body.read_to_end(&mut text).map_err(|e| Failure::Unreachable(format!("{url}: {e}")))?;
            serde_json::from_slice::<Value>(&text).map_err(|e| Failure::Broken(format!("{url}: {e}")))
        })?;
        let commit = value["sha"].as_str().filter(|commit| is_hash(commit));
        let commit = commit.ok_or_else(|| Failure::Broken(format!("{url}: names no commit")))?;
        let siblings = value["siblings"].as_array().map_or(&[][..], Vec::as_slice);
        let names = siblings.iter().filter_map(|file| file["rfilename"].as_str());
        let names = names.filter(|name| files::is_local(name)).map(str::to_owned).collect();
        Ok(Listing { commit: commit.to_owned(), names })
    }

    /// Length and hash of a file.
    pub(super) fn describe(&self, address: &Address, commit: &str, name: &str) -> Result<Described, Failure> {
        let first = self.address_of(address, commit, name);
        self.patiently(|| {
            let mut url = first.clone();
            for _ in 0..MOST_REDIRECTS {
                let response = self.head(&url)?;
                let headers = response.headers();
                let onward = response.status().is_redirection().then(|| text(headers, "location")).flatten();
                // The etag of an answer that leads on is its own, not the file's.
                let own = || text(headers, "etag").filter(|_| onward.is_none());
                let etag = text(headers, "x-linked-etag").or_else(own);
                match (etag, onward) {
                    // Where large files are, no such headers are any more.
                    (None, Some(onward)) if onward.starts_with('/') => {
                        url = format!("{}{onward}", self.endpoint);
                    }
                    (None, Some(onward)) if onward.starts_with(&format!("{}/", self.endpoint)) => {
                        url = onward;
                    }
                    (Some(etag), _) => {
                        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
                        if !is_etag(&etag) {
                            return Err(Failure::Broken(format!("{url}: `{etag}` is no name of a content")));
                        }
                        let length =
                            text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
                        let bytes = length.and_then(|length| length.parse().ok());
                        let bytes = bytes.ok_or_else(|| Failure::Broken(format!("{url}: has no length")))?;
                        return Ok(Described { etag, bytes });
                    }
                    (None, _) => return Err(Failure::Broken(format!("{url}: has no etag"))),
                }
            }
            Err(Failure::Broken(format!("{first}: leads from one address to the next")))
        })
    }

    /// Brings a file to `place`, or what is missing of it. What has come stays, beside it, if the rest does not.
    pub(super) fn download(
        &self,
        address: &Address,
        commit: &str,
        name: &str,
        described: &Described,
        place: &Path,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        let url = self.address_of(address, commit, name);
        let path = incomplete(place);
        let io = |e| Failure::Other(Error::io(&path)(e));
        fs::create_dir_all(place.parent().unwrap_or(Path::new("."))).map_err(io)?;
        let mut file = File::options().create(true).append(true).open(&path).map_err(io)?;
        let mut have = file.metadata().map_err(io)?.len();
        // More than the whole is no beginning of it.
        if have > described.bytes {
            file.set_len(0).map_err(io)?;
            have = 0;
        }
        progress.phase(&format!("getting {name}"), described.bytes.div_ceil(STEP) as usize);
        (0..have / STEP).for_each(|_| progress.step(""));
        let mut failed = 0;
        while have < described.bytes {
            let before = have;
            match self.piece(&url, &mut file, &mut have, described.bytes, progress) {
                Ok(()) if have > before => failed = 0,
                Err(Failure::Unreachable(_)) if have > before => failed = 0,
                Ok(()) => failed += 1,
                Err(failure) => {
                    failed += 1;
                    if failed >= TRIES || !is_passing(&failure) {
                        return Err(failure);
                    }
                    wait(failed, &failure, progress)?;
                }
            }
            if failed >= TRIES {
                return Err(Failure::Broken(format!(
                    "{url}: ends after {have} of {} bytes",
                    described.bytes
                )));
            }
        }
        file.sync_all().map_err(io)?;
        drop(file);
        if let Some(found) = other_hash(&path, described).map_err(io)? {
            // Going on with it would end at the same place.
            fs::remove_file(&path).map_err(io)?;
            let expected = &described.etag;
            return Err(Failure::Broken(format!(
                "{url}: the content's hash is {found}, expected {expected}"
            )));
        }
        progress.finish();
        fs::rename(&path, place).map_err(io)
    }

    /// As much as one request brings from byte `have` on.
    fn piece(
        &self,
        url: &str,
        file: &mut File,
        have: &mut u64,
        whole: u64,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        let response = self.get(url, Some(*have))?;
        let io = |e| Failure::Other(Error::Io { path: url.into(), source: e });
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(response.headers(), "content-range").unwrap_or_default();
            if !range.starts_with(&format!("bytes {have}-")) {
                return Err(Failure::Broken(format!("{url}: byte {have} was asked for, `{range}` came")));
            }
        } else if *have > 0 {
            // The server knows no pieces.
            file.set_len(0).map_err(io)?;
            *have = 0;
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; PIECE];
        loop {
            go_on(progress).map_err(|_| Failure::Other(Error::InterruptedDownload))?;
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(e) => return Err(Failure::Unreachable(format!("{url}: {e}"))),
            };
            if *have + count as u64 > whole {
                return Err(Failure::Broken(format!("{url}: is longer than the {whole} bytes announced")));
            }
            file.write_all(&buffer[..count]).map_err(io)?;
            let steps = (*have + count as u64) / STEP - *have / STEP;
            (0..steps).for_each(|_| progress.step(""));
            *have += count as u64;
        }
    }

    fn address_of(&self, address: &Address, commit: &str, name: &str) -> String {
        let kind = match address.kind {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        };
        format!("{}/{kind}{}/resolve/{commit}/{}", self.endpoint, address.id, escaped_path(name))
    }

    fn head(&self, url: &str) -> Result<Response<Body>, Failure> {
        let request = self.agent.head(url).config().max_redirects(0).max_redirects_will_error(false).build();
        let request = request.header("accept-encoding", "identity");
        let request = match &self.token {
            None => request,
            Some(token) => request.header("authorization", format!("Bearer {token}")),
        };
        judged(url, request.call())
    }

    fn get(&self, url: &str, from: Option<u64>) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url).header("accept-encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from.filter(|&from| from > 0) {
            request = request.header("range", format!("bytes={from}-"));
        }
        judged(url, request.call())
    }

    /// Asks again after failures that pass.
    fn patiently<T>(&self, mut ask: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut failed = 0;
        loop {
            match ask() {
                Err(failure) if is_passing(&failure) && failed + 1 < TRIES => {
                    // Nobody listens there: asking again would only take time.
                    if matches!(&failure, Failure::Unreachable(_)) && failed >= 1 {
                        return Err(failure);
                    }
                    failed += 1;
                    wait(failed, &failure, &crate::progress::Silent)?;
                }
                found => return found,
            }
        }
    }

    /// What a failure means for somebody who asked for `address`.
    pub(super) fn explain(&self, failure: Failure, address: &Address) -> Error {
        let (problem, hint) = match failure {
            Failure::Other(error) => return error,
            Failure::Unreachable(problem) => (
                format!("{address} is no directory here, and the hub cannot be reached: {problem}"),
                "what has come is kept, and the same command goes on from there; HF_ENDPOINT names a mirror"
                    .to_owned(),
            ),
            Failure::Broken(problem) | Failure::Busy(problem, _) => (
                problem,
                "what has come is kept; try again, or without HF_ENDPOINT if that names a mirror".to_owned(),
            ),
            // The hub says this of names that do not exist, too.
            Failure::Unauthorized(problem) => (
                format!("{problem}: {address} is private, gated, or does not exist"),
                match self.token {
                    None => format!(
                        "check the name; for a gated model accept its terms at {}/{}, then set HF_TOKEN or run `hf auth login`",
                        self.endpoint, address.id
                    ),
                    Some(_) => format!(
                        "check the name; the token may lack access: accept the terms at {}/{}",
                        self.endpoint, address.id
                    ),
                },
            ),
            Failure::NotFound(problem) => (problem, self.not_found(address)),
        };
        Error::Hub { problem, hint }
    }

    /// Names like the one that is not there.
    fn not_found(&self, address: &Address) -> String {
        let default = "check the name and --revision, or name a directory of this machine".to_owned();
        let (kind, id) = match address.kind {
            Kind::Model => ("models", &address.id),
            Kind::Dataset => ("datasets", &address.id),
        };
        let Some((organization, name)) = id.split_once('/') else { return default };
        let url = format!("{}/api/{kind}?author={organization}&limit=200", self.endpoint);
        let Ok(response) = self.get(&url, None) else { return default };
        let mut text = Vec::new();
        if response.into_body().into_reader().take(MOST_LISTING).read_to_end(&mut text).is_err() {
            return default;
        }
        let listed: Vec<Value> = serde_json::from_slice(&text).unwrap_or_default();
        let ids: Vec<&str> = listed.iter().filter_map(|found| found["id"].as_str()).collect();
        let own = |id: &&str| id.split_once('/').is_some_and(|(_, other)| other != name);
        match crate::error::nearest(id, ids.iter().copied().filter(own)) {
            Some(near) => format!("did you mean {near}?"),
            None => default,
        }
    }
}

/// An answer that is one, or what it says instead.
fn judged(url: &str, answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
    let response = answer.map_err(|error| Failure::Unreachable(format!("{url}: {error}")))?;
    let status = response.status();
    let said = text(response.headers(), "x-error-message").map_or(String::new(), |said| {
        let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
        format!(" ({said})")
    });
    match status.as_u16() {
        200..=399 => Ok(response),
        401 | 403 => Err(Failure::Unauthorized(format!("{url}: {}{said}", status.as_u16()))),
        404 => Err(Failure::NotFound(format!("{url}: not found{said}"))),
        code @ (408 | 429 | 500..=599) => {
            let later = text(response.headers(), "retry-after").and_then(|text| text.parse().ok());
            Err(Failure::Busy(format!("{url}: the server says {code}{said}"), later))
        }
        code => Err(Failure::Broken(format!("{url}: the server says {code}{said}"))),
    }
}

/// Seconds that are waited at most because a server asks for it.
const LONGEST_WAIT: u64 = 300;

/// Whether asking again may help.
fn is_passing(failure: &Failure) -> bool {
    matches!(failure, Failure::Unreachable(_) | Failure::Busy(..))
}

/// Half a second, twice as long each time, or as long as the server asks.
fn wait(failed: u32, failure: &Failure, progress: &dyn Progress) -> Result<(), Failure> {
    let time = match failure {
        Failure::Busy(_, Some(seconds)) => Duration::from_secs((*seconds).min(LONGEST_WAIT)),
        _ => Duration::from_millis(250 << failed.min(6)),
    };
    let end = Instant::now() + time;
    while Instant::now() < end {
        go_on(progress)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The hash of a file where it is not the announced one.
fn other_hash(path: &Path, described: &Described) -> std::io::Result<Option<String>> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let found = match described.etag.len() {
        _ if !is_hash(&described.etag) => return Ok(None),
        64 => hex(&hashed(path, Sha256::new())?),
        40 => {
            let mut hash = Sha1::new();
            hash.update(format!("blob {}\0", described.bytes));
            hex(&hashed(path, hash)?)
        }
        _ => return Ok(None),
    };
    Ok((found != described.etag).then_some(found))
}

fn hashed<D: Digest>(path: &Path, mut hash: D) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().to_vec()),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Whether a text is a hash in hexadecimal digits, as commits and contents have.
pub(super) fn is_hash(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a file can be named so.
fn is_etag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// A revision as one part of an address.
fn escaped(revision: &str) -> String {
    revision.replace('+', "%2B").replace('/', "%2F")
}

/// A file's name with its folders in an address.
fn escaped_path(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

//! Models and data sets by their names on the hub, which is a server of the test's own here.

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::run::{demo, files, text};
use server::{COMMIT, Server, Trouble};

/// A repository of the demo model, with files beside that nobody needs.
fn model_server() -> Server {
    let mut found: Vec<(String, Vec<u8>)> = fs::read_dir(demo())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "train.py")
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    for name in ["pytorch_model.bin", "onnx/model.onnx", "model.gguf", "LICENSE", "../outside.json"] {
        found.push((name.to_owned(), b"not needed".to_vec()));
    }
    Server::start("tiny/demo", found)
}

struct Home {
    folder: TempDir,
    endpoint: String,
}

impl Home {
    fn of(server: &Server) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), endpoint: server.endpoint.clone() }
    }

    fn run(&self, arguments: &[&str], more: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quantc"));
        for name in [
            "HF_TOKEN",
            "HF_HUB_CACHE",
            "HF_TOKEN_PATH",
            "HF_HUB_OFFLINE",
            "http_proxy",
            "HTTP_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.folder.path()).env("HF_ENDPOINT", &self.endpoint);
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").envs(more.iter().copied());
        command.current_dir(self.folder.path()).args(arguments).output().unwrap()
    }

    fn succeed(&self, arguments: &[&str], more: &[(&str, &str)]) -> String {
        let output = self.run(arguments, more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn fail(&self, arguments: &[&str], more: &[(&str, &str)], words: &[&str]) {
        let output = self.run(arguments, more);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(!message.contains("panicked"), "{message}");
        for word in words {
            assert!(message.contains(word), "`{word}` is missing from: {message}");
        }
    }

    fn snapshot(&self) -> PathBuf {
        self.folder.path().join("hub/models--tiny--demo/snapshots").join(COMMIT)
    }

    fn blobs(&self) -> Vec<String> {
        files(&self.folder.path().join("hub/models--tiny--demo/blobs"))
    }
}

fn same(a: &Path, b: &Path) {
    assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap(), "{}", a.display());
}

#[test]
fn a_model_is_brought_once_and_only_what_is_needed_of_it() {
    let server = model_server();
    let home = Home::of(&server);
    let said = home.succeed(&["inspect", server.id()], &[]);
    assert!(said.contains("llama"), "{said}");
    let snapshot = home.snapshot();
    let mut expected: Vec<String> = files(&demo()).into_iter().filter(|name| name != "train.py").collect();
    for name in &expected {
        same(&snapshot.join(name), &demo().join(name));
    }
    expected.push("LICENSE".to_owned());
    expected.sort();
    assert_eq!(files(&snapshot), expected);
    assert_eq!(fs::read_to_string(snapshot.join("../../refs/main")).unwrap(), COMMIT);
    let asked = server.requests().len();
    home.succeed(&["inspect", server.id()], &[]);
    assert_eq!(server.requests().len(), asked + 1, "the list of files is asked for again, no file");
    // Without a network, and with one that is told not to be used; by its commit it needs no question.
    home.succeed(&["inspect", server.id()], &[("HF_HUB_OFFLINE", "1")]);
    home.succeed(&["inspect", &format!("tiny/demo@{COMMIT}")], &[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    let output = home.run(&["inspect", server.id()], &[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    let warned = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && warned.contains("taken from the cache"), "{warned}");
    home.fail(
        &["inspect", "tiny/other"],
        &[("HF_HUB_OFFLINE", "1")],
        &["tiny/other is not in the cache", "hint: in the cache", "tiny/demo"],
    );
}

#[test]
fn a_model_of_the_hub_is_quantized_and_a_directory_wins_over_it() {
    let server = model_server();
    let home = Home::of(&server);
    let arguments =
        ["quantize", server.id(), "-o", "out", "--recipe", "rtn", "--no-evaluate", "--revision", COMMIT];
    home.succeed(&arguments, &[]);
    assert!(home.folder.path().join("out/model.safetensors").is_file());
    assert!(home.folder.path().join("out/LICENSE").is_file());
    let asked = server.requests().len();
    fs::create_dir_all(home.folder.path().join("tiny/demo")).unwrap();
    home.fail(&["inspect", "tiny/demo"], &[], &["tiny/demo: no config.json here"]);
    home.fail(&["inspect", "tiny/dmeo"], &[], &["tiny/dmeo", "does not exist", "did you mean tiny/demo?"]);
    home.fail(&["evaluate", "tiny/demo", "--revision", "main"], &[], &["--revision"]);
    assert_eq!(server.requests().len(), asked);
    home.succeed(&["inspect", "hf://tiny/demo"], &[]);
    // Before anything is downloaded.
    fs::create_dir(home.folder.path().join("there")).unwrap();
    fs::write(home.folder.path().join("there/file"), "").unwrap();
    let asked = server.requests().len();
    home.fail(&["quantize", "hf://tiny/demo", "-o", "there"], &[], &["there", "--force"]);
    assert_eq!(server.requests().len(), asked);
}

#[test]
fn a_download_goes_on_where_it_broke() {
    let server = model_server();
    let home = Home::of(&server);
    let weights = "model.safetensors";
    let whole = fs::metadata(demo().join(weights)).unwrap().len();
    server.trouble(weights, Trouble::Breaks(3_000_000));
    server.trouble(weights, Trouble::Status(500, ""));
    server.trouble(weights, Trouble::Status(429, "retry-after: 1\r\n"));
    server.trouble(weights, Trouble::Breaks(2_000_000));
    home.succeed(&["inspect", server.id()], &[]);
    same(&home.snapshot().join(weights), &demo().join(weights));
    let requests = server.requests();
    let resumed: Vec<&String> =
        requests.iter().filter(|r| r.starts_with("GET") && r.ends_with('-')).collect();
    assert!(resumed.len() >= 3 && resumed.iter().all(|r| r.contains(weights)), "{requests:?}");
    assert!(resumed.last().unwrap().contains(" 5000000-") && whole > 5_000_000, "{resumed:?}");

    // Broken for good, then in another run; the server does not know pieces at first.
    let home = Home::of(&server);
    (0..6).for_each(|_| server.trouble(weights, Trouble::Breaks(0)));
    server.trouble(weights, Trouble::Breaks(1000));
    home.fail(&["inspect", server.id()], &[], &["model.safetensors", "hint: what has come is kept"]);
    assert!(home.blobs().iter().any(|name| name.ends_with(".incomplete")));
    server.trouble(weights, Trouble::Whole);
    home.succeed(&["inspect", server.id()], &[]);
    same(&home.snapshot().join(weights), &demo().join(weights));
    assert!(home.blobs().iter().all(|name| !name.ends_with(".incomplete")));
}

#[test]
fn a_slow_connection_is_waited_for_as_long_as_it_brings_something() {
    let server = model_server();
    let home = Home::of(&server);
    // Two seconds of drops, where a second is the limit of a piece.
    server.trouble("tokenizer.json", Trouble::Drips(8_000, 400));
    home.succeed(&["inspect", server.id()], &[]);
    same(&home.snapshot().join("tokenizer.json"), &demo().join("tokenizer.json"));
}

#[test]
fn what_a_server_says_is_not_believed() {
    let server = model_server();
    let weights = "model.safetensors";
    for (trouble, words) in [
        (Trouble::Flipped, &["hash", "hint"][..]),
        (Trouble::Header("etag", "\"../../outside\"".to_owned()), &["is no name of a content"]),
        (Trouble::Header("content-length", "17".to_owned()), &["longer than the 17 bytes announced"]),
        (Trouble::Header("content-length", (1_u64 << 60).to_string()), &["are free", "HF_HOME"]),
        (Trouble::Header("etag", "\"".to_owned() + &"0".repeat(64) + "\""), &["hash"]),
    ] {
        let home = Home::of(&server);
        server.trouble(weights, trouble);
        home.fail(&["inspect", server.id()], &[], words);
        assert!(!home.snapshot().join(weights).exists());
        home.succeed(&["inspect", server.id()], &[]);
    }
}

#[test]
fn models_that_are_not_there_or_not_for_everybody() {
    let server = model_server();
    let home = Home::of(&server);
    home.fail(&["inspect", "tiny/dmeo"], &[], &["not found", "hint: did you mean tiny/demo?"]);
    home.fail(&["inspect", "tiny/demo@v2"], &[], &["not found", "--revision"]);
    let gone = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    home.fail(&["inspect", "tiny/demo"], &gone, &["tiny/demo is no directory here", "HF_ENDPOINT"]);
    home.fail(&["inspect", "tiny/demo"], &[("HF_ENDPOINT", "hub")], &["HF_ENDPOINT"]);
    server.demand_token("secret");
    home.fail(&["inspect", "tiny/demo"], &[], &["401", "gated", "hint: check the name", "HF_TOKEN"]);
    home.fail(&["inspect", "tiny/demo"], &[("HF_TOKEN", "wrong")], &["401", "token may lack access"]);
    let elsewhere = home.folder.path().join("elsewhere");
    home.succeed(&["inspect", "tiny/demo"], &[("HF_TOKEN", "secret"), ("HF_HUB_CACHE", text(&elsewhere))]);
    assert!(
        elsewhere.join("models--tiny--demo/snapshots").is_dir() && !home.folder.path().join("hub").exists()
    );
    fs::write(home.folder.path().join("token"), "secret\n").unwrap();
    home.succeed(&["inspect", "tiny/demo"], &[]);
    let other = Server::start(
        "tiny/bin",
        vec![("config.json".into(), b"{}".to_vec()), ("pytorch_model.bin".into(), vec![1])],
    );
    Home::of(&other).fail(&["inspect", "tiny/bin"], &[], &["pytorch_model.bin", "refs/pr/N"]);
    let other = Server::start("tiny/g", vec![("a.gguf".into(), vec![1])]);
    Home::of(&other).fail(&["inspect", "tiny/g"], &[], &["a.gguf", "hint"]);
}

#[test]
fn a_data_set_of_the_hub_calibrates() {
    let parquet = fs::read(crate::run::repository().join("tests/data/texts/zstd.parquet")).unwrap();
    let server = Server::start(
        "datasets/tiny/texts",
        vec![
            ("README.md".into(), b"# Texts".to_vec()),
            ("data/train-00000-of-00001.parquet".into(), parquet.clone()),
            ("data/test-00000-of-00001.parquet".into(), parquet),
        ],
    );
    let home = Home::of(&server);
    let model = demo();
    let base = [
        "quantize",
        text(&model),
        "-o",
        "out",
        "--force",
        "--recipe",
        "gptq",
        "--no-evaluate",
        "--samples",
        "2",
        "--context",
        "32",
    ];
    let said = home.succeed(&[&base[..], &["--calibration", "tiny/texts"]].concat(), &[]);
    assert!(said.contains("tiny/texts"), "{said}");
    home.succeed(&[&base[..], &["--calibration", "tiny/texts"]].concat(), &[("HF_HUB_OFFLINE", "1")]);
    home.fail(&[&base[..], &["--calibration", "tiny/texts:dev"]].concat(), &[], &["no `dev`", "test, train"]);
}

//! Kills the program at random moments, lets it go on, and compares every byte with what an undisturbed run writes.
//!
//! A few kills each time the tests run; `QUANTC_KILLS=200 cargo test --test kills -- --nocapture` does as many as it says and prints a table.

#[path = "support/contents.rs"]
mod contents;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use contents::contents;

/// Kills without the variable.
const KILLS: usize = 9;
/// Kills of one run at most, so that it comes to an end.
const MOST_OF_A_RUN: usize = 4;

struct Job {
    name: &'static str,
    arguments: &'static [&'static str],
}

/// The job on a model that has experts; the others are on the demo's.
const EXPERTS: &str = "mixture of experts";

const JOBS: [Job; 9] = [
    Job { name: "gptq", arguments: &["--to", "gptq"] },
    Job { name: "gguf", arguments: &["--to", "gguf:q4_k_m", "--recipe", "gptq"] },
    Job {
        name: "several targets and widths",
        arguments: &["--to", "gptq,mlx,compressed-tensors", "--bits", "3,4", "--recipe", "gptq"],
    },
    Job {
        name: "adapter and importance matrix",
        arguments: &["--adapter-rank", "4", "--export-imatrix", "imatrix.gguf"],
    },
    Job {
        name: "embedding and head too",
        arguments: &[
            "--to",
            "mlx",
            "--untie",
            "--head-bits",
            "4",
            "--embedding-bits",
            "8",
            "--recipe",
            "gptq",
        ],
    },
    Job { name: EXPERTS, arguments: &["--group-size", "channel", "--calibration", "ids.jsonl"] },
    Job { name: "max, fewer sweeps", arguments: &["--recipe", "recipe.toml"] },
    Job { name: "the same, states on disk", arguments: &["--recipe", "recipe.toml", LEAST] },
    Job {
        name: "chosen widths, measured",
        arguments: &["--to", "compressed-tensors", "--target-bits", "8", "--evaluate-samples", "4"],
    },
];

/// Stands for the least memory that a job can be done in.
const LEAST: &str = "--memory";

/// As a refusal says.
fn least_memory(folder: &Path, job: &Job) -> String {
    let refused = Job { name: job.name, arguments: &job.arguments[..job.arguments.len() - 1] };
    let ended = command(folder, &refused).args([LEAST, "1"]).output().expect("the program starts");
    let message = String::from_utf8_lossy(&ended.stderr).into_owned();
    let number = message.split(" bytes), which").next().and_then(|text| text.rsplit('(').next());
    number.unwrap_or_else(|| panic!("no least size in {message}")).to_owned()
}

/// Takes every path, none of them often.
const EVERY_PATH: &str = "base = 'max'\nbits = 3\nown_text = 1\nscale_passes = 2\n[settings]\nrefits = 1\nsweeps = 1\ncoupled_sweeps = 1\n";

fn start(folder: &Path, job: &Job) -> Child {
    let mut command = command(folder, job);
    if job.arguments.last() == Some(&LEAST) {
        command.arg(least_memory(folder, job));
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

fn command(folder: &Path, job: &Job) -> Command {
    let model = if job.name == EXPERTS { "tests/data/hf_tiny/qwen3_moe" } else { "demo/model" };
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(model);
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantc"));
    command.current_dir(folder).arg("quantize").arg(model).args(["-o", "out"]);
    fs::write(folder.join("recipe.toml"), EVERY_PATH).expect("the folder can be written");
    // The tiny model has 64 tokens, and no tokenizer.
    let ids = |line: usize| (0..48).map(|i| (i * i * 7 + line * 13 + i * 3) % 64).collect::<Vec<usize>>();
    let lines: String = (0..4).map(|line| format!("{{\"input_ids\": {:?}}}\n", ids(line))).collect();
    fs::write(folder.join("ids.jsonl"), lines).expect("the folder can be written");
    command.args(["--samples", "4", "--context", "48"]);
    if !job.arguments.contains(&"--evaluate-samples") {
        command.arg("--no-evaluate");
    }
    command.args(job.arguments);
    command
}

/// Runs to the end; one that was killed when all was done finds its own output.
fn finish(folder: &Path, job: &Job) {
    let ended = start(folder, job).wait_with_output().expect("it ends");
    let message = String::from_utf8_lossy(&ended.stderr);
    let stands = message.contains("exists already");
    assert!(ended.status.success() || stands, "{}: {message}", job.name);
}

/// Numbers from 0 up to 1 (SplitMix64).
struct Random(u64);

impl Random {
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[test]
fn a_killed_run_goes_on_and_writes_the_same_bytes() {
    let wanted: usize =
        std::env::var("QUANTC_KILLS").map_or(KILLS, |number| number.parse().expect("a number of kills"));
    let now =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed =
        std::env::var("QUANTC_KILLS_SEED").map_or_else(|_| now(), |seed| seed.parse().expect("a seed"));
    let mut random = Random(seed);
    let (mut lost, mut different) = (0, 0);
    println!("seed {seed}\n{:<32} {:>6} {:>6} {:>10}", "job", "kills", "runs", "went on");
    for (number, job) in JOBS.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let began = Instant::now();
        finish(folder.path(), job);
        let takes = began.elapsed();
        let expected = contents(folder.path());
        let share = wanted / JOBS.len() + usize::from(number < wanted % JOBS.len());
        let (mut kills, mut runs, mut went_on) = (0, 0, 0);
        while kills < share {
            runs += 1;
            let folder = tempfile::tempdir().unwrap();
            for _ in 0..MOST_OF_A_RUN.min(share - kills) {
                let mut child = start(folder.path(), job);
                std::thread::sleep(Duration::from_secs_f64(takes.as_secs_f64() * random.draw()));
                let ended = child.try_wait().unwrap();
                child.kill().unwrap();
                let message = child.wait_with_output().unwrap().stderr;
                let message = String::from_utf8_lossy(&message).into_owned();
                went_on += usize::from(message.contains("going on"));
                // The one before was killed when all was done, on its way out.
                let stands = message.contains("exists already");
                if ended.is_some_and(|status| status.success() || stands) {
                    break;
                }
                if ended.is_some() {
                    eprintln!("{}: {message}", job.name);
                    lost += 1;
                }
                kills += usize::from(ended.is_none());
            }
            if !folder.path().join("out").exists() || contents(folder.path()) != expected {
                finish(folder.path(), job);
            }
            let found = contents(folder.path());
            if found != expected {
                different += 1;
                let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
                eprintln!("{}: {:?}, expected {:?}", job.name, names(&found), names(&expected));
            }
        }
        println!("{:<32} {kills:>6} {runs:>6} {went_on:>10}", job.name);
    }
    println!("{lost} lost, {different} different");
    assert_eq!((lost, different), (0, 0), "seed {seed}");
}

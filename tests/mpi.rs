//! `mpirun -n N quantc quantize ...` writes the bytes of one process, and ends as one where something is wrong.

#[path = "ranks/jobs.rs"]
mod jobs;

use std::path::Path;
use std::process::{Command, Output};

use jobs::{JOBS, demand_same, with_least_memory};

const PROGRAM: &str = env!("CARGO_BIN_EXE_quantc");

/// So many processes with the same arguments.
type Group<'a> = (usize, &'a [String]);

/// One thread each.
fn mpirun(groups: &[Group<'_>]) -> Output {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
    for (number, (size, arguments)) in groups.iter().enumerate() {
        command.args((number > 0).then_some(":"));
        command.args(["-n", &size.to_string(), PROGRAM]).args(*arguments);
        command.args((arguments[0] == "quantize").then_some("--threads=1"));
    }
    command.output().expect("mpirun is there")
}

fn alone(arguments: &[String]) -> Output {
    Command::new(PROGRAM).args(arguments).output().expect("the program starts")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

#[test]
fn processes_together_write_the_bytes_of_one() {
    for (number, job) in JOBS.iter().enumerate() {
        let (one, several) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let arguments =
            |folder: &Path| with_least_memory(job.arguments(folder), |arguments| told(&alone(arguments)));
        let ended = alone(&arguments(one.path()));
        assert!(ended.status.success(), "{}: {}", job.name, told(&ended));
        let size = 2 + number % 2;
        let ended = mpirun(&[(size, &arguments(several.path()))]);
        assert!(ended.status.success(), "{}: {}", job.name, told(&ended));
        demand_same(&format!("{}, {size} processes", job.name), several.path(), one.path());
        // By one of them, with a line on each in every output's.
        let outputs = if job.name == "two tracks" { 2 } else { 1 };
        let report = String::from_utf8(ended.stdout).unwrap();
        for rank in 0..size {
            assert_eq!(report.matches(&format!("rank {rank}: ")).count(), outputs, "{report}");
        }
    }
}

#[test]
fn what_is_wrong_is_said_once_and_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let job = JOBS[0].arguments(folder.path());
    let other = [&job[..], &words(&["--seed", "7"])].concat();
    let missing =
        words(&["quantize", text(&folder.path().join("nothing")), "-o", text(&folder.path().join("out"))]);
    let listing = words(&["list", "formats"]);
    let (unknown, help) = (words(&["quantize", "--no-such-flag"]), words(&["quantize", "--help"]));
    // No folder can be made there.
    let elsewhere: Vec<String> = job
        .iter()
        .map(|word| if word.ends_with("/out") { "/proc/out".to_owned() } else { word.clone() })
        .collect();
    let cases: [(&[Group<'_>], &str); 6] = [
        (&[(1, &job), (1, &other)], "rank 1 of 2: does not do what rank 0 does: --seed is none, and here 7"),
        (&[(2, &job), (1, &elsewhere)], "rank 2 of 3: --output: nothing can be written in /proc"),
        (&[(1, &job), (1, &help)], "rank 1 of 2: its command line is not one of `quantize`"),
        (&[(2, &missing)], "nothing"),
        (&[(3, &listing)], "3 processes were started, and only `quantize` is the work of several"),
        (&[(2, &unknown)], "--no-such-flag"),
    ];
    for (groups, expected) in cases {
        let ended = mpirun(groups);
        let message = told(&ended);
        assert_eq!(ended.status.code(), Some(1), "{message}");
        assert_eq!(message.matches("error: ").count(), 1, "{message}");
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains("panicked") && ended.stdout.is_empty(), "{message}");
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}

//! Every file operation of a small job fails once in turn: each time the job is done all the same or ends in one error, the output of
//! before or the new one stands whole, and the same command then ends the job. And a full disk, and inputs that change while they are read.
//!
//! The operations fail in the program as it is shipped: a small library, made from `faults.c`, is loaded before the C library. That is how
//! Linux does it, so there is nothing of this elsewhere. Each time the tests run some of them fail;
//! `QUANTC_FAULTS=all cargo test --test faults -- --nocapture` takes them all and prints the table of docs/reliability.md.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use quantc::cli::Cli;
use quantc::progress::Progress;

/// Errors by name and number, and the classes of operations that they are tried on.
const ERRORS: [(&str, i32, &[&str]); 7] = [
    (
        "EIO",
        5,
        &[
            "open", "create", "read", "write", "fsync", "truncate", "rename", "mkdir", "remove", "stat",
            "list", "chmod",
        ],
    ),
    ("ENOSPC", 28, &["create", "write", "fsync", "truncate", "rename", "mkdir"]),
    ("EACCES", 13, &["open", "create", "rename", "mkdir", "remove", "stat", "list", "chmod"]),
    // What a signal may interrupt.
    ("EINTR", 4, &["open", "create", "read", "write", "fsync", "truncate"]),
    ("EROFS", 30, &["create", "mkdir", "rename"]),
    ("half of it", 0, &["read", "write"]),
    ("end of file", -1, &["read"]),
];

/// Operations of a class and error that fail where not all are asked for.
const SOME: usize = 3;

fn sound() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hostile/sound/dense")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Content of every file of a directory but the one that states times.
fn content(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let entries = entries.filter(|entry| entry.file_name() != "report.html");
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Operations of a class that fail: all where `QUANTC_FAULTS` is `all`, otherwise some, the first and the last among them.
fn chosen(count: usize) -> Vec<usize> {
    let all = std::env::var("QUANTC_FAULTS").is_ok_and(|value| value == "all");
    let step = if all { 1 } else { count.div_ceil(SOME) };
    (1..=count).filter(|at| at % step == 1 % step || *at == count).collect()
}

/// What is in a folder beside the model and the output.
fn beside(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|name| name != "model" && name != "out").collect()
}

/// The job: `model` in `folder` to `out` in it, which stands already.
fn job(folder: &Path, bits: &str, more: &[(&str, String)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantc"));
    command.arg("quantize").arg(folder.join("model")).arg("-o").arg(folder.join("out"));
    command.args([
        "--to",
        "mlx",
        "--group-size",
        "32",
        "--recipe",
        "gptq",
        "--samples",
        "2",
        "--context",
        "16",
    ]);
    command.args(["--no-evaluate", "--threads", "1", "--force", "--bits", bits]);
    command.envs(more.iter().map(|(key, value)| (key, value)));
    command.output().unwrap()
}

/// The library that lets operations fail.
fn library(folder: &Path) -> PathBuf {
    let library = folder.join("libfaults.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/faults.c");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(source)
        .arg("-ldl")
        .output();
    // Rust links with it, so it is there.
    let made = made.expect("a C compiler");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    library
}

/// Whether an output is what is wanted but for what is said of it at the end: the measured card, and the page of report that the record lists.
fn stands_without_report(
    folder: &Path,
    found: &BTreeMap<String, Vec<u8>>,
    wanted: &BTreeMap<String, Vec<u8>>,
) -> bool {
    let late = ["README.md", "quantc.json"];
    let all = |content: &BTreeMap<String, Vec<u8>>| -> Vec<(String, Vec<u8>)> {
        let of_weights = content.iter().filter(|(name, _)| !late.contains(&name.as_str()));
        of_weights.map(|(name, bytes)| (name.clone(), bytes.clone())).collect()
    };
    let verify = Command::new(env!("CARGO_BIN_EXE_quantc")).arg("verify").arg(folder.join("out")).output();
    all(found) == all(wanted) && verify.unwrap().status.success()
}

#[test]
fn every_file_operation_may_fail_once() {
    let tools = tempfile::tempdir().unwrap();
    let library = library(tools.path());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    copy(&sound(), &folder.join("model"));
    assert!(job(&folder, "8", &[]).status.success());
    let earlier = content(&folder.join("out"));
    let log = tools.path().join("log");
    let fault = |class: &str, at: usize, error: i32| {
        let mut set = vec![
            ("LD_PRELOAD", library.display().to_string()),
            ("FAULT_UNDER", folder.display().to_string()),
            ("FAULT_CLASS", class.to_owned()),
            ("FAULT_AT", at.to_string()),
            ("FAULT_ERRNO", error.max(0).to_string()),
            ("FAULT_LOG", log.display().to_string()),
        ];
        if error < 0 {
            set.push(("FAULT_END", String::new()));
        }
        set
    };
    let reset = || {
        fs::remove_dir_all(folder.join("out")).unwrap();
        fs::create_dir(folder.join("out")).unwrap();
        for (name, bytes) in &earlier {
            fs::write(folder.join("out").join(name), bytes).unwrap();
        }
    };
    let undisturbed = job(&folder, "4", &fault("none", 0, 0));
    assert!(undisturbed.status.success(), "{}", String::from_utf8_lossy(&undisturbed.stderr));
    let wanted = content(&folder.join("out"));
    let counts = fs::read_to_string(&log).unwrap();
    let counts: Vec<(&str, usize)> = counts
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(c, n)| (c, n.parse().unwrap()))
        .collect();
    // Fewer would mean that the library is not under them.
    assert!(counts.iter().map(|(_, count)| count).sum::<usize>() > 200, "{counts:?}");
    reset();

    println!(
        "| operation | in the job | fails with | error, output of before untouched | error, new output stands whole | done, output the same | of the errors, the next run went on from a journal |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut runs = 0;
    for (class, count) in &counts {
        for (error, number, classes) in ERRORS {
            if !classes.contains(class) || *count == 0 {
                continue;
            }
            let (mut untouched, mut stands, mut done, mut went_on) = (0, 0, 0, 0);
            for at in chosen(*count) {
                let found = job(&folder, "4", &fault(class, at, number));
                let message = String::from_utf8(found.stderr).unwrap();
                let told = format!("{class} {at} of {count} with {error}: {:?} {message}", found.status);
                assert!(!message.contains("panicked"), "{told}");
                let after = content(&folder.join("out"));
                match found.status.code() {
                    Some(0) => {
                        assert!(after == wanted, "another output after {told}");
                        done += 1;
                    }
                    // 3: while what was written is verified.
                    Some(1 | 3) => {
                        assert_eq!(message.matches("error: ").count(), 1, "{told}");
                        if after == earlier {
                            untouched += 1;
                        } else {
                            let whole = after == wanted || stands_without_report(&folder, &after, &wanted);
                            assert!(whole, "half an output after {told}");
                            stands += 1;
                        }
                    }
                    _ => panic!("{told}"),
                }
                // What is interrupted or done by half is done again.
                assert!(!["EINTR", "half of it"].contains(&error) || found.status.success(), "{told}");
                let left = beside(&folder);
                if found.status.success() {
                    // What cannot be removed is left, beside: the output of before, a journal that says that it is not needed.
                    assert!(left.is_empty() || *class == "remove", "{left:?} after {told}");
                } else {
                    let again = job(&folder, "4", &[]);
                    let message = String::from_utf8_lossy(&again.stderr);
                    assert!(again.status.success(), "again after {told}: {message}");
                    went_on += usize::from(message.contains("going on from"));
                    assert!(content(&folder.join("out")) == wanted, "another output again after {told}");
                    let left = beside(&folder);
                    assert!(
                        left.iter().all(|name| name.starts_with(".replaced-")),
                        "{left:?} again after {told}"
                    );
                }
                for name in beside(&folder) {
                    fs::remove_dir_all(folder.join(name)).unwrap();
                }
                if after != earlier || !found.status.success() {
                    reset();
                }
                runs += 1;
            }
            println!("| {class} | {count} | {error} | {untouched} | {stands} | {done} | {went_on} |");
        }
    }
    println!("{runs} runs");
}

/// A file system that is unmounted in the end.
struct SmallDisk<'f>(&'f Path);

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_ends_the_job_and_leaves_the_output_of_before() {
    let folder = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(folder.path()).output();
    match mounted {
        Ok(output) if output.status.success() => {}
        found => {
            println!("skipped: no file system can be mounted here: {found:?}");
            return;
        }
    }
    let _disk = SmallDisk(folder.path());
    copy(&sound(), &folder.path().join("model"));
    assert!(job(folder.path(), "8", &[]).status.success());
    let earlier = content(&folder.path().join("out"));
    let filler = folder.path().join("filler");
    for room in [4, 12, 16, 20] {
        // As much as there is, then some of it back.
        let mut bytes = vec![1_u8; 256 << 10];
        while fs::write(&filler, &bytes).is_err() {
            bytes.truncate(bytes.len() - (4 << 10));
        }
        fs::write(&filler, &bytes[..bytes.len() - (room << 10)]).unwrap();
        let found = job(folder.path(), "4", &[]);
        let message = String::from_utf8(found.stderr).unwrap();
        assert_eq!(found.status.code(), Some(1), "{room} KiB left: {message}");
        // Before the work where the weights alone do not fit, in the middle of it where what lies beside them does not.
        let told = message.contains("No space left") || message.contains("are free");
        assert!(message.starts_with("error: ") && told, "{message}");
        assert!(content(&folder.path().join("out")) == earlier, "{room} KiB left");
        assert!(beside(folder.path()).iter().all(|name| name == "filler" || name == ".out.journal"));
    }
    fs::remove_file(&filler).unwrap();
    assert!(job(folder.path(), "4", &[]).status.success());
    assert_eq!(names(folder.path()), ["model", "out"]);
}

/// Changes a file once the layers begin.
struct Meddler {
    file: PathBuf,
    change: fn(&mut Vec<u8>),
    done: AtomicBool,
}

impl Progress for Meddler {
    fn phase(&self, _name: &str, _steps: usize) {}
    fn step(&self, _detail: &str) {
        if !self.done.swap(true, Ordering::SeqCst) {
            let mut bytes = fs::read(&self.file).unwrap();
            (self.change)(&mut bytes);
            fs::write(&self.file, bytes).unwrap();
        }
    }
    fn finish(&self) {}
    fn warn(&self, _message: &str) {}
}

#[test]
fn weights_that_change_while_they_are_read_are_noticed() {
    let changes: [fn(&mut Vec<u8>); 3] = [
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.push(0),
    ];
    for change in changes {
        let folder = tempfile::tempdir().unwrap();
        copy(&sound(), &folder.path().join("model"));
        let (model, out) = (folder.path().join("model"), folder.path().join("out"));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut arguments =
            vec!["quantc".to_owned(), "quantize".to_owned(), text(&model), "-o".to_owned(), text(&out)];
        let more = "--to mlx --group-size 32 --recipe gptq --samples 4 --context 16 --no-evaluate";
        arguments.extend(more.split(' ').map(str::to_owned));
        let Cli { command: quantc::cli::Command::Quantize(arguments), .. } =
            Cli::try_parse_from(arguments).unwrap()
        else {
            panic!("quantize was asked for");
        };
        let job = arguments.into_job().unwrap();
        quantc::quantize(&job, &quantc::progress::Silent).unwrap();
        let wanted = content(&out);
        fs::remove_dir_all(&out).unwrap();
        let file = folder.path().join("model/model.safetensors");
        let sound = fs::read(&file).unwrap();
        let meddler = Meddler { file: file.clone(), change, done: AtomicBool::new(false) };
        let error = quantc::quantize(&job, &meddler).unwrap_err().to_string();
        assert!(meddler.done.load(Ordering::SeqCst));
        assert!(
            error.contains("model.safetensors") && error.contains("changed while it was read"),
            "{error}"
        );
        assert!(beside(folder.path()).iter().all(|name| name == ".out.journal"), "{error}");
        // Nothing that was solved with other weights is gone on from.
        fs::write(&file, sound).unwrap();
        quantc::quantize(&job, &quantc::progress::Silent).unwrap();
        assert!(content(&out) == wanted);
    }
}

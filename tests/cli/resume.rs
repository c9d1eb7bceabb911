//! Runs that end early and go on: what the user is told, and that nothing is different for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quantc::job::{Overrides, QuantizeJob, WindowRequest};
use quantc::progress::Progress;
use quantc::recipe::Recipe;

use crate::run::{copy, demo, fail, files, quantc, succeed, text};

/// Paths within a directory, and contents, but of the page that states times.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![(directory.to_owned(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        for name in files(&folder) {
            let path = folder.join(&name);
            if path.is_dir() {
                open.push((path, format!("{prefix}{name}/")));
            } else if name != "report.html" {
                found.insert(format!("{prefix}{name}"), fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn command<'a>(output: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["quantize", "demo/model", "-o", text(output), "--no-evaluate"];
    for pair in [["--samples", "6"], ["--context", "96"]] {
        if !more.contains(&pair[0]) {
            arguments.extend(pair);
        }
    }
    arguments.extend(more);
    arguments
}

fn uninterrupted(folder: &Path, more: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let output = folder.join("whole");
    succeed(&command(&output, more));
    let found = contents(&output);
    fs::remove_dir_all(&output).unwrap();
    found
}

/// Runs until the journal has `layers` layers, then sends `signal`; gives the exit code, if there is one, and standard error.
fn end_early(arguments: &[&str], journal: &Path, layers: usize, signal: &str) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quantc"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let last = journal.join(format!("layer-{:05}", layers - 1));
    while !last.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before layer {layers}");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_goes_on_whatever_does_not_matter_changes() {
    let folder = tempfile::tempdir().unwrap();
    let expected = uninterrupted(folder.path(), &[]);
    let (output, journal) = (folder.path().join("out"), folder.path().join(".out.journal"));
    let (code, message) = end_early(&command(&output, &[]), &journal, 1, "-INT");
    assert_eq!(code, Some(130), "{message}");
    assert!(message.contains("interrupted") && message.contains(".out.journal"), "{message}");
    assert!(message.contains("hint: the same command goes on from there"), "{message}");
    assert_eq!(files(folder.path()), [".out.journal"]);

    let other = folder.path().join("calibration.txt");
    fs::write(&other, "The text is another one. ".repeat(400)).unwrap();
    for (more, told) in [
        (vec!["--samples", "7"], "--samples was 6, is now 7"),
        (vec!["--context", "64"], "--context was 96, is now 64"),
        (vec!["--bits", "3"], "recipe: bits was 4, is now 3"),
        (vec!["--recipe", "gptq"], "--recipe was default, is now gptq"),
        (vec!["--to", "mlx"], "--to was gptq, is now mlx"),
        (vec!["--seed", "5"], "--seed was none, is now 5"),
        (vec!["--exclude", "down"], "--exclude was [], is now [\"down\"]"),
        (
            vec!["--calibration", text(&other)],
            "--calibration was built-in calibration text, is now 10000 bytes",
        ),
    ] {
        let message = fail(1, &command(&output, &more));
        assert!(message.contains("is the journal of another job") && message.contains(told), "{message}");
        assert!(message.contains("hint: ") && message.contains("--fresh"), "{message}");
    }
    assert!(journal.join("layer-00000").exists());

    // Neither threads nor the size of files change what was solved; the output is made of what the journal has.
    let more = ["--threads", "3", "--max-shard-size", "6GB"];
    let ended = quantc(&command(&output, &more));
    let message = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success() && message.contains("going on from"), "{message}");
    assert!(contents(&output) == expected);
    assert_eq!(files(folder.path()), ["calibration.txt", "out"]);
}

#[test]
fn a_changed_checkpoint_and_a_damaged_journal_are_named_and_fresh_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy(&demo());
    let (output, journal) = (folder.path().join("out"), folder.path().join(".out.journal"));
    let mut arguments = command(&output, &["--recipe", "gptq"]);
    arguments[1] = text(model.path());
    let (code, message) = end_early(&arguments, &journal, 2, "-INT");
    assert_eq!(code, Some(130), "{message}");

    let weights = model.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let message = fail(1, &arguments);
    assert!(
        message.contains("checkpoint: model.safetensors was") && message.contains("SHA-256"),
        "{message}"
    );
    bytes[last] ^= 1;
    fs::write(&weights, &bytes).unwrap();

    let layer = journal.join("layer-00000");
    let mut bytes = fs::read(&layer).unwrap();
    bytes[1000] ^= 1;
    fs::write(&layer, bytes).unwrap();
    let ended = quantc(&arguments);
    let message = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{message}");
    assert!(message.contains("is damaged") && message.contains("layer-00000"), "{message}");
    arguments.push("--fresh");
    let ended = quantc(&arguments);
    let message = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success() && !message.contains("going on"), "{message}");
    assert_eq!(files(folder.path()), ["out"]);
}

#[test]
fn a_second_process_is_refused_and_a_killed_one_holds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (output, journal) = (folder.path().join("out"), folder.path().join(".out.journal"));
    let arguments = command(&output, &["--recipe", "gptq"]);
    fs::create_dir(&journal).unwrap();
    let held = fs::File::open(&journal).unwrap();
    held.try_lock().unwrap();
    let message = fail(1, &arguments);
    assert!(message.contains("another process of quantc is at work on this output"), "{message}");
    drop(held);
    let (code, _) = end_early(&arguments, &journal, 1, "-KILL");
    assert_eq!(code, None);
    assert_eq!(files(folder.path()), [".out.journal", ".out.partial"]);
    succeed(&arguments);
    assert_eq!(files(folder.path()), ["out"]);
}

#[test]
fn a_refused_command_leaves_the_journal_and_a_layer_without_those_before_it_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (output, journal) = (folder.path().join("out"), folder.path().join(".out.journal"));
    let arguments = command(&output, &["--recipe", "gptq"]);
    end_early(&arguments, &journal, 2, "-KILL");
    let layers = [journal.join("layer-00000"), journal.join("layer-00001")];
    for more in
        [&["--memory", "1KB"][..], &["--memory", "1KB", "--fresh"], &["--runs-on", "vllm", "--to", "mlx"]]
    {
        fail(1, &[&arguments[..], more].concat());
        assert!(layers.iter().all(|layer| layer.exists()), "{more:?}");
    }
    // Several outputs have the same journal, so that one run knows of the other.
    let message = fail(1, &[&arguments[..], &["--to", "gptq,mlx"]].concat());
    assert!(message.contains("--to was gptq, is now gptq,mlx"), "{message}");

    fs::rename(&layers[0], folder.path().join("taken")).unwrap();
    let message = fail(1, &arguments);
    assert!(message.contains("is damaged") && message.contains("`layer-00001` is there"), "{message}");
    fs::copy(&layers[1], &layers[0]).unwrap();
    let ended = quantc(&arguments);
    let message = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{message}");
    assert!(message.contains("is damaged") && message.contains("`layer-00000` is layer 1"), "{message}");
    fs::rename(folder.path().join("taken"), &layers[0]).unwrap();

    // What a name of ours leads to elsewhere is not written to.
    let victim = folder.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, journal.join("placed.json.new")).unwrap();
    std::os::unix::fs::symlink(&victim, journal.join("done.new")).unwrap();
    succeed(&arguments);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    assert_eq!(files(folder.path()), ["out", "victim"]);
}

#[test]
fn text_that_can_be_read_once_is_nothing_to_go_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let (output, journal) = (folder.path().join("out"), folder.path().join(".out.journal"));
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let feed = |word: &'static str| {
        let pipe = pipe.clone();
        std::thread::spawn(move || fs::write(pipe, word.repeat(4000)))
    };
    let arguments = command(&output, &["--recipe", "gptq", "--calibration", text(&pipe)]);
    let feeding = feed("the old house ");
    end_early(&arguments, &journal, 1, "-KILL");
    feeding.join().unwrap().unwrap();
    let message = fail(1, &arguments);
    assert!(message.contains("--calibration was what only process"), "{message}");
}

#[test]
fn outputs_that_stand_already_are_known_again() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--recipe", "gptq", "--to", "gptq,mlx", "--bits", "3,4"];
    let expected = uninterrupted(folder.path(), &more);
    let output = folder.path().join("out");
    let arguments = command(&output, &more);
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_quantc")).args(&arguments).stderr(Stdio::null()).spawn().unwrap();
    while !output.join("gptq-3bit").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before the first output stood");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = fs::metadata(output.join("gptq-3bit/model.safetensors")).unwrap().modified().unwrap();
    // No --force is needed for what this very run put there.
    succeed(&arguments);
    let after = fs::metadata(output.join("gptq-3bit/model.safetensors")).unwrap().modified().unwrap();
    assert_eq!(before, after);
    assert!(contents(&output) == expected);
}

/// Shows all that it is told.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Progress for Counting {
    fn phase(&self, _name: &str, steps: usize) {
        self.0.fetch_add(steps, Ordering::Relaxed);
    }
    fn step(&self, _detail: &str) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn finish(&self) {}
    fn warn(&self, _message: &str) {}
}

/// Takes every path, none of them often.
const EVERY_PATH: &str = "base = 'max'\nbits = 3\nown_text = 1\nscale_passes = 1\n[settings]\nrefits = 1\nsweeps = 1\ncoupled_sweeps = 1\n";

fn job(output: PathBuf, recipe: &str) -> QuantizeJob {
    QuantizeJob {
        recipe: Recipe::load(recipe, &Overrides::default()).unwrap(),
        calibration_windows: WindowRequest { samples: 4, context: 48, seed: None },
        evaluation: None,
        ..QuantizeJob::new(demo(), output, "gptq").unwrap()
    }
}

/// The demo's checkpoint as several files, in a directory of the same name: the model card states it.
fn sharded(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    fs::create_dir(&model).unwrap();
    for name in files(&demo()) {
        fs::copy(demo().join(&name), model.join(name)).unwrap();
    }
    let single = model.join("model.safetensors");
    let bytes = fs::read(&single).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    let mut weight_map = serde_json::Map::new();
    for (number, names) in names.chunks(names.len().div_ceil(3)).enumerate() {
        let shard = format!("model-{:05}-of-00003.safetensors", number + 1);
        let views = names.iter().map(|name| (name.to_string(), tensors.tensor(name).unwrap()));
        fs::write(model.join(&shard), safetensors::serialize(views, None).unwrap()).unwrap();
        weight_map.extend(names.iter().map(|name| (name.to_string(), shard.clone().into())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
    fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::remove_file(single).unwrap();
    model
}

#[test]
fn the_same_bytes_for_any_threads_shards_and_progress_and_after_a_death() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, EVERY_PATH).unwrap();
    let recipe = text(&recipe);
    let silent = folder.path().join("silent");
    quantc::quantize(&job(silent.clone(), recipe), &quantc::progress::Silent).unwrap();
    let expected = contents(&silent);
    let watched = folder.path().join("watched");
    let counting = Counting::default();
    quantc::quantize(&job(watched.clone(), recipe), &counting).unwrap();
    assert!(counting.0.load(Ordering::Relaxed) > 0);
    assert!(contents(&watched) == expected, "watched");
    let elsewhere = tempfile::tempdir().unwrap();
    let sharded = sharded(elsewhere.path());
    for threads in ["1", "2", "3", "8"] {
        let output = folder.path().join("out");
        let shape = ["--samples", "4", "--context", "48", "--recipe", recipe];
        let more = [&shape[..], &["--threads", threads]].concat();
        let mut arguments = command(&output, &more);
        match threads {
            "8" => arguments[1] = text(&sharded),
            "3" => {
                let (code, _) = end_early(&arguments, &folder.path().join(".out.journal"), 2, "-KILL");
                assert_eq!(code, None);
            }
            _ => {}
        }
        succeed(&arguments);
        assert!(contents(&output) == expected, "{threads} threads");
        fs::remove_dir_all(&output).unwrap();
    }
}

//! Files of strangers: each hostile one of `tests/data/hostile` ends in its message, or is read where it does no harm; no reader panics,
//! takes more memory than a stated multiple of the file, or takes long. Sound files that were damaged at random are read as well.

mod damage;
mod readers;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// A file may make the readers take so many bytes for each of its own, and those that lie among them when it is read: JSON as a tree is
/// the worst, where two bytes, a digit and a comma, are a value of 72 in a list that doubles as it grows.
const BYTES_FOR_A_BYTE: usize = 160;
/// What a reader may take whatever a file says: pieces that files are read in, tables of the tokenizer, threads, a template's fuel.
const BYTES_FOR_ANY: usize = 48 << 20;
/// A template may take what its fuel buys, 64 bytes each.
const BYTES_FOR_TEMPLATES: usize = 320 << 20;
/// Readers that run templates, and the one that goes on to quantize.
const HUNGRY: [&str; 4] = ["template", "tokenizer", "tokenizer-config", "model"];
/// Longest that a file may keep a reader busy, in a build without optimization on a busy machine.
const LONGEST: Duration = Duration::from_secs(20);

/// One line of index.tsv.
struct Hostile {
    file: String,
    reader: String,
    /// The sound model that it lies among, where there are several.
    among: String,
    /// Part of the message, or [`SOUND`].
    message: String,
}

fn index() -> Vec<Hostile> {
    let text = fs::read_to_string(readers::corpus().join("index.tsv")).unwrap();
    let field = |parts: &[&str], k: usize| parts[k].to_owned();
    text.lines()
        .skip(1)
        .map(|line| {
            let parts: Vec<&str> = line.split('\t').collect();
            assert_eq!(parts.len(), 4, "{line}");
            Hostile {
                file: field(&parts, 0),
                reader: field(&parts, 1),
                among: field(&parts, 2),
                message: field(&parts, 3),
            }
        })
        .collect()
}

/// What a reader says, on one line, without the folder of this run.
fn told(found: Result<(), String>, folder: &Path) -> String {
    let message = found.err().unwrap_or_else(|| SOUND.to_owned());
    let message =
        message.replace(&format!("{}/", folder.display()), "").replace(folder.to_str().unwrap(), "DIR");
    message
        .chars()
        .map(|c| if c.is_control() || c == '\\' { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

/// What is allocated is counted for the process, so one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `work` gives, and how much more memory was taken at once meanwhile than before.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let found = work();
    (found, ALLOCATOR.peak_usage().saturating_sub(before))
}

/// Most memory that `reader` may take for the files in `folder`.
fn bound(reader: &str, folder: &Path) -> usize {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    let any = if HUNGRY.contains(&reader) { BYTES_FOR_TEMPLATES } else { BYTES_FOR_ANY };
    any + BYTES_FOR_A_BYTE * files.sum::<u64>() as usize
}

/// A file that keeps its reader busy, and memory growing, until the process ends: it has one of its own.
const ENDLESS: &str = "template/doubles-a-list";

/// What stands in the index for files that are read.
const SOUND: &str = "no error";

/// Characters of a message that stand in the index.
const LONGEST_ESSENCE: usize = 300;

/// The part of a message that a file decides: without the lists of what is known, which grow, and what follows the first line.
fn essence(message: &str) -> &str {
    let ends = ["\\n", ", known are", "; the nearest known", ", expected one of"]
        .into_iter()
        .filter_map(|end| message.find(end));
    let message = &message[..ends.min().unwrap_or(message.len())];
    message.char_indices().nth(LONGEST_ESSENCE).map_or(message, |(end, _)| &message[..end])
}

#[test]
fn every_hostile_file_ends_in_its_message_within_bounds() {
    let _alone = alone();
    let index = index();
    assert!(index.len() >= 200, "{} files", index.len());
    let mut wrong = Vec::new();
    let mut written = "file\treader\tamong\tmessage\n".to_owned();
    let mut most: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for hostile in index.iter().filter(|hostile| hostile.file != ENDLESS) {
        let bytes = fs::read(readers::corpus().join("files").join(&hostile.file)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        readers::lay_out(&hostile.reader, &hostile.among, &bytes, folder.path());
        let bound = bound(&hostile.reader, folder.path());
        let start = Instant::now();
        println!("{}", hostile.file);
        let (found, taken) = measured(|| readers::read(&hostile.reader, folder.path()));
        let took = start.elapsed();
        let message = told(found, folder.path());
        if taken > bound || took > LONGEST {
            wrong.push(format!("{}: {taken} bytes of at most {bound}, {took:?}", hostile.file));
        }
        let right = match hostile.message.as_str() {
            SOUND => message == SOUND,
            part => message.contains(part),
        };
        if !right {
            wrong
                .push(format!("{}: expected\n    {}\n  found\n    {message}", hostile.file, hostile.message));
        }
        let worst = most.entry(&hostile.reader).or_default();
        *worst = (*worst).max((taken, &hostile.file));
        let row = [hostile.file.as_str(), &hostile.reader, &hostile.among, essence(&message)];
        written.push_str(&row.join("\t"));
        written.push('\n');
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert!(left.len() <= 8, "{} left files behind", hostile.file);
    }
    for (reader, (bytes, file)) in most {
        println!("{reader:<18} {bytes:>12} bytes at most, for {file}");
    }
    if std::env::var_os("QUANTC_WRITE_INDEX").is_some() {
        let endless = index.iter().find(|hostile| hostile.file == ENDLESS).unwrap();
        let row = [endless.file.as_str(), &endless.reader, &endless.among, &endless.message];
        written.push_str(&row.join("\t"));
        written.push('\n');
        fs::write(readers::corpus().join("index.tsv"), written).unwrap();
    }
    assert!(wrong.is_empty(), "{} of {} files:\n{}", wrong.len(), index.len(), wrong.join("\n"));
}

#[test]
fn every_hostile_file_is_in_the_index() {
    let listed: Vec<String> = index().into_iter().map(|hostile| hostile.file).collect();
    let root = readers::corpus().join("files");
    for reader in fs::read_dir(&root).unwrap() {
        for file in fs::read_dir(reader.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            assert!(listed.contains(&name), "{name}");
        }
    }
}

#[test]
fn a_template_that_never_ends_is_given_up() {
    let _alone = alone();
    let bytes = fs::read(readers::corpus().join("files").join(ENDLESS)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    readers::lay_out("template", "-", &bytes, folder.path());
    let start = Instant::now();
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_quantc"));
    let output = program.arg("generate").arg(folder.path()).args(["--prompt", "Hello"]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    let expected = index().into_iter().find(|hostile| hostile.file == ENDLESS).unwrap().message;
    assert!(message.contains(&expected) && start.elapsed() < LONGEST, "{message}");
}

#[test]
fn the_program_ends_with_one_error_and_obeys_no_file() {
    let programs = [
        ("config", "inspect", 1),
        ("quantization", "inspect", 1),
        ("gguf", "inspect", 1),
        ("record", "verify", 3),
    ];
    let refused = index().into_iter().filter(|hostile| hostile.message != SOUND);
    let mut run = 0;
    for (number, hostile) in refused.enumerate() {
        let Some((_, command, code)) = programs.iter().find(|(reader, ..)| *reader == hostile.reader) else {
            continue;
        };
        if number % 8 != 0 && !hostile.file.contains("escape") {
            continue;
        }
        let bytes = fs::read(readers::corpus().join("files").join(&hostile.file)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = readers::lay_out(&hostile.reader, &hostile.among, &bytes, folder.path());
        let model = if hostile.reader == "gguf" { path.as_path() } else { folder.path() };
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_quantc"))
            .arg(command)
            .arg(model)
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        // What inspect does not look into, and a record that is no JSON.
        let found = output.status.code();
        let codes = [Some(*code), Some(1)];
        let unseen = ["quantization", "gguf"].contains(&hostile.reader.as_str()) && found == Some(0);
        assert!(codes.contains(&found) || unseen, "{}: {found:?} {message}", hostile.file);
        assert!(unseen || message.starts_with("error: "), "{}: {message}", hostile.file);
        assert!(!message.contains("panicked"), "{}: {message}", hostile.file);
        assert!(!message.contains(|c: char| c.is_control() && c != '\n'), "{}: {message:?}", hostile.file);
        run += 1;
    }
    assert!(run >= 20, "{run}");
}

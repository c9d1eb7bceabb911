//! The readers of this program by name, each as what it does with one file of a stranger's: what the corpus of hostile files, the mutation
//! tests and the fuzzers call.
//!
//! A reader is given a directory in which [`lay_out`] put the file among sound ones. It reads all that the program would, and returns the
//! message of the error, if there is one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calibration::corpus::{Corpus, WindowShape};
use calibration::tokenizer::TextTokenizer;
use clap::Parser;
use formats::gguf::GgufFile;
use formats::imatrix::Imatrix;
use formats::segment::Segment;
use formats::solution::{ArrayPart, SolutionParts};
use formats::target::{self, StoredFormat};
use formats::{Checkpoint, FormatsError};
use model::Model;
use quantc::cli::{Cli, Command};
use quantc::job::Overrides;
use quantc::recipe::Recipe;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Every reader: its name, and what the file is called that it reads.
pub(crate) const READERS: [(&str, &str); 16] = [
    ("safetensors", "model.safetensors"),
    ("index", "model.safetensors.index.json"),
    ("config", "config.json"),
    ("packed", "model.safetensors"),
    ("quantization", "config.json"),
    ("gguf", "model.gguf"),
    ("onnx", "model.onnx"),
    ("imatrix", "imatrix.gguf"),
    ("tokenizer", "tokenizer.json"),
    ("tokenizer-config", "tokenizer_config.json"),
    ("template", "chat_template.jinja"),
    ("recipe", "recipe.toml"),
    ("record", "quantc.json"),
    ("text", "text.jsonl"),
    ("model", "model.safetensors"),
    ("journal", "layer-00000"),
];

/// `tests/data/hostile`.
pub(crate) fn corpus() -> PathBuf {
    // The fuzzers, which include this file, lie a folder deeper.
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders
        .map(|folder| folder.join("tests/data/hostile"))
        .find(|folder| folder.is_dir())
        .expect("it is there")
}

/// The sound files that the file of `reader` lies among, in `corpus()/sound`; those of `packed` are of the format `variant`.
fn company(reader: &str, variant: &str) -> Option<String> {
    Some(match reader {
        "config" | "model" | "tokenizer" | "tokenizer-config" | "template" => "dense".to_owned(),
        "packed" | "quantization" | "record" => variant.to_owned(),
        "onnx" => "onnx".to_owned(),
        _ => return None,
    })
}

/// Writes `bytes` as the file of `reader` into the empty directory `folder`, among what belongs beside it. `variant` says which sound model
/// that is, where there are several.
pub(crate) fn lay_out(reader: &str, variant: &str, bytes: &[u8], folder: &Path) -> PathBuf {
    if let Some(sound) = company(reader, variant) {
        let sound = corpus().join("sound").join(sound);
        for entry in fs::read_dir(&sound).expect("the sound files are there") {
            let entry = entry.expect("they can be listed");
            fs::write(folder.join(entry.file_name()), fs::read(entry.path()).expect("they can be read"))
                .expect("they can be written");
        }
    }
    if reader == "index" {
        for (name, tensor) in [("1.safetensors", "a"), ("2.safetensors", "b")] {
            let header = json!({tensor: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).to_string();
            let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), b"x"].concat();
            fs::write(folder.join(name), file).expect("it can be written");
        }
    }
    let name = READERS.iter().find(|(name, _)| *name == reader).expect("the reader is known").1;
    let path = folder.join(name);
    let whole = match reader {
        "packed" | "model" => overlaid(&fs::read(&path).expect("the sound model is there"), bytes),
        "journal" => Some([bytes, Sha256::digest(bytes).as_slice()].concat()),
        _ => None,
    };
    fs::write(&path, whole.as_deref().unwrap_or(bytes)).expect("it can be written");
    path
}

/// A checkpoint's file with some of its tensors replaced by those of `changes`, which may name others in its metadata that are left out;
/// none where `changes` is no such file.
fn overlaid(sound: &[u8], changes: &[u8]) -> Option<Vec<u8>> {
    let (mut tensors, _) = tensors(sound)?;
    let (replaced, without) = self::tensors(changes)?;
    tensors.extend(replaced);
    tensors.retain(|name, _| !without.contains(name));
    let mut data = Vec::new();
    let mut header = serde_json::Map::new();
    for (name, (mut entry, bytes)) in tensors {
        entry["data_offsets"] = json!([data.len(), data.len() + bytes.len()]);
        data.extend(bytes);
        header.insert(name, entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    Some([&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat())
}

type Tensors = BTreeMap<String, (serde_json::Value, Vec<u8>)>;

/// The tensors of a file, each with what the header says of it, and the names in `without` of its metadata.
fn tensors(file: &[u8]) -> Option<(Tensors, Vec<String>)> {
    let (length, rest) = file.split_at_checked(8)?;
    let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    let (header, data) = rest.split_at_checked(length)?;
    let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    let metadata = header.remove("__metadata__").unwrap_or_default();
    let without = metadata["without"].as_str().unwrap_or_default().split(' ').map(str::to_owned).collect();
    let mut tensors = Tensors::new();
    for (name, entry) in header {
        let place = |k: usize| usize::try_from(entry["data_offsets"][k].as_u64()?).ok();
        let bytes = data.get(place(0)?..place(1)?)?.to_vec();
        entry.is_object().then(|| tensors.insert(name, (entry, bytes)))?;
    }
    Some((tensors, without))
}

/// Reads what [`lay_out`] wrote.
pub(crate) fn read(reader: &str, folder: &Path) -> Result<(), String> {
    let name = READERS.iter().find(|(name, _)| *name == reader).expect("the reader is known").1;
    let path = folder.join(name);
    match reader {
        "safetensors" | "index" => weights(folder).map_err(told),
        "onnx" => packed(folder),
        "config" => quantc::inspect::inspect(folder).map(|_| ()).map_err(told),
        "packed" | "quantization" => {
            quantc::inspect::inspect(folder).map_err(told)?;
            packed(folder)
        }
        "gguf" => gguf(&path),
        "imatrix" => Imatrix::read(&path).map(|_| ()).map_err(told),
        "tokenizer" | "tokenizer-config" | "template" => tokenizer(folder),
        "recipe" => Recipe::load(path.to_str().expect("paths are text"), &Overrides::default())
            .map(|_| ())
            .map_err(told),
        "record" => {
            let found = quantc::verify::verify(folder, None, &quantc::progress::Silent).map_err(told)?;
            found.problems.first().map_or(Ok(()), |problem| Err(problem.clone()))
        }
        "text" => text(&path),
        "journal" => segment(&path),
        "model" => quantized(folder),
        other => unreachable!("{other}"),
    }
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Every tensor: its bytes, and its numbers where it has some.
fn weights(folder: &Path) -> Result<(), FormatsError> {
    numbers(&Checkpoint::open(folder)?)
}

fn numbers(checkpoint: &Checkpoint) -> Result<(), FormatsError> {
    for name in checkpoint.names() {
        let found = checkpoint.info(name)?;
        let bytes = checkpoint.read(name)?;
        assert_eq!(bytes.len() as u64, found.bytes);
        if let (true, &[rows, columns]) = (found.dtype.is_float(), found.shape) {
            let matrix = checkpoint.read_matrix(name, (rows, columns))?;
            assert!(matrix.iter().all(|value| value.is_finite()));
            checkpoint.read_rows(name, rows / 2..rows)?;
        } else if let (true, &[length]) = (found.dtype.is_float(), found.shape) {
            checkpoint.read_vector(name, length)?;
        }
    }
    Ok(())
}

/// The model quantized, which says what is wrong with its numbers.
fn quantized(folder: &Path) -> Result<(), String> {
    let output = tempfile::tempdir_in(folder).map_err(told)?;
    let out = output.path().join("out");
    let arguments = [
        "quantc",
        "quantize",
        folder.to_str().expect("paths are text"),
        "-o",
        out.to_str().expect("paths are text"),
        "--to",
        "mlx",
        "--group-size",
        "32",
        "--samples",
        "4",
        "--context",
        "16",
        "--evaluate-samples",
        "4",
        "--evaluate-context",
        "16",
    ];
    let job = match Cli::try_parse_from(arguments).map_err(told)?.command {
        Command::Quantize(arguments) => arguments.into_job().map_err(told)?,
        other => unreachable!("{other:?}"),
    };
    let reports = quantc::quantize(&job, &quantc::progress::Silent).map_err(told)?;
    assert!(reports.iter().all(|report| report.verification.problems.is_empty()));
    Ok(())
}

/// Every linear as its format decodes it and as the kernels multiply with it.
fn packed(folder: &Path) -> Result<(), String> {
    let text = fs::read(folder.join("config.json")).map_err(told)?;
    let config: serde_json::Value = serde_json::from_slice(&text).map_err(told)?;
    let model = Model::resolve(&config).map_err(told)?;
    let checkpoint = Checkpoint::open(folder).map_err(told)?;
    let description = target::description(&config).ok_or("the sound model is quantized")?;
    linears(&model, &checkpoint, target::open(description).map_err(told)?.as_ref())
}

fn linears(model: &Model, checkpoint: &Checkpoint, format: &dyn StoredFormat) -> Result<(), String> {
    for linear in model.linears() {
        let Some(scheme) = format.scheme(linear) else { continue };
        let tensor = format.decode(linear, scheme, checkpoint).map_err(told)?;
        assert_eq!((tensor.out_features(), tensor.in_features()), (linear.out_features, linear.in_features));
        // Finite scales may still be too large for finite weights, which the forward pass then says.
        assert!(!tensor.dequantize().iter().any(|value| value.is_nan()), "{} holds NaN", linear.name);
        format.packed(linear, scheme, checkpoint).map_err(told)?;
        format.input_rounding(linear, scheme, checkpoint).map_err(told)?;
    }
    Ok(())
}

fn gguf(path: &Path) -> Result<(), String> {
    let Some(path) = GgufFile::find(path).map_err(told)? else {
        return Err("is no GGUF file".to_owned());
    };
    let file = GgufFile::open(&path).map_err(told)?;
    let config = file.config().map_err(told)?;
    let model = Model::resolve(&config).map_err(told)?;
    let (format, checkpoint) = file.into_parts(&model).map_err(told)?;
    linears(&model, &checkpoint, format.as_ref())?;
    for tensor in model.expected_tensors() {
        if checkpoint.info(&tensor.name).map_err(told)?.dtype.is_float() {
            checkpoint.expect_shape(&tensor.name, &tensor.shape).map_err(told)?;
        }
    }
    numbers(&checkpoint).map_err(told)
}

/// What parts of a journal's segment are said to be.
#[derive(Deserialize)]
struct Parts {
    solutions: Vec<SolutionParts>,
    arrays: Vec<ArrayPart>,
}

/// A file of a journal, under a checksum that is right.
fn segment(path: &Path) -> Result<(), String> {
    let segment = Segment::open(path).map_err(told)?.ok_or("there is no segment")?;
    let parts: Parts = segment.head().map_err(told)?;
    for solution in &parts.solutions {
        let tensor = segment.solution(solution).map_err(told)?;
        assert_eq!(tensor.dequantize().dim(), tensor.codes().dim());
    }
    parts.arrays.iter().try_for_each(|&array| segment.array(array).map(|_| ()).map_err(told))
}

/// A conversation and texts that are no prose.
fn tokenizer(folder: &Path) -> Result<(), String> {
    let tokenizer = TextTokenizer::open(folder).map_err(told)?.ok_or("there is no tokenizer")?;
    for text in [
        "Hello, world.",
        "",
        "\u{0}\u{feff}e\u{301}\u{1f600} \t\r\n\n  x",
        "0123456789 <s> </s> <|im_start|>",
    ] {
        let tokens = tokenizer.encode(text).map_err(told)?;
        let mut stream = tokenizer.stream();
        for token in tokens {
            stream.push(token).map_err(told)?;
        }
    }
    let ordinary = tokenizer.ordinary_tokens(VOCABULARY);
    assert!(ordinary.iter().all(|token| (*token as usize) < VOCABULARY));
    // Ids that the tokenizer does not have, as a model with a larger embedding writes them.
    let mut stream = tokenizer.stream();
    for token in [0, 7, u32::MAX] {
        stream.push(token).map_err(told)?;
    }
    if tokenizer.has_chat() {
        let messages = json!([
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Hello {{ '{%' }}"},
            {"role": "assistant", "content": "Hi."}
        ]);
        tokenizer.render_question(&messages).map_err(told)?;
    }
    let corpus = Corpus::new("text", "The quick brown fox jumps over the lazy dog. ".repeat(8));
    let shape = WindowShape { samples: 2, context: 8, seed: Some(1) };
    corpus.windows(Some(&tokenizer), VOCABULARY, shape).map(|_| ()).map_err(told)
}

/// Rows of the sound models' embedding.
pub(crate) const VOCABULARY: usize = 104;

fn text(path: &Path) -> Result<(), String> {
    let corpus = Corpus::read(path).map_err(told)?;
    let tokenizer = TextTokenizer::open(&self::corpus().join("sound/dense")).map_err(told)?;
    let shape = WindowShape { samples: 2, context: 4, seed: Some(1) };
    corpus.windows(tokenizer.as_ref(), VOCABULARY, shape).map(|_| ()).map_err(told)
}

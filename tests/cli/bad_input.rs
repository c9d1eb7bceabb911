//! Mistakes: one clear error, exit code 1, nothing left behind.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json as object};
use tempfile::TempDir;

use crate::run::{copy, demo, fail, files, json, text};

/// Runs `quantize` on `model` and demands an error with all `words`, and an output folder without a trace.
fn refused(model: &Path, more: &[&str], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let mut arguments = vec![
        "quantize",
        text(model),
        "-o",
        text(&output),
        "--samples",
        "2",
        "--context",
        "64",
        "--no-evaluate",
    ];
    arguments.extend(more);
    let message = fail(1, &arguments);
    for word in words {
        assert!(message.contains(word), "`{word}` is missing from: {message}");
    }
    assert_eq!(files(folder.path()), Vec::<String>::new(), "left behind after: {message}");
}

/// The demo model with its configuration changed.
fn configured(key: &str, value: Value) -> TempDir {
    let model = copy(&demo());
    let path = model.path().join("config.json");
    let mut config = json(&path);
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
    model
}

/// The demo model with one tensor's bytes changed.
fn damaged(tensor: &str, change: impl FnOnce(&mut [u8])) -> TempDir {
    let model = copy(&demo());
    let path = model.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let data = SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap().data().as_ptr_range();
    let start = data.start as usize - bytes.as_ptr() as usize;
    let end = data.end as usize - bytes.as_ptr() as usize;
    change(&mut bytes[start..end]);
    fs::write(path, bytes).unwrap();
    model
}

fn written(name: &str, content: &[u8]) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    let path = text(&path).to_owned();
    (folder, path)
}

#[test]
fn a_model_that_is_not_there_or_not_a_directory() {
    refused(Path::new("no/such/model"), &[], &["no/such/model"]);
    refused(&demo().join("config.json"), &[], &["config.json", "director"]);
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), &[], &["config.json"]);
}

#[test]
fn a_truncated_shard() {
    let model = copy(&demo());
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for keep in [0, 5, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..keep]).unwrap();
        refused(model.path(), &[], &["model.safetensors"]);
    }
    fs::remove_file(&path).unwrap();
    refused(model.path(), &[], &["safetensors"]);
}

#[test]
fn a_tensor_of_another_shape_or_none() {
    refused(configured("intermediate_size", object!(1024)).path(), &[], &["gate_proj", "1024", "768"]);
    refused(configured("num_hidden_layers", object!(6)).path(), &[], &["model.layers.5."]);
}

#[test]
fn numbers_that_are_not_finite() {
    let model =
        damaged("model.layers.3.mlp.up_proj.weight", |bytes| bytes[100..102].copy_from_slice(&[0xc0, 0x7f]));
    refused(model.path(), &[], &["model.layers.3.mlp.up_proj", "NaN"]);
    let model = damaged("model.norm.weight", |bytes| bytes[..2].copy_from_slice(&[0x80, 0x7f]));
    refused(model.path(), &[], &["model.norm.weight", "inf"]);
}

#[test]
fn an_architecture_that_is_not_known() {
    refused(configured("model_type", object!("lama")).path(), &[], &["lama", "llama"]);
    refused(configured("rope_parameters", object!({"rope_type": "spiral"})).path(), &[], &["spiral"]);
    refused(configured("hidden_act", object!("step")).path(), &[], &["step"]);
    refused(configured("num_hidden_layers", object!(0)).path(), &[], &["num_hidden_layers"]);
    refused(configured("hidden_size", object!(1_u64 << 62)).path(), &[], &["hidden_size"]);
}

#[test]
fn a_checkpoint_that_is_quantized_already() {
    let config =
        object!({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false});
    refused(configured("quantization_config", config).path(), &[], &["quantized already", "hint"]);
}

#[test]
fn text_that_cannot_be_used() {
    let (_keep, empty) = written("empty.txt", b"");
    refused(&demo(), &["--calibration", &empty], &["empty.txt", "empty"]);
    let (_keep, short) = written("short.txt", b"Too short.");
    refused(&demo(), &["--calibration", &short], &["short.txt", "4 tokens", "63"]);
    let (_keep, broken) = written("broken.txt", &[b'a', 0xff, 0xfe, b'b']);
    refused(&demo(), &["--calibration", &broken], &["broken.txt", "UTF-8"]);
    let (_keep, lines) = written("lines.jsonl", b"{\"text\": \"fine\"}\n{\"txt\": 1}\n");
    refused(&demo(), &["--calibration", &lines], &["lines.jsonl", "2"]);
    let (_keep, ids) = written("ids.jsonl", b"{\"input_ids\": [1, 2, 999999]}\n");
    refused(&demo(), &["--calibration", &ids], &["ids.jsonl", "999999", "2048"]);
    refused(&demo(), &["--calibration", "no/such.txt"], &["no/such.txt"]);
}

#[test]
fn schemes_that_cannot_be() {
    refused(&demo(), &["--bits", "9"], &["--bits", "9"]);
    refused(&demo(), &["--group-size", "7"], &["--group-size", "7"]);
    refused(&demo(), &["--bits", "5", "--to", "gptq"], &["5"]);
    refused(&demo(), &["--to", "gguff"], &["gguff", "gptq"]);
    refused(&demo(), &["--exclude", "("], &["--exclude"]);
    refused(&demo(), &["--recipe", "besst"], &["besst", "default"]);
    refused(&demo(), &["--exclude", "."], &["no linear"]);
}

#[test]
fn weights_that_point_outside_the_directory() {
    let model = copy(&demo());
    let bytes = fs::read(model.path().join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for escape in ["../model.safetensors", "/etc/passwd", "a/../../model.safetensors"] {
        let map: HashMap<_, _> = tensors.names().into_iter().map(|name| (name.to_owned(), escape)).collect();
        let index = object!({"metadata": {"total_size": 1}, "weight_map": map});
        fs::write(model.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let alone = copy(model.path());
        fs::remove_file(alone.path().join("model.safetensors")).unwrap();
        refused(alone.path(), &[], &["out of the directory", escape]);
    }
}

#[test]
fn pickled_weights_are_refused_with_a_hint() {
    let model = copy(&demo());
    fs::remove_file(model.path().join("model.safetensors")).unwrap();
    fs::write(model.path().join("pytorch_model.bin"), b"PK").unwrap();
    refused(model.path(), &[], &["pytorch_model.bin", "safetensors"]);
}

#[test]
fn a_tensor_type_that_cannot_be_read() {
    let model = copy(&demo());
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let old = SafeTensors::deserialize(&bytes).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let shape = old.tensor(name).unwrap().shape().to_vec();
    let zeros = vec![0; shape.iter().product()];
    let mut tensors: Vec<(String, TensorView<'_>)> = old.tensors();
    for (known, view) in &mut tensors {
        if known == name {
            *view = TensorView::new(Dtype::I8, shape.clone(), &zeros).unwrap();
        }
    }
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    refused(model.path(), &[], &[name, "I8"]);
}

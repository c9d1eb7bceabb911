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
fn a_checkpoint_that_says_it_is_quantized_and_is_not() {
    let config =
        object!({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false});
    refused(
        configured("quantization_config", config).path(),
        &[],
        &["quantized in the format gptq", "no linear is packed", "hint"],
    );
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
    let (_keep, list) = written("list.json", b"[{\"text\": \"fine\"}]\n");
    refused(&demo(), &["--calibration", &list], &["list.json", "each line"]);
    let (_keep, nested) = written("nested.json", b"{\n  \"data\": [{\"text\": \"fine\"}]\n}\n");
    refused(&demo(), &["--calibration", &nested], &["nested.json", "each line"]);
    let (_keep, other) = written("pairs.txt", b"{\"instruction\": \"a\", \"output\": \"b\"}\n");
    refused(&demo(), &["--calibration", &other], &["pairs.txt, line 1", "messages"]);
}

#[test]
fn schemes_that_cannot_be() {
    refused(&demo(), &["--bits", "9"], &["--bits", "9"]);
    refused(&demo(), &["--group-size", "7"], &["--group-size", "7"]);
    refused(&demo(), &["--bits", "5", "--to", "gptq"], &["5", "--to compressed-tensors"]);
    refused(&demo(), &["--to", "gguff"], &["gguff", "gptq"]);
    refused(&demo(), &["--exclude", "("], &["--exclude"]);
    refused(&demo(), &["--recipe", "besst"], &["besst", "default"]);
    refused(&demo(), &["--exclude", "."], &["no linear"]);
    refused(&demo(), &["--exclude", "lm_heed"], &["--exclude", "lm_heed", "model.layers.0.self_attn.q_proj"]);
    refused(&demo(), &["--exclude", "q_proj"], &["k_proj", "q, k and v"]);
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

#[test]
fn a_report_that_could_not_be_written_is_noticed_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    refused(&demo(), &["--export-json", text(folder.path())], &["--export-json", "is a directory"]);
    let nowhere = folder.path().join("no/such/report.json");
    refused(&demo(), &["--export-json", text(&nowhere)], &["--export-json", "report.json"]);
    assert_eq!(files(folder.path()), Vec::<String>::new());
    for inside in ["out", "out/report.json"] {
        fs::create_dir_all(folder.path().join("out")).unwrap();
        fs::write(folder.path().join("out/quantc.json"), "{}").unwrap();
        let (output, report) = (folder.path().join("out"), folder.path().join(inside));
        let model = demo();
        let arguments =
            ["quantize", text(&model), "-o", text(&output), "--force", "--export-json", text(&report)];
        let message = fail(1, &arguments);
        assert!(message.contains("--export-json"), "{message}");
        assert_eq!(files(&output), ["quantc.json"]);
    }
}

#[test]
fn a_rule_that_means_no_linear() {
    let (_keep, recipe) = written("recipe.toml", b"[[rule]]\nlayers = \"30-31\"\nbits = 8\n");
    refused(&demo(), &["--recipe", &recipe], &["recipe.toml", "rule 1", "no linear"]);
}

#[test]
fn a_tied_head_that_is_not_the_embedding() {
    let model = copy(&demo());
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let old = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(json(&model.path().join("config.json"))["tie_word_embeddings"], true);
    let embedding = old.tensor("model.embed_tokens.weight").unwrap();
    let mut head = embedding.data().to_vec();
    let write = |head: &[u8]| {
        let mut tensors = old.tensors();
        let view = TensorView::new(embedding.dtype(), embedding.shape().to_vec(), head).unwrap();
        tensors.push(("lm_head.weight".to_owned(), view));
        fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    };
    write(&head);
    let folder = tempfile::tempdir().unwrap();
    let (_, report) =
        crate::run::quantize(folder.path(), model.path(), &["--recipe", "rtn", "--no-evaluate"]);
    assert!(report["notes"].to_string().contains("repeats"), "{}", report["notes"]);
    head[777] ^= 1;
    write(&head);
    refused(model.path(), &[], &["tie_word_embeddings", "lm_head.weight"]);
}

#[test]
fn an_output_is_not_replaced_when_the_job_reads_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    fs::create_dir(&output).unwrap();
    fs::write(output.join("quantc.json"), "{}").unwrap();
    let (model, calibration) = (demo(), output.join("text.txt"));
    fs::write(&calibration, "kept").unwrap();
    let arguments =
        ["quantize", text(&model), "-o", text(&output), "--force", "--calibration", text(&calibration)];
    let message = fail(1, &arguments);
    assert!(message.contains("text.txt") && message.contains("replaced"), "{message}");
    assert_eq!(fs::read_to_string(&calibration).unwrap(), "kept");
}

#[test]
fn a_value_that_the_output_cannot_hold() {
    // A float32 checkpoint goes to bfloat16 when a value is beyond half precision, also in a linear that stays as it is.
    let model = float32(&demo(), "model.layers.1.mlp.down_proj.weight", 1e5);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let arguments = ["quantize", text(model.path()), "-o", text(&output), "--no-evaluate", "--recipe", "rtn"];
    crate::run::succeed(&[&arguments[..], &["--exclude", "down_proj"]].concat());
    assert_eq!(json(&output.join("config.json"))["dtype"], "bfloat16");
    // Rounds to infinity in bfloat16.
    let model = float32(&demo(), "model.norm.weight", f32::MAX);
    refused(model.path(), &["--recipe", "rtn"], &["model.norm.weight", "cannot hold"]);
}

/// A copy of a checkpoint in float32, whose tensor `name` begins with `value`.
fn float32(model: &Path, name: &str, value: f32) -> TempDir {
    let model = copy(model);
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let wide: Vec<(String, Vec<usize>, Vec<u8>)> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(known, view)| {
            assert_eq!(view.dtype(), Dtype::BF16);
            let words = view.data().chunks_exact(2);
            let mut values: Vec<u8> = words.flat_map(|word| [0, 0, word[0], word[1]]).collect();
            if known == name {
                values[..4].copy_from_slice(&value.to_le_bytes());
            }
            (known, view.shape().to_vec(), values)
        })
        .collect();
    let views = wide
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    model
}

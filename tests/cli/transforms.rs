//! Recipes with transforms: what is written computes what the original computes, and what cannot be done is refused.

use std::fs;
use std::path::Path;

use crate::run::{copy, demo, fail, json, quantize, succeed, text, tiny};

fn recipe(folder: &Path, content: &str) -> String {
    let path = folder.join("recipe.toml");
    fs::write(&path, content).unwrap();
    text(&path).to_owned()
}

const ALL: &str =
    "transforms = ['equalize-outputs', 'rotate-values', 'equalize-inputs', 'rotate-residual']\n";

#[test]
fn a_transformed_model_at_eight_bits_is_the_original() {
    let folder = tempfile::tempdir().unwrap();
    let kl = |recipe: &str, more: &[&str]| {
        let arguments = [&["--recipe", recipe, "--bits", "8"], more].concat();
        let (output, report) = quantize(folder.path(), &demo(), &arguments);
        succeed(&["verify", text(&output)]);
        (report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap(), report)
    };
    let (plain, tied) = kl("rtn", &[]);
    assert_eq!(tied["transforms"].as_array().map(Vec::len), Some(0));
    let all = recipe(folder.path(), &format!("base = 'rtn'\n{ALL}"));
    let (transformed, report) = kl(&all, &["--untie"]);
    // Both are what 8 bit and 16-bit embeddings leave.
    assert!(plain < 1e-3 && transformed < 1e-3, "{plain} {transformed}");
    let names = ["rotate-residual", "rotate-values", "equalize-inputs", "equalize-outputs"];
    assert_eq!(report["transforms"], serde_json::json!(names));
    assert!(report["calibration"].is_object(), "factors are chosen by text, also for rounding to nearest");
    let output = folder.path().join("out");
    assert_eq!(json(&output.join("config.json"))["tie_word_embeddings"], false);
    let bytes = fs::read(output.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let head = tensors.tensor("lm_head.weight").unwrap();
    assert_eq!(head.shape(), [2048, 256]);
    assert_ne!(head.data(), tensors.tensor("model.embed_tokens.weight").unwrap().data());
    let added = report["size"]["bytes"].as_u64().unwrap() - tied["size"]["bytes"].as_u64().unwrap();
    assert!((2048 * 256 * 2..2048 * 256 * 2 + 200).contains(&added), "{added}");
}

#[test]
fn untying_alone_writes_the_embedding_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--untie", "--no-evaluate"]);
    let bytes = fs::read(output.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (head, embedding) = ("lm_head.weight", "model.embed_tokens.weight");
    assert_eq!(tensors.tensor(head).unwrap().data(), tensors.tensor(embedding).unwrap().data());
    let original = fs::read(demo().join("model.safetensors")).unwrap();
    let original = safetensors::SafeTensors::deserialize(&original).unwrap();
    assert_eq!(tensors.tensor(head).unwrap().data(), original.tensor(embedding).unwrap().data());
    let (_, report) =
        quantize(folder.path(), &tiny("llama"), &["--recipe", "rtn", "--untie", "--no-evaluate"]);
    assert!(report["notes"].to_string().contains("not tied"), "{}", report["notes"]);
}

#[test]
fn the_same_bytes_for_any_number_of_threads_under_transforms() {
    let folder = tempfile::tempdir().unwrap();
    let all = recipe(folder.path(), &format!("base = 'gptq'\n{ALL}"));
    let written = ["1", "3"].map(|threads| {
        let more = ["--recipe", &all, "--untie", "--threads", threads, "--no-evaluate"];
        let (output, _) = quantize(folder.path(), &demo(), &more);
        fs::read(output.join("model.safetensors")).unwrap()
    });
    assert!(written[0] == written[1]);
}

#[test]
fn a_tied_head_is_not_rotated_unless_it_may_be_untied() {
    let folder = tempfile::tempdir().unwrap();
    let rotate = recipe(folder.path(), "transforms = ['rotate-residual']");
    let output = folder.path().join("out");
    let message = fail(1, &["quantize", text(&demo()), "-o", text(&output), "--recipe", &rotate]);
    for word in ["model.embed_tokens.weight", "tie_word_embeddings", "hint: give --untie"] {
        assert!(message.contains(word), "{word}: {message}");
    }
}

#[test]
fn a_tensor_that_is_not_known_is_not_left_behind_a_rotation() {
    let model = copy(&tiny("llama"));
    let weights = model.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let old = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let extra = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0, 0, 128, 63]);
    let mut tensors: Vec<(String, safetensors::tensor::TensorView<'_>)> = old.tensors();
    tensors.push(("adapter.weight".to_owned(), extra.unwrap()));
    fs::write(&weights, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let rotate = recipe(folder.path(), "base = 'rtn'\ntransforms = ['rotate-residual']");
    let output = folder.path().join("out");
    let message = fail(1, &["quantize", text(model.path()), "-o", text(&output), "--recipe", &rotate]);
    assert!(
        message.contains("adapter.weight") && message.contains("hint: leave rotate-residual"),
        "{message}"
    );
}

#[test]
fn a_transform_that_there_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = recipe(folder.path(), "transforms = ['rotate-keys']");
    let output = folder.path().join("out");
    let message = fail(1, &["quantize", text(&demo()), "-o", text(&output), "--recipe", &wrong]);
    assert!(message.contains("rotate-keys") && message.contains("equalize-outputs"), "{message}");
}

//! GGUF from the command line: written, proven, measured, read again as a bare file; damaged and foreign files refused.

use std::fs;

use crate::run::{demo, fail, quantize, succeed, text, tiny, with_tokenizer};

#[test]
fn an_output_is_one_file_that_is_proven_measured_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let (output, report) = quantize(folder.path(), &demo(), &["--recipe", "gptq", "--to", "gguf:q4_0"]);
    let file = output.join("model-q4_0.gguf");
    assert_eq!(report["size"]["bytes"].as_u64(), Some(fs::metadata(&file).unwrap().len()));
    assert_eq!(report["size"]["linear_bits_per_weight"].as_f64(), Some(4.5));
    assert!(report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap() < 0.05);
    let linears = report["linears"].as_array().unwrap();
    assert!(linears.iter().all(|linear| linear["bits"] == 4 && linear["group_size"] == 32));
    assert_eq!(report["verification"]["linears"].as_u64(), Some(35));
    let inspected = succeed(&["inspect", text(&file)]);
    for words in ["gguf:q4_0", "4 bit, symmetric, groups of 32", "llama.cpp"] {
        assert!(inspected.contains(words), "{inspected}");
    }
    let measure = ["--evaluate-samples", "2", "--evaluate-context", "64"];
    let figures = |model: &str| {
        let printed = succeed(&[&["evaluate", model][..], &measure].concat());
        printed.lines().find(|line| line.contains("perplexity")).map(str::to_owned)
    };
    assert_eq!(figures(text(&output)), figures(text(&file)));
    // Alone it has no tokenizer for text.
    let bare = folder.path().join("bare.gguf");
    fs::copy(&file, &bare).unwrap();
    succeed(&["inspect", text(&bare)]);
    let message = fail(1, &[&["evaluate", text(&bare)][..], &measure].concat());
    assert!(message.contains("tokenizer.json"), "{message}");

    let intact = fs::read(&file).unwrap();
    for place in [4, 100, intact.len() / 2, intact.len() - 40] {
        let mut damaged = intact.clone();
        damaged[place] ^= 4;
        fs::write(&file, damaged).unwrap();
        fail(3, &["verify", text(&output)]);
    }
    fs::write(&file, &intact[..intact.len() / 2]).unwrap();
    let message = fail(1, &["inspect", text(&file)]);
    assert!(message.contains("model-q4_0.gguf"), "{message}");
}

#[test]
fn a_type_that_quantizes_nothing_needs_no_text_and_is_proven_as_well() {
    let folder = tempfile::tempdir().unwrap();
    for (to, kl) in [("gguf:bf16", 1e-9), ("gguf:f32", 1e-9), ("gguf:f16", 1e-4)] {
        let (output, report) = quantize(folder.path(), &demo(), &["--to", to]);
        assert!(report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap().abs() < kl, "{to}");
        assert_eq!(report["verification"]["tensors"].as_u64(), Some(47), "{to}");
        succeed(&["verify", text(&output)]);
    }
}

#[test]
fn what_llama_cpp_wants_otherwise_is_proven_and_computes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let window = folder.path().join("window.jsonl");
    fs::write(&window, "{\"input_ids\": [5, 9, 63, 2, 17, 40, 8, 33, 21, 0, 50, 11]}\n").unwrap();
    let measure = ["--evaluate-on", text(&window), "--evaluate-samples", "1", "--evaluate-context", "12"];
    // One more in norms; matrices turned; rows regrouped; experts stacked.
    for name in ["gemma", "gpt2", "bloom", "deepseek_v3", "gpt_oss"] {
        let source = with_tokenizer(&tiny(name));
        let (output, report) =
            quantize(folder.path(), source.path(), &[&["--to", "gguf:f32"][..], &measure].concat());
        let divergence = report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap();
        assert!(divergence.abs() < 1e-9, "{name}: {divergence}");
        succeed(&["verify", text(&output)]);
        fs::remove_dir_all(&output).unwrap();
    }
    let output = folder.path().join("several");
    let limit = ["--to", "gguf:q4_0", "--recipe", "rtn", "--no-evaluate", "--max-shard-size", "2MB"];
    succeed(&[&["quantize", text(&demo()), "-o", text(&output)][..], &limit].concat());
    let first = output.join("model-q4_0-00001-of-00002.gguf");
    assert!(first.is_file(), "{:?}", crate::run::files(&output));
    succeed(&["verify", text(&output)]);
    succeed(&["inspect", text(&first)]);
    let pieces = folder.path().join("pieces");
    fs::create_dir(&pieces).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(demo().join(file), pieces.join(file)).unwrap();
    }
    fs::write(pieces.join("tokenizer.model"), "").unwrap();
    let none = folder.path().join("none");
    let refused = ["quantize", text(&pieces), "-o", text(&none), "--to", "gguf:f16"];
    let message = fail(1, &refused);
    assert!(message.contains("tokenizer.model") && message.contains("save_pretrained"), "{message}");
}

#[test]
fn what_a_type_leaves_no_choice_of_is_not_asked_for_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    for (to, flags, words) in [
        ("gguf:q4_0", &["--bits", "3"][..], ["--bits", "4 bit"]),
        ("gguf:q8_0", &["--group-size", "128"], ["--group-size", "32 columns"]),
        ("gguf:q5_0", &["--asymmetric"], ["--asymmetric", "gguf:q5_0"]),
        ("gguf:q9", &[], ["gguf:q9", "gguf:q8_0"]),
        ("mlx", &["--group-size", "channel"], ["q_proj", "--group-size 64"]),
        ("awq", &["--bits", "3"], ["q_proj", "compressed-tensors"]),
    ] {
        let message =
            fail(1, &[&["quantize", text(&demo()), "-o", text(&output), "--to", to][..], flags].concat());
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    let message = fail(1, &["quantize", text(&tiny("llama")), "-o", text(&output), "--to", "gguf:f16"]);
    assert!(message.contains("tokenizer.json"), "{message}");
}

//! `list`, `inspect` and help.

use crate::run::{demo, quantc, quantize, succeed, text};

#[test]
fn each_list_has_one_line_for_each_item() {
    for (what, items) in [
        ("architectures", vec!["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "bloom"]),
        ("formats", vec!["gptq", "gptq-v2", "awq", "compressed-tensors", "mlx", "gguf:q4_0"]),
        ("solvers", vec!["rtn", "gptq"]),
        ("transforms", vec!["rotate-residual", "rotate-values", "equalize-inputs", "equalize-outputs"]),
    ] {
        let listing = succeed(&["list", what]);
        for item in items {
            let lines = listing.lines().filter(|line| line.split_whitespace().next() == Some(item)).count();
            assert_eq!(lines, 1, "{item} in\n{listing}");
        }
    }
}

#[test]
fn inspect_says_what_an_original_and_an_output_are() {
    let shown = succeed(&["inspect", text(&demo())]);
    assert!(
        shown.contains("llama") && shown.contains("bfloat16") && shown.contains("not quantized"),
        "{shown}"
    );
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--no-evaluate", "--bits", "8"]);
    let shown = succeed(&["inspect", text(&output)]);
    assert!(shown.contains("gptq") && shown.contains('8') && shown.contains("vLLM"), "{shown}");
}

#[test]
fn a_wrong_flag_is_the_users_to_fix() {
    let output = quantc(&["quantize", "--bitz", "4"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--bits"));
}

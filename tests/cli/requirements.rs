//! Runtimes that an output must load in.

use crate::run::{demo, fail, succeed, text};

fn with<'a>(model: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["quantize", model, "-o", output, "--no-evaluate"];
    if !more.contains(&"--recipe") {
        arguments.extend(["--recipe", "rtn"]);
    }
    arguments.extend(more);
    arguments
}

#[test]
fn what_a_runtime_refuses_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let (model, output) = (demo(), output);
    let refused = |more: &[&str]| {
        let message = fail(1, &with(text(&model), text(&output), more));
        assert!(!output.exists(), "{message}");
        message
    };
    let message = refused(&["--runs-on", "vllm", "--bits", "3"]);
    assert!(message.contains("vllm would not load gptq") && message.contains("3-bit"), "{message}");
    let message = refused(&["--runs-on", "transformers,nobody"]);
    assert!(message.contains("`nobody`") && message.contains("GPTQModel"), "{message}");
    // 256 input features of o_proj, in groups of 128.
    let message = refused(&["--tensor-parallel", "4"]);
    assert!(message.contains("o_proj") && message.contains("group of 128"), "{message}");
    // Widths that are chosen for a budget are held against it too.
    let message = refused(&[
        "--recipe",
        "gptq",
        "--target-bits",
        "5",
        "--runs-on",
        "vllm",
        "--samples",
        "2",
        "--context",
        "32",
    ]);
    assert!(message.contains("vllm would not load gptq"), "{message}");
    // What loads on processors says nothing of GPUs.
    let message = refused(&["--to", "compressed-tensors", "--group-size", "16", "--runs-on", "vllm"]);
    assert!(message.contains("loads no group size 16") && !message.contains("vLLM-CPU"), "{message}");
    let message = refused(&["--to", "compressed-tensors:nvfp4", "--runs-on", "vllm-cpu"]);
    assert!(message.contains("no kernel for it on processors"), "{message}");
    assert!(refused(&["--tensor-parallel", "0"]).contains("at least 1"));
    let message = refused(&["--tensor-parallel", "2", "--bits", "2", "--runs-on", "vllm"]);
    assert!(message.contains("on 2 devices"), "{message}");
    succeed(&with(
        text(&model),
        text(&output),
        &["--runs-on", "vLLM,transformers", "--tensor-parallel", "2"],
    ));
}

//! Embedding and head below 16 bit.

use serde_json::json;

use crate::run::{demo, fail, json as read, quantize, succeed, text};

const LITTLE: [&str; 4] = ["--recipe", "gptq", "--evaluate-samples", "2"];

#[test]
fn a_tied_embedding_is_the_head_and_counts_in_the_size() {
    let folder = tempfile::tempdir().unwrap();
    for (to, bits) in [("mlx", "8"), ("gguf:q4_k_m", "6")] {
        let more = ["--to", to, "--group-size", "64"];
        let (output, plain) = quantize(
            folder.path(),
            &demo(),
            &[&LITTLE[..], &more[..if to == "mlx" { 4 } else { 2 }]].concat(),
        );
        let size = |report: &serde_json::Value| report["size"]["bits_per_weight"].as_f64().unwrap();
        let divergence =
            |report: &serde_json::Value| report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap();
        let more =
            [&LITTLE[..], &more[..if to == "mlx" { 4 } else { 2 }], &["--embedding-bits", bits]].concat();
        let (again, packed) = quantize(folder.path(), &demo(), &more);
        assert_eq!(output, again);
        assert!(size(&packed) < 0.9 * size(&plain), "{to}: {} {}", size(&packed), size(&plain));
        assert!(
            divergence(&packed) < 1.3 * divergence(&plain) + 1e-3,
            "{to}: {} {}",
            divergence(&packed),
            divergence(&plain)
        );
        let linears = packed["linears"].as_array().unwrap();
        assert!(
            linears
                .iter()
                .any(|row| row["name"] == "model.embed_tokens" && row["bits"] == bits.parse::<u8>().unwrap())
        );
        assert!(read(&output.join("quantc.json"))["linears"]["model.embed_tokens"].is_object());
        succeed(&["verify", text(&output)]);
        assert!(succeed(&["inspect", text(&output)]).contains("(embedding)"));
    }
    // The same values in another of the formats that pack it, and in 16 bit where they do not.
    let converted = folder.path().join("converted");
    let (last, report) = (folder.path().join("out"), folder.path().join("convert.json"));
    let arguments = [
        "convert",
        text(&last),
        "-o",
        text(&converted),
        "--to",
        "gguf:q4_k_m",
        "--export-json",
        text(&report),
    ];
    succeed(&arguments);
    assert_eq!(read(&report)["exact"], 36);
}

#[test]
fn a_head_is_solved_by_what_flows_into_it() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--recipe", "gptq", "--untie", "--head-bits", "4", "--no-evaluate", "--to"];
    let (outputs, reports) =
        quantize(folder.path(), &demo(), &[&more[..], &["gptq,compressed-tensors,mlx,gguf:q4_0"]].concat());
    for report in reports.as_array().unwrap() {
        let format = report["format"].as_str().unwrap();
        let rows = report["linears"].as_array().unwrap();
        let head = rows.iter().find(|row| row["name"] == "lm_head").unwrap();
        assert_eq!((&head["solver"], &head["rung"]), (&json!("gptq"), &json!("cholesky")), "{format}");
        assert!(head["relative_loss"].as_f64().unwrap() < 0.01, "{format} {head}");
        let output = outputs.join(format.replace(':', "-"));
        succeed(&["verify", text(&output)]);
        let described = || read(&output.join("config.json"))["quantization_config"].clone();
        match format {
            "gptq" => assert_eq!(described()["lm_head"], true),
            "compressed-tensors" => assert_eq!(described()["ignore"], json!([])),
            _ => {}
        }
    }
}

#[test]
fn what_a_runtime_takes_in_16_bit_alone_is_refused_with_the_reason() {
    let refused = |more: &[&str], words: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        let message = fail(1, &[&["quantize", text(&demo()), "-o", text(&output)][..], more].concat());
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    refused(&["--head-bits", "8"], &["--head-bits", "tied", "--embedding-bits", "--untie"]);
    refused(&["--embedding-bits", "8"], &["--embedding-bits", "gptq", "model.embed_tokens", "16 bit"]);
    refused(&["--to", "onnx", "--embedding-bits", "8"], &["onnx", "16 bit"]);
    refused(&["--to", "gguf:f16", "--embedding-bits", "8"], &["nothing is quantized"]);
    refused(&["--to", "gguf:q8_0", "--embedding-bits", "3"], &["4, 5, 6 and 8 bit"]);
    refused(&["--embedding-bits", "9"], &["--embedding-bits", "9"]);
    refused(
        &["--untie", "--head-bits", "8", "--runs-on", "transformers"],
        &["transformers", "lm_head", "16 bit"],
    );
}

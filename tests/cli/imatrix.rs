//! Importance matrices of llama.cpp, read and written.

use std::fs;

use crate::run::{demo, fail, json, quantize, succeed, text};

#[test]
fn an_exported_matrix_serves_as_calibration_in_both_forms() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.gguf");
    let kl = |more: &[&str]| {
        let windows = ["--bits", "3", "--evaluate-samples", "16"];
        let (output, report) = quantize(folder.path(), &demo(), &[&windows, more].concat());
        let weights = fs::read(output.join("model.safetensors")).unwrap();
        (report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap(), weights, report)
    };
    let (_, plain, _) = kl(&["--recipe", "gptq"]);
    let (_, exported, _) = kl(&["--recipe", "gptq", "--export-imatrix", text(&file)]);
    assert!(plain == exported, "exporting changed the output");
    let (diagonal, first, report) = kl_of_imatrix(&folder, &file, "gptq");
    let (rounded, _, _) = kl(&["--recipe", "rtn"]);
    assert!(diagonal < 0.7 * rounded, "{diagonal} {rounded}");
    assert_eq!(report["calibration"], serde_json::Value::Null);
    assert_eq!(report["imatrix"]["datasets"][0], "built-in calibration text");
    assert_eq!(report["imatrix"]["chunks"], 6);

    // What the original saw, whatever recipe ran beside.
    let again = folder.path().join("again.gguf");
    let more = ["--recipe", "rtn", "--no-evaluate", "--export-imatrix", text(&again)];
    quantize(folder.path(), &demo(), &more);
    assert!(fs::read(&file).unwrap() == fs::read(&again).unwrap());

    // The older form, with the sums of another number of calls.
    let old = folder.path().join("demo.dat");
    fs::write(&old, older_form(&fs::read(&file).unwrap())).unwrap();
    let (_, second, _) = kl_of_imatrix(&folder, &old, "gptq");
    assert!(first == second, "the two forms give different outputs");
}

fn kl_of_imatrix(
    folder: &tempfile::TempDir,
    file: &std::path::Path,
    recipe: &str,
) -> (f64, Vec<u8>, serde_json::Value) {
    let (output, report) = (folder.path().join("out"), folder.path().join("report.json"));
    let model = demo();
    let mut arguments = vec!["quantize", text(&model), "-o", text(&output), "--force", "--bits", "3"];
    arguments.extend(["--imatrix", text(file), "--recipe", recipe, "--export-json", text(&report)]);
    arguments.extend(["--evaluate-samples", "16", "--evaluate-context", "96"]);
    succeed(&arguments);
    let report = json(&report);
    let weights = fs::read(output.join("model.safetensors")).unwrap();
    (report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap(), weights, report)
}

/// Written here from the documents of both forms: mean squares times one call.
fn older_form(gguf: &[u8]) -> Vec<u8> {
    let mut place = 8;
    let mut bytes = |count: usize| {
        place += count;
        &gguf[place - count..place]
    };
    let tensors = u64::from_le_bytes(bytes(8).try_into().unwrap());
    assert_eq!(u64::from_le_bytes(bytes(8).try_into().unwrap()), 4);
    let header =
        "general.typeimatriximatrix.datasetsbuilt-in calibration textimatrix.chunk_countimatrix.chunk_size";
    // Texts with their lengths; types of four values; type and number of the array's; two numbers.
    bytes(header.len() + 8 * 6 + 4 * 4 + 12 + 8);
    let mut infos = Vec::new();
    for _ in 0..tensors {
        let length = u64::from_le_bytes(bytes(8).try_into().unwrap());
        let name = String::from_utf8(bytes(length as usize).to_vec()).unwrap();
        assert_eq!(bytes(4), 1_u32.to_le_bytes());
        let count = u64::from_le_bytes(bytes(8).try_into().unwrap());
        assert_eq!(bytes(4), 0_u32.to_le_bytes());
        let offset = u64::from_le_bytes(bytes(8).try_into().unwrap());
        infos.push((name, count as usize, offset as usize));
    }
    let start = place.next_multiple_of(32);
    let numbers = |offset: usize, count: usize| -> Vec<f32> {
        let data = &gguf[start + offset..][..4 * count];
        data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let mut out = (tensors as i32 / 2).to_le_bytes().to_vec();
    for (name, count, offset) in infos.iter().filter(|(name, _, _)| name.ends_with(".in_sum2")) {
        let name = name.strip_suffix(".in_sum2").unwrap();
        let counts = infos.iter().find(|(other, _, _)| *other == format!("{name}.counts")).unwrap();
        let tokens = numbers(counts.2, 1)[0];
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.bytes());
        out.extend(1_i32.to_le_bytes());
        out.extend((*count as i32).to_le_bytes());
        numbers(*offset, *count).iter().for_each(|sum| out.extend((sum / tokens).to_le_bytes()));
    }
    out
}

#[test]
fn matrices_that_do_not_fit_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let model = demo();
    let refuse = |code: i32, more: &[&str], words: &[&str]| {
        let message = fail(code, &[&["quantize", text(&model), "-o", text(&output)], more].concat());
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert!(!output.exists());
    };
    let file = folder.path().join("bad.dat");
    refuse(1, &["--imatrix", "no/such.dat"], &["no/such.dat"]);
    fs::write(&file, b"GGUF").unwrap();
    refuse(1, &["--imatrix", text(&file)], &["bad.dat", "version"]);
    let mut other = 1_i32.to_le_bytes().to_vec();
    other.extend(5_i32.to_le_bytes());
    other.extend(b"other");
    other.extend([1_i32.to_le_bytes(), 1_i32.to_le_bytes(), 1_i32.to_le_bytes()].concat());
    fs::write(&file, other).unwrap();
    refuse(1, &["--imatrix", text(&file)], &["bad.dat", "blk.0.attn_q.weight", "other"]);
    refuse(1, &["--imatrix", text(&file), "--calibration", "x"], &["cannot be used with"]);
    refuse(1, &["--imatrix", text(&file), "--target-bits", "5"], &["cannot be used with"]);
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, "transforms = ['rotate-values']\n").unwrap();
    let exported = folder.path().join("out.gguf");
    for flag in [["--imatrix", text(&file)], ["--export-imatrix", text(&exported)]] {
        refuse(1, &[&flag[..], &["--recipe", text(&recipe)]].concat(), &[flag[0], "transforms"]);
    }
    refuse(1, &["--export-imatrix", "no/such/folder/file"], &["--export-imatrix", "no/such/folder"]);
}

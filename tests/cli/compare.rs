//! `compare`: several models side by side.

use crate::run::{SMALL, demo, fail, json, quantize, succeed, text, tiny};

#[test]
fn the_figures_are_those_of_evaluate_and_differences_are_judged() {
    let folder = tempfile::tempdir().unwrap();
    let three = folder.path().join("three");
    let (four, first) = quantize(folder.path(), &demo(), &["--recipe", "rtn"]);
    let (out, second) = {
        std::fs::rename(&four, folder.path().join("four")).unwrap();
        quantize(folder.path(), &demo(), &["--recipe", "rtn", "--bits", "3", "--to", "compressed-tensors"])
    };
    std::fs::rename(out, &three).unwrap();
    let four = folder.path().join("four");
    let report = folder.path().join("compared.json");
    let demo = demo();
    let mut arguments =
        vec!["compare", text(&demo), text(&four), text(&three), "--export-json", text(&report)];
    arguments.extend(&SMALL[4..]);
    let table = succeed(&arguments);
    let found = json(&report);
    let models = found["models"].as_array().unwrap();
    for (model, alone) in models[1..].iter().zip([&first, &second]) {
        let alone = &alone["evaluation"]["quantized"];
        for (key, other) in [("perplexity", "perplexity"), ("kl_mean", "kl_mean"), ("kl_p99", "kl_p99")] {
            assert_eq!(model[key]["value"], alone[other], "{key}");
        }
        assert_eq!(model["kl_mean"]["stderr"], alone["kl_stderr"]);
        let same = model["top1_agreement"]["value"].as_f64().unwrap();
        assert!((same - alone["top1_agreement"].as_f64().unwrap()).abs() < 1e-12);
        let layers = model["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 5);
        let same = &[&first, &second][usize::from(model["letter"] == "C")]["size"]["bits_per_weight"];
        assert_eq!(&model["bits_per_weight"], same);
        assert!(layers.iter().all(|layer| layer["value"].as_f64().unwrap() > 1e-3), "{layers:?}");
        assert_eq!(model["passages"].as_array().unwrap().len(), 3);
        let tokens = model["tokens"].as_array().unwrap();
        let kl: Vec<f64> = tokens.iter().map(|token| token["kl"].as_f64().unwrap()).collect();
        assert!(kl.len() == 8 && kl.is_sorted_by(|a, b| a >= b), "{kl:?}");
    }
    assert!(
        models[0]["kl_mean"].is_null()
            && models[0]["perplexity"]["value"] == first["evaluation"]["original"]["perplexity"]
    );
    // Windows that a bound does not hold together are measured one after another, to the same figures.
    let message = fail(1, &[&arguments[..4], &["--memory", "1MB"], &arguments[6..]].concat());
    let least =
        message.split_once(" bytes), which comparing takes").and_then(|(before, _)| before.rsplit_once('('));
    let least = least.unwrap_or_else(|| panic!("{message}")).1;
    let bounded = folder.path().join("bounded.json");
    let within = ["--memory", least, "--export-json", text(&bounded)];
    succeed(&[&arguments[..4], &within, &arguments[6..]].concat());
    let without_speed = |report: &serde_json::Value| {
        let mut report = report.clone();
        report["models"].as_array_mut().unwrap().iter_mut().for_each(|model| drop(model["speed"].take()));
        [report["models"].take(), report["pairs"].take()]
    };
    assert_eq!(without_speed(&json(&bounded)), without_speed(&found));
    // 3 bits are worse than 4, and 4 windows are enough to see it, since each token is compared with itself.
    let pairs = found["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 3);
    // Against the reference, a model's own figures.
    assert_eq!(pairs[0]["kl_mean"]["value"], models[1]["kl_mean"]["value"]);
    let verdict = pairs[0]["verdict"].as_str().unwrap();
    assert!(verdict.contains("the KL divergence is 0.") && verdict.ends_with("% of top tokens are others"));
    assert_eq!(models[0]["bits_per_weight"], 16.0);
    let last = &pairs[2];
    assert!(last["model"] == "C" && last["against"] == "B");
    assert_eq!(last["kl_mean"]["significant"], true, "{last}");
    assert!(last["verdict"].as_str().unwrap().starts_with("C is worse than B in "), "{last}");
    let unpaired = models[2]["perplexity"]["stderr"].as_f64().unwrap()
        / models[2]["perplexity"]["value"].as_f64().unwrap();
    assert!(last["perplexity"]["stderr"].as_f64().unwrap() < unpaired / 2.0, "{last}");
    assert!(
        table.contains("C is worse than B") && table.contains("passages on which C is farthest"),
        "{table}"
    );
}

#[test]
fn a_model_does_not_differ_from_itself_whichever_is_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("compared.json");
    let copy = crate::run::copy(&demo());
    let demo = demo();
    let mut arguments =
        vec!["compare", text(copy.path()), "--reference", text(&demo), "--export-json", text(&report)];
    arguments.extend(&SMALL[4..]);
    let table = succeed(&arguments);
    let found = json(&report);
    assert_eq!(found["models"][0]["model"]["path"], text(&demo));
    assert_eq!(found["models"][1]["kl_mean"]["value"], 0.0);
    assert!(found["models"][1]["tokens"].as_array().unwrap().is_empty());
    assert_eq!(found["pairs"][0]["verdict"], "no difference shown between B and A");
    assert!(table.contains("no difference shown"), "{table}");
}

#[test]
fn models_that_cannot_be_compared_are_named() {
    let demo = demo();
    let message = fail(1, &["compare", text(&demo)]);
    assert!(
        message.contains("expected two models, found 1") && message.contains("hint: name a second"),
        "{message}"
    );
    let message = fail(1, &["compare", text(&demo), text(&tiny("qwen3"))]);
    assert!(message.contains("vocabulary") && message.contains("qwen3"), "{message}");
    // The same vocabulary, and other pieces of text.
    let other = crate::run::copy(&demo);
    let file = other.path().join("tokenizer.json");
    let mut tokenizer = json(&file);
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    merges.truncate(merges.len() / 2);
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    let message = fail(1, &["compare", text(&demo), text(other.path())]);
    assert!(message.contains("its tokenizer cuts built-in evaluation text otherwise"), "{message}");
}

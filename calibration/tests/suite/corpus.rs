//! Windows of real and of broken texts. The goldens in tests/data are what the Python packages give; make_goldens.py beside them made them.

use std::fs;
use std::path::{Path, PathBuf};

use calibration::CalibrationError;
use calibration::corpus::{Corpus, WindowShape, Windows};
use calibration::tokenizer::TextTokenizer;
use serde_json::{Value, json};

const VOCABULARY: usize = 2048;

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../demo")
}

fn demo_tokenizer() -> TextTokenizer {
    TextTokenizer::open(&demo().join("model")).unwrap().unwrap()
}

fn first(samples: usize, context: usize) -> WindowShape {
    WindowShape { samples, context, seed: None }
}

fn lines(content: &str, shape: WindowShape) -> Result<Windows, CalibrationError> {
    Corpus::new("lines", content).windows(Some(&demo_tokenizer()), VOCABULARY, shape)
}

#[test]
fn windows_of_the_demo_texts_are_those_of_the_python_packages() {
    let tokenizer = demo_tokenizer();
    let goldens: Vec<Value> = serde_json::from_str(include_str!("../data/windows.json")).unwrap();
    for golden in goldens {
        let number = |key: &str| golden[key].as_u64().unwrap() as usize;
        let corpus = Corpus::read(&demo().join(golden["text"].as_str().unwrap())).unwrap();
        let shape = first(number("samples"), number("context"));
        let found = corpus.windows(Some(&tokenizer), VOCABULARY, shape).unwrap();
        assert_eq!(found.tokens.len(), number("windows"), "{golden}");
        assert_eq!(json!(found.tokens[0][..shape.context.min(16)]), golden["first"]);
        assert_eq!(found.fingerprint, golden["fingerprint"].as_str().unwrap());
    }
}

#[test]
fn a_seed_draws_other_windows_of_the_same_text_and_always_the_same_ones() {
    let tokenizer = demo_tokenizer();
    let corpus = Corpus::read(&demo().join("evaluation.txt")).unwrap();
    let windows =
        |seed| corpus.windows(Some(&tokenizer), VOCABULARY, WindowShape { seed, ..first(20, 64) }).unwrap();
    let all = corpus.windows(Some(&tokenizer), VOCABULARY, first(1_000_000, 64)).unwrap();
    let (plain, drawn) = (windows(None), windows(Some(7)));
    assert_eq!(plain.tokens[..], all.tokens[..20]);
    assert_eq!(drawn, windows(Some(7)));
    assert_ne!(drawn.fingerprint, windows(Some(8)).fingerprint);
    assert!(drawn.tokens.iter().all(|window| all.tokens.contains(window)));
    assert!(drawn.tokens.iter().any(|window| !plain.tokens.contains(window)));
}

#[test]
fn a_text_of_long_tokens_is_read_further_than_the_first_cut() {
    // A token for each word of 50 characters: 12 characters a token are not enough.
    let folder = tempfile::tempdir().unwrap();
    let words: Vec<String> = (0..300).map(|word| format!("{word:050}")).collect();
    let vocabulary: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| (word.clone(), json!(id))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": words[0]}
    });
    fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = TextTokenizer::open(folder.path()).unwrap().unwrap();
    let corpus = Corpus::new("words", words.join(" "));
    let found = corpus.windows(Some(&tokenizer), 300, first(20, 10)).unwrap();
    assert_eq!(found.tokens.concat(), (0..200).collect::<Vec<u32>>());
    let found = corpus.windows(Some(&tokenizer), 300, first(100, 10)).unwrap();
    assert_eq!(found.tokens.len(), 30);
}

#[test]
fn tokens_of_texts_follow_each_other_and_those_of_a_line_of_ids_stand_alone() {
    let tokenizer = demo_tokenizer();
    let mut joined = tokenizer.encode("The sea was").unwrap();
    joined.extend(tokenizer.encode(" calm and grey.").unwrap());
    let found =
        lines("{\"text\": \"The sea was\"}\n\n{\"text\": \" calm and grey.\"}\n", first(2, 4)).unwrap();
    assert_eq!(found.tokens[0], [&[0], &joined[..3]].concat());
    assert_eq!(found.tokens[1], [&[0], &joined[3..6]].concat());

    let ids =
        "{\"input_ids\": [5, 6, 7, 8, 9]}\n{\"input_ids\": [10, 11, 12, 13, 14, 15]}\n{\"input_ids\": [1]}";
    let without = Corpus::new("ids", ids);
    let found = without.windows(None, VOCABULARY, first(9, 4)).unwrap();
    assert_eq!(found.tokens, [vec![5, 6, 7, 8], vec![10, 11, 12, 13], vec![14, 15]]);
    assert_eq!(without.windows(Some(&tokenizer), VOCABULARY, first(9, 4)).unwrap(), found);
    assert_eq!(without.windows(None, VOCABULARY, first(2, 4)).unwrap().tokens[..], found.tokens[..2]);
}

/// The demo's tokenizer beside other configuration files.
fn configured(files: &[(&str, &str)]) -> TextTokenizer {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(demo().join("model/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    TextTokenizer::open(folder.path()).unwrap().unwrap()
}

#[test]
fn the_beginning_token_is_what_the_configuration_says() {
    for (files, expected) in [
        (&[][..], None),
        (&[("tokenizer_config.json", "{\"bos_token\": \"<s>\"}")][..], Some(0)),
        (
            &[("tokenizer_config.json", "{\"bos_token\": {\"content\": \"<s>\", \"lstrip\": false}}")][..],
            Some(0),
        ),
        (&[("tokenizer_config.json", "{\"bos_token\": \"<nowhere>\"}")][..], None),
        (&[("special_tokens_map.json", "{\"bos_token\": \"<s>\"}")][..], Some(0)),
        (
            &[
                ("special_tokens_map.json", "{\"bos_token\": \"<s>\"}"),
                ("tokenizer_config.json", "{\"bos_token\": null}"),
            ][..],
            None,
        ),
    ] {
        assert_eq!(configured(files).begin(), expected, "{files:?}");
    }
    let plain = configured(&[]);
    let found =
        Corpus::new("text", "The sea was calm.").windows(Some(&plain), VOCABULARY, first(1, 4)).unwrap();
    assert_eq!(found.tokens[0], plain.encode("The sea was calm.").unwrap()[..4]);
}

#[test]
fn a_tokenizer_that_cuts_and_fills_up_is_told_not_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = fs::read_to_string(demo().join("model/tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&file).unwrap();
    tokenizer["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = json!({
        "strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 1, "pad_type_id": 0,
        "pad_token": "</s>"
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let tokenizer = TextTokenizer::open(folder.path()).unwrap().unwrap();
    let text = "The sea was calm, and the sky was grey.";
    assert_eq!(tokenizer.encode(text).unwrap(), demo_tokenizer().encode(text).unwrap());
}

#[test]
fn conversations_go_through_the_chat_template() {
    let template =
        "{% for m in messages %}<{{ m['role'] }}>{{ m.content.strip() }}{{ eos_token }}{% endfor %}";
    let listed = json!({
        "bos_token": "<s>", "eos_token": "</s>",
        "chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": template}]
    });
    let in_config = configured(&[("tokenizer_config.json", &listed.to_string())]);
    let other = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "no"});
    let in_file =
        configured(&[("tokenizer_config.json", &other.to_string()), ("chat_template.jinja", template)]);
    let messages = json!([{"role": "user", "content": " Hello "}, {"role": "assistant", "content": "Hi"}]);
    let line = json!({"messages": messages}).to_string();
    for tokenizer in [in_config, in_file] {
        assert_eq!(tokenizer.render_chat(&messages).unwrap(), "<user>Hello</s><assistant>Hi</s>");
        let expected = tokenizer.encode("<user>Hello</s><assistant>Hi</s>").unwrap();
        let shape = first(1, 6);
        let found = Corpus::new("chat", line.as_str()).windows(Some(&tokenizer), VOCABULARY, shape).unwrap();
        assert_eq!(found.tokens[0][1..], expected[..5]);
    }
    let error = lines(&line, first(1, 6)).unwrap_err().to_string();
    assert!(error.contains("lines, line 1") && error.contains("no chat template"), "{error}");
}

#[test]
fn texts_that_give_no_window_say_why() {
    let short = "{\"text\": \"The sea\"}";
    for (content, expected) in [
        ("", "lines is empty"),
        (" \n\n", "lines is empty"),
        ("The sea was", "expected at least 99"),
        (short, "expected at least 99"),
        ("{\"text\": \"a\"}\n{\"text\": \"b\"", "lines, line 2"),
        ("{\"text\": \"a\"}\n\n[1]", "lines, line 3: expected an object"),
        ("{\"text\": 5}", "lines, line 1: `text` is a number, expected text"),
        ("{\"messages\": \"a\"}", "lines, line 1: `messages` is text, expected a list"),
        ("{\"input_ids\": {}}", "lines, line 1: `input_ids` is an object"),
        ("{\"input_ids\": [1, -2]}", "`input_ids` holds -2"),
        ("{\"text\": \"a\"}\n{\"input_ids\": [1, 2048]}", "lines, line 2 has token 2048"),
        ("{\"input_ids\": [1, 99999999999]}", "token 99999999999"),
    ] {
        let error = lines(content, first(4, 100)).unwrap_err().to_string();
        assert!(error.contains(expected), "{content:?}: {error}");
    }
    let tokenizer = demo_tokenizer();
    let text = Corpus::new("text", "The sea was calm.");
    let error = text.windows(Some(&tokenizer), 100, first(1, 3)).unwrap_err().to_string();
    assert!(error.contains("embedding has 100 rows"), "{error}");
    let error = text.windows(None, VOCABULARY, first(1, 3)).unwrap_err().to_string();
    assert!(error.contains("needs a tokenizer"), "{error}");
    for shape in [first(0, 8), first(1, 1), first(1, 0)] {
        let error = text.windows(Some(&tokenizer), VOCABULARY, shape).unwrap_err();
        assert!(matches!(error, CalibrationError::Shape { .. }), "{error}");
    }
}

#[test]
fn files_are_known_by_their_name_or_their_first_line() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let windows = |path: &Path| {
        Corpus::read(path).and_then(|corpus| corpus.windows(Some(&demo_tokenizer()), VOCABULARY, first(1, 3)))
    };
    let ids = windows(&write("ids.txt", b"\n{\"input_ids\": [5, 6, 7]}\n")).unwrap();
    assert_eq!(ids.tokens, [[5, 6, 7]]);
    let braces = windows(&write("code.txt", b"{ int i; }\n")).unwrap();
    assert_eq!(braces.tokens[0][1..], demo_tokenizer().encode("{ int i; }\n").unwrap()[..2]);
    let error = windows(&write("broken.jsonl", b"The sea\n")).unwrap_err().to_string();
    assert!(error.contains("broken.jsonl, line 1"), "{error}");
    let error = windows(&write("latin1.txt", b"The sea\nwas gr\xfcn")).unwrap_err().to_string();
    assert!(error.contains("latin1.txt, line 2: not UTF-8, byte 14"), "{error}");
    let error = windows(&folder.path().join("missing.txt")).unwrap_err().to_string();
    assert!(error.contains("missing.txt"), "{error}");
    assert!(windows(folder.path()).is_err());
    // Line ends of other systems give the same tokens.
    let unix = windows(&write("unix.txt", b"a\nb\nc\n")).unwrap();
    assert_eq!(windows(&write("dos.txt", b"a\r\nb\r\nc\r\n")).unwrap(), unix);
}

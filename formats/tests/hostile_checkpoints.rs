//! Checkpoints from strangers: each broken one is refused with a message that names the file, the tensor, what was expected and what was
//! found; none makes the reader panic.

use std::fs;
use std::path::Path;

use formats::{Checkpoint, FormatsError};

/// `goldens/tiny.safetensors`, written by safetensors 0.8.0: `a` F16 `[2, 2]` = 1, 2, -0.5, 0 and `b` I32 `[1]` = 0x2B4D6F81.
const TINY: &[u8] = include_bytes!("data/tiny.safetensors");

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn refusal(folder: &Path) -> FormatsError {
    Checkpoint::open(folder).expect_err("a broken checkpoint is refused")
}

#[test]
fn a_file_of_the_reference_writer_is_read() {
    let folder = folder(&[("model.safetensors", TINY)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(
        checkpoint.read_matrix("a", (2, 2)).unwrap().into_raw_vec_and_offset().0,
        [1.0, 2.0, -0.5, 0.0]
    );
    assert_eq!(checkpoint.read_rows("a", 1..2).unwrap().into_raw_vec_and_offset().0, [-0.5, 0.0]);
    assert_eq!(checkpoint.read("b").unwrap(), 0x2B4D_6F81_u32.to_le_bytes());
    let mut piece = [0; 2];
    checkpoint.read_bytes_at("b", 2, &mut piece).unwrap();
    assert_eq!(piece, [0x4D, 0x2B]);
    for refused in [
        checkpoint.read_matrix("b", (1, 1)).unwrap_err(),
        checkpoint.read_matrix("a", (4, 1)).unwrap_err(),
        checkpoint.read_vector("b", 1).unwrap_err(),
        checkpoint.read_rows("a", 1..3).unwrap_err(),
        checkpoint.read_bytes_at("b", 3, &mut piece).unwrap_err(),
        checkpoint.read("c").unwrap_err(),
    ] {
        let message = refused.to_string();
        assert!(["`a`", "`b`", "`c`"].iter().any(|name| message.contains(name)), "{message}");
    }
}

#[test]
fn broken_headers_are_refused_with_what_is_wrong() {
    let entry = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    let one = |tensor: &str| format!(r#"{{"w":{tensor}}}"#);
    let two = |a: &str, b: &str| format!(r#"{{"w":{a},"v":{b}}}"#);
    let cases: &[(Vec<u8>, &[&str])] = &[
        (vec![], &["0 bytes", "too few"]),
        (vec![1, 2, 3], &["3 bytes"]),
        (u64::MAX.to_le_bytes().to_vec(), &["18446744073709551615", "100000000"]),
        (100_000_001_u64.to_le_bytes().to_vec(), &["100000001", "100000000"]),
        (100_000_000_u64.to_le_bytes().to_vec(), &["100000000 bytes", "the file has 8"]),
        (file("", b""), &["does not begin with `{`"]),
        (file(" {}", b""), &["does not begin with `{`"]),
        (file("[]", b""), &["does not begin with `{`"]),
        (file("{", b""), &["not valid"]),
        (file("{}x", b""), &["not valid"]),
        (file(&format!("{{{}", "[".repeat(100_000)), b""), &["not valid"]),
        (file(&format!(r#"{{"w":{}"#, "[".repeat(100_000)), b""), &["at `w`"]),
        (file("{}", b"abc"), &["tensors end at byte 10", "has 13"]),
        (file(&one(entry), b"abc"), &["tensors end at byte"]),
        (file(&one(entry), b"abcde"), &["tensors end at byte"]),
        (file(&two(entry, entry), b"abcd"), &["`w`", "overlaps", "expected"]),
        (file(&format!(r#"{{"w":{entry},"w":{entry}}}"#), b"abcd"), &["`w` is there twice"]),
        (file(r#"{"__metadata__":{"a":"b","a":"c"}}"#, b""), &["`__metadata__`", "`a` is there twice"]),
        (file(r#"{"__metadata__":{},"__metadata__":{}}"#, b""), &["`__metadata__` is there twice"]),
        (file(r#"{"__metadata__":{"a":1}}"#, b""), &["`__metadata__`", "expected a string"]),
        (
            file(&two(entry, r#"{"dtype":"U8","shape":[1],"data_offsets":[5,6]}"#), b"abcdef"),
            &["`v`", "leaves a hole"],
        ),
        (
            file(&two(entry, r#"{"dtype":"U8","shape":[2],"data_offsets":[3,5]}"#), b"abcde"),
            &["`v`", "overlaps"],
        ),
        (
            file(&one(r#"{"dtype":"F32","shape":[4],"data_offsets":[0,4]}"#), b"abcd"),
            &["`w`", "4 bytes", "[4] of F32 needs 16"],
        ),
        (
            file(&one(r#"{"dtype":"U8","shape":[4],"data_offsets":[4,0]}"#), b"abcd"),
            &["`w`", "ends at 0, before"],
        ),
        (
            file(&one(r#"{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}"#), b""),
            &["`w`", "impossible shape"],
        ),
        (
            file(&one(r#"{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}"#), b""),
            &["`w`", "impossible shape"],
        ),
        (
            file(
                &one(
                    r#"{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}"#,
                ),
                b"",
            ),
            &["`w`", "which no file has"],
        ),
        (
            file(&one(r#"{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}"#), b"abcd"),
            &["at `w`", "invalid value"],
        ),
        (
            file(&one(r#"{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}"#), b"abcd"),
            &["at `w`", "invalid type"],
        ),
        (file(&one(r#"{"dtype":"Q4","shape":[4],"data_offsets":[0,4]}"#), b"abcd"), &["`w`", "`Q4`"]),
        (
            file(&one(r#"{"dtype":"U8","shape":[4],"data_offsets":[0,2,4]}"#), b"abcd"),
            &["at `w`", "trailing"],
        ),
        (file(&one(r#"{"dtype":"U8","shape":[4]}"#), b"abcd"), &["at `w`", "data_offsets"]),
        (file(&one("7"), b""), &["at `w`"]),
    ];
    for (bytes, words) in cases {
        let folder = folder(&[("model.safetensors", bytes)]);
        let message = refusal(folder.path()).to_string();
        assert!(message.contains("model.safetensors"), "{message}");
        for word in *words {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    for length in 0..TINY.len() {
        let folder = folder(&[("model.safetensors", &TINY[..length])]);
        let error = refusal(folder.path());
        assert!(matches!(error, FormatsError::Truncated { .. }), "{length} bytes: {error}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn changed_bytes_never_make_the_reader_panic() {
    let folder = folder(&[]);
    let path = folder.path().join("model.safetensors");
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let mut accepted = 0;
    for _ in 0..4000 {
        let mut bytes = TINY.to_vec();
        for _ in 0..=random() % 3 {
            let place = random() % 152;
            match random() % 3 {
                0 => bytes[place] ^= 1 << (random() % 8),
                1 => bytes[place] = random() as u8,
                _ => bytes[place] = b"0123456789[]{},:\""[random() % 17],
            }
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            accepted += 1;
            let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
            for name in names {
                assert_eq!(
                    checkpoint.read(&name).unwrap().len() as u64,
                    checkpoint.info(&name).unwrap().bytes
                );
            }
        }
    }
    // Changed names, types of the same width and shapes of the same size are other valid files.
    assert!(accepted > 0 && accepted < 3000, "{accepted}");
}

#[test]
fn an_index_cannot_lead_out_of_the_directory() {
    let outer = folder(&[("secret.safetensors", TINY)]);
    let inner = outer.path().join("model");
    fs::create_dir(&inner).unwrap();
    fs::create_dir(inner.join("sub")).unwrap();
    fs::write(inner.join("sub/x.safetensors"), TINY).unwrap();
    let absolute = outer.path().join("secret.safetensors");
    let absolute = absolute.to_str().unwrap();
    for name in [
        "../secret.safetensors",
        absolute,
        "sub/x.safetensors",
        "./x",
        "..",
        ".",
        "",
        "a\\..\\b",
        "C:x",
        "x\u{0}",
    ] {
        let index = serde_json::json!({"weight_map": {"a": name, "b": name}});
        fs::write(inner.join("model.safetensors.index.json"), index.to_string()).unwrap();
        let error = refusal(&inner);
        assert!(matches!(error, FormatsError::Outside { .. }), "{name}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn links_lead_out_of_a_directory_only_into_the_hubs_cache() {
    use std::os::unix::fs::symlink;
    let outer = folder(&[("secret.safetensors", TINY)]);
    let model = outer.path().join("model");
    fs::create_dir(&model).unwrap();
    symlink("../secret.safetensors", model.join("model.safetensors")).unwrap();
    assert!(matches!(refusal(&model), FormatsError::Outside { .. }));

    let snapshot = outer.path().join("models--x/snapshots/0123");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(outer.path().join("models--x/blobs")).unwrap();
    fs::write(outer.path().join("models--x/blobs/abc"), TINY).unwrap();
    symlink("../../blobs/abc", snapshot.join("model.safetensors")).unwrap();
    assert!(Checkpoint::open(&snapshot).is_ok());

    let dangling = outer.path().join("dangling");
    fs::create_dir(&dangling).unwrap();
    symlink("nowhere", dangling.join("model.safetensors")).unwrap();
    assert!(refusal(&dangling).to_string().contains("model.safetensors"));

    let folder_as_file = outer.path().join("odd");
    fs::create_dir_all(folder_as_file.join("model.safetensors")).unwrap();
    assert!(refusal(&folder_as_file).to_string().contains("not a regular file"));
}

#[cfg(unix)]
#[test]
fn side_files_are_copied_unless_a_link_would_publish_another_file() {
    use std::os::unix::fs::symlink;
    let outer = folder(&[("secret", b"secret")]);
    let model = outer.path().join("model");
    fs::create_dir_all(model.join("additional_chat_templates")).unwrap();
    fs::create_dir(model.join("other")).unwrap();
    for name in [
        "LICENSE",
        "tokenizer.json",
        "model.safetensors",
        ".hidden",
        "config.json",
        "additional_chat_templates/a.jinja",
    ] {
        fs::write(model.join(name), name).unwrap();
    }
    let target = folder(&[]);
    formats::side_files::check(&model).unwrap();
    let copied = formats::side_files::copy(&model, target.path()).unwrap();
    assert_eq!(copied, ["LICENSE", "additional_chat_templates/a.jinja", "tokenizer.json"]);
    assert_eq!(fs::read(target.path().join("LICENSE")).unwrap(), b"LICENSE");

    symlink("../secret", model.join("NOTICE")).unwrap();
    let target = folder(&[]);
    for error in
        [formats::side_files::check(&model), formats::side_files::copy(&model, target.path()).map(|_| ())]
    {
        assert!(matches!(error, Err(FormatsError::Outside { .. })), "{error:?}");
    }
    assert!(!target.path().join("NOTICE").exists());

    // In the hub's cache every file is a link, those of folders too.
    let snapshot = outer.path().join("models--x/snapshots/0123");
    fs::create_dir_all(snapshot.join("additional_chat_templates")).unwrap();
    fs::create_dir(outer.path().join("models--x/blobs")).unwrap();
    fs::write(outer.path().join("models--x/blobs/abc"), "text").unwrap();
    symlink("../../blobs/abc", snapshot.join("tokenizer.json")).unwrap();
    symlink("../../../blobs/abc", snapshot.join("additional_chat_templates/a.jinja")).unwrap();
    let target = folder(&[]);
    assert_eq!(formats::side_files::copy(&snapshot, target.path()).unwrap().len(), 2);
    let kind = fs::symlink_metadata(target.path().join("tokenizer.json")).unwrap();
    assert!(kind.is_file() && fs::read(target.path().join("tokenizer.json")).unwrap() == b"text");
}

#[test]
fn an_index_and_its_files_must_agree() {
    let a = file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, b"x");
    let b = file(r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, b"y");
    let index = "model.safetensors.index.json";
    let good = br#"{"metadata":{"total_size":2},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let checkpoint = folder(&[(index, good), ("1.safetensors", &a), ("2.safetensors", &b)]);
    assert_eq!(Checkpoint::open(checkpoint.path()).unwrap().read("b").unwrap(), b"y");

    type Case<'a> = (&'a [(&'a str, &'a [u8])], &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (&[(index, good), ("1.safetensors", &a)], &["`b`", "`2.safetensors`", "missing"]),
        (
            &[(index, good), ("1.safetensors", &a), ("2.safetensors", &a)],
            &["2.safetensors", "`a`", "already"],
        ),
        (
            &[(index, br#"{"weight_map":{"b":"1.safetensors"}}"#), ("1.safetensors", &a)],
            &["`b`", "does not have it"],
        ),
        (&[(index, good), ("1.safetensors", &b), ("2.safetensors", &a)], &["`a`", "does not have it"]),
        (
            &[
                (index, br#"{"weight_map":{"a":"1.safetensors","c":"2.safetensors"}}"#),
                ("1.safetensors", &a),
                ("2.safetensors", &b),
            ],
            &["`c`"],
        ),
        (
            &[
                (index, good),
                ("1.safetensors", &a),
                (
                    "2.safetensors",
                    &file(
                        r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"c":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}"#,
                        b"y",
                    ),
                ),
            ],
            &["does not list", "`c`", "2.safetensors"],
        ),
        (&[(index, br#"{"weight_map":{"a":"1","a":"2"}}"#)], &["`a` is there twice"]),
        (&[(index, br#"{"weight_map":{"a":1}}"#)], &["at `a`"]),
        (&[(index, b"{}")], &["weight_map"]),
        (&[(index, b"nonsense")], &[index]),
        (&[(index, good), ("model.safetensors", &a)], &["model.safetensors", "remove one"]),
    ];
    for (files, words) in cases {
        let folder = folder(files);
        let message = refusal(folder.path()).to_string();
        for word in *words {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
    }
}

#[test]
fn a_directory_without_safetensors_says_what_is_there() {
    let pickled = folder(&[("pytorch_model.bin", b"x")]);
    let error = refusal(pickled.path());
    assert!(error.to_string().contains("pytorch_model.bin") && error.hint().unwrap().contains("safetensors"));
    assert!(matches!(refusal(folder(&[]).path()), FormatsError::NoWeights { .. }));
    assert!(matches!(refusal(Path::new("/nonexistent/model")), FormatsError::Io { .. }));
}

#[test]
fn values_that_are_not_finite_are_named_with_their_place() {
    let header = r#"{"w":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}}"#;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let values = [0.0, f32::MAX, f32::MIN_POSITIVE / 2.0, -0.0, bad, 1.0];
        let data: Vec<u8> = values.iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
        let folder = folder(&[("model.safetensors", &file(header, &data))]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let message = checkpoint.read_matrix("w", (3, 2)).unwrap_err().to_string();
        assert!(message.contains("`w`") && message.contains("[2, 0]"), "{message}");
        assert!(checkpoint.read_rows("w", 2..3).unwrap_err().to_string().contains("[2, 0]"));
        assert!(checkpoint.read_rows("w", 0..2).is_ok());
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error_that_names_the_tensor() {
    let folder = folder(&[("model.safetensors", TINY)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(TINY.len() as u64 - 1).unwrap();
    let mut errors = 0;
    for name in ["a", "b"] {
        if let Err(error) = checkpoint.read(name) {
            errors += 1;
            assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
        }
    }
    assert_eq!(errors, 1);
}

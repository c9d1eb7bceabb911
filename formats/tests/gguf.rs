//! GGUF: files are those of the reference to the byte, models come back whole under their own names, and no bytes make a reader panic.

use std::fs;
use std::path::{Path, PathBuf};

use formats::container::{TensorData, TensorSpec};
use formats::gguf::blocks;
use formats::gguf::{Array, GgufFile, GgufSpec, GgufWriter, Header, TensorType, Value, Values};
use formats::model_writer::Contents;
use formats::target::{self, PlannedLinear, TargetFormat};
use formats::{Checkpoint, Dtype};
use model::Model;
use model::architecture::NormKind;
use model::linear::Linear;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::{Offsets, QuantizedTensor, ScaleParts};
use serde_json::json;

/// Written by hand from the format's description, read by gguf-py 0.19: two tensors, an array of texts.
const TINY: &[u8] = include_bytes!("data/tiny.gguf");

fn on_disk(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.gguf");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read(bytes: &[u8]) -> Result<Header, String> {
    let (_folder, path) = on_disk(bytes);
    Header::read(&path, &fs::File::open(&path).unwrap()).map_err(|error| error.to_string())
}

#[test]
fn a_file_of_the_reference_is_read_and_written_to_the_byte() {
    let header = read(TINY).unwrap();
    assert_eq!(header.values["general.architecture"].as_text(), Some("llama"));
    assert_eq!(header.values["general.file_type"].as_u64(), Some(2));
    assert_eq!(header.values["t.arr"].as_texts().unwrap(), ["a", "bc"]);
    let (x, y) = (&header.tensors["x.weight"], &header.tensors["y.weight"]);
    assert_eq!((x.tensor_type.name, &x.shape[..], x.offset), ("Q4_0", &[2, 32][..], 256));
    assert_eq!((y.tensor_type.name, &y.shape[..], y.offset), ("F32", &[3][..], 320));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("again.gguf");
    let spec = |name: &str, entry: &formats::gguf::TensorEntry| GgufSpec {
        name: name.to_owned(),
        tensor_type: *entry.tensor_type,
        shape: entry.shape.clone(),
    };
    let mut writer =
        GgufWriter::create(&path, &header.values, &[spec("x.weight", x), spec("y.weight", y)]).unwrap();
    writer.put("y.weight", &TINY[320..332]).unwrap();
    assert!(writer.put("y.weight", &TINY[320..332]).unwrap_err().to_string().contains("twice"));
    assert!(writer.put("x.weight", &TINY[..1]).unwrap_err().to_string().contains("36"));
    writer.put("x.weight", &TINY[256..292]).unwrap();
    writer.finish().unwrap();
    assert_eq!(fs::read(path).unwrap(), TINY);
}

#[test]
fn no_bytes_make_the_reader_panic_or_take_memory() {
    for end in 0..TINY.len() {
        // What lies after the last tensor's last byte is padding.
        assert_eq!(read(&TINY[..end]).is_ok(), end >= 332, "cut at {end}");
    }
    for place in 0..256 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = TINY.to_vec();
            changed[place] = value;
            let _ = read(&changed);
        }
    }
    for eight in 0..31 {
        let mut changed = TINY.to_vec();
        changed[8 * eight..8 * eight + 8].fill(0xff);
        let _ = read(&changed);
    }
}

/// Name, extents as the file has them, type, offset.
type Listed<'a> = (&'a str, &'a [u64], u32, u64);

/// A file with these tensors and no value.
fn with_tensors(tensors: &[Listed<'_>], data: usize) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.bytes());
    };
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(0_u64.to_le_bytes());
    for (name, extents, tensor_type, offset) in tensors {
        text(&mut out, name);
        out.extend((extents.len() as u32).to_le_bytes());
        out.extend(extents.iter().flat_map(|extent| extent.to_le_bytes()));
        out.extend(tensor_type.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32) + data, 0);
    out
}

#[test]
fn tensors_that_cannot_be_are_refused_and_named() {
    assert!(read(&with_tensors(&[("a", &[4], 0, 0), ("b", &[4], 0, 32)], 64)).is_ok());
    let long = "n".repeat(64);
    let cases: &[(&[Listed<'_>], &str)] = &[
        (&[("a", &[4], 0, 0), ("a", &[4], 0, 32)], "twice"),
        (&[("a", &[16], 0, 0), ("b", &[4], 0, 32)], "overlaps"),
        (&[("a", &[4], 0, 64)], "ends with the file"),
        (&[("a", &[4], 0, u64::MAX - 31)], "ends with the file"),
        (&[("a", &[4], 0, 4)], "multiple of 32"),
        (&[("a", &[1 << 62, 1 << 62], 0, 0)], "impossible shape"),
        (&[("a", &[u64::MAX], 0, 0)], "impossible shape"),
        (&[("a", &[33], 2, 0)], "multiple of 32"),
        (&[("a", &[4], 77, 0)], "type 77"),
        (&[("a", &[], 0, 0)], "0 dimensions"),
        (&[("a", &[1, 1, 1, 1, 1], 0, 0)], "5 dimensions"),
        (&[("", &[4], 0, 0)], "name of 0 bytes"),
        (&[(&long, &[4], 0, 0)], "name of 64 bytes"),
    ];
    for (tensors, word) in cases {
        let message = read(&with_tensors(tensors, 64)).expect_err(word);
        assert!(message.contains(word) && message.contains("file.gguf"), "{word}: {message}");
    }
    assert!(read(b"GGUF").unwrap_err().contains("ends within"));
    assert!(read(b"GGML\x03\0\0\0").unwrap_err().contains("GGUF"));
}

#[test]
fn values_come_back_in_every_type() {
    let values = Values::from([
        ("a".to_owned(), Value::U32(7)),
        ("b".to_owned(), Value::F32(-0.5)),
        ("c".to_owned(), Value::Bool(true)),
        ("d".to_owned(), Value::Text("Ġ ü".to_owned())),
        ("e".to_owned(), Value::Array(Array::I32(vec![-1, 6]))),
        ("f".to_owned(), Value::Array(Array::F32(vec![-1000.0]))),
        ("g".to_owned(), Value::Array(Array::Texts(vec![String::new(), "x y".to_owned()]))),
        ("h".to_owned(), Value::Other(10, 9_u64.to_le_bytes().to_vec())),
        ("i".to_owned(), Value::Other(1, vec![0xff])),
        ("j".to_owned(), Value::Array(Array::Other(7, vec![0, 1, 1]))),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("values.gguf");
    GgufWriter::create(&path, &values, &[]).unwrap().finish().unwrap();
    let found = read(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(found.values, values);
    assert_eq!((found.values["h"].as_u64(), found.values["i"].as_u64()), (Some(9), None));
    assert!(
        GgufFile::open(&path).unwrap().config().unwrap_err().to_string().contains("general.architecture")
    );
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// A tokenizer of bytes alone, for models that have none.
fn tokenizer() -> serde_json::Value {
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        (0..60).map(|id| (format!("t{id}"), json!(id))).collect();
    json!({
        "added_tokens": [{"id": 60, "content": "<s>", "special": true}, {"id": 61, "content": "<user>", "special": false}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["t", "1"], "t 2"]}
    })
}

/// A model with its tokenizer beside it.
fn source(name: &str, tokenizer: &serde_json::Value) -> (tempfile::TempDir, serde_json::Value, Model) {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(repository(&format!("tests/data/hf_tiny/{name}/{file}")), folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(folder.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    let config = formats::json::read(folder.path(), "config.json").unwrap();
    let model = Model::resolve(&config).unwrap();
    (folder, config, model)
}

fn gguf() -> impl Iterator<Item = &'static dyn TargetFormat> {
    target::all().filter(|format| format.id().starts_with("gguf:"))
}

/// What a recipe asks for.
fn asked() -> Scheme {
    Scheme {
        bits: BitWidth::new(4).unwrap(),
        levels: Levels::Uniform,
        granularity: Granularity::PerGroup(GroupSize::new(128).unwrap()),
        symmetry: Symmetry::Symmetric,
        scale_dtype: ScaleDtype::F16,
    }
}

/// Codes of every size, scales of both signs where there are such, minimums.
fn solution(linear: &Linear, scheme: Scheme) -> QuantizedTensor {
    let shape = (linear.out_features, linear.in_features);
    let codes = usize::from(scheme.max_code()) + 1;
    let codes =
        Array2::from_shape_fn(shape, |(row, column)| ((row * 31 + column * 7 + column / 5) % codes) as u8);
    let groups = scheme.granularity.scale_shape(shape.0, shape.1);
    let dtype = scheme.scale_dtype;
    let (coarse, together) = ((shape.0, shape.1.div_ceil(256)), groups.1.div_ceil(shape.1.div_ceil(256)));
    let parts = |least: i16, most: i16, unit: f32| {
        let numbers = usize::from((most - least) as u16) + 1;
        let fine = Array2::from_shape_fn(groups, |(row, group)| {
            match least + ((row * 5 + group * 3) % numbers) as i16 {
                0 if unit > 0.01 => 1.0,
                fine => f32::from(fine),
            }
        });
        ScaleParts { coarse: Array2::from_shape_fn(coarse, |(row, _)| unit * (1 + row % 2) as f32), fine }
    };
    let products = |parts: &ScaleParts, sign: f32| {
        Array2::from_shape_fn(groups, |(row, group)| {
            sign * parts.coarse[[row, group / together]] * parts.fine[[row, group]]
        })
    };
    let (scales, parts) = match dtype {
        ScaleDtype::Integers { least, most } => {
            let scales = parts(least, most, 0.015_625);
            let minimums = (scheme.symmetry == Symmetry::Minimum).then(|| parts(0, most, 0.007_812_5));
            (products(&scales, 1.0), Some((scales, minimums)))
        }
        _ => {
            let scale = |(row, group): (usize, usize)| {
                let sign = if (row + group) % 3 == 0 { -1.0 } else { 1.0 };
                dtype.round(sign * (1.0 + row as f32 / 7.0 + group as f32) / 100.0)
            };
            (Array2::from_shape_fn(groups, scale), None)
        }
    };
    let offsets = match (scheme.symmetry, &parts) {
        (Symmetry::Minimum, Some((_, Some(minimums)))) => Offsets::Minimums(products(minimums, -1.0)),
        (Symmetry::Minimum, _) => Offsets::Minimums(scales.mapv(|scale| dtype.round_minimum(scale * -6.3))),
        _ => Offsets::None,
    };
    let tensor = QuantizedTensor::with_offsets(scheme, codes, scales, offsets).unwrap();
    match parts {
        None => tensor,
        Some((scales, minimums)) => tensor.in_parts(scales, minimums).unwrap(),
    }
}

/// A checkpoint with its experts' tensors one by one.
fn opened(source: &Path, model: &Model) -> Checkpoint {
    let mut checkpoint = Checkpoint::open(source).unwrap();
    checkpoint.split(&model.fused_experts());
    checkpoint.split_side_by_side(&model.side_by_side_experts());
    checkpoint
}

/// Writes a model as the driver does; linears whose rows are no multiple of 32 stay dense.
fn write(
    format: &'static dyn TargetFormat,
    source: &Path,
    config: &serde_json::Value,
    model: &Model,
    output: &Path,
) -> (Vec<PlannedLinear>, Vec<TensorSpec>) {
    let checkpoint = opened(source, model);
    let scheme = |linear: &Linear| {
        let fits = format.quantizes() && linear.in_features.is_multiple_of(32);
        fits.then(|| format.grid(linear, model.layers.len(), asked()))
    };
    let planned =
        |linear: &Linear| PlannedLinear { linear: linear.clone(), fused_group: 0, scheme: scheme(linear) };
    let mut linears: Vec<_> = model.linears().map(planned).collect();
    format.settle(&mut linears).unwrap();
    let packed = |name: &str| linears.iter().any(|p| p.scheme.is_some() && p.linear.weight_name() == name);
    let names = checkpoint.names().filter(|name| !packed(name));
    let specs = names.map(|name| {
        let info = checkpoint.info(name).unwrap();
        TensorSpec { name: name.to_owned(), dtype: info.dtype, shape: info.shape.to_vec() }
    });
    let mut carried: Vec<TensorSpec> = specs.collect();
    assert!(format.settle_carried(model, &mut carried).unwrap().is_empty());
    let (runtime, max_shard_bytes) = (Dtype::F16, None);
    let contents = Contents {
        source,
        config,
        model,
        linears: &linears,
        carried: &carried,
        runtime,
        untied: false,
        max_shard_bytes,
    };
    format.check(&contents).unwrap();
    let mut writer = format.begin(output, &contents).unwrap();
    for spec in &carried {
        let found = checkpoint.info(&spec.name).unwrap().dtype;
        let values = found.decode(&checkpoint.read(&spec.name).unwrap()).unwrap();
        writer
            .carry(&TensorData { name: spec.name.clone(), bytes: spec.dtype.encode(&values).unwrap() })
            .unwrap();
    }
    for planned in linears.iter().rev() {
        if let Some(scheme) = planned.scheme {
            writer.put(&planned.linear, &solution(&planned.linear, scheme)).unwrap();
        }
    }
    writer.finish().unwrap();
    (linears, carried)
}

#[test]
fn models_come_back_under_their_own_names_with_rows_in_their_own_order() {
    let names = [
        ["llama", "llama31", "qwen2", "qwen3", "glm", "glm4"],
        ["granite", "olmo2", "phi2", "cohere", "stablelm", "stablelm_parallel"],
        ["gemma", "gpt2", "gpt_neox", "gpt_neox_in_turn", "falcon", "falcon_grouped"],
        ["bloom", "deepseek_v2", "deepseek_v3", "gpt_oss", "phi3", "qwen2_moe"],
    ];
    for name in names.into_iter().flatten() {
        let (folder, config, model) = source(name, &tokenizer());
        for format in gguf() {
            let output = tempfile::tempdir().unwrap();
            let (linears, carried) = write(format, folder.path(), &config, &model, output.path());
            let path = GgufFile::find(output.path()).unwrap().unwrap();
            let expected = format!("model-{}.gguf", format.id().split_once(':').unwrap().1);
            assert_eq!(path.file_name().unwrap().to_str(), Some(&expected[..]));
            let file = GgufFile::open(&path).unwrap();
            let read = Model::resolve(&file.config().unwrap()).unwrap();
            let (there, here) = (&read.hyperparameters, &model.hyperparameters);
            assert_eq!(
                (
                    there.hidden_size,
                    there.intermediate_size,
                    there.layers,
                    there.heads,
                    there.key_value_heads
                ),
                (here.hidden_size, here.intermediate_size, here.layers, here.heads, here.key_value_heads)
            );
            assert_eq!(
                (there.head_dim, there.vocabulary, there.context, there.tied_head, there.rope.theta),
                (here.head_dim, here.vocabulary, here.context, here.tied_head, here.rope.theta)
            );
            assert!(model.expected_tensors().eq(read.expected_tensors()), "{name}");
            assert_eq!(
                (there.factors, there.activation, there.norm_eps as f32, there.rope.dim, &there.rotations),
                (here.factors, here.activation, here.norm_eps as f32, here.rope.dim, &here.rotations)
            );
            assert_eq!(read.architecture.layer.branches, model.architecture.layer.branches);
            let (stored, checkpoint) = file.into_parts(&read).unwrap();
            let original = opened(folder.path(), &model);
            for spec in &carried {
                let values =
                    original.info(&spec.name).unwrap().dtype.decode(&original.read(&spec.name).unwrap());
                let expected = spec.dtype.encode(&values.unwrap()).unwrap();
                assert_eq!(checkpoint.info(&spec.name).unwrap().shape, spec.shape);
                let found = checkpoint.read(&spec.name).unwrap();
                if model.architecture.final_norm.unwrap().kind == NormKind::RmsPlusOne
                    && spec.shape.len() == 1
                {
                    // What is added and taken away again leaves its last bits.
                    let pairs = [&found, &expected].map(|bytes| spec.dtype.decode(bytes).unwrap());
                    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 2.0_f32.powi(-23);
                    assert!(pairs[0].iter().zip(&pairs[1]).all(close), "{name} {}", spec.name);
                    continue;
                }
                assert_eq!(found, expected, "{name} {} {}", format.id(), spec.name);
            }
            for PlannedLinear { linear, scheme, .. } in &linears {
                assert_eq!(stored.scheme(linear).map(|found| found.bits), scheme.map(|scheme| scheme.bits));
                let Some(scheme) = *scheme else { continue };
                let expected = solution(linear, scheme);
                assert_eq!(stored.decode(linear, scheme, &checkpoint).unwrap(), expected, "{}", linear.name);
                let packed = stored.packed(linear, scheme, &checkpoint).unwrap();
                assert!(
                    packed.is_none_or(|packed| packed.dequantize() == expected.dequantize()),
                    "{}",
                    linear.name
                );
            }
            assert_eq!(stored.id(), format.id(), "{name}");
            assert!(
                output.path().join("tokenizer.json").is_file() && !output.path().join("config.json").exists()
            );
        }
    }
}

/// Everything that `evaluate` would read of a file.
fn read_all(path: &Path) -> Result<(), String> {
    let text = |error: formats::FormatsError| error.to_string();
    let file = GgufFile::open(path).map_err(text)?;
    let model = Model::resolve(&file.config().map_err(text)?).map_err(|error| error.to_string())?;
    let (stored, checkpoint) = file.into_parts(&model).map_err(text)?;
    for name in checkpoint.names() {
        checkpoint.read(name).map_err(text)?;
    }
    for linear in model.linears() {
        if let Some(scheme) = stored.scheme(linear) {
            stored.packed(linear, scheme, &checkpoint).map_err(text)?;
            stored.decode(linear, scheme, &checkpoint).map_err(text)?;
        }
    }
    Ok(())
}

#[test]
fn no_damage_to_a_model_s_header_makes_a_reader_panic() {
    let (folder, config, model) = source("llama31", &tokenizer());
    let format = gguf().find(|format| format.id().ends_with("q4_0")).unwrap();
    let output = tempfile::tempdir().unwrap();
    write(format, folder.path(), &config, &model, output.path());
    let path = GgufFile::find(output.path()).unwrap().unwrap();
    read_all(&path).unwrap();
    let intact = fs::read(&path).unwrap();
    let header = Header::read(&path, &fs::File::open(&path).unwrap()).unwrap();
    let end = header.tensors.values().map(|entry| entry.offset).min().unwrap() as usize;
    let mut refused = 0;
    for place in (0..end).step_by(2) {
        let mut damaged = intact.clone();
        damaged[place] = [0, intact[place] ^ 1, 0xff][place / 2 % 3];
        fs::write(&path, damaged).unwrap();
        refused += usize::from(read_all(&path).is_err());
    }
    assert!(refused > end / 12, "{refused} of {end} bytes");
}

#[test]
fn every_layout_holds_every_solution_on_its_grid() {
    let id = model::linear::LinearId {
        layer: 0,
        part: model::linear::Part::Main,
        role: model::linear::Role::Down,
    };
    for layout in blocks::ALL {
        let linear = Linear {
            id,
            name: "down".to_owned(),
            out_features: 5,
            in_features: 1024,
            bias: false,
            class: model::linear::LinearClass::Plain,
        };
        let expected = solution(&linear, layout.scheme());
        let bytes = layout.encode(&expected);
        assert_eq!(bytes.len(), 5 * layout.row_bytes(1024));
        let found = layout.decode(&bytes, 5, 1024).into_tensor(layout.scheme()).unwrap();
        assert_eq!(found, expected, "{}", layout.tensor_type.name);
    }
}

#[test]
fn the_header_says_all_that_a_runtime_asks_for() {
    let (folder, config, model) = source("llama", &tokenizer());
    let output = tempfile::tempdir().unwrap();
    let format = gguf().find(|format| format.id().ends_with("q4_0")).unwrap();
    write(format, folder.path(), &config, &model, output.path());
    let path = GgufFile::find(output.path()).unwrap().unwrap();
    let header = Header::read(&path, &fs::File::open(&path).unwrap()).unwrap();
    let number = |key: &str| header.values[key].as_u64().unwrap();
    let text = |key: &str| header.values[key].as_text().unwrap();
    assert_eq!((number("general.file_type"), number("general.quantization_version")), (2, 2));
    assert_eq!((text("tokenizer.ggml.model"), text("tokenizer.ggml.pre")), ("gpt2", "gpt-2"));
    assert_eq!(text("tokenizer.chat_template"), "{{ messages }}");
    assert_eq!(header.values["tokenizer.ggml.merges"].as_texts().unwrap(), ["t 1", "t 2"]);
    assert_eq!(header.values["tokenizer.ggml.add_bos_token"], Value::Bool(true));
    assert_eq!(header.values["tokenizer.ggml.add_eos_token"], Value::Bool(false));
    assert_eq!((number("tokenizer.ggml.bos_token_id"), number("tokenizer.ggml.eos_token_id")), (1, 2));
    let tokens = header.values["tokenizer.ggml.tokens"].as_texts().unwrap();
    assert_eq!(
        (tokens.len(), &tokens[59][..], &tokens[60][..], &tokens[63][..]),
        (64, "t59", "<s>", "[PAD63]")
    );
    let Value::Array(Array::I32(kinds)) = &header.values["tokenizer.ggml.token_type"] else { panic!() };
    assert_eq!(kinds[58..64], [1, 1, 3, 4, 5, 5]);
    assert!(
        header.tensors.values().all(|entry| entry.shape.len() > 1 || *entry.tensor_type == TensorType::F32)
    );
}

#[test]
fn tokenizers_with_bytes_as_a_last_resort_have_scores_and_others_are_refused() {
    let write = |tokenizer: &serde_json::Value| {
        let (folder, config, model) = source("llama", tokenizer);
        let format = gguf().next().unwrap();
        let contents = Contents {
            source: folder.path(),
            config: &config,
            model: &model,
            linears: &[],
            carried: &[],
            runtime: Dtype::F16,
            untied: false,
            max_shard_bytes: None,
        };
        format.check(&contents).map(|_| ()).map_err(|error| error.to_string())
    };
    let mut pieces = tokenizer();
    pieces["model"]["byte_fallback"] = json!(true);
    pieces["pre_tokenizer"] = json!(null);
    assert_eq!(write(&pieces), Ok(()));
    let changed = |pointer: &str, value: serde_json::Value| {
        let mut changed = tokenizer();
        *changed.pointer_mut(pointer).unwrap() = value;
        write(&changed).unwrap_err()
    };
    assert!(changed("/model/type", json!("Unigram")).contains("Unigram"));
    assert!(changed("/pre_tokenizer/type", json!("Whitespace")).contains("Whitespace"));
    assert!(changed("/pre_tokenizer/add_prefix_space", json!(true)).contains("space before"));
    assert!(
        changed(
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": "x"}},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})
        )
        .contains("llama-bpe")
    );
    assert!(changed("/model/vocab/t9", json!(64)).contains("64 rows"));
    assert!(changed("/model/merges", json!([["a"]])).contains("merge"));
    assert!(changed("/model", json!(null)).contains("tokenizer.json"));
}

#[test]
fn what_llama_cpp_has_no_place_for_is_refused_or_left_out() {
    let (_folder, _, model) = source("llama", &tokenizer());
    let format = gguf().next().unwrap();
    let spec = |name: &str| TensorSpec { name: name.to_owned(), dtype: Dtype::F16, shape: vec![2] };
    let mut carried = vec![spec("model.layers.0.self_attn.rotary_emb.inv_freq"), spec("model.norm.weight")];
    assert_eq!(format.settle_carried(&model, &mut carried).unwrap().len(), 1);
    assert_eq!(carried, [TensorSpec { dtype: Dtype::F32, ..spec("model.norm.weight") }]);
    let message = format.settle_carried(&model, &mut vec![spec("model.other")]).unwrap_err().to_string();
    assert!(message.contains("model.other"), "{message}");
}

#[test]
fn a_model_that_llama_cpp_would_compute_otherwise_is_refused_with_the_difference() {
    let cases = [
        ("smollm3", None, "4th layer"),
        ("cohere2", None, "windows"),
        ("cohere", Some(("tie_word_embeddings", json!(false))), "tied"),
        ("olmo2", Some(("attention_bias", json!(true))), "biases"),
        ("falcon_two_norms", None, "biases"),
        ("starcoder2", Some(("use_bias", json!(false))), "biases"),
        ("granite", Some(("hidden_act", json!("gelu"))), "silu"),
        ("gptj", None, "not written for llama.cpp"),
        ("gemma2", None, "products of queries and keys"),
        ("gemma3", Some(("query_pre_attn_scalar", json!(16))), "windows"),
        ("gpt_oss", Some(("swiglu_limit", json!(6.0))), "clamps"),
        ("deepseek_v2", Some(("rms_norm_eps", json!(1e-5))), "latent features"),
    ];
    for (name, change, word) in cases {
        let (folder, mut config, _) = source(name, &tokenizer());
        if let Some((key, value)) = change {
            config[key] = value;
        }
        let model = Model::resolve(&config).unwrap();
        let contents = Contents {
            source: folder.path(),
            config: &config,
            model: &model,
            linears: &[],
            carried: &[],
            runtime: Dtype::F16,
            untied: false,
            max_shard_bytes: None,
        };
        let message = gguf().next().unwrap().check(&contents).unwrap_err().to_string();
        assert!(message.contains(word), "{name}: {message}");
    }
}

#[test]
fn a_model_in_several_files_is_one_model_and_parts_that_are_missing_are_named() {
    let (folder, config, model) = source("llama", &tokenizer());
    let output = tempfile::tempdir().unwrap();
    let format = gguf().find(|format| format.id() == "gguf:f32").unwrap();
    let checkpoint = opened(folder.path(), &model);
    let spec = |name: &str| {
        let shape = checkpoint.info(name).unwrap().shape.to_vec();
        TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape }
    };
    let carried: Vec<TensorSpec> = checkpoint.names().map(spec).collect();
    let contents = Contents {
        source: folder.path(),
        config: &config,
        model: &model,
        linears: &[],
        carried: &carried,
        runtime: Dtype::F32,
        untied: false,
        max_shard_bytes: Some(16 << 10),
    };
    let mut writer = format.begin(output.path(), &contents).unwrap();
    for spec in &carried {
        let values = checkpoint.info(&spec.name).unwrap().dtype.decode(&checkpoint.read(&spec.name).unwrap());
        let bytes = spec.dtype.encode(&values.unwrap()).unwrap();
        writer.carry(&TensorData { name: spec.name.clone(), bytes }).unwrap();
    }
    writer.finish().unwrap();
    let first = GgufFile::find(output.path()).unwrap().unwrap();
    let name = first.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.starts_with("model-f32-00001-of-0000"), "{name}");
    let file = GgufFile::open(&first).unwrap();
    assert_eq!(Model::resolve(&file.config().unwrap()).unwrap().hyperparameters.layers, 2);
    let (_, read) = file.into_parts(&model).unwrap();
    assert!(read.files().count() > 2);
    for spec in &carried {
        let [found, expected] = [&read, &checkpoint].map(|from| {
            from.info(&spec.name).unwrap().dtype.decode(&from.read(&spec.name).unwrap()).unwrap()
        });
        assert_eq!(found, expected, "{}", spec.name);
    }
    let second = output.path().join(name.replace("00001-of", "00002-of"));
    let said = GgufFile::open(&second).unwrap_err().to_string();
    assert!(said.contains("part 2") && said.contains(&name), "{said}");
    fs::remove_file(&second).unwrap();
    let said = GgufFile::open(&first).unwrap_err().to_string();
    assert!(said.contains("00002-of"), "{said}");
    fs::copy(&first, &second).unwrap();
    let said = GgufFile::open(&first).unwrap_err().to_string();
    assert!(said.contains("00002-of"), "{said}");
}

#[test]
fn files_that_are_not_understood_say_what_is_missing() {
    // The tensors of the tiny file are of no model, and its architecture's numbers are not there.
    let (folder, path) = on_disk(TINY);
    assert_eq!(GgufFile::find(folder.path()).unwrap(), Some(path.clone()));
    let message = GgufFile::open(&path).unwrap().config().unwrap_err().to_string();
    assert!(message.contains("file.gguf") && message.contains("llama."), "{message}");
    fs::write(folder.path().join("second.gguf"), TINY).unwrap();
    assert!(GgufFile::find(folder.path()).unwrap_err().to_string().contains("second.gguf"));
    fs::write(folder.path().join("model.safetensors"), "").unwrap();
    assert_eq!(GgufFile::find(folder.path()).unwrap(), None);
}

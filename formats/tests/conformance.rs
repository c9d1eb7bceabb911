//! Every format with every scheme: what it claims comes back exactly, as a solution and as a matrix to multiply with; what it does not
//! claim is refused with a reason; a single changed bit is seen.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use formats::model_writer::Contents;
use formats::target::{self, PlannedLinear, TargetFormat};
use formats::{Checkpoint, Dtype};
use model::Model;
use model::linear::{Linear, LinearId, Part, Role};
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::nested;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::{Offsets, QuantizedTensor, ScaleParts};
use serde_json::{Value, json};

fn linear(layer: usize, role: Role, shape: (usize, usize)) -> Linear {
    let module = match role {
        Role::Embedding => "embed_tokens",
        Role::Head => "lm_head",
        Role::QueryKeyValue => "self_attn.qkv_proj",
        Role::GateUp => "mlp.gate_up_proj",
        Role::Query => "self_attn.q_proj",
        Role::Key => "self_attn.k_proj",
        Role::Value => "self_attn.v_proj",
        Role::QueryLatent => "self_attn.q_a_proj",
        Role::KeyValueLatent => "self_attn.kv_a_proj_with_mqa",
        Role::KeyValue => "self_attn.kv_b_proj",
        Role::Output => "self_attn.o_proj",
        Role::Gate => "mlp.gate_proj",
        Role::Up => "mlp.up_proj",
        Role::Down => "mlp.down_proj",
    };
    let name = format!("model.layers.{layer}.{module}");
    Linear {
        id: LinearId { layer, part: Part::Main, role },
        name,
        out_features: shape.0,
        in_features: shape.1,
        bias: false,
        class: model::linear::LinearClass::Plain,
    }
}

fn scheme(
    format: &dyn TargetFormat,
    bits: u8,
    granularity: Granularity,
    symmetry: Symmetry,
    runtime: Dtype,
) -> Scheme {
    let bits = BitWidth::new(bits).unwrap();
    let scale_dtype = format.scale_dtype(runtime);
    let asked = Scheme { bits, levels: Levels::Uniform, granularity, symmetry, scale_dtype };
    // Formats of one table have no other grid.
    let own = format.grid(&linear(0, Role::Down, (32, 32)), 4, asked);
    // An exponent that is settled late is some number.
    if own.levels == Levels::Uniform && !format.fixes_grid() { asked } else { own.sharing(0.3) }
}

fn planned(linear: &Linear, scheme: Scheme) -> PlannedLinear {
    PlannedLinear { linear: linear.clone(), fused_group: 0, scheme: Some(scheme) }
}

fn group(columns: usize) -> Granularity {
    Granularity::PerGroup(GroupSize::new(columns).unwrap())
}

/// A solution with every code, scales of both signs and all magnitudes, every zero point.
fn solution(linear: &Linear, scheme: Scheme) -> QuantizedTensor {
    let mut state = 0x9E37_79B9_u32 ^ (linear.out_features * 31 + linear.in_features) as u32;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let most = scheme.bits.max_code();
    let (rows, columns) = (linear.out_features, linear.in_features);
    let count = scheme.levels.table().map_or(u32::from(most) + 1, |table| table.len() as u32);
    let codes = Array2::from_shape_simple_fn((rows, columns), || (random() >> 8) % count).mapv(|c| c as u8);
    let grid = scheme.granularity.scale_shape(rows, columns);
    let scales = Array2::from_shape_simple_fn(grid, || {
        let magnitude = 2.0_f32.powi((random() % 20) as i32 - 15) * (1.0 + random() as f32 / u32::MAX as f32);
        scheme.scale_dtype.round(if random() % 4 == 0 { -magnitude } else { magnitude })
    });
    if scheme.scale_dtype == ScaleDtype::Nested {
        return nested_solution(scheme, codes, &mut random);
    }
    let zeros = (scheme.symmetry == Symmetry::Asymmetric)
        .then(|| Array2::from_shape_simple_fn(grid, || random() as u8 & most));
    QuantizedTensor::new(scheme, codes, scales, zeros).unwrap()
}

/// A solution whose scales are any numbers of the table, with a coarse number for each 256 of them and an offset above all.
fn nested_solution(scheme: Scheme, codes: Array2<u8>, random: &mut dyn FnMut() -> u32) -> QuantizedTensor {
    let (rows, groups) = scheme.granularity.scale_shape(codes.nrows(), codes.ncols());
    let coarse: Vec<f32> =
        (0..(rows * groups).div_ceil(256)).map(|_| 1e-3 + random() as f32 / u32::MAX as f32).collect();
    let coarse = Array2::from_shape_fn((rows, groups + 1), |(row, group)| {
        if group == groups { 1.2345 } else { coarse[(row * groups + group) / 256] }
    });
    let fine = Array2::from_shape_simple_fn((rows, groups), || nested::TABLE[random() as usize % 256]);
    let scale = |(row, group): (usize, usize)| {
        nested::scale(fine[[row, group]], coarse[[row, group]], coarse[[row, groups]])
    };
    let scales = Array2::from_shape_fn((rows, groups), scale);
    let tensor = QuantizedTensor::new(scheme, codes, scales, None).unwrap();
    tensor.in_parts(ScaleParts { coarse, fine }, None).unwrap()
}

/// Writes a checkpoint with config.json; the driver's part in small.
fn write(
    folder: &Path,
    format: &'static dyn TargetFormat,
    plan: &[PlannedLinear],
    tensors: &[QuantizedTensor],
) {
    let source = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "llama", "torch_dtype": "float16", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 8, "max_position_embeddings": 8
    });
    let contents = Contents {
        source: source.path(),
        config: &config,
        model: &Model::resolve(&config).unwrap(),
        linears: plan,
        carried: &[],
        runtime: Dtype::Bf16,
        untied: false,
        max_shard_bytes: Some(1 << 16),
    };
    let mut writer = format.begin(folder, &contents).unwrap();
    for (planned, tensor) in plan.iter().zip(tensors).filter(|(planned, _)| planned.scheme.is_some()) {
        writer.put(&planned.linear, tensor).unwrap();
    }
    writer.finish().unwrap();
}

/// Formats that keep the checkpoint's names in safetensors; GGUF and ONNX have tests of their own.
fn checkpoints() -> impl Iterator<Item = &'static dyn TargetFormat> {
    let apart =
        |format: &&'static dyn TargetFormat| !format.id().starts_with("gguf") && format.id() != "onnx";
    target::ALL.iter().copied().filter(apart)
}

fn quantization(folder: &Path) -> Value {
    formats::json::read(folder, "config.json").unwrap()["quantization_config"].clone()
}

fn claimed(format: &dyn TargetFormat, scheme: Scheme, shape: (usize, usize)) -> bool {
    let bits = scheme.bits.get();
    match format.id() {
        "gptq" | "gptq-v2" => {
            let whole_words = |features: usize| (features * usize::from(bits)).is_multiple_of(32);
            [2, 3, 4, 8].contains(&bits) && whole_words(shape.0) && whole_words(shape.1)
        }
        "awq" => bits == 4 && shape.0.is_multiple_of(8),
        "compressed-tensors:mxfp4" | "mlx:mxfp4" | "mlx:mxfp8" => shape.1.is_multiple_of(32),
        "compressed-tensors:nvfp4" | "mlx:nvfp4" => shape.1.is_multiple_of(16),
        id if id.starts_with("compressed-tensors") => true,
        "nf4" | "fp4" | "nf4:double" | "fp4:double" => {
            let Granularity::PerGroup(size) = scheme.granularity else { return false };
            lowered(size.get(), shape.1).is_some_and(|size| size >= 32 && size.is_power_of_two())
        }
        "mlx" => {
            let group = match scheme.granularity {
                Granularity::PerGroup(size) => lowered(size.get(), shape.1),
                Granularity::PerChannel | Granularity::PerTensor => None,
            };
            bits != 7 && scheme.symmetry == Symmetry::Symmetric && [32, 64, 128].map(Some).contains(&group)
        }
        other => panic!("say what `{other}` claims"),
    }
}

/// The largest size that divides the width, of `asked` and what halving leaves of it, and of the powers of two below.
fn lowered(asked: usize, width: usize) -> Option<usize> {
    let halves = |size: usize| asked.is_multiple_of(size) && (asked / size).is_power_of_two();
    (16..=asked)
        .rev()
        .filter(|&size| size.is_power_of_two() || halves(size))
        .find(|size| width.is_multiple_of(*size))
}

#[test]
fn what_a_format_claims_comes_back_exactly_and_the_rest_is_refused_with_a_reason() {
    let granularities =
        [group(16), group(48), group(64), group(1024), Granularity::PerChannel, Granularity::PerTensor];
    let (mut written, mut seen) = (0, std::collections::HashSet::new());
    for format in checkpoints() {
        for shape in [(64, 192), (32, 1024), (33, 96), (40, 80), (1, 16), (3, 7)] {
            for bits in 2..=8 {
                for (number, granularity) in granularities.into_iter().enumerate() {
                    for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
                        let runtime = if number % 2 == 0 { Dtype::F16 } else { Dtype::Bf16 };
                        let scheme = scheme(format, bits, granularity, symmetry, runtime);
                        // Formats of one grid make the same of all.
                        if !seen.insert((format.id(), shape, scheme)) {
                            continue;
                        }
                        written += usize::from(holds_or_refuses(format, shape, scheme));
                    }
                }
            }
        }
    }
    assert!(written > 500, "{written}");
}

/// Whether the format took the scheme, after it was seen to be right either way.
fn holds_or_refuses(format: &'static dyn TargetFormat, shape: (usize, usize), scheme: Scheme) -> bool {
    let what = format!("{} {scheme:?} {shape:?}", format.id());
    let linear = linear(3, Role::Down, shape);
    let mut plan = vec![PlannedLinear { linear, fused_group: 0, scheme: Some(scheme) }];
    let grouped = matches!(scheme.granularity, Granularity::PerGroup(_));
    let possible = claimed(format, scheme, shape) && (!grouped || shape.1.is_multiple_of(16));
    match format.settle(&mut plan) {
        Err(error) => {
            assert!(!possible, "{what} refused: {error}");
            assert!(error.to_string().contains("down_proj") && error.hint().is_some(), "{error}");
            false
        }
        Ok(_) => {
            assert!(possible, "{what} is not refused");
            round_trip(format, &plan, &what);
            true
        }
    }
}

fn round_trip(format: &'static dyn TargetFormat, plan: &[PlannedLinear], what: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (linear, scheme) = (&plan[0].linear, plan[0].scheme.unwrap());
    let solution = solution(linear, scheme);
    for (spec, data) in format.layout(linear, scheme).iter().zip(format.encode(linear, &solution)) {
        assert_eq!((&spec.name, spec.bytes()), (&data.name, data.bytes.len() as u64), "{what}");
    }
    write(folder.path(), format, plan, std::slice::from_ref(&solution));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let stored = target::open(&quantization(folder.path())).unwrap();
    // Of two formats that write the same, reading names one.
    let config = quantization(folder.path());
    assert!(
        stored.id() == format.id() || format.open(&config).is_some_and(|opened| opened.is_ok()),
        "{what}"
    );
    for name in stored.tensors(linear, scheme) {
        assert!(checkpoint.contains(&name), "{what} {name}");
    }
    // With the scheme that was solved for, everything comes back; with the one that config.json gives, all values do.
    let decoded = stored.decode(linear, scheme, &checkpoint).unwrap();
    assert_eq!(decoded, solution, "{what}");
    let read = stored.scheme(linear).unwrap();
    assert_eq!((read.bits, read.scale_dtype), (scheme.bits, ScaleDtype::F32));
    // A format that always stores zero points or minimums holds symmetric grids too.
    assert!(read.symmetry == scheme.symmetry || read.symmetry != Symmetry::Symmetric, "{what}");
    let decoded = stored.decode(linear, read, &checkpoint).unwrap();
    assert_eq!(decoded.codes(), solution.codes());
    assert_eq!(decoded.scales_by_row(), solution.scales_by_row());
    assert_eq!(decoded.dequantize(), solution.dequantize());
    let packed = stored.packed(linear, scheme, &checkpoint).unwrap();
    assert_eq!(packed.is_some(), scheme.levels == Levels::Uniform, "{what}");
    if let Some(packed) = packed {
        assert_eq!(packed.dequantize(), solution.dequantize(), "{what}");
        assert_eq!(packed.unpack_codes(), solution.codes(), "{what}");
    }
}

/// A model of three layers like SmolLM2's, in small: 128 does not divide its hidden size.
fn small_model(format: &dyn TargetFormat, bits: u8, granularity: Granularity) -> Vec<PlannedLinear> {
    let scheme = scheme(format, bits, granularity, Symmetry::Symmetric, Dtype::Bf16);
    let stages: [&[(Role, (usize, usize))]; 4] = [
        &[(Role::Query, (192, 192)), (Role::Key, (64, 192)), (Role::Value, (64, 192))],
        &[(Role::Output, (192, 192))],
        &[(Role::Gate, (512, 192)), (Role::Up, (512, 192))],
        &[(Role::Down, (192, 512))],
    ];
    let mut plan = Vec::new();
    for layer in 0..3 {
        for (stage, linears) in stages.iter().enumerate() {
            plan.extend(linears.iter().map(|&(role, shape)| PlannedLinear {
                linear: linear(layer, role, shape),
                fused_group: 4 * layer + stage,
                scheme: Some(scheme),
            }));
        }
    }
    plan
}

fn find(id: &str) -> &'static dyn TargetFormat {
    *target::ALL.iter().find(|format| format.id() == id).unwrap()
}

/// Writes a model, reads it again, and expects of every linear what was planned.
fn expect_model(format: &'static dyn TargetFormat, plan: &[PlannedLinear]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let filler = scheme(format, 4, Granularity::PerChannel, Symmetry::Symmetric, Dtype::F16);
    let tensors: Vec<_> =
        plan.iter().map(|planned| solution(&planned.linear, planned.scheme.unwrap_or(filler))).collect();
    write(folder.path(), format, plan, &tensors);
    let config = quantization(folder.path());
    let stored = target::open(&config).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for (planned, tensor) in plan.iter().zip(&tensors) {
        let name = &planned.linear.name;
        let read = stored.scheme(&planned.linear);
        assert_eq!(
            read.map(|scheme| (scheme.bits, scheme.granularity)),
            planned.scheme.map(|scheme| (scheme.bits, scheme.granularity)),
            "{name}"
        );
        if let Some(scheme) = planned.scheme {
            assert_eq!(stored.decode(&planned.linear, scheme, &checkpoint).unwrap(), *tensor, "{name}");
        }
    }
    config
}

#[test]
fn one_group_size_for_a_file_is_the_largest_that_divides_every_linear() {
    let gptq = find("gptq");
    let mut plan = small_model(gptq, 4, group(128));
    let notes = gptq.settle(&mut plan).unwrap();
    assert!(plan.iter().all(|planned| planned.scheme.unwrap().granularity == group(64)));
    assert!(notes.len() == 1 && notes[0].contains("from 128 to 64") && notes[0].contains("192"), "{notes:?}");
    let config = expect_model(gptq, &plan);
    assert_eq!(config["group_size"], 64);
    assert!(config.get("dynamic").is_none());

    let several = find("compressed-tensors");
    let mut plan = small_model(several, 4, group(128));
    let notes = several.settle(&mut plan).unwrap();
    for planned in &plan {
        let expected = if planned.linear.id.role == Role::Down { 128 } else { 64 };
        assert_eq!(planned.scheme.unwrap().granularity, group(expected), "{}", planned.linear.name);
    }
    assert!(!notes.is_empty());
    let config = expect_model(several, &plan);
    assert_eq!(config["config_groups"].as_object().unwrap().len(), 2);
    assert_eq!(config["ignore"], json!(["lm_head"]));
}

#[test]
fn the_rotation_is_spelled_where_mlx_lm_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = tempfile::tempdir().unwrap();
    let rope = json!({"rope_type": "linear", "rope_theta": 500000.0, "factor": 2.0});
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
        "vocab_size": 8, "max_position_embeddings": 8, "rope_parameters": rope
    });
    let model = Model::resolve(&config).unwrap();
    let contents = Contents {
        source: source.path(),
        config: &config,
        model: &model,
        linears: &[],
        carried: &[],
        runtime: Dtype::F16,
        untied: false,
        max_shard_bytes: Some(1 << 16),
    };
    find("mlx").begin(folder.path(), &contents).unwrap().finish().unwrap();
    let written = formats::json::read(folder.path(), "config.json").unwrap();
    assert_eq!((&written["rope_theta"], &written["rope_scaling"]), (&json!(500000.0), &rope));
    // Both spellings say the same to us.
    assert_eq!(Model::resolve(&written).unwrap().hyperparameters.rope, model.hyperparameters.rope);
}

#[test]
fn minimums_come_back_exactly_where_a_format_has_them() {
    let format = find("mlx");
    let linear = linear(0, Role::Up, (24, 192));
    for bits in [2, 3, 4, 5, 6, 8] {
        for runtime in [Dtype::F16, Dtype::Bf16] {
            let asked = scheme(format, bits, group(64), Symmetry::Asymmetric, runtime);
            let scheme = format.grid(&linear, 1, asked);
            assert_eq!(scheme.symmetry, Symmetry::Minimum);
            let mut plan = [planned(&linear, scheme)];
            format.settle(&mut plan).unwrap();
            let symmetric = solution(&linear, Scheme { symmetry: Symmetry::Symmetric, ..scheme });
            let minimums = symmetric.scales().mapv(|scale| scheme.scale_dtype.round_minimum(scale * -1.7));
            let (codes, scales) = (symmetric.codes().to_owned(), symmetric.scales().to_owned());
            let expected =
                QuantizedTensor::with_offsets(scheme, codes, scales, Offsets::Minimums(minimums)).unwrap();
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), format, &plan, std::slice::from_ref(&expected));
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let stored = target::open(&quantization(folder.path())).unwrap();
            assert_eq!(stored.decode(&linear, scheme, &checkpoint).unwrap(), expected, "{bits}");
            assert!(stored.packed(&linear, scheme, &checkpoint).unwrap().is_none());
            let refused = Scheme { symmetry: Symmetry::Symmetric, ..scheme };
            let message = stored.decode(&linear, refused, &checkpoint).unwrap_err().to_string();
            assert!(message.contains("up_proj.biases"), "{message}");
        }
    }
}

#[test]
fn linears_left_in_16_bit_and_linears_of_another_width_are_told_to_every_reader() {
    for format in checkpoints() {
        let mut plan = small_model(format, 4, group(64));
        for planned in &mut plan {
            let LinearId { layer, role, .. } = planned.linear.id;
            match role {
                Role::Down => planned.scheme = None,
                Role::Gate | Role::Up if layer != 1 && !format.mixed_widths().is_empty() => {
                    planned.scheme.as_mut().unwrap().bits = BitWidth::new(8).unwrap();
                }
                _ => {}
            }
        }
        format.settle(&mut plan).unwrap();
        let config = expect_model(format, &plan);
        if format.id().starts_with("gptq") {
            let rules: Vec<&String> = config["dynamic"].as_object().unwrap().keys().collect();
            assert_eq!(
                rules,
                [
                    r"-:model\.layers\.(0|1|2)\.mlp\.(down_proj)$",
                    r"+:model\.layers\.(0|2)\.mlp\.(gate_proj|gate_up_proj)$",
                    r"+:model\.layers\.(0|2)\.mlp\.(up_proj|gate_up_proj)$",
                ]
            );
            let modules = &config["modules_in_block_to_quantize"];
            assert_eq!(modules[0], json!(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]));
            assert_eq!(modules[2], json!(["mlp.gate_proj", "mlp.up_proj"]));
        }
        let rule = |runtime: &str| format.loaders().iter().find(|rule| rule.runtime.starts_with(runtime));
        if let Some(transformers) = rule("transformers") {
            assert_eq!(transformers.check(&plan).loads, !format.id().starts_with("gptq"), "{}", format.id());
        }
        if let Some(serving) = rule("SGLang") {
            assert!(!serving.check(&small_model(format, 3, group(64))).loads, "marlin has no 3-bit kernel");
        }
        if let Some(serving) = format.loaders().iter().find(|rule| rule.runtime == "vLLM 0.33") {
            assert!(serving.check(&plan).loads);
        }
    }
}

#[test]
fn linears_that_runtimes_fuse_are_quantized_alike_or_refused() {
    // Transformers runs bitsandbytes' linears one by one.
    for format in
        checkpoints().filter(|format| !["nf4", "fp4"].contains(&format.id().trim_end_matches(":double")))
    {
        for change in [None, (!format.mixed_widths().is_empty()).then(|| BitWidth::new(8).unwrap())] {
            let mut plan = small_model(format, 4, group(64));
            plan[1].scheme = change.and_then(|bits| plan[1].scheme.map(|scheme| Scheme { bits, ..scheme }));
            let message = format.settle(&mut plan).unwrap_err().to_string();
            assert!(message.contains("k_proj") && message.contains("q_proj"), "{message}");
        }
    }
}

#[test]
fn a_single_changed_bit_is_seen() {
    for format in checkpoints() {
        let other = if format.mixed_widths().is_empty() { 4 } else { 3 };
        for (bits, symmetry) in [(4, Symmetry::Symmetric), (other, Symmetry::Asymmetric)] {
            // 37 outputs and 48 inputs of 3 or 4 bits leave bits unused at the end of a stream, where the format allows it.
            let shape = if format.id() == "compressed-tensors" { (37, 48) } else { (32, 32) };
            let linear = linear(0, Role::Output, shape);
            let columns = if ["mlx", "nf4", "fp4"].contains(&format.id().trim_end_matches(":double")) {
                32
            } else {
                16
            };
            let scheme = scheme(format, bits, group(columns), symmetry, Dtype::F16);
            if format.settle(&mut [planned(&linear, scheme)]).is_err() {
                continue;
            }
            let plan = [planned(&linear, scheme)];
            let solution = solution(&linear, scheme);
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), format, &plan, std::slice::from_ref(&solution));
            let stored = target::open(&quantization(folder.path())).unwrap();
            let path = folder.path().join("model.safetensors");
            let bytes = std::fs::read(&path).unwrap();
            let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let mut file = std::fs::File::options().write(true).open(&path).unwrap();
            let mut put = |place: usize, byte: u8| {
                file.seek(SeekFrom::Start(place as u64)).unwrap();
                file.write_all(&[byte]).unwrap();
            };
            // Of a table of 256 numbers some.
            let step = if format.id().ends_with(":double") { 11 } else { 1 };
            for bit in (8 * data..8 * bytes.len()).step_by(step) {
                put(bit / 8, bytes[bit / 8] ^ 1 << (bit % 8));
                match stored.decode(&linear, scheme, &checkpoint) {
                    Err(error) => assert!(error.to_string().contains("o_proj"), "{error}"),
                    Ok(decoded) => {
                        let same = decoded == solution && !changes_no_value(format, &bytes, bit);
                        assert!(!same, "{} bit {bit}", format.id());
                    }
                }
                put(bit / 8, bytes[bit / 8]);
            }
        }
    }
}

/// Whether that bit is the sign of a float that is zero, or of a digit of an offset that rounds to the same number.
fn changes_no_value(format: &dyn TargetFormat, bytes: &[u8], bit: usize) -> bool {
    let (byte, id) = (bytes[bit / 8], format.id());
    if id.ends_with(":double") {
        let key = b"\"nested_offset\": ";
        let digits = bytes.windows(key.len()).position(|part| part == key).unwrap() + key.len();
        if (digits..digits + 26).contains(&(bit / 8)) && byte.is_ascii_digit() {
            return true;
        }
    }
    match (id.trim_end_matches(":double").rsplit(':').next().unwrap(), bit % 8) {
        ("fp8" | "w8a8-fp8" | "mxfp8", 7) => byte & 0x7F == 0,
        ("mxfp4" | "nvfp4" | "fp4", 7) => byte & 0x70 == 0,
        ("mxfp4" | "nvfp4" | "fp4", 3) => byte & 0x07 == 0,
        _ => false,
    }
}

#[test]
fn files_meet_the_words_of_the_reference_implementations() {
    // Zero points as GPTQModel stores them, version 1 for symmetric grids and version 2 for asymmetric ones with the same zero.
    let symmetric: [(u8, &[u32], &[u32]); 4] = [
        (2, &[0x5555_5555; 2], &[0xAAAA_AAAA; 2]),
        (3, &[0xDB6D_B6DB, 0xB6DB_6DB6, 0x6DB6_DB6D], &[0x2492_4924, 0x4924_9249, 0x9249_2492]),
        (4, &[0x7777_7777; 4], &[0x8888_8888; 4]),
        (8, &[0x7F7F_7F7F; 8], &[0x8080_8080; 8]),
    ];
    for (bits, first, second) in symmetric {
        for (gptq, symmetry, words) in [
            (find("gptq"), Symmetry::Symmetric, first),
            (find("gptq"), Symmetry::Asymmetric, second),
            (find("gptq-v2"), Symmetry::Symmetric, second),
        ] {
            let scheme = scheme(gptq, bits, Granularity::PerChannel, symmetry, Dtype::F16);
            let linear = linear(0, Role::Up, (32, 32));
            let zeros = (symmetry == Symmetry::Asymmetric)
                .then(|| Array2::from_elem((32, 1), scheme.bits.symmetric_zero()));
            let codes = Array2::from_shape_fn((32, 32), |(_, column)| ((5 * column + 3) % (1 << bits)) as u8);
            let tensor = QuantizedTensor::new(scheme, codes, Array2::ones((32, 1)), zeros).unwrap();
            let data = gptq.encode(&linear, &tensor);
            let words: Vec<u8> =
                words.iter().take(usize::from(bits)).flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(data[1].bytes[..words.len()], words, "{bits} bits");
            let repeated = data[1].bytes.chunks(words.len()).all(|part| *part == words[..part.len()]);
            assert!(repeated, "{bits} bits");
            if bits == 3 {
                // The first stream runs down the first column of [3, 32] words.
                let down: Vec<u32> = [0, 1, 2]
                    .map(|row| u32::from_le_bytes(data[0].bytes[128 * row..][..4].try_into().unwrap()))
                    .to_vec();
                assert_eq!(down, [0x43C6_7543, 0x7543_C675, 0xC675_43C6]);
            }
            assert_eq!(data[2].bytes, [0x00, 0x3C].repeat(32));
            assert_eq!(data[3].bytes, [0; 128]);
        }
    }
    // AutoAWQ 0.2.9: eight outputs of one input.
    let format = find("awq");
    let scheme_of = scheme(format, 4, Granularity::PerChannel, Symmetry::Asymmetric, Dtype::F16);
    let ramp = |first: u8| Array2::from_shape_fn((8, 16), |(row, _)| first + row as u8);
    let zeros = Array2::from_shape_fn((8, 1), |(row, _)| row as u8);
    let tensor = QuantizedTensor::new(scheme_of, ramp(1), Array2::ones((8, 1)), Some(zeros)).unwrap();
    let data = format.encode(&linear(0, Role::Up, (8, 16)), &tensor);
    assert_eq!(data[0].bytes, 0x8642_7531_u32.to_le_bytes().repeat(16));
    assert_eq!(data[1].bytes, 0x7531_6420_u32.to_le_bytes());
    let tensor = QuantizedTensor::new(
        Scheme { symmetry: Symmetry::Symmetric, ..scheme_of },
        ramp(0),
        Array2::ones((8, 1)),
        None,
    );
    let data = format.encode(&linear(0, Role::Up, (8, 16)), &tensor.unwrap());
    assert_eq!(data[1].bytes, [0x88; 4]);
    // mlx 0.32.4: codes 0 to 15 twice, scale 0.0123 in half, bias -0.0984.
    let format = find("mlx");
    let scheme_of = scheme(format, 4, group(32), Symmetry::Symmetric, Dtype::F16);
    let codes = Array2::from_shape_fn((1, 32), |(_, column)| (column % 16) as u8);
    let scale = Array2::from_elem((1, 1), ScaleDtype::F16.round(0.0123));
    let tensor = QuantizedTensor::new(scheme_of, codes, scale, None).unwrap();
    let data = format.encode(&linear(0, Role::Up, (1, 32)), &tensor);
    let words = [0x7654_3210_u32, 0xFEDC_BA98, 0x7654_3210, 0xFEDC_BA98];
    assert_eq!(data[0].bytes, words.map(u32::to_le_bytes).concat());
    assert_eq!((&data[1].bytes[..], &data[2].bytes[..]), (&[0x4C, 0x22][..], &[0x4C, 0xAE][..]));
    // compressed-tensors 0.20: zero points -8, -7, -3, 0, 1, 5, 7, 2 of eight outputs.
    let format = find("compressed-tensors");
    let scheme = scheme(format, 4, Granularity::PerChannel, Symmetry::Asymmetric, Dtype::Bf16);
    let zeros = Array2::from_shape_vec((8, 1), vec![0, 1, 5, 8, 9, 13, 15, 10]).unwrap();
    let codes = Array2::from_shape_fn((8, 40), |(_, column)| ((5 * column + 3) % 16) as u8);
    let tensor = QuantizedTensor::new(scheme, codes, Array2::ones((8, 1)), Some(zeros)).unwrap();
    let data = format.encode(&linear(0, Role::Up, (8, 40)), &tensor);
    assert_eq!(data[0].bytes[..8], [0x83, 0x2D, 0xC7, 0x61, 0x0B, 0xA5, 0x4F, 0xE9]);
    assert_eq!(data[1].bytes, [0x80, 0x3F].repeat(8));
    assert_eq!(data[2].bytes, [8, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(data[3].bytes, 0xAFD9_8510_u32.to_le_bytes());
}

/// Codes of 0, 0.5, 1, 1.5, 2, 3, 4, 6, their negatives from -0.5 on, and 0, twice.
const MLX_VALUES: [u8; 16] = [7, 8, 9, 10, 11, 12, 13, 14, 6, 5, 4, 3, 2, 1, 0, 7];
const MLX_WORDS: [u8; 8] = [0x10, 0x32, 0x54, 0x76, 0xA9, 0xCB, 0xED, 0x0F];

#[test]
fn four_bit_floats_on_two_levels_are_told_what_they_share() {
    let format = find("compressed-tensors:nvfp4");
    let scheme = scheme(format, 4, group(16), Symmetry::Symmetric, Dtype::Bf16);
    // The largest weight, 0.3, has a scale of 0.05: 204.8 times 2^-12.
    assert_eq!(scheme.scale_dtype, ScaleDtype::SharedE4m3 { exponent: -12 });
    let codes = Array2::from_shape_fn((1, 32), |(_, column)| (column % 15) as u8);
    let scales = ndarray::array![[208.0 / 4096.0, 1.0 / 4096.0]];
    let tensor = QuantizedTensor::new(scheme, codes, scales, None).unwrap();
    let data = format.encode(&linear(0, Role::Up, (1, 32)), &tensor);
    assert_eq!(data[1].bytes, [0x75, 0x38]);
    assert_eq!(
        (data[2].name.rsplit('.').next(), &data[2].bytes[..]),
        (Some("weight_global_scale"), &4096.0_f32.to_le_bytes()[..])
    );
}

#[test]
fn numbers_have_the_bits_that_their_standards_say() {
    // Codes, a scale, the bytes of both.
    type Case = (&'static str, &'static [u8], f32, &'static [u8], &'static [u8]);
    let shape = (1, 32);
    // Two's complement; the bits of E4M3, from 448 down to its negative; pairs of E2M1 on a scale of 2^-3.
    let cases: [Case; 6] = [
        ("compressed-tensors:w8a8-int8", &[0, 127, 128, 255], 0.5, &[0x80, 0xFF, 0x00, 0x7F], &[0x00, 0x3F]),
        (
            "compressed-tensors:fp8",
            &[252, 182, 126, 125, 0],
            2.0,
            &[0x7E, 0x38, 0x00, 0x81, 0xFE],
            &[0x00, 0x40],
        ),
        ("compressed-tensors:mxfp4", &[0, 14, 7, 8, 6, 9], 0.125, &[0x7F, 0x10, 0x29], &[124]),
        // The values that mlx 0.32.4 was given: 0 to 6, -0.5 to -6, 0.
        ("mlx:mxfp4", &MLX_VALUES, 1.0, &MLX_WORDS, &[127]),
        ("mlx:nvfp4", &MLX_VALUES, 1.0, &MLX_WORDS, &[0x38, 0x38]),
        ("mlx:mxfp8", &[126, 174, 182, 206], 0.015625, &[0x00, 0x30, 0x38, 0x50], &[0x79]),
    ];
    for (id, codes, scale, numbers, scales) in cases {
        let format = find(id);
        let scheme = scheme(format, 8, Granularity::PerChannel, Symmetry::Symmetric, Dtype::Bf16);
        let codes = Array2::from_shape_fn(shape, |(_, column)| codes[column % codes.len()]);
        let of_groups = Array2::from_elem(scheme.granularity.scale_shape(1, 32), scale);
        let tensor = QuantizedTensor::new(scheme, codes, of_groups, None).unwrap();
        let data = format.encode(&linear(0, Role::Up, shape), &tensor);
        assert_eq!(&data[0].bytes[..numbers.len()], numbers, "{id}");
        assert_eq!(data[1].bytes, scales, "{id}");
    }
    assert_eq!(Levels::E4m3.table().unwrap()[182], 1.0);
}

#[test]
fn configurations_that_would_be_misread_are_refused() {
    let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false});
    let awq =
        json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm"});
    let mlx = json!({"bits": 4, "group_size": 64, "mode": "affine"});
    let weights =
        json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 128});
    let compressed = json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]
    });
    let weights = json!({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "channel"});
    let inputs =
        json!({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "token", "dynamic": true});
    let numbers = json!({
        "quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    });
    let fp8 = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]});
    assert!(
        target::open(&gptq).is_ok()
            && target::open(&fp8).is_ok()
            && target::open(&numbers).is_ok()
            && target::open(&awq).is_ok()
            && target::open(&mlx).is_ok()
            && target::open(&compressed).is_ok()
    );
    let group = "/config_groups/group_0";
    let cases: &[(&Value, &str, &str, Value)] = &[
        (&gptq, "", "quant_method", json!("other")),
        (&gptq, "", "quant_method", json!(null)),
        (&gptq, "", "bits", json!(9)),
        (&gptq, "", "bits", json!("4")),
        (&gptq, "", "bits", json!(null)),
        (&gptq, "", "group_size", json!(0)),
        (&gptq, "", "group_size", json!(-2)),
        (&gptq, "", "sym", json!("yes")),
        (&gptq, "", "checkpoint_format", json!("marlin")),
        (&gptq, "", "format", json!("gptq_p")),
        (&gptq, "", "pack_dtype", json!("int64")),
        (&gptq, "", "dynamic", json!({"+:(": {}})),
        (&gptq, "", "dynamic", json!({"x": {"bits": 1}})),
        (&mlx, "", "mode", json!("nvfp4")),
        (&mlx, "", "mode", json!("mxfp6")),
        (&mlx, "", "bits", json!(7)),
        (&mlx, "", "group_size", json!(null)),
        (&mlx, "", "model.layers.0.mlp.up_proj", json!({"bits": 4})),
        (&awq, "", "bits", json!(8)),
        (&awq, "", "version", json!("gemv")),
        (&awq, "", "zero_point", json!(false)),
        (&awq, "", "zero_point", json!(null)),
        (&awq, "", "group_size", json!(0)),
        (&awq, "", "modules_to_not_convert", json!([1])),
        (&compressed, "", "format", json!("float-quantized")),
        (&compressed, "", "config_groups", json!(null)),
        (&compressed, "", "config_groups", json!({"group_0": {}})),
        (&compressed, "", "transform_config", json!({"config_groups": {}})),
        (&compressed, "", "sparsity_config", json!({"format": "dense"})),
        (&compressed, "", "ignore", json!([1])),
        (&compressed, group, "targets", json!(["re:("])),
        (&compressed, "/config_groups/group_0/weights", "type", json!("float")),
        (&compressed, "/config_groups/group_0/weights", "num_bits", json!(1)),
        (&compressed, "/config_groups/group_0/weights", "strategy", json!("block")),
        (&compressed, "/config_groups/group_0/weights", "group_size", json!(7)),
        (&compressed, "/config_groups/group_0/weights", "dynamic", json!(true)),
        (&numbers, "", "format", json!("int-quantized")),
        (&numbers, "", "format", json!("nvfp4-pack-quantized")),
        (&numbers, "/config_groups/group_0/weights", "num_bits", json!(4)),
        (&numbers, "/config_groups/group_0/weights", "symmetric", json!(false)),
        (&numbers, "/config_groups/group_0/weights", "actorder", json!("group")),
        (&numbers, "/config_groups/group_0/weights", "actorder", json!("dynamic")),
        (&numbers, group, "output_activations", json!({"num_bits": 8})),
        (&fp8, "", "fmt", json!("e5m2")),
        (&fp8, "", "weight_block_size", json!([128])),
        (&fp8, "", "weight_block_size", json!([128, 0])),
    ];
    for (base, path, key, value) in cases {
        let mut config = (*base).clone();
        config.pointer_mut(path).unwrap()[*key] = value.clone();
        let message = target::open(&config).expect_err(&format!("{key} {value}")).to_string();
        assert!(message.contains("quantization_config"), "{message}");
    }
}

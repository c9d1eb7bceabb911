//! Linears, grids and solutions to write, and what writes and finds them.

use std::path::Path;

use formats::Dtype;
use formats::model_writer::Contents;
use formats::target::{self, PlannedLinear, TargetFormat};
use model::Model;
use model::linear::{Linear, LinearId, Part, Role};
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::nested;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::{QuantizedTensor, ScaleParts};
use serde_json::{Value, json};

pub(crate) fn linear(layer: usize, role: Role, shape: (usize, usize)) -> Linear {
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

pub(crate) fn scheme(
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

pub(crate) fn planned(linear: &Linear, scheme: Scheme) -> PlannedLinear {
    PlannedLinear { linear: linear.clone(), fused_group: 0, scheme: Some(scheme) }
}

pub(crate) fn group(columns: usize) -> Granularity {
    Granularity::PerGroup(GroupSize::new(columns).unwrap())
}

/// A solution with every code, scales of both signs and all magnitudes, every zero point.
pub(crate) fn solution(linear: &Linear, scheme: Scheme) -> QuantizedTensor {
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
pub(crate) fn write(
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
pub(crate) fn checkpoints() -> impl Iterator<Item = &'static dyn TargetFormat> {
    let apart =
        |format: &&'static dyn TargetFormat| !format.id().starts_with("gguf") && format.id() != "onnx";
    target::all().filter(apart)
}

pub(crate) fn quantization(folder: &Path) -> Value {
    formats::json::read(folder, "config.json").unwrap()["quantization_config"].clone()
}

pub(crate) fn find(id: &str) -> &'static dyn TargetFormat {
    target::find(id).unwrap()
}

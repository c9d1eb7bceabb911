//! ONNX: what is written is read again, and no bytes make the reader panic.

use std::fs;
use std::path::Path;

use formats::container::{TensorData, TensorSpec};
use formats::model_writer::Contents;
use formats::target::{self, PlannedLinear, TargetFormat};
use formats::{Checkpoint, Dtype};
use model::Model;
use model::linear::Linear;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::{Value, json};

fn format() -> &'static dyn TargetFormat {
    target::find("onnx").unwrap()
}

fn config() -> Value {
    json!({
        "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 40,
        "max_position_embeddings": 32, "tie_word_embeddings": true, "eos_token_id": [3, 4]
    })
}

fn plan(model: &Model, bits: u8, size: usize, symmetry: Symmetry) -> Vec<PlannedLinear> {
    let scheme = Scheme {
        bits: BitWidth::new(bits).unwrap(),
        levels: Levels::Uniform,
        granularity: Granularity::PerGroup(GroupSize::new(size).unwrap()),
        symmetry,
        scale_dtype: format().scale_dtype(Dtype::F16),
    };
    let mut plan: Vec<PlannedLinear> = model
        .linears()
        .map(|linear| PlannedLinear {
            linear: linear.clone(),
            fused_group: linear.id.layer,
            scheme: Some(scheme),
        })
        .collect();
    plan[3].scheme = None;
    plan
}

fn solution(linear: &Linear, scheme: Scheme) -> QuantizedTensor {
    let (rows, columns) = (linear.out_features, linear.in_features);
    let most = usize::from(scheme.bits.max_code()) + 1;
    let codes = Array2::from_shape_fn((rows, columns), |(row, column)| ((row * 7 + column * 5) % most) as u8);
    let shape = scheme.granularity.scale_shape(rows, columns);
    let scales = Array2::from_shape_fn(shape, |(row, group)| {
        scheme.scale_dtype.round((0.01 + 0.001 * row as f32) * if group % 2 == 0 { 1.0 } else { -1.0 })
    });
    let zeros = (scheme.symmetry == Symmetry::Asymmetric)
        .then(|| Array2::from_shape_fn(shape, |(row, group)| ((row + 3 * group) % most) as u8));
    QuantizedTensor::new(scheme, codes, scales, zeros).unwrap()
}

fn write(folder: &Path, config: &Value, plan: &[PlannedLinear]) {
    let model = Model::resolve(config).unwrap();
    let packed = |name: &str| {
        plan.iter().any(|planned| planned.scheme.is_some() && planned.linear.weight_name() == name)
    };
    let mut carried: Vec<TensorSpec> = model
        .expected_tensors()
        .filter(|tensor| !packed(&tensor.name))
        .map(|tensor| TensorSpec { name: tensor.name, dtype: Dtype::F16, shape: tensor.shape })
        .collect();
    format().settle_carried(&model, &mut carried).unwrap();
    let source = tempfile::tempdir().unwrap();
    let contents = Contents {
        source: source.path(),
        config,
        model: &model,
        linears: plan,
        carried: &carried,
        runtime: Dtype::F16,
        untied: false,
        max_shard_bytes: Some(1 << 30),
    };
    let mut writer = format().begin(folder, &contents).unwrap();
    for spec in &carried {
        writer.carry(&TensorData { name: spec.name.clone(), bytes: vec![0; spec.bytes() as usize] }).unwrap();
    }
    for planned in plan {
        if let Some(scheme) = planned.scheme {
            writer.put(&planned.linear, &solution(&planned.linear, scheme)).unwrap();
        }
    }
    writer.finish().unwrap();
}

#[test]
fn every_scheme_comes_back_exactly() {
    let config = config();
    let model = Model::resolve(&config).unwrap();
    for bits in [2, 4, 8] {
        for size in [16, 32] {
            for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
                let mut plan = plan(&model, bits, size, symmetry);
                format().settle(&mut plan).unwrap();
                let folder = tempfile::tempdir().unwrap();
                write(folder.path(), &config, &plan);
                let checkpoint = Checkpoint::open(folder.path()).unwrap();
                let written = formats::json::read(folder.path(), "config.json").unwrap();
                let stored = target::open(target::description(&written).unwrap()).unwrap();
                assert_eq!(stored.id(), "onnx");
                for PlannedLinear { linear, scheme, .. } in &plan {
                    let Some(scheme) = *scheme else {
                        assert!(
                            stored.scheme(linear).is_none() && checkpoint.contains(&linear.weight_name())
                        );
                        continue;
                    };
                    let expected = solution(linear, scheme);
                    assert_eq!(stored.decode(linear, scheme, &checkpoint).unwrap(), expected);
                    let packed = stored.packed(linear, scheme, &checkpoint).unwrap().unwrap();
                    assert_eq!(packed.dequantize(), expected.dequantize(), "{bits} {size} {symmetry:?}");
                }
                let genai = formats::json::read(folder.path(), "genai_config.json").unwrap();
                assert_eq!(genai["model"]["eos_token_id"], json!([3, 4]));
                assert_eq!(genai["model"]["decoder"]["num_hidden_layers"], 2);
            }
        }
    }
}

#[test]
fn what_the_runtime_has_no_kernel_for_is_refused() {
    let model = Model::resolve(&config()).unwrap();
    for bits in [3, 5, 6, 7] {
        let message = format().settle(&mut plan(&model, bits, 32, Symmetry::Symmetric)).unwrap_err();
        assert!(message.to_string().contains("expected one of [2, 4, 8]"), "{message}");
    }
    let mut whole_rows = plan(&model, 4, 32, Symmetry::Symmetric);
    for planned in &mut whole_rows {
        planned.scheme = planned.scheme.map(|s| Scheme { granularity: Granularity::PerChannel, ..s });
    }
    assert!(format().settle(&mut whole_rows).unwrap_err().to_string().contains("whole rows"));
    let mut config = config();
    config["rope_scaling"] = json!({"rope_type": "dynamic", "factor": 2.0});
    let model = Model::resolve(&config).unwrap();
    let plan = plan(&model, 4, 32, Symmetry::Symmetric);
    let contents = Contents {
        source: Path::new("original"),
        config: &config,
        model: &model,
        linears: &plan,
        carried: &[],
        runtime: Dtype::F16,
        untied: false,
        max_shard_bytes: Some(1 << 30),
    };
    assert!(format().check(&contents).unwrap_err().to_string().contains("length of the text"));
}

#[test]
fn no_bytes_make_the_reader_panic() {
    let config = config();
    let model = Model::resolve(&config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config, &plan(&model, 4, 16, Symmetry::Symmetric));
    let path = folder.path().join("model.onnx");
    let graph = fs::read(&path).unwrap();
    for end in (0..graph.len()).step_by(97) {
        fs::write(&path, &graph[..end]).unwrap();
        let _ = Checkpoint::open(folder.path());
    }
    for place in (0..graph.len()).step_by(31) {
        for value in [0, 0x7f, 0xff] {
            let mut changed = graph.clone();
            changed[place] = value;
            fs::write(&path, &changed).unwrap();
            let _ = Checkpoint::open(folder.path());
        }
    }
    // Weights that end before their last tensor does.
    fs::write(&path, &graph).unwrap();
    let data = folder.path().join("model.onnx.data");
    fs::File::options().write(true).open(&data).unwrap().set_len(1000).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap_err().to_string().contains("ends behind"));
}

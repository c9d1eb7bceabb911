//! LoRA adapters as PEFT reads and writes them: a directory with adapter_config.json and adapter_model.safetensors.
//!
//! For a linear `P` with `K` input features and `N` output features, and rank `r`:
//!
//! | tensor | shape | content |
//! |---|---|---|
//! | `base_model.model.P.lora_A.weight` | `[r, K]` | `A` |
//! | `base_model.model.P.lora_B.weight` | `[N, r]` | `B` |
//!
//! `y = x (W + lora_alpha / r · B A)ᵀ`. We write `lora_alpha = r`. Read is what this describes and nothing else: weights behind other options
//! (DoRA, rank-stabilized scaling, trained biases, modules saved whole) would add something that we do not compute.

use std::path::Path;

use model::linear::Linear;
use ndarray::Array2;
use quantizer::adapter::Adapter;
use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, Dtype};
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::files::read_small;

/// Name of the adapter's directory in an output.
pub const DIRECTORY: &str = "adapter";
/// Its weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// Its description.
pub const CONFIG: &str = "adapter_config.json";
/// Largest description that is read, bytes.
const MOST_CONFIG: u64 = 16 << 20;

/// The tensors of one linear's adapter.
#[must_use]
pub fn layout(linear: &Linear, rank: usize, dtype: Dtype) -> [TensorSpec; 2] {
    let [down, up] = names(linear);
    [
        TensorSpec { name: down, dtype, shape: vec![rank, linear.in_features] },
        TensorSpec { name: up, dtype, shape: vec![linear.out_features, rank] },
    ]
}

/// The bytes of those tensors; none where `dtype` is not a floating-point type.
#[must_use]
pub fn encode(linear: &Linear, adapter: &Adapter, dtype: Dtype) -> Option<[TensorData; 2]> {
    let [down, up] = names(linear);
    let bytes = |matrix: &Array2<f32>| dtype.encode(&matrix.iter().copied().collect::<Vec<_>>());
    Some([
        TensorData { name: down, bytes: bytes(&adapter.down)? },
        TensorData { name: up, bytes: bytes(&adapter.up)? },
    ])
}

/// adapter_config.json for adapters of `rank` of the linears of these module paths.
#[must_use]
pub fn config(rank: usize, modules: &[&str]) -> Value {
    json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": null, "inference_mode": true,
        "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": false, "use_rslora": false,
        "use_dora": false, "init_lora_weights": true, "modules_to_save": null, "target_modules": modules
    })
}

fn names(linear: &Linear) -> [String; 2] {
    ["lora_A", "lora_B"].map(|part| format!("base_model.model.{}.{part}.weight", linear.name))
}

/// An adapter on disk.
#[derive(Debug)]
pub struct StoredAdapter {
    checkpoint: Checkpoint,
    rank: usize,
    /// `lora_alpha / r`.
    scaling: f32,
}

impl StoredAdapter {
    /// Opens a directory and checks names and shapes against the linears of a model.
    ///
    /// # Errors
    /// A file that is missing or malformed, options that are not read, a tensor of no linear or of another shape.
    pub fn open<'l>(
        directory: &Path,
        linears: impl Iterator<Item = &'l Linear>,
    ) -> Result<Self, FormatsError> {
        let path = directory.join(CONFIG);
        let text = read_small(directory, CONFIG, MOST_CONFIG)?;
        let config: Value =
            serde_json::from_slice(&text).map_err(|e| FormatsError::malformed(&path, e.to_string()))?;
        let (rank, alpha) = read_config(&path, &config)?;
        let checkpoint = Checkpoint::open_file(directory, WEIGHTS)?;
        let mut tensors = 0;
        for linear in linears {
            let [down, up] = names(linear);
            if checkpoint.contains(&down) || checkpoint.contains(&up) {
                checkpoint.expect_shape(&down, &[rank, linear.in_features])?;
                checkpoint.expect_shape(&up, &[linear.out_features, rank])?;
                tensors += 2;
            }
        }
        if tensors != checkpoint.names().count() {
            let problem = format!(
                "has {} tensors, of which {tensors} are adapters of this model's linears",
                checkpoint.names().count()
            );
            return Err(FormatsError::malformed(&directory.join(WEIGHTS), problem));
        }
        Ok(Self { checkpoint, rank, scaling: (alpha / rank as f64) as f32 })
    }

    /// The adapter of a linear, scaling included; none where it has none.
    ///
    /// # Errors
    /// The system's, a value that is not finite.
    pub fn read(&self, linear: &Linear) -> Result<Option<Adapter>, FormatsError> {
        let [down, up] = names(linear);
        if !self.checkpoint.contains(&down) {
            return Ok(None);
        }
        let down = self.checkpoint.read_matrix(&down, (self.rank, linear.in_features))?;
        let up = self.checkpoint.read_matrix(&up, (linear.out_features, self.rank))?;
        Ok(Some(Adapter { down, up: up * self.scaling }))
    }
}

/// Rank and `lora_alpha`, of an adapter without options that are not read.
fn read_config(path: &Path, config: &Value) -> Result<(usize, f64), FormatsError> {
    let bad = |problem: String| Err(FormatsError::malformed(path, problem));
    if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return bad(format!("`peft_type` is {}, expected \"LORA\"", config["peft_type"]));
    }
    let unset = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text == "none",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let options =
        ["use_dora", "use_rslora", "bias", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias"];
    if let Some(option) = options.into_iter().find(|option| config.get(option).is_some_and(|v| !unset(v))) {
        return bad(format!("has `{option}` {}, which is not read", config[option]));
    }
    let Some(rank) = config.get("r").and_then(Value::as_u64).filter(|rank| (1..=1 << 16).contains(rank))
    else {
        return bad(format!("`r` is {}, expected a rank", config["r"]));
    };
    match config.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite()) {
        Some(alpha) => Ok((rank as usize, alpha)),
        None => bad(format!("`lora_alpha` is {}, expected a number", config["lora_alpha"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::SafetensorsWriter;
    use crate::side_files::write_json;
    use model::linear::{LinearId, Part, Role};

    fn linear(name: &str) -> Linear {
        let id = LinearId { layer: 0, part: Part::Main, role: Role::Up };
        Linear {
            id,
            name: name.to_owned(),
            out_features: 6,
            in_features: 4,
            bias: false,
            class: model::linear::LinearClass::Plain,
        }
    }

    fn write(directory: &Path, linear: &Linear, adapter: &Adapter, config: &Value) {
        let specs = layout(linear, 2, Dtype::F32);
        let mut writer = SafetensorsWriter::create_one(&directory.join(WEIGHTS), &specs).unwrap();
        for tensor in encode(linear, adapter, Dtype::F32).unwrap() {
            writer.put(&tensor).unwrap();
        }
        writer.finish().unwrap();
        write_json(&directory.join(CONFIG), config).unwrap();
    }

    fn adapter() -> Adapter {
        Adapter {
            down: Array2::from_shape_fn((2, 4), |(i, j)| (i * 4 + j) as f32),
            up: Array2::from_shape_fn((6, 2), |(i, j)| (i * 2 + j) as f32 - 3.0),
        }
    }

    #[test]
    fn what_is_written_is_read_with_its_scaling() {
        let folder = tempfile::tempdir().unwrap();
        let mut doubled = config(2, &["model.up"]);
        doubled["lora_alpha"] = json!(4);
        write(folder.path(), &linear("model.up"), &adapter(), &doubled);
        let known = [linear("model.up"), linear("model.other")];
        let stored = StoredAdapter::open(folder.path(), known.iter()).unwrap();
        let found = stored.read(&known[0]).unwrap().unwrap();
        assert_eq!(found.product(), adapter().product() * 2.0);
        assert_eq!(stored.read(&known[1]).unwrap(), None);
    }

    #[test]
    fn adapters_of_another_model_or_kind_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &linear("model.up"), &adapter(), &config(2, &["model.up"]));
        let refused = |linear: &Linear, word: &str| {
            let error = StoredAdapter::open(folder.path(), [linear].into_iter()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        refused(&linear("model.down"), "of which 0");
        refused(&Linear { in_features: 8, ..linear("model.up") }, "[2, 8]");
        let right = linear("model.up");
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("rank_pattern", json!({"up": 4})),
            ("r", json!(0)),
            ("r", json!(u64::MAX)),
            ("lora_alpha", json!("16")),
        ] {
            let mut config = config(2, &["model.up"]);
            config[key] = value;
            write_json(&folder.path().join(CONFIG), &config).unwrap();
            refused(&right, key);
        }
        std::fs::write(folder.path().join(CONFIG), "{").unwrap();
        refused(&right, CONFIG);
        std::fs::remove_file(folder.path().join(CONFIG)).unwrap();
        refused(&right, CONFIG);
    }
}

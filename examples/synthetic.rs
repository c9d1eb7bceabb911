//! Writes a checkpoint of random bfloat16 weights with spectra as trained models have them, for measuring memory and time at any size.
//!
//! ```text
//! cargo run --example synthetic -- CONFIG.json OUT [LAYERS]
//! ```
//!
//! OUT gets config.json, with LAYERS decoder layers where they are given, the weights, one tensor in memory at a time, and calibration.jsonl, windows
//! of tokens drawn with the frequencies of Zipf's law. A matrix is `G D R`: independent normal numbers, a diagonal that falls as a power of its
//! place, and a random rotation, so that its singular values fall as a power, and no column or row sticks out.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use formats::Dtype;
use formats::container::{SafetensorsWriter, TensorData, TensorSpec};
use kernels::random::SplitMix;
use kernels::rotation::Rotation;
use model::Model;
use ndarray::Array2;
use ndarray::parallel::prelude::*;
use serde_json::Value;

/// Rows of a matrix that are in double precision at a time.
const ROWS: usize = 4096;
/// Power by which the diagonal falls: that of singular values in trained models is between about 0.2 and 0.5.
const DECAY: f64 = 0.35;
/// Windows of calibration text, and their tokens.
const TEXT: (usize, usize) = (64, 512);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, out, layers @ ..] = &arguments[..] else {
        return Err(anyhow!("usage: synthetic CONFIG.json OUT [LAYERS]"));
    };
    let mut config: Value = serde_json::from_slice(&std::fs::read(config)?)?;
    if let [layers] = layers {
        config["num_hidden_layers"] = layers.parse::<usize>().context("LAYERS is no number")?.into();
        config.as_object_mut().context("CONFIG is no object")?.remove("layer_types");
    }
    config["dtype"] = "bfloat16".into();
    let model = Model::resolve(&config)?;
    let out = Path::new(out);
    std::fs::create_dir(out)?;
    std::fs::write(out.join("config.json"), format!("{config:#}\n"))?;
    let specs: Vec<TensorSpec> = model
        .expected_tensors()
        .map(|tensor| TensorSpec { name: tensor.name, dtype: Dtype::Bf16, shape: tensor.shape })
        .collect();
    let mut writer = SafetensorsWriter::create(out, &specs, 5_000_000_000, "pt")?;
    for (number, spec) in specs.iter().enumerate() {
        let bytes = tensor(&spec.shape, number as u64).context("bfloat16 is a floating-point type")?;
        writer.put(&TensorData { name: spec.name.clone(), bytes })?;
    }
    writer.finish()?;
    std::fs::write(out.join("calibration.jsonl"), text(model.hyperparameters.vocabulary))?;
    Ok(())
}

/// The bytes of a tensor.
fn tensor(shape: &[usize], seed: u64) -> Option<Vec<u8>> {
    let &[rows, columns] = shape else {
        // Norms: around one.
        let mut random = SplitMix::new(seed);
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| 1.0 + 0.1 * random.normal() as f32).collect();
        return Dtype::Bf16.encode(&values);
    };
    let rotation = Rotation::random(columns, seed);
    let falling: Vec<f64> = (1..=columns).map(|place| (place as f64).powf(-DECAY)).collect();
    let power: f64 = falling.iter().map(|x| x * x).sum();
    // A product with inputs of unit variance has unit variance, or a third of it where it is added to the residual stream many times.
    let scale = 0.6 / power.sqrt();
    let mut bytes = Vec::with_capacity(2 * rows * columns);
    for first in (0..rows).step_by(ROWS) {
        let mut part = Array2::<f64>::zeros((ROWS.min(rows - first), columns));
        part.outer_iter_mut().into_par_iter().enumerate().for_each(|(row, mut values)| {
            let mut random = SplitMix::new(seed << 32 ^ (first + row) as u64);
            for (value, falling) in values.iter_mut().zip(&falling) {
                *value = normal(&mut random) * falling * scale;
            }
        });
        rotation.rotate_rows(part.view_mut());
        bytes.extend(Dtype::Bf16.encode_doubles(part.as_slice()?)?);
    }
    Some(bytes)
}

/// About normal, of one draw: the sum of its four parts.
fn normal(random: &mut SplitMix) -> f64 {
    let bits = random.bits();
    let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
    (sum as f64 / 65536.0 - 2.0) * 3.0_f64.sqrt()
}

/// Windows of tokens as JSON lines.
fn text(vocabulary: usize) -> String {
    let mut random = SplitMix::new(1);
    let lines = (0..TEXT.0).map(|_| {
        let ids: Vec<usize> =
            (0..TEXT.1).map(|_| (vocabulary as f64).powf(random.unit()) as usize % vocabulary).collect();
        format!("{{\"input_ids\": {ids:?}}}\n")
    });
    lines.collect()
}

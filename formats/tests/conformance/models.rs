//! Models of several layers: what all linears share, what runtimes fuse, what is left in 16 bit.

use crate::parts::{checkpoints, find, group, linear, quantization, scheme, solution, write};
use formats::model_writer::Contents;
use formats::target::{self, PlannedLinear, TargetFormat};
use formats::{Checkpoint, Dtype};
use model::Model;
use model::linear::{LinearId, Role};
use quantizer::scheme::{BitWidth, Granularity, Scheme, Symmetry};
use serde_json::{Value, json};

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
    // Transformers runs linears one by one.
    let fuses = |format: &&dyn TargetFormat| {
        format.loaders().iter().any(|rule| !rule.runtime.starts_with("transformers"))
    };
    for format in checkpoints().filter(fuses) {
        for change in [None, (!format.mixed_widths().is_empty()).then(|| BitWidth::new(8).unwrap())] {
            let mut plan = small_model(format, 4, group(64));
            plan[1].scheme = change.and_then(|bits| plan[1].scheme.map(|scheme| Scheme { bits, ..scheme }));
            let message = format.settle(&mut plan).unwrap_err().to_string();
            assert!(message.contains("k_proj") && message.contains("q_proj"), "{message}");
        }
    }
}

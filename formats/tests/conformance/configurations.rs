//! What config.json may say that nobody reads as it is meant.

use formats::target;
use serde_json::{Value, json};

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

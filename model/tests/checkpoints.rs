//! Descriptions against real checkpoints: the tiny random models in tests/data/hf_tiny, written by transformers 5.23.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use model::graph::StageInput;
use model::hyperparameters::Activation;
use model::linear::Role;
use model::rope::RopeScaling;
use model::{Model, ModelError};
use serde_json::{Value, json};

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/hf_tiny").join(name)
}

fn config(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder(name).join("config.json")).unwrap()).unwrap()
}

/// The tiny checkpoints.
fn tiny() -> Vec<String> {
    let folders = fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap());
    let names = folders.filter(|entry| entry.path().join("config.json").exists());
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_tensor_of_a_checkpoint_is_expected_with_its_shape() {
    for name in tiny() {
        let model = Model::resolve(&config(&name)).unwrap();
        let expected: BTreeMap<_, _> =
            model.expected_tensors().map(|tensor| (tensor.name, tensor.shape)).collect();
        let bytes = fs::read(folder(&name).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut found: BTreeMap<_, _> =
            file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect();
        for tensor in model.side_by_side_experts() {
            let shape = found.remove(&tensor.name).unwrap();
            assert_eq!(shape[0] * tensor.alternating, tensor.members.len(), "{name}");
            let mut shape: Vec<usize> = shape[1..].iter().rev().copied().collect();
            shape[0] /= tensor.alternating;
            found.extend(tensor.members.into_iter().map(|member| (member, shape.clone())));
        }
        assert_eq!(expected, found, "{name}");
    }
}

#[test]
fn every_registered_architecture_has_a_tiny_checkpoint() {
    let resolved: Vec<_> =
        tiny().iter().map(|name| Model::resolve(&config(name)).unwrap().architecture).collect();
    for known in model::architectures::ALL {
        assert!(resolved.contains(known), "{} ({})", known.model_type, known.summary);
    }
}

/// A part of config.json moves to `text_config`, and tensors get a prefix.
#[test]
fn a_text_tower_is_found_by_its_configuration_and_its_names() {
    let own = config("gemma3");
    let whole =
        json!({"model_type": "gemma3", "text_config": own, "vision_config": {}, "tie_word_embeddings": true});
    for (stored, prefix) in [
        ("language_model.model.embed_tokens.weight", "language_model.model.layers.0."),
        ("model.language_model.embed_tokens.weight", "model.language_model.layers.0."),
        ("model.embed_tokens.weight", "model.layers.0."),
    ] {
        let model = Model::resolve_for(&whole, &|name| name == stored).unwrap();
        assert_eq!(model.embedding(), stored);
        assert!(model.linears().next().unwrap().name.starts_with(prefix));
    }
    // Saved without its head.
    let model = Model::resolve_for(&config("gpt2"), &|name| name == "wte.weight").unwrap();
    assert_eq!(model.linears().next().unwrap().name, "h.0.attn.c_attn");
}

#[test]
fn what_no_description_of_a_name_is_meant_for_is_said() {
    for (name, key, value) in [
        ("falcon", "alibi", json!(true)),
        ("phi2", "qk_layernorm", json!(true)),
        ("opt", "layer_norm_elementwise_affine", json!(false)),
        ("gemma2", "query_pre_attn_scalar", json!(-1)),
        ("smollm3", "no_rope_layers", json!([1])),
        ("granite", "residual_multiplier", json!("much")),
    ] {
        let mut config = config(name);
        config[key] = value;
        let message = Model::resolve(&config).unwrap_err().to_string();
        assert!(message.contains(key), "{name}: {message}");
    }
}

#[test]
fn parallel_branches_share_an_input_only_where_they_share_its_norm() {
    let inputs = |name: &str| -> Vec<StageInput> {
        let model = Model::resolve(&config(name)).unwrap();
        model.layers[0].stages.iter().map(|stage| stage.input).collect()
    };
    use StageInput::{AttentionInput, AttentionOutput, MlpInput, MlpOutput, SharedInput};
    assert_eq!(inputs("phi2"), [SharedInput, AttentionOutput, MlpOutput]);
    assert_eq!(inputs("gpt_neox"), [AttentionInput, MlpInput, AttentionOutput, MlpOutput]);
    assert_eq!(inputs("gemma2"), [AttentionInput, AttentionOutput, MlpInput, MlpOutput]);
}

#[test]
fn a_description_of_a_users_own_is_the_difference_from_a_known_one() {
    let changes = json!({
        "base": "llama", "model_type": "my_own", "head_bias": true, "final_norm": {"name": "model.last", "kind": "layer"},
        "defaults": [["tie_word_embeddings", true]],
        "layer": {"attention": {"input_bias": "always", "qkv": {"fused": {"name": "attn.qkv", "rows": "by_key_head"}}},
                  "attention_norms": {"before": false, "after": {"name": "behind", "kind": "rms"}}}
    });
    let described = model::described::describe(&changes).unwrap();
    assert_eq!(described.layer.mlp, model::architectures::ALL[0].layer.mlp);
    assert!(described.layer.attention_norms.before.is_none());
    model::registry::add(described);
    let mut own = config("llama");
    own["model_type"] = json!("my_own");
    own.as_object_mut().unwrap().remove("tie_word_embeddings");
    let model = Model::resolve(&own).unwrap();
    assert!(model.hyperparameters.tied_head && model.hyperparameters.attention_input_bias);
    assert_eq!(model.linears().next().unwrap().name, "model.layers.0.attn.qkv");
    for (changes, word) in [
        (json!({"model_type": "a"}), "base"),
        (json!({"base": "lama", "model_type": "a"}), "lama"),
        (json!({"base": "llama"}), "model_type"),
        (json!({"base": "llama", "model_type": "a", "heads": 3}), "heads"),
        (json!({"base": "llama", "model_type": "a", "layer": {"branches": "sideways"}}), "sideways"),
        (json!([]), "table"),
    ] {
        let problem = model::described::describe(&changes).unwrap_err();
        assert!(problem.contains(word), "{problem}");
    }
}

#[test]
fn stages_hold_the_linears_that_share_an_input() {
    let model = Model::resolve(&config("llama")).unwrap();
    let roles: Vec<Vec<Role>> = model.layers[0]
        .stages
        .iter()
        .map(|stage| stage.linears.iter().map(|linear| linear.id.role).collect())
        .collect();
    assert_eq!(
        roles,
        [
            vec![Role::Query, Role::Key, Role::Value],
            vec![Role::Output],
            vec![Role::Gate, Role::Up],
            vec![Role::Down]
        ]
    );
    for stage in model.layers.iter().flat_map(|layer| &layer.stages) {
        assert!(stage.linears.iter().all(|linear| linear.in_features == stage.linears[0].in_features));
    }
}

#[test]
fn experts_are_parts_of_a_layer_and_some_layers_are_dense() {
    use model::linear::Part;
    let mut config = config("qwen2_moe");
    config["mlp_only_layers"] = json!([1]);
    config["norm_topk_prob"] = json!(true);
    let model = Model::resolve(&config).unwrap();
    let parts: Vec<Part> = model.layers[0].stages.iter().map(model::Stage::part).collect();
    assert_eq!(parts[..5], [Part::Main, Part::Main, Part::Shared, Part::Shared, Part::Expert(0)]);
    assert_eq!((parts.len(), model.layers[0].experts()), (12, 4));
    let names: Vec<&str> =
        model.layers[0].linears_of(Part::Expert(3)).map(|linear| linear.name.as_str()).collect();
    assert_eq!(names[2], "model.layers.0.mlp.experts.3.down_proj");
    let routing = model.layers[0].router.as_ref().unwrap().routing;
    assert!(routing.normalized && routing.chosen == 2);
    assert_eq!((model.layers[1].stages.len(), model.layers[1].experts()), (4, 0));
    config["num_experts_per_tok"] = json!(5);
    assert!(Model::resolve(&config).unwrap_err().to_string().contains("num_experts_per_tok"));
}

#[test]
fn both_spellings_of_rope_and_dtype_mean_the_same() {
    let old = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 100, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 4.0}
    });
    let mut new = old.clone();
    let object = new.as_object_mut().unwrap();
    object.remove("rope_theta");
    object.remove("rope_scaling");
    object.remove("torch_dtype");
    object.insert("dtype".to_owned(), json!("bfloat16"));
    object.insert(
        "rope_parameters".to_owned(),
        json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}),
    );
    let old = Model::resolve(&old).unwrap().hyperparameters;
    let new = Model::resolve(&new).unwrap().hyperparameters;
    assert_eq!(old, new);
    assert_eq!(old.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!((old.head_dim, old.key_value_heads, old.activation), (16, 4, Activation::Silu));
}

#[test]
fn windows_follow_the_architectures_rule() {
    let mut config = config("mistral_sw");
    assert!(Model::resolve(&config).unwrap().layers.iter().all(|layer| layer.window == Some(4)));
    config["sliding_window"] = Value::Null;
    assert!(Model::resolve(&config).unwrap().layers.iter().all(|layer| layer.window.is_none()));
    let mut config = self::config("qwen2");
    config["sliding_window"] = json!(8);
    config["max_window_layers"] = json!(1);
    config.as_object_mut().unwrap().remove("layer_types");
    assert!(Model::resolve(&config).unwrap().layers.iter().all(|layer| layer.window.is_none()));
    config["use_sliding_window"] = json!(true);
    let model = Model::resolve(&config).unwrap();
    assert_eq!((model.layers[0].window, model.layers[1].window), (None, Some(8)));
}

#[test]
fn numbers_that_cannot_be_are_refused_by_name() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-3)),
        ("num_hidden_layers", json!(1_u64 << 40)),
        ("num_attention_heads", json!("four")),
        ("num_key_value_heads", json!(3)),
        ("rms_norm_eps", json!(0.0)),
        ("hidden_act", json!("step")),
        ("vocab_size", Value::Null),
        ("rope_parameters", json!({"rope_type": "yarn", "factor": -1.0})),
        ("rope_parameters", json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": []})),
        ("rope_parameters", json!([1])),
    ] {
        let mut config = config("llama");
        config[key] = value.clone();
        let message = Model::resolve(&config).unwrap_err().to_string();
        assert!(message.contains(key), "{key} = {value}: {message}");
    }
    assert_eq!(Model::resolve(&json!([])).unwrap_err(), ModelError::NotAnObject);
}

#[test]
fn an_unknown_architecture_names_the_nearest_known_one() {
    for (found, nearest) in [("lama", "llama"), ("qwen3_next", "qwen3_moe"), ("mixtrel", "mixtral")] {
        let error = Model::resolve(&json!({"model_type": found})).unwrap_err();
        assert!(
            matches!(&error, ModelError::UnknownArchitecture { nearest: name, .. } if *name == nearest),
            "{error}"
        );
    }
}

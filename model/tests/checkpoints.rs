//! Descriptions against real checkpoints: the tiny random models in tests/data/hf_tiny, written by transformers 5.23.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use model::hyperparameters::Activation;
use model::linear::Role;
use model::rope::RopeScaling;
use model::{Model, ModelError};
use serde_json::{Value, json};

const TINY: [(&str, &str); 8] = [
    ("llama", "llama"),
    ("llama31", "llama"),
    ("mistral_sw", "mistral"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("mixtral", "mixtral"),
    ("qwen2_moe", "qwen2_moe"),
    ("qwen3_moe", "qwen3_moe"),
];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/hf_tiny").join(name)
}

fn config(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder(name).join("config.json")).unwrap()).unwrap()
}

#[test]
fn every_tensor_of_a_checkpoint_is_expected_with_its_shape() {
    for (name, architecture) in TINY {
        let model = Model::resolve(&config(name)).unwrap();
        assert_eq!(model.architecture.model_type, architecture);
        let expected: BTreeMap<_, _> =
            model.expected_tensors().map(|tensor| (tensor.name, tensor.shape)).collect();
        let bytes = fs::read(folder(name).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let found: BTreeMap<_, _> =
            file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect();
        assert_eq!(expected, found, "{name}");
    }
}

#[test]
fn every_registered_architecture_has_a_tiny_checkpoint() {
    for known in model::architectures::ALL {
        assert!(
            TINY.iter().any(|(_, architecture)| *architecture == known.model_type),
            "{}",
            known.model_type
        );
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
    for (found, nearest) in [("lama", "llama"), ("qwen3_next", "qwen3"), ("mixtrel", "mixtral")] {
        let error = Model::resolve(&json!({"model_type": found})).unwrap_err();
        assert!(
            matches!(&error, ModelError::UnknownArchitecture { nearest: name, .. } if *name == nearest),
            "{error}"
        );
    }
}

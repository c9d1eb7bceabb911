//! One layer of the graph.

use std::collections::BTreeMap;

use super::naming::Naming;
use super::{Layer, NormPlace, NormTensor, RouterTensors, Stage, StageInput, weight};
use crate::architecture::{
    Architecture, Branches, GatedMlp, Mlp, Norm, NormKind, NormWidth, Qkv, StoredExperts,
};
use crate::hyperparameters::Hyperparameters;
use crate::linear::{Linear, LinearClass, LinearId, Part, Role};

/// A norm over `features` features, whose module is `module`.
pub(super) fn norm(module: &str, kind: NormKind, features: usize) -> NormTensor {
    let bias = (kind == NormKind::Layer).then(|| format!("{module}.bias"));
    NormTensor { weight: weight(module), bias, kind, features }
}

/// A layer's stages, norms and linears.
pub(super) fn layer(
    architecture: &Architecture,
    numbers: &Hyperparameters,
    naming: &Naming,
    index: usize,
) -> Layer {
    let shape = &architecture.layer;
    let module = |name: &str| naming.module(&format!("{}.{index}.{name}", architecture.layers));
    let linear = |role, name: &str, out_features, in_features, bias| Linear {
        id: LinearId { layer: index, part: Part::Main, role },
        name: module(name),
        out_features,
        in_features,
        bias,
        class: architecture.linears,
    };
    let hidden = numbers.hidden_size;
    let (attention_inputs, of_latents) = attention_inputs(shape.attention.qkv, numbers, &linear);
    let (bias, attended) = (numbers.attention_output_bias, numbers.heads * numbers.value_dim);
    let attention_output = vec![linear(Role::Output, shape.attention.output, hidden, attended, bias)];
    let (inner, bias) = (numbers.intermediate_size, numbers.mlp_bias);
    let (mlp_inputs, down) = match shape.mlp {
        Mlp::Gated { gate, up, down } => (
            vec![linear(Role::Gate, gate, inner, hidden, bias), linear(Role::Up, up, inner, hidden, bias)],
            down,
        ),
        Mlp::GatedFused { gate_up, down } => {
            (vec![linear(Role::GateUp, gate_up, 2 * inner, hidden, bias)], down)
        }
        Mlp::Plain { up, down } => (vec![linear(Role::Up, up, inner, hidden, bias)], down),
        Mlp::Experts { dense: GatedMlp { gate, up, down }, .. } => (
            vec![linear(Role::Gate, gate, inner, hidden, bias), linear(Role::Up, up, inner, hidden, bias)],
            down,
        ),
    };
    let mlp_output = vec![linear(Role::Down, down, hidden, inner, bias)];

    let plain_residual = numbers.factors.residual == 1.0;
    let reads = |input, linears| Stage { input, linears, writes_residual: false };
    let writes = |input, linears, after: Option<Norm>| Stage {
        input,
        linears,
        writes_residual: after.is_none() && plain_residual,
    };
    let attention_writes = writes(StageInput::AttentionOutput, attention_output, shape.attention_norms.after);
    let mlp_writes = writes(StageInput::MlpOutput, mlp_output, shape.mlp_norms.after);
    let experts = experts(architecture, numbers, &module, index);
    let (router, of_experts) = experts.map_or((None, None), |(router, stages)| (Some(router), Some(stages)));
    let attention_reads = |more: Vec<Stage>| {
        [vec![reads(StageInput::AttentionInput, attention_inputs.clone())], of_latents.clone(), more].concat()
    };
    let stages = match (shape.branches, of_experts) {
        (_, Some(of_experts)) => attention_reads([vec![attention_writes], of_experts].concat()),
        (Branches::Parallel, None) if shape.shares_input() => {
            let inputs = reads(StageInput::SharedInput, [attention_inputs, mlp_inputs].concat());
            [vec![inputs], of_latents, vec![attention_writes, mlp_writes]].concat()
        }
        // Both read before one writes.
        (Branches::Parallel, None) => {
            attention_reads(vec![reads(StageInput::MlpInput, mlp_inputs), attention_writes, mlp_writes])
        }
        (Branches::InTurn, None) => {
            attention_reads(vec![attention_writes, reads(StageInput::MlpInput, mlp_inputs), mlp_writes])
        }
    };
    Layer {
        index,
        stages,
        norms: norms(architecture, numbers, &|name| module(name)),
        window: numbers.windows[index],
        rotation: numbers.rotations[index],
        sinks: shape.attention.sinks.map(|name| (module(name), numbers.heads)),
        router,
    }
}

/// The linears that read attention's input, and the stages of those that read what these give.
fn attention_inputs(
    qkv: Qkv,
    numbers: &Hyperparameters,
    linear: &dyn Fn(Role, &str, usize, usize, bool) -> Linear,
) -> (Vec<Linear>, Vec<Stage>) {
    let (hidden, bias) = (numbers.hidden_size, numbers.attention_input_bias);
    let queries = numbers.heads * numbers.head_dim;
    let keys = numbers.key_value_heads * numbers.head_dim;
    match (qkv, &numbers.latent) {
        (Qkv::Separate { query, key, value }, _) => {
            let inputs = vec![
                linear(Role::Query, query, queries, hidden, bias),
                linear(Role::Key, key, keys, hidden, bias),
                linear(Role::Value, value, keys, hidden, bias),
            ];
            (inputs, Vec::new())
        }
        (Qkv::Fused { name, .. }, _) => {
            (vec![linear(Role::QueryKeyValue, name, queries + 2 * keys, hidden, bias)], Vec::new())
        }
        (Qkv::Latent(names), latent) => {
            let latent = latent.as_ref().expect("numbers of latent features are read with the description");
            let reads = |input, linear| Stage { input, linears: vec![linear], writes_residual: false };
            let (first, mut stages) = match latent.query_rank {
                None => (linear(Role::Query, names.query, queries, hidden, false), Vec::new()),
                Some(rank) => {
                    let of_latent = linear(Role::Query, names.query_of_latent, queries, rank, false);
                    (
                        linear(Role::QueryLatent, names.query_latent, rank, hidden, bias),
                        vec![reads(StageInput::QueryLatent, of_latent)],
                    )
                }
            };
            let (rank, turned) = (latent.key_value_rank, latent.turned_dim);
            let made = numbers.heads * (latent.unturned_dim + numbers.value_dim);
            let of_latent = linear(Role::KeyValue, names.key_value_of_latent, made, rank, false);
            stages.push(reads(StageInput::KeyValueLatent, of_latent));
            let second = linear(Role::KeyValueLatent, names.key_value_latent, rank + turned, hidden, bias);
            (vec![first, second], stages)
        }
    }
}

/// The router and the stages of the experts of a layer that has them: first of the one that every token passes, then of each.
fn experts(
    architecture: &Architecture,
    numbers: &Hyperparameters,
    module: &dyn Fn(&str) -> String,
    index: usize,
) -> Option<(RouterTensors, Vec<Stage>)> {
    let (Mlp::Experts { experts, .. }, Some(found)) = (architecture.layer.mlp, &numbers.experts) else {
        return None;
    };
    if !found.layers[index] {
        return None;
    }
    let hidden = numbers.hidden_size;
    let stages_of = |mlp: GatedMlp, name: &dyn Fn(&str) -> String, part, width| {
        let linear = |role, module, out_features, in_features| Linear {
            id: LinearId { layer: index, part, role },
            name: name(module),
            out_features,
            in_features,
            bias: numbers.mlp_bias,
            class: match experts.stored {
                StoredExperts::OneByOne => architecture.linears,
                StoredExperts::SideBySide => LinearClass::Stacked,
            },
        };
        let inputs =
            vec![linear(Role::Gate, mlp.gate, width, hidden), linear(Role::Up, mlp.up, width, hidden)];
        let output = vec![linear(Role::Down, mlp.down, hidden, width)];
        [
            Stage { input: StageInput::MlpInput, linears: inputs, writes_residual: false },
            Stage { input: StageInput::MlpOutput, linears: output, writes_residual: true },
        ]
    };
    let mut stages = Vec::new();
    if let (Some(shared), Some(width)) = (experts.shared, found.shared_width) {
        stages.extend(stages_of(shared.mlp, module, Part::Shared, width));
    }
    for expert in 0..found.routing.experts {
        let own = |name: &str| module(&format!("{}.{expert}.{name}", experts.prefix));
        stages.extend(stages_of(experts.expert, &own, Part::Expert(expert), found.width));
    }
    let shared_gate = experts.shared.filter(|_| found.shared_width.is_some()).and_then(|shared| shared.gate);
    let router = RouterTensors {
        weight: weight(&module(experts.router)),
        bias: experts.router_bias.then(|| format!("{}.bias", module(experts.router))),
        experts: module(experts.prefix),
        correction: experts.correction.map(module),
        shared_gate: shared_gate.map(|gate| weight(&module(gate))),
        hidden,
        routing: found.routing,
    };
    Some((router, stages))
}

fn norms(
    architecture: &Architecture,
    numbers: &Hyperparameters,
    module: &dyn Fn(&str) -> String,
) -> BTreeMap<NormPlace, NormTensor> {
    let (attention, mlp) = (architecture.layer.attention_norms, architecture.layer.mlp_norms);
    let tensor = |Norm { name, kind }, features| norm(&module(name), kind, features);
    let of_stream = [
        (NormPlace::AttentionInput, attention.before),
        (NormPlace::AttentionOutput, attention.after),
        (NormPlace::AttentionJoined, attention.joined),
        (NormPlace::MlpInput, mlp.before),
        (NormPlace::MlpOutput, mlp.after),
        (NormPlace::MlpJoined, mlp.joined),
    ];
    let mut norms: BTreeMap<_, _> = of_stream
        .into_iter()
        .filter_map(|(place, norm)| Some((place, tensor(norm?, numbers.hidden_size))))
        .collect();
    if let (Qkv::Latent(names), Some(latent)) = (architecture.layer.attention.qkv, &numbers.latent) {
        let of_query = latent.query_rank.map(|rank| (NormPlace::QueryLatent, names.query_norm, rank));
        let of_both = (NormPlace::KeyValueLatent, names.key_value_norm, latent.key_value_rank);
        for (place, name, rank) in of_query.into_iter().chain([of_both]) {
            norms.insert(place, tensor(Norm { name, kind: NormKind::Rms }, rank));
        }
    }
    if let Some(of_heads) = architecture.layer.attention.head_norms {
        let places = [
            (NormPlace::Query, of_heads.query, numbers.heads),
            (NormPlace::Key, of_heads.key, numbers.key_value_heads),
        ];
        for (place, name, heads) in places {
            let heads = if of_heads.over == NormWidth::AllHeads { heads } else { 1 };
            norms.insert(place, tensor(Norm { name, kind: of_heads.kind }, heads * numbers.head_dim));
        }
    }
    norms
}

//! One layer of the graph.

use std::collections::BTreeMap;

use super::naming::Naming;
use super::{Layer, NormPlace, NormTensor, RouterTensors, Stage, StageInput, weight};
use crate::architecture::{Architecture, Branches, GatedMlp, Mlp, Norm, NormKind, NormWidth, Qkv};
use crate::hyperparameters::Hyperparameters;
use crate::linear::{Linear, LinearId, Part, Role};

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
    let queries = numbers.heads * numbers.head_dim;
    let keys = numbers.key_value_heads * numbers.head_dim;
    let bias = numbers.attention_input_bias;
    let attention_inputs = match shape.attention.qkv {
        Qkv::Separate { query, key, value } => vec![
            linear(Role::Query, query, queries, hidden, bias),
            linear(Role::Key, key, keys, hidden, bias),
            linear(Role::Value, value, keys, hidden, bias),
        ],
        Qkv::Fused { name, .. } => {
            vec![linear(Role::QueryKeyValue, name, queries + 2 * keys, hidden, bias)]
        }
    };
    let bias = numbers.attention_output_bias;
    let attention_output = vec![linear(Role::Output, shape.attention.output, hidden, queries, bias)];
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
    let stages = match (shape.branches, of_experts) {
        (_, Some(of_experts)) => {
            [vec![reads(StageInput::AttentionInput, attention_inputs), attention_writes], of_experts].concat()
        }
        (Branches::Parallel, None) if shape.shares_input() => {
            let inputs = [attention_inputs, mlp_inputs].concat();
            vec![reads(StageInput::SharedInput, inputs), attention_writes, mlp_writes]
        }
        // Both read before one writes.
        (Branches::Parallel, None) => vec![
            reads(StageInput::AttentionInput, attention_inputs),
            reads(StageInput::MlpInput, mlp_inputs),
            attention_writes,
            mlp_writes,
        ],
        (Branches::InTurn, None) => vec![
            reads(StageInput::AttentionInput, attention_inputs),
            attention_writes,
            reads(StageInput::MlpInput, mlp_inputs),
            mlp_writes,
        ],
    };
    Layer {
        index,
        stages,
        norms: norms(architecture, numbers, &|name| module(name)),
        window: numbers.windows[index],
        rotation: numbers.rotations[index],
        router,
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
            class: architecture.linears,
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

//! A model as a graph: layers, stages and linears in forward order, derived from its description and its numbers.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::architecture::{Architecture, AttentionBias, Experts, GatedMlp, HeadNorms, Mlp, NormKind, Qkv};
use crate::architectures;
use crate::error::ModelError;
use crate::experts::{ExpertNumbers, Routing};
use crate::hyperparameters::Hyperparameters;
use crate::linear::{Linear, LinearId, Part, Role};

/// One model, resolved.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its description.
    pub architecture: &'static Architecture,
    /// Its numbers.
    pub hyperparameters: Hyperparameters,
    /// Decoder layers in forward order.
    pub layers: Vec<Layer>,
}

/// One decoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Its place, from 0.
    pub index: usize,
    /// Attention input, attention output; then MLP input and MLP output, of the shared expert and of each expert where there are experts.
    pub stages: Vec<Stage>,
    /// The norm before attention.
    pub attention_norm: NormTensor,
    /// The norm before the MLP.
    pub mlp_norm: NormTensor,
    /// Weights of the norms over query and key heads, `[head_dim]` each.
    pub head_norms: Option<HeadNormTensors>,
    /// Tokens that a token attends to, itself included; none: all earlier ones.
    pub window: Option<usize>,
    /// How tokens are sent to experts, where the layer has them.
    pub router: Option<RouterTensors>,
}

/// What sends a layer's tokens to its experts. It is never quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterTensors {
    /// Name of its matrix, `[experts, hidden]`.
    pub weight: String,
    /// What the names of all experts begin with.
    pub experts: String,
    /// Name of what is added to scores for the choice alone, `[experts]`.
    pub correction: Option<String>,
    /// Name of the matrix whose product's sigmoid weighs the shared expert, `[1, hidden]`.
    pub shared_gate: Option<String>,
    /// The arithmetic.
    pub routing: Routing,
}

/// Linears that share one input. Runtimes fuse them, so they are quantized alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// What flows into it.
    pub input: StageInput,
    /// Its linears, in forward order.
    pub linears: Vec<Linear>,
}

impl Stage {
    /// The part of the layer that its linears belong to.
    #[must_use]
    pub fn part(&self) -> Part {
        self.linears.first().map_or(Part::Main, |linear| linear.id.part)
    }

    /// Whether what its linears give is added to the residual stream.
    #[must_use]
    pub fn writes_residual(&self) -> bool {
        matches!(self.input, StageInput::AttentionOutput | StageInput::MlpOutput)
    }
}

/// What a stage's input is, and so what follows when its linears are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageInput {
    /// The normed residual stream, for queries, keys and values.
    AttentionInput,
    /// The heads' weighted values, for the output projection.
    AttentionOutput,
    /// The normed residual stream, for gate and up; an expert sees the tokens that are sent to it.
    MlpInput,
    /// The gated features, for the down projection; of an expert's tokens.
    MlpOutput,
}

/// A norm's weight.
#[derive(Clone, Debug, PartialEq)]
pub struct NormTensor {
    /// Name of the tensor, `[hidden]`.
    pub weight: String,
    /// What the norm computes.
    pub kind: NormKind,
}

/// Weights of the norms over heads.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadNormTensors {
    /// Name of the query heads' tensor.
    pub query: String,
    /// Name of the key heads' tensor.
    pub key: String,
}

/// A tensor that the description expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Model {
    /// Finds the description by `model_type` and derives the graph.
    ///
    /// # Errors
    /// An architecture without a description, or numbers that cannot be.
    pub fn resolve(config: &Value) -> Result<Self, ModelError> {
        let object = config.as_object().ok_or(ModelError::NotAnObject)?;
        let model_type = match object.get("model_type") {
            None | Some(Value::Null) => return Err(ModelError::Missing { key: "model_type".to_owned() }),
            Some(Value::String(text)) => text,
            Some(other) => {
                return Err(crate::hyperparameters::wrong_value(
                    "model_type",
                    Some(other),
                    "text".to_owned(),
                ));
            }
        };
        let architecture = find(model_type)?;
        let hyperparameters = Hyperparameters::read(architecture, config)?;
        let layers =
            (0..hyperparameters.layers).map(|index| layer(architecture, &hyperparameters, index)).collect();
        Ok(Self { architecture, hyperparameters, layers })
    }

    /// Name of the embedding, `[vocabulary, hidden]`.
    #[must_use]
    pub fn embedding(&self) -> String {
        weight(self.architecture.embedding)
    }

    /// Name of the norm before the head, `[hidden]`.
    #[must_use]
    pub fn final_norm(&self) -> String {
        weight(self.architecture.final_norm)
    }

    /// Name of the tensor that the head multiplies with, `[vocabulary, hidden]`: the embedding's where they are tied.
    #[must_use]
    pub fn head(&self) -> String {
        weight(if self.hyperparameters.tied_head {
            self.architecture.embedding
        } else {
            self.architecture.head
        })
    }

    /// Name of the head's own tensor, which a tied model may or may not store as well.
    #[must_use]
    pub fn untied_head(&self) -> String {
        weight(self.architecture.head)
    }

    /// Modules of matrices that are never quantized although they lie in a layer: what sends tokens to experts.
    #[must_use]
    pub fn routers(&self) -> Vec<String> {
        let tensors = self.layers.iter().filter_map(|layer| layer.router.as_ref());
        let names = tensors.flat_map(|router| [Some(&router.weight), router.shared_gate.as_ref()]);
        names.flatten().map(|name| name.trim_end_matches(".weight").to_owned()).collect()
    }

    /// The embedding as a matrix that may be packed like a linear's.
    #[must_use]
    pub fn embedding_linear(&self) -> Linear {
        self.outer(
            LinearId { layer: 0, part: Part::Main, role: Role::Embedding },
            self.architecture.embedding,
        )
    }

    /// The same of the head's own tensor.
    #[must_use]
    pub fn head_linear(&self) -> Linear {
        self.outer(
            LinearId { layer: self.layers.len(), part: Part::Main, role: Role::Head },
            self.architecture.head,
        )
    }

    /// The embedding and, where it is not tied, the head.
    pub fn outer_linears(&self) -> impl Iterator<Item = Linear> {
        let head = (!self.hyperparameters.tied_head).then(|| self.head_linear());
        std::iter::once(self.embedding_linear()).chain(head)
    }

    fn outer(&self, id: LinearId, name: &str) -> Linear {
        let numbers = &self.hyperparameters;
        let (out_features, in_features) = (numbers.vocabulary, numbers.hidden_size);
        Linear { id, name: name.to_owned(), out_features, in_features, bias: false }
    }

    /// Tensors in which some checkpoints have all experts of a layer, each with the names of its equal parts: `[experts, 2 width, hidden]`, of each
    /// expert gate and up, and `[experts, hidden, width]`.
    #[must_use]
    pub fn fused_experts(&self) -> BTreeMap<String, Vec<String>> {
        let mut fused: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for layer in &self.layers {
            let Some(router) = &layer.router else { continue };
            for linear in layer.linears().filter(|linear| linear.id.part.expert().is_some()) {
                let kind = if linear.id.role == Role::Down { "down_proj" } else { "gate_up_proj" };
                fused.entry(format!("{}.{kind}", router.experts)).or_default().push(linear.weight_name());
            }
        }
        fused
    }

    /// Every linear of the decoder layers, in forward order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(|layer| &layer.stages).flat_map(|stage| &stage.linears)
    }

    /// Every tensor that a checkpoint must hold.
    pub fn expected_tensors(&self) -> impl Iterator<Item = ExpectedTensor> + '_ {
        let numbers = &self.hyperparameters;
        let outer = [(self.embedding(), vec![numbers.vocabulary, numbers.hidden_size])]
            .into_iter()
            .chain([(self.final_norm(), vec![numbers.hidden_size])])
            .chain(
                (!numbers.tied_head)
                    .then(|| (self.untied_head(), vec![numbers.vocabulary, numbers.hidden_size])),
            );
        outer
            .chain(self.layers.iter().flat_map(|layer| layer.expected_tensors(numbers)))
            .map(|(name, shape)| ExpectedTensor { name, shape })
    }
}

impl Layer {
    /// Its linears, in forward order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.stages.iter().flat_map(|stage| &stage.linears)
    }

    /// The linears of one of its parts, in forward order.
    pub fn linears_of(&self, part: Part) -> impl Iterator<Item = &Linear> {
        self.stages.iter().filter(move |stage| stage.part() == part).flat_map(|stage| &stage.linears)
    }

    /// How many experts it has.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.router.as_ref().map_or(0, |router| router.routing.experts)
    }

    /// The linear of the main part with this role.
    #[must_use]
    pub fn linear(&self, role: Role) -> Option<&Linear> {
        self.linears_of(Part::Main).find(|linear| linear.id.role == role)
    }

    fn expected_tensors(&self, numbers: &Hyperparameters) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![
            (self.attention_norm.weight.clone(), vec![numbers.hidden_size]),
            (self.mlp_norm.weight.clone(), vec![numbers.hidden_size]),
        ];
        if let Some(norms) = &self.head_norms {
            tensors.push((norms.query.clone(), vec![numbers.head_dim]));
            tensors.push((norms.key.clone(), vec![numbers.head_dim]));
        }
        if let Some(router) = &self.router {
            let experts = router.routing.experts;
            tensors.push((router.weight.clone(), vec![experts, numbers.hidden_size]));
            tensors.extend(router.correction.iter().map(|name| (name.clone(), vec![experts])));
            tensors
                .extend(router.shared_gate.iter().map(|name| (name.clone(), vec![1, numbers.hidden_size])));
        }
        for linear in self.stages.iter().flat_map(|stage| &stage.linears) {
            tensors.push((linear.weight_name(), vec![linear.out_features, linear.in_features]));
            tensors.extend(linear.bias_name().map(|name| (name, vec![linear.out_features])));
        }
        tensors
    }
}

fn weight(module: &str) -> String {
    format!("{module}.weight")
}

fn find(model_type: &str) -> Result<&'static Architecture, ModelError> {
    if let Some(known) = architectures::ALL.iter().find(|known| known.model_type == model_type) {
        return Ok(known);
    }
    let nearest = architectures::ALL.iter().min_by_key(|known| edits(known.model_type, model_type));
    Err(ModelError::UnknownArchitecture {
        found: model_type.chars().take(80).collect(),
        nearest: nearest.map_or("", |known| known.model_type),
        known: architectures::ALL.iter().map(|known| known.model_type).collect::<Vec<_>>().join(", "),
    })
}

/// Levenshtein distance of the first 80 characters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(80).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let changed = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn layer(architecture: &Architecture, numbers: &Hyperparameters, index: usize) -> Layer {
    let shape = &architecture.layer;
    let attention = &shape.attention;
    let name = |module: &str| format!("{}.{index}.{module}", architecture.layers);
    let linear = |role, module: &str, out_features, in_features, bias| Linear {
        id: LinearId { layer: index, part: Part::Main, role },
        name: name(module),
        out_features,
        in_features,
        bias,
    };
    let (bias_in, bias_out) = match attention.bias {
        AttentionBias::Configured => (numbers.attention_bias, numbers.attention_bias),
        AttentionBias::Inputs => (true, false),
        AttentionBias::Never => (false, false),
    };
    let hidden = numbers.hidden_size;
    let query_features = numbers.heads * numbers.head_dim;
    let key_value_features = numbers.key_value_heads * numbers.head_dim;
    let attention_inputs = match attention.qkv {
        Qkv::Separate { query, key, value } => vec![
            linear(Role::Query, query, query_features, hidden, bias_in),
            linear(Role::Key, key, key_value_features, hidden, bias_in),
            linear(Role::Value, value, key_value_features, hidden, bias_in),
        ],
    };
    let attention_output = vec![linear(Role::Output, attention.output, hidden, query_features, bias_out)];
    let mut stages = vec![
        Stage { input: StageInput::AttentionInput, linears: attention_inputs },
        Stage { input: StageInput::AttentionOutput, linears: attention_output },
    ];
    let mut gated = |mlp: GatedMlp, name: &dyn Fn(&str) -> String, part, width| {
        let linear = |role, module, out_features, in_features| Linear {
            id: LinearId { layer: index, part, role },
            name: name(module),
            out_features,
            in_features,
            bias: numbers.mlp_bias,
        };
        let inputs =
            vec![linear(Role::Gate, mlp.gate, width, hidden), linear(Role::Up, mlp.up, width, hidden)];
        let output = vec![linear(Role::Down, mlp.down, hidden, width)];
        stages.push(Stage { input: StageInput::MlpInput, linears: inputs });
        stages.push(Stage { input: StageInput::MlpOutput, linears: output });
    };
    let mut router = None;
    match (shape.mlp, &numbers.experts) {
        (Mlp::Gated { gate, up, down }, _) => {
            gated(GatedMlp { gate, up, down }, &name, Part::Main, numbers.intermediate_size);
        }
        (Mlp::Experts { experts, .. }, Some(found)) if found.layers[index] => {
            if let (Some(shared), Some(width)) = (experts.shared, found.shared_width) {
                gated(shared.mlp, &name, Part::Shared, width);
            }
            for expert in 0..found.routing.experts {
                let own = |module: &str| name(&format!("{}.{expert}.{module}", experts.prefix));
                gated(experts.expert, &own, Part::Expert(expert), found.width);
            }
            router = Some(router_tensors(experts, found, &name));
        }
        (Mlp::Experts { dense, .. }, _) => gated(dense, &name, Part::Main, numbers.intermediate_size),
    }
    let norm =
        |norm: &crate::architecture::Norm| NormTensor { weight: weight(&name(norm.name)), kind: norm.kind };
    Layer {
        index,
        stages,
        attention_norm: norm(&shape.attention_norm),
        mlp_norm: norm(&shape.mlp_norm),
        head_norms: attention.head_norms.map(|HeadNorms { query, key }| HeadNormTensors {
            query: weight(&name(query)),
            key: weight(&name(key)),
        }),
        window: numbers.windows[index],
        router,
    }
}

fn router_tensors(experts: &Experts, found: &ExpertNumbers, name: &dyn Fn(&str) -> String) -> RouterTensors {
    let shared_gate = experts.shared.filter(|_| found.shared_width.is_some()).and_then(|shared| shared.gate);
    RouterTensors {
        weight: weight(&name(experts.router)),
        experts: name(experts.prefix),
        correction: experts.correction.map(name),
        shared_gate: shared_gate.map(|module| weight(&name(module))),
        routing: found.routing,
    }
}

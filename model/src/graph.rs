//! A model as a graph: layers, stages and linears in forward order, derived from its description and its numbers.

use serde_json::Value;

use crate::architecture::{Architecture, AttentionBias, HeadNorms, Mlp, NormKind, Qkv};
use crate::architectures;
use crate::error::ModelError;
use crate::hyperparameters::Hyperparameters;
use crate::linear::{Linear, LinearId, Role};

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
    /// Attention input, attention output, MLP input, MLP output.
    pub stages: Vec<Stage>,
    /// The norm before attention.
    pub attention_norm: NormTensor,
    /// The norm before the MLP.
    pub mlp_norm: NormTensor,
    /// Weights of the norms over query and key heads, `[head_dim]` each.
    pub head_norms: Option<HeadNormTensors>,
    /// Tokens that a token attends to, itself included; none: all earlier ones.
    pub window: Option<usize>,
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
    /// The normed residual stream, for gate and up.
    MlpInput,
    /// The gated features, for the down projection.
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
    /// The linear with this role.
    #[must_use]
    pub fn linear(&self, role: Role) -> Option<&Linear> {
        self.stages.iter().flat_map(|stage| &stage.linears).find(|linear| linear.id.role == role)
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
        id: LinearId { layer: index, role },
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
    let (mlp_inputs, mlp_output) = match shape.mlp {
        Mlp::Gated { gate, up, down } => (
            vec![
                linear(Role::Gate, gate, numbers.intermediate_size, hidden, numbers.mlp_bias),
                linear(Role::Up, up, numbers.intermediate_size, hidden, numbers.mlp_bias),
            ],
            vec![linear(Role::Down, down, hidden, numbers.intermediate_size, numbers.mlp_bias)],
        ),
    };
    let norm =
        |norm: &crate::architecture::Norm| NormTensor { weight: weight(&name(norm.name)), kind: norm.kind };
    Layer {
        index,
        stages: vec![
            Stage { input: StageInput::AttentionInput, linears: attention_inputs },
            Stage { input: StageInput::AttentionOutput, linears: attention_output },
            Stage { input: StageInput::MlpInput, linears: mlp_inputs },
            Stage { input: StageInput::MlpOutput, linears: mlp_output },
        ],
        attention_norm: norm(&shape.attention_norm),
        mlp_norm: norm(&shape.mlp_norm),
        head_norms: attention.head_norms.map(|HeadNorms { query, key }| HeadNormTensors {
            query: weight(&name(query)),
            key: weight(&name(key)),
        }),
        window: numbers.windows[index],
    }
}

//! A model as a graph: layers, stages and linears in forward order, derived from its description and its numbers.

mod layers;
mod naming;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::architecture::{Architecture, Mlp, Norm, NormKind, StoredExperts};
use crate::error::ModelError;
use crate::experts::Routing;
use crate::hyperparameters::{Hyperparameters, Rotation, wrong_value};
use crate::linear::{Linear, LinearClass, LinearId, Part, Role};
use crate::registry;
use naming::Naming;

/// One model, resolved.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its description.
    pub architecture: &'static Architecture,
    /// Its numbers.
    pub hyperparameters: Hyperparameters,
    /// Decoder layers in forward order.
    pub layers: Vec<Layer>,
    /// What the checkpoint puts before the description's names.
    naming: Naming,
}

/// One decoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Its place, from 0.
    pub index: usize,
    /// In forward order.
    pub stages: Vec<Stage>,
    /// Its norms.
    pub norms: BTreeMap<NormPlace, NormTensor>,
    /// Tokens that a token attends to, itself included; none: all earlier ones.
    pub window: Option<usize>,
    /// How it rotates queries and keys.
    pub rotation: Rotation,
    /// Name of what the softmax of each head counts beside the products with keys, `[heads]`, and how many heads there are.
    pub sinks: Option<(String, usize)>,
    /// How tokens are sent to experts, where the layer has them.
    pub router: Option<RouterTensors>,
}

/// What sends a layer's tokens to its experts. It is never quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterTensors {
    /// Name of its matrix, `[experts, hidden]`.
    pub weight: String,
    /// Name of its bias, `[experts]`.
    pub bias: Option<String>,
    /// What the names of all experts begin with.
    pub experts: String,
    /// Name of what is added to scores for the choice alone, `[experts]`.
    pub correction: Option<String>,
    /// Name of the matrix whose product's sigmoid weighs the shared expert, `[1, hidden]`.
    pub shared_gate: Option<String>,
    /// Features of the residual stream.
    pub hidden: usize,
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
    /// Whether what its linears give is added to the residual stream as it is.
    pub writes_residual: bool,
}

impl Stage {
    /// The part of the layer that its linears belong to.
    #[must_use]
    pub fn part(&self) -> Part {
        self.linears.first().map_or(Part::Main, |linear| linear.id.part)
    }
}

/// What a stage's input is, and so what follows when its linears are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageInput {
    /// The normed residual stream, for queries, keys and values.
    AttentionInput,
    /// The normed latent features of queries, for the projection to queries.
    QueryLatent,
    /// The normed latent features of keys and values, for the projection to both.
    KeyValueLatent,
    /// The heads' weighted values, for the output projection.
    AttentionOutput,
    /// The normed residual stream, for the projections into the MLP; an expert sees the tokens that are sent to it.
    MlpInput,
    /// The MLP's inner features, for the down projection; of an expert's tokens.
    MlpOutput,
    /// The normed residual stream, for both branches.
    SharedInput,
}

/// A norm's place in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NormPlace {
    /// Before attention; before both branches where they share their input.
    AttentionInput,
    /// Over latent features of queries.
    QueryLatent,
    /// Over latent features of keys and values.
    KeyValueLatent,
    /// Over queries, or each query head.
    Query,
    /// Over keys, or each key head.
    Key,
    /// Over what attention gives.
    AttentionOutput,
    /// Over the residual stream with what attention gave.
    AttentionJoined,
    /// Before the MLP.
    MlpInput,
    /// Over what the MLP gives.
    MlpOutput,
    /// Over the residual stream with what the MLP gave.
    MlpJoined,
}

/// A norm's tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct NormTensor {
    /// Name of the weight, `[features]`.
    pub weight: String,
    /// Name of the bias, `[features]`, where it has one.
    pub bias: Option<String>,
    /// What the norm computes.
    pub kind: NormKind,
    /// Features that it goes over.
    pub features: usize,
}

/// A tensor `[experts, in_features, outputs]` of weights, or `[experts, outputs]` of biases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideBySide {
    /// Its name.
    pub name: String,
    /// Names of what lies in it, expert by expert: weights `[out_features, in_features]`, or biases.
    pub members: Vec<String>,
    /// Members of one expert, whose outputs come by turns.
    pub alternating: usize,
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
    /// Finds the description by `model_type` and derives the graph, with the names that the description has.
    ///
    /// # Errors
    /// An architecture without a description, or numbers that cannot be.
    pub fn resolve(config: &Value) -> Result<Self, ModelError> {
        Self::resolve_for(config, &|_| true)
    }

    /// The same with the names of a checkpoint, of which `holds` tells whether it has a tensor: those of a text tower have a prefix, and
    /// those of a model that was saved without its head lack one.
    ///
    /// # Errors
    /// As [`Model::resolve`].
    pub fn resolve_for(config: &Value, holds: &dyn Fn(&str) -> bool) -> Result<Self, ModelError> {
        let object = config.as_object().ok_or(ModelError::NotAnObject)?;
        let config = text_part(object)?;
        let architecture = registry::find(&config)?;
        let hyperparameters = Hyperparameters::read(architecture, &config)?;
        let naming = Naming::of(architecture, holds);
        let layers = (0..hyperparameters.layers)
            .map(|index| layers::layer(architecture, &hyperparameters, &naming, index))
            .collect();
        Ok(Self { architecture, hyperparameters, layers, naming })
    }

    fn weight(&self, module: &str) -> String {
        weight(&self.naming.module(module))
    }

    fn outer_norm(&self, norm: Option<Norm>) -> Option<NormTensor> {
        let features = self.hyperparameters.hidden_size;
        norm.map(|norm| layers::norm(&self.naming.module(norm.name), norm.kind, features))
    }

    /// Name of the embedding, `[vocabulary, embedding_size]`.
    #[must_use]
    pub fn embedding(&self) -> String {
        self.weight(self.architecture.embedding)
    }

    /// The norm of what the embedding gives.
    #[must_use]
    pub fn embedding_norm(&self) -> Option<NormTensor> {
        self.outer_norm(self.architecture.embedding_norm)
    }

    /// Name and first row of the table of learned positions, `[offset + context, hidden]`.
    #[must_use]
    pub fn positions(&self) -> Option<(String, usize)> {
        self.architecture.positions.map(|positions| (self.weight(positions.name), positions.offset))
    }

    /// Names of the linears `[hidden, embedding_size]` after the embedding and `[embedding_size, hidden]` before the head, where the
    /// widths differ.
    #[must_use]
    pub fn projections(&self) -> Option<[String; 2]> {
        let differ = self.hyperparameters.embedding_size != self.hyperparameters.hidden_size;
        let projections = self.architecture.projections.filter(|_| differ)?;
        Some([projections.widening, projections.narrowing].map(|module| self.weight(module)))
    }

    /// The norm before the head.
    #[must_use]
    pub fn final_norm(&self) -> Option<NormTensor> {
        self.outer_norm(self.architecture.final_norm)
    }

    /// Name of the tensor that the head multiplies with, `[vocabulary, embedding_size]`: the embedding's where they are tied.
    #[must_use]
    pub fn head(&self) -> String {
        if self.hyperparameters.tied_head { self.embedding() } else { self.untied_head() }
    }

    /// Name of the head's bias, `[vocabulary]`.
    #[must_use]
    pub fn head_bias(&self) -> Option<String> {
        self.architecture.head_bias.then(|| format!("{}.bias", self.naming.module(self.architecture.head)))
    }

    /// Name of the head's own tensor, which a tied model may or may not store as well.
    #[must_use]
    pub fn untied_head(&self) -> String {
        self.weight(self.architecture.head)
    }

    /// Modules of matrices that are never quantized although they lie in a layer: what sends tokens to experts.
    #[must_use]
    pub fn routers(&self) -> Vec<String> {
        let tensors = self.layers.iter().filter_map(|layer| layer.router.as_ref());
        let names = tensors.flat_map(|router| [Some(&router.weight), router.shared_gate.as_ref()]);
        names.flatten().map(|name| name.trim_end_matches(".weight").to_owned()).collect()
    }

    /// Tensors that the reference implementation keeps in single precision whatever the model's type: what is added to routers' scores.
    #[must_use]
    pub fn single_precision(&self) -> Vec<&str> {
        let routers = self.layers.iter().filter_map(|layer| layer.router.as_ref());
        routers.filter_map(|router| router.correction.as_deref()).collect()
    }

    /// Whether a tensor that the description does not expect is of something beside the decoder, which is whole without it: another tower, or layers behind
    /// the last one, which predict further tokens.
    #[must_use]
    pub fn is_beside(&self, tensor: &str) -> bool {
        let layers = format!("{}.", self.naming.module(self.architecture.layers));
        let layer =
            tensor.strip_prefix(&layers).and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        layer.is_some_and(|layer| layer >= self.layers.len()) || self.naming.is_of_another_tower(tensor)
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
        let (out_features, in_features) = (numbers.vocabulary, numbers.embedding_size);
        let (name, class) = (self.naming.module(name), LinearClass::Plain);
        Linear { id, name, out_features, in_features, bias: false, class }
    }

    /// Tensors in which some checkpoints have all experts of a layer, each with the names of its equal parts: `[experts, 2 width, hidden]`, of each
    /// expert gate and up, and `[experts, hidden, width]`.
    #[must_use]
    pub fn fused_experts(&self) -> BTreeMap<String, Vec<String>> {
        let mut fused: BTreeMap<String, Vec<String>> = BTreeMap::new();
        if self.stored_experts() != Some(StoredExperts::OneByOne) {
            return fused;
        }
        for layer in &self.layers {
            let Some(router) = &layer.router else { continue };
            for linear in layer.linears().filter(|linear| linear.id.part.expert().is_some()) {
                let kind = if linear.id.role == Role::Down { "down_proj" } else { "gate_up_proj" };
                fused.entry(format!("{}.{kind}", router.experts)).or_default().push(linear.weight_name());
            }
        }
        fused
    }

    fn stored_experts(&self) -> Option<StoredExperts> {
        match self.architecture.layer.mlp {
            Mlp::Experts { experts, .. } => Some(experts.stored),
            Mlp::Gated { .. } | Mlp::GatedFused { .. } | Mlp::Plain { .. } => None,
        }
    }

    /// Tensors in which the reference implementation has all experts of a layer with their outputs side by side.
    #[must_use]
    pub fn side_by_side_experts(&self) -> Vec<SideBySide> {
        if self.stored_experts() != Some(StoredExperts::SideBySide) {
            return Vec::new();
        }
        let mut found: BTreeMap<String, SideBySide> = BTreeMap::new();
        for layer in &self.layers {
            let Some(router) = &layer.router else { continue };
            for linear in layer.linears().filter(|linear| linear.id.part.expert().is_some()) {
                let (kind, alternating) =
                    if linear.id.role == Role::Down { ("down_proj", 1) } else { ("gate_up_proj", 2) };
                let name = format!("{}.{kind}", router.experts);
                let biases = linear.bias_name().map(|bias| (format!("{name}_bias"), bias));
                for (name, member) in [(name, linear.weight_name())].into_iter().chain(biases) {
                    let new = SideBySide { name: name.clone(), members: Vec::new(), alternating };
                    found.entry(name).or_insert(new).members.push(member);
                }
            }
        }
        found.into_values().collect()
    }

    /// Every linear of the decoder layers, in forward order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(|layer| &layer.stages).flat_map(|stage| &stage.linears)
    }

    /// Every tensor that a checkpoint must hold.
    pub fn expected_tensors(&self) -> impl Iterator<Item = ExpectedTensor> + '_ {
        let numbers = &self.hyperparameters;
        let (rows, width, hidden) = (numbers.vocabulary, numbers.embedding_size, numbers.hidden_size);
        let mut outer = vec![(self.embedding(), vec![rows, width])];
        outer.extend(self.embedding_norm().iter().flat_map(NormTensor::expected));
        outer.extend(self.positions().map(|(name, offset)| (name, vec![offset + numbers.context, hidden])));
        if let Some([widening, narrowing]) = self.projections() {
            outer.push((widening, vec![hidden, width]));
            outer.push((narrowing, vec![width, hidden]));
        }
        outer.extend(self.final_norm().iter().flat_map(NormTensor::expected));
        outer.extend((!numbers.tied_head).then(|| (self.untied_head(), vec![rows, width])));
        outer.extend(self.head_bias().map(|name| (name, vec![rows])));
        outer
            .into_iter()
            .chain(self.layers.iter().flat_map(Layer::expected))
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

    /// How many stages lie before that of the output projection.
    #[must_use]
    pub fn stages_before_output(&self) -> usize {
        self.stages.iter().take_while(|stage| stage.input != StageInput::AttentionOutput).count()
    }

    /// The linear of the main part with this role.
    #[must_use]
    pub fn linear(&self, role: Role) -> Option<&Linear> {
        self.linears_of(Part::Main).find(|linear| linear.id.role == role)
    }

    fn expected(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors: Vec<_> = self.norms.values().flat_map(NormTensor::expected).collect();
        tensors.extend(self.router.iter().flat_map(RouterTensors::expected));
        tensors.extend(self.sinks.iter().map(|(name, heads)| (name.clone(), vec![*heads])));
        for linear in self.stages.iter().flat_map(|stage| &stage.linears) {
            tensors.push((linear.weight_name(), linear.weight_shape().to_vec()));
            tensors.extend(linear.bias_name().map(|name| (name, vec![linear.out_features])));
        }
        tensors
    }
}

impl RouterTensors {
    fn expected(&self) -> Vec<(String, Vec<usize>)> {
        let experts = self.routing.experts;
        let mut tensors = vec![(self.weight.clone(), vec![experts, self.hidden])];
        let vectors = self.bias.iter().chain(&self.correction);
        tensors.extend(vectors.map(|name| (name.clone(), vec![experts])));
        tensors.extend(self.shared_gate.iter().map(|name| (name.clone(), vec![1, self.hidden])));
        tensors
    }
}

impl NormTensor {
    fn expected(&self) -> Vec<(String, Vec<usize>)> {
        std::iter::once(&self.weight)
            .chain(&self.bias)
            .map(|name| (name.clone(), vec![self.features]))
            .collect()
    }
}

fn weight(module: &str) -> String {
    format!("{module}.weight")
}

/// The part of config.json that describes the decoder: `text_config` of a model with several towers, completed by what is said of all.
fn text_part(config: &Map<String, Value>) -> Result<Map<String, Value>, ModelError> {
    let Some(text) = config.get("text_config").filter(|value| !value.is_null()) else {
        return Ok(config.clone());
    };
    let text =
        text.as_object().ok_or_else(|| wrong_value("text_config", Some(text), "an object".to_owned()))?;
    let mut merged = text.clone();
    for key in ["tie_word_embeddings", "dtype", "torch_dtype"] {
        if let (false, Some(value)) = (merged.contains_key(key), config.get(key)) {
            merged.insert(key.to_owned(), value.clone());
        }
    }
    Ok(merged)
}

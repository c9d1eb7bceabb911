//! A decoder as an ONNX graph that onnxruntime runs: its contrib operators for norms, grouped-query attention with a key-value cache and
//! products with packed weights (`com.microsoft`), the standard's for the rest.
//!
//! ```text
//! input_ids [batch, tokens], attention_mask [batch, past + tokens], past_key_values.N.{key, value} [batch, heads, past, head_dim]
//!   -> logits [batch, tokens, vocabulary], present.N.{key, value}
//! ```
//!
//! Everything is computed in single precision. Embedding and head stay in their 16-bit type and are widened when the graph is loaded. Weights
//! are initializers outside the file, under the checkpoint's names; what they hold is for the caller to write where [`Graph::data`] says.

use model::graph::NormPlace;
use model::hyperparameters::Activation;
use model::linear::Linear;
use model::rope::Rope;
use model::{Layer, Model};
use quantizer::scheme::{Scheme, Symmetry};

use super::proto::{
    AttributeProto, Dimension, DimensionProto, EXTERNAL, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, attribute, data_type,
};
use crate::checkpoint::Dtype;
use crate::container::TensorSpec;

/// The graph's file and what lies beside it.
pub(crate) struct Graph {
    /// The graph.
    pub(crate) model: ModelProto,
    /// Initializers whose numbers are in the data file: name, offset, length.
    pub(crate) data: Vec<(String, u64, u64)>,
    /// Those of them that the checkpoint does not have, with their content.
    pub(crate) made: Vec<(String, Vec<u8>)>,
    /// Length of the data file.
    pub(crate) data_bytes: u64,
}

/// Name of the file of weights beside the graph.
pub(crate) const DATA_FILE: &str = "model.onnx.data";

/// Initializers begin at multiples of this.
const ALIGNMENT: u64 = 64;

/// Suffixes of a packed linear's initializers.
pub(crate) const CODES: &str = "weight_codes";
pub(crate) const SCALES: &str = "weight_scales";
pub(crate) const ZERO_POINTS: &str = "weight_zero_points";

const MICROSOFT: &str = "com.microsoft";

/// Shapes and types of a packed linear's initializers.
pub(crate) fn packed_specs(linear: &Linear, scheme: Scheme) -> Vec<TensorSpec> {
    let block = scheme.granularity.columns_per_scale(linear.in_features);
    let (bits, blocks) = (usize::from(scheme.bits.get()), linear.in_features / block);
    let spec = |suffix, dtype, shape| TensorSpec { name: format!("{}.{suffix}", linear.name), dtype, shape };
    let mut specs = vec![
        spec(CODES, Dtype::U8, vec![linear.out_features, blocks, block * bits / 8]),
        spec(SCALES, Dtype::F32, vec![linear.out_features, blocks]),
    ];
    if scheme.symmetry == Symmetry::Asymmetric {
        specs.push(spec(ZERO_POINTS, Dtype::U8, vec![linear.out_features, (blocks * bits).div_ceil(8)]));
    }
    specs
}

/// The graph of `model`; `scheme` gives the grid of a linear that is packed, `carried` are all other tensors in the types in which they
/// are written.
pub(crate) fn build(
    model: &Model,
    carried: &[TensorSpec],
    scheme: &dyn Fn(&Linear) -> Option<Scheme>,
    version: &str,
) -> Graph {
    let mut builder = Builder {
        model,
        carried,
        scheme,
        graph: GraphProto::default(),
        made: Vec::new(),
        data: Vec::new(),
        end: 0,
    };
    builder.graph.name = "decoder".to_owned();
    builder.inputs_and_outputs();
    builder.decoder();
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    Graph {
        model: ModelProto {
            ir_version: 10,
            producer_name: "quantc".to_owned(),
            producer_version: version.to_owned(),
            opset_import: vec![opset("", 21), opset(MICROSOFT, 1)],
            graph: Some(builder.graph),
        },
        data: builder.data,
        made: builder.made,
        data_bytes: builder.end,
    }
}

struct Builder<'a> {
    model: &'a Model,
    carried: &'a [TensorSpec],
    scheme: &'a dyn Fn(&Linear) -> Option<Scheme>,
    graph: GraphProto,
    made: Vec<(String, Vec<u8>)>,
    data: Vec<(String, u64, u64)>,
    end: u64,
}

impl Builder<'_> {
    fn inputs_and_outputs(&mut self) {
        let numbers = &self.model.hyperparameters;
        let cache = |name: String, tokens: &str| {
            let heads = numbers.key_value_heads.to_string();
            value(name, data_type::FLOAT, &["batch", &heads, tokens, &numbers.head_dim.to_string()])
        };
        self.graph.input = vec![
            value("input_ids".to_owned(), data_type::INT64, &["batch", "tokens"]),
            value("attention_mask".to_owned(), data_type::INT64, &["batch", "all_tokens"]),
        ];
        let logits = ["batch", "tokens", &numbers.vocabulary.to_string()];
        self.graph.output = vec![value("logits".to_owned(), data_type::FLOAT, &logits)];
        for layer in 0..numbers.layers {
            for kind in ["key", "value"] {
                self.graph.input.push(cache(format!("past_key_values.{layer}.{kind}"), "past_tokens"));
                self.graph.output.push(cache(format!("present.{layer}.{kind}"), "all_tokens"));
            }
        }
    }

    fn decoder(&mut self) {
        self.sequence_lengths();
        self.rotary_tables();
        let embedding = self.model.embedding();
        self.carried(&embedding);
        let rows = self.node("Gather", &[&embedding, "input_ids"], "embedding/rows", vec![int("axis", 0)]);
        let mut stream = self.widened(&embedding, &rows);
        for layer in &self.model.layers {
            stream = self.layer(layer, &stream);
        }
        let normed = match self.model.final_norm() {
            Some(norm) => self.norm(&stream, &norm.weight, "final_norm"),
            None => stream,
        };
        let head = self.model.head();
        if head != embedding {
            self.carried(&head);
        }
        let table = self.widened(&head, &head);
        self.contrib("FusedMatMul", &[&normed, &table], "logits", vec![int("transB", 1)]);
    }

    /// What attention has to know of the mask: `seqlens_k [batch]`, tokens with the past less one, and `total_sequence_length`.
    fn sequence_lengths(&mut self) {
        self.constant("one", &[1], data_type::INT64, 1_i64.to_le_bytes().to_vec());
        self.constant("one_scalar", &[], data_type::INT64, 1_i64.to_le_bytes().to_vec());
        let sums = self.node("ReduceSum", &["attention_mask", "one"], "mask/sums", vec![int("keepdims", 0)]);
        let less = self.node("Sub", &[&sums, "one"], "mask/less", Vec::new());
        self.cast(&less, "seqlens_k", data_type::INT32);
        let shape = self.node("Shape", &["attention_mask"], "mask/shape", Vec::new());
        let total = self.node("Gather", &[&shape, "one_scalar"], "mask/total", vec![int("axis", 0)]);
        self.cast(&total, "total_sequence_length", data_type::INT32);
    }

    /// `cos_cache` and `sin_cache`, `[context, dim / 2]`.
    fn rotary_tables(&mut self) {
        let numbers = &self.model.hyperparameters;
        let (cosine, sine) = angles(&numbers.rope, numbers.context);
        let shape = vec![numbers.context, numbers.rope.dim / 2];
        for (name, bytes) in [("cos_cache", cosine), ("sin_cache", sine)] {
            self.external(&TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape: shape.clone() });
            self.made.push((name.to_owned(), bytes));
        }
    }

    fn layer(&mut self, layer: &Layer, stream: &str) -> String {
        let name = |part: &str| format!("layers.{}/{part}", layer.index);
        let normed = self.layer_norm(layer, NormPlace::AttentionInput, stream, &name("attention_norm"));
        let [mut query, mut key, value] =
            [0, 1, 2].map(|place| self.linear(&layer.stages[0].linears[place], &normed));
        for (place, heads, out) in
            [(NormPlace::Query, &mut query, "query_norm"), (NormPlace::Key, &mut key, "key_norm")]
        {
            if let Some(norm) = layer.norms.get(&place) {
                *heads = self.head_norm(heads, &norm.weight, &name(out));
            }
        }
        let heads = self.attention(layer, [&query, &key, &value]);
        let attended = self.linear(&layer.stages[1].linears[0], &heads);
        let stream = self.node("Add", &[stream, &attended], &name("attended"), Vec::new());
        let normed = self.layer_norm(layer, NormPlace::MlpInput, &stream, &name("mlp_norm"));
        let [gate, up] = [0, 1].map(|place| self.linear(&layer.stages[2].linears[place], &normed));
        let gate = self.activation(&gate, &name("activation"));
        let product = self.node("Mul", &[&gate, &up], &name("gated"), Vec::new());
        let out = self.linear(&layer.stages[3].linears[0], &product);
        self.node("Add", &[&stream, &out], &name("out"), Vec::new())
    }

    fn attention(&mut self, layer: &Layer, [query, key, value]: [&str; 3]) -> String {
        let numbers = &self.model.hyperparameters;
        let number = layer.index;
        let attributes = vec![
            int("num_heads", numbers.heads as i64),
            int("kv_num_heads", numbers.key_value_heads as i64),
            float("scale", numbers.factors.attention),
            int("do_rotary", 1),
            int("rotary_interleaved", 0),
            int("local_window_size", layer.window.map_or(-1, |tokens| tokens as i64)),
        ];
        let past = ["key", "value"].map(|kind| format!("past_key_values.{number}.{kind}"));
        let inputs = [
            query,
            key,
            value,
            &past[0],
            &past[1],
            "seqlens_k",
            "total_sequence_length",
            "cos_cache",
            "sin_cache",
        ];
        let out = format!("layers.{number}/attention");
        let present = ["key", "value"].map(|kind| format!("present.{number}.{kind}"));
        let outputs = vec![out.clone(), present[0].clone(), present[1].clone()];
        self.graph.node.push(NodeProto {
            input: inputs.map(str::to_owned).to_vec(),
            output: outputs,
            name: out.clone(),
            op_type: "GroupQueryAttention".to_owned(),
            attribute: attributes,
            domain: MICROSOFT.to_owned(),
        });
        out
    }

    /// `x Wᵀ (+ bias)`, packed or as it is.
    fn linear(&mut self, linear: &Linear, x: &str) -> String {
        let product = match (self.scheme)(linear) {
            Some(scheme) => self.packed(linear, scheme, x),
            None => {
                let name = linear.weight_name();
                self.carried(&name);
                let weight = self.widened(&name, &name);
                let out = format!("{}/product", linear.name);
                self.contrib("FusedMatMul", &[x, &weight], &out, vec![int("transB", 1)])
            }
        };
        match linear.bias_name() {
            None => product,
            Some(bias) => {
                self.carried(&bias);
                self.node("Add", &[&product, &bias], &format!("{}/out", linear.name), Vec::new())
            }
        }
    }

    fn packed(&mut self, linear: &Linear, scheme: Scheme, x: &str) -> String {
        let specs = packed_specs(linear, scheme);
        for spec in &specs {
            self.external(spec);
        }
        let names: Vec<&str> =
            std::iter::once(x).chain(specs.iter().map(|spec| spec.name.as_str())).collect();
        let attributes = vec![
            int("K", linear.in_features as i64),
            int("N", linear.out_features as i64),
            int("bits", i64::from(scheme.bits.get())),
            int("block_size", scheme.granularity.columns_per_scale(linear.in_features) as i64),
            // Single-precision activations: what the scales were solved for.
            int("accuracy_level", 0),
        ];
        self.contrib("MatMulNBits", &names, &format!("{}/product", linear.name), attributes)
    }

    fn layer_norm(&mut self, layer: &Layer, place: NormPlace, x: &str, out: &str) -> String {
        match layer.norms.get(&place) {
            Some(norm) => self.norm(x, &norm.weight, out),
            None => x.to_owned(),
        }
    }

    fn norm(&mut self, x: &str, weight: &str, out: &str) -> String {
        self.carried(weight);
        self.root_mean_square(x, weight, out)
    }

    /// A norm over each head of `[batch, tokens, heads * head_dim]`.
    fn head_norm(&mut self, x: &str, weight: &str, out: &str) -> String {
        self.carried(weight);
        let (split, joined) = (format!("{out}/split_shape"), format!("{out}/joined_shape"));
        let numbers = &self.model.hyperparameters;
        // 0 is an extent that stays, -1 what is left.
        self.constant(&split, &[4], data_type::INT64, shape_bytes(&[0, 0, -1, numbers.head_dim as i64]));
        self.constant(&joined, &[3], data_type::INT64, shape_bytes(&[0, 0, -1]));
        let heads = self.node("Reshape", &[x, &split], &format!("{out}/heads"), Vec::new());
        let normed = self.root_mean_square(&heads, weight, &format!("{out}/normed"));
        self.node("Reshape", &[&normed, &joined], out, Vec::new())
    }

    fn root_mean_square(&mut self, x: &str, weight: &str, out: &str) -> String {
        let epsilon = self.model.hyperparameters.norm_eps as f32;
        let attributes = vec![float("epsilon", epsilon), int("axis", -1), int("stash_type", 1)];
        self.node("SimplifiedLayerNormalization", &[x, weight], out, attributes)
    }

    fn activation(&mut self, x: &str, out: &str) -> String {
        match self.model.hyperparameters.activation {
            Activation::Silu => {
                let gate = self.node("Sigmoid", &[x], &format!("{out}/sigmoid"), Vec::new());
                self.node("Mul", &[x, &gate], out, Vec::new())
            }
            Activation::Gelu => self.node("Gelu", &[x], out, vec![text("approximate", "none")]),
            Activation::GeluTanh => self.node("Gelu", &[x], out, vec![text("approximate", "tanh")]),
            Activation::Relu => self.node("Relu", &[x], out, Vec::new()),
        }
    }

    /// `value`, which is of the type of the carried tensor `name`, in single precision.
    fn widened(&mut self, name: &str, value: &str) -> String {
        let narrow = self.carried.iter().any(|spec| spec.name == name && spec.dtype != Dtype::F32);
        if narrow { self.cast(value, &format!("{value}/f32"), data_type::FLOAT) } else { value.to_owned() }
    }

    fn cast(&mut self, x: &str, out: &str, to: i32) -> String {
        self.node("Cast", &[x], out, vec![int("to", i64::from(to))])
    }

    fn carried(&mut self, name: &str) {
        if let Some(spec) = self.carried.iter().find(|spec| spec.name == name).cloned() {
            self.external(&spec);
        }
    }

    /// An initializer whose numbers are in the data file.
    fn external(&mut self, spec: &TensorSpec) {
        let (offset, bytes) = (self.end, spec.bytes());
        self.data.push((spec.name.clone(), offset, bytes));
        self.end = (offset + bytes).next_multiple_of(ALIGNMENT);
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        self.graph.initializer.push(TensorProto {
            dims: spec.shape.iter().map(|&extent| extent as i64).collect(),
            data_type: code_of(spec.dtype),
            name: spec.name.clone(),
            external_data: vec![
                entry("location", DATA_FILE.to_owned()),
                entry("offset", offset.to_string()),
                entry("length", bytes.to_string()),
            ],
            data_location: EXTERNAL,
            ..TensorProto::default()
        });
    }

    fn constant(&mut self, name: &str, dims: &[i64], data_type: i32, raw_data: Vec<u8>) {
        let (name, dims) = (name.to_owned(), dims.to_vec());
        self.graph.initializer.push(TensorProto {
            dims,
            data_type,
            name,
            raw_data,
            ..TensorProto::default()
        });
    }

    fn contrib(&mut self, op: &str, inputs: &[&str], out: &str, attributes: Vec<AttributeProto>) -> String {
        self.add(op, MICROSOFT, inputs, out, attributes)
    }

    fn node(&mut self, op: &str, inputs: &[&str], out: &str, attributes: Vec<AttributeProto>) -> String {
        self.add(op, "", inputs, out, attributes)
    }

    fn add(
        &mut self,
        op: &str,
        domain: &str,
        inputs: &[&str],
        out: &str,
        attribute: Vec<AttributeProto>,
    ) -> String {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![out.to_owned()],
            name: out.to_owned(),
            op_type: op.to_owned(),
            attribute,
            domain: domain.to_owned(),
        });
        out.to_owned()
    }
}

/// Cosines and sines of every position and pair, little-endian single precision.
fn angles(rope: &Rope, context: usize) -> (Vec<u8>, Vec<u8>) {
    let (frequencies, factor) = rope.frequencies(context);
    let table = |turn: fn(f64) -> f64| {
        let mut bytes = Vec::with_capacity(context * frequencies.len() * 4);
        for position in 0..context {
            for &frequency in &frequencies {
                // Angles in single precision like the reference implementations.
                let angle = position as f32 * frequency as f32;
                bytes.extend(((turn(f64::from(angle)) * factor) as f32).to_le_bytes());
            }
        }
        bytes
    };
    (table(f64::cos), table(f64::sin))
}

/// The standard's number of a type.
fn code_of(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::F16 => data_type::FLOAT16,
        Dtype::Bf16 => data_type::BFLOAT16,
        Dtype::F32 => data_type::FLOAT,
        _ => data_type::UINT8,
    }
}

fn shape_bytes(shape: &[i64]) -> Vec<u8> {
    shape.iter().flat_map(|extent| extent.to_le_bytes()).collect()
}

/// A value with extents that are numbers or names.
fn value(name: String, elem_type: i32, shape: &[&str]) -> ValueInfoProto {
    let dimension = |extent: &&str| {
        let value = match extent.parse() {
            Ok(number) => Dimension::Value(number),
            Err(_) => Dimension::Parameter((*extent).to_owned()),
        };
        DimensionProto { value: Some(value) }
    };
    let shape = Some(TensorShapeProto { dim: shape.iter().map(dimension).collect() });
    let value_type = Some(TypeProto { tensor_type: Some(TensorTypeProto { elem_type, shape }) });
    ValueInfoProto { name, value_type }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i, kind: attribute::INT, ..AttributeProto::default() }
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.to_owned(), f, kind: attribute::FLOAT, ..AttributeProto::default() }
}

fn text(name: &str, value: &str) -> AttributeProto {
    let s = value.as_bytes().to_vec();
    AttributeProto { name: name.to_owned(), s, kind: attribute::STRING, ..AttributeProto::default() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use quantizer::levels::Levels;
    use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype};
    use serde_json::json;

    use super::*;

    fn model(changes: serde_json::Value) -> Model {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 96, "max_position_embeddings": 32
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        Model::resolve(&config).unwrap()
    }

    fn graph_of(model: &Model) -> Graph {
        let scheme = Scheme {
            bits: BitWidth::new(4).unwrap(),
            levels: Levels::Uniform,
            granularity: Granularity::PerGroup(GroupSize::new(32).unwrap()),
            symmetry: Symmetry::Asymmetric,
            scale_dtype: ScaleDtype::F16,
        };
        let packed = |linear: &Linear| (linear.id.layer == 0).then_some(scheme);
        let weights: BTreeSet<String> =
            model.linears().filter(|linear| packed(linear).is_some()).map(Linear::weight_name).collect();
        let carried: Vec<TensorSpec> = model
            .expected_tensors()
            .filter(|tensor| !weights.contains(&tensor.name))
            .map(|tensor| {
                let dtype = if tensor.shape.len() > 1 { Dtype::Bf16 } else { Dtype::F32 };
                TensorSpec { name: tensor.name, dtype, shape: tensor.shape }
            })
            .collect();
        build(model, &carried, &packed, "test")
    }

    #[test]
    fn every_value_is_made_once_and_before_it_is_used() {
        let families = [
            json!({}),
            json!({"tie_word_embeddings": true}),
            json!({"model_type": "qwen2"}),
            json!({"model_type": "qwen3", "head_dim": 32}),
            json!({"attention_bias": true, "mlp_bias": true, "hidden_act": "gelu_pytorch_tanh"}),
        ];
        for family in families {
            let graph = graph_of(&model(family.clone()));
            let proto = graph.model.graph.as_ref().unwrap();
            let mut known: BTreeSet<&str> = proto.input.iter().map(|input| input.name.as_str()).collect();
            for tensor in &proto.initializer {
                assert!(known.insert(&tensor.name), "{family}: {} twice", tensor.name);
            }
            for node in &proto.node {
                for input in &node.input {
                    assert!(known.contains(input.as_str()), "{family}: {} of {}", input, node.name);
                }
                for output in &node.output {
                    assert!(known.insert(output), "{family}: {output} twice");
                }
            }
            for output in &proto.output {
                assert!(known.contains(output.name.as_str()), "{family}: {}", output.name);
            }
            // All of it is in the file, one after the other.
            let mut end = 0;
            for (name, offset, bytes) in &graph.data {
                assert!(*offset >= end && *offset < end + ALIGNMENT, "{family}: {name} at {offset}");
                end = offset + bytes;
            }
            assert!(graph.data_bytes >= end);
        }
    }

    #[test]
    fn a_graph_comes_back_from_its_bytes() {
        use prost::Message;
        let graph = graph_of(&model(json!({"model_type": "qwen3", "head_dim": 32})));
        let bytes = graph.model.encode_to_vec();
        assert_eq!(ModelProto::decode(bytes.as_slice()).unwrap(), graph.model);
    }
}

//! The forward pass against transformers 5.23 in f32: logits of the tiny random models in tests/data/hf_tiny.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use calibration::corpus::{Corpus, WindowShape};
use calibration::evaluation::{evaluate, visit_logits};
use calibration::tokenizer::TextTokenizer;
use calibration::weights::{LayerWeights, LinearOperator, LinearWeights, SourceError, WeightSource};
use model::{Layer, Model};
use ndarray::{Array1, Array2, Axis, s};
use serde_json::Value;

const TINY: [&str; 5] = ["llama", "llama31", "mistral_sw", "qwen2", "qwen3"];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/hf_tiny").join(name)
}

/// A checkpoint of f32 tensors, wholly in memory.
struct InMemory {
    model: Model,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl InMemory {
    fn open(name: &str) -> Self {
        let config = fs::read_to_string(folder(name).join("config.json")).unwrap();
        let bytes = fs::read(folder(name).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let values =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            (name, (view.shape().to_vec(), values))
        });
        let config: Value = serde_json::from_str(&config).unwrap();
        Self { model: Model::resolve(&config).unwrap(), tensors: tensors.collect() }
    }

    fn vector(&self, name: &str) -> Array1<f32> {
        Array1::from(self.tensors[name].1.clone())
    }

    fn matrix(&self, name: &str) -> Array2<f32> {
        let (shape, values) = &self.tensors[name];
        Array2::from_shape_vec((shape[0], shape[1]), values.clone()).unwrap()
    }
}

impl WeightSource for InMemory {
    fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, SourceError> {
        let rows: Vec<usize> = tokens.iter().map(|&token| token as usize).collect();
        Ok(self.matrix(&self.model.embedding()).select(Axis(0), &rows))
    }

    fn layer(&self, layer: &Layer) -> Result<LayerWeights, SourceError> {
        let linears = layer.stages.iter().flat_map(|stage| &stage.linears).map(|linear| {
            let operator = LinearOperator {
                weights: LinearWeights::Dense(self.matrix(&linear.weight_name())),
                bias: linear.bias_name().map(|name| self.vector(&name)),
            };
            (linear.id.role, operator)
        });
        Ok(LayerWeights {
            linears: linears.collect(),
            attention_norm: self.vector(&layer.attention_norm.weight),
            mlp_norm: self.vector(&layer.mlp_norm.weight),
            head_norms: layer
                .head_norms
                .as_ref()
                .map(|norms| (self.vector(&norms.query), self.vector(&norms.key))),
        })
    }

    fn final_norm(&self) -> Result<Array1<f32>, SourceError> {
        Ok(self.vector(&self.model.final_norm()))
    }

    fn head_rows(&self, rows: Range<usize>) -> Result<LinearOperator, SourceError> {
        let rows = self.matrix(&self.model.head()).slice(s![rows, ..]).to_owned();
        Ok(LinearOperator { weights: rows.into(), bias: None })
    }
}

fn golden(name: &str) -> (Vec<u32>, Vec<f64>, Vec<f64>, f64, f64) {
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(folder(name).join("golden.json")).unwrap()).unwrap();
    let ids = golden["input_ids"].as_array().unwrap();
    let ids = ids.first().and_then(Value::as_array).unwrap_or(ids);
    let numbers = |key: &str| golden[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    (
        ids.iter().map(|v| v.as_u64().unwrap() as u32).collect(),
        numbers("logits_first"),
        numbers("logits_last"),
        golden["sum"].as_f64().unwrap(),
        golden["abs_sum"].as_f64().unwrap(),
    )
}

#[test]
fn logits_meet_the_reference_implementation() {
    for name in TINY {
        let source = InMemory::open(name);
        let (ids, first, last, sum, abs_sum) = golden(name);
        let mut seen = 0;
        visit_logits(&source.model, &source, std::slice::from_ref(&ids), &mut |logits| {
            seen += 1;
            for (row, expected) in [(0, &first), (ids.len() - 1, &last)] {
                for (found, expected) in logits.row(row).iter().zip(expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-4, "{name}: {found} {expected}");
                }
            }
            let total: f64 = logits.iter().map(|&v| f64::from(v)).sum();
            let absolute: f64 = logits.iter().map(|&v| f64::from(v.abs())).sum();
            assert!((total - sum).abs() < 1e-2 && (absolute - abs_sum).abs() < 1e-2, "{name}");
        })
        .unwrap();
        assert_eq!(seen, 1);
    }
}

#[test]
fn perplexity_is_the_exponential_of_the_likelihood_and_a_model_is_itself() {
    let source = InMemory::open("qwen3");
    let windows: Vec<Vec<u32>> = (0..9).map(|w| (0..20).map(|i| (w * 5 + i * i) % 64).collect()).collect();
    let mut total = 0.0;
    let mut index = 0;
    visit_logits(&source.model, &source, &windows, &mut |logits| {
        for position in 0..19 {
            let row = logits.row(position);
            let normalizer = row.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
            total += normalizer - f64::from(row[windows[index][position + 1] as usize]);
        }
        index += 1;
    })
    .unwrap();
    let mut steps = 0;
    let found = evaluate(&source.model, &source, Some(&source), &windows, &mut || steps += 1).unwrap();
    assert!((found.measured.perplexity.value / (total / 171.0).exp() - 1.0).abs() < 1e-6);
    assert!(found.measured.perplexity.stderr > 0.0);
    assert_eq!(Some(&found.measured), found.reference.as_ref());
    let divergence = found.divergence.unwrap();
    assert_eq!((divergence.mean.value, divergence.p99.value, divergence.top1_agreement), (0.0, 0.0, 1.0));
    assert_eq!((found.measured.window_nll.len(), steps), (9, 2 * source.model.layers.len()));
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    let (source, other) = (InMemory::open("llama"), InMemory::open("llama"));
    let windows: Vec<Vec<u32>> = (0..5).map(|w| (0..33).map(|i| (w * 11 + i * 3) % 64).collect()).collect();
    let score = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| evaluate(&source.model, &source, Some(&other), &windows, &mut || {}).unwrap())
    };
    let expected = score(1);
    for threads in [2, 3, 8] {
        assert_eq!(score(threads), expected);
    }
}

fn demo_tokenizer() -> TextTokenizer {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../demo/model");
    TextTokenizer::open(&folder).unwrap().unwrap()
}

fn demo_text() -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../demo/evaluation.txt")).unwrap()
}

#[test]
fn windows_are_disjoint_from_the_start_with_the_beginning_token_first() {
    let tokenizer = demo_tokenizer();
    let corpus = Corpus::new("demo", demo_text());
    let shape = WindowShape { samples: 3, context: 16, seed: None };
    let windows = corpus.windows(Some(&tokenizer), 2048, shape).unwrap();
    let all = tokenizer.encode(&demo_text()).unwrap();
    for (index, window) in windows.tokens.iter().enumerate() {
        assert_eq!(window[0], 0);
        assert_eq!(window[1..], all[index * 15..(index + 1) * 15]);
    }
    let long = corpus.windows(Some(&tokenizer), 2048, WindowShape { samples: 1_000_000, ..shape }).unwrap();
    assert_eq!(long.tokens.len(), all.len() / 15);
    assert_eq!(long.tokens[..3], windows.tokens[..]);
    let drawn = corpus.windows(Some(&tokenizer), 2048, WindowShape { seed: Some(7), ..shape }).unwrap();
    assert!(drawn.tokens != windows.tokens && long.tokens.contains(&drawn.tokens[0]));
    assert_eq!(
        drawn,
        corpus.windows(Some(&tokenizer), 2048, WindowShape { seed: Some(7), ..shape }).unwrap()
    );
}

#[test]
fn json_lines_of_text_messages_and_tokens_are_read() {
    let tokenizer = demo_tokenizer();
    let shape = WindowShape { samples: 2, context: 4, seed: None };
    let text = Corpus::new("lines", "{\"text\": \"The sea was\"}\n\n{\"text\": \" calm and grey.\"}\n");
    let windows = text.windows(Some(&tokenizer), 2048, shape).unwrap();
    let mut joined = tokenizer.encode("The sea was").unwrap();
    joined.extend(tokenizer.encode(" calm and grey.").unwrap());
    assert_eq!(windows.tokens[0][1..], joined[..3]);

    let tokens = Corpus::new("ids", "{\"input_ids\": [5, 6, 7, 8]}\n{\"input_ids\": [9, 10, 11, 12]}\n");
    let windows = tokens.windows(None, 2048, shape).unwrap();
    assert_eq!(windows.tokens, [vec![5, 6, 7, 8], vec![9, 10, 11, 12]]);
    let error = tokens.windows(None, 10, shape).unwrap_err().to_string();
    assert!(error.contains("token 10") && error.contains("10 rows"), "{error}");
    let error = text.windows(None, 2048, shape).unwrap_err().to_string();
    assert!(error.contains("tokenizer"), "{error}");
}

#[test]
fn conversations_go_through_the_chat_template() {
    let folder = tempfile::tempdir().unwrap();
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../demo/model");
    fs::copy(demo.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let template = "{%- for m in messages -%}\n{% if m.role == 'system' %}{% continue %}{% endif %}\n<{{ m['role'] }}>{{ m.content.strip() }}{{ eos_token }}\n{%- endfor -%}";
    let config = serde_json::json!({
        "bos_token": {"content": "<s>"}, "eos_token": "</s>",
        "chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": template}]
    });
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = TextTokenizer::open(folder.path()).unwrap().unwrap();
    assert_eq!(tokenizer.begin(), Some(0));
    let messages = serde_json::json!([
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hello "}, {"role": "assistant", "content": "Hi"}
    ]);
    let text = tokenizer.render_chat(&messages).unwrap();
    assert_eq!(text.split_whitespace().collect::<String>(), "<user>Hello</s><assistant>Hi</s>");
    let error = demo_tokenizer().render_chat(&messages).unwrap_err().to_string();
    assert!(error.contains("chat template"), "{error}");
}

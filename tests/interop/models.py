"""Small models with random weights, for the architectures that the demo model does not cover."""

import shutil
from pathlib import Path

import torch
import transformers

# Large enough initial weights that the logits differ from token to token; a vocabulary of its own is not needed.
SHAPE = dict(
    vocab_size=2048,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.06,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,  # GPTQModel otherwise takes the real Qwen2's, which this vocabulary does not have
    head_dim=64,
)

CONFIGS = {
    # Biases on q, k and v; an untied head; float16.
    "qwen2": lambda: transformers.Qwen2Config(
        **SHAPE, hidden_size=256, intermediate_size=512, tie_word_embeddings=False, dtype="float16"
    ),
    # Norms on q and k; 128 divides the inputs of o_proj and down_proj, but not the hidden size; bfloat16.
    "qwen3": lambda: transformers.Qwen3Config(
        **SHAPE, hidden_size=192, intermediate_size=512, tie_word_embeddings=True, dtype="bfloat16"
    ),
    # Biases everywhere; frequencies of the rotation stretched as Llama 3.1's; bfloat16.
    "llama3": lambda: transformers.LlamaConfig(
        **SHAPE, hidden_size=256, intermediate_size=512, attention_bias=True, mlp_bias=True, dtype="bfloat16",
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    ),
    # A sliding window shorter than the text; float32.
    "mistral": lambda: transformers.MistralConfig(
        **SHAPE, hidden_size=256, intermediate_size=512, sliding_window=48, tie_word_embeddings=True, dtype="float32"
    ),
}


def make(kind: str, tokenizer_of: Path, directory: Path) -> None:
    """Writes a random model of the given kind, with the tokenizer of another checkpoint."""
    torch.manual_seed(0)
    config = CONFIGS[kind]()
    model = transformers.AutoModelForCausalLM.from_config(config).to(config.dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        elif "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_of / file, directory / file)

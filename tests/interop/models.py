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

# Of every other family one model, float16, with layers enough for each kind that it has.
WIDE = dict(SHAPE, hidden_size=256, intermediate_size=512, dtype="float16", tie_word_embeddings=False)
# Where heads are as wide as the hidden size allows.
EVEN = {key: value for key, value in WIDE.items() if key != "head_dim"}
OLD = dict(
    vocab_size=2048, n_embd=256, n_layer=2, n_head=4, n_positions=256, n_inner=512, initializer_range=0.06, bos_token_id=0,
    eos_token_id=1, dtype="float16",
)
ALIKE = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 48}
FALCON = dict(
    vocab_size=2048, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=512,
    max_position_embeddings=256, initializer_range=0.06, bos_token_id=0, eos_token_id=1, dtype="float16",
)
OPT = dict(
    vocab_size=2048, hidden_size=256, ffn_dim=512, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256,
    init_std=0.06, bos_token_id=0, eos_token_id=1, pad_token_id=1, dtype="float16",
)
# Experts, of which each token takes three; routers' weights are large enough that none is almost as good as another.
EXPERTS = dict(num_experts_per_tok=3, moe_intermediate_size=128)
LATENT = dict(
    EVEN, **(EXPERTS | {"num_key_value_heads": 4}), n_routed_experts=8, n_shared_experts=2, first_k_dense_replace=1, kv_lora_rank=128, qk_nope_head_dim=32,
    qk_rope_head_dim=32, v_head_dim=64, routed_scaling_factor=1.5, rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 0.7,
                                                       "mscale_all_dim": 1.0, "original_max_position_embeddings": 64},
)
TEMPERED = dict(LATENT["rope_parameters"], mscale=0.707, mscale_all_dim=0.707)
FAMILIES = {
    "mixtral": ("mixtral", dict(EVEN, num_local_experts=8, num_experts_per_tok=3)),
    "qwen2_moe": ("qwen2_moe", dict(EVEN, **EXPERTS, num_experts=8, shared_expert_intermediate_size=256)),
    # All layers have experts: GPTQModel leaves the linears of dense ones as they were initialized.
    "qwen3_moe": ("qwen3_moe", dict(WIDE, **EXPERTS, num_experts=8, norm_topk_prob=True)),
    "deepseek_v2": ("deepseek_v2", dict(LATENT, q_lora_rank=None, topk_method="group_limited_greedy", n_group=4, topk_group=2)),
    "gpt_oss": ("gpt_oss", dict(WIDE, num_local_experts=8, num_experts_per_tok=3, sliding_window=48, rope_parameters={
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 64})),
    "deepseek_v3": ("deepseek_v3", dict(LATENT, q_lora_rank=192, n_group=4, topk_group=2)),
    "gemma": ("gemma", dict(WIDE, tie_word_embeddings=True)),
    "gemma2": ("gemma2", dict(WIDE, **ALIKE, query_pre_attn_scalar=96, tie_word_embeddings=True)),
    "gemma3": ("gemma3_text", dict(WIDE, **ALIKE, query_pre_attn_scalar=96, tie_word_embeddings=True)),
    "phi3": ("phi3", dict(EVEN, sliding_window=48)),
    "glm": ("glm", WIDE),
    "glm4": ("glm4", WIDE),
    "granite": ("granite", dict(EVEN, embedding_multiplier=2.0, attention_multiplier=0.1, residual_multiplier=0.5, logits_scaling=2.0)),
    "smollm3": ("smollm3", dict(EVEN, no_rope_layers=[1, 0])),
    "olmo2": ("olmo2", EVEN),
    "gpt_neox": ("gpt_neox", dict(EVEN, num_key_value_heads=4)),
    "gpt2": ("gpt2", OLD),
    "opt": ("opt", OPT),
    "opt_behind": ("opt", dict(OPT, do_layer_norm_before=False, word_embed_proj_dim=128)),
    "phi": ("phi", EVEN),
    "falcon": ("falcon", FALCON),
    "falcon_two_norms": ("falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2)),
    "bloom": ("bloom", dict(vocab_size=2048, hidden_size=256, n_layer=2, n_head=4, initializer_range=0.06, bos_token_id=0,
                            eos_token_id=1, dtype="float16")),
    "cohere": ("cohere", EVEN),
    "cohere2": ("cohere2", dict(WIDE, **ALIKE)),
    "stablelm": ("stablelm", dict(EVEN, use_qkv_bias=True)),
    "starcoder2": ("starcoder2", dict(EVEN, sliding_window=48)),
    "gptj": ("gptj", dict(OLD, rotary_dim=32, tie_word_embeddings=False)),
}
# What transformers has no place for once it is quantized.
MLX_ALONE = {"gpt_oss"}
WITH_EXPERTS = {"mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"}

# What llama.cpp runs, without windows where it has none, and with layers enough for its periods.
GGUF_FAMILIES = {
    # llama.cpp looks for "phi3" in the name of the model, and then for tokens of Phi-3's, which this tokenizer lacks: the file has another name.
    "phi3": ("phi3", dict(EVEN, sliding_window=None)),
    "glm": FAMILIES["glm"],
    "glm4": FAMILIES["glm4"],
    "granite": FAMILIES["granite"],
    "smollm3": ("smollm3", dict(EVEN, num_hidden_layers=4)),
    "olmo2": FAMILIES["olmo2"],
    "phi": FAMILIES["phi"],
    "cohere": ("cohere", dict(EVEN, tie_word_embeddings=True)),
    "cohere2": ("cohere2", dict(WIDE, num_hidden_layers=4, sliding_window=48, tie_word_embeddings=True)),
    "stablelm": FAMILIES["stablelm"],
    "starcoder2": ("starcoder2", dict(EVEN, sliding_window=None)),
    "gemma": FAMILIES["gemma"],
    # Products over the root of the head's features, as in all sizes but the largest.
    "gemma2": ("gemma2", dict(WIDE, **ALIKE, query_pre_attn_scalar=64, tie_word_embeddings=True)),
    "gemma3": ("gemma3_text", dict(WIDE, num_hidden_layers=6, sliding_window=48, query_pre_attn_scalar=64, tie_word_embeddings=True)),
    "gpt2": FAMILIES["gpt2"],
    "gpt_neox": FAMILIES["gpt_neox"],
    "gpt_neox_in_turn": ("gpt_neox", dict(EVEN, num_key_value_heads=4, use_parallel_residual=False)),
    "falcon": FAMILIES["falcon"],
    "falcon_grouped": ("falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)),
    "falcon_two_norms": FAMILIES["falcon_two_norms"],
    "bloom": FAMILIES["bloom"],
    # One temperature for all of a head, and no groups in the older one.
    "deepseek_v2": ("deepseek_v2", dict(LATENT, q_lora_rank=None, topk_method="greedy", n_group=1, topk_group=1, rope_parameters=TEMPERED)),
    "deepseek_v3": ("deepseek_v3", dict(LATENT, q_lora_rank=192, n_group=4, topk_group=2, rope_parameters=TEMPERED)),
    "gpt_oss": FAMILIES["gpt_oss"],
    "phi_3_long": ("phi3", dict(EVEN, sliding_window=None, original_max_position_embeddings=64, rope_parameters={
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.01 * at for at in range(32)],
        "long_factor": [1.0 + 0.1 * at for at in range(32)]})),
}

# Written in several files, of which llama.cpp is given the first.
IN_PARTS = {"gguf-olmo2"}
# ggml looks this activation up in a table of half precision, which six layers add up to more than a thousandth.
DEEP_GELU = {"gguf-gemma3"}


def make(kind: str, tokenizer_of: Path, directory: Path) -> None:
    """Writes a random model of the given kind, with the tokenizer of another checkpoint."""
    torch.manual_seed(0)
    if kind in CONFIGS:
        config = CONFIGS[kind]()
    else:
        of_type, numbers = GGUF_FAMILIES[kind.removeprefix("gguf-")] if kind.startswith("gguf-") else FAMILIES[kind]
        config = transformers.AutoConfig.for_model(of_type, **numbers)
    model = transformers.AutoModelForCausalLM.from_config(config).to(config.dtype)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.uniform_(buffer, -0.2, 0.2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        elif "norm" in name or parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_of / file, directory / file)

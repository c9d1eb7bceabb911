"""Tiny random checkpoints with the logits of the reference implementation: `python make.py [NAME...]`, with torch and transformers 5.23."""

import json
import pathlib
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
BASE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    pad_token_id=0,
)
OLD = dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
FALCON = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=48,
    max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
)
MODELS = {
    "gemma": ("gemma", dict(BASE, head_dim=16, tie_word_embeddings=True)),
    "glm": ("glm", dict(BASE, head_dim=16)),
    "glm4": ("glm4", dict(BASE, head_dim=8)),
    "granite": ("granite", dict(BASE, embedding_multiplier=3.0, attention_multiplier=0.25, residual_multiplier=0.4,
                                logits_scaling=0.5, tie_word_embeddings=True)),
    "smollm3": ("smollm3", dict(BASE, tie_word_embeddings=True, no_rope_layers=[1, 0])),
    "olmo2": ("olmo2", dict(BASE)),
    "gpt_neox_in_turn": ("gpt_neox", dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, use_parallel_residual=False, rotary_pct=0.5, bos_token_id=1, eos_token_id=2)),
    "falcon": ("falcon", dict(FALCON)),
    "falcon_grouped": ("falcon", dict(FALCON, new_decoder_architecture=True, num_ln_in_parallel_attn=1,
                                      num_kv_heads=2, tie_word_embeddings=False)),
    "falcon_two_norms": ("falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2, bias=True)),
    "bloom": ("bloom", dict(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)),
    "cohere": ("cohere", dict(BASE, tie_word_embeddings=True, logit_scale=0.5)),
    "cohere2": ("cohere2", dict(BASE, tie_word_embeddings=True, logit_scale=0.5, sliding_window=4,
                                layer_types=["sliding_attention", "full_attention"])),
    "stablelm": ("stablelm", dict(BASE, use_qkv_bias=True)),
    "stablelm_parallel": ("stablelm", dict(BASE, use_parallel_residual=True)),
    "starcoder2": ("starcoder2", dict(BASE, sliding_window=4, tie_word_embeddings=True)),
    "gptj": ("gptj", dict(OLD, n_inner=48, rotary_dim=4, tie_word_embeddings=False)),
}
IDS = [1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45]


def fill(model, plus_one):
    """Norms near one, or zero where one is added; small biases; other weights large enough to matter."""
    generator = torch.Generator().manual_seed(1234)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif parameter.dim() == 1:
            parameter.copy_(0.1 * noise + (0.0 if plus_one else 1.0))
        else:
            parameter.copy_(0.25 * noise)


@torch.no_grad()
def main():
    for name in sys.argv[1:] or MODELS:
        kind, numbers = MODELS[name]
        config = AutoConfig.for_model(kind, **numbers)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        fill(model, "gemma" in kind)
        if config.tie_word_embeddings:
            model.tie_weights()
        logits = model(torch.tensor([IDS])).logits[0]
        model.save_pretrained(HERE / name)
        golden = dict(
            input_ids=IDS, logits_last=logits[-1].tolist(), logits_first=logits[0].tolist(),
            sum=logits.double().sum().item(), abs_sum=logits.double().abs().sum().item(),
            note="f32 eager, transformers " + transformers.__version__,
        )
        (HERE / name / "golden.json").write_text(json.dumps(golden))
        print(name, golden["abs_sum"])


main()

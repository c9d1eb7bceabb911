"""A tiny random model whose experts are four-bit floats, as OpenAI publishes them, with the logits of transformers: `python make.py`."""

import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config

HERE = pathlib.Path(__file__).parent
IDS = [1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45]
NUMBERS = dict(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    num_local_experts=4, num_experts_per_tok=2, sliding_window=4, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1,
    eos_token_id=2, pad_token_id=0,
    rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                     "original_max_position_embeddings": 16},
)


@torch.no_grad()
def main():
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt_oss", **NUMBERS)
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    generator = torch.Generator().manual_seed(1234)
    tensors = {}
    for name, parameter in sorted(model.state_dict().items()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = parameter.shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(122, 126, (experts, outputs, inputs // 32), generator=generator, dtype=torch.uint8)
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
            continue
        scale, middle = (0.1, 1.0 if "norm" in name else 0.0) if parameter.dim() < 3 and ("norm" in name or "bias" in name) else (0.25, 0.0)
        tensors[name] = (scale * noise + middle).bfloat16()
    save_file(tensors, HERE / "model.safetensors", metadata={"format": "pt"})
    config.architectures = ["GptOssForCausalLM"]
    config.dtype = "bfloat16"
    said = config.to_dict()
    said["quantization_config"] = {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        "quant_method": "mxfp4",
    }
    (HERE / "config.json").write_text(json.dumps(said, indent=2))
    model = AutoModelForCausalLM.from_pretrained(
        HERE, dtype=torch.float32, attn_implementation="eager", quantization_config=Mxfp4Config(dequantize=True)
    ).float().eval()
    logits = model(torch.tensor([IDS])).logits[0]
    note = "f32 eager of bfloat16 and four-bit floats, transformers " + transformers.__version__
    golden = dict(input_ids=IDS, logits=[row.tolist() for row in logits], note=note)
    (HERE / "golden.json").write_text(json.dumps(golden))
    print(logits.abs().sum())


main()

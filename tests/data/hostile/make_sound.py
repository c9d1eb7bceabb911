"""Makes the sound models in sound/: a dense one of one layer with random weights, and its outputs in some formats.

    python make_sound.py QUANTC

QUANTC is the program. The outputs are committed; a change of a format does not need them made again, since they are input here.
"""

import json
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
VOCABULARY, HIDDEN, HEADS, KEY_VALUE, INNER = 104, 32, 2, 1, 64
FORMATS = ["gptq", "awq", "compressed-tensors", "compressed-tensors:w8a8-fp8", "mlx", "nf4", "onnx", "gguf:q4_0"]
# Others leave no choice.
GROUPS = {format: ["--group-size", "32"] for format in ["gptq", "awq", "compressed-tensors", "mlx", "onnx"]}


def bf16(value):
    return struct.pack("<f", value)[2:]


def tensors():
    draw = random.Random(8)
    head = HIDDEN // HEADS
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        layer + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        layer + "self_attn.k_proj.weight": (KEY_VALUE * head, HIDDEN),
        layer + "self_attn.v_proj.weight": (KEY_VALUE * head, HIDDEN),
        layer + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        layer + "mlp.gate_proj.weight": (INNER, HIDDEN),
        layer + "mlp.up_proj.weight": (INNER, HIDDEN),
        layer + "mlp.down_proj.weight": (HIDDEN, INNER),
        layer + "input_layernorm.weight": (HIDDEN,),
        layer + "post_attention_layernorm.weight": (HIDDEN,),
        "model.norm.weight": (HIDDEN,),
    }
    for name, shape in sorted(shapes.items()):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        value = (lambda: 1.0) if len(shape) == 1 else (lambda: draw.gauss(0, 0.2))
        yield name, shape, b"".join(bf16(value()) for _ in range(count))


def safetensors(entries):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, shape, content in entries:
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def tokenizer():
    tokens = ["<s>", "</s>"] + [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    merges = ["t h", "h e", "Ġ t", "i n", "e r", "Ġ a"]
    tokens += [merge.replace(" ", "") for merge in merges]
    assert len(tokens) == VOCABULARY
    special = [
        {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i in range(2)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {text: i for i, text in enumerate(tokens)}, "merges": merges}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model}


def main():
    dense = HERE / "sound/dense"
    dense.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KEY_VALUE,
        "vocab_size": VOCABULARY, "max_position_embeddings": 64, "hidden_act": "silu", "rms_norm_eps": 1e-05,
        "tie_word_embeddings": True, "rope_theta": 10000.0,
    }
    (dense / "config.json").write_text(json.dumps(config) + "\n")
    (dense / "model.safetensors").write_bytes(safetensors(tensors()))
    (dense / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False) + "\n")
    settings = {"bos_token": "<s>", "eos_token": "</s>",
                "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"}
    (dense / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")
    for format in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "out"
            subprocess.run([sys.argv[1], "quantize", dense, "-o", output, "--to", format, "--recipe", "rtn", "--no-evaluate"] + GROUPS.get(format, []), check=True, stdout=subprocess.DEVNULL)
            name = format.split(":")[-1]
            sound = HERE / "sound" / name
            shutil.rmtree(sound, ignore_errors=True)
            sound.mkdir()
            for file in sorted(output.iterdir()):
                shutil.copyfile(file, sound / file.name)


main()

"""The runtimes that quantc's outputs are for, as a user starts them, on the CPU.

Which of them computes in what was measured on GPTQModel 7.7.0 and transformers 5.23.0:

* GPTQModel `gptq_torch` refuses f32 at load. Loaded in the checkpoint's own 16-bit type and turned into f32 afterwards, it
  multiplies in f32 with the weights it unpacked itself; that loses nothing as long as the scales are exact in that type.
* GPTQModel `gptq_torch_fused` takes f32 models, but rounds the input of every linear to bf16, and its CPU operator has no zero
  points: asymmetric checkpoints come out as noise. Symmetric 4 bit only.
* transformers with `dtype=torch.float32` goes through GPTQModel's kernels, which then unpack into f16 and multiply in f32: exact
  for codes of up to 4 bits with scales of bf16 precision, one rounding of the weights otherwise.
* GPTQModel `awq_torch` computes in 16 bit; loaded in the checkpoint's own type and turned into f32 afterwards it multiplies in f32 with
  the weights it unpacked.
* mlx-lm computes in the checkpoint's type; with scales, biases and the other tensors widened to f32 it does so in f32, exactly.
* transformers decompresses compressed-tensors into the model's type at the first forward. Asymmetric checkpoints load only
  with `dequantize=True`, which rounds the weights to the scales' type. Four-bit floats come out in bfloat16 at the first forward, whatever
  the model's type, and in the model's type with `dequantize=True`.
"""

import gc
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

import decoder


@torch.no_grad()
def logits(model, windows: np.ndarray) -> np.ndarray:
    """[windows, context, vocabulary] in f32, one window at a time."""
    return np.concatenate([model(torch.from_numpy(window[None])).logits.float().numpy() for window in windows])


def window_nll(logits: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of tokens 1.. of every window, in nats, f64."""
    log_p = torch.log_softmax(torch.from_numpy(logits[:, :-1]).double(), -1)
    targets = torch.from_numpy(windows[:, 1:, None])
    return -log_p.gather(-1, targets)[..., 0].mean(1).numpy()


@torch.no_grad()
def likelihood_of_ending(model, directory: Path, before: str, ending: str) -> float:
    """Log-likelihood of the tokens that `ending` adds to those of `before`, behind the bos token if there is one; nats, f64."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens, known = bos + encode(before + ending), len(bos) + len(encode(before))
    log_p = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)
    return sum(float(log_p[place - 1, tokens[place]]) for place in range(known, len(tokens)))


def text_windows(directory: Path, text: Path, context: int, count: int) -> np.ndarray:
    """Disjoint windows from the start of the text, each with the bos token first where the tokenizer has one."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(text.read_text("utf-8")[: context * count * 12], add_special_tokens=False)["input_ids"]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    step = context - len(bos)
    return np.array([bos + ids[i * step : (i + 1) * step] for i in range(count)], dtype=np.int64)


def original(directory: Path):
    """The checkpoint before quantization, in f32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def with_rounded_inputs(model, linears, out: Path):
    """The same with the inputs of these linears rounded as config.json says runtimes round them: token by token to eight bits, or not at all."""
    (group,) = json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"].values()
    asked = group["input_activations"]
    if asked["strategy"] != "token" or not asked["dynamic"]:
        raise ValueError(f"inputs are to be rounded as {asked}")

    def change(module, inputs):
        largest = inputs[0].abs().amax(-1, keepdim=True)
        if asked["type"] == "int":
            scale = largest / 127.5
            return (torch.where(scale > 0, inputs[0] / scale, 0.0).clamp(-128, 127).round() * scale,)
        scale = largest / 448.0
        return (torch.where(scale > 0, inputs[0] / scale, 0.0).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale,)

    for name in linears:
        model.get_submodule(name).register_forward_pre_hook(change)
    return model


def decoded(source: Path, tensors: dict, linears: dict[str, decoder.Linear]):
    """The model with every tensor of the output put in, quantized ones by the independent decoder: transformers' own forward pass
    in f32."""
    model = original(source)
    if "lm_head" in linears:
        # Not tied any more, whatever it was.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name in parameters and name.removesuffix(".weight") not in linears:
            parameters[name].data.copy_(torch.from_numpy(decoder.as_f32(tensor)))
    for name, linear in linears.items():
        parameters[f"{name}.weight"].data.copy_(torch.from_numpy(linear.dense()))
    return model


def gptqmodel(directory: Path, backend: str, dtype: str, to_f32: bool = False):
    """GPTQModel with one of its CPU kernels."""
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(str(directory), device="cpu", backend=BACKEND(backend), dtype=getattr(torch, dtype))
    model = loaded.model.eval()
    return model.float() if to_f32 else model


def transformers(directory: Path, dtype: str, dequantize: bool = False):
    """`from_pretrained` by the checkpoint's own config.json; `auto` is the type that config.json names."""
    extra = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, device_map="cpu", **extra).eval()


def mlx(directory: Path, as_f32: bool = False):
    """mlx-lm on the CPU; with `as_f32` everything but the words is widened, scales and biases too, so that it multiplies in f32."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _ = load_model(directory)
    if as_f32:
        widen = lambda array: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array  # noqa: E731
        model.update(tree_map(widen, model.parameters()))
    return model


def mlx_logits(model, windows: np.ndarray) -> np.ndarray:
    """[windows, context, vocabulary] in f32, one window at a time."""
    import mlx.core as mx

    return np.concatenate([np.array(model(mx.array(window[None])).astype(mx.float32)) for window in windows])


def mlx_weight(model, name: str) -> np.ndarray:
    """The weights that mlx itself unpacks for one linear, in f32."""
    import mlx.core as mx

    module = model
    for part in name.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    biases = module.get("biases")
    dense = mx.dequantize(module.weight, module.scales, biases, module.group_size, module.bits, mode=module.mode, dtype=mx.float32)
    return np.array(dense.astype(mx.float32))


def mlx_sentence(directory: Path, prompt: str) -> str:
    """What mlx-lm writes after a prompt, as a user starts it."""
    import mlx.core as mx
    from mlx_lm import generate, load

    mx.set_default_device(mx.cpu)
    model, tokenizer = load(str(directory))
    return generate(model, tokenizer, prompt=prompt, max_tokens=16)


PROBE = "The 12,345 cats' (naïve) plan: don't\n\n  stop \u2014 it's 3.14!  tabs\tand   spaces <s> 漢字"


def token_ids(directory: Path, text: str) -> list[int]:
    """What tokenizer.json makes of a text, special tokens in it included."""
    return AutoTokenizer.from_pretrained(directory)(text, add_special_tokens=False)["input_ids"]


def onnx(directory: Path):
    """onnxruntime on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])


def onnx_logits(session, windows: np.ndarray, pieces: list[int]) -> np.ndarray:
    """[windows, context, vocabulary], all windows at once and their tokens a piece after the other, with what is kept of those before."""
    batch = len(windows)
    inputs = {entry.name: entry.shape for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    kept = {
        name: np.zeros((batch, int(shape[1]), 0, int(shape[3])), np.float32)
        for name, shape in inputs.items()
        if name.startswith("past_key_values.")
    }
    found, end = [], 0
    for piece in pieces:
        start, end = end, end + piece
        mask = np.ones((batch, end), np.int64)
        results = dict(zip(outputs, session.run(None, {"input_ids": windows[:, start:end], "attention_mask": mask, **kept})))
        found.append(results["logits"])
        kept = {name: results[name.replace("past_key_values", "present")] for name in kept}
    return np.concatenate(found, axis=1)


def genai(directory: Path, prompt: np.ndarray) -> tuple[np.ndarray, str]:
    """Logits of onnxruntime-genai after the tokens of a prompt, and what it writes next."""
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(directory))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + 16, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(prompt.astype(np.int32))
    logits = np.array(generator.get_logits()).reshape(-1)
    while not generator.is_done():
        generator.generate_next_token()
    written = generator.get_sequence(0)[len(prompt) :]
    return logits, onnxruntime_genai.Tokenizer(model).decode(written)


def transformers_sentence(model, directory: Path, prompt: str) -> str:
    """What transformers writes after a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(written, skip_special_tokens=True)


def gguf_model(source: Path, file: Path):
    """transformers' own forward pass in f32 on the weights that gguf-py decodes. A name and an order of rows is undone for each."""
    import gguf
    from gguf.quants import dequantize

    model = original(source)
    config = model.config
    reader = gguf.GGUFReader(file)
    architecture = reader.get_field("general.architecture").contents()
    tensors = {tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()) for tensor in reader.tensors}
    parameters = dict(model.named_parameters())
    left = set(parameters)
    for name, tensor in tensors.items():
        if name == "rope_freqs.weight":
            continue
        theirs = name_of_gguf(name)
        module = name.split(".")[-2]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(module)
        if architecture == "llama" and heads:
            tensor = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(tensor.shape)
        parameters[theirs].data.copy_(tensor)
        left.discard(theirs)
    if left:
        raise ValueError(f"the file has no {sorted(left)[:3]}")
    return model


def name_of_gguf(name: str) -> str:
    """What transformers calls a tensor of a model of Llama's shape that llama.cpp calls `name`."""
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    inner = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    *path, module, kind = name.split(".")
    return f"model.layers.{path[1]}.{inner[module]}.{kind}" if path else f"{outer[module]}.{kind}"


def with_inputs_of_llama_cpp(model, file: Path):
    """The same with the input of every linear rounded as llama.cpp rounds it before it multiplies: beside packed weights to eight bits, 256 to a scale
    for K-quants and IQ4_XS and 32 for others; beside weights of 16 bits to their type."""
    import gguf

    def eights(features, columns, half):
        groups = features.unflatten(-1, (-1, columns))
        largest = groups.abs().amax(-1, keepdim=True)
        step = largest / 127
        codes = torch.where(step > 0, groups / step, 0.0).round()
        return (codes * (step.half().float() if half else step)).flatten(-2)

    types = gguf.GGMLQuantizationType
    dense = {types.F32: lambda x: x, types.F16: lambda x: x.half().float(), types.BF16: lambda x: x.bfloat16().float()}
    wide = {types.Q2_K, types.Q3_K, types.Q4_K, types.Q5_K, types.Q6_K, types.IQ4_XS}
    modules = dict(model.named_modules())
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        # A tied embedding is the head as well.
        name = name_of_gguf(tensor.name).removesuffix(".weight")
        module = modules["lm_head" if name == "model.embed_tokens" and model.config.tie_word_embeddings else name]
        if isinstance(module, torch.nn.Linear):
            packed = partial(eights, columns=256, half=False) if tensor.tensor_type in wide else partial(eights, columns=32, half=True)
            change = dense.get(tensor.tensor_type, packed)
            module.register_forward_pre_hook(lambda _, inputs, change=change: (change(inputs[0]),))
    return model


def llama_cpp(file: Path, windows: np.ndarray, writes: bool) -> tuple[np.ndarray, str, list[int]]:
    """Logits [windows, context, vocabulary] with keys and values in f32, what it writes after a prompt, and its tokens of PROBE."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(file), n_ctx=windows.shape[1], n_batch=windows.shape[1], logits_all=True, verbose=False, n_threads=2,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False,
    )  # fmt: skip
    found = []
    for window in windows:
        model.reset()
        model.eval(window.tolist())
        found.append(np.array(model.scores[: len(window)], dtype=np.float32))
    model.reset()
    sentence = model("The", max_tokens=16, temperature=0.0)["choices"][0]["text"] if writes else ""
    ids = model.tokenize(PROBE.encode(), add_bos=False, special=True)
    model.close()
    return np.stack(found), sentence, ids


def with_table_of_gelu(model):
    """The same with the activation as ggml has it: from and to half precision."""

    class Table(torch.nn.Module):
        def forward(self, features):
            return torch.nn.functional.gelu(features.half().float(), approximate="tanh").half().float()

    for layer in model.model.layers:
        layer.mlp.act_fn = Table()
    return model


def peft(model, adapter: Path):
    """An adapter on top of a model that is loaded."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter)).eval()


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """f32 values after a stay in another type."""
    return torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()


def runtime_weight(model, name: str) -> np.ndarray:
    """The weights [out_features, in_features] that the runtime itself unpacked for one linear, in f32."""
    module = model.get_submodule(name)
    with torch.no_grad():
        weight = module.dequantize_weight().T if hasattr(module, "dequantize_weight") else module.weight
    return weight.detach().float().numpy()


def forget() -> None:
    """Frees what the last model held."""
    gc.collect()

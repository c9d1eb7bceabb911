"""The runtimes that quantc's outputs are for, as a user starts them, on the CPU.

Which of them computes in what was measured on GPTQModel 7.7.0 and transformers 5.23.0:

* GPTQModel `gptq_torch` refuses f32 at load. Loaded in the checkpoint's own 16-bit type and turned into f32 afterwards, it
  multiplies in f32 with the weights it unpacked itself; that loses nothing as long as the scales are exact in that type.
* GPTQModel `gptq_torch_fused` takes f32 models, but rounds the input of every linear to bf16, and its CPU operator has no zero
  points: asymmetric checkpoints come out as noise. Symmetric 4 bit only.
* transformers with `dtype=torch.float32` goes through GPTQModel's kernels, which then unpack into f16 and multiply in f32: exact
  for codes of up to 4 bits with scales of bf16 precision, one rounding of the weights otherwise.
* transformers decompresses compressed-tensors into the model's type at the first forward. Asymmetric checkpoints load only
  with `dequantize=True`, which rounds the weights to the scales' type.
"""

import gc
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


def decoded(source: Path, tensors: dict, linears: dict[str, decoder.Linear]):
    """The model with every tensor of the output put in, quantized ones by the independent decoder: transformers' own forward pass
    in f32."""
    model = original(source)
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name in parameters:
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

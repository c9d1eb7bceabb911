"""Checkpoints that other programs quantized, for quantc to read: made by those programs where they run here, by their documents where not.

Each maker writes a checkpoint of `source` into `out` and returns the model that the program itself makes of it, in f32.
"""

import contextlib
import ctypes
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import runtimes


@dataclass
class Peer:
    """One checkpoint to read."""

    name: str
    make: Callable
    """make(quantc, source, out) -> model."""
    model: str = "demo"
    bits: float | None = None
    """Mean bits of a code, as the report has to say; none where codes of several widths are mixed."""
    converts_to: str | None = None
    """A format that holds the same values."""
    exact: bool = True
    """Whether the program's own weights are in f32; otherwise it rounded them as it unpacked them."""
    rounds_inputs: bool = False
    """Whether the program rounds inputs before it multiplies."""


def copy_tokenizer(source: Path, out: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, out / file)


def llama_cpp(file_type: int):
    """llama.cpp's own quantizer with its own choice of types for embedding and head."""

    def make(quantc, source: Path, out: Path):
        import llama_cpp as program

        wide = out.with_name(out.name + "-f16")
        quantc("quantize", source, "-o", wide, "--to", "gguf:f16", "--no-evaluate")
        out.mkdir()
        parameters = program.llama_model_quantize_default_params()
        parameters.ftype = file_type
        target = out / "model.gguf"
        done = program.llama_model_quantize(
            str(wide / "model-f16.gguf").encode(), str(target).encode(), ctypes.byref(parameters)
        )
        if done != 0:
            raise RuntimeError(f"llama_model_quantize ends with {done}")
        copy_tokenizer(source, out)
        return runtimes.gguf_model(source, target)

    return make


def compressed_tensors(format: str, weights: dict, inputs: dict | None = None):
    """The compressed-tensors library, with scales from the largest weights as llm-compressor's minmax observer has them."""

    def make(quantc, source: Path, out: Path):
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

        model = runtimes.original(source)
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        config = QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"], format=format, quantization_status="frozen")
        apply_quantization_config(model, config)
        for module in model.modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None or scheme.weights is None:
                continue
            arguments, weight = scheme.weights, module.weight.data
            rows, columns = weight.shape
            shared = None
            if "global_scale" in " ".join(name for name, _ in module.named_parameters()):
                shared = generate_gparam(weight.min(), weight.max())
                module.weight_global_scale.data.copy_(shared)
            if arguments.strategy in ("group", "tensor_group"):
                parts = weight.reshape(rows, -1, arguments.group_size)
                least, most = parts.amin(-1), parts.amax(-1)
            elif arguments.strategy == "block":
                tall, wide = arguments.block_structure
                padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % tall))
                parts = padded.reshape(padded.shape[0] // tall, tall, -1, wide)
                least, most = parts.amin((1, 3)), parts.amax((1, 3))
            elif arguments.strategy == "channel":
                least, most = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
            else:
                least, most = weight.min().reshape(1), weight.max().reshape(1)
            scale, zero = calculate_qparams(least, most, arguments, **({"global_scale": shared} if shared is not None else {}))
            module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))
            if hasattr(module, "input_scale"):
                module.input_scale.data.fill_(0.05)
            if hasattr(module, "input_global_scale"):
                module.input_global_scale.data.fill_(100.0)
        compressor = ModelCompressor.from_pretrained_model(model, quantization_format=format)
        compressor.compress_model(model)
        model.save_pretrained(out)
        compressor.update_config(out)
        copy_tokenizer(source, out)
        # What it dequantizes at load it multiplies with inputs as they are.
        return runtimes.transformers(out, "float32", dequantize=inputs is None)

    return make


def gptqmodel(**settings):
    """GPTQModel's own quantizer."""

    def make(quantc, source: Path, out: Path):
        from gptqmodel import GPTQModel, QuantizeConfig

        text = (source.parent / "calibration.txt").read_text("utf-8")
        rows = [text[place : place + 600] for place in range(0, 9600, 600)]
        # It writes logs where it is.
        with contextlib.chdir(out.parent):
            loaded = GPTQModel.load(str(source), QuantizeConfig(**settings), device="cpu")
            loaded.quantize(rows, batch_size=1)
            loaded.save(str(out))
        del loaded
        runtimes.forget()
        return runtimes.gptqmodel(out, "gptq_torch", "float16", to_f32=True)

    return make


def bitsandbytes(**settings):
    """transformers with bitsandbytes, as a user saves a model that was quantized at load."""

    def make(quantc, source: Path, out: Path):
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        config = BitsAndBytesConfig(**settings)
        model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, device_map="cpu", dtype=torch.float16)
        model.save_pretrained(out)
        copy_tokenizer(source, out)
        return runtimes.transformers(out, "float32").dequantize().float()

    return make


def mlx(**settings):
    """mlx-lm's own converter, which packs the embedding as well."""

    def make(quantc, source: Path, out: Path):
        import mlx.core as mx
        from mlx_lm import convert

        mx.set_default_device(mx.cpu)
        convert(str(source), str(out), quantize=True, **settings)
        packed, model = mx.load(str(out / "model.safetensors")), runtimes.original(source)
        kept = json.loads((out / "config.json").read_text())["quantization"]
        for name, parameter in model.named_parameters():
            module = name.removesuffix(".weight")
            if f"{module}.scales" in packed:
                scales = packed[f"{module}.scales"]
                mode = kept.get("mode", "affine")
                biases = packed.get(f"{module}.biases")
                if biases is not None:
                    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
                dense = mx.dequantize(packed[name], scales, biases, kept["group_size"], kept["bits"], mode, dtype=mx.float32)
                parameter.data.copy_(torch.from_numpy(np.array(dense.astype(mx.float32))))
            elif name in packed:
                parameter.data.copy_(torch.from_numpy(np.array(packed[name].astype(mx.float32))))
        return model

    return make


def fp8(tile: tuple[int, int] | None):
    """As DeepSeek publishes its models: floats of eight bits, a scale for each tile; or one scale for all, as the `fp8` method of vLLM."""

    def make(quantc, source: Path, out: Path):
        out.mkdir()
        tensors, model = load_file(source / "model.safetensors"), runtimes.original(source)
        parameters = dict(model.named_parameters())
        for name in [name for name in tensors if ".layers." in name and name.endswith("_proj.weight")]:
            weight = tensors[name].float()
            rows, columns = weight.shape
            tall, wide = tile or (rows, columns)
            padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % tall))
            parts = padded.reshape(padded.shape[0] // tall, tall, -1, wide)
            scale = parts.abs().amax((1, 3)) / 448.0
            spread = scale.repeat_interleave(tall, 0).repeat_interleave(wide, 1)[:rows, :columns]
            tensors[name] = (weight / spread).to(torch.float8_e4m3fn)
            parameters[name].data.copy_(tensors[name].float() * spread)
            tensors[f"{name}_scale_inv" if tile else f"{name}_scale"] = scale if tile else scale.reshape(())
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        config = json.loads((source / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
        if tile:
            config["quantization_config"]["weight_block_size"] = list(tile)
        (out / "config.json").write_text(json.dumps(config))
        copy_tokenizer(source, out)
        return model

    return make


GROUPS = dict(symmetric=True, strategy="group", group_size=128)
TOKENS = dict(num_bits=8, symmetric=True, strategy="token", dynamic=True)

PEERS = [
    Peer("llama-cpp-q4_k_m", llama_cpp(15)),
    Peer("llama-cpp-q2_k", llama_cpp(10)),
    Peer("llama-cpp-q5_0-qwen2", llama_cpp(8), model="qwen2", bits=5),
    Peer("llama-cpp-q8_0", llama_cpp(7), bits=8),
    Peer("compressed-tensors-w4a16", compressed_tensors("pack-quantized", dict(num_bits=4, type="int", **GROUPS)), bits=4),
    Peer("compressed-tensors-w4a16-asymmetric", compressed_tensors("pack-quantized", dict(num_bits=4, type="int", **GROUPS) | {"symmetric": False}), bits=4),
    Peer("compressed-tensors-fp8-tiles", compressed_tensors("float-quantized", dict(num_bits=8, type="float", symmetric=True, strategy="block", block_structure=[128, 128])), bits=8),
    Peer("compressed-tensors-fp8-static", compressed_tensors("float-quantized", dict(num_bits=8, type="float", symmetric=True, strategy="tensor"), dict(num_bits=8, type="float", symmetric=True, strategy="tensor", dynamic=False)), bits=8, rounds_inputs=True),
    Peer("compressed-tensors-w8a8-int8", compressed_tensors("int-quantized", dict(num_bits=8, type="int", symmetric=True, strategy="channel"), dict(type="int", **TOKENS)), bits=8, rounds_inputs=True),
    Peer("compressed-tensors-nvfp4", compressed_tensors("nvfp4-pack-quantized", dict(num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16)), bits=4, exact=False),
    Peer("fp8-tiles", fp8((128, 128)), bits=8),
    Peer("fp8-tiles-qwen3", fp8((128, 128)), model="qwen3", bits=8),
    Peer("fp8-one-scale", fp8(None), bits=8),
    Peer("transformers-bnb-nf4-double", bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), bits=4),
    Peer("transformers-bnb-fp4", bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"), bits=4, converts_to="fp4"),
    Peer("transformers-bnb-int8", bitsandbytes(load_in_8bit=True), bits=8),
    Peer("mlx-lm-4", mlx(q_bits=4, q_group_size=64), bits=4),
    Peer("mlx-lm-6-qwen2", mlx(q_bits=6, q_group_size=32), model="qwen2", bits=6),
    Peer("mlx-lm-mxfp4", mlx(q_mode="mxfp4", q_group_size=32, q_bits=4), bits=4),
    Peer("mlx-lm-nvfp4", mlx(q_mode="nvfp4", q_group_size=16, q_bits=4), bits=4),
    Peer("mlx-lm-mxfp8", mlx(q_mode="mxfp8", q_group_size=32, q_bits=8), bits=8),
    Peer("gptqmodel-act-order", gptqmodel(bits=4, group_size=128, desc_act=True), bits=4),
    Peer("gptqmodel-3-asymmetric", gptqmodel(bits=3, group_size=128, desc_act=False, sym=False), bits=3),
]

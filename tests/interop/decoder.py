"""An independent decoder of the checkpoints quantc writes: numpy and a reader of protocol buffers, written from the formats' documents and not from
quantc's sources, so that a misunderstanding shared by quantc's writer and its own reader does not pass unseen.

GPTQ (v1 and v2), AWQ gemm, MLX affine, compressed-tensors pack-quantized and ONNX MatMulNBits, 2 to 8 bits. Codes and zero points are returned
unsigned, as `weight[n, k] = scale[n, group(k)] * (code[n, k] - zero_point[n, group(k)])`, for all of them; for tables and floats
`weight[n, k] = scale[n, group(k)] * table[code[n, k]]`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUMPY_OF = {
    "F32": np.float32, "F16": np.float16, "I32": np.int32, "U32": np.uint32, "I64": np.int64, "BF16": np.uint16, "U8": np.uint8,
    "I8": np.int8, "F8_E4M3": np.uint8,
}  # fmt: skip


@dataclass
class Linear:
    """One quantized linear in the common form; arrays are [out_features, in_features] or [out_features, groups]."""

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    group_of: np.ndarray  # [in_features]
    bits: int
    minimums: np.ndarray | None = None  # [out_features, groups], the value of code 0, in place of zero points
    table: np.ndarray | None = None  # [codes], in place of zero points

    def step(self) -> np.ndarray:
        """The (signed) scale of every weight."""
        return self.scales[:, self.group_of]

    def dense(self) -> np.ndarray:
        """The weights that the file stands for, in f32: one rounding, as in a runtime that computes in f32."""
        if self.minimums is not None:
            return self.codes.astype(np.float32) * self.step() + self.minimums[:, self.group_of]
        if self.table is not None:
            return self.table[self.codes] * self.step()
        return (self.codes - self.zero_points[:, self.group_of]).astype(np.float32) * self.step()


def read_tensors(file: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Every tensor of a safetensors file as (dtype name, array); bf16 stays in its 16 bits."""
    raw = Path(file).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(raw[begin:end], NUMPY_OF[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = (entry["dtype"], array)
    return tensors


def read_safetensors(directory: Path) -> dict[str, tuple[str, np.ndarray]]:
    """The same of every shard of a checkpoint."""
    tensors = {}
    for file in sorted(Path(directory).glob("*.safetensors")):
        for name, tensor in read_tensors(file).items():
            if name in tensors:
                raise ValueError(f"`{name}` is in two shards")
            tensors[name] = tensor
    return tensors


def read_onnx(file: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Every tensor that a graph keeps in a file of its own; the small constants inside the graph are no weights."""
    import onnx

    names = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16", "UINT8": "U8"}
    tensors = {}
    for tensor in onnx.load(file, load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            dtype = names[onnx.TensorProto.DataType.Name(tensor.data_type)]
            count = int(place["length"]) // np.dtype(NUMPY_OF[dtype]).itemsize
            array = np.fromfile(file.parent / place["location"], NUMPY_OF[dtype], count, offset=int(place["offset"]))
            tensors[tensor.name] = (dtype, array.reshape(tuple(tensor.dims)))
    return tensors


def read_checkpoint(directory: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Every tensor of an output, of whichever container."""
    graph = Path(directory) / "model.onnx"
    return read_onnx(graph) if graph.exists() else read_safetensors(directory)


def as_f32(tensor: tuple[str, np.ndarray]) -> np.ndarray:
    """A float tensor in f32."""
    dtype, array = tensor
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` codes of every row's stream of bits: least significant bit first, contiguous across words."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    fields = stream[:, : count * bits].reshape(words.shape[0], count, bits).astype(np.int64)
    return (fields << np.arange(bits)).sum(axis=2)


def gptq(tensors: dict, config: dict, module: str) -> Linear:
    """One GPTQ linear. `dynamic` overrides: exclusions are looked at first, then the first match wins."""
    bits = config["bits"]
    rules = sorted((config.get("dynamic") or {}).items(), key=lambda rule: not rule[0].startswith("-:"))
    for pattern, override in rules:
        if re.match(pattern.removeprefix("+:").removeprefix("-:"), module):
            if pattern.startswith("-:"):
                raise ValueError(f"`{module}` is excluded by `{pattern}` but packed")
            bits = override.get("bits", bits)
            break
    scales = as_f32(tensors[f"{module}.scales"]).T
    qweight, qzeros = (tensors[f"{module}.{part}"][1] for part in ("qweight", "qzeros"))
    group_of = tensors[f"{module}.g_idx"][1]
    zero_points = unpack(qzeros, bits, scales.shape[0]).T
    if config["checkpoint_format"] == "gptq":  # v1 stores the zero point less one
        zero_points = (zero_points + 1) % (1 << bits)
    return Linear(unpack(qweight.T, bits, len(group_of)), scales, zero_points, group_of, bits)


def awq(tensors: dict, config: dict, module: str) -> Linear:
    """One AWQ gemm linear: eight outputs a word, nibble i of output ORDER[i]."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def separate(words: np.ndarray) -> np.ndarray:
        fields = (words.view(np.uint32)[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
        values = np.empty(fields.shape, np.int64)
        values[:, :, order] = fields
        return values.reshape(words.shape[0], -1).T

    scales = as_f32(tensors[f"{module}.scales"]).T
    codes, zero_points = (separate(tensors[f"{module}.{part}"][1]) for part in ("qweight", "qzeros"))
    group_of = np.arange(codes.shape[1]) // (codes.shape[1] // scales.shape[1])
    return Linear(codes, scales, zero_points, group_of, config["bits"])


def mlx(tensors: dict, config: dict, module: str) -> Linear:
    """One MLX linear, `weight = scale * code + bias`, or in modes with floats `scale * number`."""
    arguments = config.get(module, config)
    bits, mode = arguments["bits"], arguments["mode"]
    if mode != "affine":
        packed, stored_scales = tensors[f"{module}.weight"][1].view(np.uint8), tensors[f"{module}.scales"][1]
        codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=2).reshape(packed.shape[0], -1)
        exponents = (2.0 ** (stored_scales.astype(np.float64) - 127)).astype(np.float32)
        scales = floats(8, 4)[stored_scales] if mode == "nvfp4" else exponents
        group_of = np.arange(codes.shape[1]) // arguments["group_size"]
        table = floats(8, 4) if bits == 8 else floats(4, 2)
        return Linear(codes.astype(np.int64), scales, np.full(scales.shape, 1 << (bits - 1)), group_of, bits, table=table)
    scales, biases = (as_f32(tensors[f"{module}.{part}"]) for part in ("scales", "biases"))
    words = tensors[f"{module}.weight"][1]
    in_features = words.shape[1] * 32 // bits
    group_of = np.arange(in_features) // (in_features // scales.shape[1])
    zero_points = -biases.astype(np.float64) / scales
    return Linear(unpack(words, bits, in_features), scales, zero_points, group_of, bits, biases)


def onnx_blocks(tensors: dict, config: dict, module: str) -> Linear:
    """The inputs of one MatMulNBits: every row is a stream of bytes, and so are the zero points of a row."""
    blobs, scales = tensors[f"{module}.weight_codes"][1], as_f32(tensors[f"{module}.weight_scales"])
    bits, size = (config["linears"][module][key] for key in ("bits", "group_size"))
    out_features, blocks, _ = blobs.shape
    zero_points = np.full(scales.shape, 1 << (bits - 1))
    if f"{module}.weight_zero_points" in tensors:
        zero_points = unpack(tensors[f"{module}.weight_zero_points"][1], bits, blocks)
    codes = unpack(blobs.reshape(out_features, -1), bits, blocks * size)
    return Linear(codes, scales, zero_points, np.arange(blocks * size) // size, bits)


def bitsandbytes(tensors: dict, config: dict, module: str) -> Linear:
    """One linear on a table of 16 values, which is stored with it; of two codes in a byte the first is the high one."""
    kind = config["bnb_4bit_quant_type"]
    state = json.loads(tensors[f"{module}.weight.quant_state.bitsandbytes__{kind}"][1].tobytes())
    packed, table = tensors[f"{module}.weight"][1].reshape(-1), tensors[f"{module}.weight.quant_map"][1]
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(state["shape"]).astype(np.int64)
    scales = tensors[f"{module}.weight.absmax"][1]
    if config["bnb_4bit_use_double_quant"]:
        coarse = np.repeat(tensors[f"{module}.weight.nested_absmax"][1], state["nested_blocksize"])[: len(scales)]
        scales = tensors[f"{module}.weight.nested_quant_map"][1][scales] * coarse + np.float32(state["nested_offset"])
    scales = scales.reshape(state["shape"][0], -1)
    group_of = np.arange(codes.shape[1]) // state["blocksize"]
    return Linear(codes, scales, np.full(scales.shape, 8), group_of, 4, table=table)


def floats(bits: int, exponent_bits: int) -> np.ndarray:
    """What each pattern of a float with a sign and no infinities stands for."""
    pattern, mantissa_bits = np.arange(1 << bits), bits - 1 - exponent_bits
    exponent, mantissa = pattern >> mantissa_bits & (1 << exponent_bits) - 1, pattern & (1 << mantissa_bits) - 1
    bias, fraction = (1 << (exponent_bits - 1)) - 1, mantissa / (1 << mantissa_bits)
    magnitude = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    return np.where(pattern >> (bits - 1), -magnitude, magnitude).astype(np.float32)


def compressed_numbers(tensors: dict, form: str, module: str) -> Linear:
    """One linear whose codes are numbers: integers or floats a byte, or pairs of four-bit floats with exponents for scales."""
    stored_scales = tensors[f"{module}.weight_scale"]
    bits, table = 8, None
    if form in ("mxfp4-pack-quantized", "nvfp4-pack-quantized"):
        packed = tensors[f"{module}.weight_packed"][1]
        codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(packed.shape[0], -1).astype(np.int64)
        scales = (2.0 ** (stored_scales[1].astype(np.float64) - 127)).astype(np.float32)
        if form == "nvfp4-pack-quantized":
            scales = floats(8, 4)[stored_scales[1]] / tensors[f"{module}.weight_global_scale"][1][0]
        bits, table = 4, floats(4, 2)
    else:
        codes, scales = tensors[f"{module}.weight"][1].astype(np.int64), as_f32(stored_scales)
        codes, table = (codes + 128, None) if form == "int-quantized" else (codes, floats(8, 4))
    group_of = np.arange(codes.shape[1]) // (codes.shape[1] // scales.shape[1])
    return Linear(codes, scales, np.full(scales.shape, 1 << (bits - 1)), group_of, bits, table=table)


def compressed_tensors(tensors: dict, config: dict, module: str) -> Linear:
    """One compressed-tensors linear. Of the config groups, an exact name counts before a pattern before a class."""

    if config["format"] != "pack-quantized":
        return compressed_numbers(tensors, config["format"], module)

    def rank(target: str) -> int:
        if target == module:
            return 3
        return 2 if target.startswith("re:") and re.match(target[3:], module) else int(target == "Linear")

    group = max(config["config_groups"].values(), key=lambda group: max(map(rank, group["targets"])))
    bits = group["weights"]["num_bits"]
    out_features, in_features = tensors[f"{module}.weight_shape"][1].tolist()
    scales = as_f32(tensors[f"{module}.weight_scale"])
    group_of = np.arange(in_features) // (in_features // scales.shape[1])
    zero_points = np.full(scales.shape, 1 << (bits - 1))
    if not group["weights"]["symmetric"]:
        zero_points = unpack(tensors[f"{module}.weight_zero_point"][1].T, bits, out_features).T
    codes = unpack(tensors[f"{module}.weight_packed"][1], bits, in_features)
    return Linear(codes, scales, zero_points, group_of, bits)


def decode(directory: Path) -> dict[str, Linear]:
    """Every quantized linear of a checkpoint, by module name."""
    whole = json.loads((Path(directory) / "config.json").read_text())
    config = whole["quantization_config"]
    reader, suffix = {
        "gptq": (gptq, ".qweight"),
        "awq": (awq, ".qweight"),
        "mlx": (mlx, ".scales"),
        "compressed-tensors": (compressed_tensors, ".weight_scale"),
        "onnx": (onnx_blocks, ".weight_codes"),
        "bitsandbytes": (bitsandbytes, ".weight.absmax"),
    }["mlx" if "quantization" in whole else config["quant_method"]]
    tensors = read_checkpoint(directory)
    modules = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    return {module: reader(tensors, config, module) for module in modules}

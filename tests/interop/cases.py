"""What is quantized, and which runtimes must load it."""

from dataclasses import dataclass, field

# Largest relative error |W - decoded| / |W| of a linear (Frobenius). A wrong order of codes or a wrong zero point gives 1 or more;
# feedback of errors on little text gives up to 0.76, 0.47, 0.25 and 0.015.
WEIGHT_ERROR = {2: 0.9, 3: 0.6, 4: 0.35, 5: 0.2, 6: 0.1, 8: 0.03}
# Floats of three bits behind the first one are this far apart.
FLOAT_ERROR = 0.0625


@dataclass
class Case:
    """One checkpoint to write and load."""

    name: str
    to: str
    bits: int = 4
    """0: the format says it."""
    symmetric: bool | None = True
    """None: the format says it."""
    recipe: str = "gptq"
    model: str = "demo"
    options: list[str] = field(default_factory=list)
    excluded: str | None = None
    """Linears that must have stayed as they were."""
    transformers: bool = True
    """Whether plain transformers on a CPU takes this checkpoint."""
    fused: bool = True
    """Whether PyTorch's 4-bit CPU operator takes its group size: 32, 64, 128 or 256."""

    outer: dict[str, int] = field(default_factory=dict)
    """Bits of the embedding and the head, by module, where they are packed as well."""

    target_bits: str | None = None
    """A mean that widths of 2 bits and more are chosen for, instead of one."""
    adapter: bool = False
    """Whether an adapter is written beside, for PEFT."""

    def arguments(self) -> list[str]:
        """Everything after `quantc quantize MODEL -o OUT`."""
        symmetry = {True: ["--symmetric"], False: ["--asymmetric"], None: []}[self.symmetric]
        exclude = ["--exclude", self.excluded] if self.excluded else []
        exclude += ["--adapter-rank", "16"] if self.adapter else []
        width = ["--target-bits", self.target_bits] if self.target_bits else ["--bits", str(self.bits)]
        width = width if self.bits else []
        return ["--to", self.to, *width, *symmetry, "--recipe", self.recipe, *exclude, *self.options]


CT, GPTQ, GPTQ_V2, AWQ, MLX = "compressed-tensors", "gptq", "gptq-v2", "awq", "mlx"
ONNX, NF4, FP4 = "onnx", "nf4", "fp4"

# compressed-tensors first: GPTQModel changes transformers as it is imported.
CASES = [
    Case("ct-4", CT, options=["--max-shard-size", "3MB"]),
    Case("ct-3", CT, bits=3),
    Case("ct-2", CT, bits=2),
    Case("ct-8", CT, bits=8),
    Case("ct-4-asymmetric", CT, symmetric=False),
    Case("ct-4-rtn", CT, recipe="rtn"),
    Case("ct-4-channel", CT, options=["--group-size", "channel"]),
    Case("ct-4-exclude", CT, excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"),
    Case("ct-4-qwen2", CT, model="qwen2"),
    Case("ct-4-qwen3", CT, model="qwen3"),
    Case("ct-4-mistral", CT, model="mistral"),
    Case("ct-w8a8-int8", CT + ":w8a8-int8", bits=8),
    Case("ct-w8a8-int8-exclude", CT + ":w8a8-int8", bits=8, excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"),
    Case("ct-w8a8-fp8", CT + ":w8a8-fp8", bits=8),
    Case("ct-fp8", CT + ":fp8", bits=8),
    Case("ct-fp8-qwen2", CT + ":fp8", bits=8, model="qwen2"),
    Case("ct-mxfp4", CT + ":mxfp4"),
    Case("ct-mxfp4-qwen3", CT + ":mxfp4", model="qwen3"),
    Case("ct-int8", CT + ":int8", bits=8),
    Case("ct-nvfp4", CT + ":nvfp4"),
    Case("ct-nvfp4-exclude", CT + ":nvfp4", excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"),
    Case("ct-nvfp4-qwen3", CT + ":nvfp4", model="qwen3"),
    Case("gptq-4", GPTQ, options=["--max-shard-size", "3MB"]),
    Case("gptq-3", GPTQ, bits=3),
    Case("gptq-2", GPTQ, bits=2),
    Case("gptq-8", GPTQ, bits=8),
    Case("gptq-4-asymmetric", GPTQ, symmetric=False),
    Case("gptq-3-asymmetric", GPTQ, bits=3, symmetric=False),
    Case("gptq-4-rtn", GPTQ, recipe="rtn"),
    # At 4 bits transformers on a CPU picks kernels that call PyTorch's operator, without asking it.
    Case("gptq-4-channel", GPTQ, options=["--group-size", "channel"], transformers=False, fused=False),
    Case("gptq-3-channel", GPTQ, bits=3, options=["--group-size", "channel"]),
    # optimum, through which transformers loads GPTQ, does not look at `dynamic`; it knows kinds of linears.
    Case("gptq-4-exclude-kind", GPTQ, excluded=r"\.down_proj$"),
    Case("gptq-4-exclude", GPTQ, excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn", transformers=False),
    Case("ct-mixed", CT, bits=2, target_bits="4.9"),
    Case("gptq-mixed", GPTQ, bits=2, target_bits="4.9", transformers=False),
    Case("gptq-3-adapter", GPTQ, bits=3, adapter=True),
    # Some linears only, so that module paths have to be matched one by one.
    Case("ct-4-adapter", CT, excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn", adapter=True),
    # optimum packs what is in layers, and leaves the head's weight out of the model.
    Case("gptq-4-head-qwen2", GPTQ, model="qwen2", options=["--head-bits", "8"], outer={"lm_head": 8}, transformers=False, fused=False),
    Case("ct-4-head-qwen2", CT, model="qwen2", options=["--head-bits", "8"], outer={"lm_head": 8}),
    Case("ct-4-head-untied", CT, options=["--untie", "--head-bits", "4"], outer={"lm_head": 4}),
    Case("gptq-v2-4", GPTQ_V2),
    Case("gptq-v2-3-asymmetric", GPTQ_V2, bits=3, symmetric=False),
    Case("awq-4", AWQ),
    Case("awq-4-asymmetric", AWQ, symmetric=False, options=["--max-shard-size", "3MB"]),
    Case("awq-4-exclude", AWQ, excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"),
    Case("awq-4-qwen2", AWQ, symmetric=False, model="qwen2"),
    Case("mlx-4", MLX, options=["--group-size", "64", "--max-shard-size", "3MB"]),
    Case("mlx-2", MLX, bits=2, options=["--group-size", "32"]),
    Case("mlx-3", MLX, bits=3),
    Case("mlx-4-asymmetric", MLX, symmetric=False),
    # Stretched frequencies, in the spelling of transformers 5 that mlx-lm does not read.
    Case("mlx-4-llama3", MLX, model="llama3"),
    Case("mlx-3-asymmetric-qwen2", MLX, bits=3, symmetric=False, model="qwen2"),
    Case("mlx-5", MLX, bits=5),
    Case("mlx-6", MLX, bits=6),
    Case("mlx-8", MLX, bits=8),
    Case("mlx-4-exclude", MLX, excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"),
    Case("mlx-mixed", MLX, bits=2, target_bits="4.9"),
    Case("mlx-4-embedding", MLX, options=["--group-size", "64", "--embedding-bits", "6"], outer={"model.embed_tokens": 6}),
    Case("mlx-4-outer-qwen2", MLX, model="qwen2", options=["--embedding-bits", "4", "--head-bits", "8"], outer={"model.embed_tokens": 4, "lm_head": 8}),
    # mlx-lm knows no sliding window on all layers, which leaves Mistral out.
    Case("mlx-4-qwen3", MLX, model="qwen3"),
    Case("mlx-mxfp4", MLX + ":mxfp4"),
    Case("mlx-mxfp4-qwen3", MLX + ":mxfp4", model="qwen3"),
    Case("mlx-nvfp4", MLX + ":nvfp4"),
    Case("mlx-nvfp4-exclude", MLX + ":nvfp4", excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"),
    Case("mlx-mxfp8-qwen2", MLX + ":mxfp8", bits=8, model="qwen2"),
    Case("onnx-4", ONNX),
    Case("onnx-4-asymmetric", ONNX, symmetric=False),
    Case("onnx-2", ONNX, bits=2, options=["--group-size", "32"]),
    Case("onnx-2-asymmetric", ONNX, bits=2, symmetric=False, options=["--group-size", "16"]),
    Case("onnx-8", ONNX, bits=8),
    Case("onnx-8-asymmetric", ONNX, bits=8, symmetric=False),
    Case("onnx-4-rtn", ONNX, recipe="rtn"),
    Case("onnx-mixed", ONNX, bits=2, target_bits="4.9"),
    Case("onnx-4-exclude", ONNX, excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"),
    Case("onnx-4-qwen2", ONNX, model="qwen2"),
    Case("onnx-4-asymmetric-qwen3", ONNX, symmetric=False, model="qwen3"),
    Case("onnx-4-llama3", ONNX, model="llama3"),
    Case("onnx-4-mistral", ONNX, model="mistral"),
    Case("nf4", NF4, options=["--group-size", "64", "--max-shard-size", "3MB"]),
    Case("nf4-exclude", NF4, excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"),
    Case("nf4-qwen2", NF4, model="qwen2"),
    Case("nf4-qwen3", NF4, model="qwen3"),
    Case("nf4-double", NF4 + ":double", options=["--group-size", "64"]),
    Case("nf4-double-qwen3", NF4 + ":double", model="qwen3"),
    Case("fp4-double-qwen2", FP4 + ":double", model="qwen2"),
    Case("fp4", FP4, options=["--group-size", "64"]),
    Case("fp4-mistral", FP4, model="mistral"),
    Case("gguf-f32", "gguf:f32", bits=0),
    Case("gguf-f16", "gguf:f16", bits=0),
    Case("gguf-bf16", "gguf:bf16", bits=0),
    Case("gguf-q8_0", "gguf:q8_0", bits=0),
    Case("gguf-q5_0", "gguf:q5_0", bits=0),
    Case("gguf-q4_0", "gguf:q4_0", bits=0),
    Case("gguf-q4_0-exclude", "gguf:q4_0", bits=0, excluded=r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"),
    Case("gguf-q4_1", "gguf:q4_1", bits=0, symmetric=None),
    Case("gguf-q5_1", "gguf:q5_1", bits=0, symmetric=None),
    Case("gguf-iq4_nl", "gguf:iq4_nl", bits=0),
    Case("gguf-mxfp4", "gguf:mxfp4", bits=0),
    Case("gguf-iq4_xs", "gguf:iq4_xs", bits=0),
    Case("gguf-q2_k", "gguf:q2_k", bits=0, symmetric=None),
    Case("gguf-q2_k_s", "gguf:q2_k_s", bits=0, symmetric=None),
    Case("gguf-q3_k_l", "gguf:q3_k_l", bits=0, symmetric=None),
    Case("gguf-q3_k_m", "gguf:q3_k_m", bits=0, symmetric=None),
    Case("gguf-q4_k_m", "gguf:q4_k_m", bits=0, symmetric=None),
    Case("gguf-q5_k_m", "gguf:q5_k_m", bits=0, symmetric=None),
    Case("gguf-q5_k_s", "gguf:q5_k_s", bits=0, symmetric=None),
    Case("gguf-q6_k", "gguf:q6_k", bits=0),
    Case("gguf-q4_k_m-embedding", "gguf:q4_k_m", bits=0, symmetric=None, options=["--embedding-bits", "6"]),
    Case("gguf-q4_k_m-outer-qwen2", "gguf:q4_k_m", bits=0, symmetric=None, model="qwen2", options=["--embedding-bits", "4", "--head-bits", "6"]),
    Case("gguf-q8_0-outer-qwen2", "gguf:q8_0", bits=0, model="qwen2", options=["--embedding-bits", "8", "--head-bits", "8"]),
    Case("gguf-q4_0-outer-qwen3", "gguf:q4_0", bits=0, model="qwen3", options=["--embedding-bits", "5"]),
    # 192 is no multiple of 256: other types take their place.
    Case("gguf-q4_k_m-qwen3", "gguf:q4_k_m", bits=0, symmetric=None, model="qwen3"),
    Case("gguf-f32-qwen2", "gguf:f32", bits=0, model="qwen2"),
    Case("gguf-q8_0-qwen2", "gguf:q8_0", bits=0, model="qwen2"),
    Case("gguf-f32-qwen3", "gguf:f32", bits=0, model="qwen3"),
    Case("gguf-q8_0-qwen3", "gguf:q8_0", bits=0, model="qwen3"),
    Case("gguf-f32-llama3", "gguf:f32", bits=0, model="llama3"),
    Case("gptq-4-qwen2", GPTQ, model="qwen2"),
    Case("gptq-4-qwen3", GPTQ, model="qwen3"),
    Case("gptq-4-mistral", GPTQ, model="mistral"),
]

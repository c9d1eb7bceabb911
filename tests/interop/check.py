"""Writes checkpoints with quantc, loads each in its own runtimes, and compares what both compute.

One line for each check, `ok NAME measured limit`, then `N passed, N failed`. Started by `run`, which brings the environment.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    GPTQMODEL_CPU_WORKERS="2",
    TORCH_COMPILE_DISABLE="1",
)

import numpy as np  # noqa: E402
from packaging.requirements import Requirement  # noqa: E402

import browser  # noqa: E402
import decoder  # noqa: E402
import hub  # noqa: E402
import models  # noqa: E402
import peers  # noqa: E402
import runtimes  # noqa: E402
import vllm_cpu  # noqa: E402
import vocabularies  # noqa: E402
from cases import AWQ, CASES, CT, FLOAT_ERROR, FP4, GPTQ, GPTQ_V2, MLX, NF4, ONNX, WEIGHT_ERROR, Case  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Programs that cards name and that do not run here; what they load is checked by rules.
NOT_HERE = ("vllm serve ", "VLLM_CPU_KVCACHE_SPACE=1 vllm serve ", "python -m sglang.launch_server ", "python test_inference.py ", "llama-completion ")
# Packages of theirs.
NOT_INSTALLED = {"vllm", "sglang", "exllamav2", "humming"}
CALIBRATION = ["--samples", "16", "--context", "128"]
WINDOWS, CONTEXT = 4, 128

LOGITS = 1e-3  # largest difference over largest magnitude, where a runtime computes in f32
NLL = 1e-4  # relative, of every window, likewise
ROUNDED = 10  # times these, where it rounded the weights to 16 bit as it unpacked them
NLL_OF_ROUNDED = 3e-3  # relative, of every window, where both sides round inputs to 8 bits; torch in f32 and in f64 is 8e-4 apart
PERPLEXITY = 5e-3  # relative, for kernels that compute in 16 bit


class Results:
    """The lines printed so far. `out` is the true standard output: the runtimes' own chatter goes to a log file."""

    def __init__(self, out):
        self.out, self.passed, self.failed = out, 0, 0

    def say(self, line: str) -> None:
        print(line, file=self.out, flush=True)

    def at_most(self, name: str, measured: float, limit: float) -> None:
        """A number that must not be larger than the limit (and must be a number)."""
        good = bool(measured <= limit)
        self.passed, self.failed = self.passed + good, self.failed + (not good)
        self.say(f"{'ok  ' if good else 'FAIL'} {name:62s} {measured:.4g}  limit {limit:.4g}")

    def no(self, name: str, found: list[str]) -> None:
        """A list that must be empty."""
        self.at_most(name + (f" ({'; '.join(found[:3])})" if found else ""), len(found), 0)

    @contextlib.contextmanager
    def part(self, name: str):
        """An exception inside is one failed check, and the next part goes on."""
        try:
            yield
        except Exception as error:  # whatever a runtime raises is the finding
            traceback.print_exc()
            self.failed += 1
            self.say(f"FAIL {name:62s} {type(error).__name__}: {' '.join(str(error).split())[:300]}")


class Quantc:
    """The program under test, and what of the cards that it wrote was followed."""

    def __init__(self, binary: Path):
        self.binary, self.followed = binary, set()

    def __call__(self, *arguments) -> None:
        command = [str(self.binary), *map(str, arguments)]
        print("$", *command, flush=True)
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout, done.stderr, flush=True)
        if done.returncode != 0:
            raise RuntimeError(f"quantc {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")

    def evaluate(self, directory: Path, text: Path, *more) -> tuple[np.ndarray, np.ndarray]:
        """quantc's own forward pass: logits [windows, context, vocabulary] and the mean NLL of each window."""
        report, logits = directory.with_suffix(".evaluate.json"), directory.with_suffix(".logits.safetensors")
        size = ["--evaluate-samples", WINDOWS, "--evaluate-context", CONTEXT]
        exports = ["--export-json", report, "--export-logits", logits]
        self("evaluate", directory, "--evaluate-on", text, *size, *exports, *more)
        tensors = decoder.read_tensors(logits)
        nll = json.loads(report.read_text())["evaluation"]["window_nll"]
        return decoder.as_f32(tensors["logits"]), np.array(nll)


def compare_f32(results: Results, name: str, ours, theirs: np.ndarray, windows: np.ndarray, exact: bool = True) -> None:
    """Logits and the likelihood of every window, where both sides compute in f32."""
    logits, nll = ours
    other = runtimes.window_nll(theirs, windows)
    factor = 1 if exact else ROUNDED
    results.at_most(f"{name}: logits", np.abs(logits - theirs).max() / np.abs(theirs).max(), LOGITS * factor)
    results.at_most(f"{name}: likelihood of a window", np.abs(nll / other - 1).max(), NLL * factor)


def compare_perplexity(results: Results, name: str, ours, theirs: np.ndarray, windows: np.ndarray) -> None:
    """Perplexity alone, where a runtime computes in 16 bit."""
    difference = ours[1].mean() - runtimes.window_nll(theirs, windows).mean()
    results.at_most(f"{name}: perplexity", abs(np.expm1(difference)), PERPLEXITY)


def rounds_inputs(format: str) -> bool:
    """Whether runtimes round the inputs of a format's linears, in f32 too."""
    return "w8a8" in format


def compare_rounded(results: Results, name: str, ours, theirs: np.ndarray, windows: np.ndarray) -> None:
    """Where both sides round inputs to eight bits: differences in the last bits take some of them to the next number."""
    other = runtimes.window_nll(theirs, windows)
    results.at_most(f"{name}: likelihood of a window", np.abs(ours[1] / other - 1).max(), NLL_OF_ROUNDED)


def compare_weights(results: Results, name: str, model, linears: dict, unpacks_to: str = "float32") -> bool:
    """What the runtime unpacked against what the decoder of this suite did: no difference at all, once rounded to the type that
    the runtime unpacks to. Says whether that rounding changed nothing."""
    largest, exact = 0.0, True
    for module, linear in linears.items():
        dense = linear.dense()
        rounded = runtimes.rounded(dense, unpacks_to)
        exact = exact and np.array_equal(dense, rounded)
        largest = max(largest, float(np.abs(runtimes.runtime_weight(model, module) - rounded).max()))
    results.at_most(f"{name}: weights", largest, 0)
    return exact


def rounding_excess(weight: np.ndarray, linear: decoder.Linear) -> float:
    """How far codes are from the nearest: at most half a step, and any distance outside the grid where it ends."""
    zero_points = linear.zero_points[:, linear.group_of]
    distance = weight.astype(np.float64) / linear.step() + zero_points - linear.codes
    distance = np.where(linear.codes == 0, np.maximum(distance, 0), distance)
    distance = np.where(linear.codes == (1 << linear.bits) - 1, np.minimum(distance, 0), distance)
    return float(np.abs(distance).max())


def check_files(results: Results, case: Case, source: Path, out: Path, linears: dict) -> None:
    """What was written, by the decoder of this suite: the quantized linears, and everything that must be as it was."""
    before, after = decoder.read_safetensors(source), decoder.read_checkpoint(out)
    if "--untie" in case.options:
        before["lm_head.weight"] = before["model.embed_tokens.weight"]
    modules = {name.removesuffix(".weight") for name in before if re.search(r"\.layers\.\d+\..*_proj\.weight$", name)}
    asked = {name for name in modules if case.excluded is None or not re.search(case.excluded, name)} | set(case.outer)
    results.no(f"{case.name}: linears quantized as asked", sorted(asked ^ set(linears)))

    kept = {name for name in before if name.removesuffix(".weight") not in linears}
    # Of a graph, norms and biases meet activations in f32.
    vectors = {name: ("F32", decoder.as_f32(before[name])) for name in kept if case.to == ONNX and before[name][1].ndim == 1}
    if dtype_of(source) == "float32":
        # Runtimes compute in 16 bit, and config.json says so: one rounding.
        results.no(f"{case.name}: config.json says the type of the tensors", [dtype_of(out)] * (dtype_of(out) != "float16"))
        changed = {
            name: runtimes.rounded(decoder.as_f32(before[name]), "float16") for name in kept if before[name][0] == "F32"
        }
        before = before | {name: ("F16", value.astype(np.float16)) for name, value in changed.items()}
    before = before | vectors
    changed = [
        name
        for name in kept
        if name not in after or after[name][0] != before[name][0] or not np.array_equal(after[name][1], before[name][1])
    ]
    results.no(f"{case.name}: other tensors unchanged", sorted(changed))
    parts = re.compile(
        r"\.(qweight|qzeros|scales|biases|g_idx|weight|weight_(packed|scale|global_scale|shape|zero_point|codes|scales|zero_points)"
        r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__(nf4|fp4)))$"
    )
    # A graph has tables of the rotation where other formats have a formula.
    made = {"cos_cache", "sin_cache"} if case.to == ONNX else set()
    extra = [name for name in after if name not in kept | made and parts.sub("", name) not in linears]
    results.no(f"{case.name}: no other tensor", sorted(extra))
    index = out / "model.safetensors.index.json"
    if "--max-shard-size" in case.options:
        results.no(f"{case.name}: index names every tensor", sorted(set(json.loads(index.read_text())["weight_map"]) ^ set(after)))

    wrong, inexact, worst = [], [], 0.0
    for name, linear in linears.items():
        weight = decoder.as_f32(before[f"{name}.weight"])
        worst_here = float(np.linalg.norm(weight - linear.dense()) / np.linalg.norm(weight))
        worst = max(worst, rounding_excess(weight, linear) if case.recipe == "rtn" else worst_here)
        off_middle = case.symmetric and (linear.zero_points != 1 << (linear.bits - 1)).any()
        if (linear.bits != case.outer.get(name, case.bits) and not case.target_bits) or weight.shape != linear.codes.shape or off_middle:
            wrong.append(name)
        in_f16, in_bf16 = linear.scales.astype(np.float16), linear.scales.view(np.uint32) & 0xFFFF
        is_bf16 = before[f"{name}.weight"][0] == "BF16"
        finite = np.isfinite(linear.scales).all() and (linear.scales != 0).all()
        if not finite or (in_f16 != linear.scales).any() and case.to in (GPTQ, GPTQ_V2, AWQ) or is_bf16 and in_bf16.any() and linear.table is None:
            inexact.append(name)
    results.no(f"{case.name}: bits, shapes and zero points", wrong)
    results.no(f"{case.name}: scales exact in what is stored and multiplied", inexact)
    if case.target_bits:
        one_width = len({linear.bits for linear in linears.values()}) == 1
        results.no(f"{case.name}: widths differ", ["they do not"] * one_width)
    if case.recipe == "rtn":
        results.at_most(f"{case.name}: steps from weight to decoded weight", worst, 0.5001)
    else:
        least = min([case.bits, *case.outer.values()])
        results.at_most(f"{case.name}: weight error", worst, FLOAT_ERROR if case.to.endswith("fp8") else WEIGHT_ERROR[least])


def dtype_of(out: Path) -> str:
    """The type that config.json tells a runtime to compute in."""
    return json.loads((out / "config.json").read_text())["dtype"]


def check_compressed_tensors(results: Results, case: Case, out: Path, ours, windows, linears: dict) -> None:
    """transformers, through the compressed-tensors package."""
    asymmetric = not case.symmetric
    name = f"{case.name}: transformers f32"
    with results.part(name):
        # It decompresses four-bit floats into bfloat16 whatever the model's type, unless at load.
        at_load = asymmetric or case.to.endswith(("mxfp4", "nvfp4"))
        model = runtimes.transformers(out, "float32", dequantize=at_load)
        theirs = runtimes.logits(model, windows)
        # Decompressing everything at load rounds the weights to the scales' type.
        scales_in = {"float32": "float16"}.get(dtype_of(out), dtype_of(out))
        exact = compare_weights(results, name, model, linears, scales_in if asymmetric else "float32")
        compare = compare_rounded if rounds_inputs(case.to) else partial(compare_f32, exact=exact)
        compare(results, name, ours, theirs, windows)
    with results.part(f"{case.name}: transformers as published"):
        model = runtimes.transformers(out, "auto", dequantize=asymmetric)
        compare_perplexity(results, f"{case.name}: transformers as published", ours, runtimes.logits(model, windows), windows)


def check_gptq(results: Results, case: Case, out: Path, ours, windows, linears: dict) -> None:
    """GPTQModel itself, and transformers through optimum and GPTQModel."""
    dtype = dtype_of(out)
    name = f"{case.name}: GPTQModel gptq_torch f32"
    with results.part(name):
        half = "float16" if dtype == "float32" else dtype
        model = runtimes.gptqmodel(out, "gptq_torch", half, to_f32=True)
        compare_weights(results, name, model, linears)
        # Of a float32 model everything but the linears has been rounded.
        compare = compare_f32 if dtype == half else compare_perplexity
        compare(results, name, ours, runtimes.logits(model, windows), windows)
    if case.bits == 4 and case.symmetric and case.fused:
        name = f"{case.name}: GPTQModel gptq_torch_fused"
        with results.part(name):
            model = runtimes.gptqmodel(out, "gptq_torch_fused", "float32")
            compare_perplexity(results, name, ours, runtimes.logits(model, windows), windows)
    if case.transformers:
        name = f"{case.name}: transformers f32"
        with results.part(name):
            model = runtimes.transformers(out, "float32")
            theirs = runtimes.logits(model, windows)
            exact = compare_weights(results, name, model, linears, "float16")
            compare_f32(results, name, ours, theirs, windows, exact)
        name = f"{case.name}: transformers as published"
        with results.part(name):
            model = runtimes.transformers(out, "auto")
            compare_perplexity(results, name, ours, runtimes.logits(model, windows), windows)


def check_awq(results: Results, case: Case, out: Path, ours, windows, linears: dict) -> None:
    """GPTQModel itself, transformers through it, and mlx-lm."""
    dtype = {"float32": "float16"}.get(dtype_of(out), dtype_of(out))
    name = f"{case.name}: GPTQModel awq_torch f32"
    with results.part(name):
        model = runtimes.gptqmodel(out, "awq_torch", dtype, to_f32=True)
        compare_f32(results, name, ours, runtimes.logits(model, windows), windows, exact=False)
    name = f"{case.name}: transformers as published"
    with results.part(name):
        model = runtimes.transformers(out, "auto")
        compare_perplexity(results, name, ours, runtimes.logits(model, windows), windows)
    # It multiplies zero points into biases of 16 bits, which is exact for the one of symmetric grids alone. Of the random models it would
    # take another rope_theta: it does not look into `rope_parameters`, which an AWQ checkpoint leaves as transformers wrote it.
    if case.model == "demo":
        name = f"{case.name}: mlx-lm f32"
        with results.part(name):
            theirs = runtimes.mlx_logits(runtimes.mlx(out, as_f32=True), windows)
            compare_f32(results, name, ours, theirs, windows, exact=bool(case.symmetric))


def check_mlx(results: Results, case: Case, out: Path, ours, windows, linears: dict) -> None:
    """mlx-lm on its CPU build."""
    name = f"{case.name}: mlx-lm f32"
    with results.part(name):
        model = runtimes.mlx(out, as_f32=True)
        largest = max(float(np.abs(runtimes.mlx_weight(model, module) - linear.dense()).max()) for module, linear in linears.items())
        results.at_most(f"{name}: weights", largest, 0)
        compare_f32(results, name, ours, runtimes.mlx_logits(model, windows), windows)
    # Its arithmetic in 16 bit moves a model of 2 bits by more than others.
    if case.bits > 2:
        name = f"{case.name}: mlx-lm as published"
        with results.part(name):
            compare_perplexity(results, name, ours, runtimes.mlx_logits(runtimes.mlx(out), windows), windows)
    if case.model == "demo":
        sentence = runtimes.mlx_sentence(out, "The")
        results.no(f"{case.name}: mlx-lm writes", ["nothing"] * (not sentence.strip()))


def check_onnx(results: Results, case: Case, out: Path, ours, windows, linears: dict) -> None:
    """onnxruntime on whole windows and in pieces through the cache of keys and values, and its generator."""
    name = f"{case.name}: onnxruntime"
    with results.part(name):
        session = runtimes.onnx(out)
        whole = runtimes.onnx_logits(session, windows, [CONTEXT])
        compare_f32(results, name, ours, whole, windows)
        # Several texts go on by one token at a time, which is a rule of its attention; one text by any number.
        for what, some, pieces in [("all", windows, [CONTEXT - 2, 1, 1]), ("one", windows[:1], [CONTEXT // 2, 1, CONTEXT // 2 - 1])]:
            difference = np.abs(runtimes.onnx_logits(session, some, pieces) - whole[: len(some)]).max() / np.abs(whole).max()
            results.at_most(f"{name}: logits in pieces, through the cache, {what}", difference, LOGITS)
    name = f"{case.name}: onnxruntime-genai"
    with results.part(name):
        prompt = windows[0, : CONTEXT // 2]
        theirs, sentence = runtimes.genai(out, prompt)
        difference = np.abs(theirs - ours[0][0, len(prompt) - 1]).max() / np.abs(theirs).max()
        results.at_most(f"{name}: logits after a prompt", difference, LOGITS)
        if case.model == "demo":
            results.no(f"{name}: writes", ["nothing"] * (not sentence.strip()))


def check_bitsandbytes(results: Results, case: Case, out: Path, ours, windows, linears: dict) -> None:
    """transformers with bitsandbytes: in f32 on what it dequantizes itself, and its own product, which on some processors is in bf16."""
    name = f"{case.name}: transformers f32, dequantized"
    with results.part(name):
        # Dequantized linears are in f32, and what was loaded beside them is in config.json's type whatever was asked for.
        model = runtimes.transformers(out, "float32").dequantize().float()
        compare_weights(results, name, model, linears)
        compare_f32(results, name, ours, runtimes.logits(model, windows), windows)
    name = f"{case.name}: transformers as published"
    with results.part(name):
        model = runtimes.transformers(out, "auto")
        compare_perplexity(results, name, ours, runtimes.logits(model, windows), windows)
        if case.model == "demo":
            sentence = runtimes.transformers_sentence(model, out, "The")
            results.no(f"{case.name}: transformers writes", ["nothing"] * (not sentence.strip()))


def check_gguf(results: Results, quantc: Quantc, case: Case, source: Path, out: Path, text: Path) -> None:
    """llama.cpp: what gguf-py decodes, what llama.cpp computes, and a sentence. It rounds activations to 8 bits before it multiplies
    with packed weights, and holds keys and values in 16 bit unless told otherwise."""
    (file,) = out.glob("*.gguf")
    windows = evaluation_windows(source, text)
    dense = runtimes.gguf_model(source, file)
    ours = quantc.evaluate(out, text)
    compare_f32(results, f"{case.name}: gguf-py weights in transformers f32", ours, runtimes.logits(dense, windows), windows)
    bare = out.parent / f"{case.name}-bare.gguf"
    shutil.copy(file, bare)
    # Without the directory there is no tokenizer.json, so the windows come as tokens.
    tokens = out.parent / f"{case.name}.jsonl"
    tokens.write_text("".join(json.dumps({"input_ids": window.tolist()}) + "\n" for window in windows))
    again = quantc.evaluate(bare, tokens)
    results.at_most(f"{case.name}: the bare file, quantc evaluate: logits", np.abs(again[0] - ours[0]).max(), 0)
    theirs, sentence, ids = runtimes.llama_cpp(file, windows, text.suffix != ".jsonl")
    if case.to != "gguf:f32":
        compare_perplexity(results, f"{case.name}: llama.cpp", ours, theirs, windows)
    else:
        compare_f32(results, f"{case.name}: llama.cpp", ours, theirs, windows)
    if case.model == "demo":
        results.no(f"{case.name}: llama.cpp writes", ["nothing"] * (not sentence.strip()))
        results.no(f"{case.name}: llama.cpp tokenizes as tokenizer.json does", [] if ids == runtimes.token_ids(source, runtimes.PROBE) else ["it does not"])


def check_adapter(results: Results, quantc: Quantc, case: Case, out: Path, text: Path, windows) -> None:
    """PEFT, on top of the output as transformers loads it, against quantc's own forward pass with the adapter."""
    name = f"{case.name}: PEFT f32"
    with results.part(name):
        with_adapter, _ = quantc.evaluate(out, text, "--adapter", out / "adapter")
        model = runtimes.transformers(out, "float32")
        without = runtimes.logits(model, windows)
        theirs = runtimes.logits(runtimes.peft(model, out / "adapter"), windows)
        largest = np.abs(theirs).max()
        results.at_most(f"{name}: logits", np.abs(with_adapter - theirs).max() / largest, LOGITS)
        # An adapter that PEFT matched to no linear would change nothing.
        changed = bool(np.abs(theirs - without).max() / largest > LOGITS)
        results.no(f"{name}: changes the logits", ["it does not"] * (not changed))


def check_card(results: Results, quantc: Quantc, case: Case, out: Path) -> None:
    """The model card's commands as they stand, from a folder in which `MODEL` is the output: Python, each piece a program of its own that sees
    what `pip install` of the line before it would install and nothing else, and quantc's own lines. Each once for a format, a kind of grid and a
    runtime."""
    folder = out.parent / f"{case.name}-card"
    folder.mkdir()
    (folder / "MODEL").symlink_to(out)
    (folder / "quantc").symlink_to(quantc.binary)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    for number, part in enumerate((out / "README.md").read_text().split("\n### ")[1:]):
        heading, _, rest = part.partition("\n")
        key = (case.to, case.symmetric, heading)
        if key in quantc.followed:
            continue
        quantc.followed.add(key)
        name = f"{case.name}: card: {heading}"
        with results.part(name):
            wrong, installed = [], folder / f"packages-{number}"
            for language, lines in re.findall(r"```(\w+)\n(.*?)```", rest, re.S):
                if language == "python":
                    wrong += ran([sys.executable, "-S", "-c", lines], folder, environment | {"PYTHONPATH": str(installed)})
                    continue
                for line in lines.strip().splitlines():
                    if line.startswith("pip install "):
                        install(line.partition("# on Linux: ")[2].split() or line.split()[2:], installed)
                    elif line.startswith("quantc "):
                        wrong += ran(line.split(), folder, environment)
                    elif not line.startswith(NOT_HERE):
                        wrong.append(f"nobody follows `{line}`")
            results.no(name, wrong)


def ran(command: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    """What is wrong with a program that is to print something."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder, env=environment)
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1:] or [f"ends with {done.returncode}"]
    return ["it prints nothing"] * (not done.stdout.strip())


def install(packages: list[str], folder: Path) -> None:
    """Links into a folder what `pip install` of these packages would bring: all that they require, of what this environment has."""
    left, done = [Requirement(package) for package in packages if package not in NOT_INSTALLED], set()
    while left:
        wanted = left.pop()
        for extra in ["", *wanted.extras]:
            if (wanted.name, extra) in done:
                continue
            done.add((wanted.name, extra))
            required = [Requirement(line) for line in importlib.metadata.requires(wanted.name) or []]
            left += [one for one in required if one.marker is None or one.marker.evaluate({"extra": extra})]
    folder.mkdir(exist_ok=True)
    for name in {name for name, _ in done}:
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).is_symlink():
                (folder / top).symlink_to(importlib.metadata.distribution(name).locate_file(top))


def evaluation_windows(directory: Path, text: Path) -> np.ndarray:
    """Windows of tokens that quantc cuts from the text as well."""
    if text.suffix == ".jsonl":
        return np.array([json.loads(line)["input_ids"] for line in text.read_text().splitlines()])
    return runtimes.text_windows(directory, text, CONTEXT, WINDOWS)


def check(results: Results, quantc: Quantc, case: Case, source: Path, text: Path, work: Path) -> None:
    """One case: write, decode, evaluate with quantc, load in every runtime."""
    out = work / case.name
    with results.part(f"{case.name}: quantize"):
        report = out.with_suffix(".report.json")
        quantc("quantize", source, "-o", out, *case.arguments(), *CALIBRATION, "--no-evaluate", "--export-json", report)
        claims = {row["runtime"]: row["loads"] for row in json.loads(report.read_text())["runtimes"]}
        runnable = {"transformers": case.transformers or not (case.fused or case.outer), "GPTQModel": True}
        false = [name for name, loads in claims.items() if loads != runnable.get(name.split()[0], loads)]
        results.no(f"{case.name}: says rightly which runtimes load it", false)
        # The random models write what no tokenizer has.
        if case.model == "demo":
            check_card(results, quantc, case, out)
        if case.to.startswith("gguf"):
            return check_gguf(results, quantc, case, source, out, text)
        linears = decoder.decode(out)
        check_files(results, case, source, out, linears)
        windows = evaluation_windows(out, text)
        ours = quantc.evaluate(out, text)
        here = runtimes.decoded(source, decoder.read_checkpoint(out), linears)
        if rounds_inputs(case.to):
            here = runtimes.with_rounded_inputs(here, linears, out)
        compare = compare_rounded if rounds_inputs(case.to) else compare_f32
        compare(results, f"{case.name}: decoded here", ours, runtimes.logits(here, windows), windows)
        if case.adapter:
            check_adapter(results, quantc, case, out, text, windows)
        gptq, ct, bnb = check_gptq, check_compressed_tensors, check_bitsandbytes
        loaders = {CT: ct, GPTQ: gptq, GPTQ_V2: gptq, AWQ: check_awq, MLX: check_mlx, ONNX: check_onnx, NF4: bnb, FP4: bnb}
        loaders[case.to.split(":")[0]](results, case, out, ours, windows, linears)
    runtimes.forget()


def check_peer(results: Results, quantc: Quantc, peer: peers.Peer, source: Path, text: Path, work: Path) -> None:
    """A checkpoint of another program: what quantc computes with it against what the program makes of it, and quantized again."""
    out = work / peer.name
    with results.part(f"{peer.name}: made"):
        theirs = peer.make(quantc, source, out)
        windows = evaluation_windows(source, text)
        ours = quantc.evaluate(out, text)
        if peer.rounds_inputs:
            compare_rounded(results, f"{peer.name}: in f32", ours, runtimes.logits(theirs, windows), windows)
        else:
            # What a program rounded to 16 bit as it unpacked it, we did not.
            compare_f32(results, f"{peer.name}: in f32", ours, runtimes.logits(theirs, windows), windows, peer.exact)
        del theirs
        runtimes.forget()
        nll = ours[1]
        if peer.rounds_inputs:
            # What is quantized again is what it decodes to, with inputs as they are.
            plain = runtimes.transformers(out, "float32", dequantize=True)
            nll = runtimes.window_nll(runtimes.logits(plain, windows), windows)
        again, report = work / f"{peer.name}-again", work / f"{peer.name}.report.json"
        quantc("quantize", out, "-o", again, "--to", CT, "--recipe", "rtn", "--bits", 8, "--group-size", 64, "--no-evaluate", "--export-json", report)
        said = [note for note in json.loads(report.read_text())["notes"] if "already quantized" in note]
        right = len(said) == 1 and (peer.bits is None or f", {peer.bits:g} bit" in said[0])
        results.no(f"{peer.name}: the report says that it was quantized", [] if right else [str(said)])
        twice = quantc.evaluate(again, text)
        results.at_most(f"{peer.name}: quantized again at 8 bit: perplexity", abs(np.expm1(twice[1].mean() - nll.mean())), PERPLEXITY)
        if peer.converts_to:
            converted = work / f"{peer.name}-converted"
            quantc("convert", out, "-o", converted, "--to", peer.converts_to)
            same = quantc.evaluate(converted, text)
            results.at_most(f"{peer.name}: converted to {peer.converts_to}: logits", np.abs(same[0] - ours[0]).max() / np.abs(ours[0]).max(), 1e-5)
# In what else outputs with experts are loaded: where one expert is a linear of its own, and where they lie stacked.
EXPERTS_TOO = [
    (GPTQ, "GPTQModel", lambda out, windows: runtimes.logits(runtimes.gptqmodel(out, "gptq_torch", "float16", to_f32=True), windows)),
    (MLX, "mlx-lm", lambda out, windows: runtimes.mlx_logits(runtimes.mlx(out, as_f32=True), windows)),
]


def check_family(results: Results, quantc: Quantc, kind: str, source: Path, text: Path, work: Path) -> None:
    """A family that the other cases leave out: one format, loaded in transformers and multiplied in f32."""
    # Linears that are no `torch.nn.Linear` are found by GPTQModel alone; transformers leaves them as they were initialized.
    own_linears = kind == "gpt2" or kind.startswith("falcon")
    to, loader = (MLX, "mlx-lm") if kind in models.MLX_ALONE else (GPTQ, "GPTQModel") if own_linears else (CT, "transformers")
    name, out = f"family {kind}: {to} in {loader} f32", work / f"family-{kind}"
    with results.part(name):
        quantc("quantize", source, "-o", out, "--to", to, "--recipe", "gptq", *CALIBRATION, "--no-evaluate")
        quantc("verify", out)
        ours, windows = quantc.evaluate(out, text), evaluation_windows(out, text)
        if kind in models.MLX_ALONE:
            theirs = runtimes.mlx_logits(runtimes.mlx(out, as_f32=True), windows)
        elif own_linears:
            theirs = runtimes.logits(runtimes.gptqmodel(out, "gptq_torch", "float16", to_f32=True), windows)
        else:
            theirs = runtimes.logits(runtimes.transformers(out, "float32"), windows)
        if kind in models.WITH_EXPERTS:
            # It unpacks experts into the type of their scales, by which a token may go to another.
            nll = runtimes.window_nll(theirs, windows)
            results.at_most(f"{name}: likelihood of a window", np.abs(ours[1] / nll - 1).max(), NLL * ROUNDED)
        else:
            compare_f32(results, name, ours, theirs, windows)
    for to, loader, load in EXPERTS_TOO if kind in models.WITH_EXPERTS else []:
        name, out = f"family {kind}: {to} in {loader} f32", work / f"family-{kind}-{to}"
        with results.part(name):
            report = out.with_suffix(".report.json")
            quantc("quantize", source, "-o", out, "--to", to, "--recipe", "gptq", *CALIBRATION, "--no-evaluate", "--export-json", report)
            quantc("verify", out)
            claims = {row["runtime"].split()[0]: row["loads"] for row in json.loads(report.read_text())["runtimes"]}
            if not claims[loader]:
                # What is said not to load must not.
                with contextlib.suppress(ValueError):
                    load(out, evaluation_windows(out, text))
                    results.no(f"{name}: refuses", ["it does not"])
                continue
            ours, windows = quantc.evaluate(out, text), evaluation_windows(out, text)
            compare_f32(results, name, ours, load(out, windows), windows)
    with results.part(f"family {kind}: the original"):
        ours = quantc.evaluate(source, text)
        compare_f32(results, f"family {kind}: the original", ours, runtimes.logits(runtimes.original(source), windows), windows)
    runtimes.forget()


def sources(work: Path, demo: Path) -> dict[str, tuple[Path, Path]]:
    """Model and evaluation text of every kind: prose for the demo model, random tokens for the random ones."""
    found = {"demo": (demo / "model", demo / "evaluation.txt")}
    for kind in [*models.CONFIGS, *models.FAMILIES, *(f"gguf-{kind}" for kind in models.GGUF_FAMILIES)]:
        models.make(kind, demo / "model", work / kind)
        tokens = np.random.default_rng(7).integers(2, models.SHAPE["vocab_size"], (WINDOWS, CONTEXT))
        tokens[:, 0] = models.SHAPE["bos_token_id"]
        text = work / f"{kind}.jsonl"
        text.write_text("".join(json.dumps({"input_ids": row.tolist()}) + "\n" for row in tokens))
        found[kind] = (work / kind, text)
    return found



def check_gguf_family(results: Results, quantc: Quantc, kind: str, source: Path, text: Path, work: Path) -> None:
    """llama.cpp on a family's tensors in single precision, and on packed ones."""
    windows = evaluation_windows(source, text)
    for to, compare in [("gguf:f32", compare_f32), ("gguf:q8_0", compare_perplexity)]:
        name, out = f"{kind}: {to} in llama.cpp", work / f"{kind}-{to.split(':')[1]}"
        with results.part(name):
            parts = ["--max-shard-size", "2MB"] if kind in models.IN_PARTS else []
            quantc("quantize", source, "-o", out, "--to", to, "--recipe", "rtn", *CALIBRATION, "--no-evaluate", *parts)
            quantc("verify", out)
            file, *others = sorted(out.glob("*.gguf"))
            results.no(f"{name}: in so many files", [f"{1 + len(others)}"] * (bool(others) != bool(parts)))
            ours = quantc.evaluate(out, text)
            theirs = runtimes.llama_cpp(file, windows, False)[0]
            if to == "gguf:f32" and kind in models.DEEP_GELU:
                rounded = runtimes.logits(runtimes.with_table_of_gelu(runtimes.original(source)), windows)
                results.at_most(f"{name}: logits, with its activation", np.abs(rounded - theirs).max() / np.abs(theirs).max(), LOGITS)
                compare = partial(compare_f32, exact=False)
            compare(results, name, ours, theirs, windows)
            if to == "gguf:f32":
                original = quantc.evaluate(source, text)
                results.at_most(f"{name}: what was read again", np.abs(original[0] - ours[0]).max() / np.abs(ours[0]).max(), 1e-5)
    runtimes.forget()


def check_vocabulary(results: Results, quantc: Quantc, kind: str, demo: Path, work: Path) -> None:
    """llama.cpp's tokens of many texts, of the vocabulary alone."""
    source, out = work / f"tokenizer-{kind}", work / f"tokenizer-{kind}-gguf"
    corpus = vocabularies.corpus_of(demo)
    known = vocabularies.BYTE_LEVEL.get(kind)
    tokenizer, settings = vocabularies.byte_level(kind, corpus) if known else vocabularies.sentencepiece(kind, corpus, work)
    vocabularies.write(tokenizer, settings, source)
    with results.part(f"tokenizer {kind}"):
        quantc("quantize", source, "-o", out, "--to", "gguf:f16", "--no-evaluate")
        (file,) = out.glob("*.gguf")
        named = vocabularies.pre(file)
        results.no(f"tokenizer {kind}: way to split", [named] * (named != (known[0] if known else "default")))
        found = vocabularies.differences(source, file, vocabularies.OTHERWISE.get(kind, set()))
        results.no(f"tokenizer {kind}: llama.cpp's tokens", found)


def check_choices(results: Results, quantc: Quantc, demo: Path, work: Path) -> None:
    """Multiple-choice questions: the log-likelihood of every choice by transformers, and the answers that follow from it."""
    questions, report = demo / "choices.jsonl", work / "choices.json"
    with results.part("choices"):
        size = ["--evaluate-samples", WINDOWS, "--evaluate-context", CONTEXT]
        quantc("evaluate", demo / "model", "--choices", questions, *size, "--export-json", report)
        found = json.loads(report.read_text())["choices"]
        model, rows = runtimes.original(demo / "model"), [json.loads(line) for line in questions.read_text().splitlines()]
        largest, wrong, right = 0.0, [], {"accuracy": [], "normalized": []}
        for row, ours in zip(rows, found["answers"], strict=True):
            choices = row["choices"]
            theirs = [runtimes.likelihood_of_ending(model, demo / "model", row["question"], " " + text) for text in choices]
            largest = max(largest, np.abs(np.array(ours["log_likelihoods"]) / theirs - 1).max())
            answer = "ABC".index(row["answer"]) if isinstance(row["answer"], str) else row["answer"]
            plain = int(np.argmax(theirs))
            normalized = int(np.argmax([value / len(text) for value, text in zip(theirs, choices, strict=True)]))
            right["accuracy"].append(plain == answer)
            right["normalized"].append(normalized == answer)
            expected = {"answer": answer, "likeliest": plain, "likeliest_normalized": normalized}
            wrong += [row["question"] for key, value in expected.items() if ours[key] != value]
        results.at_most("choices: log-likelihoods", largest, NLL)
        results.no("choices: answers", wrong)
        for key, values in right.items():
            results.at_most(f"choices: {key}", abs(found["measured"][key] - np.mean(values)), 1e-12)
            stderr = np.std(values, ddof=1) / np.sqrt(len(values))
            results.at_most(f"choices: standard error of {key}", abs(found["measured"][f"{key}_stderr"] - stderr), 1e-9)


def check_report(results: Results, quantc: Quantc, demo: Path, work: Path) -> None:
    """report.html of an output and of a run's several outputs in a browser: both themes, on a desk and on a phone. The model has a name that
    would be markup."""
    source, out = work / "<img src=x onerror=alert(1)>&amp;", work / "report"
    shutil.copytree(demo / "model", source)
    text = work / "text.txt"
    hostile = "<script>alert(1)</script> <img src=https://example.org/x.png> \u202e &lt; "
    text.write_text(hostile * 4 + (demo / "evaluation.txt").read_text()[:40000])
    with results.part("report"):
        size = ["--evaluate-on", text, "--evaluate-samples", WINDOWS, "--evaluate-context", CONTEXT]
        quantc("quantize", source, "-o", out, "--to", "gguf:q4_k_m,compressed-tensors", *CALIBRATION, *size)
        for kind, page, least, links in [("report", out / "gguf-q4_k_m/report.html", 3, 0), ("overview", out / "report.html", 1, 2)]:
            with browser.Browser() as chromium:
                for theme in ("light", "dark"):
                    for name, size in (("desk", browser.DESK), ("phone", browser.PHONE)):
                        what = f"{kind}: {theme}, {name}"
                        chromium.open(page, size, theme)
                        dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part < 90)"
                        wrong = [] if chromium.evaluate(dark) == (theme == "dark") else ["the other theme"]
                        wide = chromium.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                        wrong += [f"{wide} px wider than the screen"] * (wide > 0)
                        small = "[...document.querySelectorAll('svg text')].filter(t => t.getBoundingClientRect().height < 9).length"
                        letters = chromium.evaluate(small)
                        wrong += [f"{letters} labels too small to read"] * (letters > 0)
                        chromium.screenshot(work / f"{kind}-{theme}-{name}.png")
                        chromium.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
                        wide = chromium.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                        wrong += [f"{wide} px wider than the screen with all of it open"] * (wide > 0)
                        chromium.evaluate("document.getElementById('theme').click()")
                        wrong += [] if chromium.evaluate(dark) == (theme != "dark") else ["the button does nothing"]
                        shown = chromium.evaluate("document.querySelector('h1').textContent")
                        wrong += [f"calls the model {shown}"] * (source.name not in shown)
                        results.no(what, wrong + chromium.problems(page))
                charts = chromium.evaluate("document.querySelectorAll('svg').length")
                results.no(f"{kind}: charts", [f"{charts} charts"] * (charts < least))
                alien = chromium.evaluate("document.querySelectorAll('main img, main script').length")
                linked = chromium.evaluate("[...document.querySelectorAll('main a')].map(a => decodeURI(a.pathname))")
                missing = [link for link in linked if not Path(link).is_file()]
                wrong = [f"{alien} elements"] * (alien != 0) + [f"{len(linked)} links"] * (len(linked) != links) + missing
                results.no(f"{kind}: text from outside is text, links lead somewhere", wrong)


def check_decoder(results: Results) -> None:
    """The decoder against the worked examples of the formats' documents."""
    examples = {
        4: [0x61C72D83, 0xE94FA50B, 0x61C72D83, 0xE94FA50B],
        3: [0x43C67543, 0x7543C675, 0xC67543C6],
        2: [0x93939393, 0x93939393],
        8: [0x120D0803, 0x26211C17, 0x3A35302B],
    }
    for bits, words in examples.items():
        count = min(32, len(words) * 32 // bits)
        codes = decoder.unpack(np.array([words], dtype=np.uint32), bits, count)[0]
        expected = (5 * np.arange(count) + 3) % (1 << bits)
        results.at_most(f"decoder: worked example of {bits} bits", int((codes != expected).sum()), 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("quantc", nargs="?", type=Path, default=ROOT / "target/release/quantc")
    parser.add_argument("--only", default="", help="regular expression: cases to run")
    parser.add_argument("--work", type=Path, default=ROOT / "target/interop", help="directory that is emptied and filled")
    parser.add_argument("--demo", type=Path, default=ROOT / "demo")
    arguments = parser.parse_args()

    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    log = arguments.work / "runtimes.log"
    results = Results(os.fdopen(os.dup(1), "w"))
    chatter = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(chatter, 1)
    os.dup2(chatter, 2)

    check_decoder(results)
    quantc = Quantc(arguments.quantc.resolve())
    with results.part("making the random models"):
        found = sources(arguments.work, arguments.demo)
        if re.search(arguments.only, "choices"):
            check_choices(results, quantc, arguments.demo, arguments.work)
        if re.search(arguments.only, "hub"):
            with results.part("hub"):
                for what, wrong in hub.shared(quantc.binary, arguments.demo / "model", arguments.work).items():
                    results.no(f"hub: {what}", wrong)
        if re.search(arguments.only, "report"):
            check_report(results, quantc, arguments.demo, arguments.work)
        for case in CASES:
            if re.search(arguments.only, case.name):
                start = time.monotonic()
                check(results, quantc, case, *found[case.model], arguments.work)
                results.say(f"     {case.name}: {time.monotonic() - start:.1f} s")
        if re.search(arguments.only, "vllm"):
            start = time.monotonic()
            with results.part("vllm"):
                source, text = found["demo"]
                windows = evaluation_windows(source, text)
                vllm_cpu.check(results, quantc, source, text, arguments.work, CALIBRATION, windows, PERPLEXITY)
            results.say(f"     vllm: {time.monotonic() - start:.1f} s")
        for peer in peers.PEERS:
            if re.search(arguments.only, peer.name):
                start = time.monotonic()
                check_peer(results, quantc, peer, *found[peer.model], arguments.work)
                results.say(f"     {peer.name}: {time.monotonic() - start:.1f} s")
        for kind in [*vocabularies.BYTE_LEVEL, *vocabularies.PIECES]:
            if re.search(arguments.only, f"tokenizer-{kind}"):
                check_vocabulary(results, quantc, kind, arguments.demo, arguments.work)
        for kind in (f"gguf-{kind}" for kind in models.GGUF_FAMILIES):
            if re.search(arguments.only, kind):
                start = time.monotonic()
                check_gguf_family(results, quantc, kind, *found[kind], arguments.work)
                results.say(f"     {kind}: {time.monotonic() - start:.1f} s")
        for kind in models.FAMILIES:
            if re.search(arguments.only, f"family-{kind}"):
                start = time.monotonic()
                check_family(results, quantc, kind, *found[kind], arguments.work)
                results.say(f"     family {kind}: {time.monotonic() - start:.1f} s")
    if results.failed:
        results.say(f"the runtimes' own output is in {log}")
    results.say(f"{results.passed} passed, {results.failed} failed")
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

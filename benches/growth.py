#!/usr/bin/env python3
"""How the cost of a run grows with hidden size, rows, tokens and threads, beside what the arithmetic alone would take. Draws a plot.

usage: growth.py QUANTC SYNTHETIC PLOT.svg [--recipe gptq] [--rounds 2] [--quick]
(SYNTHETIC is `examples/synthetic`; run by a Python that has matplotlib)

Models are random, of Llama's shape, with two layers and a small vocabulary; one size is changed at a time. Seconds are those of processors of the
phase "quantizing" and what comes before it, the least of the rounds; with threads, seconds on the clock. The prediction is a count of multiplications
and additions from the shapes, divided by one rate for all points: that of the largest model. So a line that is above its prediction to the left
shows what does not grow with the arithmetic. Prints the same numbers as Markdown.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

LAYERS = 2
BASE = {"hidden": 1024, "rows": 2816, "windows": 32, "threads": 1}
CONTEXT = 256
HELD_OUT_DAMPINGS = 5


def config(hidden: int, intermediate: int) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate,
        "num_attention_heads": hidden // 64, "num_key_value_heads": max(1, hidden // 256), "num_hidden_layers": LAYERS,
        "max_position_embeddings": 2048, "vocab_size": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    }


def operations(hidden: int, intermediate: int, windows: int) -> float:
    """Multiplications and additions of `gptq`: products with tokens, attention's two, second moments, factorizations, the solver's feedback."""
    tokens = windows * CONTEXT
    keys = max(1, hidden // 256) * 64
    stages = [(hidden, [hidden, keys, keys]), (hidden, [hidden]), (hidden, [intermediate] * 2), (intermediate, [hidden])]
    total = 2 * tokens * CONTEXT * hidden
    for columns, outputs in stages:
        rows = sum(outputs)
        total += 2 * tokens * rows * columns + tokens * columns**2 + HELD_OUT_DAMPINGS * 2 / 3 * columns**3 + rows * columns**2
    return LAYERS * total


def run(arguments, model: pathlib.Path, work: pathlib.Path, windows: int, threads: int) -> tuple[float, float]:
    """Least seconds of processors, and on the clock, up to the end of quantizing."""
    found = []
    for _ in range(arguments.rounds):
        report = work / "report.json"
        command = [arguments.quantc, "quantize", model, "-o", work / "out", "--force", "--no-evaluate", "--recipe", arguments.recipe]
        command += ["--samples", windows, "--context", CONTEXT, "--calibration", model / "calibration.jsonl", "--threads", threads]
        command += ["--quiet", "--export-json", report]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        phases = [phase for phase in json.loads(report.read_text())["phases"] if phase["name"] != "verifying"]
        found.append((sum(p["cpu_seconds"] for p in phases), sum(p["wall_seconds"] for p in phases)))
    return min(cpu for cpu, _ in found), min(wall for _, wall in found)


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("quantc", type=pathlib.Path)
    parser.add_argument("synthetic", type=pathlib.Path)
    parser.add_argument("plot", type=pathlib.Path)
    parser.add_argument("--recipe", default="gptq")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the two smallest of each")
    arguments = parser.parse_args()
    arguments.quantc, arguments.synthetic = arguments.quantc.resolve(), arguments.synthetic.resolve()
    sweeps = {
        "hidden": ("hidden size (rows of the MLP: 2.75 times that)", [256, 512, 1024, 2048]),
        "rows": ("rows of the MLP's projections, at hidden 512", [704, 1408, 2816, 5632]),
        "windows": ("tokens, at hidden 512", [16, 32, 64, 128]),
        "threads": ("threads, at hidden 1024; seconds on the clock", [1, 2, 4, 8, 16]),
    }
    import os

    processors = len(os.sched_getaffinity(0))
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)

        def model_of(hidden: int, intermediate: int) -> pathlib.Path:
            place = work / f"{hidden}-{intermediate}"
            if not place.exists():
                (work / "config.json").write_text(json.dumps(config(hidden, intermediate)))
                subprocess.run([str(arguments.synthetic), str(work / "config.json"), str(place)], check=True)
            return place

        for sweep, (_, values) in sweeps.items():
            points = []
            for value in values[: 2 if arguments.quick else None]:
                hidden, rows, windows, threads = 512, 1408, BASE["windows"], 1
                if sweep == "hidden":
                    hidden, rows = value, value * 11 // 4
                elif sweep == "rows":
                    rows = value
                elif sweep == "windows":
                    windows = value
                elif value > processors:
                    continue
                else:
                    hidden, rows, threads = BASE["hidden"], BASE["rows"], value
                cpu, wall = run(arguments, model_of(hidden, rows), work, windows, threads)
                x = value * CONTEXT if sweep == "windows" else value
                points.append((x, wall if sweep == "threads" else cpu, operations(hidden, rows, windows) / threads))
            measured[sweep] = points
    # One rate: that of the largest model, in which products have the largest share.
    seconds, count = max(((s, o) for s, o in ((p[1], p[2]) for p in measured["hidden"])), key=lambda pair: pair[1])
    rate = count / seconds
    print(f"recipe {arguments.recipe}, predictions at {rate / 1e9:.0f} GFLOP a second of a processor\n")
    print("| what | value | seconds | predicted |\n|---|---|---|---|")
    for sweep, points in measured.items():
        for x, seconds, count in points:
            print(f"| {sweeps[sweep][0]} | {x} | {seconds:.2f} | {count / rate:.2f} |")
    draw(arguments.plot, sweeps, measured, rate)


def draw(place: pathlib.Path, sweeps: dict, measured: dict, rate: float) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.5))
    for axis, (sweep, points) in zip(axes.flat, measured.items()):
        x = [point[0] for point in points]
        axis.loglog(x, [point[1] for point in points], "o-", label="measured")
        axis.loglog(x, [point[2] / rate for point in points], "s--", label="arithmetic alone", fillstyle="none")
        axis.set_xticks(x, [str(value) for value in x])
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axis.minorticks_off()
        axis.set_xlabel(sweeps[sweep][0])
        axis.set_ylabel("seconds")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(place, metadata={"Date": None})


if __name__ == "__main__":
    main()

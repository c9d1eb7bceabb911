#!/usr/bin/env python3
"""What each lever of the recipes is worth: quantizes one model once for each, and prints a Markdown table.

usage: ablation.py QUANTC MODEL CALIBRATION EVALUATION [--bits 4,3] [--group-size 128] [--samples 128] [--context 256] [--windows 64]
                   [--rows N] [--jobs N]

KL is the mean divergence to the original, nats a token, on the evaluation text; processor seconds are those of the whole run but for measuring.
Needs nothing but Python's standard library.
"""

import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import tempfile

# Each row is a recipe file; rows that begin with a plus sign add to the row above.
PLAIN = {"order": "natural", "range": "min_max", "refits": 0, "sweeps": 0, "alpha": 0.0, "beta": 0.0,
         "coupled_sweeps": 0, "two_sided": False, "guard": False}
LEVERS = [
    ("rounding to nearest", "rtn", {}),
    ("GPTQ, natural order, full range", "gptq", PLAIN),
    ("+ activation order, static groups", "gptq", {"order": "activation"}),
    ("+ damping chosen by held-out windows", "gptq", {"guard": True}),
    ("+ signed range search by diag(H)", "gptq", {"range": "diagonal"}),
    ("+ scale refit, solved again", "gptq", {"refits": 3}),
    ("+ coordinate descent", "gptq", {"sweeps": 4}),
    ("+ the input's error made up for", "gptq", {"alpha": 0.6}),
    ("+ the residual stream's as well", "gptq", {"beta": 0.6}),
    ("+ outputs weighed by the model", "gptq", {"coupled_sweeps": 4}),
    ("+ rounded so as well: `default`", "gptq", {"two_sided": True}),
    ("`default` without errors made up for", "default", {"alpha": 0.0, "beta": 0.0}),
    ("`default`, pivot order", "default", {"order": "pivot"}),
    ("`default`, range by pivots", "default", {"range": "pivots"}),
    ("`default`, range by the conditional metric", "default", {"range": "conditional"}),
    ("`default`, damping 0.05", "default", {"damping": 0.05}),
    ("`default`, output damping 0.1", "default", {"output_damping": 0.1}),
    ("`default`, alpha 1, beta 1", "default", {"alpha": 1.0, "beta": 1.0}),
    ("`default`, tokens weighed by the model", "default", {"weigh_tokens": True}),
    ("`default` and three times as much text of its own", "default", {"own_text": 3}),
    ("`max`: both, longer, alpha 1, beta 1", "max", {}),
]


def recipes():
    """Label and content of a recipe file for each row."""
    settings = {}
    for label, base, changes in LEVERS:
        settings = {**settings, **changes} if label.startswith("+") else dict(changes)
        whole = {key: settings.pop(key) for key in ["own_text"] if key in settings}
        lines = [f'base = "{base}"', *(f"{key} = {value}" for key, value in whole.items()), "[settings]"]
        yield label, "\n".join(lines + [f"{key} = {json.dumps(value)}" for key, value in settings.items()]) + "\n"


def measure(arguments, bits, recipe, folder):
    """KL, its standard error, perplexity and processor seconds of one recipe."""
    folder.mkdir()
    (folder / "recipe.toml").write_text(recipe)
    report = folder / "report.json"
    command = [arguments.quantc, "quantize", arguments.model, "-o", folder / "out", "--force", "--bits", bits]
    command += ["--recipe", folder / "recipe.toml", "--group-size", arguments.group_size, "--export-json", report]
    command += ["--calibration", arguments.calibration, "--samples", arguments.samples, "--context", arguments.context]
    command += ["--evaluate-on", arguments.evaluation, "--evaluate-samples", arguments.windows]
    command += ["--evaluate-context", arguments.context]
    if arguments.jobs > 1:
        command += ["--threads", 1]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    found = json.loads(report.read_text())
    quality = found["evaluation"]["quantized"]
    measuring = sum(section["cpu_seconds"] for section in found["account"] if section["name"] == "measuring")
    seconds = found["resources"]["cpu_seconds"] - measuring
    return quality["kl_mean"], quality["kl_stderr"], quality["perplexity"], seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("quantc", "model", "calibration", "evaluation"):
        parser.add_argument(name)
    parser.add_argument("--bits", default="4,3")
    for name, value in (("group-size", 128), ("samples", 128), ("context", 256), ("windows", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rows", type=int, help="only so many rows from the top, where the others cost too much")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each where there are several")
    arguments = parser.parse_args()
    widths = arguments.bits.split(",")
    print("| recipe | " + " | ".join(f"KL, {bits} bit | perplexity | processor s" for bits in widths) + " |")
    print("|---" * (1 + 3 * len(widths)) + "|")
    rows = list(recipes())[: arguments.rows]
    with tempfile.TemporaryDirectory() as name, concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        folders = (pathlib.Path(name) / str(number) for number in range(len(rows) * len(widths)))
        runs = [[pool.submit(measure, arguments, bits, recipe, next(folders)) for bits in widths] for _, recipe in rows]
        for (label, _), of_row in zip(rows, runs):
            cells = []
            for kl, error, perplexity, seconds in (run.result() for run in of_row):
                cells.append(f"{kl:.5f} ± {error:.5f} | {perplexity:.3f} | {seconds:.1f}")
            print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Whether more calibration text ever hurts: quantizes one model with more and more windows of several texts, and prints a Markdown table.

usage: calibration_count.py QUANTC MODEL KIND=FILE[,EVALUATION] [KIND=...] [--common FILE] [--counts 8,32,128,512] [--bits 3]
                            [--group-size 128] [--context 256] [--windows 128] [--recipe default]

KL is the mean divergence to the original in nats a token, with its standard error: on text of the kind that was calibrated on and, with
`--common`, on one text for all kinds. Where a kind has no evaluation text of its own, the last fifth of its file is cut off for it. Windows are
drawn with one seed, so that each count's are among the next one's. A value that is above that of a smaller count by more than two standard
errors (the larger of both) is marked with an exclamation mark. Needs nothing but Python's standard library.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile


def texts(kind, folder):
    """Name, calibration text and evaluation text of `KIND=FILE[,EVALUATION]`; the two share nothing."""
    name, _, files = kind.partition("=")
    files = [pathlib.Path(file) for file in files.split(",")]
    if len(files) == 2:
        return name, *files
    lines = files[0].read_text(encoding="utf-8").splitlines(keepends=True)
    cut = len(lines) * 4 // 5
    parts = folder / f"{name}-calibration.txt", folder / f"{name}-evaluation.txt"
    for path, part in zip(parts, (lines[:cut], lines[cut:])):
        path.write_text("".join(part), encoding="utf-8")
    return name, *parts


def run(*command):
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def measure(arguments, calibration, count, evaluations, folder):
    """KL and its standard error on each evaluation text, for `count` windows of the calibration text."""
    shape = ["--evaluate-samples", arguments.windows, "--evaluate-context", arguments.context]
    out, report = folder / "out", folder / "report.json"
    run(arguments.quantc, "quantize", arguments.model, "-o", out, "--force", "--bits", arguments.bits, "--no-evaluate",
        "--recipe", arguments.recipe, "--group-size", arguments.group_size, "--calibration", calibration,
        "--samples", count, "--context", arguments.context, "--seed", 0, "--export-json", report)
    found = json.loads(report.read_text())["calibration"]["windows"]
    if found != count:
        raise SystemExit(f"{calibration} holds {found} windows, {count} are needed")
    for evaluation in evaluations:
        run(arguments.quantc, "evaluate", out, "--reference", arguments.model, "--evaluate-on", evaluation, *shape,
            "--export-json", report)
        quality = json.loads(report.read_text())["evaluation"]["quantized"]
        yield quality["kl_mean"], quality["kl_stderr"]


def cells(values):
    """One row's cells, those that rose marked."""
    for place, (kl, error) in enumerate(values):
        rose = any(kl - before > 2 * max(error, other) for before, other in values[:place])
        yield f"{kl:.5f} ± {error:.5f}" + (" !" if rose else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantc")
    parser.add_argument("model")
    parser.add_argument("kinds", nargs="+", metavar="KIND=FILE[,EVALUATION]")
    parser.add_argument("--common")
    parser.add_argument("--counts", default="8,32,128,512")
    parser.add_argument("--recipe", default="default")
    for name, value in (("bits", 3), ("group-size", 128), ("context", 256), ("windows", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.counts.split(",")]
    print("| calibrated on | measured on | " + " | ".join(f"{count} windows" for count in counts) + " |")
    print("|---" * (2 + len(counts)) + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for kind in arguments.kinds:
            kind, calibration, own = texts(kind, folder)
            measured = [("the same kind", own)] + ([("the common text", arguments.common)] if arguments.common else [])
            evaluations = [text for _, text in measured]
            columns = [list(measure(arguments, calibration, count, evaluations, folder)) for count in counts]
            for (label, _), values in zip(measured, zip(*columns)):
                print(f"| {kind} | {label} | " + " | ".join(cells(values)) + " |", flush=True)


if __name__ == "__main__":
    main()

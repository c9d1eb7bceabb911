#!/usr/bin/env python3
"""What quantizing costs, ours and a peer's: whole processes, in turns, on the same windows of the same text.

usage: peers.py QUANTC MODEL TEXT [--bits 4] [--group-size 128] [--windows 128] [--context 256] [--rounds 2] [--only REGEX]
(run by a Python that has gptqmodel and transformers; tests/interop/setup prints one)

Both read the same windows of token ids. Prints a Markdown table: processor seconds (user and system) and peak memory of each process, the least
of the rounds, and both as a share of the peer's. Nothing is evaluated here; benches/ablation.py compares what comes out.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

PEER = "GPTQModel"
RECIPES = ["gptq", "default"]


def peer(model: str, windows: pathlib.Path, output: str, bits: int, group_size: int) -> None:
    """Runs in a process of its own, which is what is measured."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    ids = [json.loads(line)["input_ids"] for line in windows.read_text().splitlines()]
    config = QuantizeConfig(bits=bits, group_size=group_size, device="cpu")
    loaded = GPTQModel.load(model, config, dtype=torch.float32)
    loaded.quantize([{"input_ids": window, "attention_mask": [1] * len(window)} for window in ids], batch_size=4)
    loaded.save(output)


def write_windows(model: str, text: str, output: str, count: int, length: int) -> None:
    """Token ids, a window a line."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(model)(pathlib.Path(text).read_text(), add_special_tokens=False)["input_ids"]
    if len(tokens) < count * length:
        sys.exit(f"the text has {len(tokens)} tokens, fewer than {count} windows of {length}")
    windows = [tokens[k * length : (k + 1) * length] for k in range(count)]
    pathlib.Path(output).write_text("".join(json.dumps({"input_ids": window}) + "\n" for window in windows))


def measured(command: list[str], folder: pathlib.Path) -> tuple[float, float]:
    """Processor seconds and peak memory, MiB, of a process and those that it waited for."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder)
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(command)} fails:\n{message.decode(errors='replace')[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantc")
    parser.add_argument("model")
    parser.add_argument("text", type=pathlib.Path)
    for name, value in [("bits", 4), ("group-size", 128), ("windows", 128), ("context", 256), ("rounds", 2)]:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    # The peer leaves logs where it runs, so processes run in a folder that is dropped.
    asked.quantc, asked.model = (str(pathlib.Path(path).resolve()) for path in (asked.quantc, asked.model))

    length = asked.context
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "GPTQMODEL_CPU_WORKERS": str(os.cpu_count())}
    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        text = work / "windows.jsonl"
        # Apart, since a process that is started is charged with the memory of the one that starts it.
        subprocess.run([sys.executable, __file__, "--windows", asked.model, str(asked.text), str(text), str(asked.windows), str(length)], check=True)
        bits, group = str(asked.bits), str(asked.group_size)
        commands = {PEER: [sys.executable, str(pathlib.Path(__file__).resolve()), "--peer", asked.model, str(text), str(work / "peer"), bits, group]}
        for recipe in RECIPES:
            commands[f"quantc, {recipe}"] = [
                asked.quantc, "quantize", asked.model, "-o", str(work / recipe), "--force", "--no-evaluate", "--recipe", recipe,
                "--bits", bits, "--group-size", group, "--calibration", str(text), "--samples", str(asked.windows), "--context", str(length),
            ]  # fmt: skip
        commands = {name: command for name, command in commands.items() if re.search(asked.only, name)}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(asked.rounds):
            for name, command in commands.items():
                found[name].append(measured(command, work))
        least = {name: [min(values) for values in zip(*runs)] for name, runs in found.items()}
        print("| | processor s | peak memory MiB | share of seconds | share of memory |\n|---|---|---|---|---|")
        for name, (seconds, memory) in least.items():
            whole = least.get(PEER, (float("nan"), float("nan")))
            print(f"| {name} | {seconds:.1f} | {memory:.0f} | {seconds / whole[0]:.3f} | {memory / whole[1]:.3f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        model, windows, output, bits, group_size = sys.argv[2:]
        peer(model, pathlib.Path(windows), output, int(bits), int(group_size))
    elif sys.argv[1:2] == ["--windows"]:
        write_windows(*sys.argv[2:5], int(sys.argv[5]), int(sys.argv[6]))
    else:
        main()

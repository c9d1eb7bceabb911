#!/usr/bin/env python3
"""llama.cpp's own quantizer against ours: the same model, calibration text, types and bytes.

usage: llama_quantize.py QUANTC MODEL [TYPE ...]      (run by a Python that has llama_cpp, gguf and numpy; tests/interop/setup prints one)

quantc writes an f16 GGUF and an importance matrix of its calibration text; llama.cpp quantizes that file with that matrix, embedding and head held
at 16 bit as ours are. KL is the mean divergence to the original, nats a token, by `quantc evaluate` on its built-in text. Prints a Markdown table.
"""

import ctypes
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np

# llama_ftype of each type, and whether llama.cpp weighs errors by the matrix there.
TYPES = {"q4_k_m": (15, True), "q3_k_m": (12, True), "q2_k": (10, True), "iq4_xs": (30, True), "q4_0": (2, False)}
F16 = 1
SAMPLES = ["--samples", "128", "--context", "256"]


def importance(path: pathlib.Path):
    """The matrix as llama.cpp takes it, and the arrays that must outlive it."""
    tensors = {tensor.name: np.array(tensor.data).reshape(-1) for tensor in gguf.GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    entries = (llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    kept = []
    for entry, name in zip(entries, names):
        values = (tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"][0]).astype(np.float32)
        kept.append(values)
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries, kept


def quantize_by_llama(source: pathlib.Path, target: pathlib.Path, file_type: int, matrix) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.token_embedding_type = parameters.output_tensor_type = F16
    if matrix is not None:
        parameters.imatrix = ctypes.cast(matrix, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if status != 0:
        sys.exit(f"llama_model_quantize fails with {status} on {target.name}")


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    quantc, model, *types = sys.argv[1:]
    types = types or list(TYPES)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)

        def run(*arguments: str) -> None:
            subprocess.run([quantc, *arguments], check=True, stdout=subprocess.DEVNULL)

        def divergence(path: pathlib.Path) -> float:
            report = work / "report.json"
            run("evaluate", str(path), "--reference", model, "--evaluate-context", "256", "--export-json", str(report))
            return json.loads(report.read_text())["evaluation"]["quantized"]["kl_mean"]

        run("quantize", model, "-o", str(work / "f16"), "--to", "gguf:f16", "--no-evaluate", "--export-imatrix",
            str(work / "imatrix.gguf"), *SAMPLES)
        matrix, _kept = importance(work / "imatrix.gguf")
        print("| type | bytes | llama.cpp, KL | quantc, KL | ratio |\n|---|---|---|---|---|")
        for name in types:
            file_type, weighs = TYPES[name]
            # Beside the tokenizer, which text is read with.
            theirs, ours = work / "f16" / f"{name}.gguf", work / name
            quantize_by_llama(work / "f16/model-f16.gguf", theirs, file_type, matrix if weighs else None)
            run("quantize", model, "-o", str(ours), "--to", f"gguf:{name}", "--no-evaluate", *SAMPLES)
            file = ours / f"model-{name}.gguf"
            sizes = {path.stat().st_size for path in (theirs, file)}
            if len(sizes) != 1:
                sys.exit(f"{name}: files of {sizes} bytes cannot be compared")
            found = [divergence(path) for path in (theirs, file)]
            print(f"| {name} | {sizes.pop()} | {found[0]:.5f} | {found[1]:.5f} | {found[1] / found[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()

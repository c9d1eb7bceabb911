#!/usr/bin/env python3
"""The packed 4-bit product beside ggml's and onnxruntime's: one thread, in turns, processor milliseconds, and ours as a multiple of each one's speed.

usage: packed_peers.py BENCH [--rounds 3]
(BENCH is the program that `cargo bench -p benches --bench packed --no-run` names; run by a Python that has llama_cpp and onnxruntime;
tests/interop/setup prints one)

A 4096 x 4096 matrix. ggml's Q4_0 has groups of 32 and rounds activations to eight bits, 32 to a scale; repacked is how llama.cpp keeps it. onnxruntime's
and ours have groups of 128. Compared are kernels that do the same to activations.
"""

import argparse
import ctypes
import pathlib
import subprocess
import time

import numpy as np

K = N = 4096
TOKENS = [1, 8, 32, 512]


def least(work) -> float:
    """The least processor milliseconds of a call, over rounds of a tenth of a second."""
    work()
    calls = 1
    best = float("inf")
    for _ in range(8):
        start = time.process_time()
        for _ in range(calls):
            work()
        spent = time.process_time() - start
        best = min(best, spent / calls)
        calls = max(1, int(0.1 / max(best, 1e-6)))
    return 1e3 * best


class Ggml:
    """Products by ggml's processor back end, as llama_cpp's library has it."""

    F32, Q4_0 = 0, 2

    def __init__(self) -> None:
        import llama_cpp

        folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
        self.base, self.cpu = (ctypes.CDLL(str(folder / f"libggml-{name}.so")) for name in ["base", "cpu"])
        pointer, number = ctypes.c_void_p, ctypes.c_int64

        class Params(ctypes.Structure):
            _fields_ = [("size", ctypes.c_size_t), ("buffer", pointer), ("no_alloc", ctypes.c_bool)]

        self.params = Params(1 << 20, None, True)
        signatures = {
            "ggml_init": (pointer, [Params]),
            "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, number, number]),
            "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
            "ggml_new_graph": (pointer, [pointer]),
            "ggml_build_forward_expand": (None, [pointer, pointer]),
            "ggml_backend_alloc_ctx_tensors": (pointer, [pointer, pointer]),
            "ggml_backend_alloc_ctx_tensors_from_buft": (pointer, [pointer, pointer]),
            "ggml_backend_tensor_set": (None, [pointer, pointer, ctypes.c_size_t, ctypes.c_size_t]),
            "ggml_backend_graph_compute": (ctypes.c_int, [pointer, pointer]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self.base, name)
            function.restype, function.argtypes = result, arguments
        self.cpu.ggml_backend_cpu_init.restype = pointer
        self.backend = self.cpu.ggml_backend_cpu_init()
        self.cpu.ggml_backend_cpu_set_n_threads.argtypes = [pointer, ctypes.c_int]
        self.cpu.ggml_backend_cpu_set_n_threads(self.backend, 1)

    def repack(self):
        """The kind of memory whose tensors are repacked."""
        # Not a name of C.
        function = self.cpu._Z35ggml_backend_cpu_repack_buffer_typev
        function.restype = ctypes.c_void_p
        return function()

    def product(self, tokens: int, repacked: bool):
        base = self.base
        weights_context, context = base.ggml_init(self.params), base.ggml_init(self.params)
        weights = base.ggml_new_tensor_2d(weights_context, self.Q4_0, K, N)
        if repacked:
            assert base.ggml_backend_alloc_ctx_tensors_from_buft(weights_context, self.repack())
        else:
            assert base.ggml_backend_alloc_ctx_tensors(weights_context, self.backend)
        rng = np.random.default_rng(0)
        groups = np.zeros(N * K // 32, dtype=[("scale", "<f2"), ("codes", "u1", 16)])
        groups["scale"] = 0.01
        groups["codes"] = rng.integers(0, 256, groups["codes"].shape, dtype=np.uint8)
        base.ggml_backend_tensor_set(weights, groups.ctypes.data, 0, groups.nbytes)
        x = base.ggml_new_tensor_2d(context, self.F32, K, tokens)
        y = base.ggml_mul_mat(context, weights, x)
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, y)
        assert base.ggml_backend_alloc_ctx_tensors(context, self.backend)
        values = rng.standard_normal((tokens, K)).astype(np.float32)
        base.ggml_backend_tensor_set(x, values.ctypes.data, 0, values.nbytes)
        return lambda: base.ggml_backend_graph_compute(self.backend, graph)


def onnx_product(tokens: int, accuracy: int):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    block = 128
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (N, K // block, block // 2), dtype=np.uint8)
    scales = np.full((N, K // block), 0.01, dtype=np.float32)
    given = [numpy_helper.from_array(codes, "B"), numpy_helper.from_array(scales, "S")]
    node = helper.make_node("MatMulNBits", ["A", "B", "S"], ["Y"], domain="com.microsoft", K=K, N=N, bits=4, block_size=block, accuracy_level=accuracy)
    shapes = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", size])] for name, size in [("A", K), ("Y", N)]]
    graph = helper.make_graph([node], "g", shapes[0], shapes[1], given)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = rng.standard_normal((tokens, K)).astype(np.float32)
    return lambda: session.run(None, {"A": x})


def ours(bench: str) -> dict[tuple[str, int], float]:
    """Milliseconds by activations and tokens; the bench's peaks are printed."""
    table = subprocess.run([bench, "--bench", "| 4 |"], check=True, capture_output=True, text=True).stdout.splitlines()
    print(next(line for line in table if line.startswith("peaks")))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("| 4 |")]
    return {(kind, int(tokens)): float(ms) for _, kind, features, tokens, ms, *_ in rows if int(features) == N}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    ggml = Ggml()
    peers = {
        "ggml Q4_0": ("int8", lambda tokens: ggml.product(tokens, False)),
        "ggml Q4_0, repacked": ("int8", lambda tokens: ggml.product(tokens, True)),
        "onnxruntime, int8": ("int8", lambda tokens: onnx_product(tokens, 4)),
        "onnxruntime, f32": ("f32", lambda tokens: onnx_product(tokens, 0)),
    }
    found: dict[tuple[str, int], float] = {}

    def keep(name: str, tokens: int, milliseconds: float) -> None:
        found[name, tokens] = min(milliseconds, found.get((name, tokens), float("inf")))

    for _ in range(asked.rounds):
        for (kind, tokens), milliseconds in ours(asked.bench).items():
            keep(kind, tokens, milliseconds)
        for name, (_, product) in peers.items():
            for tokens in TOKENS:
                keep(name, tokens, least(product(tokens)))
    print("\n| processor ms, tokens: | " + " | ".join(map(str, TOKENS)) + " |\n|---" + "|---" * len(TOKENS) + "|")
    for name in [*peers, "int8", "f32"]:
        print(f"| {name if name in peers else f'quantc, {name}'} | " + " | ".join(f"{found[name, tokens]:.3f}" for tokens in TOKENS) + " |")
    for name, (kind, _) in peers.items():
        print(f"| quantc's speed over {name} | " + " | ".join(f"{found[name, tokens] / found[kind, tokens]:.2f}" for tokens in TOKENS) + " |")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Checkpoints in vLLM on the CPU, one after the other, by the Python that setup-vllm prints: for each a line of JSON with the mean negative
log-likelihood of each window, in nats, and the text that follows the first 16 tokens of the first one; or with what it says as it refuses.

usage: in_vllm.py TOKENS MODEL...      (TOKENS: JSON lines with `input_ids`)

A model is computed with in the type that its config.json names.
"""

import gc
import json
import os
import sys
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
    TORCH_COMPILE_DISABLE="1",
)


def load(model: str, length: int):
    from vllm import LLM

    context = json.loads((Path(model) / "config.json").read_text())["max_position_embeddings"]
    # One token has to be generated, for which a window that fills the context leaves no room.
    longer = {"hf_overrides": {"max_position_embeddings": length + 1}} if length >= context else {}
    return LLM(
        model, max_model_len=length + 1, enforce_eager=True, disable_log_stats=True, enable_prefix_caching=False, max_num_seqs=8, **longer
    )  # fmt: skip


def measured(loaded, windows: list[list[int]]) -> dict:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    nll = []
    for window in windows:
        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        (found,) = loaded.generate([TokensPrompt(prompt_token_ids=window)], asked, use_tqdm=False)
        of_token = [-ranked[token].logprob for ranked, token in zip(found.prompt_logprobs[1:], window[1:])]
        nll.append(sum(of_token) / len(of_token))
    asked = SamplingParams(temperature=0, max_tokens=24)
    (found,) = loaded.generate([TokensPrompt(prompt_token_ids=windows[0][:16])], asked, use_tqdm=False)
    return {"nll": nll, "text": found.outputs[0].text}


def main() -> None:
    windows = [json.loads(line)["input_ids"] for line in Path(sys.argv[1]).read_text().splitlines()]
    from vllm.distributed import cleanup_dist_env_and_memory

    # Its own chatter goes elsewhere.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for model in sys.argv[2:]:
        try:
            loaded = load(model, len(windows[0]))
            found = measured(loaded, windows)
            del loaded
        except Exception as error:  # whatever it raises is the finding
            found = {"refused": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(found), file=out, flush=True)
        gc.collect()
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main()

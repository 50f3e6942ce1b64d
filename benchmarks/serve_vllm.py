"""What vLLM makes of prompts with a drafter; runs in vLLM's own environment, without this package.

    python benchmarks/serve_vllm.py REQUEST.json ANSWER.json

The request names target and drafter folders, `method` (dflash, dspark or eagle3), `prompts` (token ids, so that no chat
template comes between), `stop` tokens, `max_new_tokens`, `num_speculative_tokens`, `max_model_len` and `dtype`. The
answer has for each prompt the response's `tokens` and the `accepted` drafts of each verification: in `vllm` as vLLM is
installed, for DFlash in `vllm_mended` with `normalize_by_layer` in place; and of the first pass vLLM's own `counters`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams, TokensPrompt, __version__
from vllm import _custom_ops as ops
from vllm.model_executor.models.qwen3_dflash import DFlashQwen3Model
from vllm.v1.metrics.reader import Counter, Vector

PREFIX = "vllm:spec_decode_"


def main() -> None:
    source, destination = map(Path, sys.argv[1:])
    destination.write_text(json.dumps(answer(json.loads(source.read_text()))))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    llm = LLM(
        request["target"],
        dtype=request["dtype"],
        enforce_eager=True,
        max_model_len=request["max_model_len"],
        disable_log_stats=False,  # the counters are log statistics
        per_request_spec_decode_metrics="detailed",
        speculative_config={
            "method": request["method"],
            "model": request["drafter"],
            "num_speculative_tokens": request["num_speculative_tokens"],
        },
    )
    served = {"vllm": generate(llm, request), "counters": counters(llm), "version": __version__}
    if request["method"] != "dflash":
        return served
    DFlashQwen3Model._normalize_context_k = normalize_by_layer
    llm.reset_prefix_cache()
    return served | {"vllm_mended": generate(llm, request)}


def generate(llm: LLM, request: dict[str, Any]) -> list[dict[str, Any]]:
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=request["max_new_tokens"],
        stop_token_ids=request["stop"],
        ignore_eos=True,  # the stop tokens are all given
        detokenize=False,
    )
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in request["prompts"]]
    responses = []
    for result in llm.generate(prompts, sampling, use_tqdm=False):
        (output,) = result.outputs
        metrics = output.spec_decode_metrics  # None where the prefill's token ended the response
        responses.append(
            {"tokens": list(output.token_ids), "accepted": metrics.per_step_accepted if metrics is not None else []}
        )
    return responses


def normalize_by_layer(drafter: DFlashQwen3Model, keys: torch.Tensor) -> torch.Tensor:
    """The keys of the context [L, T, heads, head_dim], each layer's by that layer's weights.

    vLLM does it in one call whose weights have a row a layer (vllm#46761). Its CPU kernel takes the first row for all
    layers, as that for XPU did (vllm-xpu-kernels#573): the text stays right, acceptance falls.
    """
    normed = torch.empty_like(keys)
    for out, layer, weight in zip(normed, keys, drafter._k_norm_weights, strict=True):
        ops.rms_norm(out, layer, weight, drafter._rms_norm_eps)
    return normed


def counters(llm: LLM) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for metric in llm.get_metrics():
        if metric.name.startswith(PREFIX):
            name = metric.name.removeprefix(PREFIX)
            if isinstance(metric, Counter):
                values[name] = metric.value
            elif isinstance(metric, Vector):
                values[name] = metric.values
    return values


if __name__ == "__main__":
    main()

"""Does a drafter that we export serve as it was measured? Texts and acceptance in vLLM and transformers beside ours.

    python -m benchmarks.serve_check CHECKPOINT --prompts questions.jsonl

Exports the drafter, serves it with its target in vLLM (in an environment of its own) and in transformers' `generate`,
greedy on the same token ids. It passes where every text is the target's plain greedy text and each engine's mean
acceptance length (tokens committed / verifications) is within 2 % of ours. A difference of texts counts as none only
where the target's top two logits differ by less than 1e-4 in float64; each one is listed. transformers drafts from the
whole vocabulary, so there a drafter with a reduced one is compared with ours run with the full head. The last line
printed is one JSON object; the exit code is 1 where it did not pass.
"""

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from benchmarks.lossless import compare, questions
from benchmarks.vllm_environment import ask_vllm
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from draftopd.command import one_line_errors
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.exchange.assistant import to_transformers
from draftopd.exchange.published import write
from draftopd.measure import roll
from draftopd.prompts import encode
from draftopd.record import git_commit
from draftopd.restore import Restored, restore
from draftopd.rollout import Decoding
from draftopd.target import Target

TOLERANCE = 0.02  # of the acceptance length
JUDGED = ("vllm", "transformers")
PromptIds = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Served:
    """What an engine made of the prompts."""

    texts: list[list[int]]
    """prompt and response"""
    committed: list[list[int]]
    """tokens of each verification of a response, bonus included; those behind the response's end do not count"""

    @property
    def tau(self) -> float:
        """Tokens committed / verifications over all responses, without the prefill's token; NaN: no verification."""
        verifications = sum(map(len, self.committed))
        return sum(map(sum, self.committed)) / verifications if verifications else float("nan")


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    with one_line_errors():
        run = restore(args.checkpoint)
        prompts = chosen(run, args.prompts, args.limit)
        engines, notes = serve(run, prompts, args)
        report = verdict(engines, prompts, args.tokens, run.target) | notes
        print(json.dumps(report))
        return 0 if report["passed"] else 1


def chosen(run: Restored, path: Path | None, limit: int) -> list[list[int]]:
    """Prompts of a file, or the drafter's own test prompts."""
    if path is None:
        return run.encoded("test", limit)
    encoded = [encode(prompt, run.target.tokenizer) for prompt in questions(path, limit)]
    return [ids for ids in encoded if ids is not None]


def serve(run: Restored, prompts: PromptIds, args: argparse.Namespace) -> tuple[dict[str, Served], dict[str, Any]]:
    """What every engine made of the prompts, and what the report notes besides."""
    target, drafter, tokens = run.target, run.drafter, args.tokens
    engines = {"plain": ours(target, None, prompts, tokens), "ours": ours(target, drafter, prompts, tokens)}
    if drafter.d2t is not None:
        engines["ours_full_head"] = ours(target, full_head(drafter), prompts, tokens)
    engines["transformers"] = by_transformers(target, drafter, prompts, tokens)
    with TemporaryDirectory(prefix="serve-check-") as scratch:
        folder = Path(scratch, "drafter")
        warnings = write(drafter, folder, args.layout, target)
        answer = ask_vllm(args.environment, request(target, drafter, folder, prompts, tokens))
    engines |= {name: from_vllm(prompts, answer[name]) for name in ("vllm", "vllm_mended")}
    return engines, {
        "layout": args.layout,
        "linter": [str(warning) for warning in warnings],
        "vllm_counters": answer["counters"],
        "versions": {"vllm": answer["version"], "transformers": transformers.__version__, "torch": torch.__version__},
        "commit": git_commit(),
    }


def ours(target: Target, drafter: Drafter | None, prompts: PromptIds, tokens: int) -> Served:
    traces = roll(target, drafter, prompts, Decoding(tokens, batch_size=8))
    return Served([trace.tokens.tolist() for trace in traces], [trace.committed.tolist() for trace in traces])


def full_head(drafter: Drafter) -> Drafter:
    """The same weights over the target's whole vocabulary."""
    whole = copy.deepcopy(drafter)
    whole.d2t = None
    return whole


def by_transformers(target: Target, drafter: Drafter, prompts: PromptIds, tokens: int) -> Served:
    """transformers' own loop, drafter class and caches; one prompt at a time."""
    assistant = to_transformers(drafter, target)
    stop = target.stop_tokens.tolist()
    texts, committed = [], []
    for prompt in prompts:
        ids, counter = torch.tensor([prompt], device=target.device), Commits()
        out = target.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=stop or None,
            pad_token_id=stop[0] if stop else 0,
            assistant_model=assistant,
            speculation_type="dflash",
            streamer=counter,
        )
        texts.append(out[0].tolist())
        committed.append(counter.sizes[2:])
    return Served(texts, committed)


class Commits(BaseStreamer):
    """How many tokens `generate` hands out at a time: the prompt, the prefill's token, those of each verification."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def put(self, value: Tensor) -> None:
        self.sizes.append(value.numel())

    def end(self) -> None:
        pass


def request(target: Target, drafter: Drafter, folder: Path, prompts: PromptIds, tokens: int) -> dict[str, Any]:
    source = target.model.config.name_or_path
    if not source:
        raise DraftError("the target was not loaded from a folder or hub id, so vLLM cannot load it")
    room = max(map(len, prompts)) + tokens + 2 * drafter.block_size  # vLLM drafts only where a whole block fits
    return {
        "target": source,
        "drafter": str(folder),
        "prompts": [list(prompt) for prompt in prompts],
        "stop": target.stop_tokens.tolist(),
        "max_new_tokens": tokens,
        "max_model_len": room,
        "num_speculative_tokens": drafter.num_draft_tokens,
        "dtype": str(target.model.dtype).removeprefix("torch."),
    }


def from_vllm(prompts: PromptIds, responses: list[dict[str, Any]]) -> Served:
    """vLLM counts drafts that it accepted behind the end of the response; here they are cut off as in ours."""
    texts, committed = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        texts.append([*prompt, *response["tokens"]])
        left, counts = len(response["tokens"]) - 1, []
        for accepted in response["accepted"]:
            counts.append(min(accepted + 1, left))
            left -= counts[-1]
        # a step without drafts commits one token
        committed.append([count for count in counts if count > 0] + [1] * left)
    return Served(texts, committed)


def verdict(engines: dict[str, Served], prompts: PromptIds, tokens: int, target: Target) -> dict[str, Any]:
    """Compares every engine's texts with plain decoding, and acceptance with ours.

    Args:
        engines: `plain`, `ours`, `vllm`, `transformers`, and `ours_full_head` where the draft vocabulary is reduced:
            then transformers is compared with that. Others are reported and decide nothing.
    """
    plain = [torch.tensor(text) for text in engines["plain"].texts]
    speculative = {name: served for name, served in engines.items() if name != "plain"}
    texts = {
        name: compare([torch.tensor(text) for text in served.texts], plain, prompts, tokens, target)
        for name, served in speculative.items()
    }
    others = [name for name in speculative if not name.startswith("ours")]
    pairs = dict.fromkeys(others, "ours")
    pairs["transformers"] = "ours_full_head" if "ours_full_head" in engines else "ours"
    deviation = {name: engines[name].tau / engines[other].tau - 1 for name, other in pairs.items()}
    texts_equal = not any(result["wrong"] for result in texts.values())
    return {
        **{f"tau_{name}": served.tau for name, served in speculative.items()},
        "texts_equal": texts_equal,
        "passed": texts_equal and all(abs(deviation[name]) <= TOLERANCE for name in JUDGED),
        "deviation": deviation,
        "same_verifications": {
            name: sum(a == b for a, b in zip(engines[name].committed, engines[other].committed, strict=True))
            for name, other in pairs.items()
        },
        "prompts": len(prompts),
        "max_new_tokens": tokens,
        "texts": texts,
    }


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a drafter's checkpoint file")
    parser.add_argument("--prompts", type=Path, help="a JSON Lines file; without it the drafter's own test prompts")
    parser.add_argument("--limit", type=int, default=100, help="prompts, at most")
    parser.add_argument("--tokens", type=int, default=48, help="max_new_tokens")
    parser.add_argument("--layout", default="zlab", help="zlab or speculators")
    parser.add_argument("--environment", type=Path, default=Path(".venv-vllm"), help="of vLLM; made if it is not there")
    args = parser.parse_args(words)
    if args.limit < 1 or args.tokens < 2:
        parser.error("--limit must be at least 1, and --tokens 2: the first token comes from the prefill")
    return args


if __name__ == "__main__":
    sys.exit(main())

"""Are drafts along texts those of a rollout? Compares traces in all fields, prompt by prompt.

    python -m benchmarks.identity CHECKPOINT --prompts questions.jsonl

The target writes the texts as for training; `redraft` drafts along them, `rollout` drafts and verifies from the prompt.
Every trace that differs is listed with its first differing draft and the gap between the drafter's best two logits
there: below 1e-4 it is a tie that the order of additions decides. The last line printed is one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.bench import machine, pair, versions

from draftopd.checkpoints.native import Restored, restore
from draftopd.command import one_line_errors
from draftopd.data.sources import JsonlPrompts, encode
from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace, collate_rollouts
from draftopd.tracking.header import git_commit

TIE = 1e-4


def main(words: Sequence[str] | None = None) -> None:
    args, commit = arguments(words), git_commit()
    run = restore(args.checkpoint)
    prompts = questions(run, args.prompts, args.limit)
    facts = {"commit": commit, "machine": machine(torch.device("cpu")), "versions": versions("torch", "transformers")}
    what = {**pair(args.checkpoint, run.target, run.drafter), "batch_size": args.batch, "max_new_tokens": args.tokens}
    results = {**facts, "settings": what, **identity(run.target, run.drafter, prompts, args.tokens, args.batch)}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({name: results[name] for name in ("prompts", "equal", "ties", "blocks", "acceptance_length")}))
    wrong = len(results["differing"]) - results["ties"]
    if wrong:
        sys.exit(f"{wrong} traces are not those of the rollout: see {args.output}")


def measure(
    run: Restored, prompts: Sequence[Sequence[int]], args: argparse.Namespace, save: Callable[[dict[str, Any]], None]
) -> None:
    """A part of `train.py`."""
    if args.identity:
        chosen = questions(run, args.identity_prompts, args.identity)
        save(identity(run.target, run.drafter, chosen, args.tokens, args.micro_batch_size))


def identity(
    target: Target, drafter: Drafter, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int
) -> dict[str, Any]:
    """Traces of `redraft` beside those of `rollout`: how many are equal in all fields, and which are not."""
    decoding = Decoding(max_new_tokens, batch_size)
    start = time.perf_counter()
    texts = rollout(target, None, prompts, decoding, keep_states=True, layer_ids=drafter.layer_ids)
    written = time.perf_counter()
    again = redraft(target, drafter, texts, decoding)
    drafted = time.perf_counter()
    rolled = rollout(target, drafter, prompts, decoding, keep_states=True)
    done = time.perf_counter()
    pairs = list(zip(again, rolled, strict=True))
    found = [i for i, (ours, true) in enumerate(pairs) if unlike(ours.trace, true.trace)]
    differences = [{"prompt": i, **difference(target, drafter, *pairs[i])} for i in found]
    lengths = [r.trace.acceptance_length for r in rolled if len(r.trace.anchors)]
    return {
        "prompts": len(prompts),
        "equal": len(prompts) - len(found),
        "blocks": sum(len(r.trace.anchors) for r in rolled),
        "response_tokens": sum(r.trace.response_length for r in rolled),
        "acceptance_length": sum(lengths) / len(lengths) if lengths else None,
        "ties": sum(apart["tie"] for apart in differences),
        "differing": differences,
        "seconds": {"texts": written - start, "redraft": drafted - written, "rollout": done - drafted},
    }


def unlike(a: Trace, b: Trace) -> list[str]:
    """Names of the fields in which two traces differ."""

    def same(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return [name for name, value in vars(a).items() if not same(value, vars(b)[name])]


def differing(traces: Sequence[Trace], others: Sequence[Trace]) -> list[int]:
    """Numbers of the prompts whose traces differ in any field."""
    return [i for i, (a, b) in enumerate(zip(traces, others, strict=True)) if unlike(a, b)]


@torch.no_grad()
def difference(target: Target, drafter: Drafter, ours: Rollout, true: Rollout) -> dict[str, Any]:
    """Which fields differ, the first draft that does, and how far apart the drafter's best two logits are there."""
    out: dict[str, Any] = {"fields": unlike(ours.trace, true.trace), "tie": False}
    if "tokens" in out["fields"]:
        return out
    count = min(len(ours.trace.drafts), len(true.trace.drafts))
    where = (ours.trace.drafts[:count] != true.trace.drafts[:count]).nonzero()
    if not len(where):
        return out
    block, slot = where[0].tolist()
    hidden = drafter(collate_rollouts([ours]).to(target.device), target.embed)[0, block, slot]
    first, second = drafter.head(target.head)(hidden).topk(2).values.tolist()
    place = {"anchor": int(ours.trace.anchors[block]), "slot": slot + 1, "logit_gap": first - second}
    return {**out, **place, "tie": first - second < TIE}


def questions(run: Restored, path: Path | None, limit: int) -> list[list[int]]:
    """Token ids of a file's prompts, or of the drafter's own mix: training prompts first.

    Raises:
        DraftError: there are fewer than `limit`.
    """
    if path is None:
        ids = [ids for split in ("train", "val", "test") for ids in run.encoded(split)]
    else:
        found = (encode(p, run.target.tokenizer) for p in JsonlPrompts(str(path), val=0, test=0).split("train")[:limit])
        ids = [one for one in found if one is not None]
    if len(ids) < limit:
        raise DraftError(f"there are {len(ids)} prompts: lower --limit={limit}")
    return ids[:limit]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a drafter's checkpoint file")
    parser.add_argument("--prompts", type=Path, help="a JSON Lines file; default: the drafter's own prompts")
    parser.add_argument("--limit", type=int, default=200, help="prompts")
    parser.add_argument("--tokens", type=int, default=64, help="longest response, at least 2")
    parser.add_argument("--batch", type=int, default=8, help="prompts of one rollout batch")
    parser.add_argument("--output", type=Path, default=Path("identity.json"))
    args = parser.parse_args(words)
    if min(args.limit, args.batch) < 1 or args.tokens < 2:
        parser.error("--limit and --batch must be at least 1, --tokens at least 2")
    return args


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Is speculative decoding lossless? Compares texts with plain greedy decoding, token for token.

    python benchmarks/lossless.py CHECKPOINT --prompts questions.jsonl

Every batch size and block size; one line of JSON per chunk of prompts, so that a stopped run goes on where it was. A
difference counts as none only where the target's top two logits differ by less than 1e-4 in float64 (a tie that the
order of additions decides); each one is listed. The last line printed is one JSON object.
"""

import argparse
import copy
import hashlib
import json
from itertools import product
from pathlib import Path

import torch
from rich.progress import track

from draftopd.checkpoints.native import restore
from draftopd.data.prompts import Prompt
from draftopd.data.sources import JsonlPrompts, encode
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.target.model import Target
from draftopd.tracking.header import git_commit

TIE = 1e-4
CHUNK = 50


def main() -> None:
    args, commit = arguments(), git_commit()  # of the code that runs: the tree may change while it does
    run = restore(args.checkpoint)
    generated = [p for split in ("test", "val", "train") for p in run.prompts.split(split)]
    prompts = questions(args.prompts, args.limit) + generated[: args.generated]
    ids = [encode(p, run.target.tokenizer) for p in prompts]
    what = work(args.checkpoint, ids, args.batch, args.tokens)
    done = [line for line in lines(args.output) if line["work"] == what]
    keys = {(d["batch"], d["block"], d["first"]) for d in done}
    todo = [
        (batch, block, first)
        for (batch, block), first in product(product(args.batch, args.block), range(0, len(ids), CHUNK))
        if (batch, block, first) not in keys
    ]
    longest = max(args.tokens)
    plain: dict[int, list[torch.Tensor]] = {}
    for batch, block, first in track(todo, "comparing", disable=not todo):
        part = ids[first : first + CHUNK]
        if first not in plain:
            results = rollout(run.target, None, part, Decoding(longest, batch_size=CHUNK))
            plain[first] = [r.trace.tokens for r in results]
        run.drafter.block_size = block
        length = args.tokens[args.batch.index(batch)]
        results = rollout(run.target, run.drafter, part, Decoding(length, batch_size=batch))
        line = compare([r.trace.tokens for r in results], plain[first], part, length, run.target)
        lengths = [r.trace.acceptance_length for r in results if len(r.trace.anchors)]
        line |= {"batch": batch, "block": block, "first": first, "max_new_tokens": length, "tau_sum": sum(lengths)}
        line |= {"drafted": len(lengths), "work": what}
        done.append(line)
        with args.output.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print(json.dumps({"commit": commit, **summary(done)}))


def work(checkpoint: str, prompts: list[list[int]], batch: list[int], tokens: list[int]) -> str:
    """What is compared: results of another drafter, other prompts or lengths are not this run's."""
    settings = json.dumps([prompts, batch, tokens]).encode()
    return hashlib.sha256(Path(checkpoint).read_bytes() + settings).hexdigest()[:16]


def lines(path: Path) -> list[dict]:
    """Results so far; a last line that was cut short is dropped."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def compare(texts, plain, prompts, length: int, target: Target) -> dict:
    equal, ties, wrong, tokens = 0, [], [], 0
    for text, whole, prompt in zip(texts, plain, prompts, strict=True):
        want = whole[: len(prompt) + length]
        tokens += len(text) - len(prompt)
        if torch.equal(text, want):
            equal += 1
            continue
        size = min(len(text), len(want))
        unlike = (text[:size] != want[:size]).nonzero()
        at = int(unlike[0]) if len(unlike) else size
        gap = float64_gap(target, want[:at])
        (ties if gap < TIE else wrong).append({"prompt_length": len(prompt), "position": at, "gap": gap})
    return {"texts": len(texts), "tokens": tokens, "equal": equal, "ties": ties, "wrong": wrong}


def float64_gap(target: Target, tokens: torch.Tensor) -> float:
    """Difference of the top two logits behind `tokens`, in double precision."""
    model = copy.deepcopy(target.model).double()
    with torch.no_grad():
        first, second = model(tokens[None]).logits[0, -1].topk(2).values.tolist()
    return first - second


def questions(path: Path | None, limit: int) -> list[Prompt]:
    if path is None:
        return []
    prompts = JsonlPrompts(str(path), val=0, test=0).split("train")
    return prompts[:limit]


def summary(done: list[dict]) -> dict:
    cells = {}
    for line in done:
        cell = cells.setdefault(f"batch {line['batch']}, block {line['block']}", dict.fromkeys(COUNTS, 0))
        for name in ("texts", "tokens", "equal", "drafted", "tau_sum"):
            cell[name] += line[name]
        cell["ties"] += len(line["ties"])
        cell["wrong"] += len(line["wrong"])
    for cell in cells.values():
        cell["acceptance_length"] = round(cell.pop("tau_sum") / max(1, cell.pop("drafted")), 3)
    total = {name: sum(cell[name] for cell in cells.values()) for name in ("texts", "tokens", "equal", "ties", "wrong")}
    ties = [tie for line in done for tie in line["ties"]]
    return {**total, "listed_ties": ties, "by_setting": cells}


COUNTS = ("texts", "tokens", "equal", "ties", "wrong", "drafted", "tau_sum")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a drafter's checkpoint file")
    parser.add_argument("--prompts", type=Path, help="a JSON Lines file of prompts besides the generated ones")
    parser.add_argument("--limit", type=int, default=400, help="prompts of that file")
    parser.add_argument("--generated", type=int, default=200, help="prompts of the drafter's own mix, test first")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 20], help="max_new_tokens for each batch size")
    parser.add_argument("--block", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--output", type=Path, default=Path("lossless.jsonl"), help="results as they come")
    args = parser.parse_args()
    if len(args.batch) != len(args.tokens):
        parser.error("--tokens wants one number for each batch size")
    return args


if __name__ == "__main__":
    main()

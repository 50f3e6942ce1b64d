"""How do time and memory grow with the length and the number of texts? SFT step, Draft-OPD step and redraft.

    python -m benchmarks.growth CHECKPOINT RESULT --kind opd --length 2048 --texts 1 --blocks 64

does one of them on random tokens and writes what it took; `measure` starts a fresh process for each point.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.bench import rounds_of
from benchmarks.memory import cost
from benchmarks.train_step import module, run_steps

from draftopd.checkpoints.native import Restored, restore_drafter
from draftopd.console import quiet
from draftopd.decoding.redraft import redraft
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, Rollout, Trace, collate_rollouts, text_blocks

KINDS = ("sft", "opd", "redraft")
WARM_UP = 64  # tokens of the text that a process starts with
NOTES = {
    "sft": "cross-entropy, the texts' features at hand",
    "opd": "draft_opd on as many blocks, Target.replay of texts and rejected tails included",
    "redraft": "the chain of blocks along the text, its features at hand; no target forward",
    "text": "random tokens: a tenth of them is prompt; every block accepts 0 to K drafts in turn",
    "vocabulary": "the drafter's own, as it is shipped",
    "peak_bytes": "most memory above what the process held with both models loaded; what is made on first use (the "
    "optimizer's state, frozen weights in another layout) is in it and does not grow",
}


def measure(
    run: Restored, prompts: Sequence[Sequence[int]], args: argparse.Namespace, save: Callable[[dict[str, Any]], None]
) -> None:
    lengths = [(length, 1) for length in args.growth_lengths]
    several = [(args.growth_text_length, texts) for texts in args.growth_texts]
    wanted = [(kind, *size) for size in lengths + several for kind in KINDS]
    settings = {"blocks": args.growth_blocks, "text_length": args.growth_text_length}
    points: list[dict[str, Any]] = []
    for number in rounds_of(len(wanted), "growth"):
        kind, length, texts = wanted[number]
        point = {"kind": kind, "length": length, "texts": texts}
        points.append({**point, **ask(args.checkpoint, kind, length, texts, args.growth_blocks)})
        save({"notes": NOTES, "settings": settings, "points": points})


def ask(checkpoint: str, kind: str, length: int, texts: int, blocks: int) -> dict[str, float]:
    """What a fresh process says.

    Raises:
        DraftError: it was stopped, for memory perhaps.
    """
    with TemporaryDirectory(prefix="growth-") as scratch:
        result = Path(scratch, "result.json")
        sizes = ["--kind", kind, "--length", str(length), "--texts", str(texts), "--blocks", str(blocks)]
        path = str(Path(checkpoint).resolve())
        command = [sys.executable, "-m", "benchmarks.growth", path, str(result), *sizes]
        done = subprocess.run(command, stdout=2, check=False, cwd=Path(__file__).parents[1])
        if done.returncode != 0:
            why = f"{kind} of {texts} texts of {length} tokens stopped with exit code {done.returncode}"
            raise DraftError(f"{why}: lower --growth-lengths if memory ended")
        return json.loads(result.read_text())


def point(checkpoint: str, kind: str, length: int, texts: int, blocks: int) -> dict[str, float]:
    """Seconds and memory here; a short text goes before and does not count in the seconds."""
    target, drafter, _ = restore_drafter(Path(checkpoint))
    seconds: list[float] = []
    sizes = ((WARM_UP, 1), (length, texts))

    def work() -> None:
        if kind == "redraft":
            made = [written(target, drafter, *size) for size in sizes]
            seconds.extend(cost(partial(redraft, target, drafter, some, Decoding()))["seconds"] for some in made)
            return
        objective, build = ("draft_opd", on_policy) if kind == "opd" else ("cross_entropy", supervised)
        step = module(target, drafter, objective)
        seconds.extend(run_steps(step, [build(target, drafter, *size, blocks) for size in sizes]))

    return {"peak_bytes": cost(work)["peak_bytes"], "seconds": seconds[-1]}


def written(target: Target, drafter: Drafter, length: int, texts: int) -> list[Rollout]:
    """Random texts with random features."""
    draw = torch.Generator().manual_seed(0)
    size = len(drafter.layer_ids) * drafter.hidden_size
    nothing = torch.zeros(0, dtype=torch.long)
    return [
        Rollout(
            Trace(
                torch.randint(target.vocab_size, (length,), generator=draw),
                length // 10,
                nothing,
                torch.zeros(0, drafter.num_draft_tokens, dtype=torch.long),
                nothing,
            ),
            torch.randn(length, size, generator=draw),
        )
        for _ in range(texts)
    ]


def places(text: Trace, drafter: Drafter, blocks: int) -> torch.Tensor:
    """Anchors of whole blocks, spread evenly."""
    last = len(text.tokens) - drafter.num_draft_tokens - 1
    return torch.linspace(text.prompt_length, last, min(blocks, last - text.prompt_length)).long()


def supervised(target: Target, drafter: Drafter, length: int, texts: int, blocks: int) -> ReplayBatch:
    made = written(target, drafter, length, texts)
    traces, features = [r.trace for r in made], [r.features for r in made if r.features is not None]
    anchors = [places(trace, drafter, blocks) for trace in traces]
    return text_blocks(traces, anchors, drafter.num_draft_tokens, features)


def on_policy(target: Target, drafter: Drafter, length: int, texts: int, blocks: int) -> ReplayBatch:
    slots, made = drafter.num_draft_tokens, []
    for text in (r.trace for r in written(target, drafter, length, texts)):
        anchors = places(text, drafter, blocks)
        accepted = torch.arange(len(anchors)) % (slots + 1)
        following = text.tokens[anchors[:, None] + torch.arange(1, slots + 1)]
        drafts = torch.where(torch.arange(slots) < accepted[:, None], following, (following + 1) % target.vocab_size)
        made.append(Rollout(Trace(text.tokens, text.prompt_length, anchors, drafts, accepted)))
    return collate_rollouts(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("result", type=Path)
    parser.add_argument("--kind", choices=KINDS, required=True)
    for name in ("--length", "--texts", "--blocks"):
        parser.add_argument(name, type=int, required=True)
    args = parser.parse_args()
    quiet()
    found = point(args.checkpoint, args.kind, args.length, args.texts, args.blocks)
    args.result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
